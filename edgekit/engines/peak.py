"""What this machine's processor can do at most: measured in a moment, the ratios derived."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekit import machine
from edgekit.engines import onnxruntime
from edgekit.values import Figure, Unknown

_CPUINFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")
_COPIED_BYTES = 48 << 20
_COPIES = 4
_SIDE = 768
_PRODUCTS = 12

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
    *, threads: int = 0, product: Callable[[int], float] | None = None, cpuinfo: Path = _CPUINFO,
    root: Path = _CPUS,
) -> CpuRates:  # fmt: skip
    """The peak rates of the cores that this process may use, all of them where `threads` is 0.

    FP32 is measured, by `product` of so many threads (`product_rate` where None): a virtual machine
    names a clock that its processor leaves behind, and many a small board names none. What the
    processor's features promise stands beside it, and FP32's ratio to INT8 is derived from them:

        operations/s = cores * clock * lanes * multiply-adds a clock * 2

    The bandwidth is measured by copying: read and written bytes over the time of the best copy.
    """
    cores = threads or machine.physical_cores(machine.usable_cpus(), root)
    flags = machine.cpu_flags(cpuinfo)
    fp32 = (product or product_rate)(cores)
    bandwidth = copy_bandwidth()
    measured = (
        f"peak: {fp32 / 1e9:.0f} GFLOP/s FP32, measured just now by a product of matrices on "
        f"{cores} threads; {_derived(cores, flags, cpuinfo, root)}"
    )
    times = 4.0 if flags & _DOT_PRODUCTS else 4 / 3
    return CpuRates(
        fp32_ops_per_s=fp32,
        int8_ops_per_s=fp32 * times if flags else Unknown("the processor's features are not known"),
        bandwidth_bytes_per_s=bandwidth,
        said=(
            measured,
            f"peak INT8: {times:.3g} times that of FP32, derived from the processor's features",
            f"bandwidth: {bandwidth / 1e9:.1f} GB/s, measured just now by copying",
        ),
    )


def _derived(cores: int, flags: frozenset[str], cpuinfo: Path, root: Path) -> str:
    vector = next((v for v in _VECTORS if v[0] in flags), None)
    clock = _clock_hz(cpuinfo, root)
    if vector is None or isinstance(clock, Unknown):
        why = "its vector unit is not known" if vector is None else str(clock)
        return f"none can be derived: {why}"
    feature, lanes, multiply_adds = vector
    rate = cores * clock * lanes * multiply_adds * 2
    return (
        f"derived: {rate / 1e9:.0f} = {cores} cores x {clock / 1e9:.2f} GHz x {lanes} lanes "
        f"({feature}) x {multiply_adds} multiply-adds x 2"
    )


def product_rate(threads: int) -> float:
    """Operations/s, two a multiply-accumulate, of ONNX Runtime's FP32 matrix product, at its best.

    The best of `_PRODUCTS` runs: what else runs on the machine slows some of them.
    """
    side = _SIDE
    weight = numpy_helper.from_array(np.ones((side, side), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [side, side])],
        [weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    best = float("inf")
    with onnxruntime.open_bytes(proto.SerializeToString(), threads=threads) as session:
        session.stage({"x": np.ones((side, side), np.float32)})
        session.execute()
        for _ in range(_PRODUCTS):
            begun = time.perf_counter()
            session.execute()
            best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


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
