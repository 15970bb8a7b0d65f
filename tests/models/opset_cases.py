"""Networks of one operator, and what ONNX Runtime makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.models.model import Model, to_bytes
from edgekit.values import Array


@dataclass(frozen=True)
class Case:
    """One operator at one opset: the first input is fed, the rest are constants, "" is absent."""

    op: str
    opset: int
    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    to: int = 11  # the lowest opset that it is lowered to

    def __str__(self) -> str:
        text = "-".join(f"{k}={v}".replace(" ", "") for k, v in self.attributes.items())
        return f"{self.op}{self.opset}-{text}"[:70]


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return np.random.default_rng(1).uniform(0.5, 2, size=shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


def scales(*values: float) -> Array:
    return np.array(values, np.float32)


def proto_of(case: Case, *, dynamic: bool = False, ir_version: int = 0) -> onnx.ModelProto:
    names = ["" if array is None else f"i{n}" for n, array in enumerate(case.inputs)]
    outputs = [f"o{n}" for n in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name="it", **case.attributes)
    first = case.inputs[0]
    assert first is not None
    shape: list[int | str] = ["batch", *first.shape[1:]] if dynamic else [*first.shape]
    kind = helper.np_dtype_to_tensor_dtype(first.dtype)
    held = [
        numpy_helper.from_array(array, name)
        for name, array in zip(names[1:], case.inputs[1:], strict=True)
        if array is not None
    ]
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("i0", kind, shape)],
        [_output(case, name) for name in outputs], held,
    )  # fmt: skip
    imports = [helper.make_opsetid("", case.opset)]
    least = max(4, helper.find_min_ir_version_for(imports))
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version or least)


def _output(case: Case, name: str) -> onnx.ValueInfoProto:
    """Inference says the type, but for an operator that is a function of its context."""
    if case.op != "GroupNormalization":
        return helper.make_empty_tensor_value_info(name)
    assert case.inputs[0] is not None
    shape = [None] * case.inputs[0].ndim
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(proto: onnx.ModelProto) -> Model:
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    return Model(name="one", program=ir.from_proto(inferred))


def run(model: Model, *feeds: Array) -> list[Array]:
    """The outputs by ONNX Runtime without optimisations, of a file that the checker accepts."""
    _skip_where_onnxruntime_is_too_old(model)
    content = to_bytes(model)
    onnx.checker.check_model(onnx.load_model_from_string(content))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    named = {one.name: array for one, array in zip(session.get_inputs(), feeds, strict=True)}
    found: list[Array] = session.run(None, named)
    return found


def _skip_where_onnxruntime_is_too_old(model: Model) -> None:
    """ONNX Runtime 1.23 lacks kernels of opset 23, and dies of a Resize with a negative axis."""
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 24):
        return
    if model.opset > 22:
        pytest.skip("this ONNX Runtime lacks kernels above opset 22")
    for node in model.graph:
        axes = node.attributes.get("axes")
        if node.op_type == "Resize" and axes is not None and min(axes.as_ints()) < 0:
            pytest.skip("this ONNX Runtime dies of a Resize with a negative axis")


def assert_same(found: list[Array], expected: list[Array], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_allclose(
            one.astype(np.float64), other.astype(np.float64), rtol=tolerance, atol=tolerance
        )
