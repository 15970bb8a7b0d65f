"""Float16 graphs: what is found to overflow or to harm, what the file holds, who accepts it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engines import onnxruntime, tensorrt_rtx
from edgekit.engines.base import EngineRequest
from edgekit.errors import InputError
from edgekit.models.model import Model, save, to_bytes
from edgekit.models.simplify import clean, fold_batchnorm
from edgekit.models.source import from_bytes
from edgekit.quantize.dialects import TENSORRT_STRONG
from edgekit.quantize.fp16 import Fp16Limits, Fp16Report, strong_typed, to_fp16
from edgekit.quantize.observe import float_activations, observe
from edgekit.quantize.ranges import choice
from edgekit.quantize.write import insert_qdq
from edgekit.targets import load_target
from edgekit.values import Array, Batch, run

open_session = partial(onnxruntime.open_model, threads=1)


def network(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], *, shape: Sequence[object],
    outputs: Sequence[str] = ("y",), kind: int = TensorProto.FLOAT, opset: int = 17,
) -> Model:  # fmt: skip
    """A Model with one input, x, and constants that are float32 unless they are integers."""
    stored = [
        numpy_helper.from_array(
            np.asarray(array, np.float32) if np.asarray(array).dtype.kind == "f" else array, name
        )
        for name, array in constants.items()
    ]
    graph = helper.make_graph(
        list(nodes), "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        stored,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return from_bytes(onnx.shape_inference.infer_shapes(proto).SerializeToString(), name="net")


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=output, **attributes)


def converted(
    model: Model, x: Array, *, keep_io: bool = True, limits: Fp16Limits | None = None
) -> tuple[onnx.ModelProto, Fp16Report]:
    """The float16 file, found valid and with strictly inferred types, and the report."""
    batches = [Batch(inputs={model.inputs[0].name: x})]
    half, report = to_fp16(model, batches, open_session, keep_io=keep_io, limits=limits)
    return valid(half), report


def valid(model: Model) -> onnx.ModelProto:
    proto = onnx.load_from_string(to_bytes(model))
    onnx.checker.check_model(proto, full_check=True)
    made_by = {name: one for one in proto.graph.node for name in one.output}
    for one in proto.graph.node:
        before = made_by.get(one.input[0]) if one.op_type == "Cast" else None
        assert before is None or before.op_type != "Cast"
    return proto


def outputs_of(model: onnx.ModelProto | Model, x: Array) -> dict[str, Array]:
    content = to_bytes(model) if isinstance(model, Model) else model.SerializeToString()
    with onnxruntime.open_bytes(content, threads=1, optimise=False) as session:
        return run(session, {session.inputs[0].name: x})


def kinds(proto: onnx.ModelProto) -> dict[str, int]:
    """The element type of each tensor, by name."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    typed = [*inferred.input, *inferred.output, *inferred.value_info]
    found = {value.name: value.type.tensor_type.elem_type for value in typed}
    return found | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def relative(a: Array, b: Array) -> float:
    return float(np.sqrt(np.square(a - b).sum() / np.square(b).sum()))


