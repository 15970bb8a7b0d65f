"""The loops that are timed: a Session, its batches, and a clock; nothing else happens in them.

A Session answers one call after the other, so one thread does it all. Times are int64 nanoseconds.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.values import Array, Feeds, Session

Clock = Callable[[], int]

_HARNESS_CALLS = 3000
_ARRIVALS = 1024
_SPIN_NS = 200_000  # a sleep may end this much late


def _longs() -> array[int]:
    return array("q")  # 8 bytes a sample: the peak of the memory is the engine's


@dataclass
class Taken:
    """What a turn took: a query each in `whole`, and of it staging and execution alone.

    `unanswered` counts queries that had arrived and were given up when the time was over.
    """

    whole: array[int] = field(default_factory=_longs)
    stage: array[int] = field(default_factory=_longs)
    execute: array[int] = field(default_factory=_longs)
    unanswered: int = 0


@dataclass(frozen=True, kw_only=True)
class Until:
    """A turn ends after `seconds` and `least` queries, but in no case long after `most_seconds`."""

    seconds: float
    least: int = 0
    most_seconds: float = 0.0

    def deadlines(self, now: int) -> tuple[int, int]:
        """When the seconds are over, and when all is."""
        return (
            now + int(self.seconds * 1e9),
            now + int(max(self.seconds, self.most_seconds) * 1e9),
        )


class Rotation:
    """Batches in turn, over and over: one input all the time would lie in the cache."""

    def __init__(self, batches: Sequence[Feeds]) -> None:
        self._batches, self._next = batches, 0

    def take(self) -> Feeds:
        """The next one."""
        feeds = self._batches[self._next]
        self._next = (self._next + 1) % len(self._batches)
        return feeds


class EmptySession:
    """A Session that does nothing: what a call of it takes is the harness's own cost."""

    inputs = outputs = ()

    def stage(self, feeds: Feeds) -> None:
        """Nothing."""

    def execute(self) -> None:
        """Nothing."""

    def fetch(self) -> dict[str, Array]:
        """Nothing."""
        return {}

    def __enter__(self) -> EmptySession:
        return self

    def __exit__(self, *raised: object) -> None:
        pass


def harness_ns(feeds: Feeds) -> float:
    """The median of what a call of an empty Session takes here."""
    until = Until(seconds=0, least=_HARNESS_CALLS, most_seconds=1.0)
    taken = one_after_the_other(EmptySession(), Rotation([feeds, feeds]), until)
    return float(statistics.median(taken.whole))


def one_after_the_other(
    session: Session, rotation: Rotation, until: Until, clock: Clock = time.perf_counter_ns
) -> Taken:
    """Calls of one batch, the next when one is answered; `whole` is staged, executed, fetched."""
    return _in_turn(session, rotation, until, clock, from_last=False)


def back_to_back(
    session: Session, rotation: Rotation, until: Until, clock: Clock = time.perf_counter_ns
) -> Taken:
    """Batches without a pause; `whole` is from one answer to the next, whatever was between."""
    return _in_turn(session, rotation, until, clock, from_last=True)


def _in_turn(
    session: Session, rotation: Rotation, until: Until, clock: Clock, *, from_last: bool
) -> Taken:
    """Call after call; `from_last`: the time of one begins with the answer to the one before."""
    taken = Taken()
    whole, staged_in, executed_in = taken.whole, taken.stage, taken.execute
    stage, execute, fetch, take = session.stage, session.execute, session.fetch, rotation.take
    with _no_collection():
        end = clock()
        deadline, last = until.deadlines(end)
        while end < deadline or (len(whole) < until.least and end < last):
            before = end
            feeds = take()
            start = clock()
            stage(feeds)
            staged = clock()
            execute()
            executed = clock()
            fetch()
            end = clock()
            whole.append(end - (before if from_last else start))
            staged_in.append(staged - start)
            executed_in.append(executed - staged)
    return taken


