"""An ONNX file in: every part of it, checked before it is believed, its weights mapped.

Large tensors are views into the mapped file (`wire.split`), or into its external data: nothing is
copied until a step gives a tensor another array. So the file must not be written into while a Model
of it is in use; replacing it, as edgekit itself always does, is safe.
"""

from __future__ import annotations

import json
import mmap
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from edgekit.errors import InputError
from edgekit.models.model import HISTORY_KEY, PREPROCESSING_KEY, Model
from edgekit.models.onnx_file import child
from edgekit.models.onnx_file.carried import SparseTensor, to_program
from edgekit.models.onnx_file.checks import (
    check_finite,
    check_messages,
    check_shapes,
    check_types,
    tensor_bytes,
)
from edgekit.models.onnx_file.external import ExternalFiles, map_file
from edgekit.models.onnx_file.messages import messages
from edgekit.models.onnx_file.wire import LARGE_BYTES, Buffer, split
from edgekit.values import Preprocessing, preprocessing_from_json

_WHOLE_FILE = "Copy or export the file once more; nothing was changed."


def load(path: Path, *, name: str = "", preprocessing: Preprocessing | None = None) -> Model:
    """The Model of an `.onnx` file as it is, checked, and the shapes that can be inferred added.

    `preprocessing` overrides what the file's own metadata says of it. Nothing is cleaned up
    (`simplify.clean` does that), and nothing is lost: `model.save` writes every part again.

    Raises InputError for a file that is missing, empty, truncated or no ONNX model, for external
    data that is missing, too short or outside the model's folder, for a graph that breaks ONNX's
    rules or whose shapes contradict each other, for weights that are NaN or infinite, and for what
    could not be saved again; ResourceError for a graph that takes the checker too much memory or
    time.
    """
    where = str(path)
    read = _Read(_map(path), path, trusted=False)
    if not read.proto.graph.node or not read.proto.ir_version:
        raise InputError(
            "this is not an ONNX model, or one without a single operator", where=where,
            got=f"{read.size} bytes", hint="Give the path of an .onnx file.",
        )  # fmt: skip
    inferred = child.check_and_infer(_for_checker(read.proto, read.token), where=where)
    declared = _add_shapes(read.proto.graph, onnx.ModelProto.FromString(inferred).graph)
    check_types(read.proto.graph, where)
    model = read.model(name or path.stem, declared)
    check_finite(_weights(model.program, read.maps), where)
    check_shapes(model.program, where)
    if preprocessing is None:
        return model
    return Model(
        name=model.name, program=model.program, preprocessing=preprocessing, history=model.history
    )


def from_bytes(content: bytes, *, name: str) -> Model:
    """The Model of a file that edgekit itself wrote (`models.model.to_bytes`), unchecked.

    Its large tensors are views into `content`.
    """
    return _Read(content, Path(name), trusted=True).model(name, {})


def reopen(path: Path, *, name: str) -> Model:
    """The Model of a file that edgekit itself wrote (`models.model.save`), mapped, unchecked."""
    return _Read(_map(path), path, trusted=True).model(name, {})


