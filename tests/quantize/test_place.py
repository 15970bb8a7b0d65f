"""Q/DQ in the graph: where, with which numbers, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import InputError
from edgekit.models.model import Model, to_bytes
from edgekit.models.simplify import fold_batchnorm
from edgekit.models.source import load
from edgekit.quantize.dialects import TENSORRT, Dialect, onnxruntime_dialect, tensorrt_dialect
from edgekit.quantize.observe import float_activations, observe
from edgekit.quantize.place import activation_grid, insert_qdq, weight_grid
from edgekit.quantize.ranges import Ranges, minmax
from edgekit.values import Array, Batch, TensorSpec

Reference = Callable[..., list[Array]]

U8U8 = onnxruntime_dialect(frozenset(), arm=False)
U8S8 = onnxruntime_dialect(frozenset({"avx512_vnni"}), arm=False)
S8S8 = onnxruntime_dialect(frozenset(), arm=True)


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
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    return Counter(node.op_type for node in graph.node)


@pytest.fixture
def folded(residual: Model) -> Model:
    model, count = fold_batchnorm(residual)
    assert count == 5
    return model


@pytest.mark.parametrize("dialect", [TENSORRT, tensorrt_dialect("8.5"), U8U8, U8S8, S8S8])
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
    assert report.quantized == {"Conv": 5, "Add": 1, "Concat": 1, "GlobalAveragePool": 1, "Gemm": 1}
    found = optimised_operators(quantized, tmp_path)
    assert found["QLinearConv"] == 5
    assert found["QLinearAdd"] == found["QLinearConcat"] == found["QGemm"] == 1
    assert found["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "Add", "Gemm", "Relu", "FusedConv"} & set(found)


def test_u8u8_kernels_compute_what_the_emulation_does(
    folded: Model, images: Array, reference: Reference
) -> None:
    quantized, _ = insert_qdq(folded, observed(folded, images), U8U8, minmax)
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
        assert np.abs(found[:, 2] - 3.0).max() < 0.01


def test_an_old_operator_set_is_refused(tmp_path: Path, images: Array) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["y"])],
        "old",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 8, 8])],
    )
    for opset, message in ((12, "too old"), (17, "no operator of this model can be quantized")):
        proto = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )
        path = tmp_path / f"{opset}.onnx"
        onnx.save(proto, path)
        model = load(path)
        with pytest.raises(InputError, match=message):
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