def test_where_nothing_harms_every_node_is_float16(residual: Model, images: Array) -> None:
    proto, report = converted(residual, images)
    assert report.left == {}
    # conftest: 5 convolutions, each with its BatchNormalization, 5 Relu, and five single nodes.
    assert report.half == {
        "Conv": 5, "BatchNormalization": 5, "Relu": 5, "Add": 1, "Concat": 1,
        "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    assert report.casts == 2
    assert {t.data_type for t in proto.graph.initializer} == {TensorProto.FLOAT16}
    assert [(n.op_type, n.input[0]) for n in proto.graph.node if n.op_type == "Cast"] == [
        ("Cast", "image"), ("Cast", "logits.fp16"),
    ]  # fmt: skip
    assert kinds(proto)["image"] == kinds(proto)["logits"] == TensorProto.FLOAT
    found, wanted = outputs_of(proto, images), outputs_of(residual, images)
    assert relative(found["logits"], wanted["logits"]) < 2e-3


def test_the_error_is_that_of_rounding_each_tensor_to_float16() -> None:
    model = network([node("Mul", "x c", "z"), node("Exp", "z", "y")], {"c": 0.1}, shape=[64])
    x = np.linspace(-3, 3, 64, dtype=np.float32)
    _, report = converted(model, x)

    def half(values: Array) -> Array:
        return values.astype(np.float16).astype(np.float32)

    rounded = half(np.exp(half(half(x) * half(np.float32(0.1)))))
    wanted = np.exp(x * np.float32(0.1))
    assert report.errors == {"y": pytest.approx(relative(rounded, wanted), rel=1e-2)}


def scaling(factor: float) -> Model:
    nodes = [
        node("Relu", "x", "before"), node("Mul", "before up", "large"),
        node("Mul", "large down", "small"), node("Neg", "small", "y"),
    ]  # fmt: skip
    return network(nodes, {"up": factor, "down": 1 / factor}, shape=["n", 4])


def test_nodes_around_a_tensor_that_overflows_stay_in_float32_and_say_so() -> None:
    x = np.array([[1, 20, 50, 100]], np.float32)
    proto, report = converted(scaling(1000.0), x)
    assert report.left == {
        "large": 'it makes "large", which reaches 1e+05; float16 ends at 65504',
        "small": 'it reads "large", which reaches 1e+05; float16 ends at 65504',
    }
    assert report.half == {"Relu": 1, "Neg": 1}
    assert kinds(proto)["large"] == TensorProto.FLOAT
    assert kinds(proto)["before"] == TensorProto.FLOAT16
    assert report.casts == 4  # x, before the first Mul, behind the second, y
    np.testing.assert_allclose(outputs_of(proto, x)["y"], -x, rtol=1e-3)


@pytest.mark.parametrize(("headroom", "left"), [(1.0, 0), (2.0, 2)])
def test_headroom_is_kept_for_data_that_is_larger(headroom: float, left: int) -> None:
    x = np.array([[1, 20, 50, 100]], np.float32)
    _, report = converted(scaling(400.0), x, limits=Fp16Limits(headroom=headroom))  # 40,000
    assert len(report.left) == left


def test_a_sum_that_overflows_inside_a_kernel_is_found() -> None:
    model = network([node("GlobalAveragePool", "x", "y")], {}, shape=["n", 2, 32, 32])
    fine, large = (np.full((1, 2, 32, 32), v, np.float32) for v in (20, 100))
    assert converted(model, fine)[1].left == {}
    with pytest.raises(InputError, match="no node of this network can be float16") as refused:
        converted(model, large)
    assert "the sum inside may reach 1.02e+05" in refused.value.got  # 32 * 32 * 100


def test_a_constant_that_becomes_zero_is_found_by_what_it_does() -> None:
    nodes = [
        node("Sub", "x x", "nothing"), node("Add", "nothing eps", "variance"),
        node("Sqrt", "variance", "deviation"), node("Mul", "x tiny", "scaled"),
        node("Div", "scaled deviation", "quotient"), node("Relu", "quotient", "y"),
    ]  # fmt: skip
    model = network(nodes, {"eps": 1e-10, "tiny": 1e-3}, shape=["n", 4])
    x = np.array([[0.5, 1, 2, 3]], np.float32)
    proto, report = converted(model, x)
    assert report.left["variance"].endswith('alone changes "y" to infinity or NaN')
    assert report.half["Relu"] == 1
    assert report.errors["y"] < 0.01
    np.testing.assert_allclose(outputs_of(proto, x)["y"], x * 100, rtol=5e-3)


def test_what_cancels_afterwards_stays_in_float32() -> None:
    nodes = [
        node("Relu", "x", "before"), node("Add", "before shift", "shifted"),
        node("Sub", "shifted shift", "back"), node("Neg", "back", "y"),
    ]  # fmt: skip
    model = network(nodes, {"shift": 1024.0}, shape=["n", 64])  # float16 steps by 1 up there
    x = np.random.default_rng(0).uniform(0, 2, (4, 64)).astype(np.float32)
    proto, report = converted(model, x)
    assert set(report.left) == {"shifted", "back"}
    assert 'float16 of "shifted" alone' in report.left["back"]
    assert report.half == {"Relu": 1, "Neg": 1}
    assert relative(outputs_of(proto, x)["y"], -x) < 1e-3


def test_every_tensor_that_harms_is_found_among_many_that_do_not() -> None:
    nodes, before = [], "x"
    for k in range(12):
        if k in (3, 8):
            nodes += [
                node("Add", f"{before} shift", f"up{k}"),
                node("Sub", f"up{k} shift", f"n{k}"),
            ]
        else:
            nodes.append(node("Neg" if k % 2 else "Identity", before, f"n{k}"))
        before = f"n{k}"
    nodes.append(node("Neg", before, "y"))
    model = network(nodes, {"shift": 1024.0}, shape=["n", 64])
    x = np.random.default_rng(0).uniform(0, 2, (4, 64)).astype(np.float32)
    proto, report = converted(model, x)
    assert set(report.left) == {"up3", "n3", "up8", "n8"}
    assert all("alone" in reason for reason in report.left.values())
    assert report.errors["y"] < 1e-3
    assert relative(outputs_of(proto, x)["y"], outputs_of(model, x)["y"]) < 1e-3


def test_a_search_that_runs_out_keeps_more_and_says_that_it_did_not_tell_apart() -> None:
    nodes = [
        node("Add", "x shift", "up"),
        node("Sub", "up shift", "down"),
        node("Neg", "down", "y"),
    ]
    model = network(nodes, {"shift": 1024.0}, shape=["n", 64])
    x = np.random.default_rng(0).uniform(0, 2, (4, 64)).astype(np.float32)
    _, thorough = converted(model, x)
    assert set(thorough.left) == {"up", "down"}
    with pytest.raises(InputError, match="no node of this network can be float16"):
        converted(model, x, limits=Fp16Limits(most_runs=0))


def test_each_part_of_a_concatenated_output_is_held_to_the_limit() -> None:
    nodes = [
        node("Mul", "x large", "boxes"), node("Add", "x shift", "shifted"),
        node("Sub", "shifted shift", "scores"), node("Concat", "boxes scores", "y", axis=1),
    ]  # fmt: skip
    model = network(nodes, {"large": 300.0, "shift": 1024.0}, shape=["n", 8])
    x = np.random.default_rng(0).uniform(0, 2, (4, 8)).astype(np.float32)
    _, report = converted(model, x)
    assert set(report.errors) == {"boxes", "scores"}
    assert 'changes "scores"' in report.left["scores"]


def test_an_output_of_indices_is_judged_by_what_was_compared() -> None:
    nodes = [node("Mul", "x c", "z"), node("ArgMax", "z", "y", axis=1)]
    model = network(nodes, {"c": 0.3}, shape=["n", 8], kind=TensorProto.INT64)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    proto, report = converted(model, x)
    assert set(report.errors) == {"z"}
    assert (outputs_of(proto, x)["y"] == outputs_of(model, x)["y"]).all()


def test_sizes_are_computed_in_float32() -> None:
    nodes = [
        node("Shape", "x", "sizes"), node("Cast", "sizes", "as_float", to=TensorProto.FLOAT),
        node("Mul", "as_float one", "scaled"),
        node("Cast", "scaled", "wanted", to=TensorProto.INT64), node("Neg", "x", "negative"),
        node("Reshape", "negative wanted", "y"),
    ]  # fmt: skip
    model = network(nodes, {"one": 1.0}, shape=["n", 3001])
    x = np.ones((1, 3001), np.float32)  # 3001 is 3000 in float16
    proto, report = converted(model, x)
    assert report.left == dict.fromkeys(
        ("as_float", "scaled"), "it computes sizes, not activations"
    )
    assert outputs_of(proto, x)["y"].shape == (1, 3001)


def test_inputs_and_outputs_can_be_float16_too(residual: Model, images: Array) -> None:
    proto, report = converted(residual, images, keep_io=False)
    assert report.casts == 0
    assert kinds(proto)["image"] == kinds(proto)["logits"] == TensorProto.FLOAT16
    found = outputs_of(proto, images.astype(np.float16))["logits"]
    assert found.dtype == np.float16
    assert relative(found.astype(np.float32), outputs_of(residual, images)["logits"]) < 2e-3


def test_a_weight_that_float32_reads_too_is_stored_twice() -> None:
    nodes = [node("Mul", "x w", "a"), node("Mul", "a up", "large"), node("Mul", "large w", "b"),
             node("Mul", "b down", "c"), node("Neg", "c", "y")]  # fmt: skip
    model = network(nodes, {"w": [0.5, 0.25], "up": 1e5, "down": 1e-5}, shape=["n", 2])
    x = np.ones((2, 2), np.float32)
    proto, report = converted(model, x)
    assert "large" in report.left
    assert "a" not in report.left
    assert kinds(proto)["w"] == TensorProto.FLOAT
    assert kinds(proto)["w.fp16"] == TensorProto.FLOAT16


def test_weights_that_lose_bits_or_all_are_counted() -> None:
    nodes = [node("MatMul", "x w", "y")]
    model = network(nodes, {"w": [[1.0], [1e-5], [2e-8], [0.0]]}, shape=["n", 4])
    _, report = converted(model, np.ones((1, 4), np.float32))
    # The smallest normal number is 6.1e-5, the smallest of all 6.0e-8.
    assert (report.weights, report.subnormal, report.flushed) == (4, 1, 1)


def test_a_node_with_a_graph_of_its_own_reads_float32() -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["z"], [name])], name, [], [result])

    nodes = [
        node("Mul", "x c", "z"),
        node("If", "yes", "chosen", then_branch=branch("t", "Neg"), else_branch=branch("e", "Abs")),
        node("Add", "chosen z", "y"),
    ]  # fmt: skip
    model = network(nodes, {"c": 0.5, "yes": np.array(True)}, shape=["n", 4])
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    batches = [Batch(inputs={"x": x})]
    limits = Fp16Limits(most_error=10)  # the answer is 0: every error is large beside it
    half, report = to_fp16(model, batches, open_session, limits=limits)
    assert report.left == {"chosen": "it runs a graph of its own"}
    assert report.half == {"Mul": 1, "Add": 1}
    assert np.abs(outputs_of(half, x)["y"]).max() < 1e-2


