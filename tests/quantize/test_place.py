"""Q/DQ in the graph: where, with which numbers, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from qdq_graphs import Sketch

from edgekit.errors import InputError
from edgekit.models.model import Model, to_bytes
from edgekit.models.simplify import fold_batchnorm
from edgekit.models.source import load
from edgekit.quantize.dialects import TENSORRT, Dialect, onnxruntime_dialect, tensorrt_dialect
from edgekit.quantize.grids import activation_grid, weight_grid
from edgekit.quantize.observe import float_activations, observe
from edgekit.quantize.place import place, share_of_macs
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import Ranges, minmax
from edgekit.quantize.write import insert_qdq
from edgekit.values import Array, Batch, TensorSpec

QDQ = ("QuantizeLinear", "DequantizeLinear")
Reference = Callable[..., list[Array]]

AVX2 = onnxruntime_dialect(frozenset(), arm=False)
U8S8 = onnxruntime_dialect(frozenset({"avx512_vnni"}), arm=False)
S8S8 = onnxruntime_dialect(frozenset(), arm=True)
U8U8 = replace(U8S8, name="u8u8", weight="uint8")


class PlainSession:
    """A Session over onnxruntime as it comes, for observing."""

    def __init__(self, model: Model) -> None:
        self._session = onnxruntime.InferenceSession(
            to_bytes(model), providers=["CPUExecutionProvider"]
        )
        self.inputs, self.outputs = model.inputs, model.outputs
        self._feeds: dict[str, Array] = {}
        self._found: dict[str, Array] = {}

    def stage(self, feeds: Mapping[str, Array]) -> None:
        self._feeds = dict(feeds)

    def execute(self) -> None:
        names = [spec.name for spec in self.outputs]
        self._found = dict(zip(names, self._session.run(names, self._feeds), strict=True))

    def fetch(self) -> dict[str, Array]:
        return self._found

    def __enter__(self) -> PlainSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def observed(model: Model, images: Array, batch: int = 8) -> Ranges:
    batches = [Batch(inputs={"image": images[i : i + batch]}) for i in range(0, len(images), batch)]
    return observe(model, float_activations(model), batches, PlainSession)


def optimised_operators(model: Model, folder: Path) -> Counter[str]:
    """The operators after ONNX Runtime's own fusions."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # What it does on ARM by itself; on x86 it would turn int8 into uint8 first.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    return Counter(node.op_type for node in graph.node)


@pytest.fixture
def folded(residual: Model) -> Model:
    model, count = fold_batchnorm(residual)
    assert count == 5
    return model


@pytest.mark.parametrize("dialect", [TENSORRT, tensorrt_dialect("8.5"), AVX2, U8U8, U8S8, S8S8])
def test_outputs_stay_near_the_float_model(
    folded: Model, images: Array, reference: Reference, dialect: Dialect
) -> None:
    quantized, _ = insert_qdq(folded, observed(folded, images), dialect, minmax)
    expected = reference(folded, {"image": images})[0]
    found = reference(quantized, {"image": images})[0]
    noise = ((expected - found) ** 2).sum()
    assert 10 * np.log10((expected**2).sum() / noise) > 28


