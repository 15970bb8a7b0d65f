"""Ranges: exact ends, histograms that grow, and the ways to choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.quantize.observe import _GrowingHistogram
from edgekit.quantize.ranges import (
    BINS,
    Ranges,
    TensorRange,
    choice,
    load_ranges,
    minmax,
    percentile,
    save_ranges,
)
from edgekit.values import Array


def histogram(*parts: Array) -> TensorRange:
    growing = _GrowingHistogram("t")
    for part in parts:
        growing.add(part)
    return growing.finished()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.integers(1, 5))
def test_nothing_is_lost_however_the_batches_come(values: list[float], pieces: int) -> None:
    array = np.asarray(values, np.float32)
    found = histogram(*[part for part in np.array_split(array, pieces) if len(part)])
    assert found.counts.sum() == len(array)
    assert (found.low, found.high) == (array.min(), array.max())
    assert found.reach >= np.abs(array).max()


def test_growing_gives_the_counts_of_one_histogram_over_the_final_range() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, sigma, 5000).astype(np.float32) for sigma in (0.1, 1.0, 7.0)]
    found = histogram(*parts)
    expected, _ = np.histogram(
        np.concatenate(parts).astype(np.float64), bins=BINS, range=(-found.reach, found.reach)
    )
    # A value within a rounding error of a border may fall on either side of it.
    assert np.abs(np.cumsum(found.counts) - np.cumsum(expected)).max() <= 2


def test_percentile_of_a_uniform_tensor_is_its_quantile() -> None:
    found = histogram(np.linspace(-1, 1, 200_001, dtype=np.float32))
    low, high = percentile(found, 90)
    assert (low, high) == pytest.approx((-0.9, 0.9), abs=2 / BINS)


def test_percentile_of_a_one_sided_tensor_clips_one_side() -> None:
    found = histogram(np.linspace(0, 1, 100_001, dtype=np.float32))
    low, high = percentile(found, 99)
    assert low == 0
    assert high == pytest.approx(0.99, abs=2 / BINS)


def test_percentile_100_is_minmax() -> None:
    found = histogram(np.random.default_rng(1).normal(size=1000).astype(np.float32))
    assert percentile(found, 100) == minmax(found)


def test_an_outlier_is_clipped_by_percentile_only() -> None:
    values = np.random.default_rng(2).normal(size=100_000).astype(np.float32)
    values[0] = 1000
    found = histogram(values)
    assert minmax(found)[1] == 1000
    assert percentile(found, 99.9)[1] < 5


def test_a_tensor_of_zeros_has_a_range_of_zero() -> None:
    found = histogram(np.zeros(10, np.float32))
    assert minmax(found) == percentile(found, 99.99) == (0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_by_name(bad: float) -> None:
    with pytest.raises(InputError, match='"t" becomes NaN or infinite'):
        histogram(np.array([0, bad], np.float32))


def test_ranges_come_back_from_their_file(tmp_path: Path) -> None:
    ranges = Ranges(tensors={"a": histogram(np.arange(9, dtype=np.float32))}, samples=3)
    save_ranges(ranges, tmp_path / "ranges.npz")
    found = load_ranges(tmp_path / "ranges.npz")
    assert found.samples == 3
    assert found.tensors["a"].counts.tolist() == ranges.tensors["a"].counts.tolist()
    assert minmax(found.tensors["a"]) == (0, 8)


def test_an_unknown_way_to_choose_names_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        choice("entropie", percent=99.99)
    assert "minmax, percentile" in caught.value.wanted
