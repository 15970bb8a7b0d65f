"""The memory of this process, as the system counts it."""

from __future__ import annotations

import sys
from pathlib import Path

from edgekit.values import Figure, Unknown

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident_bytes() -> Figure:
    """What lies in physical memory now (VmRSS), shared libraries included."""
    found = _status_bytes("VmRSS")
    if not isinstance(found, Unknown):
        return found
    import psutil

    return float(psutil.Process().memory_info().rss)


def peak_bytes() -> Figure:
    """The most that lay in physical memory (VmHWM) since the start, or since `forget_peak`."""
    found = _status_bytes("VmHWM")
    if not isinstance(found, Unknown):
        return found
    try:
        import resource
    except ImportError:
        return Unknown("this system does not tell a process's peak memory")
    scale = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def forget_peak() -> None:
    """Makes the peak what is resident now, where the system can (Linux; man proc, clear_refs)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return  # the peak is then since the start: never too small


def _status_bytes(field: str) -> Figure:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return Unknown(f"there is no {_STATUS}")
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return float(value.split()[0]) * 1024
    return Unknown(f"{_STATUS} has no {field}")
