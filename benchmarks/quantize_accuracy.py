"""Accuracy of INT8 on CIFAR-10 by labels: ResNet-20 and a net of depthwise convolutions.

    python benchmarks/quantize_accuracy.py DATA [--depthwise NET.onnx] [--out FOLDER]
        [--peers FOLDER] [--samples 512] [--threads 1] [--quick]

DATA is a folder with `models/resnet20-cifar10.onnx` and `load.py`, whose `cifar10("train")` and
`cifar10("test")` give images (n, 32, 32, 3) and labels; NET.onnx what `depthwise_net.py` wrote;
FOLDER has a virtual environment for each of the peers (`peer_quantizers.py`).

For each dialect: accuracy on all 10,000 test images, how many answers are not those of FP32, and
the SQNR of the scores, by emulation (graph optimisation off) and, for ONNX Runtime's dialects,
through its kernels. Quantized from training images without labels, four ways: ranges by minimum and
maximum with one scale a weight; ranges by "best"; that refined; and refined with weights of 4 bits.
The peers have the same samples. The share of MACs in INT8 stands in each row. Exit 1 where a loss
is over its limit.

What is measured is written to FOLDER/quantize_accuracy.json at once, and not measured again.
`--quick`: 1,000 test images, 128 samples, two dialects.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from quantizing import (
    Results,
    Way,
    layer_share,
    outputs_of,
    peer_files,
    quantized,
    ready,
    sqnr_db,
)

from edgekit.data.batches import Batches
from edgekit.models.model import Model, digest
from edgekit.models.source import load
from edgekit.quantize.dialects import DIALECTS, Dialect
from edgekit.quantize.scheme import WeightOptions
from edgekit.values import Array

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ("tensorrt-8", "tensorrt-10", "ort-avx2", "ort-vnni", "ort-arm")
WAYS = (
    Way(name="minmax, one scale a weight", ranges="minmax", weights=WeightOptions(per_tensor=True)),
    Way(name="best"),
    Way(name="refined", refine="auto"),
    Way(name="refined, 4 bits", refine="auto", weights=WeightOptions(bits=4)),
)
LIMITS = {"resnet20": {"refined": 0.3, "refined, 4 bits": 1.0}, "depthwise": {"refined": 0.5}}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network, its samples, and what FP32 says of the test images."""

    name: str
    path: Path
    model: Model
    shown: Batches
    test: Batches
    labels: Array
    scores: dict[str, Array]


def normalised(images: Array) -> Array:
    scaled = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def network(name: str, path: Path, options: argparse.Namespace) -> Network:
    spec = importlib.util.spec_from_file_location("reader", options.data / "load.py")
    assert spec is not None
    assert spec.loader is not None
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    images, labels = reader.cifar10("test")
    train = reader.cifar10("train")[0]
    chosen = np.linspace(0, len(train) - 1, options.samples).astype(np.int64)
    most = 1000 if options.quick else len(images)

    def batches(of: Array, size: int) -> Batches:
        return Batches(arrays={"input": normalised(of)}, pixels={}, batch_size=size)

    shown, test = batches(train[chosen], 32), batches(images[:most], 250)
    model = ready(path, shown, options.threads)
    scores = outputs_of(model, test, options.threads, optimise=True)
    return Network(
        name=name, path=path, model=model, shown=shown, test=test, labels=labels[:most],
        scores=scores,
    )  # fmt: skip


def judged(on: Network, model: Model, threads: int, *, optimise: bool) -> dict[str, float]:
    found = outputs_of(model, on.test, threads, optimise=optimise)
    answers, before = (next(iter(one.values())).argmax(1) for one in (found, on.scores))
    return {
        "accuracy": float((answers == on.labels).mean()),
        "flips": int((answers != before).sum()),
        "db": sqnr_db(found, on.scores),
    }


def ours(on: Network, dialect: Dialect, way: Way, threads: int) -> dict[str, Any]:
    made = quantized(on.model, dialect, way, on.shown, threads)
    row: dict[str, Any] = {"share": made.share, "seconds": made.seconds, "said": made.said}
    row["emulated"] = judged(on, made.model, threads, optimise=False)
    if dialect.runtime == "onnxruntime":
        row["kernels"] = judged(on, made.model, threads, optimise=True)
    return row


def theirs(on: Network, path: Path | None, said: dict[str, Any], threads: int) -> dict[str, Any]:
    if path is None:
        return {"failed": str(said.get("failed"))}
    model = load(path)
    return {
        "share": layer_share(model), "seconds": said.get("seconds", 0.0), "said": "",
        "emulated": judged(on, model, threads, optimise=False),
        "kernels": judged(on, model, threads, optimise=True),
    }  # fmt: skip


def line(name: str, row: dict[str, Any], before: float) -> str:
    if "failed" in row:
        return f"{name:46} failed: {row['failed'][:80]}"
    cells = []
    for how in ("emulated", "kernels"):
        if how in row:
            one = row[how]
            lost = 100 * (before - one["accuracy"])
            cells.append(f"{how} {-lost:+.2f} points, {one['flips']:4} flips, {one['db']:.1f} dB")
    return (
        f"{name:46} {' | '.join(cells)} | {100 * row['share']:.1f}% INT8, {row['seconds']:.0f} s "
        f"{row['said']}"
    )


def measured(on: Network, results: Results, options: argparse.Namespace) -> int:
    """Prints a row for each peer, and for each dialect and way; returns how many limits missed."""
    mark = f"{on.name} {digest(on.model)[:8]} {on.shown.count} {len(on.labels)}"
    before = float((next(iter(on.scores.values())).argmax(1) == on.labels).mean())
    print(f"{on.name}: FP32 {100 * before:.2f}% of {len(on.labels)} images")
    missed = 0
    if options.peers is not None:
        samples = options.out / f"{on.name}-{on.shown.count}.npz"
        np.savez(samples, **{k: np.asarray(v) for k, v in on.shown.arrays.items()})
        for peer, _, file, said in peer_files(
            options.peers, on.path, samples, options.out, options.threads
        ):
            measure = partial(theirs, on, file, said, options.threads)
            print(line(peer, results.once(f"{mark} {peer}", measure), before), flush=True)
    for chosen in options.dialects:
        for way in WAYS:
            make = partial(ours, on, DIALECTS[chosen], way, options.threads)
            row = results.once(f"{mark} {chosen} {way.name}", make)
            limit = LIMITS[on.name].get(way.name)
            lost = 100 * (before - row["emulated"]["accuracy"])
            is_missed = limit is not None and lost > limit
            missed += is_missed
            print(line(f"{chosen}, {way.name}", row, before), "MISSED" * is_missed, flush=True)
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--depthwise", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--dialects", nargs="+", default=list(NAMES), choices=tuple(DIALECTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.dialects = 128, options.dialects[1:3]
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / f"quantize_accuracy{'-quick' * options.quick}.json")
    paths = {"resnet20": options.data / "models" / "resnet20-cifar10.onnx"}
    if options.depthwise is not None:
        paths["depthwise"] = options.depthwise
    begun, missed = time.perf_counter(), 0
    for name, path in paths.items():
        missed += measured(network(name, path, options), results, options)
    print(f"{time.perf_counter() - begun:.0f} s, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
