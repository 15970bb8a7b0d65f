"""Which inputs and outputs of a node are float32, and which of them may be float16 instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgekit.models.model import attribute
from edgekit.models.opset.schemas import schema_at

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One float32 input or output of a node; `halves`: ONNX lets it be float16."""

    value: ir.Value
    index: int
    is_input: bool
    halves: bool


def is_indifferent(node: ir.Node) -> bool:
    """Whether the node reads whatever type its input has, and makes no floating point of it."""
    if node.domain:
        return False
    to = attribute(node, "to", int(FLOAT))
    return node.op_type in ("Shape", "Size") or (node.op_type == "Cast" and int(to) != FLOAT)


def has_subgraph(node: ir.Node) -> bool:
    """Whether the node runs graphs of its own: If, Loop, Scan."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(one.type in kinds for one in node.attributes.values())


def float_slots(node: ir.Node, opset: int) -> list[Slot] | None:
    """The node's float32 slots, inputs first; None where ONNX does not define the operator.

    Types must be filled in (`fill_types`).
    """
    schema = None if node.domain else schema_at(node.op_type, opset)
    if schema is None:
        return None
    return [
        Slot(value=value, index=index, is_input=is_input, halves=halves)
        for value, index, is_input, formal in _formals(node, schema)
        if value.dtype == FLOAT
        for halves in [_kind(HALF) in _allowed(schema, formal.type_str)]
    ]


def fill_types(graph: ir.Graph, opset: int) -> None:
    """Gives every value of an editable graph its element type, where it follows from the inputs.

    As ONNX's definitions say: outputs have the type of an input with the same letter, the one that
    an attribute names, or the only one allowed. What custom operators make stays unknown.
    """
    for node in graph:
        schema = None if node.domain else schema_at(node.op_type, opset)
        if schema is None or all(value.dtype is not None for value in node.outputs):
            continue
        bound: dict[str, ir.DataType] = {}
        for value, _, is_input, formal in _formals(node, schema):
            if is_input and value.dtype is not None:
                bound.setdefault(formal.type_str, value.dtype)
            elif not is_input and value.dtype is None:
                found = bound.get(formal.type_str) or _named(node) or _only(schema, formal.type_str)
                if found is not None:
                    value.type = ir.TensorType(found)


def _formals(
    node: ir.Node, schema: onnx.defs.OpSchema
) -> Iterator[tuple[ir.Value, int, bool, onnx.defs.OpSchema.FormalParameter]]:
    """Each value of a node with its index, its side, and what the definition says of it."""
    sides: tuple[
        tuple[Sequence[ir.Value | None], Sequence[onnx.defs.OpSchema.FormalParameter]], ...
    ]
    sides = ((node.inputs, schema.inputs), (node.outputs, schema.outputs))
    for side, (values, formals) in enumerate(sides):
        for index, value in enumerate(values):
            if value is not None and formals:
                yield value, index, side == 0, formals[min(index, len(formals) - 1)]


def _allowed(schema: onnx.defs.OpSchema, letter: str) -> set[str]:
    found = [c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == letter]
    return set(found[0]) if found else {letter}


def _kind(dtype: ir.DataType) -> str:
    return f"tensor({dtype.name.lower()})"


def _named(node: ir.Node) -> ir.DataType | None:
    """The type that an attribute names: of a Cast, of a ConstantOfShape's value."""
    for name in TYPE_ATTRIBUTES:
        if number := attribute(node, name):
            return ir.DataType(int(number))
    if node.op_type == "ConstantOfShape":
        stored = node.attributes.get("value")
        return FLOAT if stored is None else stored.as_tensor().dtype
    return None


def _only(schema: onnx.defs.OpSchema, letter: str) -> ir.DataType | None:
    kinds = _allowed(schema, letter)
    if len(kinds) != 1:
        return None
    name = next(iter(kinds)).removeprefix("tensor(").removesuffix(")").upper()
    return ir.DataType[name] if name in ir.DataType.__members__ else None
