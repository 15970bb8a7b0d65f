"""What a process and its engine take, by named source. The sources overlap: nothing is added up.

A runtime's own figures are of its allocators, a process's of its pages, NVML's of a card, and on a
machine that shares one memory between CPU and GPU all of them lie in the same pool.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.values import Figure, Unknown

SOURCES: Mapping[str, str] = {
    "weight_bytes": "the engine's weights, as its builder said",
    "activation_bytes": "the engine's activations, as its builder said",
    "scratch_bytes": "the most scratch memory of a layer, as the builder said",
    "context_bytes": "an execution context's device memory, as the runtime says",
    "file_bytes": "the engine file on the disk",
    "peak_memory_bytes": "the most that was resident of the process (VmHWM), shared pages included",
    "steady_memory_bytes": "resident of the process after the last turn (Rss of smaps_rollup)",
    "unique_memory_bytes": "of that, the process's own pages alone (USS, Private of smaps_rollup)",
    "memory_rise_bytes": "the peak over the same process before the engine was opened",
    "gpu_memory_bytes": "the process's memory on the GPU, at its most (NVML)",
    "available_drop_bytes": "by how much the machine's MemAvailable fell, whoever took it",
    "nvmap_bytes": "the process's buffers in nvmap, which CPU and GPU share, at their most",
}  # fmt: skip
"""The figures of memory that a measurement may have, and what each of them is of."""

RUNTIMES_OWN = ("weight_bytes", "activation_bytes", "scratch_bytes", "context_bytes")
"""Those that an engine's manifest keeps, where its builder says them."""

_CLEAR = Path("/proc/self/clear_refs")
_NVMAP = ("sys", "kernel", "debug", "nvmap", "iovmm", "clients")
_PRIVATE = ("Private_Clean", "Private_Dirty", "Private_Hugetlb")


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """One moment of a process, in bytes; `unique` is what its end would give back."""

    resident_bytes: Figure
    unique_bytes: Figure
    swapped_bytes: Figure


def process_memory(pid: int | None = None, root: Path = Path("/")) -> ProcessMemory:
    """What the pages of a process sum up to (proc(5), smaps_rollup); of this one for None.

    It walks over all pages, milliseconds for gigabytes: not for the middle of a run.
    """
    place = root / "proc" / (str(pid) if pid is not None else "self") / "smaps_rollup"
    try:
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", place.read_text(), re.MULTILINE))
    except OSError as error:
        return _without_rollup(pid, f"{place}: {error.strerror or error}")

    def kilobytes(*names: str) -> Figure:
        if not all(name in fields for name in names):
            return Unknown(f"{place} has no {', '.join(names)}")
        return float(sum(int(fields[name]) for name in names) * 1024)

    private = [name for name in _PRIVATE if name in fields or name != "Private_Hugetlb"]
    return ProcessMemory(
        resident_bytes=kilobytes("Rss"), unique_bytes=kilobytes(*private),
        swapped_bytes=kilobytes("Swap"),
    )  # fmt: skip


def _without_rollup(pid: int | None, reason: str) -> ProcessMemory:
    import psutil

    try:
        resident: Figure = float(psutil.Process(pid).memory_info().rss)
    except psutil.Error as error:
        resident = Unknown(str(error))
    unknown = Unknown(reason)
    return ProcessMemory(resident_bytes=resident, unique_bytes=unknown, swapped_bytes=unknown)


def resident_bytes() -> Figure:
    """What of this process lies in physical memory now, shared libraries included."""
    return process_memory().resident_bytes


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


def shows_nvmap(root: Path = Path("/")) -> bool:
    """Whether this is a Jetson whose nvmap we may read."""
    return os.access(root.joinpath(*_NVMAP), os.R_OK)


def nvmap_bytes(pids: Collection[int], root: Path = Path("/")) -> Mapping[int, Figure] | Unknown:
    """What each of these processes holds in a Jetson's nvmap; only root may read it.

    Written from the file's known form, CLIENT PROCESS PID SIZE with sizes in K; not yet read on a
    Jetson.
    """
    place = root.joinpath(*_NVMAP)
    try:
        text = place.read_text(errors="replace")
    except OSError as error:
        return Unknown(f"{place}: {error.strerror or error}")
    ours: dict[int, float] = {}
    for pid, size in re.findall(r"^\s*\S+\s+.*?\s(\d{1,9})\s+(\d{1,12})K\s*$", text, re.MULTILINE):
        if int(pid) in pids:  # a process may be several clients
            ours[int(pid)] = ours.get(int(pid), 0.0) + int(size) * 1024
    return dict(ours) or Unknown("nvmap lists no process of ours")


def _status_bytes(field: str) -> Figure:
    place = Path("/proc/self/status")
    try:
        lines = place.read_text().splitlines()
    except OSError:
        return Unknown(f"there is no {place}")
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return float(value.split()[0]) * 1024
    return Unknown(f"{place} has no {field}")