def test_an_operator_that_the_runtime_lacks_stays_with_the_reason_given() -> None:
    model = network([node("Exp", "x", "z"), node("Neg", "z", "y")], {}, shape=["n", 4])
    limits = Fp16Limits(lacking={"Exp": "this runtime has it in float32 only"})
    _, report = converted(model, np.ones((1, 4), np.float32), limits=limits)
    assert report.left == {"z": "this runtime has it in float32 only"}


def test_ranges_that_were_observed_are_not_looked_for_again(residual: Model, images: Array) -> None:
    batches = [Batch(inputs={"image": images})]
    ranges = observe(residual, float_activations(residual), batches, open_session)
    opened: list[list[str]] = []

    def counting(model: Model) -> onnxruntime.OnnxRuntimeSession:
        opened.append([spec.name for spec in model.outputs])
        return open_session(model)

    to_fp16(residual, batches, counting, ranges=ranges)
    assert opened == [["logits"]]


def test_without_a_sample_it_refuses(residual: Model) -> None:
    with pytest.raises(InputError, match="there is no sample"):
        to_fp16(residual, [], open_session)


def test_a_sample_with_nan_is_refused_by_the_tensor_that_it_reaches(residual: Model) -> None:
    broken = np.full((1, 3, 8, 8), np.nan, np.float32)
    with pytest.raises(InputError, match='"image" becomes NaN'):
        converted(residual, broken)


