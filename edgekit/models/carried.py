"""What an ONNX file may hold and onnx_ir does not read: carried through a Model as it is.

onnx_ir (1.1) has no sparse initializers, sparse attributes, training information, nor strings
that are not UTF-8. `to_program` puts each where clones keep it and `to_hollow_proto` brings it
back; what neither onnx_ir nor this file carries is refused, so loading and saving lose nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from edgekit.errors import InputError
from edgekit.values import Array

Swap: TypeAlias = Callable[[ir.TensorProtocol], "ir.TensorProtocol | None"]
"""Another tensor in the place of this one; None: it stays."""

_CARRIED = "edgekit.carried:"
_TRAINING, _DECLARED = "edgekit.training_info", "edgekit.declared"


class SparseTensor(ir.LazyTensor):
    """A sparse initializer: dense to who reads it, sparse again in the file. `proto` is its own."""

    __slots__ = ("proto",)

    def __init__(self, proto: onnx.SparseTensorProto) -> None:
        super().__init__(
            lambda: ir.tensor(_dense(proto)), ir.DataType(proto.values.data_type),
            ir.Shape(proto.dims), name=proto.values.name, cache=True,
        )  # fmt: skip
        self.proto = proto


def _dense(proto: onnx.SparseTensorProto) -> Array:
    """The dense array (ONNX IR: indices are linear, or one row of coordinates for each value)."""
    values = onnx.numpy_helper.to_array(proto.values)
    indices = onnx.numpy_helper.to_array(proto.indices)
    dense = np.zeros(tuple(proto.dims), values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return dense


def messages(message: Message) -> Iterator[Any]:
    """The message and every message in it, the outer ones first."""
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if is_repeated(value) else (value,):
                yield from messages(inner)


def is_repeated(value: object) -> bool:
    """Whether a field's value is a row of them (a field says it only since protobuf 6.31)."""
    return not isinstance(value, (Message, str, bytes, int, float))


def to_program(
    proto: onnx.ModelProto, swap: Swap, declared: dict[str, bytes], *, where: str
) -> ir.Model:
    """The onnx_ir model of a checked proto, which is used up; `swap` sees each of its tensors.

    `declared` are the serialized types of values of the main graph, by name, as the file has them
    where inference knew more: `to_hollow_proto` writes these while the shape is the inferred one.
    Raises InputError where onnx_ir cannot read the graph or something of it would be lost.
    """
    before = onnx.ModelProto()
    before.CopyFrom(proto)
    training = tuple(info.SerializeToString(deterministic=True) for info in proto.training_info)
    del proto.training_info[:]
    _hide(proto)
    try:
        program = ir.from_proto(proto)
        swap_tensors(program, _with_notes)
        if training:
            program.graph.meta[_TRAINING] = training
        _refuse_loss(before, _reveal(ir.to_proto(program), program), where)
    except (ir.serde.SerdeError, ValueError, TypeError) as error:
        raise InputError(
            "the graph cannot be read", where=where, got=_cause(error), hint="Export it again."
        ) from error
    swap_tensors(program, lambda tensor: _sparse(tensor) or swap(tensor))
    _remember(program, declared)
    return program


def to_hollow_proto(program: ir.Model) -> onnx.ModelProto:
    """The proto of a program all of whose tensors may be written as they are."""
    return _reveal(ir.to_proto(program), program)


def _cause(error: BaseException) -> str:
    while isinstance(error, ir.serde.SerdeError) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:400]


def swap_tensors(program: ir.Model, swap: Swap) -> None:
    """Puts what `swap` gives for it in the place of every initializer and tensor attribute."""
    for graph in program.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = swap(value.const_value) or value.const_value
    owners: list[Iterable[ir.Node]] = [program.graph.all_nodes()]
    owners += [function.all_nodes() for function in program.functions.values()]
    for nodes in owners:
        for node in nodes:
            for name, attribute in list(node.attributes.items()):
                changed = None if attribute.is_ref() else _swapped(attribute, swap)
                if changed is not None:
                    node.attributes[name] = changed


