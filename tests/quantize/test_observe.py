"""Observing: exact ends, fair histograms, bounded memory, checks of the samples, when to stop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engines.onnxruntime import open_model
from edgekit.errors import InputError
from edgekit.models.model import Model, digest, set_parameter
from edgekit.models.simplify import fold_batchnorm
from edgekit.models.source import load
from edgekit.quantize.observe import ObserveOptions, float_activations, observe
from edgekit.quantize.ranges import Ranges, choice, percentile
from edgekit.quantize.ranging.checks import check_batches
from edgekit.quantize.ranging.consumers import MOST_ROWS, row_indices, weights_of
from edgekit.quantize.ranging.finite import may_turn_nan
from edgekit.quantize.ranging.taps import tapped
from edgekit.values import Array, Batch, Preprocessing, run

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def batches_of(images: Array, batch: int = 8, name: str = "image") -> list[Batch]:
    return [Batch(inputs={name: images[i : i + batch]}) for i in range(0, len(images), batch)]


def all_outputs(model: Model, folder: Path, images: Array) -> dict[str, Array]:
    """Every float tensor by onnxruntime alone, all samples at once."""
    proto = onnx.load(folder / "residual.onnx")
    proto = onnx.shape_inference.infer_shapes(proto)
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(v for v in proto.graph.value_info if v.name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": images}), strict=True))
    assert set(float_activations(model)) == {*found, "image"}
    return {**found, "image": images}


def one_node_model(
    folder: Path, op: str, shape: list[Any], *weights: Array, opset: int = 17, **attributes: object
) -> Model:
    """x -> op -> y, the weights being its further inputs."""
    names = [f"w{i}" for i in range(len(weights))]
    axes = [] if op == "ReduceMax" else [f"d{axis}" for axis in range(len(shape))]
    node = helper.make_node(op, ["x", *names], ["y"], name="one", **attributes)
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, axes)],
        [numpy_helper.from_array(w, n) for n, w in zip(names, weights, strict=True)],
    )  # fmt: skip
    path = folder / "one.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path
    )
    return load(path)


# What is learnt


@pytest.mark.parametrize("batch", [1, 5, 32])
def test_ends_are_exactly_those_of_the_real_tensors(
    residual: Model, tmp_path: Path, images: Array, batch: int
) -> None:
    wanted = all_outputs(residual, tmp_path, images)
    names = float_activations(residual)

    def unoptimised(model: Model) -> Any:
        return open_model(model, optimise=False)

    found = observe(
        residual, names, batches_of(images, batch), unoptimised, options=ObserveOptions(sampled=9)
    )
    for name, array in wanted.items():
        got = found.tensors[name]
        assert (got.low, got.high) == pytest.approx((array.min(), array.max()), rel=1e-5), name
    assert (found.tensors["image"].low, found.tensors["image"].high) == (images.min(), images.max())


def test_a_tensor_smaller_than_the_subsample_is_counted_whole(
    residual: Model, tmp_path: Path, images: Array
) -> None:
    wanted = all_outputs(residual, tmp_path, images)
    options = ObserveOptions(sampled=10_000)
    found = observe(residual, list(wanted), batches_of(images), open_model, options=options)
    for name, array in wanted.items():
        got = found.tensors[name]
        assert got.counts.sum() == got.looked_at == array.size
        assert got.zeros == (array == 0).sum(), name
        expected, _ = np.histogram(array, len(got.counts), (-got.reach, got.reach))
        # Fused kernels round otherwise, so a value near a border may be in the next bin.
        assert np.abs(np.cumsum(got.counts) - np.cumsum(expected)).max() <= 0.002 * array.size


def test_a_subsample_stands_for_the_whole(residual: Model, images: Array) -> None:
    names = ["image", "stem.relu"]
    options = ObserveOptions(sampled=50)
    found = observe(residual, names, batches_of(images), open_model, options=options)
    sizes = {"image": 3 * 64, "stem.relu": 16 * 64}
    for name, size in sizes.items():
        got = found.tensors[name]
        assert got.looked_at == 32 * 50
        # Each sample's own minimum and maximum are counted once, met or not.
        assert got.counts.sum() == pytest.approx(32 * size, rel=0.02)
        assert got.counts[-1] == pytest.approx(0) or got.high > 0.999 * got.reach


def test_a_subsample_is_fair_to_the_tails(tmp_path: Path) -> None:
    x = np.random.default_rng(1).exponential(size=(256, 400)).astype(np.float32)
    model = one_node_model(tmp_path, "Relu", ["n", 400])
    above = np.sort(x.ravel())[-len(x) * 2]  # two values of 400 in each sample lie above
    counted = []
    for seed in range(12):
        options = ObserveOptions(sampled=100, seed=seed)
        found = observe(model, ["x"], batches_of(x, 64, "x"), open_model, options=options)
        tail = found.tensors["x"]
        counted.append(tail.counts[tail.edges[:-1] >= above].sum())
    assert np.mean(counted) == pytest.approx(512, rel=0.05)


@pytest.mark.parametrize(
    ("method", "share"), [("percentile", 0.05), ("mse", 0.05), ("entropy", 0.2)]
)
def test_a_subsample_hardly_moves_the_chosen_range(
    method: str, share: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 30_000)).astype(np.float32)
    model = one_node_model(tmp_path, "Relu", ["n", 30_000])
    choose = choice(method, percent=99.9, symmetric=True)

    def amax(sampled: int, seed: int = 0) -> float:
        options = ObserveOptions(sampled=sampled, seed=seed)
        found = observe(model, ["x"], batches_of(x, name="x"), open_model, options=options)
        return max(np.abs(choose(found.tensors["x"])))

    whole = amax(30_000)
    for seed in range(5):
        assert amax(1024, seed) == pytest.approx(whole, rel=share)


def test_the_same_seed_gives_the_same_ranges_and_another_seed_others(
    residual: Model, images: Array
) -> None:
    def counts(seed: int) -> list[float]:
        options = ObserveOptions(sampled=20, seed=seed)
        found = observe(residual, ["stem.relu"], batches_of(images), open_model, options=options)
        return list(found.tensors["stem.relu"].counts)

    assert counts(1) == counts(1)
    assert counts(1) != counts(2)


@pytest.mark.parametrize("opset", [11, 17, 20])
def test_channels_are_observed_each(tmp_path: Path, opset: int) -> None:
    x = np.random.default_rng(0).normal(size=(10, 4, 3, 5)).astype(np.float32)
    x *= np.array([1, 2, 0, 9], np.float32).reshape(1, 4, 1, 1)
    model = one_node_model(tmp_path, "Relu", ["n", 4, 3, 5], opset=opset)
    options = ObserveOptions(channels=("x",))
    found = observe(model, ["x", "y"], batches_of(x, 4, "x"), open_model, options=options)
    got = found.tensors["x"].channels
    assert got is not None
    axes = (0, 2, 3)
    assert got.low == pytest.approx(x.min(axes))
    assert got.high == pytest.approx(x.max(axes))
    assert got.mean == pytest.approx(x.mean(axes), abs=1e-6)
    assert got.mean_square == pytest.approx((x**2).mean(axes), rel=1e-5)
    assert found.tensors["y"].channels is None


def test_only_what_the_taps_need_comes_out_and_is_computed(residual: Model) -> None:
    names = ["stem.relu"]
    found = tapped(residual, names)
    assert {spec.name.split("/")[1] for spec in found.outputs} == {"stem.relu"}
    assert not {spec.name for spec in found.outputs} & set(float_activations(residual))


def test_the_taps_of_the_first_tensor_stand_last(residual: Model) -> None:
    # So that ONNX Runtime frees a tensor before it makes the next ones.
    found = tapped(residual, ["sum", "stem.relu"])
    picked = [spec.name for spec in found.outputs if "picked" in spec.name]
    assert [name.split("/")[1] for name in picked] == ["sum", "stem.relu"]


def test_the_memory_does_not_depend_on_the_number_of_samples(residual: Model) -> None:
    rng = np.random.default_rng(0)

    def stream(count: int) -> Iterator[Batch]:
        for _ in range(count):
            yield Batch(inputs={"image": rng.normal(size=(4, 3, 8, 8)).astype(np.float32)})

    def numbers(count: int) -> int:
        options = ObserveOptions(rows=True, channels=("stem.relu",))
        names = float_activations(residual)
        found = observe(residual, names, stream(count), open_model, options=options)
        return sum(
            t.counts.size + sum(rows.size for rows in t.rows.values())
            for t in found.tensors.values()
        )

    few = numbers(MOST_ROWS // 16)  # of an endless stream, 16 rows come from a batch
    assert numbers(MOST_ROWS // 16 + 9) == few


def test_many_tensors_take_several_passes(
    residual: Model, images: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = float_activations(residual)
    whole = observe(residual, names, batches_of(images), open_model)
    monkeypatch.setattr("edgekit.quantize.observe._TENSORS_AT_ONCE", 3)
    opened: list[int] = []

    def counting(model: Model) -> Any:
        opened.append(len([s for s in model.outputs if "picked" in s.name]))
        return open_model(model)

    found = observe(residual, names, batches_of(images), counting)
    assert opened == [3] * (len(names) // 3) + ([len(names) % 3] if len(names) % 3 else [])
    for name, wanted in whole.tensors.items():
        got = found.tensors[name]
        assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high), rel=1e-5)


def test_scalars_and_vectors_have_ranges_too(tmp_path: Path) -> None:
    model = one_node_model(tmp_path, "ReduceMax", ["n", 4], keepdims=0)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    found = observe(model, ["y"], batches_of(x, name="x"), open_model)
    assert (found.tensors["y"].low, found.tensors["y"].high) == (7, 7)


def test_inputs_of_other_sizes_come_in_one_pass(tmp_path: Path) -> None:
    model = one_node_model(tmp_path, "Relu", ["n", 1, "h", "w"])
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, 1, 4 + k, 6)).astype(np.float32) for k in (0, 3, 0)]
    found = observe(model, ["x"], [Batch(inputs={"x": a}) for a in arrays], open_model)
    flat = np.concatenate([a.ravel() for a in arrays])
    assert found.tensors["x"].counts.sum() == flat.size
    assert (found.tensors["x"].low, found.tensors["x"].high) == (flat.min(), flat.max())


@pytest.mark.parametrize("where", [0, 7])
@pytest.mark.parametrize(("op", "value"), [("Log", -1.0), ("Log", 0.0), ("Sqrt", -4.0)])
def test_a_tensor_that_becomes_nan_or_infinite_is_named(
    tmp_path: Path, op: str, value: float, where: int
) -> None:
    model = one_node_model(tmp_path, op, ["n", 5000])
    x = np.random.default_rng(0).uniform(1, 2, (8, 5000)).astype(np.float32)
    x[where, 1234] = value  # one of 40,000, that no subsample need see
    with pytest.raises(InputError, match='"y" becomes NaN or infinite'):
        observe(
            model, ["y"], batches_of(x, name="x"), open_model, options=ObserveOptions(sampled=5)
        )


def test_a_nan_from_a_weight_is_found(tmp_path: Path) -> None:
    weight = np.ones((16, 4), np.float32)
    model = one_node_model(tmp_path, "MatMul", ["n", 16], weight)
    weight[3, 2] = np.nan  # a training's doing; a file with one is not loaded
    set_parameter(model.graph, "w0", weight)
    x = np.ones((2, 16), np.float32)
    with pytest.raises(InputError, match='"y" becomes NaN or infinite'):
        observe(model, ["y"], batches_of(x, name="x"), open_model)


def test_the_first_taps_behind_what_makes_nan_look_for_it(tmp_path: Path) -> None:
    steps = [("Relu", "x", "a"), ("Log", "a", "b"), ("Relu", "b", "c"), ("Neg", "c", "d"),
             ("Relu", "b", "e"), ("Relu", "a", "f")]  # fmt: skip
    nodes = [helper.make_node(op, [given], [made], name=made) for op, given, made in steps]
    value = functools.partial(
        helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=["n", 8]
    )
    graph = helper.make_graph(nodes, "g", [value("x")], [value("d"), value("e"), value("f")])
    place = tmp_path / "nan.onnx"
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )  # fmt: skip
    onnx.save(proto, place)
    model = load(place)
    assert may_turn_nan(model, {"b", "c", "d", "e", "f"}) == {"b"}
    assert may_turn_nan(model, {"c", "d", "f"}) == {"c"}
    assert may_turn_nan(model, {"d", "e"}) == {"d", "e"}
    assert may_turn_nan(model, {"a", "f"}) == frozenset()


def test_the_digests_are_kept(residual: Model, images: Array) -> None:
    options = ObserveOptions(data_digest="abc")
    found = observe(residual, ["sum"], batches_of(images), open_model, options=options)
    assert (found.model_digest, found.data_digest) == (digest(residual), "abc")


def test_progress_is_told_after_each_batch(residual: Model, images: Array) -> None:
    heard: list[int] = []
    observe(residual, ["sum"], batches_of(images, 10), open_model, on_batch=heard.append)
    assert heard == [10, 20, 30, 32]


def test_at_most_as_many_samples_as_asked(residual: Model, images: Array) -> None:
    options = ObserveOptions(samples=13)
    found = observe(residual, ["image"], batches_of(images), open_model, options=options)
    assert found.samples == 13
    assert found.tensors["image"].high == images[:13].max()


# Rows of the consumers


def outputs_by_onnxruntime(model: Model, x: Array) -> Array:
    with open_model(model, optimise=False) as session:
        return run(session, {"x": x})["y"]


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]] = [
    ((2, 4, 7, 6), (5, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 4, 7, 6), (6, 2, 3, 3), {"group": 2, "strides": [2, 1], "pads": [0, 1, 2, 0]}),
    ((2, 4, 9, 8), (4, 1, 3, 3), {"group": 4, "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    ((2, 4, 7, 6), (5, 4, 1, 1), {"strides": [2, 2]}),
    ((2, 4, 7, 8), (5, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((2, 4, 7, 8), (5, 4, 4, 2), {"auto_pad": "SAME_LOWER"}),
    ((3, 2, 11), (4, 2, 5), {"pads": [2, 2]}),
]


@pytest.mark.parametrize(("shape", "kernel", "attributes"), CONVOLUTIONS)
def test_rows_times_weights_are_outputs_of_the_convolution(
    tmp_path: Path, shape: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    weight = rng.normal(size=kernel).astype(np.float32)
    model = one_node_model(tmp_path, "Conv", ["n", *shape[1:]], weight, **attributes)
    outputs = outputs_by_onnxruntime(model, x)
    positions = np.moveaxis(outputs, 1, -1).reshape(-1, kernel[0])

    options = ObserveOptions(rows=True)
    found = observe(model, ["x"], [Batch(inputs={"x": x})], open_model, options=options)
    rows = found.tensors["x"].rows["one"]
    weights = weights_of(next(iter(model.graph)))
    assert weights is not None
    got = np.einsum("rgk,gkn->rgn", rows, weights).reshape(len(rows), -1)
    distance = np.abs(got[:, None] - positions[None]).max(axis=2)
    assert distance.min(axis=1).max() < 1e-4  # each is one of the outputs
    assert len(set(distance.argmin(axis=1))) > 0.5 * len(positions)  # and many of them are met


def test_rows_times_weights_of_a_transposed_convolution_sum_to_its_output(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, 3, 2)).astype(np.float32)
    weight = rng.normal(size=(4, 3, 2, 2)).astype(np.float32)
    model = one_node_model(
        tmp_path, "ConvTranspose", ["n", 4, 3, 2], weight, strides=[2, 2], group=2
    )  # no two windows overlap: each input position makes outputs of its own
    outputs = outputs_by_onnxruntime(model, x)
    node = next(iter(model.graph))
    weights = weights_of(node)
    assert weights is not None
    indices, padding = row_indices(node, x.shape, 40, np.random.default_rng(1))
    assert padding is None
    got = np.einsum("rgk,gkn->rgn", x.ravel()[indices], weights).reshape(40, 6, 2, 2)
    windows = outputs.reshape(6, 3, 2, 2, 2).transpose(1, 3, 0, 2, 4).reshape(6, 6, 2, 2)
    distance = np.abs(got[:, None] - windows[None]).max(axis=(2, 3, 4))
    assert distance.min(axis=1).max() < 1e-5
    assert set(distance.argmin(axis=1)) == set(range(6))


@pytest.mark.parametrize(("op", "attributes"), [("MatMul", {}), ("Gemm", {"transB": 1})])
def test_rows_of_a_product_are_rows_of_its_input(
    tmp_path: Path, op: str, attributes: dict[str, Any]
) -> None:
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    weight = np.ones((3, 5) if attributes else (5, 3), np.float32)
    model = one_node_model(tmp_path, op, ["n", 5], weight, **attributes)
    options = ObserveOptions(rows=True)
    found = observe(model, ["x"], batches_of(x, 2, "x"), open_model, options=options)
    rows = found.tensors["x"].rows["one"][:, 0]
    assert {tuple(row) for row in rows} <= {tuple(row) for row in x}
    assert len(rows) <= MOST_ROWS + 3
    assert len({tuple(row) for row in rows}) == 6


def test_rows_come_from_all_batches(residual: Model, images: Array) -> None:
    marked = images.copy()
    marked[:, 0] = np.arange(32).reshape(-1, 1, 1)  # red tells the sample
    options = ObserveOptions(rows=True)
    found = observe(residual, ["image"], batches_of(marked, 4), open_model, options=options)
    (rows,) = found.tensors["image"].rows.values()
    red = rows.reshape(len(rows), 3, 9)[:, 0].max(axis=1)
    assert len(set(red // 4)) == 8


def test_best_needs_no_second_look_at_the_data(residual: Model, images: Array) -> None:
    folded, _ = fold_batchnorm(residual)
    options = ObserveOptions(rows=True)
    names = float_activations(folded)
    found = observe(folded, names, batches_of(images), open_model, options=options)
    choose = choice("best", symmetric=True, model=folded)
    for observed in found.tensors.values():
        low, high = choose(observed)
        assert min(observed.low, 0) <= low <= high <= max(observed.high, 0)


# When to stop


def still(count: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [Batch(inputs={"x": rng.uniform(-1, 1, (8, 400)).astype(np.float32)})
            for _ in range(count // 8)]  # fmt: skip


def watched(folder: Path, batches: list[Batch], samples: Any = None, sampled: int = 400) -> Ranges:
    model = one_node_model(folder, "Relu", ["n", 400])
    options = ObserveOptions(samples=samples, sampled=sampled)
    return observe(model, ["x", "y"], batches, open_model, options=options)


def test_auto_stops_at_the_floor_where_nothing_moves(tmp_path: Path) -> None:
    found = watched(tmp_path, still(256), "auto")
    assert found.samples == 32
    assert found.settled == 16
    assert "stood still after 16" in str(found)


def test_auto_goes_on_while_ranges_grow(tmp_path: Path) -> None:
    batches = still(256)
    for place, batch in enumerate(batches):
        batch.inputs["x"][:] *= min(1 + place, 9)  # until sample 64
    found = watched(tmp_path, batches, "auto")
    assert 64 < found.samples < 256
    assert found.settled is not None
    assert 48 <= found.settled <= found.samples // 2


def test_ranges_that_grow_to_the_end_never_settle(tmp_path: Path) -> None:
    batches = still(128)
    for place, batch in enumerate(batches):
        batch.inputs["x"][:] *= 1.5**place
    found = watched(tmp_path, batches, "auto")
    assert found.samples == 128
    assert found.settled is None
    assert "still moved at the end" in str(found)


def test_without_auto_all_samples_are_seen_and_the_line_is_there(tmp_path: Path) -> None:
    found = watched(tmp_path, still(128))
    assert (found.samples, found.settled) == (128, 16)


# Checks


def pictures(count: int = 40, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return IMAGENET.apply(rng.integers(0, 256, (count, 3, 4, 4), np.uint8))


def checked(images: Array, preprocessing: Preprocessing | None = IMAGENET) -> str:
    return "; ".join(check_batches(batches_of(images), preprocessing))


def test_good_samples_raise_no_doubt() -> None:
    assert checked(pictures()) == ""


def test_no_sample_is_an_error(residual: Model) -> None:
    with pytest.raises(InputError, match="no sample to calibrate with"):
        check_batches([], None)
    with pytest.raises(InputError, match="no sample to calibrate with"):
        observe(residual, ["sum"], [], open_model)


def test_few_samples_are_said() -> None:
    assert "5 samples: ranges of fewer than 32" in checked(pictures(5))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_sample_is_named(bad: float) -> None:
    images = pictures()
    images[13, 0, 1, 1] = bad
    with pytest.raises(InputError) as caught:
        checked(images)
    assert caught.value.where == 'data.calibration, input "image", sample 13'


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_samples_without_any_difference_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="one number everywhere"):
        checked(np.full((40, 3, 4, 4), value, np.float32))


def test_one_sample_over_and_over_is_refused() -> None:
    with pytest.raises(InputError, match="all calibration samples are the same one"):
        checked(np.repeat(pictures(1), 40, axis=0))


def test_repeats_are_counted() -> None:
    images = pictures()
    images[30:] = images[:10]
    assert "10 of 40 samples are repeats of another" in checked(images)


def test_blank_pictures_are_counted() -> None:
    images = pictures()
    images[3], images[9] = 0.5, 0.25
    assert '"image": 2 of 40 samples are one number everywhere' in checked(images)


def test_an_input_that_never_changes_is_said_and_the_others_count() -> None:
    batch = Batch(inputs={"a": pictures(), "b": np.ones((40, 2), np.float32)})
    assert check_batches([batch], IMAGENET) == ('the input "b" is 1 everywhere, in every sample',)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pixels: pixels, "pixels as they are stored"),
        (lambda pixels: pixels / 255, "without mean and std"),
        (lambda pixels: IMAGENET.apply(pixels) / 255, "scaled twice"),
        (lambda pixels: pixels - 128, "another preprocessing"),
    ],
)
def test_values_that_the_preprocessing_does_not_make_are_said(
    change: Callable[[Array], Array], said: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 4)).astype(np.float32)
    doubts = checked(change(pixels).astype(np.float32))
    assert said in doubts
    assert "preprocessing gives -2.118 to 2.64" in doubts


@pytest.mark.parametrize("preprocessing", [None, Preprocessing(scale=1.0)])
def test_raw_pixels_are_right_where_the_model_wants_them(
    preprocessing: Preprocessing | None,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 4)).astype(np.float32)
    assert checked(pixels, preprocessing) == ""


def test_doubts_are_in_the_ranges(residual: Model, images: Array) -> None:
    model = dataclasses.replace(residual, preprocessing=IMAGENET)
    found = observe(model, ["sum"], batches_of(50 * images[:9]), open_model)
    assert any("9 samples" in doubt for doubt in found.doubts)
    assert any("preprocessing gives" in doubt for doubt in found.doubts)


# On a real network


@pytest.mark.shared_data
def test_the_subsample_hardly_moves_the_ranges_of_a_trained_network(shared_data: Path) -> None:
    model, _ = fold_batchnorm(load(shared_data / "models" / "resnet20-cifar10.onnx"))
    x = np.random.default_rng(0).normal(size=(64, 3, 32, 32)).astype(np.float32)
    x = (x + np.roll(x, 1, 2) + np.roll(x, 1, 3) + np.roll(x, 2, 2)) / 2
    name = model.inputs[0].name
    names = [node.inputs[0].name or "" for node in model.graph if node.op_type == "Conv"]

    def observed(sampled: int) -> Ranges:
        options = ObserveOptions(sampled=sampled)
        return observe(model, names, batches_of(x, 8, name), open_model, options=options)

    whole, part = observed(1 << 20), observed(1024)
    for tensor in names:
        wanted, got = (percentile(r.tensors[tensor], 99.9)[1] for r in (whole, part))
        assert got == pytest.approx(wanted, rel=0.05)