def test_a_network_of_integers_is_refused() -> None:
    nodes = [node("Shape", "x", "y")]
    model = network(nodes, {}, shape=["n", 4], kind=TensorProto.INT64)
    with pytest.raises(InputError, match="no output of this network"):
        converted(model, np.ones((1, 4), np.float32))


def test_an_error_that_float16_cannot_meet_is_refused(residual: Model, images: Array) -> None:
    with pytest.raises(InputError, match="float16"):
        converted(residual, images[:4], limits=Fp16Limits(most_error=1e-7))


@pytest.fixture
def quantized(residual: Model, images: Array) -> Model:
    folded, _ = fold_batchnorm(clean(residual))
    batches = [Batch(inputs={"image": images})]
    ranges = observe(folded, float_activations(folded), batches, open_session)
    return insert_qdq(folded, ranges, TENSORRT_STRONG, choice("minmax"))[0]


def test_around_qdq_all_is_float16_and_casts_stand_at_the_ends(
    quantized: Model, images: Array
) -> None:
    proto = valid(strong_typed(quantized))
    typed = kinds(proto)
    assert proto.opset_import[0].version >= 19
    for one in proto.graph.node:
        if one.op_type == "Conv":
            assert {typed[name] for name in one.input} == {TensorProto.FLOAT16}
        if one.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert typed[one.input[1]] == TensorProto.FLOAT16
            assert typed[one.input[2]] == TensorProto.INT8
    assert sum(one.op_type == "Cast" for one in proto.graph.node) == 2


@pytest.mark.skipif(
    tuple(map(int, metadata.version("onnxruntime").split(".")[:2])) < (1, 24),
    reason="older kernels of ONNX Runtime round a float16 QuantizeLinear otherwise",
)
def test_a_float16_graph_around_qdq_computes_nearly_the_same(
    quantized: Model, images: Array
) -> None:
    proto = valid(strong_typed(quantized))
    found, wanted = (outputs_of(one, images)["logits"] for one in (proto, quantized))
    # Some values fall on the other side of a step: a part of the noise of quantization itself.
    assert relative(found, wanted) < 0.05


