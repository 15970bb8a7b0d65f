"""ResNet-20 on CIFAR-10, cut without labels: accuracy after the cut, the repair, and recovery.

    python benchmarks/resnet20.py DATA [--out FOLDER] [--criteria NAME ...] [--samples 2048]
        [--multiple 1] [--how sensitivity] [--shares 0.7 0.5 0.35 0.25] [--peer PYTHON]
        [--recover] [--epochs 10] [--threads 1] [--quick]

DATA is a folder with `models/resnet20-cifar10.onnx` and `load.py`, whose `cifar10("train")` and
`cifar10("test")` give images (n, 32, 32, 3) and labels. Without it, EDGEKIT_DATA is taken.

At half of the MACs, for each criterion: the accuracy right after the cut, with BatchNormalization
estimated anew alone, after the closed-form repair, and after both. For the criterion that agrees
most with the original on 2,000 training images that nothing else sees, the curve over the shares of
the MACs; with `--recover` that network is then taught by the original. With `--peer`, a Python with
torch and torch-pruning, its cut at the same MACs is judged and taught in the same way.

All on training images without their labels, judged by ONNX Runtime on all test images. What is
measured is written to FOLDER/resnet20.json at once, and not measured again; recovery goes on where
it was stopped. `--quick`: 2,000 test images, 512 samples, two criteria, one epoch on 5,000 images.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
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
from edgekit.compress.channels.budgeting.limits import Limits
from edgekit.compress.channels.criteria import CRITERIA
from edgekit.compress.channels.cut import CutOptions, cut_channels
from edgekit.compress.channels.groups import Groups, find_groups
from edgekit.compress.channels.plan import Plan
from edgekit.compress.channels.reconstruct import ReconstructOptions, reconstruct
from edgekit.compress.recover import RecoverOptions, recover
from edgekit.compress.statistics import estimate_statistics
from edgekit.data.batches import Batches
from edgekit.models.cost import total_cost
from edgekit.models.model import (
    Model,
    after_step,
    editable,
    parameters,
    set_parameter,
    static_shape,
    to_bytes,
)
from edgekit.models.simplify import clean
from edgekit.models.source import from_bytes, load
from edgekit.pipeline.channels import guidance_of
from edgekit.report.plot import Style, line_chart
from edgekit.values import Array, Preprocessing

PREPROCESSING = Preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), order="rgb", layout="nchw"
)
AT = 0.5
_HELD_OUT = 2000
STAGES = ("cut", "statistics", "repaired", "repaired, statistics")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The network, its groups, what it is shown, and how it is judged."""

    model: Model
    groups: Groups
    shown: Batches
    held_out: Batches
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
    train = reader.cifar10("train")[0]
    model = clean(load(options.data / "models" / "resnet20-cifar10.onnx"))
    most = 2000 if options.quick else len(images)
    return Setting(
        model=model, groups=find_groups(model), shown=batches(train[:-_HELD_OUT]),
        held_out=batches(train[-_HELD_OUT:]), images=images[:most],
        labels=labels[:most], options=options,
    )  # fmt: skip


