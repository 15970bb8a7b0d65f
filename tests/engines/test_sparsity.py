"""2:4 weights, found in the graph as TensorRT would see them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engines.trt.sparsity import SparsityCount, count_sparse, is_two_of_four
from edgekit.values import Array


def two_of_four(shape: tuple[int, ...], axis: int) -> Array:
    """Seeded weights with two zeros in every four along the axis, at changing places."""
    rng = np.random.default_rng(0)
    weights = np.moveaxis(rng.uniform(1, 2, shape).astype(np.float32), axis, -1)
    rows = np.ascontiguousarray(weights).reshape(-1, 4)
    for row in rows:
        row[rng.permutation(4)[:2]] = 0
    return np.moveaxis(rows.reshape(weights.shape), -1, axis)


def count(
    op: str, weights: Array, x: list[int], quantized: bool = False, **attributes: int
) -> SparsityCount:
    name = "w"
    nodes = []
    stored = {"w": weights}
    if quantized:
        stored |= {"s": np.float32(0.1) * np.ones(()), "z": np.zeros((), np.int8)}
        nodes = [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        ]
        name = "d"
    nodes.append(helper.make_node(op, ["x", name], ["y"], name="n", **attributes))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a, a.dtype), k) for k, a in stored.items()],
    )  # fmt: skip
    return count_sparse(ir.from_proto(helper.make_model(graph, ir_version=9)).graph)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    ("op", "shape", "axis", "x", "attributes"),
    [
        ("Conv", (6, 8, 3, 3), 1, [1, 8, 5, 5], {}),
        ("Gemm", (5, 8), 1, [2, 8], {"transB": 1}),
        ("Gemm", (8, 5), 0, [2, 8], {}),
        ("MatMul", (8, 5), 0, [2, 8], {}),
    ],
)
def test_zeros_count_along_the_inputs_that_are_summed(
    op: str, shape: tuple[int, ...], axis: int, x: list[int], attributes: dict[str, int],
    quantized: bool,
) -> None:  # fmt: skip
    weights = two_of_four(shape, axis)
    assert count(op, weights, x, quantized, **attributes) == SparsityCount(sparse=1, able=1)
    weights[weights == 0] = 1.0
    assert count(op, weights, x, quantized, **attributes) == SparsityCount(sparse=0, able=1)


def test_zeros_along_the_outputs_are_not_two_of_four() -> None:
    weights = np.ones((8, 8), np.float32)
    weights[::2] = 0  # every other output is dead; two in four along axis 0 only
    assert count("Gemm", weights[:, :], [1, 8], transB=1).sparse == 0


@pytest.mark.parametrize(
    ("shape", "attributes"), [((8, 1, 3, 3), {"group": 8}), ((8, 6, 1, 1), {})]
)
def test_a_layer_that_cannot_be_two_of_four_is_not_counted(
    shape: tuple[int, ...], attributes: dict[str, int]
) -> None:
    x = [1, 8 if attributes else 6, 4, 4]
    assert count("Conv", np.zeros(shape, np.float32), x, **attributes).able == 0


def test_three_in_four_are_too_many() -> None:
    assert is_two_of_four(np.array([[1, 0, 0, 2, 0, 3, 4, 0]], np.float32))
    assert not is_two_of_four(np.array([[1, 0, 5, 2, 0, 3, 4, 0]], np.float32))