def test_the_pairs_around_a_node_in_float32_stay_in_float32_with_it(quantized: Model) -> None:
    proto = valid(strong_typed(quantized, kept={"first": "asked for"}))
    made_by = {output: one for one in proto.graph.node for output in one.output}
    kept = next(one for one in proto.graph.node if one.name == "first")
    assert made_by[kept.input[0]].op_type == "DequantizeLinear"
    assert made_by[kept.input[1]].op_type == "DequantizeLinear"
    assert {kinds(proto)[kept.input[k]] for k in (0, 1)} == {TensorProto.FLOAT}
    # The skip branch reads the same integers in float16.
    added = next(one for one in proto.graph.node if one.op_type == "Add")
    assert {kinds(proto)[name] for name in added.input} == {TensorProto.FLOAT16}


def test_harm_in_a_quantized_graph_is_that_of_float16_not_of_the_steps(
    quantized: Model, images: Array
) -> None:
    proto, report = converted(quantized, images)
    assert report.left == {}
    assert max(report.errors.values()) < 3e-3
    assert any(one.op_type == "QuantizeLinear" for one in proto.graph.node)


def quantized_product(scale: Sequence[float], stored: Array) -> Model:
    """x through Q/DQ of scale 0.1, times integers with a scale for each column, plus a bias."""
    nodes = [
        node("QuantizeLinear", "x s z", "x.q"), node("DequantizeLinear", "x.q s z", "x.dq"),
        node("DequantizeLinear", "w ws wz", "w.dq", axis=1),
        node("DequantizeLinear", "b bs bz", "b.dq", axis=0), node("Gemm", "x.dq w.dq b.dq", "y"),
    ]  # fmt: skip
    columns = stored.shape[1]
    constants = {
        "s": np.float32(0.1), "z": np.int8(0), "w": stored, "ws": np.asarray(scale, np.float32),
        "wz": np.zeros(columns, np.int8), "b": np.full(columns, 2000, np.int32),
        "bs": np.full(columns, 5e-4, np.float32), "bz": np.zeros(columns, np.int32),
    }  # fmt: skip
    return network(nodes, constants, shape=["n", stored.shape[0]])


def test_a_scale_under_float16_is_settled_and_its_integers_rounded_anew() -> None:
    stored = np.array([[100, 100], [-64, -64]], np.int8)
    proto = valid(strong_typed(quantized_product([2.0**-26, 2.0**-5], stored)))
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    weight = next(one for one in proto.graph.node if one.output[0] == "w.dq")
    # 2^-24 is the smallest float16: a column on a scale four times too small has a quarter of it.
    assert arrays[weight.input[1]].tolist() == [2.0**-24, 2.0**-5]
    assert arrays[weight.input[0]].tolist() == [[25, 100], [-16, -64]]


def test_an_integer_bias_becomes_float16() -> None:
    proto = valid(strong_typed(quantized_product([0.5], np.array([[3], [4]], np.int8))))
    gemm = next(one for one in proto.graph.node if one.op_type == "Gemm")
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert arrays[gemm.input[2]].dtype == np.float16
    assert arrays[gemm.input[2]].tolist() == [1.0]  # 2000 * 5e-4
    x = np.array([[1.0, 2.0]], np.float32)
    assert outputs_of(proto, x)["y"].item() == pytest.approx(1 + 1 * 1.5 + 2 * 2, rel=1e-3)


def test_a_graph_without_qdq_is_not_for_strong_types(residual: Model) -> None:
    with pytest.raises(InputError, match="has no QuantizeLinear"):
        strong_typed(residual)


@pytest.mark.rtx
@pytest.mark.skipif(not tensorrt_rtx.is_installed(), reason="needs the rtx extra")
@pytest.mark.parametrize("precision", ["fp16", "int8", "mixed"])
def test_tensorrt_rtx_builds_the_float16_graph(
    residual: Model, quantized: Model, images: Array, tmp_path: Path, precision: str
) -> None:
    if precision == "int8":
        model = strong_typed(quantized)
    else:
        kept = {"Relu": "as if"} if precision == "mixed" else {}
        limits = Fp16Limits(lacking=kept)
        batches = [Batch(inputs={"image": images})]
        model, _ = to_fp16(residual, batches, open_session, limits=limits)
    save(model, tmp_path / "model.onnx")
    request = EngineRequest(
        model_path=tmp_path / "model.onnx", name="net", target=load_target("rtx-3060"),
        precision="int8" if precision == "int8" else "fp16", batch=(1, 1, 4),
    )  # fmt: skip
    compiled = tensorrt_rtx.compile_model(request, tmp_path / "engine")
    assert {spec.dtype for spec in (*compiled.inputs, *compiled.outputs)} == {"float32"}