def several_at_once(
    session: Session, rotation: Rotation, until: Until, calls: int,
    clock: Clock = time.perf_counter_ns,
) -> Taken:  # fmt: skip
    """Queries of so many calls each; `whole` is from the first call's start to the last's end."""
    taken = Taken()
    stage, execute, fetch, take = session.stage, session.execute, session.fetch, rotation.take
    with _no_collection():
        end = clock()
        deadline, last = until.deadlines(end)
        while end < deadline or (len(taken.whole) < until.least and end < last):
            query = [take() for _ in range(calls)]
            in_stage = in_execute = 0
            begun = clock()
            for feeds in query:
                start = clock()
                stage(feeds)
                staged = clock()
                execute()
                executed = clock()
                fetch()
                in_stage += staged - start
                in_execute += executed - staged
            end = clock()
            taken.whole.append(end - begun)
            taken.stage.append(in_stage)
            taken.execute.append(in_execute)
    return taken


def from_pixels(
    session: Session, rotation: Rotation, until: Until, prepare: Callable[[Feeds], Feeds],
    clock: Clock = time.perf_counter_ns,
) -> Taken:  # fmt: skip
    """Calls with what comes before them; `whole` is all of it, `stage` is the preparing alone."""
    taken = Taken()
    with _no_collection():
        end = clock()
        deadline, last = until.deadlines(end)
        while end < deadline or (len(taken.whole) < until.least and end < last):
            stored = rotation.take()
            start = clock()
            feeds = prepare(stored)
            prepared = clock()
            session.stage(feeds)
            staged = clock()
            session.execute()
            executed = clock()
            session.fetch()
            end = clock()
            taken.whole.append(end - start)
            taken.stage.append(prepared - start)
            taken.execute.append(executed - staged)
    return taken


def arriving(
    session: Session, rotation: Rotation, until: Until, gaps: Iterator[int],
    clock: Clock = time.perf_counter_ns, sleep: Callable[[float], None] = time.sleep,
) -> Taken:  # fmt: skip
    """Queries that arrive `gaps` nanoseconds after one another, whether or not one is answered.

    `whole` is from the arrival to the answer: the time in the queue is in it. Those that arrive
    within `seconds` are answered; where they pile up, the ones that are not by `most_seconds` are
    counted as unanswered.
    """
    taken = Taken()
    with _no_collection():
        due = clock()
        deadline, last = until.deadlines(due)
        due += next(gaps)
        while due < deadline or len(taken.whole) + taken.unanswered < until.least:
            now = clock()
            if now >= last:
                if due >= last:
                    break
                taken.unanswered += 1  # it was there, and nobody came to it
                due += next(gaps)
                continue
            _wait(due, now, clock, sleep)
            feeds = rotation.take()
            start = clock()
            session.stage(feeds)
            staged = clock()
            session.execute()
            executed = clock()
            session.fetch()
            taken.whole.append(clock() - due)
            taken.stage.append(staged - start)
            taken.execute.append(executed - staged)
            due += next(gaps)
    return taken


def poisson_gaps(rate: float, seed: int) -> Iterator[int]:
    """Nanoseconds between the arrivals of a Poisson process of `rate` a second."""
    rng = np.random.default_rng(seed)
    while True:
        yield from map(int, 1e9 * rng.exponential(1 / rate, _ARRIVALS))


def whole_batches(arrays: Mapping[str, Array], batch: int) -> list[dict[str, Array]]:
    """Whole batches of the samples, each contiguous; a set smaller than one is repeated."""
    count = min(len(values) for values in arrays.values())
    order = np.resize(np.arange(count), max(batch, count - count % batch)).reshape(-1, batch)
    return [{name: values[rows] for name, values in arrays.items()} for rows in order]


def _wait(due: int, now: int, clock: Clock, sleep: Callable[[float], None]) -> None:
    if due - now > _SPIN_NS:
        sleep((due - now - _SPIN_NS) / 1e9)
    while clock() < due:
        pass


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A collection is Python's pause, not the engine's."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
