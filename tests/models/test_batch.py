"""A fixed batch is freed where samples stay alone, and refused where they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engines import onnxruntime
from edgekit.errors import InputError
from edgekit.models.batch import fixed_batch, free_batch
from edgekit.models.model import Model
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.values import Array, run

Reference = Callable[..., list[Array]]


def outputs(model: Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    with onnxruntime.open_model(model) as session:
        return run(session, feeds)


def floats(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


def loaded(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], folder: Path, *, size: int = 1,
    opset: int = 17,
) -> Model:  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(proto), folder / "fixed.onnx")
    return clean(load(folder / "fixed.onnx"))


def node(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


def assert_free(model: Model, reference: Reference) -> None:
    freed = free_batch(model, run=outputs)
    assert freed.inputs[0].shape[0] == "batch"
    assert fixed_batch(freed) == 0
    size = fixed_batch(model)
    x = floats(6 * size, *[int(s) for s in model.inputs[0].shape[1:]])
    name = model.inputs[0].name
    (found,) = reference(freed, {name: x})
    alone = [reference(model, {name: part})[0] for part in np.split(x, 6)]
    assert np.allclose(found, np.concatenate(alone), atol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_reshapes_with_the_batch_written_in_follow_it(
    size: int, tmp_path: Path, reference: Reference
) -> None:
    nodes = [
        node("Conv", ["x", "kernel"], "c", pads=[1, 1, 1, 1]),
        node("Reshape", ["c", "heads"], "h"),
        node("Transpose", ["h"], "t", perm=[0, 2, 1]),
        node("Reshape", ["t", "merged"], "m"),
        node("MatMul", ["m", "matrix"], "p"),
        node("Reshape", ["p", "back"], "y"),
    ]
    constants = {
        "kernel": floats(8, 4, 3, 3), "heads": whole(size, 8, -1), "merged": whole(size * 36, 8),
        "matrix": floats(8, 3), "back": whole(size, 36, 3),
    }  # fmt: skip
    assert_free(loaded(nodes, constants, tmp_path, size=size), reference)


@pytest.mark.parametrize("opset", [13, 17])
def test_a_token_that_joins_each_sample_is_repeated(
    opset: int, tmp_path: Path, reference: Reference
) -> None:
    nodes = [
        node("Reshape", ["x", "flat"], "f"),
        node("Concat", ["token", "f"], "j", axis=1),
        node("Add", ["j", "place"], "y"),
    ]
    constants = {"flat": whole(1, 4, 36), "token": floats(1, 1, 36), "place": floats(1, 5, 36)}
    assert_free(loaded(nodes, constants, tmp_path, opset=opset), reference)


@pytest.mark.parametrize("opset", [13, 18])
def test_sizes_of_a_resize_lose_the_batch(opset: int, tmp_path: Path, reference: Reference) -> None:
    nodes = [node("Resize", ["x", "", "", "sizes"], "y", mode="linear")]
    constants = {"sizes": whole(1, 4, 12, 9)}
    assert_free(loaded(nodes, constants, tmp_path, opset=opset), reference)


def test_a_dynamic_batch_is_left_alone(residual: Model) -> None:
    model = clean(residual)
    assert fixed_batch(model) == 0
    assert free_batch(model, run=outputs) is model


def test_samples_that_influence_each_other_are_refused(tmp_path: Path) -> None:
    nodes = [
        node("ReduceMean", ["x"], "m", axes=[0], keepdims=1),
        node("Sub", ["x", "m"], "s"),
        node("Add", ["s", "x"], "y"),
    ]
    model = loaded(nodes, {}, tmp_path)
    with pytest.raises(InputError, match="fixed at 1") as caught:
        free_batch(model, run=outputs)
    assert "depends on the other ones" in caught.value.got


def test_a_place_counted_from_the_start_of_the_data_is_refused(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "all"], "f"), node("Gather", ["f", "places"], "y")]
    constants = {"all": whole(144), "places": whole(*range(12)).reshape(1, 12)}
    model = loaded(nodes, constants, tmp_path)
    with pytest.raises(InputError, match="fixed at 1"):
        free_batch(model, run=outputs)
