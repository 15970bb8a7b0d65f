"""Clean-up keeps names; folding keeps numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import InternalError
from edgekit.models.model import Model, parameters
from edgekit.models.simplify import clean, fold_batchnorm, name_global_pooling, simplify
from edgekit.models.source import load
from edgekit.values import Array

Reference = Callable[..., list[Array]]


def relative_error(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_folding_batchnorm_keeps_the_outputs(
    residual: Model, images: Array, reference: Reference
) -> None:
    folded, count = fold_batchnorm(residual)
    assert count == 5
    assert "BatchNormalization" not in {node.op_type for node in folded.graph}
    expected, found = (reference(m, {"image": images})[0] for m in (residual, folded))
    assert relative_error(found, expected) < 1e-5
    assert folded.outputs == residual.outputs


def test_a_convolution_read_twice_is_not_folded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], name="bn"),
        helper.make_node("Add", ["c", "n"], ["y"], name="add"),
    ]
    ones = np.ones(4, np.float32)
    graph = helper.make_graph(
        nodes, "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")]
        + [numpy_helper.from_array(ones, name) for name in "gbmv"],
    )  # fmt: skip
    path = tmp_path / "twice.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    assert fold_batchnorm(load(path))[1] == 0


def test_cleaning_drops_dead_nodes_and_identities_and_keeps_every_used_parameter(
    residual_path: Path,
) -> None:
    proto = onnx.load(residual_path)
    names = {tensor.name for tensor in proto.graph.initializer}
    proto.graph.node.extend(
        [
            helper.make_node("Sigmoid", ["stem.relu"], ["nowhere"], name="dead"),
            helper.make_node("Identity", ["image"], ["same"], name="identity"),
        ]
    )
    onnx.save(proto, residual_path)
    model = clean(load(residual_path))
    assert not {"dead", "identity"} & {node.name for node in model.graph}
    assert {name for name, _ in parameters(model)} == names


@pytest.mark.parametrize(("axes", "renamed"), [([2, 3], 1), ([-1, -2], 1), ([1], 0), ([2], 0)])
def test_a_mean_over_all_space_is_global_pooling(
    tmp_path: Path, reference: Reference, axes: list[int], renamed: int
) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=1)],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None, None, None])],
        [numpy_helper.from_array(np.array(axes, np.int64), "axes")],
    )
    path = tmp_path / "mean.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    model = load(path)
    renamed_model = name_global_pooling(model)
    assert [n.op_type for n in renamed_model.graph].count("GlobalAveragePool") == renamed
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    expected, found = (reference(m, {"x": x})[0] for m in (model, renamed_model))
    assert relative_error(found, expected) < 1e-6


def test_simplify_runs_onnxsim_in_a_child_and_keeps_the_outputs(
    residual: Model, images: Array, reference: Reference
) -> None:
    pytest.importorskip("onnxsim", reason="needs the compress extra")
    simpler, report = simplify(
        residual, run=lambda m: {"logits": reference(m, {"image": images})[0]}
    )
    assert report.left_alone == ""
    assert report.batchnorms_folded == 5
    assert report.nodes_after < report.nodes_before
    assert simpler.history[-1] == "onnxsim"
    expected, found = (reference(m, {"image": images})[0] for m in (residual, simpler))
    assert relative_error(found, expected) < 1e-5


def test_an_onnxsim_that_does_not_end_leaves_the_folded_graph(
    residual: Model, images: Array, reference: Reference
) -> None:
    simpler, report = simplify(
        residual, run=lambda m: {"logits": reference(m, {"image": images})[0]}, timeout_s=0.001
    )
    assert "did not end" in report.left_alone
    assert "BatchNormalization" not in {node.op_type for node in simpler.graph}


@pytest.mark.parametrize(("size", "is_refused"), [(1e-9, False), (1.0, True)])
def test_outputs_that_are_nearly_zero_are_not_held_to_their_last_bits(
    residual: Model, size: float, is_refused: bool
) -> None:
    outputs = itertools.chain(
        [np.full((1, 3), size)], itertools.repeat(np.full((1, 3), 1.3 * size))
    )

    def simplified() -> None:
        simplify(residual, run=lambda model: {"y": next(outputs)})

    if not is_refused:
        simplified()
        return
    with pytest.raises(InternalError, match="changed the outputs"):
        simplified()
