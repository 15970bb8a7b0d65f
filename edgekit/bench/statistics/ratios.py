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
)
from edgekit.bench.statistics.rates import round_rates
from edgekit.values import Array, Measurement, Unknown

_ENOUGH_PROCESSES = 3


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
    caches) lasts as long as it does; the mean of the values with Student's interval over them.
    Fewer: the median of all rounds with its interval from order statistics (as in
    `percentile_estimate`); with fewer than 6 rounds, which are too few for that, Student's.
    """
    if len(logs) >= _ENOUGH_PROCESSES:
        values = np.array([np.median(of_one) for of_one in logs])
        return _exponential(float(values.mean()), student_interval(values, confidence))
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
