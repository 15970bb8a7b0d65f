"""Percentiles, rates and ratios of raw samples, each with its interval, and reasons to doubt them.

Functions on arrays and on Measurements, without I/O.
"""

from edgekit.bench.statistics.autocorrelation import effective_samples, long_run_variance
from edgekit.bench.statistics.doubts import Doubt, doubts
from edgekit.bench.statistics.intervals import CONFIDENCE, Estimated, student_interval
from edgekit.bench.statistics.percentiles import (
    early_stopping,
    enough_samples,
    percentile,
    percentile_estimate,
)
from edgekit.bench.statistics.rates import (
    fps,
    process_samples,
    round_rates,
    round_samples,
    round_spread,
    throughput,
)
from edgekit.bench.statistics.ratios import (
    look_confidence,
    noise_floor,
    over_processes,
    ratio_of_processes,
    speedup,
    undisturbed_ratio,
)
from edgekit.bench.statistics.stationary import Ends, burst_and_sustained, steady_from

__all__ = [
    "CONFIDENCE", "Doubt", "Ends", "Estimated", "burst_and_sustained", "doubts",
    "early_stopping", "effective_samples", "enough_samples", "fps", "long_run_variance",
    "look_confidence", "noise_floor", "over_processes", "percentile", "percentile_estimate",
    "process_samples", "ratio_of_processes", "round_rates", "round_samples", "round_spread",
    "speedup", "steady_from", "student_interval", "throughput", "undisturbed_ratio",
]  # fmt: skip
