"""Each operator at another opset computes the same. Expected values are ONNX Runtime's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

sys.path.insert(0, str(Path(__file__).resolve().parent))
from opset_cases import Case, assert_same, floats, model_of, positive, proto_of, run, scales, whole

from edgekit.models.opset import NEWEST, converted, lowered, raised
from edgekit.models.opset.lowering import LOWER
from edgekit.models.opset.raising import RAISE
from edgekit.models.opset.schemas import LATEST, OLDEST, SAME, begins_at

TARGETS = (17, 16, 13, 11)
X = floats(2, 4, 6, 6)
AXES = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")  # fmt: skip

LOWERED = [
    Case("Gelu", 20, (X,)),
    Case("Gelu", 20, (X,), {"approximate": "tanh"}),
    Case("HardSwish", 22, (X * 4,)),
    Case("Mish", 22, (X * 4,)),
    Case("Swish", 24, (X,), {"alpha": 1.5}),
    Case("Celu", 13, (X,), {"alpha": 0.7}),
    Case("LayerNormalization", 17, (X, positive(6), floats(6))),
    Case("LayerNormalization", 18, (X, positive(6)), {"epsilon": 1e-2}),
    Case("LayerNormalization", 20, (X, positive(4, 6, 6), floats(4, 6, 6)), {"axis": 1}),
    Case("LayerNormalization", 20, (X, positive(6, 6), floats(6, 6)), {"axis": -2}),
    Case("LayerNormalization", 17, (X, positive(6), floats(6)), outputs=3),
    Case("RMSNormalization", 23, (X, positive(6))),
    Case("RMSNormalization", 23, (X, positive(4, 6, 6)), {"axis": 1}),
    Case("GroupNormalization", 21, (X, positive(4), floats(4)), {"num_groups": 2}),
    Case("GroupNormalization", 22, (floats(3, 8, 5), positive(8), floats(8)), {"num_groups": 4}),
    *(Case(op, 20, (positive(2, 3, 4, 5), whole(1, -1)), {"keepdims": k})
      for op in AXES for k in (0, 1)),
    *(Case(op, 20, (positive(2, 3, 4),), {}) for op in AXES),
    Case("ReduceMean", 18, (X, whole()), {"noop_with_empty_axes": 1}),
    Case("Squeeze", 21, (floats(2, 1, 3, 1), whole(1, -1))),
    Case("Squeeze", 13, (floats(2, 1, 3, 1),)),
    Case("Unsqueeze", 21, (floats(2, 3), whole(0, -1))),
    Case("Split", 18, (floats(2, 6), whole(1, 2, 3)), {"axis": 1}, outputs=3),
    Case("Split", 18, (floats(2, 6),), {"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Split", 18, (floats(2, 7),), {"axis": -1, "num_outputs": 3}, outputs=3),
    *(Case(op, 13, (X,), {"axis": axis})
      for op in ("Softmax", "LogSoftmax") for axis in range(-4, 4)),
    Case("Hardmax", 13, (X,), {"axis": 1}),
    Case("Softmax", 13, (floats(2, 5, 1, 1),), {"axis": 1}),
    Case("BatchNormalization", 15, (X, positive(4), floats(4), floats(4), positive(4))),
    Case("BatchNormalization", 15, (X, positive(4), floats(4), floats(4), positive(4)),
         {"training_mode": 0, "epsilon": 1e-3}),
    Case("Clip", 13, (X, scales(-0.5).reshape(()), scales(0.5).reshape(()))),
    Case("Clip", 13, (X, None, scales(0.5).reshape(()))),
    Case("Pad", 18, (X, whole(1, 2, 0, 1), None, whole(2, -1))),
    Case("Pad", 21, (X, whole(1, 2, 0, 1), scales(3).reshape(()), whole(2, 3)),
         {"mode": "constant"}),
    Case("Pad", 13, (X, whole(0, 0, 1, 2, 0, 0, 2, 1)), {"mode": "reflect"}),
    Case("Pad", 19, (X, whole(0, 0, 1, 2, 0, 0, 6, 0)), {"mode": "wrap"}),
    Case("Pad", 19, (X, whole(3, 2), None, whole(-2)), {"mode": "wrap"}),
    Case("Shape", 15, (X,), {"start": 1, "end": -1}),
    Case("Shape", 19, (X,), {"start": -2}),
    Case("Shape", 19, (X,)),
    Case("Reshape", 21, (X, whole(2, -1)), {"allowzero": 1}),
    Case("Reshape", 14, (X, whole(0, -1)), {"allowzero": 0}),
    Case("TopK", 24, (X, whole(3)), {"axis": -1, "largest": 0}, outputs=2),
    Case("TopK", 11, (X, whole(2)), {"axis": 1}, outputs=2),
    Case("AveragePool", 22, (X,), {"kernel_shape": [2, 2], "dilations": [1, 1], "ceil_mode": 1}),
    Case("MaxPool", 22, (X,), {"kernel_shape": [2, 2], "dilations": [2, 2], "ceil_mode": 1}),
    Case("Conv", 22, (X, floats(3, 4, 3, 3), floats(3))),
    Case("Cast", 21, (X,), {"to": TensorProto.INT32, "saturate": 1}),
    Case("CastLike", 19, (X, whole(1)), {"saturate": 1}),
    Case("Dropout", 22, (X, scales(0.3).reshape(()), np.array(False))),
    Case("Trilu", 14, (X, np.array(1)), {"upper": 0}),
    Case("Trilu", 14, (X,)),
    Case("GreaterOrEqual", 16, (X, np.where(X > 0, X, 1).astype(np.float32))),
    Case("LessOrEqual", 16, (X, np.where(X > 0, X, np.nan).astype(np.float32))),
    Case("GridSample", 20, (X, floats(2, 3, 3, 2) * 0.4), {"mode": "linear"}, to=16),
    Case("GridSample", 20, (X, floats(2, 3, 3, 2) * 0.4), {"mode": "cubic"}, to=16),
    Case("ScatterND", 18, (floats(4, 3), whole(1, 3).reshape(2, 1), floats(2, 3))),
    Case("ScatterElements", 18, (floats(4, 3), whole(1, 0, 2).reshape(1, 3), floats(1, 3))),
    Case("GatherND", 13, (floats(4, 3), whole(1, 3).reshape(2, 1)), {"batch_dims": 0}),
    Case("DepthToSpace", 13, (X,), {"blocksize": 2, "mode": "CRD"}),
    Case("QuantizeLinear", 21, (X, scales(0.02).reshape(())), {"output_dtype": TensorProto.INT8}),
    Case("QuantizeLinear", 23, (X, positive(4), np.zeros(4, np.int8)), {"axis": 1, "saturate": 1},
         to=13),
    Case("DequantizeLinear", 21, ((X * 9).astype(np.int8), positive(4), np.zeros(4, np.int8)),
         to=13),
    Case("DequantizeLinear", 23, ((X * 9).astype(np.int8), scales(0.1).reshape(()))),
    Case("LSTM", 22, (floats(5, 2, 3), floats(1, 16, 3), floats(1, 16, 4)), {"hidden_size": 4},
         outputs=3),
    Case("DFT", 20, (floats(2, 6, 2), None, np.array(1)), to=17),
    Case("Identity", 24, (X,)),
    Case("Attention", 23, (floats(2, 3, 5, 4), floats(2, 3, 7, 4), floats(2, 3, 7, 4))),
    Case("Attention", 24, (floats(2, 5, 12), floats(2, 7, 12), floats(2, 7, 12)),
         {"q_num_heads": 3, "kv_num_heads": 3, "is_causal": 1}),
    Case("CenterCropPad", 18, (X, whole(4, 9)), {"axes": [2, 3]}, to=13),
    Case("Reciprocal", 13, (positive(3),)),
    Case("Pow", 15, (positive(3), scales(1.5))),
    Case("Equal", 19, (whole(1, 2, 3), whole(1, 0, 3))),
    Case("Einsum", 12, (floats(2, 3, 4), floats(2, 4, 5)), {"equation": "bij,bjk->bik"}, to=12),
]  # fmt: skip

RESIZED = [
    Case("Resize", opset, (X, None, factors, sizes), attributes)
    for opset in (18, 22)
    for factors, sizes in ((scales(1, 1, 2, 1.5), None), (None, whole(2, 4, 9, 4)))
    for attributes in (
        {"mode": "nearest"},
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"mode": "cubic", "cubic_coeff_a": -0.5},
    )
    if opset < 19 or factors is not None
] + [
    Case("Resize", 19, (X, None, scales(2, 2)), {"axes": [2, 3], "mode": "linear", "antialias": 1}),
    Case("Resize", 18, (X, None, None, whole(3, 9)), {"axes": [-1, 2], "mode": "nearest"}),
]  # fmt: skip


@pytest.mark.parametrize("case", [*LOWERED, *RESIZED], ids=str)
def test_lowered_operators_compute_the_same(case: Case) -> None:
    model = model_of(proto_of(case))
    expected = run(model, case.inputs[0])
    for target in [t for t in TARGETS if case.to <= t < case.opset]:
        lower = lowered(model, target)
        assert lower.opset == target
        assert [v.name for v in lower.graph.outputs] == [v.name for v in model.graph.outputs]
        assert_same(run(lower, case.inputs[0]), expected)


@pytest.mark.parametrize(
    "case",
    [
        Case("GroupNormalization", 21, (X, positive(4), floats(4)), {"num_groups": 2}),
        Case("LayerNormalization", 17, (X, positive(6), floats(6))),
        Case("Softmax", 13, (X,), {"axis": 1}),
        Case("Resize", 18, (X, None, None, whole(9, 8)), {"axes": [2, 3], "mode": "linear"}),
        Case("HardSwish", 14, (X,)),
    ],
    ids=str,
)
def test_a_dynamic_batch_stays_dynamic(case: Case) -> None:
    model = model_of(proto_of(case, dynamic=True))
    lower = lowered(model, 11)
    for batch in (1, 2, 5):
        feed = floats(batch, 4, 6, 6, seed=batch)
        assert_same(run(lower, feed), run(model, feed))


@pytest.mark.parametrize("op", ["Gelu", "LayerNormalization", "RMSNormalization", "HardSwish"])
def test_half_precision_is_written_in_half_precision(op: str) -> None:
    half = X.astype(np.float16)
    inputs = (half, positive(6).astype(np.float16)) if "Norm" in op else (half,)
    opset = {"Gelu": 20, "LayerNormalization": 17, "RMSNormalization": 23, "HardSwish": 22}[op]
    lower = lowered(model_of(proto_of(Case(op, opset, inputs))), 13)
    wide = tuple(array.astype(np.float32) for array in inputs)
    expected = run(model_of(proto_of(Case(op, opset, wide))), wide[0])[0]
    found = run(lower, half)[0]
    assert found.dtype == np.float16
    # Half precision keeps 11 bits: a handful of roundings of the largest value.
    assert np.abs(found - expected).max() < 4 * 2**-11 * np.abs(expected).max()


def test_statistics_of_half_precision_are_taken_in_single() -> None:
    x = (300 + 40 * X).astype(np.float16)  # the squares alone are beyond half precision
    case = Case("LayerNormalization", 17, (x, np.ones(6, np.float16)))
    found = run(lowered(model_of(proto_of(case)), 16), x)[0]
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, expected, atol=2e-3)


BN = (positive(4), floats(4), floats(4, seed=3), positive(4))

RAISED = [
    *(Case("Softmax", opset, (X,), {"axis": axis}) for opset in (7, 11) for axis in range(4)),
    Case("Softmax", 11, (X,)),
    Case("LogSoftmax", 11, (X,), {"axis": -2}),
    Case("Hardmax", 11, (X,), {"axis": 2}),
    *(Case("BatchNormalization", opset, (X, *BN), {"epsilon": 1e-3}) for opset in (7, 9, 14)),
    *(Case("Upsample", 7, (X,), {"mode": mode, "scales": [1.0, 1.0, 2.0, 3.0]})
      for mode in ("nearest", "linear")),
    *(Case("Upsample", 9, (X, scales(1, 1, 2, 1.5)), {"mode": mode})
      for mode in ("nearest", "linear")),
    *(Case("Resize", 10, (X, scales(1, 1, a, b)), {"mode": mode})
      for a, b in ((2, 3), (0.5, 0.7)) for mode in ("nearest", "linear")),
    *(Case("Resize", 11, (X, scales(), scales(1, 1, 0.6, 2)), {"mode": mode})
      for mode in ("nearest", "linear", "cubic")),
    Case("Resize", 11, (X, scales(), scales(), whole(2, 4, 9, 5)), {"mode": "linear"}),
    *(Case("Pad", 7, (X,), {"mode": mode, "pads": [0, 0, 1, 2, 0, 0, 2, 1], **more})
      for mode, more in (("constant", {"value": 1.5}), ("constant", {}), ("reflect", {}),
                         ("edge", {}))),
    Case("Pad", 11, (X, whole(0, 0, 1, 2, 0, 0, 2, 1)), {"mode": "edge"}),
    Case("Clip", 7, (X,), {"min": -0.5, "max": 0.5}),
    Case("Clip", 7, (X,), {"max": 0.5}),
    Case("Clip", 7, (X,)),
    Case("Clip", 11, (X, scales(-0.5).reshape(()))),
    Case("Dropout", 7, (X,), {"ratio": 0.3}),
    Case("Dropout", 10, (X,)),
    Case("TopK", 7, (X,), {"k": 2}, outputs=2),
    Case("TopK", 10, (X, whole(3)), {"axis": 1}, outputs=2),
    Case("Slice", 7, (X,), {"starts": [1, -3], "ends": [9, -1], "axes": [1, 3]}),
    Case("Slice", 7, (X,), {"starts": [0, 1], "ends": [1, 3]}),
    Case("Slice", 10, (X, whole(4), whole(0), whole(2), whole(1))),
    *(Case(op, opset, (positive(2, 3, 4),), attributes)
      for op in AXES for opset in (7, 12) for attributes in ({}, {"axes": [1], "keepdims": 0})),
    Case("Squeeze", 7, (floats(2, 1, 3, 1),), {"axes": [1, 3]}),
    Case("Squeeze", 11, (floats(2, 1, 3, 1),)),
    Case("Unsqueeze", 7, (floats(2, 3),), {"axes": [0, 2]}),
    Case("Split", 7, (floats(2, 6),), {"axis": 1}, outputs=3),
    Case("Split", 11, (floats(2, 6),), {"axis": 1, "split": [1, 2, 3]}, outputs=3),
    Case("Scatter", 9, (floats(4, 3), whole(1, 0, 2).reshape(1, 3), floats(1, 3))),
    Case("Gemm", 7, (floats(2, 3), floats(3, 4), floats(4)), {"beta": 0.5}),
    Case("AveragePool", 7, (X,), {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}),
    Case("AveragePool", 10, (X,), {"kernel_shape": [2, 2], "ceil_mode": 1, "strides": [3, 3]}),
    *(Case("MaxPool", opset, (X,), {"kernel_shape": [2, 2]}) for opset in (7, 8)),
    Case("MaxPool", 8, (X,), {"kernel_shape": [2, 2]}, outputs=2),
    Case("Conv", 7, (X, floats(3, 4, 3, 3)), {"pads": [1] * 4}),
    Case("ArgMax", 7, (X,), {"axis": 1}),
    Case("Gather", 7, (X, whole(0, 3)), {"axis": 1}),
    Case("Concat", 7, (X, X), {"axis": 1}),
    Case("Reshape", 7, (X, whole(0, -1))),
    Case("DepthToSpace", 7, (X,), {"blocksize": 2}),
    Case("DequantizeLinear", 10, ((X * 9).astype(np.int8), scales(0.1).reshape(()))),
    Case("QuantizeLinear", 10, (X, scales(0.1).reshape(()), np.array(3, np.uint8))),
    Case("GridSample", 16, (X, floats(2, 3, 3, 2) * 0.4), {"mode": "bicubic"}),
    Case("GRU", 7, (floats(5, 2, 3), floats(1, 12, 3), floats(1, 12, 4)), {"hidden_size": 4},
         outputs=2),
    Case("Max", 8, (X, floats(6))),
    Case("ConstantOfShape", 9, (whole(2, 3),)),
    Case("OneHot", 9, (whole(0, 2), np.array(3), scales(0, 1))),
    Case("DFT", 17, (floats(2, 6, 1),), {"axis": 1}),
    Case("Shape", 7, (X,)),
    Case("LpPool", 11, (X,), {"kernel_shape": [2, 2]}),
]  # fmt: skip


@pytest.mark.parametrize("case", RAISED, ids=str)
def test_raised_operators_compute_the_same(case: Case) -> None:
    model = model_of(proto_of(case))
    higher = raised(model)
    assert higher.opset == NEWEST
    assert_same(run(higher, case.inputs[0]), run(model, case.inputs[0]))


# What became an attribute leaves nothing behind. Before opset 9 a Constant held floats alone,
# before 8 Max and Min took inputs of one shape alone.
BELOW = [
    Case("TopK", 11, (X, whole(3)), {"axis": -1, "largest": 0}, outputs=2),
    Case("Clip", 13, (X, scales(-0.5).reshape(()), scales(0.5).reshape(()))),
    Case("Clip", 13, (X, scales(0.5).reshape(()), scales(-0.5).reshape(())), to=9),
    Case("Slice", 13, (X, whole(1), whole(9), whole(-1))),
    Case("Softmax", 13, (X,), {"axis": -2}),
    Case("Unsqueeze", 13, (floats(2, 3), whole(-1))),
    Case("ReduceSum", 13, (X, whole(-1)), {"keepdims": 0}),
    Case("Gemm", 13, (floats(2, 3), floats(3, 4))),
    Case("Pad", 13, (X, whole(0, 0, 1, 2, 0, 0, 2, 1)), {"mode": "reflect"}),
    Case("Resize", 13, (X, None, scales(1, 1, 2, 3)), {"mode": "nearest"}),
    Case("Resize", 13, (X, None, None, whole(2, 4, 12, 18)),
         {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
    Case("BatchNormalization", 15, (X, *BN)),
    Case("Dropout", 13, (X, scales(0.3).reshape(()))),
    Case("AveragePool", 11, (X,), {"kernel_shape": [2, 2], "ceil_mode": 0}),
    Case("HardSwish", 14, (X,)),
    Case("DepthToSpace", 11, (X,), {"blocksize": 2, "mode": "CRD"}, to=9),
]  # fmt: skip


@pytest.mark.parametrize("case", BELOW, ids=str)
def test_opsets_down_to_7_compute_the_same(case: Case) -> None:
    model = model_of(proto_of(case))
    expected = run(model, case.inputs[0])
    least = case.to if case.to < 11 else 7
    for target in [t for t in (10, 9, 7) if t >= least]:
        assert_same(run(lowered(model, target), case.inputs[0]), expected)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    op=st.sampled_from(["Softmax", "LogSoftmax"]),
    choice=st.integers(-4, 3),
    opset=st.sampled_from([7, 11, 13]),
    target=st.sampled_from([11, 12, 13, 18]),
)
@settings(max_examples=60, deadline=None)
def test_softmax_means_the_same_on_both_sides_of_opset_13(
    shape: list[int], op: str, choice: int, opset: int, target: int
) -> None:
    axis = choice % len(shape)
    if choice < 0 and opset > 7:
        axis -= len(shape)
    x = floats(*shape)
    model = model_of(proto_of(Case(op, opset, (x,), {"axis": axis})))
    assert_same(run(converted(model, target), x), run(model, x))


@given(
    factors=st.tuples(st.sampled_from([1.0, 1.3, 2.0, 2.5, 3.0]), st.sampled_from([1.0, 2.0, 3.0])),
    op=st.sampled_from([("Upsample", 9), ("Resize", 10)]),
    mode=st.sampled_from(["nearest", "linear"]),
    target=st.sampled_from([11, 13, 18, 19]),
)
@settings(max_examples=40, deadline=None)
def test_what_enlarges_means_the_same_since_upsample(
    factors: tuple[float, float], op: tuple[str, int], mode: str, target: int
) -> None:
    model = model_of(proto_of(Case(*op, (X, scales(1, 1, *factors)), {"mode": mode})))
    higher = raised(model, target)
    assert_same(run(higher, X), run(model, X))
    assert_same(run(lowered(higher, op[1]), X), run(model, X))


@given(
    size=st.integers(2, 9), factor=st.integers(1, 4),
    rounding=st.sampled_from(["round_prefer_floor", "round_prefer_ceil"]),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_the_nearest_by_a_whole_factor_is_upsample_s(size: int, factor: int, rounding: str) -> None:
    x = floats(1, 1, size, size)
    case = Case("Resize", 13, (x, None, scales(1, 1, factor, factor)), {"nearest_mode": rounding})
    model = model_of(proto_of(case))
    assert_same(run(lowered(model, 9), x), run(model, x))


@given(
    pads=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    mode=st.sampled_from(["constant", "reflect", "edge", "wrap"]),
    target=st.sampled_from([10, 11, 13, 18]),
)
@settings(max_examples=60, deadline=None)
def test_padding_of_some_axes_becomes_padding_of_all(
    pads: list[int], mode: str, target: int
) -> None:
    case = Case("Pad", 19, (X, whole(*pads), None, whole(-1, 2)), {"mode": mode})
    model = model_of(proto_of(case))
    assert_same(run(lowered(model, target), X), run(model, X))


def boundaries() -> list[tuple[str, int]]:
    """Every version of a default operator that is not its first, in the range of the tables."""
    found: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            found.setdefault(schema.name, []).append(int(schema.since_version))
    return [(op, v) for op, vs in found.items() for v in vs if OLDEST < v <= LATEST and v > min(vs)]


def test_every_boundary_of_onnx_has_an_entry_or_is_known_to_have_none() -> None:
    crossings = boundaries()
    assert len(crossings) > 300
    unraised = [c for c in crossings if c[0] not in SAME.get(c[1], ()) and c not in RAISE]
    unlowered = [c for c in crossings if c[0] not in SAME.get(c[1], ()) and c not in LOWER]
    assert unraised == [("Scan", 9)]  # its batch axis was another thing
    # Upsample and Scatter only ended there: nothing above them is lowered to that version.
    assert sorted(unlowered) == [("Scan", 9), ("Scatter", 11), ("Upsample", 10)]


def test_every_entry_is_a_boundary_that_onnx_has() -> None:
    known = onnx.defs.onnx_opset_version()
    entries = {*LOWER, *RAISE, *((op, v) for v, ops in SAME.items() for op in ops)}
    assert [entry for entry in entries if entry[1] <= known and not begins_at(*entry)] == []
