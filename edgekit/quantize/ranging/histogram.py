"""What is kept of one tensor: exact ends, a histogram that grows, numbers of each channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgekit.values import Array

BINS = 8192
"""Bins of a histogram over [-reach, reach]: 2,048 to 4,096 of them lie in [0, amax]."""

_SMALLEST_REACH = 1e-30  # of a tensor of zeros


@dataclass(frozen=True, kw_only=True, eq=False)
class Channels:
    """Each channel's minimum, maximum, mean and mean square, (c,) float64; axis 1 of the tensor."""

    low: Array
    high: Array
    mean: Array
    mean_square: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorRange:
    """The exact minimum and maximum of a tensor, and its histogram over [-reach, reach].

    `counts` has `BINS` equal bins; `reach` is a power of two times the first batch's largest
    magnitude, so that every value lies inside. Where the histogram is that of a subsample, each of
    its `looked_at` values counts for as many as it stands for. `zeros` is the part of the middle
    bin that is exactly 0.

    `rows` has, by node, what some of the places see that read this tensor with weights:
    (rows, groups, inputs of a group) float32, padding included.
    """

    low: float
    high: float
    reach: float
    counts: Array
    zeros: float = 0.0
    looked_at: int = 0
    channels: Channels | None = None
    rows: Mapping[str, Array] = field(default_factory=dict)

    @property
    def amax(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    @property
    def edges(self) -> Array:
        """The borders of the bins, one more than there are bins."""
        return np.linspace(-self.reach, self.reach, len(self.counts) + 1)

    @property
    def bin_width(self) -> float:
        """What a bin covers."""
        return 2 * self.reach / len(self.counts)


class GrowingHistogram:
    """Counts over [-reach, reach]; a value outside doubles the reach, merging bins in pairs."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.reach = 0.0
        self.counts: Array = np.zeros(BINS)
        self.zeros = 0.0
        self.looked_at = 0
        """Values so far; whoever counts them says so."""

    def widen(self, low: float, high: float) -> None:
        """Takes a minimum and a maximum, both finite, into the range; counts nothing."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        magnitude = max(abs(low), abs(high))
        if not self.reach:
            self.reach = max(magnitude, _SMALLEST_REACH)
        while magnitude > self.reach:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self.reach *= 2

    def count(self, values: Array, weight: float = 1.0) -> None:
        """Counts values (n,) that lie in the range, each for `weight` of them."""
        found = np.bincount(self._bins_of(values), minlength=BINS)
        self.counts += found if weight == 1 else found * weight
        self.zeros += (values.size - np.count_nonzero(values)) * weight

    def _count_few(self, values: Array, weight: float) -> None:
        """As `count`, quicker for values that are far fewer than bins."""
        np.add.at(self.counts, self._bins_of(values), weight)
        self.zeros += (values.size - np.count_nonzero(values)) * weight

    def _bins_of(self, values: Array) -> Array:
        # The bin of x is floor((x + reach) * BINS / (2 reach)); x = reach goes to the last one.
        bins = values * np.float32(BINS / (2 * self.reach))
        bins += np.float32(BINS / 2)
        indices: Array = bins.astype(np.int32)
        np.minimum(indices, BINS - 1, out=indices)
        return indices

    def count_part(self, values: Array, weight: float, lows: Array, highs: Array) -> None:
        """Counts a part of the values of some rows, and each row's minimum and maximum once.

        `values` (rows, n) are drawn from the rows, each for `weight` of them; `lows` and `highs`
        (rows,) are the rows' own. One that was drawn by itself counts for one from now on, not
        for `weight`; where several values equal it, as 0 does behind a ReLU, they count as drawn.
        """
        self.count(values.ravel(), weight)
        for ends in (lows, highs):
            met = (values == ends[:, None]).sum(axis=1)
            self._count_few(ends[met == 0], 1.0)
            self._count_few(ends[met == 1], 1 - weight)

    def finished(
        self, *, channels: Channels | None = None, rows: Mapping[str, Array] | None = None
    ) -> TensorRange:
        """The range so far."""
        return TensorRange(
            low=float(self.low), high=float(self.high), reach=float(self.reach),
            counts=self.counts.copy(), zeros=self.zeros, looked_at=self.looked_at,
            channels=channels, rows=rows or {},
        )  # fmt: skip


class GrowingChannels:
    """The numbers of each channel over all batches."""

    def __init__(self) -> None:
        self.values = 0
        self.low: Array = np.array(np.inf)
        self.high: Array = np.array(-np.inf)
        self.sum: Array = np.array(0.0)
        self.squares: Array = np.array(0.0)

    def add(self, found: Channels, values: int) -> None:
        """Takes one batch's numbers, each of `values` values."""
        self.values += values
        self.low = np.minimum(self.low, found.low)
        self.high = np.maximum(self.high, found.high)
        self.sum = self.sum + found.mean * values
        self.squares = self.squares + found.mean_square * values

    def finished(self) -> Channels:
        """The numbers so far."""
        return Channels(
            low=self.low.astype(np.float64), high=self.high.astype(np.float64),
            mean=self.sum / self.values, mean_square=self.squares / self.values,
        )  # fmt: skip
