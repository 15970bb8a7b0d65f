"""Percentiles of raw samples: the nearest rank, its interval in a row of calls, MLPerf's bound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.bench.statistics.autocorrelation import effective_samples
from edgekit.bench.statistics.intervals import CONFIDENCE, Estimated, binomial, order_ranks
from edgekit.values import Array, Figure, Unknown

_EARLY_STOPPING_RISK = 0.01


def percentile(samples: Sequence[float] | Array, percent: float) -> float:
    """The smallest sample that at least `percent` of all samples do not exceed (nearest rank).

    x_(k) with k = ceil(percent / 100 * n): always one of the samples, nothing is interpolated.
    Raises ValueError where there is none, or `percent` is not in (0, 100].
    """
    if not len(samples) or not 0 < percent <= 100:
        raise ValueError(f"percentile {percent} of {len(samples)} samples")
    ordered = np.sort(np.asarray(samples, np.float64))
    return float(ordered[_rank(len(ordered), percent) - 1])


def _rank(n: int, percent: float) -> int:
    # 99.9 / 100 * 1000 is 999.0000000000001 in floating point, and its ceiling one too many.
    return max(1, math.ceil(round(percent * n / 100, 9)))


def percentile_estimate(
    samples: Sequence[float] | Array, percent: float, confidence: float = CONFIDENCE
) -> Estimated:
    """The percentile with an interval from the order statistics, for samples in the order taken.

    Calls in a row are alike: n of them are worth m, the effective number of the indicators
    [x <= q] (`autocorrelation.effective_samples`), the fewer of those of the percentile itself and
    of one with twice its tail, of which more is seen (beside the median: of 40 and 60%). The ranks
    l and u of m independent samples (`intervals.order_ranks`) stand at l / (m + 1) and u / (m + 1)
    of the distribution, and the interval's ends are the samples there, rounded outwards. Nothing
    is assumed of the distribution. Unknown where m, or what the samples are worth for the median,
    is too small for such ranks: bursts of slow calls must be many before the tail they make is
    known.
    """
    value = percentile(samples, percent)
    ordered = np.sort(np.asarray(samples, np.float64))
    p, n = percent / 100, len(ordered)
    worth, at_the_middle = _worth(np.asarray(samples, np.float64), ordered, p)
    ranks = None if p == 1 else order_ranks(worth, p, confidence)
    if ranks is None or order_ranks(min(worth, at_the_middle), p, confidence) is None:
        said = f"{n} samples say too little of it"
        if at_the_middle < n / 2:
            said += f": in a row they are so alike that they are worth {at_the_middle}"
        return Estimated(value=value, interval=Unknown(said))
    scale = (n + 1) / (worth + 1)
    low, high = math.floor(ranks[0] * scale), math.ceil(ranks[1] * scale)
    interval = (float(ordered[max(low, 1) - 1]), float(ordered[min(high, n) - 1]))
    return Estimated(value=value, interval=interval)


def _worth(series: Array, ordered: Array, p: float) -> tuple[int, int]:
    """What the samples are worth for their p-quantile, and for their median."""

    def worth(quantile: float) -> float:
        limit = ordered[_rank(len(ordered), 100 * quantile) - 1]
        return effective_samples((series <= limit).astype(np.float64))

    near = {p, 0.4, 0.6} if p == 0.5 else {p, max(0.5, 2 * p - 1) if p > 0.5 else min(0.5, 2 * p)}
    at_the_middle = worth(0.5)
    return max(1, int(min(map(worth, near)))), max(1, int(at_the_middle))


def enough_samples(percent: float) -> int:
    """How many samples a percentile must rest on: 64 for p90, 130 for p95, 662 for p99.

    The fewest that MLPerf's early stopping gives an estimate for (`early_stopping`, t = 1).
    """
    q = 1 - percent / 100
    n = 2
    while (1 - q) ** n + n * q * (1 - q) ** (n - 1) > _EARLY_STOPPING_RISK:
        n += 1
    return n


def early_stopping(samples: Sequence[float] | Array, percent: float) -> Figure:
    """A bound that the percentile does not exceed, with 99% confidence; LoadGen's own estimate.

    MLPerf's early stopping (inference rules, appendix; confidence 0.99, tolerance 0): the t-th
    largest of the n samples, t the largest with P(B <= t) <= 0.01 where B is binomial(n, 1 - p),
    and at least 1. Independent calls are assumed. Unknown where there are fewer samples than
    `enough_samples`.
    """
    n, enough = len(samples), enough_samples(percent)
    if n < enough:
        return Unknown(f"too few samples: {n}, and {enough} are needed")
    cumulative = np.cumsum(binomial(n, 1 - percent / 100))
    discarded = int(np.flatnonzero(cumulative <= _EARLY_STOPPING_RISK)[-1])
    ordered = np.sort(np.asarray(samples, np.float64))
    return float(ordered[n - discarded])
