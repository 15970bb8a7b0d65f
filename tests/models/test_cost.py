"""Costs by hand arithmetic; parameters and MACs of well-known networks as they are published."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import InputError
from edgekit.models.cost import node_costs, stored_numbers, survey, total_cost
from edgekit.models.cost.sizes import forms
from edgekit.models.model import Model, editable
from edgekit.models.source import load
from edgekit.values import Unknown

Size = int | str


def one_node(
    operator: str, inputs: list[list[Size]], outputs: int = 1, *, weights: dict[int, list[int]],
    opset: int = 17, domain: str = "", **attributes: object,
) -> Model:  # fmt: skip
    """One node whose inputs have these shapes; those in `weights` are stored."""
    names = iter(f"i{n}" for n in range(9))
    places: list[str] = []
    activations = iter(inputs)
    given, stored = [], []
    for place in range(len(inputs) + len(weights)):
        name = next(names)
        places.append(name)
        if place in weights:
            array = np.ones(weights[place], np.float32)
            stored.append(numpy_helper.from_array(array, name))
        else:
            shape = next(activations)
            given.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    results = [f"o{n}" for n in range(outputs)]
    node = helper.make_node(operator, places, results, name="one", domain=domain, **attributes)
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in results]
    graph = helper.make_graph([node], "g", given, outs, stored)
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return Model(name="one", program=ir.from_proto(proto))


def model_of(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[Size]],
    constants: dict[str, np.ndarray],
) -> Model:  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return Model(name="g", program=ir.from_proto(proto))


def test_macs_of_the_residual_network_by_hand(residual: Model) -> None:
    c, space = 16, 8 * 8
    convolutions = space * (3 * 9 * c + 9 * c * c + 9 * c * c + c * c + 9 * c * c)
    assert total_cost(residual).macs == convolutions + 2 * c * 5
    assert total_cost(residual, batch=4).macs == 4 * total_cost(residual).macs


def test_running_means_and_variances_are_counted_apart(residual: Model) -> None:
    c = 16
    kernels = 3 * 9 * c + 9 * c * c + 9 * c * c + c * c + 9 * c * c
    cost = total_cost(residual)
    assert cost.parameters == kernels + 5 * 2 * c + 2 * c * 5 + 5
    assert cost.statistics == 5 * 2 * c
    assert cost.weight_bytes == 4 * (cost.parameters + cost.statistics)


def test_activation_bytes_are_those_of_each_output(residual: Model) -> None:
    by_node = {cost.node: cost for cost in node_costs(residual)}
    assert by_node["stem"].activation_bytes == 16 * 64 * 4
    assert by_node["stem"].macs == 64 * 16 * 27
    assert by_node["sum"].macs == 0


def test_bytes_moved_are_inputs_weights_and_outputs(residual: Model) -> None:
    by_node = {found.node: found for found in survey(residual, forms(residual))}
    assert by_node["stem"].moved_bytes == 4 * (3 * 64 + 16 * 27 + 16 * 64)
    assert by_node["sum"].moved_bytes == 4 * 3 * 16 * 64
    assert by_node["flat"].moved_bytes == 0  # a view
    assert by_node["stem"].weights == ("stem.weight",)


X = [2, 6, 8, 8]


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        # 2 samples, 8 x 8 places, 12 outputs of 6 inputs under a kernel of 3 x 3.
        (lambda: one_node("Conv", [X], weights={1: [12, 6, 3, 3]}, pads=[1] * 4), 2 * 64 * 12 * 54),
        (lambda: one_node("Conv", [X], weights={1: [12, 6, 3, 3]}), 2 * 36 * 12 * 54),
        (lambda: one_node("Conv", [X], weights={1: [12, 2, 1, 1]}, group=3), 2 * 64 * 12 * 2),
        (lambda: one_node("Conv", [X], weights={1: [6, 1, 3, 3], 2: [6]}, group=6, pads=[1] * 4),
         2 * 64 * 6 * 9),
        # Each of 2 * 6 * 64 inputs is spread over 4 outputs under a kernel of 2 x 2.
        (lambda: one_node("ConvTranspose", [X], weights={1: [6, 4, 2, 2]}, strides=[2, 2]),
         2 * 6 * 64 * 4 * 4),
        (lambda: one_node("ConvTranspose", [X], weights={1: [6, 2, 2, 2]}, group=3),
         2 * 6 * 64 * 8),
        (lambda: one_node("Gemm", [[3, 5]], weights={1: [5, 7], 2: [7]}), 3 * 5 * 7),
        (lambda: one_node("Gemm", [[5, 3]], weights={1: [7, 5]}, transA=1, transB=1), 3 * 5 * 7),
        (lambda: one_node("MatMul", [[2, 4, 9, 8], [2, 4, 8, 9]], weights={}), 2 * 4 * 9 * 8 * 9),
        (lambda: one_node("MatMul", [[8], [8]], weights={}), 8),
        (lambda: one_node("Einsum", [[2, 9, 4, 8], [2, 7, 4, 8]], weights={},
                          equation="bqhd,bkhd->bhqk"), 2 * 4 * 9 * 7 * 8),
        (lambda: one_node("Einsum", [[2, 3, 9, 8], [8, 7]], weights={}, equation="...ij,jk->...ik"),
         2 * 3 * 9 * 8 * 7),
        (lambda: one_node("Einsum", [[9, 8]], weights={}, equation="ij->ji"), 0),
        # 5 steps of 2 samples; 4 gates of 3 from 6 inputs and 3 of the state.
        (lambda: one_node("LSTM", [[5, 2, 6]], weights={1: [1, 12, 6], 2: [1, 12, 3]},
                          hidden_size=3), 5 * 2 * 12 * (6 + 3)),
        (lambda: one_node("GRU", [[5, 2, 6]], weights={1: [2, 9, 6], 2: [2, 9, 3]}, hidden_size=3,
                          direction="bidirectional"), 5 * 2 * 2 * 9 * (6 + 3)),
        # 4 heads of 8: scores over 7 keys, then their sum of values of 5.
        (lambda: one_node("Attention", [[2, 4, 9, 8], [2, 4, 7, 8], [2, 4, 7, 5]], weights={},
                          opset=23), 2 * 4 * 9 * 7 * (8 + 5)),
        (lambda: one_node("Attention", [[2, 9, 32], [2, 7, 32], [2, 7, 20]], weights={}, opset=23,
                          q_num_heads=4, kv_num_heads=4), 2 * 4 * 9 * 7 * (8 + 5)),
        (lambda: one_node("Relu", [X], weights={}), 0),
    ],
)  # fmt: skip
def test_macs_of_an_operator_by_hand(model: Callable[[], Model], macs: int) -> None:
    assert total_cost(model()).macs == macs


def qdq_convolution() -> Model:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bf"]),
        helper.make_node("Conv", ["xf", "wf", "bf"], ["y"], name="conv"),
    ]
    constants = {
        "s": np.float32(0.1), "z": np.int8(0), "w": np.zeros((8, 3, 3, 3), np.int8),
        "ws": np.ones(8, np.float32), "wz": np.zeros(8, np.int8), "b": np.zeros(8, np.int32),
        "bs": np.float32(0.1),
    }  # fmt: skip
    return model_of(nodes, {"x": ["batch", 3, 10, 10]}, constants)


def test_a_quantized_model_has_the_parameters_and_macs_of_the_float_one() -> None:
    cost = total_cost(qdq_convolution())
    assert cost.macs == 64 * 8 * 27
    assert cost.parameters == 8 * 27 + 8  # the scales and zero points are settings
    assert cost.weight_bytes == 8 * 27 + 8 * 4 + 4 + 1 + 8 * 4 + 8 + 4
    conv = next(c for c in node_costs(qdq_convolution()) if c.node == "conv")
    assert (conv.macs, conv.parameters) == (cost.macs, cost.parameters)


@pytest.mark.parametrize("way", ["Transpose", "Identity", "Constant", "Reshape", "Cast"])
def test_a_weight_on_its_way_is_counted_once(way: str) -> None:
    weight = np.ones((4, 4), np.float32)
    stored = {"w": weight} if way != "Constant" else {}
    attributes = {"Transpose": {"perm": [1, 0]}, "Cast": {"to": TensorProto.FLOAT}}.get(way, {})
    if way == "Constant":
        mover = helper.make_node("Constant", [], ["m"], value=numpy_helper.from_array(weight))
    elif way == "Reshape":
        stored["s"] = np.array([4, 4], np.int64)
        mover = helper.make_node("Reshape", ["w", "s"], ["m"])
    else:
        mover = helper.make_node(way, ["w"], ["m"], **attributes)
    model = model_of([mover, helper.make_node("MatMul", ["x", "m"], ["y"])], {"x": [3, 4]}, stored)
    cost = total_cost(model)
    assert (cost.macs, cost.parameters) == (3 * 4 * 4, 16)
    assert cost.activation_bytes == 3 * 4 * 4  # the weight's way is no activation


def test_bounds_exponents_and_single_factors_are_no_parameters() -> None:
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["a"]),
        helper.make_node("Mul", ["a", "factor"], ["b"]),
        helper.make_node("Pow", ["b", "two"], ["c"]),
        helper.make_node("Mul", ["c", "scales"], ["d"]),
        helper.make_node("PRelu", ["d", "slope"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["f"]),
        helper.make_node("Add", ["f", "bias"], ["y"]),
    ]
    constants = {
        "low": np.float32(0), "high": np.float32(6), "factor": np.float32(0.125),
        "two": np.float32(2), "scales": np.ones(4, np.float32), "slope": np.ones(1, np.float32),
        "w": np.ones((4, 1), np.float32), "bias": np.ones(1, np.float32),
    }  # fmt: skip
    model = model_of(nodes, {"x": [3, 4]}, constants)
    assert stored_numbers(model).parameters == 4 + 1 + 4 + 1  # scales, slope, w, bias


def test_a_bias_that_the_exporter_made_is_no_parameter() -> None:
    def with_bias(name: str) -> int:
        node = helper.make_node("Conv", ["x", "conv.weight", name], ["y"])
        constants = {"conv.weight": np.ones((5, 3, 1, 1), np.float32), name: np.zeros(5, "f")}
        return stored_numbers(model_of([node], {"x": [1, 3, 2, 2]}, constants)).parameters

    assert with_bias("val_7") == 15
    assert with_bias("conv.bias") == 20


def test_two_readers_of_a_weight_pay_for_it_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    model = model_of(nodes, {"x": [3, 4]}, {"w": np.ones((4, 4), np.float32)})
    assert total_cost(model).parameters == 16
    assert [cost.parameters for cost in node_costs(model)] == [16, 16]


def test_what_is_dead_costs_nothing() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "dead.w"], ["dead"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    constants = {"w": np.ones((4, 2), np.float32), "dead.w": np.ones((4, 99), np.float32)}
    cost = total_cost(model_of(nodes, {"x": [3, 4]}, constants))
    assert (cost.macs, cost.parameters, cost.activation_bytes) == (3 * 4 * 2, 8, 3 * 2 * 4)


def test_an_operator_of_another_domain_is_unknown_and_the_rest_is_not() -> None:
    model = one_node("Magic", [[2, 3]], weights={1: [3, 3]}, domain="acme")
    (found,) = survey(model, forms(model))
    assert isinstance(found.macs, Unknown)
    assert '"acme"' in found.macs.reason
    assert found.parameters == 9


@pytest.mark.parametrize(("inside", "known"), [("MatMul", False), ("Add", True)])
def test_an_if_that_multiplies_inside_is_unknown(inside: str, known: bool) -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, [4, 4])
        node = helper.make_node(inside, ["x", "x"], [f"{name}.y"])
        return helper.make_graph([node], name, [], [out])

    node = helper.make_node(
        "If", ["c"], ["y"], name="choice", then_branch=branch("t"), else_branch=branch("e")
    )
    model = model_of([node], {"x": [4, 4]}, {"c": np.array(True)})
    (found,) = survey(model, forms(model))
    assert isinstance(found.macs, Unknown) is not known
    if not known:
        assert 'inside If "choice" is not counted' in str(found.macs)


def test_an_unknown_shape_is_named() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Cast", ["found"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["w", "real"], ["y"]),
    ]
    model = model_of(nodes, {"x": [3, 4]}, {"w": np.ones((5, 2), np.float32)})
    with pytest.raises(InputError, match=r'shape of "real" is not known'):
        total_cost(model)


def test_shapes_that_are_missing_are_inferred(residual: Model) -> None:
    program = editable(residual)
    for node in program.graph:
        for value in node.outputs:
            value.shape = value.type = None
    assert total_cost(Model(name="x", program=program), batch=3) == total_cost(residual, batch=3)


def shape_arithmetic() -> Model:
    """A reshape to (batch, tokens, channels), its sizes computed as exporters do it."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], strides=[4, 4]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"]),
        helper.make_node("Gather", ["s", "two"], ["h"]),
        helper.make_node("Gather", ["s", "three"], ["v"]),
        helper.make_node("Mul", ["h", "v"], ["n"]),
        helper.make_node("Unsqueeze", ["b", "axis"], ["b1"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["b1", "eight", "n1"], ["to"], axis=0),
        helper.make_node("Reshape", ["a", "to"], ["t"]),
        helper.make_node("Transpose", ["t"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "t"], ["y"]),
    ]
    constants = {
        "w": np.ones((8, 3, 4, 4), np.float32), "zero": np.int64(0), "two": np.int64(2),
        "three": np.int64(3), "axis": np.array([0]), "eight": np.array([8]),
    }  # fmt: skip
    return model_of(nodes, {"image": ["batch", 3, "height", "width"]}, constants)


