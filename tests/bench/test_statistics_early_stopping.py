"""MLPerf's early-stopping estimate: by its definition, and beside LoadGen's own."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench.statistics import early_stopping, enough_samples
from edgekit.values import Array, Unknown


def at_most(t: int, n: int, q: float) -> float:
    """P(B <= t), B binomial(n, q), by exact sums of whole numbers' choices."""
    return math.fsum(math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(t + 1))


@pytest.mark.parametrize(("percent", "n"), [(50, 40), (90, 64), (90, 200), (95, 130), (99, 700)])
def test_the_bound_is_the_sample_that_the_binomial_names(percent: int, n: int) -> None:
    q = 1 - percent / 100
    t = next(t for t in range(1, n) if at_most(t + 1, n, q) > 0.01)
    samples = np.random.default_rng(n).permutation(n) + 1.0
    assert early_stopping(samples, percent) == n + 1 - t


@pytest.mark.parametrize(("percent", "fewest"), [(90, 64), (95, 130), (99, 662), (99.9, 6636)])
def test_fewer_samples_are_too_few(percent: float, fewest: int) -> None:
    assert enough_samples(percent) == fewest
    few = early_stopping(np.ones(fewest - 1), percent)
    assert isinstance(few, Unknown)
    assert few.reason == f"too few samples: {fewest - 1}, and {fewest} are needed"
    assert early_stopping(np.arange(fewest), percent) == fewest - 1


def test_it_is_loadgens_own_estimate(tmp_path: Path) -> None:
    """LoadGen runs a single stream, and estimates from the latencies that are in its trace."""
    loadgen = pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    for count, percentile in ((64, 90), (500, 90), (130, 95), (300, 50)):
        folder = tmp_path / f"{count}-{percentile}"
        folder.mkdir()
        latencies, said = run_loadgen(loadgen, folder, count, percentile)
        assert len(latencies) == count
        assert early_stopping(latencies, percentile) == said


def run_loadgen(lg: Any, folder: Path, count: int, percentile: int) -> tuple[Array, int]:
    """The latencies in ns that LoadGen traced, and the estimate in its summary."""
    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.SingleStream
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = count
    settings.min_duration_ms = 0
    settings.single_stream_target_latency_percentile = percentile / 100
    settings.single_stream_expected_latency_ns = 10_000
    output = lg.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logging = lg.LogSettings()
    logging.log_output = output
    logging.enable_trace = True

    def issue(queries: list[Any]) -> None:
        answers = [lg.QuerySampleResponse(q.id, 0, 0) for q in queries]
        lg.QuerySamplesComplete(answers)

    sut = lg.ConstructSUT(issue, lambda: None)
    qsl = lg.ConstructQSL(16, 16, lambda _: None, lambda _: None)
    lg.StartTestWithLogSettings(sut, qsl, settings, logging)
    lg.DestroyQSL(qsl)
    lg.DestroySUT(sut)
    summary = (folder / "mlperf_log_summary.txt").read_text()
    found = re.search(rf"Early stopping {percentile}\S*th percentile estimate: (\d+)", summary)
    assert found, summary
    trace = (folder / "mlperf_log_trace.json").read_text()
    latencies = [int(ns) for ns in re.findall(r'"complete_ns":(\d+)', trace)]
    return np.array(latencies), int(found[1])
