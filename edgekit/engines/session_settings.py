"""How a CPU session is run: threads, spinning, arena; and a short measurement that chooses.

Only speed and memory hang on them: a setting that changes one bit of an output is not taken.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import psutil

from edgekit.engines.comparison import identical
from edgekit.errors import EdgekitError
from edgekit.values import Feeds, Session, run

_ROUNDS = 15
_LEAST_ROUNDS = 5
_TURN_S = 0.002
_PAUSE_S = 0.002  # the session before has stopped spinning
_LEAST_GAIN = 0.05  # of the defaults' time; less is within what a machine's own unrest does
_WON = 0.8  # of the rounds
_OTHER_LOAD = 0.1


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """Settings of an ONNX Runtime session; `threads` 0 is every physical core.

    `spinning`: a thread that waits for work keeps its core busy, which answers sooner and takes the
    core from everybody else. `arena`: freed memory is kept for the next run.
    """

    threads: int = 0
    spinning: bool = True
    arena: bool = True

    def to_manifest(self) -> dict[str, str | int]:
        """As the manifest's `settings` hold them."""
        return {
            "threads": self.threads, "spinning": int(self.spinning), "arena": int(self.arena),
        }  # fmt: skip

    def __str__(self) -> str:
        threads = f"{self.threads} threads" if self.threads else "every core"
        extras = ("" if self.spinning else ", no spinning") + ("" if self.arena else ", no arena")
        return threads + extras


def settings_from_manifest(stored: Mapping[str, str | int]) -> SessionSettings:
    """What a manifest holds; what it does not say is the default."""
    return SessionSettings(
        threads=int(stored.get("threads", 0)),
        spinning=bool(int(stored.get("spinning", 1))),
        arena=bool(int(stored.get("arena", 1))),
    )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search chose, and a sentence on why."""

    settings: SessionSettings
    said: str


def candidates(base: SessionSettings, cores: int, cpus: int) -> tuple[SessionSettings, ...]:
    """What is tried beside `base`. A number of threads that somebody chose is kept."""
    found = [replace(base, spinning=False), replace(base, arena=False)]
    if not base.threads:
        counts = {1, cores // 2, cpus} - {0, cores}
        found += [replace(base, threads=count) for count in sorted(counts)]
    return tuple(found)


def search(
    opened: Callable[[SessionSettings], Session],
    feeds: Feeds,
    tried: Sequence[SessionSettings],
    base: SessionSettings,
    *,
    seconds: float,
) -> Found:
    """The settings that answer soonest on the feeds, `base` where none is clearly better.

    All are open at once and take turns, so that a machine's slower moments meet each of them. One
    wins that is 5% faster by the median of its rounds, and faster in four of five rounds; what
    gives other outputs, or does not open, is left out. It ends within about `seconds`.
    """
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(opened(base))
        wanted = run(reference, feeds)
        sessions = {base: reference}
        for settings in tried:
            if time.monotonic() > deadline:
                break
            with contextlib.suppress(EdgekitError):
                session = stack.enter_context(opened(settings))
                if identical(run(session, feeds), wanted):
                    sessions[settings] = session
        rounds = _interleaved(sessions, feeds, deadline)
    return _decided(rounds, base)


def unless_busy(find: Callable[[], Found], base: SessionSettings) -> Found:
    """What `find` finds, or `base` where other programs worked meanwhile.

    What is best beside them need not be best without: a tenth of the processors is too much.
    """
    begun, busy, own = time.monotonic(), _busy_s(), time.process_time()
    found = find()
    wall = max(time.monotonic() - begun, 1e-9)
    others = (_busy_s() - busy) - (time.process_time() - own)
    share = max(0.0, others) / (wall * (psutil.cpu_count() or 1))
    if share <= _OTHER_LOAD:
        return found
    return Found(settings=base, said=f"other programs used {share:.0%} of the processors")


def _busy_s() -> float:
    """Seconds that all processors have worked since the machine was started."""
    times = psutil.cpu_times()
    twice = ("guest", "guest_nice")  # on Linux they are in user time too
    not_worked = ("idle", "iowait", *twice)
    return float(sum(times)) - sum(float(getattr(times, name, 0.0)) for name in not_worked)


def _interleaved(
    sessions: Mapping[SessionSettings, Session], feeds: Feeds, deadline: float
) -> dict[SessionSettings, list[float]]:
    """Seconds a call in each round, by settings; every session has as many rounds."""
    for session in sessions.values():
        session.stage(feeds)
    taken: dict[SessionSettings, list[float]] = {settings: [] for settings in sessions}
    for _ in range(_ROUNDS):
        turn: dict[SessionSettings, float] = {}
        for settings, session in sessions.items():
            if time.monotonic() > deadline:
                return taken  # a round that was cut short is none
            time.sleep(_PAUSE_S)
            turn[settings] = _seconds_a_call(session)
        for settings, value in turn.items():
            taken[settings].append(value)
    return taken


def _seconds_a_call(session: Session) -> float:
    session.execute()  # its threads and caches are another's until now
    calls, begun = 0, time.perf_counter()
    while True:
        session.execute()
        calls += 1
        passed = time.perf_counter() - begun
        if passed >= _TURN_S:
            return passed / calls


def _decided(rounds: Mapping[SessionSettings, Sequence[float]], base: SessionSettings) -> Found:
    own = rounds[base]
    if len(own) < _LEAST_ROUNDS:
        said = f"the time was too short to search: {len(own)} of {_LEAST_ROUNDS} rounds"
        return Found(settings=base, said=said)
    best = min(rounds, key=lambda settings: statistics.median(rounds[settings]))
    gain = 1 - statistics.median(rounds[best]) / statistics.median(own)
    won = sum(a < b for a, b in zip(rounds[best], own, strict=True)) / len(own)
    others = len(rounds) - 1
    if best == base or gain < _LEAST_GAIN or won < _WON:
        said = f"none of {others} others was clearly faster than {base} in {len(own)} rounds"
        return Found(settings=base, said=said)
    said = f"{best}: {gain:.0%} faster than {base} in {len(own)} rounds, among {others} others"
    return Found(settings=best, said=said)
