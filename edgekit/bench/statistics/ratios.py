"""How two arms that took turns stand to each other, decided at once or in several looks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.bench.statistics.intervals import (
    CONFIDENCE,
    Estimated,
    order_ranks,
    student_interval,
    student_quantile,
)
from edgekit.bench.statistics.percentiles import percentile
from edgekit.bench.statistics.rates import process_samples, round_rates
from edgekit.values import Array, Measurement, Unknown

_ENOUGH_PROCESSES = 3
_ENOUGH_TO_TRIM = 6
_UNDISTURBED = 10  # percent


def look_confidence(looks: int, confidence: float = CONFIDENCE) -> float:
    """The confidence of each of so many looks, so that all their intervals hold at `confidence`.

    Who measures more until an interval decides looks several times, and each look may err. With
    (1 - confidence) / looks for each the chance that any of them does is at most 1 - confidence,
    however the looks depend on one another (Bonferroni). The number of looks is fixed beforehand.
    """
    return 1 - (1 - confidence) / looks


def speedup(
    candidate: Measurement, baseline: Measurement, confidence: float = CONFIDENCE
) -> Estimated:
    """How many times the baseline's rate the candidate has, from rounds taken in turn.

    r_i is the ratio of the two rates in round i: a drift that slows both arms of a round cancels.
    Of every process it is the median of the ln r_i, so that a neighbour's burst in a round or two
    does not move it; the interval is `ratio_of_processes`'. Raises ValueError where the two were
    not measured in the same rounds.
    """
    ours, theirs = round_rates(candidate), round_rates(baseline)
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}")
    logs = np.log(ours / theirs)
    starts = [candidate.rounds.index(start) for start in candidate.processes[1:]]
    return ratio_of_processes(np.split(logs, starts), confidence)


def ratio_of_processes(logs: Sequence[Array], confidence: float = CONFIDENCE) -> Estimated:
    """exp of where the log ratios of rounds lie, which are given process by process.

    Three processes or more: each one's median is one value, for what a process was dealt (memory,
    caches) lasts as long as it does (`over_processes`). Fewer: the median of all rounds with its
    interval from order statistics (as in `percentile_estimate`); with fewer than 6 rounds, which
    are too few for that, Student's.
    """
    if len(logs) >= _ENOUGH_PROCESSES:
        return over_processes(np.array([np.median(of_one) for of_one in logs]), confidence)
    rounds = np.concatenate(list(logs))
    ranks = order_ranks(len(rounds), 0.5, confidence)
    if ranks is not None:
        ordered = np.sort(rounds)
        found: tuple[float, float] | Unknown = (
            float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1]),
        )  # fmt: skip
    else:
        found = student_interval(rounds, confidence)
    return _exponential(float(np.median(rounds)), found)


def undisturbed_ratio(
    candidate: Measurement, baseline: Measurement, confidence: float = CONFIDENCE
) -> Estimated:
    """How many times as fast as the baseline the candidate is where nobody disturbs either.

    Of every process it is the ratio of the two lower deciles of the latencies: on a machine that
    others use too, the tenth of the calls that got through undisturbed, which a neighbour moves
    far less than means or medians. What only some of the calls suffer (a second speed, a slow kind
    of input) is not in it: so where the interval of `speedup`, which is of all calls, lies wholly
    beside this one, the interval holds both. The processes' values as in `over_processes`; with
    fewer than three processes it is `speedup`. Raises ValueError as that does.
    """
    of_all = speedup(candidate, baseline, confidence)
    ours, theirs = process_samples(candidate), process_samples(baseline)
    if min(len(ours), len(theirs)) < _ENOUGH_PROCESSES or len(ours) != len(theirs):
        return of_all
    values = [
        math.log(candidate.batch / baseline.batch)
        + math.log(percentile(b, _UNDISTURBED) / percentile(a, _UNDISTURBED))
        for a, b in zip(ours, theirs, strict=True)
    ]
    found = over_processes(np.array(values), confidence)
    if isinstance(found.interval, Unknown) or isinstance(of_all.interval, Unknown):
        return found
    (low, high), (low_of_all, high_of_all) = found.interval, of_all.interval
    if low_of_all > high or high_of_all < low:
        low, high = min(low, low_of_all), max(high, high_of_all)
    return Estimated(value=found.value, interval=(low, high))


def over_processes(logs: Array, confidence: float = CONFIDENCE) -> Estimated:
    """exp of the mean of one log ratio for each process, with its interval.

    Student's; from six processes on the lowest and the highest are not counted, so that one that
    got no processor decides nothing: with h = n - 2 left, mean of those -+ t s_w (n - 1)^(1/2) /
    (h (h - 1))^(1/2), h - 1 degrees of freedom, s_w the deviation with the two outermost set to
    their neighbours (Tukey and McLaughlin, Sankhya A 25, 1963).
    """
    count = len(logs)
    if count < _ENOUGH_TO_TRIM:
        return _exponential(float(logs.mean()), student_interval(logs, confidence))
    ordered = np.sort(logs)
    left = count - 2
    mean = float(ordered[1:-1].mean())
    squares = float(np.var(np.clip(ordered, ordered[1], ordered[-2])) * count)
    t = student_quantile(0.5 + confidence / 2, left - 1)
    half = t * math.sqrt(squares / (left * (left - 1)))
    return _exponential(mean, (mean - half, mean + half))


def _exponential(value: float, interval: tuple[float, float] | Unknown) -> Estimated:
    if not isinstance(interval, Unknown):
        interval = (math.exp(interval[0]), math.exp(interval[1]))
    return Estimated(value=math.exp(value), interval=interval)


def noise_floor(same: Sequence[Estimated]) -> float | Unknown:
    """The smallest relative limit that a machine can hold, from A/A runs of one engine.

    The farthest that any interval of `speedup` (of an engine over itself) reaches from 1, as time:
    a limit below it would not be kept by an engine against itself.
    """
    farthest = 0.0
    for found in same:
        if isinstance(found.interval, Unknown):
            return found.interval
        low, high = found.interval
        farthest = max(farthest, 1 / low - 1, high - 1)
    return farthest if same else Unknown("there was no A/A run")
