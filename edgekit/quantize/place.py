"""Q/DQ into the graph, where a dialect wants them and with the scales that Ranges give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, attribute, constant_of, editable
from edgekit.quantize.dialects import Dialect, Side
from edgekit.quantize.ranges import Choice, Ranges
from edgekit.values import Array

_LOWEST_OPSET = 13  # per-channel scales
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """How many of each operator work on integers, and why the others do not."""

    dialect: str
    quantized: Mapping[str, int]
    left: Mapping[str, str]
    tensors: int

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {op}" for op, n in sorted(self.quantized.items()))
        return f"{counts} quantized; {len(self.left)} left"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The integers of one tensor: real = scale * (integer - zero_point)."""

    scale: Array
    zero_point: Array

    def quantize(self, values: Array, *, axis: int = 0) -> Array:
        """The integers nearest to the values (ties to even), clamped to the type's range."""
        shape = [1] * values.ndim
        if self.scale.ndim:
            shape[axis] = -1
        limits = np.iinfo(self.zero_point.dtype)
        steps = np.rint(values / self.scale.reshape(shape))
        shifted = steps + self.zero_point.reshape(shape).astype(np.float64)
        integers: Array = np.clip(shifted, limits.min, limits.max).astype(self.zero_point.dtype)
        return integers


def activation_grid(low: float, high: float, dialect: Dialect) -> Grid:
    """The per-tensor grid that covers [low, high] and holds 0 exactly.

    Symmetric: scale = max(|low|, |high|) / 127. Affine: scale = (high - low) / 255 over the range
    widened to 0, the zero point being the integer of 0.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    smallest = float(np.finfo(np.float32).tiny)
    if dialect.symmetric:
        scale = max(-low, high, smallest) / 127
        zero = 0
    else:
        scale = max(high - low, smallest) / 255
        zero = round(-low / scale) + np.iinfo(dialect.activation).min
    return Grid(
        scale=np.asarray(scale, np.float32), zero_point=np.asarray(zero, dialect.activation)
    )


def weight_grid(weight: Array, axis: int, dialect: Dialect, floor: Array | float = 0.0) -> Grid:
    """The per-channel grid along `axis`: scale = max|w| / 127, never 0 and never under `floor`."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    amax = np.abs(weight).max(axis=others).astype(np.float64)
    smallest = max(float(amax.max()) * 1e-6, 1e-12)  # a dead channel must not have scale 0
    scale = np.maximum(np.maximum(amax, smallest) / 127, floor).astype(np.float32)
    zero = 128 if dialect.weight == "uint8" else 0
    return Grid(scale=scale, zero_point=np.full(scale.shape, zero, dialect.weight))