def _swapped(attribute: ir.Attr, swap: Swap) -> ir.Attr | None:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = swap(attribute.value)
        if tensor is not None:
            return ir.AttrTensor(attribute.name, tensor, doc_string=attribute.doc_string)
    elif attribute.type == ir.AttributeType.TENSORS:
        tensors = [swap(tensor) for tensor in attribute.value]
        if any(tensor is not None for tensor in tensors):
            mixed = [new or old for new, old in zip(tensors, attribute.value, strict=True)]
            return ir.AttrTensors(attribute.name, mixed, doc_string=attribute.doc_string)
    return None


def stand_in(tensor: SparseTensor) -> ir.ExternalTensor:
    """What is written in the place of a sparse initializer, for `to_hollow_proto` to bring back."""
    return ir.ExternalTensor(
        _wrapped(tensor.proto), None, None, tensor.dtype, shape=ir.Shape(tensor.shape),
        name=tensor.name or "",
    )  # fmt: skip


def _sparse(tensor: ir.TensorProtocol) -> SparseTensor | None:
    if not isinstance(tensor, ir.ExternalTensor):
        return None
    location = str(tensor.location)
    if not location.startswith(_CARRIED):
        return None
    return SparseTensor(onnx.SparseTensorProto.FromString(_unwrapped(location)))


