"""The types of a plan into a graph: float16 weights, and casts where float32 and float16 meet."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.errors import InternalError
from edgekit.models.model import attribute, constant_of
from edgekit.models.opset.schemas import misfits
from edgekit.quantize.fp16.plan import TypePlan
from edgekit.quantize.fp16.slots import FLOAT, HALF, TYPE_ATTRIBUTES
from edgekit.values import Array

_SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)


@dataclass(kw_only=True)
class Written:
    """What `write_types` did: casts that are left, weights turned, and what became of them."""

    casts: int = 0
    weights: int = 0
    subnormal: int = 0
    flushed: int = 0
    by_tensor: dict[str, int] = field(default_factory=dict)


def write_types(program: ir.Model, plan: TypePlan, *, keep_io: bool) -> Written:
    """Writes a plan into an editable graph that it was made of.

    With `keep_io` the float32 inputs and outputs of the graph stay so. Afterwards every node has
    types that ONNX allows; raises InternalError where one has not.
    """
    writer = _Writer(program.graph, plan)
    homes = {value: plan.home(value) for value in _all_values(program.graph)}
    writer.homes = {value: home for value, home in homes.items() if home is not None}
    for node in program.graph:
        if node.name in plan.half:
            _retype(node)
    writer.end_outputs(keep_io=keep_io)
    for value in list(writer.homes):
        writer.serve(value)
    for name, stored in list(program.graph.initializers.items()):
        if stored.dtype == FLOAT:
            writer.serve_stored(name, stored)
    for value, home in writer.homes.items():
        if home == HALF:
            value.type = ir.TensorType(HALF)
    _merge_casts(program.graph)
    RemoveUnusedNodesPass()(program)
    writer.done.casts = sum(_between(node) for node in program.graph)
    _check(program)
    return writer.done


class _Writer:
    """Hands every reader of a value the type that it wants."""

    def __init__(self, graph: ir.Graph, plan: TypePlan) -> None:
        self.graph = graph
        self.plan = plan
        self.homes: dict[ir.Value, ir.DataType] = {}
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.done = Written()
        self.names = {value.name for value in _all_values(graph)} | set(graph.initializers)

    def end_outputs(self, *, keep_io: bool) -> None:
        """Gives each float32 output of the graph its type under its own name."""
        for index, value in enumerate(list(self.graph.outputs)):
            home = self.homes.get(value)
            if home is None or value.producer() is None:
                continue
            wanted = FLOAT if keep_io else HALF
            if home == wanted:
                continue
            name = value.name or ""
            value.name = self._free(f"{name}.{'fp16' if home == HALF else 'fp32'}")
            result = self._cast(value, wanted)
            result.name = name
            self.graph.outputs[index] = result

    def serve(self, value: ir.Value) -> None:
        """Casts a value once for all readers that want its other type."""
        home = self.homes[value]
        for use in list(value.uses()):
            wanted = self._wanted(use.node, use.idx)
            if wanted is not None and wanted != home and not self._is_own_cast(use.node):
                use.node.replace_input_with(use.idx, self._cast(value, wanted))

    def serve_stored(self, name: str, value: ir.Value) -> None:
        """Stores an initializer in float16 for the readers that want it so.

        It keeps its name where all do; where some want float32, float16 is a second one.
        """
        uses = list(value.uses())
        halves = [use for use in uses if self._wanted(use.node, use.idx) == HALF]
        array = constant_of(value)
        if not halves or array is None:
            return
        half = self._as_half(name, array)
        if len(halves) == len(uses) and not value.is_graph_output():
            value.const_value = ir.tensor(half, name=name)
            value.type = ir.TensorType(HALF)
            return
        free = self._free(f"{name}.fp16")
        second = ir.val(free, const_value=ir.tensor(half, name=free))
        self.graph.register_initializer(second)
        for use in halves:
            use.node.replace_input_with(use.idx, second)

    def _as_half(self, name: str, array: Array) -> Array:
        with np.errstate(over="ignore"):  # an infinite constant stays one; finite ones fit
            half = array.astype(np.float16)
        lost = int(np.count_nonzero((half == 0) & (array != 0)))
        magnitude = np.abs(half.astype(np.float32))
        self.done.weights += array.size
        self.done.flushed += lost
        self.done.subnormal += int(
            np.count_nonzero((magnitude > 0) & (magnitude < _SMALLEST_NORMAL))
        )
        if lost:
            self.done.by_tensor[name] = lost
        return half

    def _wanted(self, node: ir.Node, index: int) -> ir.DataType | None:
        # A node of a subgraph reads the float32 that it read before.
        return self.plan.wanted(node, index) if node.graph is self.graph else FLOAT

    def _is_own_cast(self, node: ir.Node) -> bool:
        return any(node is made.producer() for made in self.casts.values())

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        made = self.casts.get((value, to))
        if made is not None:
            return made
        name = self._free(f"{value.name}.to_{'fp16' if to == HALF else 'fp32'}")
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear" and to == FLOAT:
            # The same integers to float32, which a runtime still sees in front of their reader.
            cast = ir.node(
                "DequantizeLinear", list(producer.inputs), name=f"{name}.DequantizeLinear",
                attributes=dict(producer.attributes),
            )  # fmt: skip
        else:
            cast = ir.node("Cast", [value], attributes={"to": int(to)}, name=f"{name}.Cast")
        made = cast.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(to), value.shape
        if producer is None:
            self.graph.insert_before(next(iter(self.graph)), cast)
        else:
            self.graph.insert_after(producer, cast)
        self.casts[value, to] = made
        return made

    def _free(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name


def _all_values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _retype(node: ir.Node) -> None:
    """Float16 in place of float32 in the attributes that name a type or hold a value."""
    for name in TYPE_ATTRIBUTES:
        if name in node.attributes and int(attribute(node, name)) == FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(HALF))
    if node.op_type == "ConstantOfShape":
        stored = node.attributes.get("value")
        array = np.zeros(1, np.float32) if stored is None else stored.as_tensor().numpy()
        if array.dtype == np.float32:
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(half))


def _between(node: ir.Node) -> bool:
    """Whether a node is a Cast from one floating-point type to another."""
    ends = (node.inputs[0], node.outputs[0]) if node.op_type == "Cast" and not node.domain else ()
    return bool(ends) and all(v is not None and v.dtype in (FLOAT, HALF) for v in ends)


def _merge_casts(graph: ir.Graph) -> None:
    """Takes out casts that change nothing, and those that widen only for the next one to narrow."""
    for node in list(graph):
        if not _between(node):
            continue
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        before = source.producer()
        if before is not None and _between(before) and source.dtype == FLOAT:
            first = before.inputs[0]
            if first is not None and first.dtype == HALF:
                source = first
                node.replace_input_with(0, first)
        if source.dtype == output.dtype and not output.is_graph_output():
            output.replace_all_uses_with(source)
            graph.remove(node, safe=True)


def _check(program: ir.Model) -> None:
    opset = program.opset_imports.get("", 0)
    for node in program.graph:
        wrong = [] if node.domain else list(misfits(node, opset))
        if wrong:
            raise InternalError(
                f'the types of "{node.name}" ({node.op_type}) do not fit in the float16 graph',
                got="; ".join(wrong[:3]),
            )


def settled_scales(program: ir.Model) -> int:
    """How many scales of stored integers moved, where all scales are made ones that float16 has.

    A scale that float16 cannot tell from 0 becomes its smallest number, and stored integers are
    rounded again on the scale as it is now: q' = round(q s / s'). An int32 bias, whose scale is a
    product of two and whose DequantizeLinear TensorRT refuses, becomes floating point.
    """
    graph, moved = program.graph, 0
    for node in list(graph):
        if node.domain or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale_value = node.inputs[1]
        scale = constant_of(scale_value)
        if scale_value is None or scale is None or scale.dtype != np.float32:
            continue
        stored = constant_of(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if stored is not None and stored.dtype == np.int32:
            _as_float(graph, node, stored, scale)
            continue
        smallest = np.float16(np.finfo(np.float16).smallest_subnormal)
        half = np.maximum(np.minimum(scale, 65504.0).astype(np.float16), smallest)
        exact = half.astype(np.float32)
        if np.array_equal(exact, scale):
            continue
        off = np.abs(exact / scale - 1) > 2.0**-11 * 1.001  # more than rounding a normal number
        if stored is not None and off.any():
            moved += int(off.sum())
            _store_again(graph, node, stored, scale, exact)
        _own_scale(graph, node, exact)
    return moved


def _as_float(graph: ir.Graph, node: ir.Node, stored: Array, scale: Array) -> None:
    array = (stored.astype(np.float64) * scale).astype(np.float32)
    value = _new(graph, f"{node.outputs[0].name}.float", array)
    node.outputs[0].replace_all_uses_with(value)
    graph.remove(node, safe=True)


def _store_again(graph: ir.Graph, node: ir.Node, stored: Array, old: Array, new: Array) -> None:
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    shape = [1] * stored.ndim
    if old.ndim:
        shape[int(attribute(node, "axis", 1))] = -1
    offset: Array = np.zeros((), np.int64) if zero is None else zero.astype(np.int64)
    offset = offset.reshape(shape if offset.ndim else ())
    ratio = (old.astype(np.float64) / new).reshape(shape if old.ndim else ())
    limits = np.iinfo(stored.dtype)
    again = np.rint((stored.astype(np.int64) - offset) * ratio) + offset
    array = np.clip(again, limits.min, limits.max).astype(stored.dtype)
    name = node.inputs[0].name if node.inputs[0] is not None else node.name
    node.replace_input_with(0, _new(graph, f"{name}.again", array))


def _own_scale(graph: ir.Graph, node: ir.Node, scale: Array) -> None:
    name = node.inputs[1].name if node.inputs[1] is not None else node.name
    node.replace_input_with(1, _new(graph, f"{name}.half", scale))


def _new(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    while name in graph.initializers:
        present = constant_of(graph.initializers[name])
        if present is not None and present.dtype == array.dtype and np.array_equal(present, array):
            return graph.initializers[name]
        name += "_"
    value = ir.val(name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
    graph.register_initializer(value)
    return value
