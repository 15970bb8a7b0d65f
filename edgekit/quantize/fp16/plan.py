"""Which nodes run in float16 and which stay in float32, before a type is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgekit.models.model import constant_of
from edgekit.quantize.fp16.slots import FLOAT, HALF, Slot, float_slots, has_subgraph, is_indifferent
from edgekit.values import Array

LARGEST = float(np.finfo(np.float16).max)  # 65504
_MEASURES = frozenset({"Shape", "Size"})
_COPIES = frozenset({
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat", "Gather",
    "Identity", "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TypePlan:
    """The type of every node that has floating point in it, by name.

    `half` are the nodes in float16, `left` those in float32 with the reason. `slots` are the
    float32 inputs and outputs of both. `inputs` are the float32 inputs of the graph that become
    float16 themselves.
    """

    half: frozenset[str]
    left: Mapping[str, str]
    slots: Mapping[str, list[Slot]]
    inputs: frozenset[str] = field(default_factory=frozenset)

    def home(self, value: ir.Value) -> ir.DataType | None:
        """The type that a value is made in: its producer's; None where it is no float32 now."""
        if value.dtype != FLOAT:
            return None
        producer = value.producer()
        if producer is None:
            return HALF if value.name in self.inputs else FLOAT
        made = self.slots.get(producer.name or "", ())
        halves = any(s.halves for s in made if not s.is_input and s.value is value)
        return HALF if halves and producer.name in self.half else FLOAT

    def wanted(self, node: ir.Node, index: int) -> ir.DataType | None:
        """The type in which a node reads its input; None where any will do."""
        if is_indifferent(node):
            return None
        if node.name in self.half:
            for slot in self.slots[node.name]:
                if slot.is_input and slot.index == index:
                    return HALF if slot.halves else FLOAT
        return FLOAT


def plan_types(
    graph: ir.Graph, opset: int, kept: Mapping[str, str], *, keep_io: bool = True
) -> TypePlan:
    """Float16 wherever ONNX has it, but for the nodes in `kept`, each for its reason.

    Without `keep_io` the graph's inputs are float16 too, but for those that only nodes in float32
    read. Node names must be unique and types filled in. Quantized tensors follow their neighbours:
    no cast comes between a QuantizeLinear and what it reads, or a DequantizeLinear and its only
    readers.
    """
    left: dict[str, str] = {}
    slots: dict[str, list[Slot]] = {}
    nodes = list(graph)
    sizes = _from_sizes(graph)
    for node in nodes:
        name = node.name or ""
        found = float_slots(node, opset)
        if (found == [] and not has_subgraph(node)) or is_indifferent(node):
            continue
        slots[name] = found or []
        reason = _obstacle(node, found, opset, sizes) or kept.get(name, "")
        if reason:
            left[name] = reason
    _follow(graph, left, slots)
    inputs = frozenset(
        value.name
        for value in graph.inputs
        if value.name and value.dtype == FLOAT and not keep_io
        if any(use.node.name not in left for use in value.uses())
    )
    return TypePlan(half=frozenset(slots) - frozenset(left), left=left, slots=slots, inputs=inputs)


def _obstacle(
    node: ir.Node, slots: list[Slot] | None, opset: int, sizes: frozenset[ir.Value]
) -> str:
    """Why the node cannot be float16 whatever the numbers; "" where it can."""
    if has_subgraph(node):
        return "it runs a graph of its own"
    if slots is None:
        return "ONNX does not define this operator"
    if not any(slot.halves for slot in slots):
        return f"ONNX has no float16 {node.op_type} at opset {opset}"
    if any(isinstance(v.type, ir.SequenceType | ir.OptionalType) for v in _values(node)):
        return "it works on a sequence"
    unknown = next((v.name for v in _values(node) if v.dtype is None), None)
    if unknown is not None:
        return f'the type of "{unknown}" is not known'
    if any(value in sizes for value in node.outputs):
        return "it computes sizes, not activations"
    for slot in slots:
        stored = constant_of(slot.value) if slot.is_input and slot.halves else None
        if stored is not None and (most := _largest_finite(stored)) > LARGEST:
            return f'its constant "{slot.value.name}" reaches {most:.3g}; float16 ends at 65504'
    return ""


def _largest_finite(array: Array) -> float:
    magnitudes = np.abs(array[np.isfinite(array)], dtype=np.float64)
    return float(magnitudes.max(initial=0.0))


def _values(node: ir.Node) -> Iterator[ir.Value]:
    yield from (
        value for value in (*node.inputs, *node.outputs) if value is not None and value.name
    )


def _from_sizes(graph: ir.Graph) -> frozenset[ir.Value]:
    """The values that come from the sizes of tensors and from nothing that is in them."""
    entries: set[ir.Value] = {v for v in graph.inputs if v.name not in graph.initializers}
    sizes: set[ir.Value] = set()
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        if node.op_type in _MEASURES and not node.domain:
            sizes.update(node.outputs)
        elif has_subgraph(node) or any(value in entries for value in read):
            entries.update(node.outputs)
        elif any(value in sizes for value in read):
            sizes.update(node.outputs)
    return frozenset(sizes)


def _producer_name(value: ir.Value) -> str:
    producer = value.producer()
    return "" if producer is None else producer.name or ""


def _follow(graph: ir.Graph, left: dict[str, str], slots: Mapping[str, list[Slot]]) -> None:
    """Leaves in float32 what stands between nodes that are left, where a cast would only cost."""

    def stays(value: ir.Value | None) -> bool:
        """Whether a value is made in float32: by a node that is left."""
        producer = None if value is None else value.producer()
        return producer is not None and producer.name in left

    def readers_left(value: ir.Value, more: frozenset[str] = frozenset()) -> bool:
        readers = [use.node for use in value.uses() if not is_indifferent(use.node)]
        names = {node.name or "" for node in readers}
        return bool(names) and names <= left.keys() | more and not value.is_graph_output()

    nodes = [node for node in graph if node.name in slots]
    for node in nodes:
        quantizes = node.op_type == "QuantizeLinear" and node.inputs[0] is not None
        if quantizes and node.name not in left and stays(node.inputs[0]):
            left[node.name or ""] = "it quantizes what is computed in float32"
    for node in reversed(nodes):
        if node.name in left or node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
            continue
        source = node.inputs[0]
        stored = node.op_type == "DequantizeLinear" or constant_of(source) is not None
        if stored and readers_left(node.outputs[0]):
            left[node.name or ""] = "only nodes in float32 read it"
    copies = [node for node in nodes if node.op_type in _COPIES and node.name not in left]
    fed: set[str] = set()
    for node in copies:
        sources = [s.value for s in slots[node.name or ""] if s.is_input]
        if all(stays(v) or _producer_name(v) in fed for v in sources):
            fed.add(node.name or "")
    ends: set[str] = set()
    for node in reversed(copies):
        if node.name in fed and all(readers_left(v, frozenset(ends)) for v in node.outputs):
            ends.add(node.name or "")
    left.update(dict.fromkeys(ends, "it only copies from float32 to float32"))
