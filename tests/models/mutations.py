"""Damaged and hostile ONNX files, made from real ones with a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from edgekit.errors import EdgekitError
from edgekit.models.cost import total_cost
from edgekit.models.model import to_bytes
from edgekit.models.onnx_file.read import from_bytes, load
from edgekit.models.simplify import clean

_INTEGERS = (0, 1, 2, 3, -1, -2, 7, 255, 4096, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -1.0, 1e38, float("nan"), float("inf"))
_STRINGS = (
    "", "x", "y", "../../etc/passwd", "/dev/zero", "a\0b", "ä" * 50, "Loop", "If", "Reshape",
    "Expand", "Tile", "ConstantOfShape", "Range", "Split", "Constant", "Identity", "Conv",
    "ai.onnx", "com.example", "edgekit.carried:AAAA", "float", "SAME_UPPER", "x" * 5000,
)  # fmt: skip
_MESSAGE, _STRING, _BYTES = (
    FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES
)  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The file with one to five changes: of bytes, or of fields of the message."""
    if rng.random() < 0.35:
        return _other_bytes(content, rng)
    proto = onnx.ModelProto.FromString(content)
    for _ in range(rng.randint(1, 5)):
        rng.choice(_CHANGES)(proto, rng)
    return proto.SerializeToString()


def outcome_of(path: Path) -> str:
    """How loading, cleaning, counting and writing one file ends: a class of error, or "model".

    Anything but an EdgekitError gets out.
    """
    try:
        model = load(path)
    except EdgekitError as error:
        return f"{type(error).__name__}: {error.what.split(chr(34))[0].strip()}"
    again = from_bytes(to_bytes(model), name="again")
    assert [str(spec) for spec in again.inputs] == [str(spec) for spec in model.inputs]
    for step in (clean, total_cost, lambda found: to_bytes(clean(found))):
        try:
            step(model)
        except EdgekitError as error:
            return f"model, then {type(error).__name__}: {error.what.split(chr(34))[0].strip()}"
    return "model"


def _other_bytes(content: bytes, rng: random.Random) -> bytes:
    found = bytearray(content)
    kind = rng.randrange(4)
    at, to = sorted(rng.randrange(len(found)) for _ in range(2))
    if kind == 0:
        for _ in range(rng.choice((1, 1, 3, 20))):
            found[rng.randrange(len(found))] = rng.randrange(256)
    elif kind == 1:
        del found[at:]
    elif kind == 2:
        del found[at : min(to, at + rng.choice((1, 2, 100)))]
    else:
        found[at:at] = found[to : to + rng.choice((1, 8, 500))]
    return bytes(found)


def _messages(message: Message) -> list[Any]:
    found: list[Any] = [message]
    for field, value in message.ListFields():
        if field.type == _MESSAGE:
            for inner in value if hasattr(value, "extend") else (value,):
                found += _messages(inner)
    return found


def _change_a_field(proto: onnx.ModelProto, rng: random.Random) -> None:
    """Another value in some field of some message; kinds of messages are equally likely."""
    by_kind: dict[str, list[Any]] = {}
    for message in _messages(proto):
        by_kind.setdefault(message.DESCRIPTOR.name, []).append(message)
    message = rng.choice(by_kind[rng.choice(sorted(by_kind))])
    field = rng.choice(message.DESCRIPTOR.fields)
    if field.type == _MESSAGE:
        _change_messages(message, field.name, rng)
        return
    value = _value(field.type, rng)
    held = getattr(message, field.name)
    if not hasattr(held, "extend"):
        if field.enum_type is not None:
            value = rng.choice(field.enum_type.values).number
        setattr(message, field.name, value)
    elif held and rng.random() < 0.7:
        held[rng.randrange(len(held))] = value
    elif held and rng.random() < 0.5:
        del held[rng.randrange(len(held))]
    else:
        held.append(value)


def _value(kind: int, rng: random.Random) -> Any:
    if kind == _STRING:
        return rng.choice(_STRINGS)
    if kind == _BYTES:
        return rng.choice((*(text.encode() for text in _STRINGS), b"\xff\xfe", bytes(24)))
    if kind in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(_FLOATS)
    number = rng.choice(_INTEGERS)
    if kind in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM):
        return max(-(2**31), min(number, 2**31 - 1))
    return abs(number) if kind == FieldDescriptor.TYPE_UINT64 else number