class _Read:
    """A parsed file: the proto without its large tensors, and these.

    In the proto each refers to `TOKEN:INDEX`, whether it was in the file or beside it.
    """

    def __init__(self, content: Buffer, path: Path, *, trusted: bool) -> None:
        self.where = str(path)
        self.size = len(content)
        self.token = secrets.token_hex(8)
        self.proto, self.payloads = _parse(content, self.token, self.where)
        if not trusted:
            sizes = [len(payload) for payload in self.payloads]
            check_messages(self.proto, self.token, sizes, self.where)
        external = ExternalFiles(path)
        self._take_in(external)
        whole = content if isinstance(content, memoryview) else memoryview(content)
        self.maps = [whole, *external.maps.values()]

    def _take_in(self, external: ExternalFiles) -> None:
        """Takes what is beside the file; small tensors, and those for training, into the proto."""
        for info in self.proto.training_info:
            self._take_tensors_in(info, external, keep=True)
        self._take_tensors_in(self.proto, external, keep=False)

    def _take_tensors_in(self, message: Message, external: ExternalFiles, *, keep: bool) -> None:
        for tensor in messages(message):
            if not isinstance(tensor, onnx.TensorProto):
                continue
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            if any(entry.value.startswith(self.token) for entry in tensor.external_data):
                continue
            content = external.content(tensor, tensor_bytes(tensor, self.where))
            del tensor.external_data[:]
            if keep or len(content) < LARGE_BYTES:
                tensor.ClearField("data_location")
                tensor.raw_data = bytes(content)
                continue
            location = f"{self.token}:{len(self.payloads)}"
            self.payloads.append(content)
            tensor.external_data.add(key="location", value=location)

    def model(self, name: str, declared: dict[str, bytes]) -> Model:
        """The Model; the proto is used up."""
        program = to_program(self.proto, self._mapped, declared, where=self.where)
        metadata = program.metadata_props
        return Model(
            name=name,
            program=program,
            preprocessing=_stored_preprocessing(metadata.get(PREPROCESSING_KEY), self.where),
            history=_stored_history(metadata.get(HISTORY_KEY), self.where),
        )

    def _mapped(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
        if not isinstance(tensor, ir.ExternalTensor):
            return None
        payload = self.payloads[int(str(tensor.location).rpartition(":")[2])]
        sizes = [int(str(size)) for size in tensor.shape]
        if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
            stored = onnx.TensorProto(name=tensor.name, dims=sizes, data_type=tensor.dtype.value)
            stored.raw_data = bytes(payload)
            stored.doc_string = tensor.doc_string or ""
            return ir.serde.deserialize_tensor(stored)
        return ir.Tensor(
            np.frombuffer(payload, tensor.dtype.numpy()).reshape(sizes), tensor.dtype,
            name=tensor.name, doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )  # fmt: skip


def _map(path: Path) -> memoryview:
    try:
        content = map_file(path)
    except FileNotFoundError as error:
        raise InputError(
            "there is no such model file", where=str(path),
            hint="Give the path of an .onnx file; in a recipe it is relative to the recipe.",
        ) from error  # fmt: skip
    except OSError as error:
        raise InputError(
            "the model file cannot be read", where=str(path), got=error.strerror or str(error)
        ) from error
    if not content:
        raise InputError("the model file is empty", where=str(path), hint=_WHOLE_FILE)
    return content


def _parse(content: Buffer, token: str, where: str) -> tuple[onnx.ModelProto, list[memoryview]]:
    try:
        hollow, payloads = split(content, token)
        return onnx.ModelProto.FromString(hollow), payloads
    except (ValueError, DecodeError) as error:
        raise InputError(
            "this is not an ONNX model, or only a part of one", where=where,
            got=f"{len(content)} bytes that do not decode", hint=_WHOLE_FILE,
        ) from error  # fmt: skip


def _for_checker(proto: onnx.ModelProto, token: str) -> bytes:
    """The model without weights: each large tensor is external, in a file that the child has."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in messages(copy):
        if not isinstance(tensor, onnx.TensorProto):
            continue
        if tensor.ByteSize() >= LARGE_BYTES and tensor.data_type != onnx.TensorProto.STRING:
            for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(field)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=token)
        for entry in tensor.external_data:
            entry.value = child.WEIGHTS
    content: bytes = copy.SerializeToString()
    return content


def _add_shapes(own: onnx.GraphProto, inferred: onnx.GraphProto) -> dict[str, bytes]:
    """Gives the values of a graph their inferred types; what it declared otherwise, by name."""
    declared: dict[str, bytes] = {}
    known = {info.name: info for info in own.value_info}
    outputs = {info.name for info in own.output}
    for info in inferred.value_info:
        if info.name in known:
            _refine(known[info.name], info, declared)
        elif info.name not in outputs:
            own.value_info.add().CopyFrom(info)
    for mine, theirs in zip(own.output, inferred.output, strict=True):
        _refine(mine, theirs, declared)
    for node, other in zip(own.node, inferred.node, strict=True):
        for attribute, found in zip(node.attribute, other.attribute, strict=True):
            pairs = [(attribute.g, found.g)] if attribute.HasField("g") else []
            pairs += zip(attribute.graphs, found.graphs, strict=True)
            for graph, inner in pairs:
                _add_inner_shapes(graph, inner)
    return declared


def _refine(
    own: onnx.ValueInfoProto, inferred: onnx.ValueInfoProto, declared: dict[str, bytes]
) -> None:
    if own.type != inferred.type:
        declared[own.name] = own.type.SerializeToString(deterministic=True)
        own.type.CopyFrom(inferred.type)


def _add_inner_shapes(own: onnx.GraphProto, inferred: onnx.GraphProto) -> None:
    """The same for a subgraph, where what is declared stays."""
    known = {info.name for info in (*own.value_info, *own.output)}
    own.value_info.extend(info for info in inferred.value_info if info.name not in known)


def _weights(program: ir.Model, maps: list[memoryview]) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """The initializers; what was read of a map is given back to the system before the next."""
    for name, value in program.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if isinstance(tensor, SparseTensor):
            yield name, ir.serde.deserialize_tensor(tensor.proto.values)
            continue
        yield name, tensor
        if tensor.nbytes >= LARGE_BYTES:
            for whole in maps:
                if isinstance(whole.obj, mmap.mmap):
                    whole.obj.madvise(mmap.MADV_DONTNEED)


def _stored_preprocessing(text: str | None, where: str) -> Preprocessing | None:
    if text is None:
        return None
    try:
        return preprocessing_from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise _damaged(PREPROCESSING_KEY, str(error), where) from error


def _stored_history(text: str | None, where: str) -> tuple[str, ...]:
    if text is None:
        return ()
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(HISTORY_KEY, str(error), where) from error
    if not isinstance(stored, list) or not all(isinstance(step, str) for step in stored):
        raise _damaged(HISTORY_KEY, text, where)
    return tuple(stored)


def _damaged(key: str, got: str, where: str) -> InputError:
    return InputError(
        "what edgekit once wrote into this file's metadata is damaged", where=f"{where}: {key}",
        got=got[:200], hint="Take that entry out of the file's metadata.",
    )  # fmt: skip
