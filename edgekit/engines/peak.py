"""What this machine's processor can do at most: derived from its features, or measured at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.engines import machine
from edgekit.values import Figure, Unknown

_CPUINFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")
_COPIED_BYTES = 48 << 20
_COPIES = 4

# (feature, FP32 lanes of its registers, multiply-adds a clock): two pipes since Haswell, Zen 2 and
# Cortex-A76; the older 64-bit ARM cores of small boards have one.
_VECTORS = (
    ("avx512f", 16, 2), ("avx2", 8, 2), ("asimddp", 4, 2), ("asimd", 4, 1),
)  # fmt: skip
# Dot products of bytes do four times as much a register. Without them AVX2 takes three
# instructions for four times as much (vpmaddubsw, vpmaddwd, vpaddd), NEON two (smlal, sadalp).
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


@dataclass(frozen=True, kw_only=True)
class CpuRates:
    """Operations/s by precision, two a multiply-accumulate; bytes/s; and how they were found."""

    fp32_ops_per_s: Figure
    int8_ops_per_s: Figure
    bandwidth_bytes_per_s: Figure
    said: tuple[str, ...]


def cpu_rates(
    *, threads: int = 0, cpuinfo: Path = _CPUINFO, root: Path = _CPUS
) -> CpuRates:  # fmt: skip
    """The peak rates of the cores that this process may use, all of them where `threads` is 0.

        operations/s = cores * clock * lanes * multiply-adds a clock * 2

    The clock is the highest that the system names, the current one where it names none. The
    bandwidth is measured by copying: read and written bytes over the time of the best copy.
    """
    cores = threads or machine.physical_cores(machine.usable_cpus(), root)
    flags = machine.cpu_flags(cpuinfo)
    vector = next((v for v in _VECTORS if v[0] in flags), None)
    clock = _clock_hz(cpuinfo, root)
    bandwidth = copy_bandwidth()
    copied = f"bandwidth: {bandwidth / 1e9:.1f} GB/s, measured just now by copying"
    if vector is None or isinstance(clock, Unknown):
        why = "its vector unit is not known" if vector is None else str(clock)
        missing = Unknown(f"the peak rate of this processor cannot be derived: {why}")
        return CpuRates(
            fp32_ops_per_s=missing,
            int8_ops_per_s=missing,
            bandwidth_bytes_per_s=bandwidth,
            said=(missing.reason, copied),
        )
    feature, lanes, multiply_adds = vector
    fp32 = cores * clock * lanes * multiply_adds * 2
    times = 4.0 if flags & _DOT_PRODUCTS else 4 / 3
    derived = (
        f"peak: {fp32 / 1e9:.0f} GFLOP/s FP32, derived: {cores} cores x {clock / 1e9:.2f} GHz x "
        f"{lanes} lanes ({feature}) x {multiply_adds} multiply-adds x 2; a clock above that one "
        "beats it"
    )
    return CpuRates(
        fp32_ops_per_s=fp32,
        int8_ops_per_s=fp32 * times,
        bandwidth_bytes_per_s=bandwidth,
        said=(derived, f"INT8: {times:.3g} times that, derived", copied),
    )


def copy_bandwidth(*, nbytes: int = _COPIED_BYTES, copies: int = _COPIES) -> float:
    """Bytes read and written in a second by one thread that copies more than caches hold."""
    source = np.ones(nbytes, np.uint8)
    copy = np.empty_like(source)
    np.copyto(copy, source)  # the pages are there before the clock runs
    best = float("inf")
    for _ in range(copies):
        begun = time.perf_counter()
        np.copyto(copy, source)
        best = min(best, time.perf_counter() - begun)
    return 2 * nbytes / best


def _clock_hz(cpuinfo: Path, root: Path) -> float | Unknown:
    try:
        return float((root / "cpu0" / "cpufreq" / "cpuinfo_max_freq").read_text()) * 1e3
    except (OSError, ValueError):
        pass
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "cpu MHz":
            try:
                return float(value) * 1e6
            except ValueError:
                break
    return Unknown("the system does not tell its clock")
