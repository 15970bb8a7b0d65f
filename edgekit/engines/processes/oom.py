"""Proof that the kernel killed a process because memory ran out; without it nobody is blamed.

Sources: the kernel's documents admin-guide/cgroup-v2 (`memory.events`: `oom_kill`) and
cgroup-v1/memory (`memory.oom_control`), and what mm/oom_kill.c prints: "Killed process PID".
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

_KILLED = re.compile(r"[Kk]illed process (\d+)")


class OomWitness:
    """Looks at the kernel's counts of memory kills before a child starts, and again at its end."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._counters = tuple(_counters(root))
        self._before = {path: _kills(path) for path in self._counters}
        self._log = _KernelLog(root / "dev" / "kmsg")

    def proof(self, pids: Collection[int]) -> str:
        """What says that memory ended one of these processes, "" where nothing does.

        A control group counts its kills without naming the process: it is proof together with a
        SIGKILL of a child that the group holds.
        """
        for path in self._counters:
            before, now = self._before[path], _kills(path)
            if before is not None and now is not None and now > before:
                return f"{path} counts {now - before} more killed for memory than before"
        for line in self._log.new_lines():
            found = _KILLED.search(line)
            if found and int(found[1]) in pids:
                return f"the kernel's log: {line}"
        return ""

    def close(self) -> None:
        """Lets the kernel's log go."""
        self._log.close()


def _counters(root: Path) -> Iterator[Path]:
    """The files that count kills in this process's own control groups; none where unreadable."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = root / "sys" / "fs" / "cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2, alone or beside version 1
            places = [mounts, mounts / "unified"]
            name = "memory.events"
        elif "memory" in controllers.split(","):
            places = [mounts / "memory"]
            name = "memory.oom_control"
        else:
            continue
        # Within a container the group's path may be the host's: there it is the mount itself.
        for place in places:
            for counter in (place / path.lstrip("/") / name, place / name):
                if _kills(counter) is not None:
                    yield counter
                    break


def _kills(counter: Path) -> int | None:
    try:
        lines = counter.read_text().splitlines()
    except OSError:
        return None
    counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else None


class _KernelLog:
    """What the kernel logs from now on, where this process may read it (mostly: as root)."""

    def __init__(self, place: Path) -> None:
        try:
            self._stream = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._stream, 0, os.SEEK_END)
        except OSError:
            self._stream = -1

    def new_lines(self) -> Iterator[str]:
        """Each record's text, the fields before it cut off."""
        while self._stream >= 0:
            try:
                record = os.read(self._stream, 8192)
            except BlockingIOError:
                return
            except BrokenPipeError:  # records were overwritten: reading goes on with the oldest
                continue
            except OSError:
                return
            if not record:
                return
            for line in record.decode(errors="replace").splitlines():
                yield line.partition(";")[2] or line

    def close(self) -> None:
        if self._stream >= 0:
            os.close(self._stream)
            self._stream = -1
