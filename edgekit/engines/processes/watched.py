"""A child process under watch: its memory, its time, what it says, and what ended it.

The child leads a process group of its own. What is watched is the resident memory of the whole
group, not its address space: a process that loads CUDA reserves far more than it uses, so an
address limit (RLIMIT_AS) would end every one of them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeAlias

from edgekit.engines.processes.child import environment
from edgekit.engines.processes.oom import OomWitness
from edgekit.values import Figure, Unknown

_LOOK_S = 0.1
_TICK_S = 1.0
_LAST_WORDS_S = 1.0
_PATIENCE_S = ((signal.SIGTERM, 0.3), (signal.SIGKILL, 5.0))

Stopped: TypeAlias = Literal["", "memory", "available", "time"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may take; None is no limit.

    `memory_bytes` is the resident memory of its group, `least_available_bytes` what must stay
    available on the whole machine: where the GPU takes from the same memory, the first does not
    see it. A look is taken ten times a second, so a limit can be passed by what is allocated in
    between.
    """

    memory_bytes: int | None = None
    least_available_bytes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a watched child ended.

    `stopped` names the limit for which we ended it, `proof` what says that the kernel did so for
    memory. `peak_bytes` is the largest resident memory of its group that was seen.
    """

    returncode: int
    stderr: str
    seconds: float
    peak_bytes: Figure
    stopped: Stopped
    proof: str


def run_watched(
    command: Sequence[str],
    *,
    first_line: str,
    limits: Limits,
    on_line: Callable[[str], None],
    on_tick: Callable[[float, Figure], None],
) -> Ending:
    """Runs the command to its end, or to a limit, and says how it ended.

    `first_line` goes to its stdin, which stays open: a child that reads it (`child.py`) ends with
    this process. `on_line` gets each line of its stdout, `on_tick` once a second the elapsed
    seconds and the resident bytes. Nothing of the group is left when this returns or raises,
    KeyboardInterrupt included.
    """
    witness = OomWitness()
    try:
        with (
            tempfile.TemporaryFile("w+", errors="replace") as said,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                text=True, errors="replace", env=environment(), start_new_session=True,
            ) as child,
        ):  # fmt: skip
            watch = _Watch(child, limits)
            try:
                _tell(child, first_line)
                watch.until_end(on_line, on_tick)
            finally:
                end_group(child)
            said.seek(0)
            return Ending(
                returncode=child.returncode,
                stderr=said.read(),
                seconds=watch.elapsed(),
                peak_bytes=watch.peak,
                stopped=watch.stopped,
                proof="" if watch.stopped else witness.proof(watch.pids),
            )
    finally:
        witness.close()


def _tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it is dead already: its end says why
        child.stdin.write(line.rstrip("\n") + "\n")
        child.stdin.flush()


class _Watch:
    def __init__(self, child: subprocess.Popen[str], limits: Limits) -> None:
        self._child = child
        self._limits = limits
        self._begun = time.monotonic()
        self._next_look = self._next_tick = 0.0
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.pids: set[int] = {child.pid}
        self.peak: Figure = Unknown("no resident memory was read")
        self.stopped: Stopped = ""
        assert child.stdout is not None
        threading.Thread(target=self._read, args=(child.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed: the child has ended
            for line in stream:
                self._lines.put(line)
        self._lines.put(None)  # there will be no more

    def elapsed(self) -> float:
        return time.monotonic() - self._begun

    def until_end(
        self, on_line: Callable[[str], None], on_tick: Callable[[float, Figure], None]
    ) -> None:
        ended_at: float | None = None
        is_open = True  # its stdout, which a grandchild may hold open for ever
        while is_open or ended_at is None:
            if ended_at is None and self._child.poll() is not None:
                ended_at = self.elapsed()
            if is_open:
                try:
                    line = self._lines.get(timeout=_LOOK_S)
                except queue.Empty:
                    if ended_at is not None and self.elapsed() > ended_at + _LAST_WORDS_S:
                        return
                else:
                    is_open = line is not None
                    if line is not None:
                        on_line(line)
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(_LOOK_S)
            if ended_at is None and self._is_stopped(on_tick):
                return

    def _is_stopped(self, on_tick: Callable[[float, Figure], None]) -> bool:
        """Looks, where it is time to, and tells; whether a limit is passed."""
        now = self.elapsed()
        if now < self._next_look:
            return False
        self._next_look = now + _LOOK_S
        resident = self._look()
        self.stopped = self._passed(resident, now)
        if not self.stopped and now >= self._next_tick:
            self._next_tick = now + _TICK_S
            on_tick(now, resident)
        return bool(self.stopped)

    def _look(self) -> Figure:
        members = group_members(self._child.pid)
        self.pids.update(members)
        resident = resident_bytes(members)
        if not isinstance(resident, Unknown):
            before = 0.0 if isinstance(self.peak, Unknown) else self.peak
            self.peak = max(before, resident)
        return resident

    def _passed(self, resident: Figure, now: float) -> Stopped:
        limits = self._limits
        if (
            limits.memory_bytes is not None
            and not isinstance(resident, Unknown)
            and resident > limits.memory_bytes
        ):
            return "memory"
        if limits.least_available_bytes is not None:
            available = available_bytes()
            if not isinstance(available, Unknown) and available < limits.least_available_bytes:
                return "available"
        return "time" if limits.seconds is not None and now > limits.seconds else ""


def end_group(child: subprocess.Popen[str]) -> None:
    """Ends the child and all of its process group: asked first, then made to."""
    for sent, patience in _PATIENCE_S:
        try:
            os.killpg(child.pid, sent)
        except (ProcessLookupError, PermissionError):  # gone, or (macOS) nothing but the dead
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            child.poll()  # a dead leader keeps the group until it is waited for
            if not _group_exists(child.pid):
                break
            time.sleep(0.01)
    child.wait()


def _group_exists(group: int) -> bool:
    """Whether anything of the group still runs.

    A dead grandchild stays in it until the system's first process waits for it, which in a
    container may be never.
    """
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    members = group_members(group)
    return any(not _is_dead(pid) for pid in members)


def _is_dead(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return Path("/proc/self").exists()
    return stat.rpartition(")")[2].split()[0] in "ZX"


def group_members(group: int) -> tuple[int, ...]:
    """The processes of a group; on another system than Linux only its leader is known."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return (group,)
    found = []
    for name in names:
        if name.isdecimal():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(int(name)) == group:
                    found.append(int(name))
    return tuple(found)


def resident_bytes(pids: Sequence[int]) -> Figure:
    """The sum of their resident memory; what two of them share counts twice."""
    import psutil

    total = 0
    seen = False
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_info().rss
            seen = True
    return float(total) if seen else Unknown("none of the processes can be read")


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> Figure:
    """What the whole machine can still give without swapping: Linux's MemAvailable."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError as error:
        return Unknown(f"{meminfo}: {error.strerror}")
    for line in lines:
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return Unknown(f"{meminfo} has no MemAvailable")
