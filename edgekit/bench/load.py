"""How much of the processors went to anybody else while we measured."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from edgekit.values import Figure, Unknown

if TYPE_CHECKING:
    import psutil


class OtherLoad:
    """Counts from now on: the processors' busy time less that of this process and its children.

    Children that have ended are in it, as far as they were waited for. In a container the
    processors are the whole machine's, and so is their load.
    """

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_s(), own_cpu_s()

    def share(self) -> Figure:
        """The share of all processors, from 0 to 1, that others took since the start."""
        import psutil

        wall = time.monotonic() - self._began
        if wall <= 0:
            return Unknown("no time has passed")
        others = (_busy_s() - self._busy) - (own_cpu_s() - self._own)
        return min(1.0, max(0.0, others / (wall * (psutil.cpu_count() or 1))))


def own_cpu_s() -> float:
    """The CPU seconds of this process, of its living descendants, and of those waited for."""
    import psutil

    used = time.process_time()
    with contextlib.suppress(ImportError):
        import resource

        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        used += ended.ru_utime + ended.ru_stime
    for child in descendants():
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            used += times.user + times.system
            used += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return float(used)


def descendants() -> list[psutil.Process]:
    """This process's living children, and theirs."""
    import psutil

    return psutil.Process().children(recursive=True)


def _busy_s() -> float:
    import psutil

    times = psutil.cpu_times()
    # On Linux guest time is in user time too.
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - guest)
