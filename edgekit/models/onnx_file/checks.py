"""What is checked of an ONNX file in this process, before anything is built or allocated from it.

The rules of the graph itself (names, order, operators, types) are ONNX's own checker's, in a child
(`child.py`): this is what that one does not look at, or must not be given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from edgekit.errors import InputError
from edgekit.models.model import attribute
from edgekit.models.onnx_file.messages import is_repeated, messages
from edgekit.values import Array

_EXPORT_AGAIN = "The file is damaged, or made to do harm: export the model again."
_DENSE_BYTES = 1 << 31
_CHUNK = 1 << 17  # values looked at together: they and their copy stay in the processor's cache

# The fields in which each type may be stored (onnx.proto, TensorProto), beside raw_data.
_INT32 = "int32_data"
_FIELDS: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data", onnx.TensorProto.COMPLEX64: "float_data",
    onnx.TensorProto.DOUBLE: "double_data", onnx.TensorProto.COMPLEX128: "double_data",
    onnx.TensorProto.INT64: "int64_data", onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.UINT32: "uint64_data", onnx.TensorProto.STRING: "string_data",
}  # fmt: skip
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
_PACKED = tuple(
    dtype.value
    for dtype in ir.DataType
    if dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING) and dtype.bitwidth in (2, 4)
)
_PAYLOADS = ("float_data", _INT32, "string_data", "int64_data", "double_data", "uint64_data")

# For an IEEE type: its bits without the sign, and those of infinity; NaN is above it.
_MAGNITUDE: dict[ir.DataType, tuple[Any, int, int]] = {
    ir.DataType.FLOAT16: (np.uint16, 0x7FFF, 0x7C00),
    ir.DataType.BFLOAT16: (np.uint16, 0x7FFF, 0x7F80),
    ir.DataType.FLOAT: (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    ir.DataType.DOUBLE: (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}


def check_messages(proto: onnx.ModelProto, token: str, sizes: list[int], where: str) -> None:
    """Passes a model whose versions, strings, types and tensors' sizes can be believed.

    A tensor at the external location `TOKEN:INDEX` has `sizes[INDEX]` bytes; external ones apart
    from these are not looked at. Raises InputError.
    """
    _check_versions(proto, where)
    for message in list(messages(proto)):
        _check_text(message, where)
        if isinstance(message, onnx.SparseTensorProto):
            _check_sparse(message, where)
        elif isinstance(message, onnx.TensorProto):
            _check_tensor(message, token, sizes, where)
        elif isinstance(message, onnx.TypeProto):
            _check_type(message, where)


def _check_versions(proto: onnx.ModelProto, where: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    hint = "pip install --upgrade onnx, or export the model with an older operator set."
    if proto.ir_version > onnx.IR_VERSION:
        raise InputError(
            "the file is of a newer ONNX than the one here", where=where, hint=hint,
            got=f"IR version {proto.ir_version}", wanted=f"at most {onnx.IR_VERSION}",
        )  # fmt: skip
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise InputError(
                "the model's operator set is newer than the ONNX here", where=where, hint=hint,
                got=f"opset {entry.version}", wanted=f"at most {newest}",
            )  # fmt: skip


def check_types(graph: onnx.GraphProto, where: str) -> None:
    """Passes a graph whose values are known types of tensors. Raises InputError."""
    for info in (*graph.value_info, *graph.output):
        for message in messages(info.type):
            if isinstance(message, onnx.TypeProto):
                _check_type(message, where)


def _check_text(message: Message, where: str) -> None:
    """Passes strings that are UTF-8: where one is not, protobuf gives its bytes."""
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_STRING:
            continue
        for text in value if is_repeated(value) else (value,):
            if isinstance(text, bytes):
                raise InputError(
                    "a name or a note in this file is not UTF-8", where=where,
                    got=f"{text[:40]!r}, {field.full_name}", hint=_EXPORT_AGAIN,
                )  # fmt: skip


def _check_type(message: onnx.TypeProto, where: str) -> None:
    kind = message.WhichOneof("value")
    if kind in ("map_type", "opaque_type"):
        raise InputError(
            "the graph passes something else than tensors on", where=where,
            got=str(kind).replace("_type", ""), wanted="tensors, sequences of them, optional ones",
            hint="Cut what follows the network itself (ZipMap and the like) off before the export.",
        )  # fmt: skip
    if kind in ("tensor_type", "sparse_tensor_type"):
        dtype_of(getattr(message, kind).elem_type, "a value", where)


def dtype_of(number: int, name: str, where: str) -> ir.DataType:
    """The type with this number. Raises InputError where ONNX has none."""
    try:
        return ir.DataType(number)
    except ValueError as error:
        raise InputError(
            f"{name} has a type that ONNX does not have", where=where, got=str(number),
            wanted="a number of TensorProto.DataType", hint=_EXPORT_AGAIN,
        ) from error  # fmt: skip


def tensor_bytes(tensor: onnx.TensorProto, where: str) -> int:
    """The bytes that a tensor's shape and type want as raw data. Raises InputError."""
    dtype = dtype_of(tensor.data_type, f'the tensor "{tensor.name}"', where)
    if dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        return 0
    if any(size < 0 for size in tensor.dims):
        raise _wrong_size(tensor, "a negative size", "sizes of 0 and more", where)
    return -(-math.prod(map(int, tensor.dims)) * dtype.bitwidth // 8)


def _wrong_size(tensor: onnx.TensorProto, got: str, wanted: str, where: str) -> InputError:
    shape = " x ".join(map(str, tensor.dims[:8])) or "a scalar"
    return InputError(
        f'the tensor "{tensor.name}" does not hold what its shape says', where=where,
        got=f"{got}, for {shape}", wanted=wanted, hint=_EXPORT_AGAIN,
    )  # fmt: skip


def _check_tensor(tensor: onnx.TensorProto, token: str, sizes: list[int], where: str) -> None:
    wanted = tensor_bytes(tensor, where)
    dtype = ir.DataType(tensor.data_type)
    if tensor.HasField("segment"):
        raise _wrong_size(tensor, "only a segment of it", "the whole tensor", where)
    held = [name for name in _PAYLOADS if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        held.append("raw_data")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
        if held or len(locations) > 1 or dtype == ir.DataType.STRING:
            raise _wrong_size(tensor, "its content at two places", "one of them", where)
        if locations and locations[0].startswith(token):
            size = sizes[int(locations[0].rpartition(":")[2])]
            if size != wanted:
                raise _wrong_size(tensor, f"{size} bytes", f"{wanted} bytes", where)
        return
    if len(held) > 1:
        raise _wrong_size(tensor, " and ".join(held), "one field", where)
    if held == ["raw_data"] and dtype != ir.DataType.STRING:
        if len(tensor.raw_data) != wanted:
            raise _wrong_size(tensor, f"{len(tensor.raw_data)} bytes", f"{wanted} bytes", where)
        return
    _check_typed(tensor, dtype, held, where)


def _check_typed(tensor: onnx.TensorProto, dtype: ir.DataType, held: list[str], where: str) -> None:
    field = _FIELDS.get(tensor.data_type, _INT32)
    if any(size < 0 for size in tensor.dims):
        raise _wrong_size(tensor, "a negative size", "sizes of 0 and more", where)
    count = math.prod(tensor.dims)
    if tensor.data_type in _COMPLEX:
        count *= 2
    elif tensor.data_type in _PACKED:
        count = -(-count * dtype.bitwidth // 8)
    if held and held != [field]:
        raise _wrong_size(tensor, held[0], field, where)
    found = len(getattr(tensor, field))
    if found != count and dtype != ir.DataType.UNDEFINED:
        raise _wrong_size(tensor, f"{found} values", f"{count} values", where)


def _check_sparse(sparse: onnx.SparseTensorProto, where: str) -> None:
    """The dense size and the parts; the indices themselves are ONNX's checker's."""
    values, dims = sparse.values, list(sparse.dims)
    if any(size < 0 for size in dims):
        raise _wrong_size(values, "a negative size", "sizes of 0 and more", where)
    dtype = dtype_of(values.data_type, f'the sparse tensor "{values.name}"', where)
    if dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED) or dtype.bitwidth < 8:
        raise _wrong_size(values, f"sparse {dtype.name}", "a sparse tensor of numbers", where)
    dense = math.prod(dims) * dtype.bitwidth // 8
    if dense > _DENSE_BYTES:
        raise InputError(
            f'the sparse tensor "{values.name}" is too large', where=where,
            got=f"{dense} bytes when it is dense", wanted=f"at most {_DENSE_BYTES}",
        )  # fmt: skip
    for part in (values, sparse.indices):
        if part.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(
                f'the sparse tensor "{values.name}" lies outside the file', where=where,
                hint="Save the model with its sparse tensors inside.",
            )  # fmt: skip


def check_finite(tensors: Iterable[tuple[str, ir.TensorProtocol]], where: str) -> None:
    """Passes weights without NaN and infinity. Nothing is copied but a chunk at a time."""
    for name, tensor in tensors:
        if tensor.dtype not in _MAGNITUDE:
            continue
        array = tensor.numpy()
        count = _count_not_finite(array, *_MAGNITUDE[tensor.dtype])
        if count:
            raise InputError(
                f'the weight "{name}" holds NaN or infinity', where=where,
                got=f"{count} of {array.size} values",
                hint="The training diverged: export an earlier checkpoint.",
            )  # fmt: skip


def _count_not_finite(array: Array, kind: Any, magnitude: int, infinity: int) -> int:
    """How many values have all bits of the exponent set (IEEE 754: infinity and NaN)."""
    bits = array.reshape(-1).view(kind)
    scratch = np.empty(min(_CHUNK, bits.size), kind)
    count = 0
    for begin in range(0, bits.size, _CHUNK):
        piece = bits[begin : begin + _CHUNK]
        found = np.bitwise_and(piece, kind(magnitude), out=scratch[: piece.size])
        if found.max() >= infinity:
            count += int((found >= infinity).sum())
    return count


def check_shapes(program: ir.Model, where: str) -> None:
    """Passes a graph without two contradictions that ONNX's inference leaves.

    It does not compare a kernel with the channels that it reads, and, in a graph with an operator
    that it does not know, what is declared of a value with what is inferred (onnx 1.23).
    """
    for node in program.graph.all_nodes():
        if node.domain or not node.inputs or node.inputs[0] is None:
            continue
        if node.op_type == "Identity" and node.outputs:
            _check_identity(node, where)
        elif node.op_type == "Conv" and len(node.inputs) > 1:
            _check_convolution(node, where)


def _check_identity(node: ir.Node, where: str) -> None:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or output.shape is None:
        return
    fits = len(source.shape) == len(output.shape) and all(
        one == other or not (isinstance(one, int) and isinstance(other, int))
        for one, other in zip(source.shape, output.shape, strict=True)
    )
    if not fits:
        raise InputError(
            "the shapes in this graph contradict each other", where=where,
            got=f'"{output.name}" is declared as {output.shape} and is "{source.name}" '
            f"{source.shape}", hint="Export the model again.",
        )  # fmt: skip


def _check_convolution(node: ir.Node, where: str) -> None:
    source, kernel = node.inputs[0], node.inputs[1]
    if source is None or kernel is None or source.shape is None or kernel.shape is None:
        return
    if len(source.shape) < 2 or len(kernel.shape) < 2:
        return
    channels, inner = source.shape[1], kernel.shape[1]
    if not isinstance(channels, int) or not isinstance(inner, int):
        return
    wanted = inner * attribute(node, "group", 1)
    if channels != wanted:
        raise InputError(
            f'the convolution "{node.name}" reads another number of channels than it is given',
            where=where, got=f"{channels} channels", wanted=f"{wanted} channels",
            hint="Export the model again.",
        )  # fmt: skip