def test_every_operator_runs_on_integers_in_onnx_runtime(
    folded: Model, images: Array, tmp_path: Path
) -> None:
    quantized, report = insert_qdq(folded, observed(folded, images), U8U8, minmax)
    assert report.quantized == {
        "Conv": 5, "Add": 1, "Concat": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    found = optimised_operators(quantized, tmp_path)
    assert found["QLinearConv"] == 5
    assert found["QLinearAdd"] == found["QLinearConcat"] == found["QGemm"] == 1
    assert found["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "Add", "Gemm", "Relu", "FusedConv"} & set(found)


@pytest.mark.parametrize("dialect", [AVX2, U8U8], ids=lambda d: d.name)
def test_kernels_compute_what_the_emulation_does(
    folded: Model, images: Array, reference: Reference, dialect: Dialect
) -> None:
    quantized, _ = insert_qdq(folded, observed(folded, images), dialect, minmax)
    emulated = reference(quantized, {"image": images})[0]
    kernels = reference(quantized, {"image": images}, optimise=True)[0]
    assert np.abs(emulated - kernels).max() <= 0.02 * np.abs(emulated).max()


def test_tensorrt_quantizes_the_skip_of_a_residual_add_and_not_the_fused_convolution(
    folded: Model, images: Array
) -> None:
    quantized, _ = insert_qdq(folded, observed(folded, images), TENSORRT, minmax)
    add = next(node for node in quantized.graph if node.op_type == "Add")
    producers = [value.producer().op_type for value in add.inputs]
    assert producers == ["Conv", "DequantizeLinear"]


def test_tensorrt_has_zero_points_of_zero_and_float_biases(folded: Model, images: Array) -> None:
    quantized, _ = insert_qdq(folded, observed(folded, images), TENSORRT, minmax)
    pairs = [n for n in quantized.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 10
    for node in pairs:
        scale, zero = (value.const_value.numpy() for value in node.inputs[1:])
        assert zero.dtype == np.int8
        assert zero.shape == scale.shape
        assert not zero.any()
        assert (scale > 0).all()
    for node in quantized.graph:
        if node.op_type in ("Conv", "Gemm"):
            assert node.inputs[2].const_value.dtype.numpy() == np.float32


def test_before_tensorrt_10_weights_stay_float_behind_a_pair(folded: Model, images: Array) -> None:
    ranges = observed(folded, images)
    old, _ = insert_qdq(folded, ranges, tensorrt_dialect("8.6"), minmax)
    new, _ = insert_qdq(folded, ranges, tensorrt_dialect("10.3"), minmax)
    int8 = [v.const_value.dtype.numpy() == np.int8 and v.const_value.size > 100
            for model in (old, new) for v in model.graph.initializers.values()]  # fmt: skip
    assert sum(int8) == 6  # five kernels and the Gemm, in the new file alone
    assert len(to_bytes(old)) > 2 * len(to_bytes(new))


def test_concatenated_tensors_share_one_scale_for_tensorrt(folded: Model, images: Array) -> None:
    quantized, _ = insert_qdq(folded, observed(folded, images), TENSORRT, minmax)
    concat = next(node for node in quantized.graph if node.op_type == "Concat")
    scales = {float(v.producer().inputs[1].const_value.numpy()) for v in concat.inputs}
    assert len(scales) == 1


def test_int8_kernels_take_a_quarter_of_the_bytes(folded: Model, images: Array) -> None:
    quantized, _ = insert_qdq(folded, observed(folded, images), U8U8, minmax)
    weights = [n.inputs[1] for n in folded.graph if n.op_type in ("Conv", "Gemm")]
    stored = [
        n.inputs[1].producer().inputs[0] for n in quantized.graph if n.op_type in ("Conv", "Gemm")
    ]
    assert sum(v.const_value.nbytes for v in stored) * 4 == sum(
        v.const_value.nbytes for v in weights
    )
    assert not any(w.name in quantized.graph.initializers for w in weights)


def test_a_dead_channel_with_a_bias_keeps_its_bias(
    tmp_path: Path, images: Array, reference: Reference
) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    bias = np.array([0.1, -0.2, 3.0, 0.4], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w", "b"], ["y"], name="conv")],
        "dead",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    path = tmp_path / "dead.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    model = load(path)
    for dialect in (TENSORRT, U8U8, U8S8):
        quantized, _ = insert_qdq(model, observed(model, images), dialect, minmax)
        found = reference(quantized, {"image": images})[0]
        # An output of integers has steps of its own.
        scales = [n.inputs[1].const_value.numpy() for n in quantized.graph if n.op_type in QDQ]
        step = max(float(scale) for scale in scales if scale.ndim == 0)
        assert np.abs(found[:, 2] - 3.0).max() < 0.01 + step / 2


def test_a_graph_without_layers_is_refused(tmp_path: Path, images: Array) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["y"])],
        "bare",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 8, 8])],
    )
    path = tmp_path / "bare.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    model = load(path)
    with pytest.raises(InputError, match="no operator of this model can be quantized"):
        insert_qdq(model, observed(model, images), TENSORRT, minmax)


@given(
    low=st.floats(-1e4, 0), high=st.floats(0, 1e4), share=st.floats(0, 1),
    dialect=st.sampled_from([TENSORRT, U8U8, S8S8]),
)  # fmt: skip
def test_a_round_trip_errs_by_half_a_scale_inside_the_range(
    low: float, high: float, share: float, dialect: Dialect
) -> None:
    grid = activation_grid(low, high, dialect)
    value = np.float64(low + share * (high - low))
    integer = grid.quantize(np.asarray(value)).astype(np.float64)
    back = float(grid.scale) * (integer - float(grid.zero_point))
    # An affine grid's ends may lie half a step inside the range, since 0 must be exact.
    slack = 0.5 if dialect.symmetric else 1.0
    assert abs(back - value) <= slack * float(grid.scale) * (1 + 1e-4) + 1e-30
    assert float(grid.scale) * (float(grid.quantize(np.zeros(()))) - float(grid.zero_point)) == 0


