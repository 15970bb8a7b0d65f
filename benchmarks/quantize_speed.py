"""How long observing and quantizing takes and how much memory, against the plain forward passes.

    python benchmarks/quantize_speed.py MODEL.onnx [--samples 256] [--rounds 3] [--quick]
        [--peers FOLDER] [--results FILE.json]

Random smooth pictures. In each round the plain FP32 passes over all samples in ONNX Runtime, then
observing and writing Q/DQ with each way to choose ranges; the median over the rounds of the ratio
to the same round's plain passes is held against its limit. The peak of the memory is that of a
child that observes 64 and 1,024 samples, made as they are read. FOLDER holds the virtual
environments `ort`, `nncf` and `modelopt`; each runs `peer_quantizers.py` on the same samples. What
keeps every activation (onnxruntime's percentile and entropy) gets 64 samples, and its seconds are
scaled to as many as ours. RESULTS keeps what was measured: a second run with the same arguments
goes on from there. Exits with 1 where something is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.engines.onnxruntime import open_model
from edgekit.models.batch import free_batch
from edgekit.models.model import Model, save
from edgekit.models.simplify import clean, fold_batchnorm
from edgekit.models.source import load
from edgekit.quantize.dialects import TENSORRT, onnxruntime_dialect
from edgekit.quantize.observe import ObserveOptions, observe
from edgekit.quantize.place import place
from edgekit.quantize.ranges import choice
from edgekit.quantize.write import insert_qdq
from edgekit.values import Array, Batch, run

BATCH = 8
LIMITS = {"minmax": 2.0, "percentile": 3.0, "entropy": 3.0, "mse": 3.0, "best": 6.0}
MOST_MB, MOST_GROWTH = 500, 1.05
FEW, MANY = 64, 1024

# tool, its method, ours that does the same; the most samples that it can be given.
PEERS = (
    ("ort", "minmax", "minmax", None),
    ("nncf", "minmax", "minmax", None),
    ("modelopt", "max", "minmax", None),
    ("ort", "percentile", "percentile", FEW),
    ("ort", "entropy", "entropy", FEW),
    ("modelopt", "entropy", "entropy", None),
)


class Pictures:
    """Batches of random smooth pictures, made as they are read; the same for the same index."""

    def __init__(self, model: Model, count: int, batch: int = BATCH) -> None:
        (spec,) = model.inputs
        self.name, self.count, self.batch = spec.name, count, batch
        self.shape = tuple(int(size) for size in spec.shape[1:])

    def __len__(self) -> int:
        return (self.count + self.batch - 1) // self.batch

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, self.count, self.batch):
            rows = range(begin, min(begin + self.batch, self.count))
            yield Batch(inputs={self.name: np.stack([self.picture(k) for k in rows])})

    def picture(self, index: int) -> Array:
        channels, height, width = self.shape
        noise = np.random.default_rng(index)
        coarse = noise.normal(size=(channels, 8, 8)).astype(np.float32)
        down, across = self._between(height), self._between(width)
        found: Array = down @ coarse @ across.T
        return found

    @staticmethod
    def _between(size: int) -> Array:
        """(size, 8): linear interpolation of 8 values."""
        at = np.linspace(0, 7, size)
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8))).astype(np.float32)


def prepared(path: Path) -> Model:
    def outputs(model: Model, feeds: Any) -> dict[str, Array]:
        with open_model(model) as session:
            return run(session, feeds)

    return fold_batchnorm(free_batch(clean(load(path)), run=outputs))[0]


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def plain(model: Model, batches: list[Batch]) -> None:
    with open_model(model) as session:
        for batch in batches:
            run(session, batch.inputs)


def quantized(model: Model, batches: Any, method: str, *, affine: bool) -> Model:
    dialect = onnxruntime_dialect(frozenset(), arm=False) if affine else TENSORRT
    names = list(place(model, dialect).reads)
    options = ObserveOptions(rows=method == "best")
    ranges = observe(model, names, batches, open_model, options=options)
    choose = choice(method, percent=99.99, symmetric=dialect.symmetric, model=model)
    return insert_qdq(model, ranges, dialect, choose)[0]


def child(path: Path, method: str, count: int) -> None:
    """Prints the peak of this process's memory in MB after quantizing."""
    model = prepared(path)
    quantized(model, Pictures(model, count), method, affine=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak_mb(path: Path, method: str, count: int) -> float:
    command = [sys.executable, __file__, str(path), "--child", method, "--samples", str(count)]
    done = subprocess.run(alone(command), stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def alone(command: list[str]) -> list[str]:
    """The command as a grandchild: a child's peak of memory begins with that of its parent."""
    return ["sh", "-c", '"$@"; exit $?', "sh", *command]


def peer(folder: Path, tool: str, method: str, source: Path, samples: Path) -> dict[str, Any]:
    """What the peer's line of JSON says; {"failed": why} where it failed."""
    script = Path(__file__).with_name("peer_quantizers.py")
    with tempfile.TemporaryDirectory() as place_of_out:
        done = subprocess.run(
            alone([
                str(folder / tool / "bin" / "python"), str(script), "--tool", tool,
                "--method", method, "--threads", str(os.cpu_count() or 1), str(source),
                str(samples), str(Path(place_of_out) / "out.onnx"),
            ]),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1][:120]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


class Results:
    """Measurements by key, kept in a file where one is named."""

    def __init__(self, path: Path | None, wanted: dict[str, Any]) -> None:
        self.path = path
        self.stored: dict[str, Any] = {"wanted": wanted}
        if path is not None and path.exists():
            found = json.loads(path.read_text())
            if found["wanted"] == wanted:
                self.stored = found

    def of(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self.stored:
            self.stored[key] = measure()
            if self.path is not None:
                self.path.write_text(json.dumps(self.stored, indent=1))
        return self.stored[key]


def one_round(model: Model, batches: list[Batch], *, affine: bool) -> dict[str, float]:
    found = {"plain": seconds(lambda: plain(model, batches))}
    for method in LIMITS:
        found[method] = seconds(lambda m=method: quantized(model, batches, m, affine=affine))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--affine", action="store_true", help="ranges for ONNX Runtime's dialect")
    parser.add_argument("--quick", action="store_true", help="64 samples, one round")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.model, options.child, options.samples)
        return
    begun = time.perf_counter()
    samples, rounds = (FEW, 1) if options.quick else (options.samples, options.rounds)
    wanted = {"model": str(options.model), "samples": samples, "affine": options.affine}
    results = Results(options.results, wanted)
    model = prepared(options.model)
    misses: list[str] = []

    batches = list(Pictures(model, samples))
    plain(model, batches[:2])  # once uncounted
    taken = [
        results.of(f"round {k}", lambda: one_round(model, batches, affine=options.affine))
        for k in range(rounds)
    ]
    median = {key: statistics.median(row[key] for row in taken) for key in taken[0]}
    print(f"{options.model.name}, {samples} samples, median of {rounds} rounds")
    print(f"{'':<24} {'seconds':>8} {'to plain':>9} {'at most':>8}")
    print(f"{'plain FP32 passes':<24} {median['plain']:>8.2f} {'1.00x':>9}")
    for method, limit in LIMITS.items():
        ratio = statistics.median(row[method] / row["plain"] for row in taken)
        print(f"{method:<24} {median[method]:>8.2f} {ratio:>8.2f}x {limit:>7.1f}x")
        if ratio > limit:
            misses.append(f"{method} takes {ratio:.2f} times the plain passes")

    many = FEW * 4 if options.quick else MANY
    print(f"\n{'peak memory, MB':<24} {FEW:>8} {many:>9} samples")
    for method in ("minmax", "best"):
        few_mb, many_mb = (
            results.of(
                f"{method} {count} MB", lambda c=count, m=method: peak_mb(options.model, m, c)
            )
            for count in (FEW, many)
        )
        print(f"{method:<24} {few_mb:>8.0f} {many_mb:>9.0f}")
        if many_mb > MOST_GROWTH * few_mb:
            misses.append(f"{method}: the memory grows by {many_mb / few_mb - 1:.0%}")
        if many_mb > MOST_MB:
            misses.append(f"{method} takes {many_mb:.0f} MB")

    if options.peers is not None:
        misses += against_peers(options, results, model, median, samples)
    for miss in misses:
        print(f"missed: {miss}")
    print(f"{time.perf_counter() - begun:.0f} s")
    sys.exit(1 if misses else 0)


def against_peers(
    options: argparse.Namespace, results: Results, model: Model, median: dict[str, float],
    samples: int,
) -> list[str]:  # fmt: skip
    misses = []
    print(f"\n{'peer':<24} {'seconds':>8} {'ours':>8} {'MB':>7}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        save(clean(load(options.model)), source)
        for tool, method, ours, most in PEERS:
            count = min(samples, most or samples)
            pictures = Pictures(model, count, count)
            (batch,) = pictures
            calibration = Path(folder) / f"{count}.npz"
            if not calibration.exists():
                np.savez(calibration, **batch.inputs)
            found = results.of(
                f"{tool} {method}",
                lambda t=tool, m=method, c=calibration: peer(options.peers, t, m, source, c),
            )
            if "failed" in found:
                print(f"{f'{tool} {method}':<24} failed: {found['failed']}")
                continue
            theirs = found["seconds"] * samples / count
            note = f"  (from {count} samples)" if count < samples else ""
            print(
                f"{f'{tool} {method}':<24} {theirs:>8.1f} {median[ours]:>8.1f} "
                f"{found['peak_mb']:>7.0f}{note}"
            )
            if theirs < median[ours]:
                misses.append(f"{tool}'s {method} is faster than our {ours}")
    return misses


if __name__ == "__main__":
    main()
