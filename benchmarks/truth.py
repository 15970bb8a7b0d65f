"""The statistics on latencies whose truth is known: 1,000 seeded runs of every distribution.

    python benchmarks/truth.py [--runs 1000] [--only rates quantiles bounds doubts warm-up looks]

A fake Session draws its latencies (1 ms, spread 5%, 2,000 calls) from a known distribution. Counted
is how often the intervals of the rate and of percentiles hold the true value, how wide they are
beside an oracle's that knows the sampling distribution, how often MLPerf's bound holds, which
doubts are raised, where the warm-up is found to end, and how often a decision in several looks
errs. Prints a table; exit 1 where a row misses what is asked of it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from edgekit.bench import statistics
from edgekit.values import Array, Unknown

CALLS = 2000
LATENCY_S = 1e-3
SPREAD = 0.05
WARM_UP = 300
PERCENTS = (50, 90, 95, 99)
Draw = Callable[[np.random.Generator, int, int], Array]


@dataclass(frozen=True)
class Row:
    what: str
    found: str
    asked: str
    kept: bool


def normal(rng: np.random.Generator, runs: int, calls: int, rho: float = 0.0) -> Array:
    """(runs, calls): 1 + 0.05 z, z normal and autoregressive of the first order, stationary."""
    z = rng.normal(size=(runs, calls))
    if rho:
        for t in range(1, calls):
            z[:, t] = rho * z[:, t - 1] + math.sqrt(1 - rho**2) * z[:, t]
    return 1 + SPREAD * z


def autoregressive(rho: float) -> Draw:
    return lambda rng, runs, calls: normal(rng, runs, calls, rho)


def constant(rng: np.random.Generator, runs: int, calls: int) -> Array:
    return np.ones((runs, calls))


def log_normal(rng: np.random.Generator, runs: int, calls: int) -> Array:
    return np.exp(SPREAD * rng.normal(size=(runs, calls)))


def bimodal(rng: np.random.Generator, runs: int, calls: int) -> Array:
    """Three of ten calls take 1.3 times as long."""
    return log_normal(rng, runs, calls) * np.where(rng.random((runs, calls)) < 0.3, 1.3, 1.0)


def in_spells(rng: np.random.Generator, runs: int, calls: int) -> Array:
    """Two speeds, 1 and 1.3, each for about 100 calls."""
    slow = np.cumsum(rng.random((runs, calls)) < 0.01, axis=1) % 2
    return log_normal(rng, runs, calls) * np.where(slow, 1.3, 1.0)


def spiking(rng: np.random.Generator, runs: int, calls: int) -> Array:
    """One of 100 calls takes 5 times as long."""
    return log_normal(rng, runs, calls) * np.where(rng.random((runs, calls)) < 0.01, 5.0, 1.0)


def drifting(rng: np.random.Generator, runs: int, calls: int) -> Array:
    """10% slower from the first call to the last."""
    return log_normal(rng, runs, calls) * (1 + 0.1 * np.arange(calls) / calls)


def throttled(rng: np.random.Generator, runs: int, calls: int) -> Array:
    """10% slower for the last two fifths."""
    return log_normal(rng, runs, calls) * (1 + 0.1 * (np.arange(calls) > 0.6 * calls))


MEAN_OF_A_LOG_NORMAL = math.exp(SPREAD**2 / 2)
STATIONARY: Mapping[str, tuple[Draw, float]] = {
    "constant": (constant, 1.0),
    "log-normal": (log_normal, MEAN_OF_A_LOG_NORMAL),
    "bimodal": (bimodal, 1.09 * MEAN_OF_A_LOG_NORMAL),
    "with rare spikes": (spiking, 1.04 * MEAN_OF_A_LOG_NORMAL),
    "AR(1), 0": (autoregressive(0.0), 1.0),
    "AR(1), 0.5": (autoregressive(0.5), 1.0),
    "AR(1), 0.9": (autoregressive(0.9), 1.0),
}
DOUBTED: Mapping[str, tuple[Draw, str]] = {
    "drifting": (drifting, "drift"),
    "throttled": (throttled, "drift"),
    "bimodal": (bimodal, "bimodal"),
    "two speeds in spells": (in_spells, "bimodal"),
    "with rare spikes": (spiking, "spikes"),
    "AR(1), 0.995": (autoregressive(0.995), "autocorrelation"),
}
CLEAN = ("constant", "log-normal", "AR(1), 0", "AR(1), 0.5", "AR(1), 0.9")


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def holds(interval: tuple[float, float] | Unknown, truth: float) -> bool:
    return not isinstance(interval, Unknown) and interval[0] <= truth <= interval[1]


def rates(runs: int) -> list[Row]:
    rows = []
    for name, (draw, mean) in STATIONARY.items():
        series = draw(np.random.default_rng(1), runs, CALLS) * LATENCY_S
        found = [statistics.throughput([one]) for one in series]
        truth = 1 / (mean * LATENCY_S)
        if name == "constant":
            exact = all(
                f.interval == (f.value, f.value) and math.isclose(f.value, truth) for f in found
            )
            said = "the value" if exact else "not the value"
            rows.append(Row(f"rate, {name}: the interval is", said, "the value", exact))
            continue
        share = float(np.mean([holds(f.interval, truth) for f in found]))
        low, high = (0.90, 0.98) if name == "AR(1), 0.9" else (0.93, 0.97)
        asked = f"{100 * low:.0f} to {100 * high:.0f}%"
        rows.append(Row(f"rate, {name}: held by", percent(share), asked, low <= share <= high))
    rng = np.random.default_rng(2)
    for processes in (3, 5):
        held = 0
        for _ in range(runs):
            speeds = 1 + 0.01 * rng.normal(size=(processes, 1))
            parts = normal(rng, processes, CALLS // processes, 0.5) * speeds * LATENCY_S
            held += holds(statistics.throughput(list(parts)).interval, 1 / LATENCY_S)
        share = held / runs
        what = f"rate, {processes} processes that differ by 1%, AR(1), 0.5: held by"
        rows.append(Row(what, percent(share), "93 to 98%", 0.93 <= share <= 0.98))
    return rows


def quantiles(runs: int) -> list[Row]:
    rows = []
    for name in ("constant", "log-normal", "AR(1), 0", "AR(1), 0.5", "AR(1), 0.9"):
        series = STATIONARY[name][0](np.random.default_rng(3), runs, CALLS)
        for p in PERCENTS:
            z = NormalDist().inv_cdf(p / 100)
            truth = math.exp(SPREAD * z) if name == "log-normal" else 1 + SPREAD * z
            found = [statistics.percentile_estimate(one, p) for one in series]
            given = [f.interval for f in found if not isinstance(f.interval, Unknown)]
            if name == "constant":
                exact = given == [(1.0, 1.0)] * runs
                said = "the value" if exact else "not the value"
                rows.append(Row(f"p{p}, {name}: the interval is", said, "the value", exact))
                continue
            what, asked = f"p{p}, {name}: held by", "94% at least, 1.5 times at most"
            if not given:
                rows.append(Row(what, "too few samples, all runs", asked, True))
                continue
            share = float(np.mean([holds(interval, truth) for interval in given]))
            low, high = np.quantile([f.value for f in found], [0.025, 0.975])
            width = float(np.mean([high_ - low_ for low_, high_ in given])) / float(high - low)
            said = f"{percent(share)}, {width:.2f} times as wide as the oracle's"
            if len(given) < runs:
                said += f"; too few samples in {percent(1 - len(given) / runs)}"
            rows.append(Row(what, said, asked, share >= 0.94 and width <= 1.5))
    return rows


def bounds(runs: int) -> list[Row]:
    rows = []
    rng = np.random.default_rng(4)
    for p in (90, 95, 99):
        fewest = statistics.enough_samples(p)
        truth = math.exp(SPREAD * NormalDist().inv_cdf(p / 100))
        for calls in (fewest, CALLS):
            series = log_normal(rng, runs, calls)
            found = [statistics.early_stopping(one, p) for one in series]
            share = float(np.mean([not isinstance(f, Unknown) and f >= truth for f in found]))
            what = f"MLPerf's bound on p{p}, {calls} calls: holds in"
            kept = share >= 0.99 - 2 * math.sqrt(0.99 * 0.01 / runs)
            rows.append(Row(what, percent(share), "99%, less 2 of its errors at most", kept))
        few = statistics.early_stopping(log_normal(rng, 1, fewest - 1)[0], p)
        said = "too few samples" if isinstance(few, Unknown) else f"{few}"
        what = f"MLPerf's bound on p{p}, {fewest - 1} calls"
        rows.append(Row(what, said, "too few samples", isinstance(few, Unknown)))
    return rows


def doubts(runs: int) -> list[Row]:
    rows = []
    for name in CLEAN:
        series = STATIONARY[name][0](np.random.default_rng(5), runs, CALLS) * LATENCY_S
        share = float(np.mean([bool(statistics.doubts(one)) for one in series]))
        what = f"doubt, {name}: any is raised in"
        rows.append(Row(what, percent(share), "5% at most", share <= 0.05))
    for name, (draw, kind) in DOUBTED.items():
        series = draw(np.random.default_rng(6), runs, CALLS) * LATENCY_S
        raised = [kind in {d.kind for d in statistics.doubts(one)} for one in series]
        share = float(np.mean(raised))
        what = f'doubt, {name}: "{kind}" is raised in'
        rows.append(Row(what, percent(share), "95% at least", share >= 0.95))
    return rows


def warm_up(runs: int) -> list[Row]:
    """Ways to be slower at first, all over after 300 calls, or down to a hundredth then."""
    t = np.arange(CALLS)
    fading = np.exp(-t / WARM_UP * math.log(100))
    ways: Mapping[str, tuple[Draw, Array]] = {
        "twice as slow, fading": (log_normal, fading),
        "twice as slow, fading, AR(1), 0.9": (autoregressive(0.9), fading),
        "twice as slow, fading, with rare spikes": (spiking, fading),
        "30% slower, then not": (log_normal, 0.3 * (t < WARM_UP)),
        "50% slower, in a line": (log_normal, 0.5 * np.clip(1 - t / WARM_UP, 0, 1)),
    }
    rows = []
    for name, (draw, excess) in ways.items():
        series = draw(np.random.default_rng(7), runs, CALLS) * (1 + excess)
        cuts = [statistics.steady_from(one) for one in series]
        within = float(np.mean([not isinstance(c, Unknown) and 0 < c <= WARM_UP for c in cuts]))
        biased = float(np.mean([isinstance(c, Unknown) or excess[c:].mean() > 0.01 for c in cuts]))
        found = f"{percent(within)}, over 1% of bias is left in {percent(biased)}"
        asked = "95% at least, 5% at most"
        kept = within >= 0.95 and biased <= 0.05
        rows.append(
            Row(f"warm-up of 300 calls, {name}: its end is found within it in", found, asked, kept)
        )
    for name in CLEAN:
        series = STATIONARY[name][0](np.random.default_rng(8), runs, CALLS)
        cuts = [statistics.steady_from(one) for one in series]
        lost = float(np.mean([isinstance(c, Unknown) or c > CALLS / 20 for c in cuts]))
        what = f"no warm-up, {name}: more than 5% of the calls are cut in"
        rows.append(Row(what, percent(lost), "5% at most", lost <= 0.05))
    series = log_normal(np.random.default_rng(9), runs, 500) * (1 + 0.3 * (np.arange(500) < 400))
    early = float(np.mean([isinstance(statistics.steady_from(one), Unknown) for one in series]))
    what = 'a warm-up of 400 of 500 calls: "not steady yet" in'
    rows.append(Row(what, percent(early), "95% at least", early >= 0.95))
    return rows


def looks(runs: int) -> list[Row]:
    """A slowdown of exactly the limit, looked at after 3, 5 and 8 processes until it is decided."""
    rng = np.random.default_rng(10)
    stops, wrong = (3, 5, 8), {"once": 0, "naively": 0, "as it should be": 0}
    corrected = statistics.look_confidence(len(stops))
    for _ in range(runs):
        logs = [0.01 * rng.normal() + 0.03 * rng.normal(size=20) for _ in range(stops[-1])]

        def errs(count: int, confidence: float, logs: list[Array] = logs) -> bool:
            found = statistics.ratio_of_processes(logs[:count], confidence)
            return not holds(found.interval, 1.0)

        wrong["once"] += errs(stops[-1], 0.95)
        wrong["naively"] += any(errs(stop, 0.95) for stop in stops)
        wrong["as it should be"] += any(errs(stop, corrected) for stop in stops)
    rows = []
    for how, count in wrong.items():
        share = count / runs
        asked = (
            "(to compare)" if how == "naively" else "7% at most" if how == "once" else "5% at most"
        )
        kept = how == "naively" or share <= (0.07 if how == "once" else 0.05)
        rows.append(
            Row(
                f"a ratio at the limit, looked at {how}: decided wrongly in",
                percent(share),
                asked,
                kept,
            )
        )
    return rows


PARTS: Mapping[str, Callable[[int], list[Row]]] = {
    "rates": rates, "quantiles": quantiles, "bounds": bounds, "doubts": doubts,
    "warm-up": warm_up, "looks": looks,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    asked = parser.parse_args()
    print("| what | found | asked | |\n| --- | --- | --- | --- |")
    missed = False
    for part in asked.only:
        for row in PARTS[part](asked.runs):
            missed |= not row.kept
            verdict = "kept" if row.kept else "MISSED"
            print(f"| {row.what} | {row.found} | {row.asked} | {verdict} |", flush=True)
    sys.exit(missed)


if __name__ == "__main__":
    main()