def test_weight_scales_by_hand() -> None:
    weight = np.array([[1.27, -0.5], [0.0, 0.0], [-2.54, 2.0]], np.float32)
    grid = weight_grid(weight, 0, TENSORRT)
    assert grid.scale[[0, 2]] == pytest.approx([0.01, 0.02])
    assert grid.scale[1] > 0
    assert grid.quantize(weight).tolist() == [[127, -50], [0, 0], [-127, 100]]
    unsigned = weight_grid(weight, 0, U8U8)
    assert unsigned.quantize(weight).tolist() == [[255, 78], [128, 128], [1, 228]]


def test_the_specs_of_inputs_and_outputs_stay(folded: Model, images: Array) -> None:
    for dialect in (TENSORRT, U8U8):
        quantized, _ = insert_qdq(folded, observed(folded, images), dialect, minmax)
        assert quantized.inputs == folded.inputs
        assert quantized.outputs == (
            TensorSpec(name="logits", dtype="float32", shape=("batch", 5)),
        )


def drawn(tmp_path: Path, draw: Callable[[Sketch], list[str]], *, opset: int = 17) -> Model:
    g = Sketch(opset=opset)
    return prepared(g.model(tmp_path, draw(g)))


def quantized_operators(model: Model, dialect: Dialect, tmp_path: Path) -> Counter[str]:
    """What ONNX Runtime runs of the Model in this dialect, ranges from seeded noise."""
    rng = np.random.default_rng(3)
    shape = [size if isinstance(size, int) else 1 for size in model.inputs[0].shape]
    batches = [Batch(inputs={"x": rng.normal(size=shape).astype(np.float32)}) for _ in range(4)]
    ranges = observe(model, float_activations(model), batches, PlainSession)
    written, _ = insert_qdq(model, ranges, dialect, minmax)
    return optimised_operators(written, tmp_path)


def two_convs(activation: Callable[[Sketch, str], str]) -> Callable[[Sketch], list[str]]:
    def draw(g: Sketch) -> list[str]:
        y = activation(g, g.conv("x", (16, 16, 3, 3), name="first"))
        return [g.conv(y, (16, 16, 1, 1), name="second")]

    return draw


def relu6(g: Sketch, x: str) -> str:
    return g.op("Clip", x, g.constant(0.0), g.constant(6.0))


def silu(g: Sketch, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", x), name="silu")


def gelu(g: Sketch, x: str) -> str:
    erf = g.op("Erf", g.op("Div", x, g.constant(2**0.5)))
    return g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.constant(1.0))), g.constant(0.5))


def hard_swish(g: Sketch, x: str) -> str:
    return g.op("HardSwish", x)


def leaky(g: Sketch, x: str) -> str:
    return g.op("LeakyRelu", x, alpha=0.1)


@pytest.mark.parametrize("activation", [relu6, silu, gelu, hard_swish, leaky])
def test_tensorrt_has_nothing_between_a_convolution_and_its_activation(
    tmp_path: Path, activation: Callable[[Sketch, str], str]
) -> None:
    placement = place(drawn(tmp_path, two_convs(activation)), TENSORRT)
    (behind,) = set(placement.reads) - {"x"}
    assert placement.reads[behind] == frozenset({("second", 0)})
    assert behind == placement.weights["second"].source
    assert set(placement.integer) == {"first", "second"}


@pytest.mark.parametrize("dialect", [AVX2, U8U8, S8S8], ids=lambda d: d.name)
@pytest.mark.parametrize(
    ("activation", "kernels"),
    [
        (relu6, {"QLinearConv": 2}),
        (leaky, {"QLinearConv": 2, "QLinearLeakyRelu": 1}),
        (silu, {"QLinearConv": 2, "QLinearSigmoid": 1, "QLinearMul": 1}),
        (hard_swish, {"QLinearConv": 2, "HardSigmoid": 1, "Mul": 1}),
        (gelu, {"QLinearConv": 2, "Erf": 1}),
    ],
)
def test_convolutions_run_on_integers_in_onnx_runtime_whatever_the_activation(
    tmp_path: Path, dialect: Dialect, activation: Callable[[Sketch, str], str],
    kernels: dict[str, int],
) -> None:  # fmt: skip
    found = quantized_operators(drawn(tmp_path, two_convs(activation)), dialect, tmp_path)
    assert {op: found[op] for op in kernels} == kernels
    assert not {"Conv", "FusedConv", "Clip", "LeakyRelu"} & set(found)


