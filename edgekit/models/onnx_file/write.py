"""A program as an ONNX file: the weights stream from where they are, and are never all copied."""

from __future__ import annotations

import hashlib
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from edgekit import files
from edgekit.errors import InputError
from edgekit.models.onnx_file.carried import SparseTensor, stand_in, swap_tensors, to_hollow_proto
from edgekit.models.onnx_file.wire import LARGE_BYTES, Buffer, join

MOST_BYTES = (1 << 31) - 1
"""Protobuf reads no message of more."""
ONE_FILE_BYTES = 1_500_000_000
"""What has more weights than this is written as two files."""
_ALIGNMENT = 4096  # of a tensor in the data file: a page


def pieces_of(program: ir.Model, *, most_bytes: int | None = MOST_BYTES) -> list[Buffer]:
    """The ONNX file of a program, which is used up, in pieces; the weights are not copied.

    The same program gives the same bytes. Raises InputError above `most_bytes`.
    """
    token = secrets.token_hex(8)
    payloads: list[Buffer] = []

    def swap(tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
        if isinstance(tensor, SparseTensor):
            return stand_in(tensor)
        if isinstance(tensor, ir.ExternalTensor) or not _stays_inside(tensor):
            payloads.append(_content(tensor))
            return _reference(tensor, f"{token}:{len(payloads) - 1}")
        return None

    swap_tensors(program, swap)
    hollow = to_hollow_proto(program).SerializeToString(deterministic=True)
    pieces = join(hollow, payloads, token)
    total = sum(map(len, pieces))
    if most_bytes is not None and total > most_bytes:
        raise InputError(
            "the model is too large for one file", got=f"{total / 1e9:.1f} GB",
            wanted="less than 2 GiB, the most that protobuf reads",
            hint="Save it to a path: its weights are written beside it.",
        )  # fmt: skip
    return pieces


def weight_bytes(program: ir.Model) -> int:
    """The bytes of all dense initializers of numbers, those of subgraphs too."""
    values = (value for graph in program.graphs() for value in graph.initializers.values())
    tensors = (v.const_value for v in values if not isinstance(v.const_value, SparseTensor))
    return sum(t.nbytes for t in tensors if t is not None and t.dtype != ir.DataType.STRING)


def write(program: ir.Model, path: Path) -> str:
    """Puts the file in its place at once, and gives its SHA-256.

    Above `ONE_FILE_BYTES` the weights go to `NAME.onnx.data` beside it, which is moved into its
    place first; the SHA-256 is then that of the data and the file, one after the other.
    Raises as `files.write_bytes` does.
    """
    digest = hashlib.sha256()
    if weight_bytes(program) <= ONE_FILE_BYTES:
        pieces = pieces_of(program)
        with files.replacing(path) as partial, partial.open("wb") as stream:
            _write(stream, pieces, digest)
        return digest.hexdigest()
    data = path.with_name(f"{path.name}.data")
    with files.replacing(path) as partial, files.replacing(data) as partial_data:
        with partial_data.open("wb") as stream:
            _write(stream, _move_out(program, data.name), digest)
        with partial.open("wb") as stream:
            hollow = to_hollow_proto(program).SerializeToString(deterministic=True)
            _write(stream, [hollow], digest)
    return digest.hexdigest()


def _write(stream: BinaryIO, pieces: Iterable[Buffer], digest: hashlib._Hash) -> None:
    for piece in pieces:
        stream.write(piece)
        digest.update(piece)


def _move_out(program: ir.Model, location: str) -> Iterable[Buffer]:
    """The data file's pieces; by the last of them the program refers to it."""
    swap_tensors(program, lambda t: stand_in(t) if isinstance(t, SparseTensor) else None)
    offset = 0
    for graph in program.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or _stays_inside(tensor):
                continue
            padding = -offset % _ALIGNMENT
            content = _content(tensor)
            yield bytes(padding)
            yield content
            value.const_value = _reference(tensor, location, offset + padding, len(content))
            offset += padding + len(content)


def _stays_inside(tensor: ir.TensorProtocol) -> bool:
    if isinstance(tensor, ir.ExternalTensor) and str(tensor.location).startswith("edgekit."):
        return True
    return tensor.dtype == ir.DataType.STRING or tensor.nbytes < LARGE_BYTES


def _reference(
    tensor: ir.TensorProtocol, location: str, offset: int | None = None, length: int | None = None
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location, offset, length, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "", doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def _content(tensor: ir.TensorProtocol) -> Buffer:
    """The raw data of a tensor, not copied where the array in memory is just that."""
    if tensor.dtype.bitwidth >= 8 and sys.byteorder == "little":
        array = tensor.numpy()
        if array.flags.c_contiguous:
            return array.reshape(-1).view(np.uint8).data
    return tensor.tobytes()
