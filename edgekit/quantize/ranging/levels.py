"""The expected squared error of a range over a histogram, and the range where it is least.

The grids are those of `grids.activation_grid`: symmetric, 255 integers around 0 with scale
amax / 127; affine, 256 integers with scale (high - low) / 255 over a range that holds 0, the zero
point rounded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.quantize.ranging.histogram import TensorRange
from edgekit.values import Array

_COARSE = 32  # candidates of each end in the first look
_CLOSER = 3  # looks, each between the neighbours of the best so far
_SMALLEST_SHARE = 0.02  # of an end; less is never chosen


def mse(observed: TensorRange, *, symmetric: bool) -> tuple[float, float]:
    """The range with the least expected squared error (`expected_errors`) over the histogram.

    Each end is searched from 2% of its observed value to all of it, coarsely and then three times
    closer; of an affine range both ends together.
    """
    low, high = min(observed.low, 0.0), max(observed.high, 0.0)
    if low == high:
        return observed.low, observed.high
    shares, whole = np.linspace(_SMALLEST_SHARE, 1, _COARSE), np.ones(1)
    if symmetric:
        amax = observed.amax
        share, _ = _closing_in(
            lambda a, _: expected_errors(observed, -a * amax, a * amax, symmetric=True),
            shares, whole,
        )  # fmt: skip
        return max(low, -share * amax), min(high, share * amax)
    low_share, high_share = _closing_in(
        lambda a, b: expected_errors(observed, a * low, b * high, symmetric=False),
        shares if low < 0 else whole, shares if high > 0 else whole,
    )  # fmt: skip
    return low_share * low, high_share * high


def expected_errors(observed: TensorRange, lows: Array, highs: Array, *, symmetric: bool) -> Array:
    """The mean squared error of rounding and clipping, for each range (n,) of `lows`, `highs`.

    Every value is taken to lie at the middle of its bin. With s the scale, the integer k stands for
    the values in [(k - 1/2) s, (k + 1/2) s), the first and last integer also for all beyond. Over
    the bins of one integer, with n the count of a bin and c its middle,

        sum n (c - k s)^2 = sum n c^2 - 2 k s sum n c + (k s)^2 sum n

    comes from three cumulative sums: a range costs 256 steps, not one for each bin.
    """
    if symmetric:
        scale = np.maximum(np.maximum(-lows, highs), np.finfo(np.float32).tiny) / 127
        first = np.full(len(scale), -128.0)
    else:
        scale = np.maximum(highs - lows, np.finfo(np.float32).tiny) / 255
        first = -np.rint(-lows / scale)
    integers = first[:, None] + np.arange(256)
    borders = (integers[:, 1:] - 0.5) * scale[:, None]
    count, width = len(observed.counts), observed.bin_width
    # The number of bins whose middle lies under a border.
    under = np.ceil((borders + observed.reach) / width - 0.5)
    under = np.clip(under, 0, count).astype(np.int64)
    under = np.pad(under, ((0, 0), (1, 1)), constant_values=((0, 0), (0, count)))
    middles = (np.arange(count) + 0.5) * width - observed.reach
    weights = observed.counts
    moments = np.zeros((3, count + 1))
    np.cumsum([weights, weights * middles, weights * middles**2], axis=1, out=moments[:, 1:])
    n, first_moment, second = moments[:, under[:, 1:]] - moments[:, under[:, :-1]]
    values = integers * scale[:, None]
    total = (second - 2 * values * first_moment + values**2 * n).sum(axis=1)
    found: Array = np.maximum(total, 0) / max(float(weights.sum()), 1e-300)
    return found


def _closing_in(
    error: Callable[[Array, Array], Array], a: Array, b: Array
) -> tuple[float, float]:  # fmt: skip
    """The pair with the least error among all of `a` and `b`, then among ever closer ones."""
    for _ in range(_CLOSER + 1):
        pairs = np.meshgrid(a, b, indexing="ij")
        found = error(pairs[0].ravel(), pairs[1].ravel()).reshape(len(a), len(b))
        i, j = np.unravel_index(int(found.argmin()), found.shape)
        best = float(a[i]), float(b[j])
        a, b = _between_neighbours(a, int(i)), _between_neighbours(b, int(j))
    return best


def _between_neighbours(values: Array, index: int) -> Array:
    """Nine values from the one before `index` to the one behind it; the middle one is its own."""
    if len(values) == 1:
        return values
    here = values[index]
    before, behind = values[max(index - 1, 0)], values[min(index + 1, len(values) - 1)]
    return np.unique([*np.linspace(before, here, 5), *np.linspace(here, behind, 5)])