def test_sizes_that_are_given_reach_through_shape_arithmetic() -> None:
    model = shape_arithmetic()
    known = forms(model, shapes={"image": (2, 3, 32, 48)})
    macs = [found.macs for found in survey(model, known)]
    tokens = (32 // 4) * (48 // 4)
    assert macs[0] == 2 * tokens * 8 * 3 * 16
    assert macs[-1] == 2 * tokens * tokens * 8


def test_a_dynamic_size_that_nobody_gave_is_unknown_by_its_name() -> None:
    model = shape_arithmetic()
    found = survey(model, forms(model))[0]
    assert isinstance(found.macs, Unknown)
    assert '"a"' in found.macs.reason
    assert found.parameters == 8 * 48


@pytest.mark.parametrize(
    ("batch", "shapes", "said"),
    [
        (None, {"picture": (1, 3, 8, 8)}, 'no input "picture"'),
        (None, {"image": (1, 4, 8, 8)}, "does not take this shape"),
        (None, {"image": (1, 3, 8)}, "does not take this shape"),
        (2, {"image": (1, 3, 8, 8)}, "contradict each other"),
        (0, {}, "at least one sample"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    batch: int | None, shapes: dict[str, tuple[int, ...]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        forms(shape_arithmetic(), batch=batch, shapes=shapes)


def test_a_batch_that_is_fixed_stays() -> None:
    model = one_node("Relu", [[1, 3]], weights={})
    with pytest.raises(InputError, match="the batch of the input"):
        forms(model, batch=8)


def test_a_size_of_minus_one_is_a_dynamic_one() -> None:
    model = one_node("Gemm", [[-1, 5]], weights={1: [5, 7]})
    assert total_cost(model, batch=3).macs == 3 * 5 * 7


def filler(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "giga_macs", "parameters"),
    [
        # torchvision's and timm's tables of weights: GFLOPS (of multiply-adds), num_params.
        ("resnet50", 4.09, 25_557_032),
        ("vgg16", 15.47, 138_357_544),
        ("mobilenet_v2", 0.30, 3_504_872),
        ("densenet121", 2.83, 7_978_856),
        ("resnext50_32x4d", 4.23, 25_028_904),
        ("regnet_y_400mf", 0.40, 4_344_144),
        ("squeezenet1_1", 0.35, 1_235_496),
        ("vit_tiny_patch16_224", 1.25, 5_717_416),
    ],
)
def test_known_networks_cost_what_is_published(
    shared_data: Path, tmp_path: Path, name: str, giga_macs: float, parameters: int
) -> None:
    folder = shared_data / "graphs"
    path = tmp_path / f"{name}.onnx"
    filler(folder).fill(folder / path.name, path)
    cost = total_cost(load(path))
    assert cost.macs == pytest.approx(giga_macs * 1e9, rel=0.01)
    assert cost.parameters == parameters
