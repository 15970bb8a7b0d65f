"""What a target can do at most: from its file, or measured on the machine that this is."""

from __future__ import annotations

from dataclasses import replace

from edgekit.engines.peak import cpu_rates
from edgekit.models.cost.roofline import AT_BEST, Efficiency, Rates
from edgekit.targets import Precision, Target
from edgekit.values import Figure, Unknown

CPU_EFFICIENCY = Efficiency(
    dense=0.95,
    pointwise=0.93,
    grouped=0.5,
    depthwise=0.85,
    gemm=0.9,
    memory=0.87,
    start_s=1e-5,
)
"""ONNX Runtime's shares of the measured rates on one x86-64 machine with AVX2, one thread.

Fitted by benchmarks/estimate.py to every second of its networks; the others say what they are
worth. Hardly any of the networks is bound by grouped or depthwise arithmetic, so these two say
little. Of another processor nobody knows: a target's file may say its own in [efficiency].
"""


def rates_of(target: Target, *, threads: int = 0) -> Rates:
    """The Rates of a target: its file's figures, and the shares in its [efficiency] before ours.

    A target for the CPU whose engines are built here, and whose file has no figures, is this
    machine, and its rates are measured in a moment (engines/peak.py). `threads` 0 means all cores.
    What is known of neither is Unknown.
    """
    runtime = target.runtime.name
    is_here = target.family == "cpu" and target.runtime.build == "here"
    peak: dict[Precision, float] = {**target.peak}
    said: list[str] = []
    bandwidth: Figure = Unknown(
        f'"{target.name}" has none: give [memory] bandwidth_bytes_per_s in a target file'
    )
    if target.memory is not None:
        bandwidth = target.memory.bandwidth_bytes_per_s
    if peak or target.memory is not None:
        mode = f", in the power mode {target.power_mode}" if target.power_mode else ""
        said.append(f"peak rates and bandwidth: the target's file, {target.profile}.toml{mode}")
        said += _unverified(target)
    if is_here and (not peak or target.memory is None):
        derived = cpu_rates(threads=threads)
        for precision, rate in (("fp32", derived.fp32_ops_per_s), ("int8", derived.int8_ops_per_s)):
            if precision in target.precisions and not isinstance(rate, Unknown):
                peak.setdefault(precision, rate)
        if target.memory is None:
            bandwidth = derived.bandwidth_bytes_per_s
        said += derived.said
    efficiency, from_where = _efficiency(target)
    return Rates(
        peak=peak,
        bandwidth_bytes_per_s=bandwidth,
        runtime="onnxruntime" if runtime == "openvino" else runtime,  # they fuse alike
        efficiency=efficiency,
        said=tuple(said),
        efficiency_said=from_where,
    )


def _unverified(target: Target) -> list[str]:
    """A line of the rates that nobody has confirmed; none where all are."""
    marked = [
        place
        for place in target.unverified
        if place == "memory.bandwidth_bytes_per_s" or place.partition(".")[0] == "peak"
    ]
    return [f"unverified in it: {', '.join(marked)}"] if marked else []


def _efficiency(target: Target) -> tuple[Efficiency, str]:
    own = {name: value for name, value in target.efficiency if value is not None}
    if target.family == "cpu":
        start, said = CPU_EFFICIENCY, "shares of the peak: fitted on one x86-64 machine with AVX2"
    else:
        start = AT_BEST
        said = "no share of the peak is known for this device: the estimate is its best case"
    if own:
        said = f"shares of the peak: {', '.join(own)} from the target's file; the rest: {said}"
    return replace(start, **own), said