def squeezed(g: Sketch) -> list[str]:
    wide = g.op("Relu", g.conv("x", (16, 16, 3, 3)))
    narrow = g.op("GlobalAveragePool", wide)
    gate = g.op("HardSigmoid", g.conv(narrow, (16, 16, 1, 1)))
    return [g.conv(g.op("Mul", wide, gate, name="gate"), (16, 16, 1, 1))]


@pytest.mark.parametrize("dialect", [TENSORRT, AVX2], ids=lambda d: d.name)
def test_squeeze_and_excitation_multiplies_integers(tmp_path: Path, dialect: Dialect) -> None:
    placement = place(drawn(tmp_path, squeezed), dialect)
    assert placement.integer["gate"] == "Mul"
    assert list(placement.integer.values()).count("Conv") == 3


def detector(g: Sketch) -> list[str]:
    """Boxes as the mean of a distribution, scores beside them, in one output."""
    body = g.op("Relu", g.conv("x", (16, 16, 3, 3)))
    boxes, scores = g.conv(body, (16, 16, 1, 1)), g.conv(body, (4, 16, 1, 1))
    boxes = g.op("Reshape", boxes, g.constant([1, 4, 4, 64], "int64"))
    boxes = g.op("Softmax", g.op("Transpose", boxes, perm=[0, 2, 1, 3]), axis=1)
    mean = g.constant(np.arange(4).reshape(1, 4, 1, 1))
    boxes = g.op("Conv", boxes, mean, name="mean")
    boxes = g.op("Reshape", boxes, g.constant([1, 4, 64], "int64"))
    boxes = g.op("Mul", boxes, g.constant(32.0), name="stride")
    scores = g.op("Sigmoid", g.op("Reshape", scores, g.constant([1, 4, 64], "int64")))
    return [g.op("Concat", boxes, scores, axis=1, name="parts")]


@pytest.mark.parametrize("dialect", [TENSORRT, AVX2], ids=lambda d: d.name)
def test_a_detectors_head_decodes_in_floating_point(tmp_path: Path, dialect: Dialect) -> None:
    model = drawn(tmp_path, detector)
    placement = place(model, dialect)
    assert list(placement.integer.values()).count("Conv") == 3
    assert "box decoding" in placement.left["mean"]
    assert "behind the last layer" in placement.left["parts"]
    assert "behind the last layer" in placement.left["stride"]
    assert not any("Concat" in name or "parts" in name for name in placement.reads)
    assert share_of_macs(model, placement) > 0.95


def test_every_node_left_has_a_reason(tmp_path: Path) -> None:
    for draw in (detector, squeezed, two_convs(gelu)):
        for dialect in (TENSORRT, AVX2):
            model = drawn(tmp_path, draw)
            placement = place(model, dialect)
            names = {node.name for node in model.graph}
            assert placement.left.keys() | placement.integer.keys() == names
            assert not placement.left.keys() & placement.integer.keys()
            assert all(placement.left.values())


def test_a_skip_that_no_integers_lead_to_is_quantized_for_its_add(tmp_path: Path) -> None:
    def draw(g: Sketch) -> list[str]:
        y = g.op("Relu", g.conv("x", (4, 16, 3, 3)))
        skip = g.op("Tanh", y, name="skip")
        added = g.op("Relu", g.op("Add", g.conv(y, (4, 4, 3, 3)), skip, name="join"))
        return [g.conv(added, (2, 4, 3, 3))]

    model = drawn(tmp_path, draw)
    for dialect in (TENSORRT, U8U8):
        found = place(model, dialect)
        assert found.integer["join"] == "Add"
        assert ("join", 1) in found.reads["skip.out"]


def test_a_shared_input_is_quantized_once(tmp_path: Path) -> None:
    def draw(g: Sketch) -> list[str]:
        return [g.op("Add", g.conv("x", (16, 16, 3, 3)), g.conv("x", (16, 16, 1, 1)))]

    placement = place(drawn(tmp_path, draw), TENSORRT)
    assert placement.reads["x"] is not None
    assert len(placement.reads["x"]) == 2


def test_excluded_nodes_stay_for_the_reason_given(tmp_path: Path) -> None:
    model = drawn(tmp_path, two_convs(relu6))
    placement = place(model, AVX2, excluded={"first": "it costs a point of accuracy"})
    assert placement.left["first"] == "it costs a point of accuracy"
    assert set(placement.integer) == {"second"}
    assert share_of_macs(model, placement) == pytest.approx(1 / 10)  # 1 x 1 against 3 x 3