def weight_axis(node: ir.Node) -> int:
    """The axis of the output channels in the weight of a Conv, ConvTranspose, Gemm or MatMul."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    return 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1


def insert_qdq(model: Model, ranges: Ranges, dialect: Dialect, choose: Choice) -> tuple[
    Model, QuantizeReport
]:  # fmt: skip
    """The Model with Q/DQ as `dialect` wants them, and what was quantized.

    BatchNormalization should be folded before. Raises InputError where the operator set is older
    than 13, or where nothing can be quantized.
    """
    if model.opset < _LOWEST_OPSET:
        raise InputError(
            "this model's operator set is too old for per-channel quantization",
            where=model.name, got=f"opset {model.opset}", wanted=f"opset {_LOWEST_OPSET} or later",
            hint="Export the model again with opset_version=17.",
        )  # fmt: skip
    program = editable(model)
    writer = _Writer(program.graph, ranges, dialect, choose)
    for node in list(program.graph):
        writer.visit(node)
    writer.insert_activations()
    if not writer.quantized:
        raise InputError(
            "no operator of this model can be quantized", where=model.name,
            got=", ".join(sorted(Counter(node.op_type for node in model.graph))),
            wanted=", ".join(dialect.places),
            hint='Ask for `precision = "fp16"` or "fp32" in [engine].',
        )  # fmt: skip
    RemoveUnusedNodesPass()(program)
    report = QuantizeReport(
        dialect=dialect.name,
        quantized=dict(writer.quantized),
        left=writer.left,
        tensors=len(writer.wanted),
    )
    return after_step(model, program, f"quantize:{dialect.name}"), report


@dataclass
class _Wanted:
    """The uses of one value that shall read it through Q/DQ; `all_uses` where it is produced so."""

    uses: set[tuple[ir.Node, int]] = field(default_factory=set)
    all_uses: bool = False


class _Writer:
    """Walks the nodes once to learn what to quantize, then writes the pairs."""

    def __init__(self, graph: ir.Graph, ranges: Ranges, dialect: Dialect, choose: Choice) -> None:
        self.graph = graph
        self.dialect = dialect
        self.grids = _Grids(graph, ranges, dialect, choose)
        self.wanted: dict[ir.Value, _Wanted] = {}
        self.quantized: Counter[str] = Counter()
        self.left: dict[str, str] = {}

    def visit(self, node: ir.Node) -> None:
        side = self.dialect.places.get(node.op_type) if not node.domain else None
        if side is None:
            return
        reason = self._cannot(node)
        if reason:
            if node.op_type in _WEIGHTED:
                self.left[node.name or node.op_type] = reason
            return
        inputs = _activation_inputs(node)
        if side is Side.SKIP:
            inputs = _skip_inputs(node)
            if not inputs:
                return
        for index in inputs:
            value = node.inputs[index]
            assert value is not None
            self.wanted.setdefault(value, _Wanted()).uses.add((node, index))
        if side is Side.BOTH:
            output = self._end_of_fusion(node)
            if not output.is_graph_output():
                self.wanted.setdefault(output, _Wanted()).all_uses = True
        if node.op_type in _WEIGHTED:
            self._quantize_weight(node)
        self.quantized[node.op_type] += 1

    def _cannot(self, node: ir.Node) -> str:
        """Why this node stays in floating point; empty where it need not."""
        for index in _activation_inputs(node):
            value = node.inputs[index]
            if value is None or value.dtype != ir.DataType.FLOAT:
                return "an input is not float32"
            if value.name not in self.grids.ranges.tensors:
                return f'"{value.name}" was not observed'
            if constant_of(value) is not None:
                return "an input is a constant"
        if node.op_type in _WEIGHTED:
            weight = constant_of(node.inputs[1])
            if weight is None:
                return "its weight is computed"
            if weight.ndim < 2 or weight.dtype != np.float32:
                return "its weight is not a float32 matrix or kernel"
            if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
                return "grouped transposed convolution"
            if node.op_type == "Gemm" and (
                attribute(node, "transA", 0)
                or attribute(node, "alpha", 1.0) != 1.0
                or attribute(node, "beta", 1.0) != 1.0
            ):
                return "a Gemm with alpha, beta or transA"
        return ""

    def _end_of_fusion(self, node: ir.Node) -> ir.Value:
        """The node's output, or that of the activation that the runtime fuses behind it."""
        output = node.outputs[0]
        uses = list(output.uses())
        if len(uses) == 1 and not output.is_graph_output():
            behind = uses[0].node
            if behind.op_type in self.dialect.fused_activations:
                return behind.outputs[0]
        return output

    def _quantize_weight(self, node: ir.Node) -> None:
        value, source = node.inputs[1], node.inputs[0]
        assert value is not None
        assert source is not None
        weight = np.asarray(constant_of(value))
        axis = weight_axis(node)
        source_scale = float(self.grids.of(source).scale)
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        bias = constant_of(bias_value)
        floor: Array | float = 0.0
        integer_bias = self.dialect.integer_bias and bias is not None and bias.ndim == 1
        if integer_bias:
            assert bias is not None
            # A channel whose weights vanish may still have a bias, which must fit in 31 bits.
            floor = np.abs(bias.astype(np.float64)) / (source_scale * 2.0**30)
        grid = weight_grid(weight, axis, self.dialect, floor)
        name = value.name or f"{node.name}.weight"
        if self.dialect.stored_weights:
            stored = self._constant(f"{name}.quantized", grid.quantize(weight, axis=axis))
        else:
            stored = self._pair_half("QuantizeLinear", node, value, name, grid, axis)
        node.replace_input_with(
            1, self._pair_half("DequantizeLinear", node, stored, name, grid, axis)
        )
        if integer_bias:
            assert bias is not None
            assert bias_value is not None
            scale = (grid.scale * np.float32(source_scale)).astype(np.float32)
            bias_grid = Grid(scale=scale, zero_point=np.zeros(scale.shape, np.int32))
            name = bias_value.name or f"{node.name}.bias"
            stored = self._constant(f"{name}.quantized", bias_grid.quantize(bias))
            node.replace_input_with(
                2, self._pair_half("DequantizeLinear", node, stored, name, bias_grid, 0)
            )

    def _pair_half(
        self, op: str, before: ir.Node, value: ir.Value, name: str, grid: Grid, axis: int
    ) -> ir.Value:
        """The output of one QuantizeLinear or DequantizeLinear of a constant, before a node."""
        scale = self._constant(f"{name}.scale", grid.scale)
        zero = self._constant(f"{name}.zero_point", grid.zero_point)
        attributes = {"axis": axis} if grid.scale.ndim else {}
        half = ir.node(op, [value, scale, zero], attributes=attributes, name=f"{name}.{op}")
        self.graph.insert_before(before, half)
        half.outputs[0].name = f"{name}.{'q' if op.startswith('Q') else 'dq'}"
        return half.outputs[0]

    def insert_activations(self) -> None:
        """Writes the Q/DQ pair of every wanted activation, one pair a tensor."""
        first = next(iter(self.graph))
        for value, wanted in self.wanted.items():
            name, grid = value.name or "", self.grids.of(value)
            uses = {(use.node, use.idx) for use in value.uses()} if wanted.all_uses else wanted.uses
            scale = self._constant(f"{name}.scale", grid.scale)
            zero = self._constant(f"{name}.zero_point", grid.zero_point)
            source = self._before_relu(value, grid)
            down = ir.node("QuantizeLinear", [source, scale, zero], name=f"{name}.QuantizeLinear")
            down.outputs[0].name = f"{name}.q"
            up = ir.node(
                "DequantizeLinear", [down.outputs[0], scale, zero], name=f"{name}.DequantizeLinear"
            )
            up.outputs[0].name = f"{name}.dq"
            up.outputs[0].type, up.outputs[0].shape = value.type, value.shape
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(first, [down, up])
            else:
                self.graph.insert_after(producer, [down, up])
            for node, index in uses:
                node.replace_input_with(index, up.outputs[0])

    def _before_relu(self, value: ir.Value, grid: Grid) -> ir.Value:
        """The Relu's input where quantizing it clamps just as the Relu does, else the value itself.

        With the zero point at the type's minimum every negative number becomes 0. ONNX Runtime
        sees this by itself behind a Conv, but not behind an Add.
        """
        relu = value.producer()
        lowest = np.iinfo(grid.zero_point.dtype).min
        if relu is None or relu.op_type not in self.dialect.fused_activations:
            return value
        source = relu.inputs[0]
        return source if source is not None and grid.zero_point == lowest else value

    def _constant(self, name: str, array: Array) -> ir.Value:
        if name in self.graph.initializers:
            present = self.graph.initializers[name]
            stored = constant_of(present)
            if stored is not None and stored.dtype == array.dtype and np.array_equal(stored, array):
                return present
            return self._constant(f"{name}_", array)
        value = ir.val(name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
        self.graph.register_initializer(value)
        return value


class _Grids:
    """The grid of each activation; tensors that must share a scale get one range together."""

    def __init__(self, graph: ir.Graph, ranges: Ranges, dialect: Dialect, choose: Choice) -> None:
        self.ranges = ranges
        self.dialect = dialect
        self._chosen = {name: choose(observed) for name, observed in ranges.tensors.items()}
        for names in _sharing(graph, dialect, self._chosen):
            together = [self._chosen[name] for name in names]
            whole = (min(low for low, _ in together), max(high for _, high in together))
            self._chosen.update(dict.fromkeys(names, whole))

    def of(self, value: ir.Value) -> Grid:
        return activation_grid(*self._chosen[value.name or ""], self.dialect)


def _sharing(
    graph: ir.Graph, dialect: Dialect, observed: Container[str]
) -> Iterator[Sequence[str]]:
    """The groups of observed tensors that must have one scale, by name."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for node in graph:
        if node.op_type in dialect.shared_scale:
            names = [v.name for v in (*node.outputs, *node.inputs) if v is not None and v.name]
            first, *others = [find(name) for name in names if name in observed] or [""]
            for other in others:
                leader[other] = first
    groups: dict[str, list[str]] = {}
    for name in leader:
        groups.setdefault(find(name), []).append(name)
    yield from groups.values()


def _activation_inputs(node: ir.Node) -> list[int]:
    """The positions of the inputs that are activations: the first, or all of an Add or Concat."""
    if node.op_type in ("Add", "Mul", "Concat"):
        return [i for i, value in enumerate(node.inputs) if value is not None]
    return [0]


def _skip_inputs(node: ir.Node) -> list[int]:
    """The one input of a residual Add that is not the convolution to be fused with it.

    TensorRT folds an Add into the convolution in front of it, if that one's output goes nowhere
    else and the other input is quantized. Where two convolutions end here, the later one in the
    graph is fused and the earlier one, the shortcut, is quantized.
    """
    fusable = [
        i
        for i, value in enumerate(node.inputs)
        if value is not None
        and (producer := value.producer()) is not None
        and producer.op_type in ("Conv", "ConvTranspose")
        and len(value.uses()) == 1
    ]
    if not fusable or len(node.inputs) != 2:
        return []
    order = {id(n): position for position, n in enumerate(node.graph)} if node.graph else {}
    fused = max(fusable, key=lambda i: order.get(id(node.inputs[i].producer()), 0))  # type: ignore[union-attr]
    return [1 - fused]
