"""Peak activation memory: by hand on a residual network, and against a plain simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.models.cost.liveness import LiveTensor, peak_activations
from edgekit.models.cost.sizes import forms
from edgekit.models.model import Model
from edgekit.values import Unknown


def model_of(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
) -> Model:  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return Model(name="g", program=ir.from_proto(proto))


def peak_of(model: Model, batch: int = 1) -> int:
    found = peak_activations(model, forms(model, batch=batch)).peak_bytes
    assert not isinstance(found, Unknown)
    return found


def test_the_peak_of_the_residual_network_by_hand(residual: Model) -> None:
    # A tensor of 16 channels is 16 * 8 * 8 * 4 = 4096 bytes, the image 3 * 8 * 8 * 4 = 768 and
    # stays. At the Concat: the image, left, right, and their concatenation of twice the size; the
    # shortcut is read last by right's convolution.
    found = peak_activations(residual, forms(residual))
    assert found.peak_bytes == 768 + 4096 + 4096 + 8192
    assert found.node == "both"
    assert found.live == (
        LiveTensor(name="both", nbytes=8192),
        LiveTensor(name="left.relu", nbytes=4096),
        LiveTensor(name="right.relu", nbytes=4096),
        LiveTensor(name="image", nbytes=768),
    )


def test_the_peak_grows_with_the_batch(residual: Model) -> None:
    assert peak_of(residual, batch=4) == 4 * (768 + 4096 + 4096 + 8192)


def test_a_shortcut_is_held_until_it_is_added() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Add", ["c", "a"], ["y"]),
    ]
    # x stays; at the Add a, c and y are there too.
    assert peak_of(model_of(nodes, {"x": [10]}, ["y"])) == 4 * 40
    nodes[3] = helper.make_node("Relu", ["c"], ["y"])
    # Without the shortcut: x and two of the chain.
    assert peak_of(model_of(nodes, {"x": [10]}, ["y"])) == 3 * 40


@pytest.mark.parametrize("view", ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"])
def test_a_view_takes_no_memory_and_keeps_its_source(view: str) -> None:
    shape = {"Reshape": [1, 6], "Squeeze": [0], "Unsqueeze": [0]}.get(view)
    constants = {} if shape is None else {"s": np.array(shape, np.int64)}
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node(view, ["a", *constants], ["v"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=1),  # a is held through its view
        helper.make_node("Add", ["v", "m"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 6]}, ["y"], constants)
    assert peak_of(model) == 24 + 24 + 4 + 24  # x, a, m, y


def test_what_follows_from_weights_and_what_is_dead_takes_none() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"]),
        helper.make_node("MatMul", ["x", "wt"], ["y"]),
        helper.make_node("MatMul", ["x", "w2"], ["dead"]),
    ]
    constants = {"w": np.zeros((5, 4), np.float32), "w2": np.zeros((4, 500), np.float32)}
    assert peak_of(model_of(nodes, {"x": [2, 4]}, ["y"], constants)) == 2 * 4 * 4 + 2 * 5 * 4


def test_an_output_that_is_read_on_stays_to_the_end() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["early"]),
        helper.make_node("Relu", ["early"], ["a"]),
        helper.make_node("Relu", ["a"], ["late"]),
    ]
    assert peak_of(model_of(nodes, {"x": [10]}, ["early", "late"])) == 4 * 40


def test_an_unknown_size_is_said_and_the_rest_is_counted() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Cast", ["where"], ["y"], to=TensorProto.FLOAT),
    ]
    found = peak_activations(model := model_of(nodes, {"x": [3, 4]}, ["y"]), forms(model))
    assert isinstance(found.peak_bytes, Unknown)
    assert '"where"' in found.peak_bytes.reason
    assert found.at_least_bytes == 48


def test_what_runs_inside_an_if_is_said() -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, [10])
        return helper.make_graph([helper.make_node("Relu", ["a"], [f"{name}.y"])], name, [], [out])

    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e")),
    ]
    found = peak_activations(model := model_of(nodes, {"x": [10]}, ["y"]), forms(model))
    assert isinstance(found.peak_bytes, Unknown)
    assert "inside If" in found.peak_bytes.reason
    # x, a (read inside the branches only), the condition of one byte, y.
    assert found.at_least_bytes == 40 + 40 + 1 + 40


@dataclass
class Dag:
    """A random graph as plain lists: node i reads `reads[i]` and is a view where `views[i]`."""

    inputs: list[int] = field(default_factory=list)
    reads: list[list[str]] = field(default_factory=list)
    views: list[bool] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


@st.composite
def dags(draw: st.DrawFn) -> Dag:
    dag = Dag(inputs=draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    names = [f"x{i}" for i in range(len(dag.inputs))]
    for i in range(draw(st.integers(1, 10))):
        view = draw(st.booleans())
        count = 1 if view else draw(st.integers(1, 3))
        dag.reads.append([draw(st.sampled_from(names)) for _ in range(count)])
        dag.views.append(view)
        names.append(f"v{i}")
    made = names[len(dag.inputs) :]
    dag.outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    return dag


def simulated(dag: Dag) -> int:
    """The peak by asking at each step, for every tensor, whether anyone needs it any more."""
    elements = {f"x{i}": size for i, size in enumerate(dag.inputs)}
    source = {f"x{i}": f"x{i}" for i in range(len(dag.inputs))}
    for i, (reads, view) in enumerate(zip(dag.reads, dag.views, strict=True)):
        elements[f"v{i}"] = sum(elements[name] for name in reads)
        source[f"v{i}"] = source[reads[0]] if view else f"v{i}"
    needed = set(dag.outputs)
    for i in reversed(range(len(dag.reads))):
        needed |= set(dag.reads[i]) if f"v{i}" in needed else set()
    runs = [i for i in range(len(dag.reads)) if f"v{i}" in needed]

    def is_there(memory: str, now: int) -> bool:
        names = [name for name, home in source.items() if home == memory]
        if memory.startswith("x"):
            return True
        if int(memory[1:]) > now:
            return False
        return any(
            name in dag.outputs
            or name == f"v{now}"
            or any(name in dag.reads[i] for i in runs if i >= now)
            or any(name == f"v{i}" for i in runs if i >= now)  # a view that is still to come
            for name in names
        )

    homes = {source[f"x{i}"] for i in range(len(dag.inputs))} | {source[f"v{i}"] for i in runs}
    return max(4 * sum(elements[m] for m in homes if is_there(m, now)) for now in runs)


@settings(max_examples=150, deadline=None)
@given(dags())
def test_the_peak_is_that_of_a_plain_simulation(dag: Dag) -> None:
    nodes = [
        helper.make_node("Identity", reads, [f"v{i}"])
        if view
        else helper.make_node("Concat", reads, [f"v{i}"], axis=0)
        for i, (reads, view) in enumerate(zip(dag.reads, dag.views, strict=True))
    ]
    inputs: dict[str, list[int | str]] = {f"x{i}": [size] for i, size in enumerate(dag.inputs)}
    assert peak_of(model_of(nodes, inputs, dag.outputs)) == simulated(dag)


def test_types_narrower_than_a_byte_are_packed() -> None:
    four_bits = helper.make_tensor_value_info("y", TensorProto.INT4, None)
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7])],
        [four_bits],
        [
            numpy_helper.from_array(np.float32(1), "s"),
            helper.make_tensor("z", TensorProto.INT4, [], [0]),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert peak_of(Model(name="g", program=ir.from_proto(proto))) == 28 + math.ceil(7 / 2)
