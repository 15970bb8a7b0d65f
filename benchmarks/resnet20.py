"""ResNet-20 on CIFAR-10, cut without labels: accuracy after the cut, the repair, and recovery.

    python benchmarks/resnet20.py DATA [--out FOLDER] [--criteria NAME ...] [--samples 2048]
        [--multiple 1] [--how global] [--shares 0.7 0.5 0.35 0.25] [--recover] [--epochs 10]
        [--threads 1] [--quick]

DATA is a folder with `models/resnet20-cifar10.onnx` and `load.py`, whose `cifar10("train")` and
`cifar10("test")` give images (n, 32, 32, 3) and labels. Without it, EDGEKIT_DATA is taken.

At half of the MACs, for each criterion: the accuracy right after the cut, with BatchNormalization
estimated anew alone, after the closed-form repair, and after both. For the best criterion, the
curve over the shares of the MACs. With `--recover` that network is then taught by the original.
All on evenly spaced training images without their labels, judged by ONNX Runtime on all test
images. What is measured is written to FOLDER/resnet20.json at once, and not measured again;
recovery goes on where it was stopped. `--quick`: 2,000 test images, 512 samples, two criteria, one
epoch on 5,000 images.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from edgekit import files
from edgekit.compress.channels.budget import choose
from edgekit.compress.channels.budgeting.costs import costs_of
from edgekit.compress.channels.budgeting.limits import Limits
from edgekit.compress.channels.criteria import CRITERIA, score_groups
from edgekit.compress.channels.groups import Groups, find_groups
from edgekit.compress.channels.plan import Plan
from edgekit.compress.channels.reconstruct import ReconstructOptions, reconstruct
from edgekit.compress.channels.remove import remove_channels
from edgekit.compress.recover import RecoverOptions, recover
from edgekit.compress.statistics import estimate_statistics
from edgekit.data.batches import Batches
from edgekit.models.cost import total_cost
from edgekit.models.model import Model, to_bytes
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.report.plot import Style, line_chart
from edgekit.values import Array, Preprocessing

PREPROCESSING = Preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), order="rgb", layout="nchw"
)
AT = 0.5
STAGES = ("cut", "statistics", "repaired", "repaired, statistics")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The network, its groups, what it is shown, and how it is judged."""

    model: Model
    groups: Groups
    shown: Batches
    images: Array
    labels: Array
    options: argparse.Namespace


