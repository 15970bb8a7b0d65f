"""Large tensors in and out of a serialized ONNX model, without protobuf holding their bytes.

A protobuf message is a row of fields: a tag (field number and wire type, a varint), then the
content, which for a nested message or bytes begins with its length (protobuf.dev, "Encoding").
`split` walks only the messages that are large themselves, so its time is that of the small rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import onnx

LARGE_BYTES = 1 << 16
"""Tensors of less than this stay in the message: a page of a map is not worth it."""

Buffer: TypeAlias = "bytes | memoryview"

_VARINT, _LENGTH = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
_DEEPEST = 100  # protobuf's own limit of nested messages

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _FUNCTION = range(6)
_NESTED: dict[int, dict[int, int]] = {
    _MODEL: {
        onnx.ModelProto.GRAPH_FIELD_NUMBER: _GRAPH,
        onnx.ModelProto.FUNCTIONS_FIELD_NUMBER: _FUNCTION,
    },
    _FUNCTION: {onnx.FunctionProto.NODE_FIELD_NUMBER: _NODE},
    _GRAPH: {
        onnx.GraphProto.NODE_FIELD_NUMBER: _NODE,
        onnx.GraphProto.INITIALIZER_FIELD_NUMBER: _TENSOR,
    },
    _NODE: {onnx.NodeProto.ATTRIBUTE_FIELD_NUMBER: _ATTRIBUTE},
    _ATTRIBUTE: {
        onnx.AttributeProto.T_FIELD_NUMBER: _TENSOR,
        onnx.AttributeProto.TENSORS_FIELD_NUMBER: _TENSOR,
        onnx.AttributeProto.G_FIELD_NUMBER: _GRAPH,
        onnx.AttributeProto.GRAPHS_FIELD_NUMBER: _GRAPH,
    },
}
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER
_DATA_LOCATION = onnx.TensorProto.DATA_LOCATION_FIELD_NUMBER
_EXTERNAL_DATA = onnx.TensorProto.EXTERNAL_DATA_FIELD_NUMBER
_BESIDE_RAW_DATA = {
    onnx.TensorProto.DIMS_FIELD_NUMBER, onnx.TensorProto.DATA_TYPE_FIELD_NUMBER,
    onnx.TensorProto.NAME_FIELD_NUMBER, onnx.TensorProto.DOC_STRING_FIELD_NUMBER,
    onnx.TensorProto.METADATA_PROPS_FIELD_NUMBER, _RAW_DATA,
}  # fmt: skip

Span: TypeAlias = tuple[memoryview, int, int]
"""A buffer, and where in it a message begins and ends."""

Field: TypeAlias = tuple[int, int, int, int, int]
"""Number, wire type, and where in the buffer the field, its content and what follows begin."""


def split(buffer: Buffer, token: str) -> tuple[bytes, list[memoryview]]:
    """The message without the `raw_data` of its large tensors, and these, not copied.

    Each of these tensors has external data at the location `TOKEN:INDEX` in place of its own, INDEX
    being its place in the list. `token` must be one that cannot be in the message.
    Raises ValueError for what is no protobuf message, or only a part of one.
    """
    whole = memoryview(buffer)
    payloads: list[memoryview] = []

    def take_out(payload: memoryview) -> bytes:
        payloads.append(payload)
        return _reference(f"{token}:{len(payloads) - 1}")

    pieces = _hollow((whole, 0, len(whole)), _MODEL, take_out, 0)
    return b"".join(pieces), payloads


def _hollow(
    span: Span, kind: int, take_out: Callable[[memoryview], bytes], depth: int
) -> list[Buffer]:
    """The pieces of one message; `take_out` says what stands for a payload."""
    if depth > _DEEPEST:
        raise ValueError(f"messages nested more than {_DEEPEST} deep")
    if kind == _TENSOR:
        return _hollow_tensor(span, take_out)
    whole, begin, end = span
    nested = _NESTED[kind]
    pieces: list[Buffer] = []
    kept = begin  # what lies between here and the next large message is taken over as it is
    for number, wire, start, content, after in _fields((whole, begin, end)):
        inner = nested.get(number) if wire == _LENGTH else None
        if inner is None or after - content < LARGE_BYTES:
            continue
        replaced = _hollow((whole, content, after), inner, take_out, depth + 1)
        pieces += [whole[kept:start], _prefix(number, sum(map(len, replaced))), *replaced]
        kept = after
    return [*pieces, whole[kept:end]]


def _hollow_tensor(span: Span, take_out: Callable[[memoryview], bytes]) -> list[Buffer]:
    whole, begin, end = span
    fields = list(_fields((whole, begin, end)))
    found = [field for field in fields if field[0] == _RAW_DATA]
    plain = all(field[0] in _BESIDE_RAW_DATA for field in fields)
    if not plain or len(found) != 1 or found[0][1] != _LENGTH:
        return [whole[begin:end]]  # protobuf's to read, as it is
    _, _, start, content, after = found[0]
    if after - content < LARGE_BYTES:
        return [whole[begin:end]]
    return [whole[begin:start], take_out(whole[content:after]), whole[after:end]]


def _reference(location: str) -> bytes:
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    content: bytes = tensor.SerializeToString(deterministic=True)
    return content


def join(hollow: bytes, payloads: Sequence[Buffer], token: str) -> list[Buffer]:
    """The pieces of the message that `split` with this token would take apart again."""
    pattern = token.encode()

    def filled(begin: int, end: int, kind: int) -> list[Buffer]:
        nested = _NESTED.get(kind, {})
        pieces: list[Buffer] = []
        kept = begin
        for number, wire, start, content, after in _fields((whole, begin, end)):
            inner = nested.get(number) if wire == _LENGTH else None
            refers = kind == _TENSOR and number in (_DATA_LOCATION, _EXTERNAL_DATA)
            if not refers and (inner is None or hollow.find(pattern, content, after) < 0):
                continue
            pieces.append(whole[kept:start])
            kept = after
            if inner is not None:
                replaced = filled(content, after, inner)
                pieces += [_prefix(number, sum(map(len, replaced))), *replaced]
            elif number == _EXTERNAL_DATA:
                payload = payloads[_index(whole[content:after])]
                pieces += [_prefix(_RAW_DATA, len(payload)), payload]
        return [*pieces, whole[kept:end]]

    whole = memoryview(hollow)
    return filled(0, len(hollow), _MODEL)


def _index(entry: memoryview) -> int:
    location = onnx.StringStringEntryProto.FromString(bytes(entry)).value
    return int(location.rpartition(":")[2])


def _fields(span: Span) -> Iterator[Field]:
    whole, place, end = span
    while place < end:
        start = place
        tag, place = _varint(whole, place, end)
        number, wire = tag >> 3, tag & 7
        content = place
        if wire == _LENGTH:
            length, content = _varint(whole, place, end)
            place = content + length
        elif wire == _VARINT:
            _, place = _varint(whole, place, end)
        elif wire in _FIXED_BYTES:
            place += _FIXED_BYTES[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {start}")
        if not number or place > end:
            raise ValueError(f"field {number} at byte {start} does not end within its message")
        yield number, wire, start, content, place


def _varint(whole: memoryview, place: int, end: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while place < end and shift < 64:
        byte = whole[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError(f"a number that does not end, at byte {place}")


def _prefix(number: int, length: int) -> bytes:
    """The tag and length that stand before a nested message or bytes."""
    return _encoded(number << 3 | _LENGTH) + _encoded(length)


def _encoded(value: int) -> bytes:
    """The number as a varint: seven bits a byte, the lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
