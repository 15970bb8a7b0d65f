"""From a file on disk to a Model: read, checked, every value with its shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from edgekit.errors import InputError
from edgekit.models.model import (
    HISTORY_KEY,
    PREPROCESSING_KEY,
    Model,
    attribute,
    constant_of,
)
from edgekit.models.simplify import clean
from edgekit.values import Preprocessing

_WHOLE_FILE = "Copy or export the file once more; nothing was changed."


def load(path: Path, *, name: str = "", preprocessing: Preprocessing | None = None) -> Model:
    """The Model of an `.onnx` file: checked, cleaned without renaming, shapes inferred.

    `preprocessing` overrides what the file's own metadata says of it.

    Raises InputError for a file that is missing, empty, truncated or no ONNX model, for external
    data that is missing, too short or outside the model's folder, for a graph that breaks ONNX's
    rules or whose shapes contradict each other, and for weights that are NaN or infinite.
    """
    proto = _read(path)
    _check_external_data(proto, path)
    _check(proto, path)
    proto = _infer_shapes(proto, path)
    program = _to_ir(proto, path)
    _check_finite(program, path)
    _check_convolutions(program, path)
    metadata = program.metadata_props
    model = Model(
        name=name or path.stem,
        program=program,
        preprocessing=preprocessing or _stored_preprocessing(metadata.get(PREPROCESSING_KEY)),
        history=tuple(json.loads(metadata.get(HISTORY_KEY, "[]"))),
    )
    return clean(model)


def from_bytes(content: bytes, *, name: str) -> Model:
    """The Model of a file that edgekit itself wrote (`models.model.to_bytes`), unchecked."""
    program = ir.from_proto(onnx.load_model_from_string(content))
    metadata = program.metadata_props
    return Model(
        name=name,
        program=program,
        preprocessing=_stored_preprocessing(metadata.get(PREPROCESSING_KEY)),
        history=tuple(json.loads(metadata.get(HISTORY_KEY, "[]"))),
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        content = path.read_bytes()
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
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise InputError(
            "this is not an ONNX model, or only a part of one", where=str(path),
            got=f"{len(content)} bytes that do not decode", hint=_WHOLE_FILE,
        ) from error  # fmt: skip
    if not proto.graph.node or not proto.ir_version:
        raise InputError(
            "this is not an ONNX model, or one without a single operator", where=str(path),
            got=f"{len(content)} bytes", hint="Give the path of an .onnx file.",
        )  # fmt: skip
    return proto


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for stored in node.attribute:
            yield stored.t
            yield from stored.tensors
            for subgraph in (stored.g, *stored.graphs):
                yield from _tensors(subgraph)


def _check_external_data(proto: onnx.ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    for tensor in _tensors(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        place = (folder / location).resolve()
        if not location or not place.is_relative_to(folder):
            raise InputError(
                f'the weights of "{tensor.name}" lie outside the model\'s folder',
                where=str(path), got=location or "no location", wanted=f"a file under {folder}",
                hint="Move the weights beside the model and save it again; "
                "edgekit does not follow paths out of a model's folder.",
            )  # fmt: skip
        if not place.is_file():
            raise InputError(
                f'the external weights of "{tensor.name}" are missing',
                where=str(path), wanted=str(place),
                hint="Copy the data file beside the model: an .onnx with external data is two.",
            )  # fmt: skip
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
        except ValueError as error:
            raise InputError(
                f'the place of "{tensor.name}" in its data file is not a number', where=str(path)
            ) from error
        size = place.stat().st_size
        if offset < 0 or length < 0 or offset + length > size:
            raise InputError(
                f'the external weights of "{tensor.name}" are cut short',
                where=str(place), got=f"{size} bytes", wanted=f"at least {offset + length} bytes",
                hint="Copy the data file once more.",
            )  # fmt: skip


def _check(proto: onnx.ModelProto, path: Path) -> None:
    try:
        # By path where weights are outside the file: the checker looks for them from there.
        onnx.checker.check_model(str(path) if _has_external(proto) else proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise InputError(
            "the graph breaks a rule of ONNX", where=str(path), got=_first_lines(error),
            hint="Export the model again; `onnx.checker.check_model` says the same.",
        ) from error  # fmt: skip


def _has_external(proto: onnx.ModelProto) -> bool:
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(proto.graph))


def _infer_shapes(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise InputError(
            "the shapes in this graph contradict each other", where=str(path),
            got=_first_lines(error), hint="Export the model again.",
        ) from error  # fmt: skip


def _to_ir(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        program = ir.from_proto(proto)
        ir.external_data.set_base_dir(program.graph, path.parent)
        return ir.external_data.load_to_model(program)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(
            "the graph cannot be read", where=str(path), got=_first_lines(error), hint=_WHOLE_FILE
        ) from error


def _check_finite(program: ir.Model, path: Path) -> None:
    import numpy as np

    for name, value in program.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        array = tensor.numpy()
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise InputError(
                f'the weight "{name}" holds NaN or infinity', where=str(path),
                got=f"{count} of {array.size} values", hint="The training diverged: export an "
                "earlier checkpoint.",
            )  # fmt: skip


def _check_convolutions(program: ir.Model, path: Path) -> None:
    """ONNX's shape inference does not compare a kernel with the channels that it reads."""
    for node in program.graph:
        if node.op_type != "Conv" or node.domain:
            continue
        source, kernel = node.inputs[0], constant_of(node.inputs[1])
        if source is None or source.shape is None or kernel is None or len(source.shape) < 2:
            continue
        channels, wanted = source.shape[1], kernel.shape[1] * attribute(node, "group", 1)
        if isinstance(channels, int) and channels != wanted:
            raise InputError(
                f'the convolution "{node.name}" reads another number of channels than it is given',
                where=str(path), got=f"{channels} channels", wanted=f"{wanted} channels",
                hint="Export the model again.",
            )  # fmt: skip


def _stored_preprocessing(text: str | None) -> Preprocessing | None:
    if text is None:
        return None
    stored = json.loads(text)
    return Preprocessing(
        scale=stored["scale"], mean=tuple(stored["mean"]), std=tuple(stored["std"])
    )


def _first_lines(error: Exception, count: int = 3) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count])[:400]
