"""What this machine's processor is, as far as engines and measurements depend on it."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from pathlib import Path

FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8",  # x86-64
    "asimd", "asimddp", "i8mm", "sve",  # 64-bit ARM
    "hypervisor",
)  # fmt: skip
"""The processor features, by the names of Linux, that decide which kernels run."""

_CPUINFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")


def cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name for itself."""
    fields = _fields(cpuinfo)
    for field in ("model name", "Model", "Hardware"):
        if fields.get(field):
            return fields[field]
    return platform.processor() or platform.machine()


def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Those of `FLAGS` that the processor has; none where the system does not say."""
    fields = _fields(cpuinfo)
    named = f"{fields.get('flags', '')} {fields.get('Features', '')}".split()
    return frozenset(named) & frozenset(FLAGS)


def is_arm() -> bool:
    """Whether this is a 64-bit ARM machine."""
    return platform.machine().lower() in ("aarch64", "arm64")


def usable_cpus() -> frozenset[int]:
    """The logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(cpus: frozenset[int], root: Path = _CPUS) -> int:
    """How many cores the logical processors lie on; each counts as one where nothing is known."""
    cores = {_siblings(root / f"cpu{cpu}" / "topology", cpu) for cpu in cpus}
    return max(1, len(cores))


def _siblings(topology: Path, cpu: int) -> str:
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            return (topology / name).read_text().strip()
        except OSError:
            continue
    return str(cpu)


@functools.cache
def _fields(cpuinfo: Path) -> Mapping[str, str]:
    """The first processor's fields; what is not Linux has none."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found