def test_only_the_nearest_number_is_copied_by_a_resize(tmp_path: Path) -> None:
    def draw(mode: str) -> Callable[[Sketch], list[str]]:
        def drawing(g: Sketch) -> list[str]:
            y = g.op("Relu", g.conv("x", (16, 16, 3, 3)))
            y = g.op("Resize", y, "", g.constant([1, 1, 2, 2]), mode=mode, name="resize")
            return [g.conv(y, (16, 16, 1, 1))]

        return drawing

    near, linear = (place(drawn(tmp_path, draw(mode)), AVX2) for mode in ("nearest", "linear"))
    assert near.integer["resize"] == "Resize"
    assert any(len(group) == 2 for group in near.shared)
    assert "interpolates" in linear.left["resize"]


def test_a_matmul_with_a_bias_is_an_integer_kernel_with_a_float_output(tmp_path: Path) -> None:
    def draw(g: Sketch) -> list[str]:
        flat = g.op("Reshape", "x", g.constant([4, 256], "int64"))
        y = g.op("MatMul", flat, g.constant(g.noise(256, 10)))
        return [g.op("Softmax", g.op("Add", y, g.constant(g.noise(10))))]

    found = quantized_operators(drawn(tmp_path, draw), AVX2, tmp_path)
    assert found["QGemm"] == 1
    assert found["QuantizeLinear"] == 1
    assert not {"Gemm", "MatMul", "DequantizeLinear"} & set(found)


def test_a_convolution_that_is_an_output_keeps_its_name_and_runs_on_integers(
    tmp_path: Path,
) -> None:
    model = drawn(tmp_path, lambda g: [g.conv("x", (16, 16, 3, 3), name="last")])
    found = quantized_operators(model, AVX2, tmp_path)
    assert (found["QLinearConv"], found["Conv"]) == (1, 0)


def test_an_old_operator_set_is_raised_and_said(
    tmp_path: Path, images: Array, reference: Reference
) -> None:
    g = Sketch(opset=12)
    model = g.model(
        tmp_path, [g.conv("image", (4, 3, 3, 3))], shape=("n", 3, 8, 8), inputs=("image",)
    )
    quantized, report = insert_qdq(model, observed(model, images), U8S8, minmax)
    assert quantized.opset == 13
    assert "opset 12 raised to 13" in str(report)
    expected = reference(model, {"image": images})[0]
    found = reference(quantized, {"image": images})[0]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_gemm_with_alpha_and_beta_and_a_turned_weight_computes_the_same(
    tmp_path: Path, reference: Reference
) -> None:
    def draw(g: Sketch) -> list[str]:
        flat = g.op("Reshape", "x", g.constant([4, 256], "int64"))
        turned = g.op("Transpose", g.constant(g.noise(10, 256)), perm=[1, 0])
        return [g.op("Gemm", flat, turned, g.constant(g.noise(10)), alpha=0.5, beta=2.0)]

    g = Sketch()
    before = g.model(tmp_path, draw(g))
    after = prepared(before)
    x = {"x": np.random.default_rng(0).normal(size=(1, 16, 8, 8)).astype(np.float32)}
    assert reference(after, x)[0] == pytest.approx(reference(before, x)[0], abs=1e-5)
    placement = place(after, TENSORRT)
    assert list(placement.integer.values()) == ["Gemm"]


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (lambda g: [g.op("ConvTranspose", "x", g.constant(g.noise(16, 8, 2, 2)), group=2,
                         name="odd"), g.conv("x", (16, 16, 1, 1))], "grouped"),
        (lambda g: [g.op("MatMul", g.constant(g.noise(8, 8)), "x", name="odd"),
                    g.conv("x", (16, 16, 1, 1))], "first operand"),
        (lambda g: [g.op("MatMul", g.conv("x", (16, 16, 1, 1)), "x", name="odd")],
         "two activations"),
    ],
)  # fmt: skip
def test_what_cannot_have_integer_weights_is_left_with_the_reason(
    tmp_path: Path, draw: Callable[[Sketch], list[str]], reason: str
) -> None:
    assert reason in place(drawn(tmp_path, draw), TENSORRT).left["odd"]


def test_a_model_that_is_quantized_already_is_refused(folded: Model, images: Array) -> None:
    ranges = observed(folded, images)
    quantized, _ = insert_qdq(folded, ranges, TENSORRT, minmax)
    with pytest.raises(InputError, match="quantized already"):
        insert_qdq(quantized, ranges, TENSORRT, minmax)
