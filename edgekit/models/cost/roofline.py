"""How long a model takes on a device, estimated from what its arithmetic and its bytes need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import onnx_ir as ir

from edgekit.models.cost import stored_numbers
from edgekit.models.cost.anatomy import fixed_values, is_standard, label
from edgekit.models.cost.fusion import Kernel, Runtime, kernels
from edgekit.models.cost.liveness import peak_activations
from edgekit.models.cost.macs import macs_of, multiplies
from edgekit.models.cost.parameters import weights_of
from edgekit.models.cost.sizes import Forms, sizes_of
from edgekit.models.model import Model, attribute
from edgekit.targets import Precision
from edgekit.values import Figure, Unknown

Kind = Literal["dense", "pointwise", "grouped", "depthwise", "gemm", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The classes of kernels: convolutions by their shape, products of matrices, all the rest."""

_WIDTHS: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Which share of a peak each class reaches, and what starting a kernel costs.

    `memory` is the share of the bandwidth, for every class; above 1 where caches serve most of
    what the bandwidth of the main memory would have to. `start_s`: seconds a kernel.
    """

    dense: float = 1.0
    pointwise: float = 1.0
    grouped: float = 1.0
    depthwise: float = 1.0
    gemm: float = 1.0
    memory: float = 1.0
    start_s: float = 0.0

    def of(self, kind: Kind) -> float:
        """The share of the peak rate that a class reaches."""
        share: float = 1.0 if kind == "other" else getattr(self, kind)
        return share


AT_BEST = Efficiency()
"""The roofline itself: nothing runs faster than this."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device can do at most: operations/s by precision (two a MAC), bytes/s.

    `said` is where the figures are from; `efficiency_said` where the shares are.
    """

    peak: Mapping[Precision, float]
    bandwidth_bytes_per_s: Figure
    runtime: Runtime
    efficiency: Efficiency
    said: tuple[str, ...]
    efficiency_said: str


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """The estimate of one kernel. `fused` are the nodes that run inside it.

    `arithmetic_s` and `bytes_s` are what it needs at least; `seconds` is the larger of the two
    after the efficiency, with the start; `bound` names the larger.
    """

    node: str
    op: str
    kind: Kind
    fused: tuple[str, ...]
    macs: int
    moved_bytes: int
    arithmetic_s: float
    bytes_s: float
    seconds: float
    bound: Literal["arithmetic", "bytes"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate of one precision, never a measurement.

    `at_least_s` is the plain roofline, `latency_s` the same with the efficiency in it. FPS is
    `batch` over the latency. `memory_bytes` are the weights and the peak of the activations; what
    the runtime takes itself is not in it. `unknown` has the reason for each node that is left out.
    """

    precision: Precision
    batch: int
    latency_s: Figure
    at_least_s: Figure
    fps: Figure
    memory_bytes: Figure
    weight_bytes: int
    activation_bytes: Figure
    kernels: tuple[KernelTime, ...]
    unknown: Mapping[str, str]

    def slowest(self, count: int) -> tuple[KernelTime, ...]:
        """The kernels that take the longest, the longest first."""
        return tuple(sorted(self.kernels, key=lambda kernel: -kernel.seconds)[:count])

    def share_bound_by_bytes(self) -> Figure:
        """The share of the time that goes to kernels whose bytes bind."""
        if isinstance(self.latency_s, Unknown) or not self.latency_s:
            return Unknown("the latency is not known")
        moving = sum(kernel.seconds for kernel in self.kernels if kernel.bound == "bytes")
        return moving / self.latency_s


def estimate(
    model: Model, known: Forms, rates: Rates, *, precision: Precision, batch: int = 1
) -> Estimate:
    """The estimate of a Model at the sizes of `known`, as if every node ran at that precision.

    For each kernel (fusion.kernels), with P the peak rate, B the bandwidth and e the shares:

        arithmetic  2 MACs / P;   bytes  (weights + activations read + written) / B
        seconds     max(2 MACs / (P e_class), bytes / (B e_memory)) + start

    (Williams, Waterman and Patterson, Roofline, CACM 2009.) Floating-point tensors, and integers
    that stand for them, take the precision's width; kernels run one after another.
    """
    fixed = fixed_values(model.graph)
    peak = rates.peak.get(precision)
    bandwidth = rates.bandwidth_bytes_per_s
    width = _WIDTHS[precision]
    unknown: dict[str, str] = {}
    times: list[KernelTime] = []
    for kernel in kernels(model, rates.runtime):
        macs = _kernel_macs(kernel, known)
        moved = _kernel_bytes(kernel, known, fixed, width)
        doubt = next((x.reason for x in (macs, moved) if isinstance(x, Unknown)), None)
        if doubt is not None or isinstance(macs, Unknown) or isinstance(moved, Unknown):
            unknown[label(kernel.head)] = doubt or ""
        elif peak is not None and not isinstance(bandwidth, Unknown):
            times.append(_time(kernel, known, macs, moved, (peak, bandwidth, rates.efficiency)))
    missing = _missing_rate(precision, rates)
    if missing is None and unknown:
        name, reason = next(iter(unknown.items()))
        missing = Unknown(f"{len(unknown)} nodes have no estimate; {name}: {reason}")
    weights = _weight_bytes(model, width)
    scaled = {
        value: _bytes_at(form.elements, form.dtype, width)
        for value, form in known.items()
        if not isinstance(form.elements, Unknown) and form.dtype is not None
    }
    peak_bytes = peak_activations(model, known, bytes_of=scaled).peak_bytes
    total = sum(time.seconds for time in times)
    return Estimate(
        precision=precision,
        batch=batch,
        latency_s=missing or total,
        at_least_s=missing or sum(max(time.arithmetic_s, time.bytes_s) for time in times),
        fps=missing or (batch / total if total else Unknown("nothing in the graph takes time")),
        memory_bytes=peak_bytes if isinstance(peak_bytes, Unknown) else weights + peak_bytes,
        weight_bytes=weights,
        activation_bytes=peak_bytes,
        kernels=tuple(times),
        unknown=unknown,
    )


