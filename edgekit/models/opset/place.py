"""One node about to change, and what may be put in front of it.

The node itself stays: it becomes the last operator of its replacement, so that its name and its
outputs' names, types and shapes are kept. What stands before it gets names that begin with its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.models.model import constant_of
from edgekit.models.opset.schemas import schema_at
from edgekit.values import Array

Attribute: TypeAlias = int | float | str | Sequence[int] | Sequence[float] | ir.TensorProtocol


class RefusalError(Exception):
    """What stands in the way of one node, in words that can follow "because"."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """The names that a model uses already, of nodes and of values."""

    used: set[str]

    def derived(self, base: str, suffix: str) -> str:
        """`base.suffix`, with a number where that is taken; it is taken from now on."""
        name, count = f"{base}.{suffix}", 1
        while name in self.used:
            count += 1
            name = f"{base}.{suffix}{count}"
        self.used.add(name)
        return name


@dataclass(kw_only=True)
class Place:
    """A node that crosses to `opset`; `put` makes nodes before it, `become` changes it.

    `added` are the new nodes before it and `following` those behind it, in order; `freed` the
    values that the node no longer reads.
    """

    node: ir.Node
    opset: int
    names: Names
    base: str
    added: list[ir.Node] = field(default_factory=list)
    following: list[ir.Node] = field(default_factory=list)
    freed: list[ir.Value] = field(default_factory=list)

    def has(self, index: int) -> bool:
        """Whether the node has that input."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def input(self, index: int) -> ir.Value:
        """The node's input; refused where it is missing."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise RefusalError(f"its input {index} is missing")
        return value

    def optional(self, index: int) -> ir.Value | None:
        """The node's input, or None where it is missing."""
        return self.node.inputs[index] if self.has(index) else None

    def given(self, name: str) -> bool:
        """Whether the node has that attribute; refused where a function's caller gives it."""
        found = self.node.attributes.get(name)
        if found is not None and found.is_ref():
            raise RefusalError(f"its {name} is an attribute of the function that it stands in")
        return found is not None

    def integer(self, name: str, default: int) -> int:
        """An integer attribute, or the default."""
        return self.node.attributes[name].as_int() if self.given(name) else default

    def number(self, name: str, default: float) -> float:
        """A float attribute, or the default."""
        return self.node.attributes[name].as_float() if self.given(name) else default

    def text(self, name: str, default: str) -> str:
        """A string attribute, or the default."""
        return self.node.attributes[name].as_string() if self.given(name) else default

    def integers(self, name: str) -> list[int] | None:
        """A list of integers, or None where the node has none."""
        return list(self.node.attributes[name].as_ints()) if self.given(name) else None

    def constant(self, index: int, role: str) -> Array:
        """The constant that an input holds; refused where it is computed."""
        found = constant_of(self.input(index))
        if found is None:
            raise RefusalError(f"its {role} are computed, and the older version takes constants")
        return found

    def dtype(self, value: ir.Value) -> ir.DataType:
        """The value's element type; refused where it is not known."""
        if value.dtype is None:
            raise RefusalError(f'the type of "{value.name}" is not known')
        return value.dtype

    def rank(self, value: ir.Value) -> int:
        """The value's number of axes; refused where it is not known."""
        if value.shape is None:
            raise RefusalError(f'the number of axes of "{value.name}" is not known')
        return len(value.shape)

    def size(self, value: ir.Value, axis: int) -> int:
        """The value's size along an axis; refused where it is dynamic."""
        self.rank(value)
        found = value.shape[axis] if value.shape is not None else None
        if not isinstance(found, int):
            raise RefusalError(f'the size of "{value.name}" along axis {axis} is dynamic')
        return found

    def put(
        self, op_type: str, *inputs: ir.Value | None, like: ir.Value | None = None,
        **attributes: Attribute,
    ) -> ir.Value:  # fmt: skip
        """The output of a new node before this one, typed and shaped as `like`, or as inferred."""
        written = [ir.Attr(name, *_typed(value)) for name, value in attributes.items()]
        return self.insert(op_type, inputs, written, like=like)[0]

    def insert(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Sequence[ir.Attr], *,
        outputs: int = 1, like: ir.Value | None = None,
    ) -> Sequence[ir.Value]:  # fmt: skip
        """The outputs of a new node before this one, typed and shaped as for `put`."""
        node = ir.Node(
            "", op_type, inputs, attributes, num_outputs=outputs,
            name=self.names.derived(self.base, op_type),
            metadata_props=dict(self.node.metadata_props),
        )  # fmt: skip
        for output in node.outputs:
            output.name = self.names.derived(self.base, f"{op_type}_out")
            if like is not None:
                output.type = like.type
                output.shape = None if like.shape is None else like.shape.copy()
        if like is None:
            _infer(node, self.opset)
        self.added.append(node)
        return node.outputs

    def hold(self, array: Array) -> ir.Value:
        """The output of a new Constant."""
        return self.put("Constant", value=ir.tensor(np.asarray(array, order="C")))

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """A Constant of shape () in the element type of `like`."""
        dtype = self.dtype(like)
        return self.put("Constant", value=ir.tensor(np.array(number, dtype.numpy()), dtype=dtype))

    def integers_as_input(self, numbers: Sequence[int]) -> ir.Value:
        """A Constant of int64 numbers, shape (n,)."""
        return self.hold(np.array(numbers, np.int64))

    def become(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> None:
        """Makes the node this operator, with these inputs and no other attributes."""
        self.node.op_type = op_type
        self.node.attributes.clear()
        self.assign(**attributes)
        self.take(*inputs)

    def take(self, *inputs: ir.Value | None) -> None:
        """Gives the node these inputs and no others."""
        old = [value for value in self.node.inputs if value is not None]
        self.node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            self.node.replace_input_with(index, value)
        kept = {id(value) for value in inputs}
        self.freed += [value for value in old if id(value) not in kept]

    def assign(self, **attributes: Attribute) -> None:
        """Sets attributes of the node."""
        for name, value in attributes.items():
            self.node.attributes[name] = ir.Attr(name, *_typed(value))

    def drop(self, *names: str) -> None:
        """Removes attributes of the node, where it has them."""
        for name in names:
            self.node.attributes.pop(name, None)

    def extra_outputs_used(self) -> bool:
        """Whether anything reads an output behind the first."""
        return any(value.uses() or value.is_graph_output() for value in self.node.outputs[1:])

    def follow(self, index: int, op_type: str) -> None:
        """Lets a new unary node behind this one have the name and the readers of an output."""
        node = ir.Node("", op_type, [], num_outputs=1, name=self.names.derived(self.base, op_type))
        self.hand_over(index, node.outputs[0])
        old = self.node.outputs[index]
        old.name = self.names.derived(self.base, f"before_{op_type}")
        node.resize_inputs(1)
        node.replace_input_with(0, old)
        self.following.append(node)

    def hand_over(self, index: int, value: ir.Value) -> None:
        """Lets a new value take the place and the name of the node's output `index`."""
        old = self.node.outputs[index]
        name = old.name
        value.type, value.shape = old.type or value.type, old.shape or value.shape
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        old.name = None
        value.name = name


def _typed(value: Attribute) -> tuple[ir.AttributeType, Attribute]:
    kinds = ir.AttributeType
    if isinstance(value, str):
        return kinds.STRING, value
    if isinstance(value, int):
        return kinds.INT, value
    if isinstance(value, float):
        return kinds.FLOAT, value
    if isinstance(value, Sequence):
        floats = bool(value) and isinstance(value[0], float)
        return (kinds.FLOATS, value) if floats else (kinds.INTS, value)
    return kinds.TENSOR, value


def _infer(node: ir.Node, opset: int) -> None:
    """Gives a new node's output the type and shape that ONNX infers; none where it cannot."""
    schema = schema_at(node.op_type, opset)
    if schema is None:
        raise RefusalError(f"ONNX has no {node.op_type} at opset {opset}")
    types, constants = {}, {}
    for value in node.inputs:
        if value is None:
            continue
        if value.type is None:
            return
        types[value.name or ""] = ir.to_proto(value).type
        held = constant_of(value)
        if held is not None and held.size <= 64:
            constants[value.name or ""] = onnx.numpy_helper.from_array(held)
    imports = [onnx.helper.make_opsetid("", opset)]
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, ir.to_proto(node), types, constants, opset_imports=imports
        )
    except onnx.shape_inference.InferenceError as error:
        raise RefusalError(f"its shapes contradict each other ({error})") from error
    for output in node.outputs:
        proto = found.get(output.name or "")
        if proto is not None:
            typed = ir.serde.deserialize_type_proto_for_type(proto)
            output.type, output.shape = typed, ir.serde.deserialize_type_proto_for_shape(proto)
