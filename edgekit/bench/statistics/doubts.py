"""What a series of latencies shows that one figure of it would hide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.bench.statistics.autocorrelation import effective_samples, long_run_variance
from edgekit.values import Array

FEWEST = 100
_BATCHES = 40
# Chance brings a clean series over this in about 1 of 100 (counted: benchmarks/truth.py).
_DRIFT_T = 3.0
_STEP_T = 6.0
_DRIFT_LEAST = 0.01
_SPIKE_SPREADS = 6.0
_SPIKE_LEAST = math.log(1.5)
_SPIKES_MOST = 0.05
_MODE_LEAST = 0.05
_VALLEY = 0.6
# In logarithms: modes that lie nearer than about 2% to one another are one.
_BANDWIDTH_LEAST = 0.005
_GRID = 512
# Of two speeds that last for a while few spells are seen, but of each speed many calls.
_WORTH_OF_A_DENSITY = 100.0
_WORTH_LEAST = 20


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """`kind` is drift, bimodal, spikes or autocorrelation; `said` tells it with figures."""

    kind: str
    said: str


def doubts(samples: Sequence[float] | Array) -> tuple[Doubt, ...]:
    """Every doubt that latencies in the order taken, warm-up cut off, give rise to.

    None with fewer than 100 samples, of which too little can be said, and none for a constant.
    Raises ValueError where a sample is not above zero.
    """
    series = np.asarray(samples, np.float64)
    if series.size and not series.min() > 0:
        raise ValueError(f"a latency of {series.min()}")
    if series.size < FEWEST or series.min() == series.max():
        return ()
    logs = np.log(series)
    worth = effective_samples(_without_tails(logs))
    said = {
        "drift": _drift(logs),
        "bimodal": _bimodal(logs, worth),
        "spikes": _spikes(logs),
        "autocorrelation": _alike(len(logs), worth),
    }
    return tuple(Doubt(kind=kind, said=text) for kind, text in said.items() if text)


def _without_tails(logs: Array) -> Array:
    low, high = np.quantile(logs, [0.01, 0.99])
    clipped: Array = np.clip(logs, low, high)
    return clipped


def _drift(logs: Array) -> str:
    """A line or a step through the medians of 40 stretches, against its standard error.

    The error is from the long-run variance v of what the fit leaves, never less than its variance:
    of a slope se^2 = v / sum (t - mean)^2, of a step between the first k stretches and the last l
    se^2 = v / k + v / l. A slope is named from 3 standard errors on; the step, which stands where
    it fits best, from 6; either where it is at least 1%.
    """
    size = len(logs) // min(_BATCHES, len(logs) // 5)
    count = len(logs) // size
    medians = np.median(logs[: count * size].reshape(count, size), axis=1)
    medians -= medians.mean()
    places = np.arange(count) - (count - 1) / 2
    spread = float(places @ places)
    slope = float(places @ medians) / spread
    error = math.sqrt(_unrest(medians - slope * places) / spread)
    change = math.expm1(slope * count)
    way = "slower" if slope > 0 else "faster"
    if abs(slope) > _DRIFT_T * error and abs(change) >= _DRIFT_LEAST:
        return f"it drifts: the calls grew {100 * abs(change):.1f}% {way} from first to last"
    cuts = np.arange(max(2, count // 10), count - max(2, count // 10) + 1)
    # medians has the mean zero: k a + l b = 0, and the best step explains the most k a^2 + l b^2.
    sums = np.cumsum(medians)[cuts - 1]
    cut = int(cuts[int(np.argmax(sums**2 / cuts + sums**2 / (count - cuts)))])
    before, after = float(medians[:cut].mean()), float(medians[cut:].mean())
    rest = np.concatenate([medians[:cut] - before, medians[cut:] - after])
    error = math.sqrt(_unrest(rest) * (1 / cut + 1 / (count - cut)))
    step = math.expm1(after - before)
    if abs(after - before) > _STEP_T * error and abs(step) >= _DRIFT_LEAST:
        way = "slower" if step > 0 else "faster"
        return f"it drifts: from call {cut * size} on it is {100 * abs(step):.1f}% {way}"
    return ""


def _unrest(rest: Array) -> float:
    # Of 40 values a chance likeness would make the long-run variance far too small.
    return max(long_run_variance(rest), float(rest.var()))


def _bimodal(logs: Array, worth: float) -> str:
    """Two peaks of a kernel density with a valley between them of at most 0.6 of the lower one.

    The bandwidth is Silverman's, 0.9 min(s, IQR / 1.34) m^(-1/5) (Density Estimation, 1986, section
    3.4.2), with m what the samples are worth, at least 100; each side of the valley holds 5%.
    """
    quarter, half = np.quantile(logs, [0.25, 0.75])
    spread = min(float(logs.std()), float(half - quarter) / 1.34 or math.inf)
    bandwidth = max(0.9 * spread * max(worth, _WORTH_OF_A_DENSITY) ** -0.2, _BANDWIDTH_LEAST)
    low, high = np.quantile(logs, [0.002, 0.998]) + 4 * bandwidth * np.array([-1, 1])
    counts, edges = np.histogram(logs, _GRID, (low, high))
    step = float(edges[1] - edges[0])
    reach = min(_GRID // 2 - 1, math.ceil(4 * bandwidth / step))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / bandwidth) ** 2)
    density = np.convolve(counts, kernel / kernel.sum(), "same")
    # The highest point on the left and on the right of every place, and how deep it lies below.
    left = np.maximum.accumulate(density)
    right = np.maximum.accumulate(density[::-1])[::-1]
    below = np.cumsum(counts) / max(counts.sum(), 1)
    deep = (
        (density <= _VALLEY * np.minimum(left, right))
        & (below >= _MODE_LEAST) & (below <= 1 - _MODE_LEAST)
    )  # fmt: skip
    if not deep.any():
        return ""
    valley = int(np.flatnonzero(deep)[np.argmin(density[deep])])
    middles = (edges[:-1] + edges[1:]) / 2
    first = math.exp(middles[int(np.argmax(density[:valley]))])
    second = math.exp(middles[valley + int(np.argmax(density[valley:]))])
    return (
        f"it has two speeds: {100 * below[valley]:.0f}% of the calls take about "
        f"{first * 1e3:.3g} ms, the others about {second * 1e3:.3g} ms"
    )


def _spikes(logs: Array) -> str:
    """At least two calls, and at most 5%, above 1.5 times the median and 6 robust spreads."""
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    over = logs - middle > max(_SPIKE_SPREADS * spread, _SPIKE_LEAST)
    count = int(over.sum())
    if count < 2 or count > _SPIKES_MOST * len(logs):
        return ""
    worst = math.exp(float(logs.max()) - middle)
    return f"it has spikes: {count} of {len(logs)} calls, the worst {worst:.1f} times the median"


def _alike(count: int, worth: float) -> str:
    if worth >= _WORTH_LEAST:
        return ""
    return f"the calls in a row are so alike that {count} are worth {worth:.0f} independent ones"
