"""Rates of raw samples, and what they say of the rate that the next run would have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.bench.statistics.autocorrelation import effective_samples, long_run_variance
from edgekit.bench.statistics.intervals import (
    CONFIDENCE,
    Estimated,
    student_interval,
    student_quantile,
)
from edgekit.values import Array, Measurement, Unknown

_ENOUGH_PROCESSES = 3
_ENOUGH_SAMPLES = 20


def throughput(
    groups: Sequence[Array], batch: int = 1, confidence: float = CONFIDENCE
) -> Estimated:
    """Samples a second, batch / (mean latency), from the latencies of each process in order.

    One process: the interval of the mean is -+ t sqrt(v / n), v the long-run variance, which
    counts that calls in a row are alike, t Student's for as many as they are worth. Several: the
    wider of that (v of each process, added up) and Student's over the processes' own means, so
    that what differs from process to process is in it. Unknown with fewer than 20 samples in a
    process, or an interval that reaches zero.
    """
    counts = np.array([len(group) for group in groups])
    total = int(counts.sum())
    mean = math.fsum(math.fsum(group) for group in groups) / total
    value = batch / mean
    if counts.min() < _ENOUGH_SAMPLES:
        return Estimated(value=value, interval=Unknown(f"{counts.min()} calls say too little"))
    variance = math.fsum(
        (len(group) / total) ** 2 * long_run_variance(group) / len(group) for group in groups
    )
    worth = math.fsum(effective_samples(group) for group in groups)
    degrees = max(1, int(worth) - len(groups))
    half = student_quantile(0.5 + confidence / 2, degrees) * math.sqrt(variance)
    if len(groups) > 1:
        between = student_interval(np.array([group.mean() for group in groups]), confidence)
        assert not isinstance(between, Unknown)
        half = max(half, (between[1] - between[0]) / 2)
    if half >= mean:
        return Estimated(value=value, interval=Unknown("the interval reaches down to zero"))
    return Estimated(value=value, interval=(batch / (mean + half), batch / (mean - half)))


def round_samples(measurement: Measurement) -> list[Array]:
    """The samples of each round, in the order taken."""
    return _parts(measurement, measurement.rounds)


def process_samples(measurement: Measurement) -> list[Array]:
    """The samples of each process, in the order taken."""
    return _parts(measurement, measurement.processes)


def _parts(measurement: Measurement, starts: Sequence[int]) -> list[Array]:
    samples = np.asarray(measurement.samples, np.float64)
    return [part for part in np.split(samples, starts[1:]) if part.size]


def fps(measurement: Measurement) -> Estimated:
    """Samples a second: batch * n / (sum of the n latencies).

    With three processes or more the interval is `throughput`'s. With fewer it is Student's over
    the R rounds' own rates, mean -+ t s / sqrt(R), R - 1 degrees of freedom, which takes the rounds
    for independent and normal about one rate: what changes between rounds (clocks, neighbours) is
    in it, what changes from run to run is not.
    """
    total = math.fsum(measurement.samples)
    value = measurement.batch * len(measurement.samples) / total
    if len(measurement.processes) >= _ENOUGH_PROCESSES:
        found = throughput(process_samples(measurement), measurement.batch)
        return Estimated(value=value, interval=found.interval)
    return Estimated(value=value, interval=student_interval(round_rates(measurement)))


def round_spread(measurement: Measurement) -> float:
    """(fastest - slowest) / mean of the rounds' rates."""
    rates = round_rates(measurement)
    return float((rates.max() - rates.min()) / rates.mean())


def round_rates(measurement: Measurement) -> Array:
    """Samples a second of each round."""
    return np.array([measurement.batch / part.mean() for part in round_samples(measurement)])