def _with_notes(tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
    """A tensor whose metadata onnx_ir would write twice (1.1: the proto's, then its own)."""
    if not isinstance(tensor, ir.TensorProtoTensor) or not tensor.metadata_props:
        return None
    return ir.Tensor(
        tensor.numpy(), tensor.dtype, shape=tensor.shape, name=tensor.name,
        doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def _wrapped(message: Message) -> str:
    content = message.SerializeToString(deterministic=True)
    return _CARRIED + base64.b64encode(content).decode()


def _unwrapped(text: str) -> bytes:
    return base64.b64decode(text.removeprefix(_CARRIED))


def _hide(proto: onnx.ModelProto) -> None:
    """Wraps what onnx_ir does not read: attributes as strings, sparse initializers as external."""
    for message in list(messages(proto)):
        if isinstance(message, onnx.AttributeProto) and not _is_read(message):
            wrapped = _wrapped(message).encode()
            name = message.name
            message.Clear()
            message.name, message.type, message.s = name, onnx.AttributeProto.STRING, wrapped
        elif isinstance(message, onnx.GraphProto):
            for sparse in message.sparse_initializer:
                tensor = message.initializer.add()
                tensor.name, tensor.dims[:] = sparse.values.name, sparse.dims
                tensor.data_type = sparse.values.data_type
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=_wrapped(sparse))
            del message.sparse_initializer[:]


def _is_read(attribute: onnx.AttributeProto) -> bool:
    kinds = onnx.AttributeProto
    if attribute.type in (kinds.SPARSE_TENSOR, kinds.SPARSE_TENSORS):
        return False
    strings = [attribute.s, *attribute.strings]
    try:
        texts = [text.decode() for text in strings]
    except UnicodeDecodeError:
        return False
    return not any(text.startswith(_CARRIED) for text in texts)


def _reveal(proto: onnx.ModelProto, program: ir.Model) -> onnx.ModelProto:
    for content in program.graph.meta.get(_TRAINING, ()):
        proto.training_info.add().ParseFromString(content)
    if _CARRIED.encode() in proto.SerializeToString():
        for message in list(messages(proto)):
            if isinstance(message, onnx.AttributeProto):
                if message.s.startswith(_CARRIED.encode()):
                    message.ParseFromString(_unwrapped(message.s.decode()))
            elif isinstance(message, onnx.GraphProto):
                _reveal_sparse(message)
    _restore_declared(proto.graph, program.graph)
    return proto


def _reveal_sparse(graph: onnx.GraphProto) -> None:
    dense, names = [], set()
    for tensor in graph.initializer:
        location = tensor.external_data[0].value if tensor.external_data else ""
        if not location.startswith(_CARRIED):
            dense.append(tensor)
            continue
        sparse = graph.sparse_initializer.add()
        sparse.ParseFromString(_unwrapped(location))
        sparse.values.name = tensor.name
        names.add(tensor.name)
    if names:
        _replace(graph.initializer, dense)
        # onnx_ir declares every initializer as a tensor, which a sparse one is not.
        declared = graph.value_info
        _replace(declared, [v for v in declared if v.name not in names or not _is_tensor(v)])


def _is_tensor(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.HasField("tensor_type"))


def _remember(program: ir.Model, declared: dict[str, bytes]) -> None:
    if declared:
        values = (value for node in program.graph for value in node.outputs)
        for value in (*program.graph.inputs, *values):
            if value.name in declared:
                value.meta[_DECLARED] = (declared[value.name], value.shape)


def _restore_declared(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    stored = {
        value.name: value.meta[_DECLARED][0]
        for node in graph
        for value in node.outputs
        if _DECLARED in value.meta and value.meta[_DECLARED][1] == value.shape
    }
    if stored:
        for info in (*proto.output, *proto.value_info):
            if info.name in stored:
                info.type.ParseFromString(stored[info.name])


def _refuse_loss(before: onnx.ModelProto, after: onnx.ModelProto, where: str) -> None:
    _put_in_order(before)
    _put_in_order(after)
    lost = _declared_and_lost(before, after) or _difference(before, after, "model")
    if lost:
        raise InputError(
            "a part of this file would be lost on the way", where=where, got=lost,
            hint="The file may repeat a name or hold what the ONNX format does not know: "
            "export it again.",
        )  # fmt: skip


def _put_in_order(proto: onnx.ModelProto) -> None:
    """Writes what may be written in several ways in one: nothing that matters differs then."""
    for message in list(messages(proto)):
        for field, value in message.ListFields():
            if field.name == "metadata_props":
                _sort(value, "key")
            elif field.name == "quantization_annotation":
                for annotation in value:
                    _sort(annotation.quant_parameter_tensor_names, "key")
                _sort(value, "tensor_name")
            elif field.name == "external_data":
                kept = [e for e in value if e.key in ("location", "offset", "length")]
                _replace(value, sorted(kept, key=lambda entry: str(entry.key)))
            elif field.name == "domain" and value == "ai.onnx":
                message.ClearField("domain")  # the default domain has two names
            elif _says_nothing(field.name, value):
                message.ClearField(field.name)
        if isinstance(message, onnx.NodeProto):
            while message.output and not message.output[-1]:
                del message.output[-1]


def _says_nothing(name: str, value: Any) -> bool:
    """Whether a field could as well not be there."""
    if isinstance(value, Message):
        return name == "type" and not value.ByteSize()
    return bool(value == "" or (name == "model_version" and value == 0))


def _sort(container: Any, key: str) -> None:
    _replace(container, sorted(container, key=lambda entry: str(getattr(entry, key))))


def _replace(container: Any, entries: list[Any]) -> None:
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    del container[:]
    container.extend(copies)


def _declared_and_lost(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """The first value whose declared type or notes are gone. The others are taken out of both.

    A declaration may be added; one of a value that does not exist, or of an input or output, which
    says it all again, may go.
    """
    lost = ""
    for old, new in zip(_owners(before), _owners(after), strict=False):
        made = {name for node in old.node for name in node.output}
        if isinstance(old, onnx.GraphProto):
            made |= {tensor.name for tensor in old.initializer}
            made -= {info.name for info in (*old.input, *old.output)}
        found = {info.name: info for info in new.value_info}
        for info in old.value_info:
            if info.name in made and _says_anything(info) and found.get(info.name) != info:
                lost = lost or f'what it declares of the value "{info.name}"'
        del old.value_info[:], new.value_info[:]
    return lost


def _owners(proto: onnx.ModelProto) -> list[Any]:
    kinds = (onnx.GraphProto, onnx.FunctionProto)
    return [message for message in messages(proto) if isinstance(message, kinds)]


def _says_anything(info: onnx.ValueInfoProto) -> bool:
    return any(field.name != "name" for field, _ in info.ListFields())


def _difference(before: Any, after: Any, path: str) -> str:
    """The path of the first field in which two messages differ; empty where none does."""
    if before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True):
        return ""
    fields = {field.name: field for m in (before, after) for field, _ in m.ListFields()}
    for name, field in fields.items():
        one, other = getattr(before, name), getattr(after, name)
        place = f"{path}.{name}"
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            if one != other:
                return place
        elif not is_repeated(one):
            found = _difference(one, other, place)
            if found:
                return found
        elif len(one) != len(other):
            return f"{place}: {len(one)} of them, {len(other)} kept"
        else:
            for index, (a, b) in enumerate(zip(one, other, strict=True)):
                found = _difference(a, b, f"{place}[{index}]")
                if found:
                    return found
    return f"{path}: fields that this version of ONNX does not know"
