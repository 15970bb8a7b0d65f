"""Ranges: histograms that grow, the ways to choose, and their files."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.quantize.dialects import TENSORRT, onnxruntime_dialect
from edgekit.quantize.grids import activation_grid
from edgekit.quantize.ranges import (
    METHODS,
    Ranges,
    choice,
    load_ranges,
    minmax,
    percentile,
    save_ranges,
)
from edgekit.quantize.ranging.consumers import SHARES, Best, rounded_rows
from edgekit.quantize.ranging.entropy import best_end, divergences, entropy
from edgekit.quantize.ranging.histogram import BINS, Channels, GrowingHistogram, TensorRange
from edgekit.quantize.ranging.levels import expected_errors, mse
from edgekit.values import Array

U8 = onnxruntime_dialect(frozenset(), arm=False)


def histogram(*parts: Array) -> TensorRange:
    growing = GrowingHistogram()
    for part in parts:
        growing.widen(float(part.min()), float(part.max()))
        growing.count(part)
        growing.looked_at += len(part)
    return growing.finished()


def normal(count: int = 20_000, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def small(counts: Array, *, reach: float = 1.0, **changed: float) -> TensorRange:
    """A range of few bins that reaches from the first to the last that is not empty."""
    edges = np.linspace(-reach, reach, len(counts) + 1)
    filled = np.flatnonzero(counts)
    low, high = float(edges[filled[0]]), float(edges[filled[-1] + 1])
    found = TensorRange(low=low, high=high, reach=reach, counts=np.asarray(counts, np.float64))
    return dataclasses.replace(found, **changed)


# Histograms


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.integers(1, 5))
def test_nothing_is_lost_however_the_batches_come(values: list[float], pieces: int) -> None:
    array = np.asarray(values, np.float32)
    found = histogram(*[part for part in np.array_split(array, pieces) if len(part)])
    assert found.counts.sum() == len(array) == found.looked_at
    assert (found.low, found.high) == (array.min(), array.max())
    assert found.reach >= np.abs(array).max()
    assert found.zeros == (array == 0).sum()


def test_growing_gives_the_counts_of_one_histogram_over_the_final_range() -> None:
    parts = [normal(5000, seed) * np.float32(sigma) for seed, sigma in enumerate((0.1, 1.0, 7.0))]
    found = histogram(*parts)
    expected, _ = np.histogram(
        np.concatenate(parts).astype(np.float64), bins=BINS, range=(-found.reach, found.reach)
    )
    # A value within a rounding error of a border may fall on either side of it.
    assert np.abs(np.cumsum(found.counts) - np.cumsum(expected)).max() <= 2


def test_a_value_that_stands_for_three_counts_three_times() -> None:
    once, thrice = GrowingHistogram(), GrowingHistogram()
    values = normal(100)
    for growing, weight, repeats in ((once, 3.0, 1), (thrice, 1.0, 3)):
        growing.widen(-4, 4)
        for _ in range(repeats):
            growing.count(values, weight)
    assert once.finished().counts.tolist() == thrice.finished().counts.tolist()


# minmax and percentile


def test_percentile_of_a_uniform_tensor_is_its_quantile() -> None:
    found = histogram(np.linspace(-1, 1, 200_001, dtype=np.float32))
    low, high = percentile(found, 90)
    assert (low, high) == pytest.approx((-0.9, 0.9), abs=4 / BINS)


def test_percentile_of_a_one_sided_tensor_clips_one_side() -> None:
    found = histogram(np.linspace(0, 1, 100_001, dtype=np.float32))
    low, high = percentile(found, 99)
    assert low == 0
    assert high == pytest.approx(0.99, abs=4 / BINS)


def test_percentile_100_is_minmax() -> None:
    found = histogram(normal(1000, 1))
    assert percentile(found, 100) == minmax(found)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["percentile", "entropy", "mse"])
def test_an_outlier_is_clipped_by_all_but_minmax(name: str, symmetric: bool) -> None:
    values = normal(100_000, 2)
    values[0] = 50
    found = histogram(values)
    assert minmax(found)[1] == 50
    most = 45 if name == "mse" else 15  # one value of 50 in 100,000 costs mse its square
    assert choice(name, percent=99.9, symmetric=symmetric)(found)[1] < most


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["minmax", "percentile", "entropy", "mse"])
def test_a_tensor_of_zeros_has_a_range_of_zero(name: str, symmetric: bool) -> None:
    found = histogram(np.zeros(10, np.float32))
    assert choice(name, symmetric=symmetric)(found) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=300),
    st.sampled_from(["minmax", "percentile", "entropy", "mse"]),
    st.booleans(),
)
def test_no_way_leaves_what_was_observed(values: list[float], name: str, symmetric: bool) -> None:
    found = histogram(np.asarray(values, np.float32))
    low, high = choice(name, symmetric=symmetric)(found)
    assert min(found.low, 0) <= low <= high <= max(found.high, 0) or (low, high) == minmax(found)


# mse: least expected squared error


@pytest.mark.parametrize("dialect", [TENSORRT, U8])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (-0.3, 0.7), (0.0, 0.9), (-1.3, 0.0)])
def test_expected_error_is_that_of_the_grid_itself(
    dialect: object, low: float, high: float
) -> None:
    found = histogram(normal())
    grid = activation_grid(low, high, dialect)  # type: ignore[arg-type]
    middles = (found.edges[:-1] + found.edges[1:]) / 2
    errors = (grid.round_trip(middles.astype(np.float32)) - middles) ** 2
    wanted = (errors * found.counts).sum() / found.counts.sum()
    symmetric = dialect is TENSORRT
    got = expected_errors(found, np.array([low]), np.array([high]), symmetric=symmetric)
    assert got[0] == pytest.approx(wanted, rel=1e-4)


def test_mse_is_the_best_of_a_thousand_thresholds() -> None:
    values = np.concatenate([normal(), normal(200, 5) * 8]).astype(np.float32)
    found = histogram(values)
    chosen = max(np.abs(mse(found, symmetric=True)))

    def error(amax: float) -> float:
        grid = activation_grid(-amax, amax, TENSORRT)
        return float(((grid.round_trip(values) - values) ** 2).mean())

    brute = min(error(amax) for amax in np.linspace(0.02, 1, 1000) * found.amax)
    assert error(chosen) <= 1.005 * brute
    assert error(chosen) < 0.95 * error(found.amax)


def test_affine_mse_is_the_best_of_a_grid_of_both_ends() -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.exponential(1, 20_000), -rng.random(3000) * 0.4, [25.0, -3.0]])
    found = histogram(values.astype(np.float32))

    def error(low: float, high: float) -> float:
        grid = activation_grid(low, high, U8)
        return float(((grid.round_trip(values) - values) ** 2).mean())

    shares = np.linspace(0.02, 1, 40)
    brute = min(error(a * -3.0, b * 25.0) for a, b in itertools.product(shares, shares))
    assert error(*mse(found, symmetric=False)) <= 1.01 * brute


def test_uniform_values_are_not_clipped_by_mse() -> None:
    found = histogram(np.linspace(-1, 1, 100_001, dtype=np.float32))
    assert mse(found, symmetric=True) == pytest.approx((-1, 1), abs=0.01)
    assert mse(found, symmetric=False) == pytest.approx((-1, 1), abs=0.01)


# entropy: from its definition


def plain_divergence(counts: Array, kept: int, levels: int) -> float:
    """KL(P || Q) as the slides define it, bin by bin."""
    p = [float(c) for c in counts[:kept]]
    p[-1] += float(sum(counts[kept:]))
    members: dict[int, list[int]] = {}
    for b in range(kept):
        members.setdefault(b * levels // kept, []).append(b)
    q = [0.0] * kept
    for bins in members.values():
        filled = [b for b in bins if counts[b] > 0]
        for b in filled:
            q[b] = sum(float(counts[b]) for b in filled) / len(filled)
    total_p, total_q = sum(p), sum(q)
    found = 0.0
    for mass_p, mass_q in zip(p, q, strict=True):
        if mass_p == 0:
            continue
        if mass_q == 0:
            return float("inf")
        found += mass_p / total_p * np.log((mass_p / total_p) / (mass_q / total_q))
    return float(found)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=9, max_size=40), st.integers(2, 8))
def test_divergences_are_those_of_the_definition(counts: list[int], levels: int) -> None:
    counts[0] += 1
    array = np.array(counts, np.float64)
    ends = np.arange(levels, len(counts) + 1)
    wanted = [plain_divergence(array, end, levels) for end in ends]
    assert divergences(array, ends, levels) == pytest.approx(wanted, abs=1e-9)
    assert wanted[best_end(array, levels) - levels] == pytest.approx(min(wanted), abs=1e-9)


def test_divergences_leave_the_histogram_as_it_is() -> None:
    counts = np.array([5.0, 4, 3, 2, 1, 0, 0, 1])
    before = counts.copy()
    divergences(counts, np.arange(2, 9), 2)
    assert counts.tolist() == before.tolist()


def test_two_levels_by_hand() -> None:
    # Kept [4, 2, 1, 1] of [4, 2, 1, 1]: Q = [3, 3, 1, 1].
    by_hand = (4 * np.log(4 / 3) + 2 * np.log(2 / 3)) / 8
    # Kept [4, 2], P = [4, 4] / 8, Q = [4, 2] / 6.
    clipped = (np.log((1 / 2) / (2 / 3)) + np.log((1 / 2) / (1 / 3))) / 2
    counts = np.array([4.0, 2, 1, 1])
    assert divergences(counts, np.array([4, 2]), 2) == pytest.approx([by_hand, clipped])


def test_clipping_onto_an_empty_bin_is_never_chosen() -> None:
    assert divergences(np.array([4.0, 2, 0, 1]), np.array([3]), 2)[0] == np.inf


def test_symmetric_entropy_is_over_magnitudes() -> None:
    values = normal(50_000)
    mirrored = entropy(histogram(-values), symmetric=True)
    assert mirrored == tuple(-end for end in reversed(entropy(histogram(values), symmetric=True)))


def test_symmetric_entropy_is_the_threshold_of_brute_force() -> None:
    rng = np.random.default_rng(4)
    counts = np.zeros(1024)
    counts[512:] = rng.poisson(500 * np.exp(-np.arange(512) / 40))
    found = small(counts)
    magnitudes = counts[512 : np.flatnonzero(counts)[-1] + 1]
    wanted = min(
        range(128, len(magnitudes) + 1), key=lambda i: plain_divergence(magnitudes, i, 128)
    )
    threshold = entropy(found, symmetric=True)[1]
    assert threshold == pytest.approx(min((wanted + 0.5) / 512, found.high))


def test_affine_entropy_of_a_one_sided_tensor_is_the_end_of_brute_force() -> None:
    rng = np.random.default_rng(5)
    counts = np.zeros(1024)
    counts[512:] = rng.poisson(900 * np.exp(-np.arange(512) / 60))
    found = small(counts)
    used = counts[512 : np.flatnonzero(counts)[-1] + 1]
    wanted = min(range(256, len(used) + 1), key=lambda i: plain_divergence(used, i, 256))
    assert entropy(found, symmetric=False)[1] == pytest.approx(
        min((wanted + 0.5) / 512, found.high)
    )


def test_exact_zeros_do_not_sway_entropy() -> None:
    values = np.abs(normal(30_000))
    relu = np.concatenate([values, np.zeros(60_000, np.float32)])
    assert entropy(histogram(relu), symmetric=True) == entropy(histogram(values), symmetric=True)


# best: least error at the consumer's output


def brute_best(
    observed: TensorRange, rows: Array, weight: Array, symmetric: bool
) -> tuple[float, float]:
    model_free = ["minmax", "entropy", "mse"]
    candidates = [choice(name, symmetric=symmetric)(observed) for name in model_free]
    candidates += [percentile(observed, percent) for percent in (99.9, 99.99, 99.999)]
    candidates += [(s * observed.low, s * observed.high) for s in SHARES]
    if not symmetric:
        candidates += [(observed.low, s * observed.high) for s in SHARES]
        candidates += [(s * observed.low, observed.high) for s in SHARES]
    dialect = TENSORRT if symmetric else U8

    def error(ends: tuple[float, float]) -> float:
        grid = activation_grid(*ends, dialect)
        return float((((grid.round_trip(rows) - rows).astype(np.float64) @ weight) ** 2).sum())

    return min(candidates, key=error)


def matmul_model(weight: Array) -> Model:
    x = ir.val("x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", len(weight)]))
    w = ir.val("w", const_value=ir.tensor(weight, name="w"))
    node = ir.node("MatMul", [x, w], name="product")
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17})
    return Model(name="one", program=ir.Model(graph, ir_version=9))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_best_is_the_candidate_with_the_least_error_behind_the_weights(
    seed: int, symmetric: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(3, (64, 16)).astype(np.float32)
    low, high = -float(np.abs(rows).max()), float(np.abs(rows).max())
    rows[0, 0], rows[0, 1] = low, high  # so that shares of the ends are shares of amax
    weight = rng.normal(size=(16, 8)).astype(np.float32)
    observed = dataclasses.replace(histogram(rows.ravel()), rows={"product": rows[:, None, :]})
    chosen = choice("best", symmetric=symmetric, model=matmul_model(weight))(observed)
    assert chosen == pytest.approx(brute_best(observed, rows, weight, symmetric))


def test_best_looks_at_what_the_weights_read_and_mse_does_not() -> None:
    # One input is huge, and its weights are 0: clipping it costs nothing.
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (64, 1, 8)).astype(np.float32)
    rows[:, :, 0] *= 100
    weight = rng.normal(size=(8, 4)).astype(np.float32)
    weight[0] = 0
    observed = dataclasses.replace(histogram(rows.ravel()), rows={"product": rows})
    best = choice("best", symmetric=True, model=matmul_model(weight))(observed)
    assert max(np.abs(best)) == pytest.approx(min(SHARES) * observed.amax)
    assert max(np.abs(mse(observed, symmetric=True))) > 0.9 * observed.amax


def test_best_without_rows_is_mse() -> None:
    observed = histogram(normal())
    chosen = Best(weights={}, symmetric=True).choose(observed, [minmax(observed)])
    assert chosen == mse(observed, symmetric=True)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, 0.6), (-0.4, 0.1)])
@pytest.mark.parametrize("dialect", [TENSORRT, U8])
def test_rounded_rows_are_what_the_grid_makes_of_them(
    dialect: object, low: float, high: float
) -> None:
    rows = normal(500)
    grid = activation_grid(low, high, dialect)  # type: ignore[arg-type]
    got = rounded_rows(rows, low, high, symmetric=dialect is TENSORRT)
    assert got == pytest.approx(grid.round_trip(rows), abs=1e-6)


def test_best_needs_the_model() -> None:
    with pytest.raises(InputError, match="only for a model that is at hand"):
        choice("best")


def test_an_unknown_way_to_choose_names_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        choice("entropie", percent=99.99)
    assert caught.value.wanted == ", ".join(METHODS)


# Files


def some_ranges() -> Ranges:
    channels = Channels(
        low=np.array([-1.0, 0]), high=np.array([1.0, 8]), mean=np.array([0.0, 2]),
        mean_square=np.array([0.5, 6]),
    )  # fmt: skip
    rows = {"conv/1": np.arange(6, dtype=np.float32).reshape(3, 1, 2)}
    tensor = dataclasses.replace(
        histogram(np.arange(9, dtype=np.float32)), channels=channels, rows=rows
    )
    return Ranges(
        tensors={"a/b": tensor, "c": histogram(normal(50))}, samples=3, settled=2, sampled=7,
        doubts=("few",), model_digest="m" * 64, data_digest="d" * 64,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_ranges_come_back_from_their_files(tmp_path: Path, suffix: str) -> None:
    ranges = some_ranges()
    save_ranges(ranges, tmp_path / "ranges.npz")
    found = load_ranges(tmp_path / f"ranges.{suffix}", model_digest="m" * 64, data_digest="d" * 64)
    assert dataclasses.replace(found, tensors={}) == dataclasses.replace(ranges, tensors={})
    assert list(found.tensors) == ["a/b", "c"]
    for name, wanted in ranges.tensors.items():
        got = found.tensors[name]
        assert got.counts.tolist() == wanted.counts.tolist()
        assert (got.low, got.high, got.zeros) == (wanted.low, wanted.high, wanted.zeros)
        assert choice("mse")(got) == choice("mse")(wanted)
    assert found.tensors["a/b"].channels.mean_square.tolist() == [0.5, 6]  # type: ignore[union-attr]
    assert found.tensors["a/b"].rows["conv/1"].tolist() == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert found.tensors["c"].channels is None


def test_the_numbers_can_be_read_without_numpy(tmp_path: Path) -> None:
    save_ranges(some_ranges(), tmp_path / "ranges.npz")
    stored = json.loads((tmp_path / "ranges.json").read_text())
    assert stored["samples"] == 3
    assert stored["tensors"]["a/b"]["high"] == 8


@pytest.mark.parametrize(("what", "key"), [("model", "model_digest"), ("data", "data_digest")])
def test_ranges_of_another_model_or_other_data_are_refused(
    tmp_path: Path, what: str, key: str
) -> None:
    save_ranges(some_ranges(), tmp_path / "ranges.npz")
    with pytest.raises(InputError, match=f"observed with another {what}"):
        load_ranges(tmp_path / "ranges.npz", **{key: "x" * 64})


def test_arrays_of_other_ranges_are_refused(tmp_path: Path) -> None:
    save_ranges(some_ranges(), tmp_path / "ranges.npz")
    other = dataclasses.replace(some_ranges(), tensors={"c": histogram(normal(60, 9))})
    save_ranges(other, tmp_path / "other.npz")
    (tmp_path / "other.npz").replace(tmp_path / "ranges.npz")
    with pytest.raises(InputError, match="cannot be read"):
        load_ranges(tmp_path / "ranges.npz")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 9}', '{"format": 1}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    save_ranges(some_ranges(), tmp_path / "ranges.npz")
    (tmp_path / "ranges.json").write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        load_ranges(tmp_path / "ranges.npz")


def test_missing_ranges_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such ranges"):
        load_ranges(tmp_path / "ranges.npz")