class Results:
    """Numbers by what was measured, on disk as soon as they are there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.numbers: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self.numbers:
            self.numbers[key] = measure()
            files.write_text(self.path, json.dumps(self.numbers, indent=1) + "\n")
        return self.numbers[key]


def batches(images: Array) -> Batches:
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return Batches(
        arrays={"input": pixels}, preprocessing=PREPROCESSING, pixels={"input": "float32"},
        batch_size=500,
    )  # fmt: skip


def setting(options: argparse.Namespace) -> Setting:
    spec = importlib.util.spec_from_file_location("reader", options.data / "load.py")
    assert spec is not None
    assert spec.loader is not None
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    images, labels = reader.cifar10("test")
    shown = batches(reader.cifar10("train")[0])
    model = clean(load(options.data / "models" / "resnet20-cifar10.onnx"))
    most = 2000 if options.quick else len(images)
    return Setting(
        model=model, groups=find_groups(model), shown=shown, images=images[:most],
        labels=labels[:most], options=options,
    )  # fmt: skip


def accuracy(model: Model, on: Setting) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = on.options.threads
    session = onnxruntime.InferenceSession(
        to_bytes(model), options, providers=["CPUExecutionProvider"]
    )
    right = 0
    for batch, labels in zip(
        batches(on.images), np.split(on.labels, len(on.labels) // 500), strict=True
    ):
        right += int((session.run(None, dict(batch.inputs))[0].argmax(1) == labels).sum())
    return right / len(on.labels)


def cut(on: Setting, criterion: str, share: float) -> tuple[Model, Plan, list[int]]:
    options, groups = on.options, on.groups.groups
    scores = score_groups(criterion, on.model, groups, batches=on.shown.take(options.samples))
    kept = choose(
        groups, scores, costs_of(on.model, groups), Limits(macs=share), how=options.how,
        multiple=options.multiple,
    )  # fmt: skip
    model, plan = remove_channels(on.model, on.groups, kept)
    return model, plan, [len(units) for units in kept]


def repaired(on: Setting, model: Model, plan: Plan) -> tuple[Model, float]:
    begun = time.perf_counter()
    options = ReconstructOptions(samples=on.options.samples)
    found, _ = reconstruct(model, on.model, plan, on.shown, options=options)
    return found, time.perf_counter() - begun


def measure(on: Setting, criterion: str, share: float) -> dict[str, Any]:
    """The accuracy at each stage; the MACs really left, the units kept, the seconds of the fit."""
    some = on.shown.take(on.options.samples)
    model, plan, kept = cut(on, criterion, share)
    whole, seconds = repaired(on, model, plan)
    return {
        "macs": total_cost(model).macs / total_cost(on.model).macs,
        "kept": kept,
        "repair_s": seconds,
        "cut": accuracy(model, on),
        "statistics": accuracy(estimate_statistics(model, some)[0], on),
        "repaired": accuracy(whole, on),
        "repaired, statistics": accuracy(estimate_statistics(whole, some)[0], on),
    }


def recovered(on: Setting, criterion: str, folder: Path) -> dict[str, Any]:
    options = on.options
    model, plan, _ = cut(on, criterion, AT)
    student, _ = repaired(on, model, plan)
    shown = on.shown.take(5000) if options.quick else on.shown
    epochs = 1 if options.quick else options.epochs
    begun = time.perf_counter()
    found, report = recover(
        student, on.model, shown, RecoverOptions(epochs=epochs, shift=4 if epochs > 1 else 0),
        checkpoint=folder / "recover.pt", on_progress=said,
    )  # fmt: skip
    return {
        "epochs": epochs,
        "images": shown.count,
        "losses": report.losses,
        "seconds": time.perf_counter() - begun,
        "recovered": accuracy(found, on),
    }


def said(done: int, total: int, what: str) -> None:
    if done % 50 == 0:
        print(f"\r{done} of {total} {what}   ", end="", file=sys.stderr, flush=True)


def row(name: str, found: dict[str, Any]) -> str:
    figures = " ".join(f"{100 * found[stage]:8.2f}%" for stage in STAGES)
    return f"{name:12} {found['macs']:6.3f} {figures} {found['repair_s']:7.1f}s"


def plot(found: dict[float, dict[str, Any]], whole: float, criterion: str) -> str:
    named = {"cut": "right after the cut", "statistics": "statistics only", "repaired": "repaired"}
    series = {
        said: [(one["macs"], one[stage]) for one in found.values()] + [(1.0, whole)]
        for stage, said in named.items()
    }
    return line_chart(
        series, title=f"ResNet-20 on CIFAR-10, cut by {criterion}, no label, no training",
        x_label="MACs left", y_label="accuracy",
        style=Style(x_is_share=True, y_is_share=True, y_range=(0.0, 1.0)),
    )  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("EDGEKIT_DATA"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/resnet20"))
    parser.add_argument("--criteria", nargs="+", choices=sorted(CRITERIA), default=list(CRITERIA))
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--multiple", type=int, default=1)
    parser.add_argument("--how", choices=("uniform", "global"), default="global")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5, 0.35, 0.25])
    parser.add_argument("--recover", action="store_true")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder of the data, or set EDGEKIT_DATA")
    options.data = Path(options.data)
    if options.quick:
        options.samples = 512
        options.criteria = [c for c in ("l2", "taylor") if c in options.criteria]
    return options


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    on = setting(options)
    folder = options.out / "quick" if options.quick else options.out
    results = Results(folder / "resnet20.json")
    under = f"{options.how} x{options.multiple} {options.samples}"
    whole = results.once("original", lambda: accuracy(on.model, on))
    print(f"original {100 * whole:.2f}% of {len(on.labels)} test images; {under} samples\n")
    print(
        f"{'':12} {'MACs':>6} {'cut':>9} {'stat.':>9} {'repaired':>9} {'+ stat.':>9} {'repair':>8}"
    )
    at_half = {}
    for name in options.criteria:
        key = f"{under} {name} {AT:g}"
        at_half[name] = results.once(key, partial(measure, on, name, AT))
        print(row(name, at_half[name]), flush=True)
    best = max(at_half, key=lambda name: float(at_half[name]["repaired"]))
    print(f"\nthe best: {best}")
    curve = {}
    for share in options.shares:
        key = f"{under} {best} {share:g}"
        curve[share] = results.once(key, partial(measure, on, best, share))
        print(row(f"at {share:g}", curve[share]), flush=True)
    files.write_text(folder / "resnet20.svg", plot(curve, whole, best))
    if options.recover:
        key = f"{under} {best} recovered {options.epochs}"
        found = results.once(key, lambda: recovered(on, best, folder))
        print(
            f"\nrecovered in {found['epochs']} epochs on {found['images']} images, "
            f"{found['seconds']:.0f} s: {100 * found['recovered']:.2f}%"
        )


if __name__ == "__main__":
    main()
