"""Operators that ONNX itself defines by other operators, written out by that definition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir

from edgekit.models.opset.place import Place, RefusalError
from edgekit.models.opset.schemas import schema_at

WRITTEN_OUT = frozenset(
    {
        ("Attention", 23),
        ("RotaryEmbedding", 23),
        ("CenterCropPad", 18),
        ("BlackmanWindow", 17),
        ("HammingWindow", 17),
        ("HannWindow", 17),
    }
)
"""Operators and the opset that brought them, for which the definition is what stands below it."""


def write_out(place: Place) -> None:
    """Puts the nodes of the operator's definition in the node's place, at the node's own opset.

    The node is left without readers, for the caller to remove. The definition depends on which
    inputs there are and on their types (ONNX, "context-dependent function").
    """
    node = place.node
    body = _definition(place)
    values: dict[str, ir.Value | None] = dict.fromkeys(["", *body.input])
    values.update(zip(body.input, node.inputs, strict=False))
    for inner in body.node:
        made = place.insert(
            inner.op_type,
            [values[name] for name in inner.input],
            list(_attributes(place, inner)),
            outputs=len(inner.output),
        )
        values.update(zip(inner.output, made, strict=True))
    for index, (output, name) in enumerate(zip(node.outputs, body.output, strict=False)):
        if index and not (output.uses() or output.is_graph_output()):
            continue
        found = values.get(name)
        if found is None:
            raise RefusalError(f"ONNX's definition of it does not make its output {name}")
        place.hand_over(index, found)
    for last in reversed(list(place.added)):
        if not any(value.uses() or value.is_graph_output() for value in last.outputs):
            if values[body.output[0]] in last.outputs:
                continue
            last.resize_inputs(0)
            place.added.remove(last)
    place.take()


def _definition(place: Place) -> onnx.FunctionProto:
    node, opset = place.node, place.opset
    schema: Any = schema_at(node.op_type, opset)  # onnx does not declare these of its methods
    body = onnx.FunctionProto()
    if schema.has_function:
        body.ParseFromString(schema.get_function_with_opset_version(opset))
        return body
    types = []
    for value in node.inputs:
        if value is not None:
            place.dtype(value)
        proto = onnx.TypeProto() if value is None else ir.to_proto(value).type
        types.append(proto.SerializeToString())
    written = ir.to_proto(node).SerializeToString()
    content = schema.get_context_dependent_function_with_opset_version(opset, written, types)
    if not content:
        raise RefusalError("ONNX has no definition of it for these inputs")
    body.ParseFromString(content)
    return body


def _attributes(place: Place, inner: onnx.NodeProto) -> Iterator[ir.Attr]:
    """The attributes of a node of the definition, those of the operator filled in."""
    schema = schema_at(place.node.op_type, place.opset)
    assert schema is not None
    for attribute in inner.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise RefusalError("ONNX defines it by a loop")
        if not attribute.ref_attr_name:
            yield ir.serde.deserialize_attribute(attribute)
            continue
        given = place.node.attributes.get(attribute.ref_attr_name)
        default = schema.attributes[attribute.ref_attr_name].default_value
        if given is not None:
            yield ir.Attr(attribute.name, given.type, given.value)
        elif default.name:
            stored = ir.serde.deserialize_attribute(default)
            yield ir.Attr(attribute.name, stored.type, stored.value)
