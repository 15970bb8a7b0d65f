"""The sensitivity of every quantized node, beside brute force: ranking and time.

    python benchmarks/quantize_sensitivity.py DATA [--pages FOLDER] [--networks resnet20 cls ...]
        [--dialects tensorrt onnxruntime] [--samples 128] [--out FOLDER] [--threads 1] [--quick]

DATA is a folder with `models/resnet20-cifar10.onnx` and `load.py` (see resnet20.py); FOLDER is what
benchmarks/pages.py makes: {det,rec,cls}.onnx and {det,rec,cls}-calib.npz.

Brute force writes the network with one node quantized and all others in floating point, runs it
over the samples, and compares the outputs, for each node; the original's outputs are computed once.
Ours is `node_sensitivity` as it comes. Both are given the same samples (ours looks at the first of
them only: how many is printed), run graphs without optimisations, and have the same number of
threads. For each network and dialect it prints the processor seconds of both (which others on the
machine touch least), their ratio, the ratio to brute force on no more samples than ours looks at
(pro rata), and Spearman's rank correlation of the two.

What brute force has measured is written to FOLDER/quantize_sensitivity.json node by node, and not
measured again. `--quick`: ResNet-20 alone, 32 samples.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit import files
from edgekit.engines.onnxruntime import OnnxRuntimeSession, open_model
from edgekit.models.model import Model, digest
from edgekit.models.simplify import clean, simplify
from edgekit.models.source import load
from edgekit.quantize.dialects import TENSORRT, Dialect, onnxruntime_dialect
from edgekit.quantize.judging.layers import damage_alone
from edgekit.quantize.observe import float_activations, observe
from edgekit.quantize.place import place
from edgekit.quantize.precision.sensitivity import node_sensitivity
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import minmax
from edgekit.quantize.scheme import Scheme, make_scheme
from edgekit.quantize.write import write_qdq
from edgekit.values import Array, Batch, run

DIALECTS: Mapping[str, Dialect] = {
    "tensorrt": TENSORRT, "onnxruntime": onnxruntime_dialect(frozenset(), arm=False),
}  # fmt: skip
BATCH = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Notes:
    """What was measured, in a file that is written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def put(self, key: str, value: Any) -> None:
        """Notes one more."""
        self.found[key] = value
        files.write_text(self.path, json.dumps(self.found, indent=1))


def spearman(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The correlation of the ranks of two mappings with the same keys."""
    keys = list(one)
    ranks = [np.argsort(np.argsort([m[key] for key in keys])) for m in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def resnet20(data: Path, samples: int) -> tuple[Model, Array]:
    """ResNet-20 and training images, as it reads them."""
    spec = importlib.util.spec_from_file_location("load", data / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images, _ = module.cifar10("train")
    chosen = np.random.default_rng(0).permutation(len(images))[:samples]
    pixels = images[chosen].astype(np.float32) / 255
    shown = ((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(0, 3, 1, 2)
    model = load(data / "models" / "resnet20-cifar10.onnx")
    feeds = {model.inputs[0].name: np.ascontiguousarray(shown[:2], np.float32)}

    def outputs(one: Model) -> Mapping[str, Array]:
        with open_model(one) as session:
            return run(session, feeds)

    simplified, _ = simplify(clean(model), run=outputs)
    return simplified, np.ascontiguousarray(shown, np.float32)


def page_network(folder: Path, name: str, samples: int) -> tuple[Model, Array]:
    """One network of pages.py and its calibration samples."""
    model = load(folder / f"{name}.onnx")
    with np.load(folder / f"{name}-calib.npz", allow_pickle=False) as stored:
        return model, stored[model.inputs[0].name][:samples]


def compare(
    name: str, model: Model, samples: Array, dialect: Dialect, notes: Notes, threads: int
) -> None:
    """Measures both and prints a line."""

    def as_written(one: Model) -> OnnxRuntimeSession:
        return open_model(one, threads=threads, optimise=False)

    model = prepared(model)
    given = model.inputs[0].name
    batches = [Batch(inputs={given: samples[i : i + BATCH]}) for i in range(0, len(samples), BATCH)]
    ranges = observe(model, float_activations(model), batches, open_model)
    scheme = make_scheme(model, place(model, dialect), ranges, minmax)
    node_sensitivity(model, scheme, batches[:1], as_written, draws=1)  # what is imported at need
    began = time.process_time()
    ours = node_sensitivity(model, scheme, batches, as_written)
    seconds = time.process_time() - began
    key = f"{digest(write_qdq(model, scheme)[0])} {len(samples)} {threads}"
    exact, brute_seconds = brute_force(model, scheme, batches, as_written, notes, key)
    ratio = seconds / brute_seconds
    each = ratio * len(samples) / ours.samples
    print(
        f"{name:10s} {dialect.name:18s} {len(exact):4d} nodes  {ours.method:9s} "
        f"{ours.samples:4d} of {len(samples):4d} samples"
        f"  {seconds:7.2f} s  brute {brute_seconds:7.1f} s"
        f"  ratio {ratio:.3f} ({each:.3f} sample for sample)"
        f"  Spearman {spearman(ours.damage, exact):.3f}",
        flush=True,
    )


def brute_force(
    model: Model, scheme: Scheme, batches: list[Batch], as_written: Any, notes: Notes, key: str
) -> tuple[dict[str, float], float]:
    """The exact damages and the seconds that they took, taken up where they were left."""
    stored = notes.found.get(key, {"damage": {}, "seconds": 0.0})
    damage: dict[str, float] = dict(stored["damage"])
    spent = float(stored["seconds"])
    began = time.process_time()

    def note(node: str, found: float) -> None:
        nonlocal began, spent
        now = time.process_time()
        damage[node], spent, began = found, spent + now - began, now
        notes.put(key, {"damage": damage, "seconds": spent})

    left = [node for node in scheme.placement.integer if node not in damage]
    if left:
        damage_alone(model, scheme, left, batches, as_written, on_node=note)
    return damage, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("EDGEKIT_DATA"))
    parser.add_argument("--pages", type=Path)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "cls"])
    parser.add_argument("--dialects", nargs="+", default=list(DIALECTS), choices=list(DIALECTS))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir(), "edgekit-bench"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.data is None:
        parser.error("give DATA, or set EDGEKIT_DATA")
    torch.set_num_threads(given.threads)
    notes = Notes(given.out / "quantize_sensitivity.json")
    began = time.perf_counter()
    networks = ["resnet20"] if given.quick else given.networks
    samples = 32 if given.quick else given.samples
    for name in networks:
        if name != "resnet20" and given.pages is None:
            print(f"{name}: skipped, it needs --pages")
            continue
        if name == "resnet20":
            model, shown = resnet20(Path(given.data), samples)
        else:
            model, shown = page_network(given.pages, name, samples)
        for dialect in given.dialects:
            compare(name, model, shown, DIALECTS[dialect], notes, given.threads)
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
