"""How often the gate errs on a noisy machine: real pairs, replayed 1,000 times by resampling.

    python benchmarks/flake_traces.py FOLDER     # takes the pairs: 90 s for one of each kind
    python benchmarks/flakes.py FOLDER [--replays 1000] [--processes 8]

`max_regression` is 5%. A replay draws eight processes of one kind of pair (the same engine, 5% or
10% more work; alone or beside a process that keeps a core busy) and of each process blocks of ten
rounds, both with replacement, and asks the gate: the interval is as wide as for the first of the
three times that a build may ask it. "By 1.05" are the pairs of the same engine with every latency
of the second arm multiplied: a slowdown of exactly the limit, which the added work only comes near
to. The second column is how much slower the undisturbed calls are in the traces. Beside it stands,
on the same samples, a gate as it is often written: the mean of 100 calls of each, failed where one
is over 5% longer. Prints a table; exit 1 where a row misses what is asked.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit import gate
from edgekit.bench import statistics
from edgekit.evidence import Evidence, paired_regression
from edgekit.pipeline.chosen import MOST_RUNS
from edgekit.values import Array, Measurement, Verdict

LIMITS = {"max_regression": 0.05}
BLOCK = 10
NAIVE_CALLS = 100
CONFIDENCE = statistics.look_confidence(MOST_RUNS)
# The kind of the traces, what the second arm's latencies are multiplied by, what is asked.
ROWS = (
    ("00", 1.0, "the same engine", "same"),
    ("05", 1.0, "5% more work", "at the limit"),
    ("00", 1.05, "the same engine, by 1.05", "at the limit"),
    ("10", 1.0, "10% more work", "slower"),
    ("00", 1.10, "the same engine, by 1.10", "slower"),
)
WHERE = {"alone": "", "loaded": ", a core kept busy"}


@dataclass(frozen=True)
class Process:
    """The rounds of one process of each arm: the latencies of either's turn, in seconds."""

    rounds: Sequence[tuple[Array, Array]]


def load_traces(folder: Path, kind: str, where: str, factor: float = 1.0) -> list[Process]:
    processes = []
    for path in sorted(folder.glob(f"{kind}-{where}-*.npz")):
        with np.load(path) as stored:
            turns = [
                np.split(stored[arm] / 1e9, np.cumsum(stored[f"{arm}_lengths"])[:-1])
                for arm in "ab"
            ]
            owners = stored["owners"]
        rounds = [(a, factor * b) for a, b in zip(*turns, strict=True)]
        for owner in np.unique(owners):
            own = [r for r, o in zip(rounds, owners, strict=True) if o == owner]
            processes.append(Process(rounds=own))
    return processes


def resampled(process: Process, rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """As many rounds as the process has, in blocks that follow one another as they were taken."""
    count = len(process.rounds)
    block = min(BLOCK, count)
    starts = rng.integers(0, count - block + 1, -(-count // block))
    return [process.rounds[i] for start in starts for i in range(start, start + block)][:count]


def measurement(arm: str, processes: Sequence[Sequence[Array]]) -> Measurement:
    turns = [turn for process in processes for turn in process]
    starts = np.concatenate([[0], np.cumsum([len(t) for t in turns])[:-1]])
    firsts = np.concatenate([[0], np.cumsum([len(p) for p in processes])[:-1]])
    return Measurement(
        arm=arm, quantity="latency", unit="s", samples=tuple(np.concatenate(turns).tolist()),
        rounds=tuple(starts.tolist()), processes=tuple(starts[firsts].tolist()), batch=1,
        taken_at=0.0,
    )  # fmt: skip


def decided(baseline: Measurement, candidate: Measurement) -> Verdict:
    found = paired_regression(candidate, baseline, CONFIDENCE)
    evidence = Evidence(estimates={"regression": found}, on_device=True, age_s=0.0)
    return gate.decide(evidence, LIMITS).verdict


def naive(baseline: Measurement, candidate: Measurement) -> Verdict:
    means = [float(np.mean(m.samples[:NAIVE_CALLS])) for m in (baseline, candidate)]
    slower = means[1] / means[0] - 1 > LIMITS["max_regression"]
    return Verdict.FAIL if slower else Verdict.PASS


def slower(pool: Sequence[Process]) -> float:
    """By how much the lower decile of the second arm is longer: the median over all processes."""
    deciles = [
        [statistics.percentile(np.concatenate(arm), 10) for arm in zip(*p.rounds, strict=True)]
        for p in pool
    ]
    return float(np.median([after / before for before, after in deciles])) - 1


def replay(
    pool: Sequence[Process], replays: int, count: int, seed: int
) -> tuple[Counter[Verdict], float]:
    """How often the gate says what, and the share of the naive gate's that failed."""
    rng = np.random.default_rng(seed)
    verdicts: Counter[Verdict] = Counter()
    naively = 0
    for _ in range(replays):
        drawn = [resampled(pool[i], rng) for i in rng.integers(0, len(pool), count)]
        a, b = (
            measurement(arm, [[turns[index] for turns in process] for process in drawn])
            for index, arm in enumerate(("before", "now"))
        )
        verdicts[decided(a, b)] += 1
        naively += naive(a, b) is Verdict.FAIL
    return verdicts, naively / replays


def kept(what: str, shares: Mapping[Verdict, float]) -> tuple[str, bool]:
    """What is asked of the row, and whether it is so."""
    passed, failed = shares[Verdict.PASS], shares[Verdict.FAIL]
    if what == "same":
        return "fail 2% at most, pass 80% at least", failed <= 0.02 and passed >= 0.80
    if what == "at the limit":
        return "pass 5% at most", passed <= 0.05
    return "fail 90% at least, none pass", failed >= 0.90 and passed == 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--replays", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=8)
    asked = parser.parse_args()
    loads = []
    for path in sorted(asked.folder.glob("*.npz")):
        with np.load(path) as stored:
            loads.append(float(stored["load"]))
    if not loads:
        sys.exit(f"{asked.folder} holds no traces: python benchmarks/flake_traces.py FOLDER")
    print(f"{len(loads)} pairs, load average {min(loads):.1f} to {max(loads):.1f}\n")
    print("| pair | slower | pass | fail | inconclusive | asked | | naive gate: fail |")
    print("| --- | ---: | ---: | ---: | ---: | --- | --- | ---: |")
    missed = False
    for seed, (kind, factor, what, wanted) in enumerate(ROWS):
        for where, beside in WHERE.items():
            pool = load_traces(asked.folder, kind, where, factor)
            verdicts, naively = replay(pool, asked.replays, asked.processes, seed)
            shares = {v: verdicts[v] / asked.replays for v in Verdict}
            limits, good = kept(wanted, shares)
            missed |= not good
            cells = [
                f"{100 * shares[v]:.1f}%"
                for v in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE)
            ]
            print(
                f"| {what}{beside} | {100 * slower(pool):.1f}% | {' | '.join(cells)} | {limits} | "
                f"{'kept' if good else 'MISSED'} | {100 * naively:.1f}% |",
                flush=True,
            )  # fmt: skip
    sys.exit(missed)


if __name__ == "__main__":
    main()
