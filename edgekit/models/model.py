"""The Model: one ONNX graph, what goes in and comes out, and the steps that made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.models.onnx_file import write as onnx_writer
from edgekit.values import Array, Preprocessing, TensorSpec, preprocessing_to_json

HISTORY_KEY = "edgekit.history"
PREPROCESSING_KEY = "edgekit.preprocessing"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A graph that nobody changes: a step clones it (`editable`) and returns a new Model.

    `program` is the onnx_ir model; its weights are shared between clones, never written into.
    `history` names the steps that made it, oldest first.
    """

    name: str
    program: ir.Model
    preprocessing: Preprocessing | None = None
    history: tuple[str, ...] = ()

    @property
    def graph(self) -> ir.Graph:
        """The main graph, to read."""
        return self.program.graph

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return self.program.opset_imports.get("", 0)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The specs of the inputs, in the graph's order; a stored value is none (IR version 3)."""
        stored = self.graph.initializers
        return tuple(spec_of(value) for value in self.graph.inputs if value.name not in stored)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The specs of the outputs, in the graph's order."""
        return tuple(spec_of(value) for value in self.graph.outputs)


def editable(model: Model) -> ir.Model:
    """A clone of the graph that the caller may change; tensors are shared, not copied."""
    return model.program.clone()


def after_step(model: Model, program: ir.Model, step: str) -> Model:
    """The Model that `step` made of `model`: the new graph, one more line of history."""
    return replace(model, program=program, history=(*model.history, step))


def spec_of(value: ir.Value) -> TensorSpec:
    """The spec of a typed graph value; a dimension without a name or size is `?`."""
    dtype = str(value.dtype.numpy()) if value.dtype is not None else "?"
    shape = value.shape if value.shape is not None else ()
    # Some exporters write a dynamic dimension as -1 or 0.
    sizes = tuple(
        d if isinstance(d, int) and d > 0 else (getattr(d, "value", "") or "?") for d in shape
    )
    return TensorSpec(name=value.name or "", dtype=dtype, shape=sizes)


def constant_of(value: ir.Value | None) -> Array | None:
    """The array of an initializer or of a Constant node's output; None where it is computed."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """The sizes of a value all of whose dimensions are numbers, as an initializer's are."""
    return tuple(int(str(size)) for size in value.shape or ())


def parameters(model: Model) -> Iterator[tuple[str, Array]]:
    """Every floating-point initializer by name: what training may change."""
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            yield name, value.const_value.numpy()


def set_parameter(graph: ir.Graph, name: str, array: Array) -> None:
    """Gives the initializer `name` of an editable graph another array, its type and shape too."""
    value = graph.initializers[name]
    tensor = ir.Tensor(np.asarray(array, order="C"), name=name)
    value.const_value = tensor
    value.shape = ir.Shape(array.shape)
    value.type = ir.TensorType(tensor.dtype)


def add_parameter(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new initializer of an editable graph. The name must be free."""
    if name in graph.initializers:
        raise KeyError(name)
    value = ir.val(name, const_value=ir.Tensor(np.asarray(array, order="C"), name=name))
    graph.register_initializer(value)
    return value


def attribute(node: ir.Node, name: str, default: object = None) -> Any:
    """The Python value of a node's attribute: int, float, str, tuple, array or the default."""
    found = node.attributes.get(name)
    if found is None:
        return default
    if found.type == ir.AttributeType.TENSOR:
        return found.as_tensor().numpy()
    return found.value


def to_bytes(model: Model) -> bytes:
    """The ONNX file, history and preprocessing in its metadata; the same Model, the same bytes.

    Raises InputError for a model that is too large for one file.
    """
    return b"".join(onnx_writer.pieces_of(_with_metadata(model)))


def digest(model: Model) -> str:
    """The SHA-256 of `to_bytes`, in hexadecimal, without making them."""
    found = hashlib.sha256()
    for piece in onnx_writer.pieces_of(_with_metadata(model), most_bytes=None):
        found.update(piece)
    return found.hexdigest()


def save(model: Model, path: Path) -> str:
    """Writes the ONNX file at once and returns its SHA-256. Raises as `files.write_bytes` does.

    The weights are streamed; those of a model of more than 1.5 GB go to `NAME.onnx.data` beside it
    (`onnx_file.write`).
    """
    return onnx_writer.write(_with_metadata(model), path)


def _with_metadata(model: Model) -> ir.Model:
    program = editable(model)
    program.metadata_props[HISTORY_KEY] = json.dumps(model.history)
    if model.preprocessing is not None:
        stored = preprocessing_to_json(model.preprocessing)
        program.metadata_props[PREPROCESSING_KEY] = json.dumps(stored)
    return program
