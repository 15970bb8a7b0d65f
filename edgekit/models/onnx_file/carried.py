"""What an ONNX file may hold and onnx_ir does not read: carried through a Model as it is.

onnx_ir (1.1) has no sparse initializers, sparse attributes, training information, nor strings
that are not UTF-8. `to_program` puts each where clones keep it and `to_hollow_proto` brings it
back; what neither onnx_ir nor this file carries is refused, so loading and saving lose nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from edgekit.errors import InputError
from edgekit.models.onnx_file.lossless import refuse_loss
from edgekit.models.onnx_file.messages import messages, replace
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
        refuse_loss(before, _reveal(ir.to_proto(program), program), where)
    except (ir.serde.SerdeError, ValueError, TypeError) as error:
        raise InputError(
            "the graph cannot be read", where=where, got=_cause(error), hint="Export it again."
        ) from error
    swap_tensors(program, _sparse)
    swap_tensors(program, swap)
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
            new = None if value.const_value is None else swap(value.const_value)
            if new is not None:
                value.const_value = new
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
            pairs = zip(tensors, attribute.value, strict=True)
            mixed = [old if new is None else new for new, old in pairs]
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
        replace(graph.initializer, dense)
        # onnx_ir declares every initializer as a tensor, which a sparse one is not.
        declared = graph.value_info
        replace(declared, [v for v in declared if v.name not in names or not _is_tensor(v)])


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
