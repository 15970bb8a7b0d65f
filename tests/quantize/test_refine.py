"""Steps that mend the rounding: each against what it promises, on small networks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_place import S8S8, TENSORRT, U8U8

from edgekit.data.batches import Batches
from edgekit.engines.onnxruntime import OnnxRuntimeSession, open_model
from edgekit.errors import InputError
from edgekit.models.model import Model, constant_of
from edgekit.models.simplify import fold_batchnorm
from edgekit.quantize.dialects import Dialect, tensorrt_dialect
from edgekit.quantize.grids import Grid
from edgekit.quantize.observe import ObserveOptions, observe
from edgekit.quantize.place import place
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import minmax
from edgekit.quantize.scheme import (
    Placement,
    Scheme,
    StoredWeight,
    WeightOptions,
    WeightPlace,
    make_scheme,
)
from edgekit.quantize.write import write_qdq
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

Reference = Callable[..., list[Array]]
DIALECTS = {"trt-10": TENSORRT, "trt-8": tensorrt_dialect("8.5"), "u8u8": U8U8, "s8s8": S8S8}


@pytest.fixture(params=DIALECTS.values(), ids=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found: Dialect = request.param
    return found


def plain(model: Model) -> OnnxRuntimeSession:
    return open_model(model, threads=1, optimise=False)


def batches_of(name: str, array: Array, size: int = 8) -> Batches:
    return Batches(arrays={name: array}, pixels={}, batch_size=size)


def scheme_for(
    model: Model, batches: Batches, dialect: Dialect, *, bits: int = 8,
    placement: Placement | None = None,
) -> Scheme:  # fmt: skip
    placement = placement or place(model, dialect)
    ranges = observe(model, placement.reads, batches, plain)
    return make_scheme(model, placement, ranges, minmax, weights=WeightOptions(bits=bits))


def graph_of(
    nodes: list[ir.Node], weights: dict[str, Array], image: tuple[int, ...], output: str
) -> Model:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *image])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    import onnx

    proto = onnx.shape_inference.infer_shapes(proto)
    return prepared(Model(name="small", program=ir.from_proto(proto)))


def relu6_net(seed: int = 0) -> Model:
    """Conv, Clip(0, 6), depthwise Conv, Clip, Conv, Relu, a residual Add, pooling and a Gemm."""
    rng = np.random.default_rng(seed)
    loud = rng.uniform(0.05, 1.0, (8, 1, 1, 1)) ** 2
    weights = {
        "w1": rng.normal(0, 0.5, (8, 3, 3, 3)) * loud, "b1": rng.normal(0, 0.1, 8),
        "w2": rng.normal(0, 0.4, (8, 1, 3, 3)) * loud[::-1], "b2": rng.normal(0.2, 0.1, 8),
        "w3": rng.normal(0, 0.4, (8, 8, 1, 1)), "b3": rng.normal(0.2, 0.1, 8),
        "w4": rng.normal(0, 0.4, (5, 8)), "b4": rng.normal(0, 0.1, 5),
        "zero": np.array(0.0), "six": np.array(6.0),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], name="first", pads=[1] * 4),
        node("Clip", ["c1", "zero", "six"], ["r1"], name="clip1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], name="depthwise", pads=[1] * 4, group=8),
        node("Clip", ["c2", "zero", "six"], ["r2"], name="clip2"),
        node("Conv", ["r2", "w3", "b3"], ["c3"], name="narrow"),
        node("Add", ["c3", "r1"], ["sum"], name="add"),
        node("Relu", ["sum"], ["r3"], name="relu"),
        node("GlobalAveragePool", ["r3"], ["pooled"], name="pool"),
        node("Flatten", ["pooled"], ["flat"], name="flatten"),
        node("Gemm", ["flat", "w4", "b4"], ["logits"], name="last", transB=1),
    ]  # fmt: skip
    return graph_of(nodes, weights, (3, 8, 8), "logits")


def sqnr(found: Array, wanted: Array) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()))


# Rounding, against every possible rounding.


def brute_force(weight: Array, hessian: Array, most: int) -> float:
    """The least (q - w)^T H (q - w) over all integers from -most to most."""
    every = np.stack(np.meshgrid(*[np.arange(-most, most + 1)] * len(weight)), -1)
    off = every.reshape(-1, len(weight)) - weight
    return float(((off @ hessian) * off).sum(1).min())


@given(seed=st.integers(0, 10_000), rows=st.integers(3, 20), width=st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_rounding_is_never_worse_than_the_nearest(seed: int, rows: int, width: int) -> None:
    from edgekit.quantize.refine.rounding import error_of, rounded_steps

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, width)) @ rng.normal(size=(width, width))
    hessian = x.T @ x + 1e-3 * np.eye(width)
    weight = rng.uniform(-4, 4, (width, 3))
    w, h = torch.from_numpy(weight)[None], torch.from_numpy(hessian)[None]
    found = rounded_steps(w, h, -7, 7)
    assert torch.equal(found, found.round())
    assert float(found.abs().max()) <= 7
    errors = error_of(found, w, h)[0].numpy()
    nearest = error_of(w.round(), w, h)[0].numpy()
    assert (errors <= nearest + 1e-9).all()


def test_rounding_reaches_the_best_of_all_roundings_more_often_than_the_nearest() -> None:
    from edgekit.quantize.refine.rounding import error_of, rounded_steps

    rng = np.random.default_rng(1)
    ours = theirs = 0
    for _ in range(40):
        x = rng.normal(size=(12, 4)) @ rng.normal(size=(4, 4))
        hessian = x.T @ x + 1e-3 * np.eye(4)
        weight = rng.uniform(-3, 3, (4, 1))
        best = brute_force(weight[:, 0], hessian, 7)
        w, h = torch.from_numpy(weight)[None], torch.from_numpy(hessian)[None]
        ours += float(error_of(rounded_steps(w, h, -7, 7), w, h)) < 1.0001 * best
        theirs += float(error_of(w.round(), w, h)) < 1.0001 * best
    assert ours >= 25
    assert ours > 1.5 * theirs


def test_error_feedback_is_that_of_the_paper() -> None:
    """Two weights by hand: with H = [[2, 1], [1, 1]] and w = (0.4, 0.4), the first rounds to 0 and
    the second takes over H[1, 0] / H[1, 1] * 0.4 = 0.4 more: 0.8, rounded to 1.
    """
    from edgekit.quantize.refine.rounding import rounded_steps

    hessian = torch.tensor([[[2.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    weight = torch.tensor([[[0.4], [0.4]]], dtype=torch.float64)
    assert rounded_steps(weight, hessian, -7, 7).flatten().tolist() == [0.0, 1.0]


# Whole networks.


def test_bias_correction_gives_every_layer_its_float_means(
    images: Array, dialect: Dialect, reference: Reference
) -> None:
    from edgekit.quantize.refine.bias import correct_biases

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, dialect, bits=4)
    fixed, rounded, report = correct_biases(model, scheme, shown)
    assert report.samples == len(images)
    assert set(report.shifts) == {"first", "depthwise", "narrow", "last"}
    (wanted,) = reference(model, {"image": images})
    (before,) = reference(write_qdq(model, scheme)[0], {"image": images})
    (after,) = reference(write_qdq(fixed, rounded)[0], {"image": images})
    spread = wanted.std(0)
    # The runtime may round a value between two levels to the other one than the executor did.
    off = np.abs(after.mean(0) - wanted.mean(0)) / spread
    assert off.max() < 0.03
    assert off.max() < 0.1 * (np.abs(before.mean(0) - wanted.mean(0)) / spread).max()


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_by_what_layers_put_out_beats_the_nearest(
    images: Array, dialect: Dialect, reference: Reference, bits: int
) -> None:
    from edgekit.quantize.refine.weights import round_weights

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, dialect, bits=bits)
    fixed, rounded, report = round_weights(model, scheme, shown)
    assert len(report.layers) == 4
    assert all(layer.after <= layer.before for layer in report.layers)
    most = 2 ** (bits - 1) - 1
    for stored in rounded.weights.values():
        zero = int(stored.grid.zero_point.flat[0])
        assert stored.integers.dtype == stored.grid.zero_point.dtype
        assert np.abs(stored.integers.astype(int) - zero).max() <= most
    unseen = np.random.default_rng(11).normal(size=(64, 3, 8, 8)).astype(np.float32)
    (wanted,) = reference(model, {"image": unseen})
    (before,) = reference(write_qdq(model, scheme)[0], {"image": unseen})
    (after,) = reference(write_qdq(fixed, rounded)[0], {"image": unseen})
    assert sqnr(after, wanted) > sqnr(before, wanted) + (3 if bits == 4 else -0.5)


def test_a_fitted_layer_is_the_least_squares_solution(images: Array) -> None:
    """One Conv with activations so finely quantized that W and b themselves are the solution."""
    from edgekit.quantize.refine.weights import round_weights

    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(0, 0.3, (4, 3, 3, 3)), "b": rng.normal(0, 1, 4)}
    nodes = [helper.make_node("Conv", ["image", "w", "b"], ["y"], name="only", pads=[1] * 4)]
    model, shown = graph_of(nodes, weights, (3, 8, 8), "y"), batches_of("image", images)
    scheme = scheme_for(model, shown, TENSORRT, bits=8)
    fixed, rounded, report = round_weights(model, scheme, shown)
    values = rounded.weights["only"].values
    step = rounded.weights["only"].grid.scale.reshape(-1, 1, 1, 1)
    assert (np.abs(values - weights["w"]) < 2 * step).all()
    bias = constant_of(fixed.graph.initializers["b"])
    assert bias is not None
    assert np.abs(bias - weights["b"]).max() < 0.02
    assert report.layers[0].after < report.layers[0].before


def test_a_layer_without_a_bias_gets_one(images: Array, reference: Reference) -> None:
    from edgekit.quantize.refine.bias import correct_biases

    rng = np.random.default_rng(4)
    weights = {"w": rng.normal(0, 0.3, (4, 3, 3, 3))}
    nodes = [helper.make_node("Conv", ["image", "w"], ["y"], name="only", pads=[1] * 4)]
    model, shown = graph_of(nodes, weights, (3, 8, 8), "y"), batches_of("image", images)
    scheme = scheme_for(model, shown, U8U8, bits=3)
    fixed, rounded, _ = correct_biases(model, scheme, shown)
    (wanted,) = reference(model, {"image": images})
    (after,) = reference(write_qdq(fixed, rounded)[0], {"image": images})
    axes = (0, 2, 3)
    assert np.abs(after.mean(axes) - wanted.mean(axes)).max() < 2e-3


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_scaled_channels_compute_the_same(seed: int) -> None:
    from edgekit.quantize.refine.scales import find_scalable, scaled

    model = relu6_net(seed)
    scalable = find_scalable(model)
    rng = np.random.default_rng(seed)
    factors = np.exp(rng.uniform(-0.5, 0.5, scalable.count))
    # Clip(0, 6) lets a factor through only where nothing comes near 6: small images see to that.
    factors[0] = 1
    images = 0.02 * rng.normal(size=(4, 3, 8, 8)).astype(np.float32)
    with plain(model) as one, plain(scaled(model, scalable, factors)) as other:
        from edgekit.values import run

        wanted, found = (run(s, {"image": images})["logits"] for s in (one, other))
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_the_channels_of_a_residual_add_have_one_factor() -> None:
    from edgekit.quantize.refine.scales import find_scalable

    scalable = find_scalable(relu6_net())
    assert np.array_equal(scalable.tracks["r1"].ids, scalable.tracks["c3"].ids)
    assert np.array_equal(scalable.reads["depthwise"], scalable.tracks["r1"].ids)
    assert not set(scalable.makes["depthwise"]) & set(scalable.makes["first"])
    assert not scalable.reads["first"].any()
    assert not scalable.makes["last"].any()
    # 8 channels of the stream and 8 of the depthwise convolution; what is made last is an output.
    assert len(scalable.free()) == 16


@pytest.mark.parametrize("op", ["Sigmoid", "HardSwish"])
def test_channels_before_a_bent_activation_have_no_factor(op: str) -> None:
    from edgekit.quantize.refine.scales import find_scalable

    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 1, 1)), "v": rng.normal(size=(2, 4, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["y"], name="one"),
        helper.make_node(op, ["y"], ["z"], name="bent"),
        helper.make_node("Conv", ["z", "v"], ["out"], name="two"),
    ]
    scalable = find_scalable(graph_of(nodes, weights, (3, 4, 4), "out"))
    assert not scalable.makes["one"].any()
    assert not scalable.reads["two"].any()


def test_equalised_channels_are_alike_and_the_network_is_the_same(
    images: Array, dialect: Dialect, reference: Reference
) -> None:
    from edgekit.quantize.refine.equalise import equalise

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, dialect)

    def again(changed: Model, placement: Placement) -> Scheme:
        return scheme_for(changed, shown, dialect, placement=placement)

    fixed, _, report = equalise(model, scheme, shown, plain, again)
    assert report.channels > 0
    assert report.residue < 1e-4
    (wanted,) = reference(model, {"image": images})
    (found,) = reference(fixed, {"image": images})
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    unlike, alike = (spread_of_channels(m, shown, "r2") for m in (model, fixed))
    assert unlike > 5
    assert alike < 0.7 * unlike


def spread_of_channels(model: Model, shown: Batches, name: str) -> float:
    """The largest maximum of a channel over the smallest."""
    ranges = observe(model, [name], shown, plain, options=ObserveOptions(channels=[name]))
    channels = ranges.tensors[name].channels
    assert channels is not None
    return float(channels.high.max() / channels.high.min())


def test_auto_keeps_only_what_helps_and_leaves_no_layer_in_float(
    images: Array, dialect: Dialect, reference: Reference
) -> None:
    from edgekit.quantize.refine.refine import refine

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, dialect, bits=4)
    heard: list[tuple[float, str]] = []

    def again(changed: Model, placement: Placement) -> Scheme:
        return scheme_for(changed, shown, dialect, bits=4, placement=placement)

    fixed, rounded, report = refine(
        model, scheme, shown, plain, rescheme=again, on_fraction=lambda *one: heard.append(one)
    )
    assert rounded.placement.integer == scheme.placement.integer
    assert report.held_out
    assert report.judged == 8
    kept = [step for step in report.steps if step.kept]
    assert kept
    assert kept[-1].after_db == report.after_db
    assert report.after_db == max(step.after_db for step in report.steps)
    assert report.after_db > report.before_db + 2
    unseen = np.random.default_rng(12).normal(size=(64, 3, 8, 8)).astype(np.float32)
    (wanted,) = reference(model, {"image": unseen})
    (before,) = reference(write_qdq(model, scheme)[0], {"image": unseen})
    (after,) = reference(write_qdq(fixed, rounded)[0], {"image": unseen})
    assert sqnr(after, wanted) > sqnr(before, wanted) + 2
    shares = [share for share, _ in heard]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_residual_network_is_refined(
    residual: Model, images: Array, dialect: Dialect, reference: Reference
) -> None:
    from edgekit.quantize.refine.refine import refine

    model = prepared(fold_batchnorm(residual)[0])
    shown = batches_of("image", images)
    scheme = scheme_for(model, shown, dialect, bits=4)
    fixed, rounded, report = refine(model, scheme, shown, plain)
    assert [step.name for step in report.steps] == ["bias", "round", "adaround"]
    (wanted,) = reference(residual, {"image": images})
    (before,) = reference(write_qdq(model, scheme)[0], {"image": images})
    (after,) = reference(write_qdq(fixed, rounded)[0], {"image": images})
    assert sqnr(after, wanted) > sqnr(before, wanted) + 2


def test_an_unknown_step_is_refused(images: Array) -> None:
    from edgekit.quantize.refine.refine import RefineOptions, refine

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, TENSORRT)
    with pytest.raises(InputError, match="no refinement"):
        refine(model, scheme, shown, plain, RefineOptions(steps=("sharpen",)))


def test_no_sample_is_refused(images: Array) -> None:
    from edgekit.quantize.refine.weights import round_weights

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, TENSORRT)
    with pytest.raises(InputError, match="too few"):
        round_weights(model, scheme, batches_of("image", images[:0]))


@given(
    shape=st.sampled_from([(4, 3, 3, 3), (5, 7), (2, 4, 1, 1)]),
    axis=st.integers(0, 1),
    seed=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None)
def test_refined_integers_fit_in_sums_of_16_bits(
    shape: tuple[int, ...], axis: int, seed: int
) -> None:
    from edgekit.quantize.refine.overflow import bounded
    from edgekit.quantize.saturation import largest_sums

    axis = axis if len(shape) == 2 else 0
    integers = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    channels = shape[axis]
    grid = Grid(scale=np.ones(channels, np.float32), zero_point=np.zeros(channels, np.int8),
                axis=axis)  # fmt: skip
    place = WeightPlace(node="n", op="Conv", weight="w", axis=axis, bias="", source="x")
    found = bounded(StoredWeight(integers=integers, grid=grid), place).integers
    assert largest_sums(found.astype(np.int64), axis, 1).max() <= 128
    # Only neighbours that came to too much have changed, and none has turned its sign.
    assert (np.abs(found.astype(int)) <= np.abs(integers.astype(int))).all()
    assert (np.sign(found) * np.sign(integers) >= 0).all()
    fits = largest_sums(integers.astype(np.int64), axis, 1) <= 128
    assert np.array_equal(np.moveaxis(found, axis, 0)[fits], np.moveaxis(integers, axis, 0)[fits])


def test_a_constant_factor_behind_a_bent_activation_takes_up_the_scales(
    images: Array, reference: Reference
) -> None:
    """HardSwish lets no factor through, the scalar behind it becomes one for each channel."""
    from edgekit.quantize.refine.equalise import equalise
    from edgekit.quantize.refine.scales import find_scalable

    rng = np.random.default_rng(5)
    weights = {
        "w": rng.normal(size=(6, 3, 3, 3)) * np.logspace(-1.5, 0, 6).reshape(-1, 1, 1, 1),
        "gain": np.array(1.3), "shift": np.array([0.1]), "v": rng.normal(size=(4, 6, 1, 1)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], name="one"),
        helper.make_node("HardSwish", ["c"], ["h"], name="bent"),
        helper.make_node("Mul", ["gain", "h"], ["g"], name="times"),
        helper.make_node("Add", ["g", "shift"], ["s"], name="plus"),
        helper.make_node("Conv", ["s", "v"], ["out"], name="two"),
    ]
    model, shown = graph_of(nodes, weights, (3, 8, 8), "out"), batches_of("image", images)
    scalable = find_scalable(model)
    assert not scalable.makes["one"].any()
    assert len(set(scalable.reads["two"])) == 6
    scheme = scheme_for(model, shown, TENSORRT)

    def again(changed: Model, placement: Placement) -> Scheme:
        return scheme_for(changed, shown, TENSORRT, placement=placement)

    fixed, rounded, report = equalise(model, scheme, shown, plain, again)
    assert report.channels >= 4
    (wanted,) = reference(model, {"image": images})
    (found,) = reference(fixed, {"image": images})
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    (before,) = reference(write_qdq(model, scheme)[0], {"image": images})
    (after,) = reference(write_qdq(fixed, rounded)[0], {"image": images})
    assert sqnr(after, wanted) > sqnr(before, wanted) + 1


def test_rounding_after_bias_correction_still_aims_at_the_float_network(
    images: Array, reference: Reference
) -> None:
    """The biases of the Model are not the original's any more: the reference has those."""
    from edgekit.quantize.refine.bias import correct_biases
    from edgekit.quantize.refine.weights import round_weights

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, TENSORRT, bits=4)
    once, rounded, _ = round_weights(model, scheme, shown)
    fixed, same, _ = correct_biases(model, scheme, shown)
    twice, again, _ = round_weights(fixed, same, shown, reference=model)
    (wanted,) = reference(model, {"image": images})
    (one,) = reference(write_qdq(once, rounded)[0], {"image": images})
    (other,) = reference(write_qdq(twice, again)[0], {"image": images})
    assert abs(sqnr(one, wanted) - sqnr(other, wanted)) < 1.0