def answers(model: Model, shown: Batches, threads: int) -> Array:
    """The class that a model sees in each image."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        to_bytes(model), options, providers=["CPUExecutionProvider"]
    )
    found = [session.run(None, dict(batch.inputs))[0].argmax(1) for batch in shown]
    return np.concatenate(found)


def accuracy(model: Model, on: Setting) -> float:
    found = answers(model, batches(on.images), on.options.threads)
    return float((found == on.labels).mean())


def agreement(model: Model, on: Setting) -> float:
    """How often a model answers as the original does, on images that nothing else sees."""
    first, second = (answers(m, on.held_out, on.options.threads) for m in (model, on.model))
    return float((first == second).mean())


def cut(on: Setting, criterion: str, share: float) -> tuple[Model, Plan, list[int]]:
    options = on.options
    wanted = CutOptions(
        limits=Limits(macs=share), criterion=criterion, budget=options.how, repair=False,
        multiple=options.multiple, samples=options.samples,
    )  # fmt: skip
    some = on.shown.take(options.samples)
    model, report = cut_channels(
        on.model, wanted, guidance_of(some, None, lambda share, said: None)
    )
    return model, report.plan, [kept for kept, _ in report.kept.values()]


def peers_cut(on: Setting, python: str, share: float) -> Model:
    """The network as Torch-Pruning cuts it: its weights in the graph in place of the original's."""
    script = Path(__file__).resolve().parent / "peer_resnet20.py"
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given.npz"), Path(folder, "made.npz")
        np.savez(given, **dict(parameters(on.model)))  # type: ignore[arg-type]
        subprocess.run([python, str(script), str(given), str(made), str(share)], check=True)
        program = editable(on.model)
        with np.load(made) as weights:
            for name in weights.files:
                if name in program.graph.initializers:
                    set_parameter(program.graph, name, weights[name])
            for node in program.graph:  # an exporter's zero biases are as long as their layers
                if node.op_type == "Conv" and len(node.inputs) > 2 and node.inputs[2] is not None:
                    width = static_shape(program.graph.initializers[node.inputs[1].name])[0]
                    bias = np.zeros(width, np.float32)
                    set_parameter(program.graph, node.inputs[2].name, bias)
    for node in program.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return from_bytes(to_bytes(after_step(on.model, program, "peer")), name="peer")


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
        "agreement": agreement(whole, on),
        "repaired, statistics": accuracy(estimate_statistics(whole, some)[0], on),
    }


def recovered(on: Setting, student: Model, checkpoint: Path) -> dict[str, Any]:
    options = on.options
    shown = on.shown.take(5000) if options.quick else on.shown
    epochs = 1 if options.quick else options.epochs
    begun = time.perf_counter()
    wanted = RecoverOptions(epochs=epochs, shift=4, hint=20.0)
    found, report = recover(
        student, on.model, shown, wanted, checkpoint=checkpoint, on_progress=said
    )
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
    parser.add_argument("--out", type=Path, default=Path("build/resnet20"))
    parser.add_argument("--criteria", nargs="*", choices=sorted(CRITERIA), default=list(CRITERIA))
    parser.add_argument("--peer")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--multiple", type=int, default=1)
    parser.add_argument(
        "--how", choices=("uniform", "global", "sensitivity"), default="sensitivity"
    )
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
    best = max(at_half, key=lambda name: float(at_half[name]["agreement"]), default="")
    curve = {}
    if best:
        print(f"\nthe best on held-out images: {best}")
        for share in options.shares:
            key = f"{under} {best} {share:g}"
            curve[share] = results.once(key, partial(measure, on, best, share))
            print(row(f"at {share:g}", curve[share]), flush=True)
        files.write_text(folder / "resnet20.svg", plot(curve, whole, best))
    if best and options.recover:

        def taught() -> dict[str, Any]:
            model, plan, _ = cut(on, best, AT)
            return recovered(on, repaired(on, model, plan)[0], folder / "recover.pt")

        print(line("ours", results.once(f"{under} {best} recovered {options.epochs}", taught)))
    if options.peer:
        model = peers_cut(on, options.peer, AT)
        some = on.shown.take(options.samples)
        right = accuracy(model, on), accuracy(estimate_statistics(model, some)[0], on)
        macs = total_cost(model).macs / total_cost(on.model).macs
        print(f"\nTorch-Pruning: MACs {macs:.3f}, {100 * right[0]:.2f}% right after the cut, "
              f"{100 * right[1]:.2f}% with BatchNormalization")  # fmt: skip
        if options.recover:
            key = f"peer recovered {options.epochs}"
            found = results.once(key, lambda: recovered(on, model, folder / "peer.pt"))
            print(line("Torch-Pruning", found))


def line(name: str, found: dict[str, Any]) -> str:
    return (
        f"\n{name}, recovered in {found['epochs']} epochs on {found['images']} images, "
        f"{found['seconds']:.0f} s: {100 * found['recovered']:.2f}%"
    )


if __name__ == "__main__":
    main()