def _change_messages(message: Any, name: str, rng: random.Random) -> None:
    held = getattr(message, name)
    if not hasattr(held, "extend"):
        if message.HasField(name) or rng.random() < 0.5:
            message.ClearField(name)
        else:
            held.SetInParent()
        return
    kind = rng.randrange(4)
    if kind == 0 or not held:
        held.add()
    elif kind == 1:
        del held[rng.randrange(len(held))]
    elif kind == 2:
        held.add().CopyFrom(rng.choice(held))
    else:
        held.sort(key=lambda _: rng.random())


def _rewire(proto: onnx.ModelProto, rng: random.Random) -> None:
    """A node reads or makes another value of the graph."""
    names = sorted({name for node in proto.graph.node for name in (*node.input, *node.output)})
    names += [tensor.name for tensor in proto.graph.initializer]
    nodes = [node for node in proto.graph.node if node.input and node.output]
    if nodes:
        node = rng.choice(nodes)
        side = rng.choice((node.input, node.output))
        side[rng.randrange(len(side))] = rng.choice(names)


def _other_operator(proto: onnx.ModelProto, rng: random.Random) -> None:
    schemas = onnx.defs.get_all_schemas()
    if proto.graph.node:
        rng.choice(proto.graph.node).op_type = rng.choice(schemas).name


def _other_opset(proto: onnx.ModelProto, rng: random.Random) -> None:
    if proto.opset_import:
        proto.opset_import[0].version = rng.choice((1, 5, 7, 9, 12, 16, 20, 23, 26, 99))


def _other_tensor(proto: onnx.ModelProto, rng: random.Random) -> None:
    """Another size, type or place of a stored tensor."""
    tensors = [m for m in _messages(proto) if isinstance(m, onnx.TensorProto)]
    if not tensors:
        return
    tensor = rng.choice(tensors)
    kind = rng.randrange(4)
    if kind == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_INTEGERS)
    elif kind == 1:
        tensor.data_type = rng.randrange(-1, 30)
    elif kind == 2:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key in rng.sample(("location", "offset", "length", "checksum"), rng.randint(1, 4)):
            numbers = [str(number) for number in _INTEGERS]
            tensor.external_data.add(
                key=key, value=rng.choice([*_STRINGS, *numbers, "weights.bin"])
            )
    else:
        tensor.dims.append(rng.choice((0, 1, 2, 2**62)))


def _bomb(proto: onnx.ModelProto, rng: random.Random) -> None:
    """Nodes whose results would be enormous, from constants of a few bytes."""
    sizes = [
        rng.choice((2, 1000, 2**20, 2**31, 2**40, -1)) for _ in range(rng.choice((1, 4, 4000)))
    ]
    shape = onnx.numpy_helper.from_array(np.array(sizes, np.int64), "bomb.shape")
    proto.graph.initializer.append(shape)
    op = rng.choice(("ConstantOfShape", "Expand", "Tile", "Reshape", "Range"))
    inputs = {"ConstantOfShape": ["bomb.shape"], "Range": ["bomb.shape"] * 3}.get(
        op, [rng.choice([t.name for t in proto.graph.initializer]), "bomb.shape"]
    )
    proto.graph.node.insert(0, onnx.helper.make_node(op, inputs, ["bomb"], name="bomb"))
    proto.graph.node.insert(1, onnx.helper.make_node("Shape", ["bomb"], ["bomb.of"], name="of"))
    proto.graph.node.insert(2, onnx.helper.make_node("ConstantOfShape", ["bomb.of"], ["bomb.2"]))


def _nest(proto: onnx.ModelProto, rng: random.Random) -> None:
    """A node of the graph goes into a subgraph, or a function calls itself."""
    if proto.functions and rng.random() < 0.5:
        function = proto.functions[0]
        call = function.node.add(op_type=function.name, domain=function.domain)
        call.overload = function.overload
        call.input.extend(function.input)
        call.output.append("again")
        function.opset_import.add(domain=function.domain, version=1)
        return
    inner = onnx.GraphProto(name="inner")
    for level in range(rng.choice((1, 5, 25))):
        outer = onnx.GraphProto(name=f"level {level}")
        node = outer.node.add(op_type="If", input=["condition"], output=[f"out{level}"])
        node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)
        node.attribute.add(name="else_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(
            onnx.GraphProto(name="empty")
        )
        inner = outer
    proto.graph.node.extend(inner.node)


_CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _change_a_field, _change_a_field, _change_a_field, _change_a_field, _rewire, _other_operator,
    _other_opset, _other_tensor, _other_tensor, _bomb, _nest,
)  # fmt: skip