def kind_of(node: ir.Node, known: Forms) -> Kind:
    """The class of a node, by its operator and its kernel's shape."""
    if not multiplies(node) or not is_standard(node):
        return "other"
    if node.op_type not in ("Conv", "ConvTranspose", "ConvInteger", "DeformConv", "QLinearConv"):
        return "gemm"
    kernel = sizes_of(node.inputs[3 if node.op_type == "QLinearConv" else 1], known)
    groups = attribute(node, "group", 1)
    if isinstance(kernel, Unknown):
        return "dense"
    if groups > 1:
        # Depthwise: one input channel for each group, and as many groups as channels.
        per_group = kernel[1] if node.op_type != "ConvTranspose" else kernel[0] // groups
        return "depthwise" if per_group == 1 else "grouped"
    return "pointwise" if all(size == 1 for size in kernel[2:]) else "dense"


def _time(
    kernel: Kernel, known: Forms, macs: int, moved: int, limits: tuple[float, float, Efficiency]
) -> KernelTime:
    peak, bandwidth, efficiency = limits
    kind = kind_of(kernel.head, known)
    arithmetic, moving = 2 * macs / peak, moved / bandwidth
    real = arithmetic / efficiency.of(kind), moving / efficiency.memory
    return KernelTime(
        node=label(kernel.head),
        op=kernel.head.op_type,
        kind=kind,
        fused=tuple(label(node) for node in kernel.nodes[1:]),
        macs=macs,
        moved_bytes=moved,
        arithmetic_s=arithmetic,
        bytes_s=moving,
        seconds=max(real) + efficiency.start_s,
        bound="arithmetic" if real[0] > real[1] else "bytes",
    )


def _missing_rate(precision: Precision, rates: Rates) -> Unknown | None:
    if precision not in rates.peak:
        return Unknown(f"the peak rate of {precision.upper()} is not known")
    if isinstance(rates.bandwidth_bytes_per_s, Unknown):
        return Unknown(f"the bandwidth is not known: {rates.bandwidth_bytes_per_s.reason}")
    return None


def _kernel_macs(kernel: Kernel, known: Forms) -> int | Unknown:
    total = 0
    for node in kernel.nodes:
        macs = macs_of(node, known)
        if isinstance(macs, Unknown):
            return macs
        total += macs
    return total


def _kernel_bytes(
    kernel: Kernel, known: Forms, fixed: set[ir.Value], width: int
) -> int | Unknown:  # fmt: skip
    stored = dict.fromkeys(value for node in kernel.nodes for value in weights_of(node, fixed))
    total = 0
    for value in (*kernel.read, *kernel.written, *stored):
        form = known.get(value)
        if form is None or form.dtype is None:
            return Unknown(f'the type of "{value.name}" is not known')
        count = form.elements
        if isinstance(count, Unknown):
            return Unknown(f'"{value.name}": {count.reason}')
        total += _bytes_at(count, form.dtype, width)
    return total


def _bytes_at(count: int, dtype: ir.DataType, width: int) -> int:
    """Real numbers take `width` bytes each; integers and what is narrower already stay."""
    bits = dtype.bitwidth
    if dtype.is_floating_point():
        bits = min(bits, 8 * width)
    return -(-count * bits // 8)


def _weight_bytes(model: Model, width: int) -> int:
    by_type = stored_numbers(model).weight_bytes_by_type
    total = 0
    for name, nbytes in by_type.items():
        dtype = ir.DataType[name.upper()]
        narrowed = min(dtype.bitwidth, 8 * width) if dtype.is_floating_point() else dtype.bitwidth
        total += nbytes * narrowed // dtype.bitwidth
    return total
