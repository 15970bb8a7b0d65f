"""Percentiles, rates and ratios of raw samples, each with the interval that it deserves.

All intervals are two-sided at 95%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.values import Array, Measurement, Unknown

_CONFIDENCE = 0.95

# t of Student's distribution at 0.975, for 1 to 30 degrees of freedom (any table of it).
_STUDENT_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """A figure from samples, and where its true value lies, or why nobody can say."""

    value: float
    interval: tuple[float, float] | Unknown


def percentile(samples: Sequence[float], percent: float) -> float:
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


def percentile_estimate(samples: Sequence[float], percent: float) -> Estimated:
    """The percentile with an interval from the order statistics.

    With B binomial(n, p): l is the largest rank with P(B < l) <= 0.025, u the smallest with
    P(B >= u) <= 0.025, and the interval is [x_(l), x_(u)] (David and Nagaraja, Order Statistics,
    section 7.1). Nothing is assumed of the distribution but that the calls are independent, which
    calls in a row are only roughly. Unknown where n is too small for such ranks.
    """
    value = percentile(samples, percent)
    ranks = _order_ranks(len(samples), percent / 100)
    if ranks is None:
        said = f"{len(samples)} samples say too little of it"
        return Estimated(value=value, interval=Unknown(said))
    ordered = np.sort(np.asarray(samples, np.float64))
    return Estimated(value=value, interval=(float(ordered[ranks[0]]), float(ordered[ranks[1]])))


def _order_ranks(n: int, p: float) -> tuple[int, int] | None:
    """The indices l - 1 and u - 1 of `percentile_estimate` in n sorted samples; None: too few."""
    cumulative = np.cumsum(_binomial(n, p))
    tail = (1 - _CONFIDENCE) / 2
    below = np.flatnonzero(cumulative <= tail)  # P(B <= k): l = k + 1
    above = np.flatnonzero(1 - cumulative <= tail)  # P(B >= k + 1): u = k + 1
    low, high = (int(below[-1]) + 1 if below.size else 0), int(above[0]) + 1
    return None if low < 1 or high > n else (low - 1, high - 1)


def _binomial(n: int, p: float) -> Array:
    """P(B = k) for k = 0 .. n, B binomial(n, p), 0 < p < 1."""
    k = np.arange(1, n + 1)
    log_choices = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))])
    ranks = np.arange(n + 1)
    weights: Array = np.exp(log_choices + ranks * math.log(p) + (n - ranks) * math.log1p(-p))
    return weights


def enough_samples(percent: float) -> int:
    """How many samples a percentile must rest on: 64 for p90, 662 for p99.

    MLPerf's early stopping (inference rules, appendix): with 99% confidence the percentile lies
    below the second largest of n samples, that is P(B <= 1) <= 0.01 with B binomial(n, 1 - p);
    LoadGen asks for this n.
    """
    q = 1 - percent / 100
    n = 2
    while (1 - q) ** n + n * q * (1 - q) ** (n - 1) > 0.01:
        n += 1
    return n


def round_samples(measurement: Measurement) -> list[Array]:
    """The samples of each round, in the order taken."""
    samples = np.asarray(measurement.samples, np.float64)
    return [part for part in np.split(samples, measurement.rounds[1:]) if part.size]


def fps(measurement: Measurement) -> Estimated:
    """Samples a second: batch * n / (sum of the n latencies).

    The interval is Student's over the R rounds' own rates: mean +- t s / sqrt(R), R - 1 degrees
    of freedom. It takes the rounds for independent and normal about one rate: what changes
    between rounds (clocks, neighbours) is in it, what changes from run to run is not.
    """
    total = math.fsum(measurement.samples)
    value = measurement.batch * len(measurement.samples) / total
    return Estimated(value=value, interval=_student_interval(_round_rates(measurement)))


def speedup(candidate: Measurement, baseline: Measurement) -> Estimated:
    """How many times the baseline's rate the candidate has, from rounds taken in turn.

    r_i is the ratio of the two rates in round i: a drift that slows both arms of a round cancels.
    The value is exp(median(ln r_i)), its interval that of the median from order statistics (as in
    `percentile_estimate`), so that a neighbour's burst in a round or two moves neither; with fewer
    than 6 rounds, which are too few for that, Student's over ln r_i. Raises ValueError where the
    two were not measured in the same rounds.
    """
    ours, theirs = _round_rates(candidate), _round_rates(baseline)
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}")
    logs = np.log(ours / theirs)
    ranks = _order_ranks(len(logs), 0.5)
    if ranks is not None:
        ordered = np.sort(logs)
        found: tuple[float, float] | Unknown = (float(ordered[ranks[0]]), float(ordered[ranks[1]]))
    else:
        found = _student_interval(logs)
    interval = found if isinstance(found, Unknown) else (math.exp(found[0]), math.exp(found[1]))
    return Estimated(value=math.exp(float(np.median(logs))), interval=interval)


def round_spread(measurement: Measurement) -> float:
    """(fastest - slowest) / mean of the rounds' rates."""
    rates = _round_rates(measurement)
    return float((rates.max() - rates.min()) / rates.mean())


def _round_rates(measurement: Measurement) -> Array:
    return np.array([measurement.batch / part.mean() for part in round_samples(measurement)])


def _student_interval(values: Array) -> tuple[float, float] | Unknown:
    if len(values) < 2:
        return Unknown("one round shows no spread")
    # Beyond the table the last t is a little too wide.
    t = _STUDENT_T[min(len(values) - 1, len(_STUDENT_T)) - 1]
    mean = float(values.mean())
    half = t * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean - half, mean + half
