"""ResNet-20 cut to half of its milliseconds by a measured table: is it, and what is it worth?

    python benchmarks/milliseconds.py DATA [--batches 1 8] [--share 0.5] [--threads 1] [--rounds 20]

DATA is a folder with `models/resnet20-cifar10.onnx` and `load.py`. For each batch: the layers are
measured one by one (`edgekit table`), the network is cut with that table by the budget of latency
and by the uniform one, both are repaired on unlabelled training images, built, and measured in
turns with the original. Printed: what was asked, what the table expected, what was measured, each
as a share of the original's latency, and the accuracy on all test images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from resnet20 import accuracy, setting

from edgekit.bench.runner import measure_side_by_side
from edgekit.bench.workload import Arm
from edgekit.compress.channels.budget import How
from edgekit.compress.channels.budgeting.limits import Limits, Share
from edgekit.compress.channels.cut import CutOptions, cut_channels
from edgekit.engines.base import Engine, EngineRequest, runtime_module
from edgekit.models.model import Model, save
from edgekit.models.simplify import simplify
from edgekit.pipeline.channels import guidance_of, latency_by
from edgekit.pipeline.origin import Origin
from edgekit.pipeline.steps import outputs_of_model
from edgekit.pipeline.table import TableRequest, load_table, make_table
from edgekit.targets import resolve_target

NEAR = 0.10
BUDGETS: tuple[How, ...] = ("latency", "uniform")


def built(model: Model, folder: Path, feeds: dict[str, np.ndarray]) -> Engine:
    """The FP32 engine for this CPU, as `edgekit build` makes it: simplified first."""
    floating, _ = simplify(model, run=lambda one: outputs_of_model(one, feeds))
    folder.mkdir(parents=True)
    save(floating, folder / "in.onnx")
    target = resolve_target("cpu").target
    request = EngineRequest(
        model_path=folder / "in.onnx", name="net", target=target, precision="fp32"
    )
    return runtime_module(target.runtime.name).build(request, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--criterion", default="auto")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    on = setting(options)
    some = on.shown.take(options.samples)
    feeds = dict(next(iter(on.shown.take(64))).inputs)
    missed = []
    print(f"original: {100 * accuracy(on.model, on):.2f}% of {len(on.labels)} test images")
    for batch in options.batches:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            origin = Origin(place=str(options.data / "models" / "resnet20-cifar10.onnx"))
            place = folder / "table.json"
            made = make_table(
                TableRequest(
                    origin=origin, target="cpu", batch=batch, threads=options.threads,
                    cache=folder / "layers", out=place,
                )
            )  # fmt: skip
            table = load_table(place)
            engines = {"original": built(on.model, folder / "original", feeds)}
            found = {}
            for budget in BUDGETS:
                cut, report = cut_channels(
                    on.model,
                    CutOptions(
                        limits=Limits(latency_ms=Share(options.share)), budget=budget,
                        criterion=options.criterion,
                    ),
                    guidance_of(some, latency_by(table), lambda share, said: None),
                )  # fmt: skip
                found[budget] = cut, report
                engines[budget] = built(cut, folder / budget, feeds)
            arms = [
                Arm(name=name, engine=engine, inputs=feeds, batch=batch, threads=options.threads)
                for name, engine in engines.items()
            ]
            measured = measure_side_by_side(arms, seconds=options.seconds, rounds=options.rounds)
            # The lowest tenth: what the program takes where no neighbour takes the processor.
            low = {one.arm: float(np.quantile(one.samples, 0.1)) for one in measured}
            middle = {one.arm: float(np.median(one.samples)) for one in measured}
        print(f"\nbatch {batch}: the table's scale is {made.document['scale']:.2f}")
        print(f"{'':10} {'asked':>7} {'expected':>9} {'measured':>9} {'(median)':>9} {'MACs':>6}"
              f" {'accuracy':>9}")  # fmt: skip
        for budget, (cut, report) in found.items():
            assert report.latency is not None
            expected = report.latency.after_ms / report.latency.before_ms
            share = low[budget] / low["original"]
            macs = report.after.macs / report.before.macs
            right = accuracy(cut, on)
            if budget == "latency" and abs(share / options.share - 1) > NEAR:
                missed.append(f"batch {batch}: {share:.3f}")
            print(
                f"{budget:10} {options.share:7.3f} {expected:9.3f} {share:9.3f} "
                f"{middle[budget] / middle['original']:9.3f} {macs:6.3f} {100 * right:8.2f}%",
                flush=True,
            )
        print(f"original: {1e3 * low['original']:.3f} ms")
    print(f"\nfurther than {NEAR:.0%} from what was asked: {', '.join(missed) or 'none'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
