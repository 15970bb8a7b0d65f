"""Every graph as an engine of TensorRT-RTX: FP32, FP16 and INT8, for two generations of GPUs.

    python benchmarks/engines.py GRAPHS [PAGES] [--only NAME ...] [--quick] [--work FOLDER]

GRAPHS is a folder of ONNX graphs, filled ones or hollow ones with `fill.py` beside them; they are
observed on a few random samples. PAGES holds networks of their own data, NAME.onnx beside
NAME-calib.npz (`pages.py` makes them). Each is simplified, turned to float16 and quantized in the
dialect `tensorrt-strong`, and each of the three graphs is built by `edgekit.engines` for both
compute capabilities 8.6 and 12.0, one process at a time. Nothing runs: there is no GPU. The table
has the memory that the plan's weights take and the share of the multiply-accumulates that the graph
has in INT8. Results are kept in the work folder, engine by engine: an interrupted run goes on from
there; --work elsewhere starts anew. Exit 1 where an FP32 engine is missing, or more than two of
another precision on one device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from graphs import feeds_of, filler
from quantize_runtimes import calibration
from quantizing import Results

from edgekit.engines import onnxruntime
from edgekit.engines.base import BuilderOptions, EngineRequest, runtime_module
from edgekit.errors import EdgekitError
from edgekit.models.model import Model, save
from edgekit.models.simplify import clean, simplify
from edgekit.models.source import load
from edgekit.quantize.dialects import DIALECTS
from edgekit.quantize.fp16 import Fp16Limits, strong_typed, to_fp16
from edgekit.quantize.observe import observe
from edgekit.quantize.place import place, share_of_macs
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import minmax
from edgekit.quantize.scheme import make_scheme
from edgekit.quantize.write import write_qdq
from edgekit.targets import Target, resolve_target
from edgekit.values import Array, Batch, run

DEVICES = ("8.6", "12.0")
PRECISIONS = ("fp32", "fp16", "int8")
MOST_MISSING = {"fp32": 0, "fp16": 2, "int8": 2}
DIALECT = DIALECTS["tensorrt-strong"]
QUICK = ("lcnet_050", "mobilenet_v2", "resnet18", "shufflenet_v2_x1_0", "vit_tiny_patch16_224")
PAGE_SAMPLES = 4
LIMIT_S = 900.0
LIMITS = Fp16Limits(samples=2)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network's name, how its file is made at a place, and its samples where it has some."""

    name: str
    file_at: Callable[[Path], Path]
    samples: Path | None = None


def networks(graphs: Path, pages: Path | None) -> Iterator[Network]:
    """Every network of the two folders, small files first."""
    fill = filler(graphs) if (graphs / "fill.py").exists() else None

    def file_at(path: Path) -> Callable[[Path], Path]:
        def made(scratch: Path) -> Path:
            if fill is None:
                return path
            fill.fill(path, scratch / path.name)
            return scratch / path.name

        return made

    for path in sorted(graphs.rglob("*.onnx"), key=lambda p: p.stat().st_size):
        yield Network(name=path.stem, file_at=file_at(path))
    for path in sorted(pages.glob("*.onnx")) if pages is not None else ():
        found = pages / f"{path.stem}-calib.npz" if pages is not None else path
        yield Network(name=path.stem, file_at=lambda scratch, p=path: p, samples=found)  # type: ignore[misc]


def samples_of(model: Model, stored: Path | None) -> list[Batch]:
    """A few samples, one a batch."""
    if stored is None:
        return calibration(model)
    with np.load(stored) as arrays:
        inputs = {spec.name: arrays[spec.name][:PAGE_SAMPLES] for spec in model.inputs}
    return [Batch(inputs={n: a[i : i + 1] for n, a in inputs.items()}) for i in range(PAGE_SAMPLES)]


def target_of(capability: str, folder: Path) -> Target:
    """The profile of a GPU of that compute capability; a file of our own where no profile is it."""
    if capability == "8.6":
        return resolve_target("rtx-3060").target
    path = folder / "sm120.toml"
    path.write_text(
        'name = "sm120"\ntitle = "A GPU of compute capability 12.0"\nextends = "rtx-4090"\n'
        f'compute_capability = "{capability}"\n'
        '[sources]\ncompute_capability = "As asked for."\n'
    )
    return resolve_target(str(path)).target


def graphs_of(
    path: Path, stored: Path | None
) -> tuple[dict[str, Model | EdgekitError], dict[str, Any]]:
    """The three graphs of a network, and what is to be said of them.

    Where no float16 graph is to be had, why; INT8 is then beside float16 everywhere.
    """
    begun = time.perf_counter()
    model = clean(load(path))
    samples = samples_of(model, stored)

    def outputs(one: Model) -> dict[str, Array]:
        with onnxruntime.open_model(one) as session:
            return run(session, samples[0].inputs)

    floating = prepared(simplify(model, run=outputs)[0])
    made: dict[str, Model | EdgekitError] = {"fp32": floating}
    kept: dict[str, str] = {}
    try:
        made["fp16"], report = to_fp16(floating, samples, onnxruntime.open_model, limits=LIMITS)
        kept = dict(report.left)
    except EdgekitError as error:
        made["fp16"] = error
    placement = place(floating, DIALECT)
    ranges = observe(floating, placement.reads, samples, onnxruntime.open_model)
    quantized, _ = write_qdq(floating, make_scheme(floating, placement, ranges, minmax))
    made["int8"] = strong_typed(quantized, kept=kept)
    return made, {
        "placed": share_of_macs(floating, placement),
        "left_in_float": len(kept),
        "seconds": time.perf_counter() - begun,
    }


def built(model_path: Path, precision: str, target: Target, folder: Path) -> dict[str, Any]:
    """What came of one build: the plan's figures, or why there is none."""
    begun = time.perf_counter()
    feeds = feeds_of(load(model_path))
    request = EngineRequest(
        model_path=model_path, name=model_path.stem, target=target, precision=precision,
        shapes={name: (x.shape, x.shape, x.shape) for name, x in feeds.items()},
        builder=BuilderOptions(time_limit_s=LIMIT_S),
    )  # fmt: skip
    try:
        engine = runtime_module("tensorrt_rtx").build(request, folder)
    except EdgekitError as error:
        return {"refused": f"{error.what}: {error.got}", "seconds": time.perf_counter() - begun}
    figures = {
        name: engine.figures[name]
        for name in ("weight_bytes", "activation_bytes")
        if isinstance(engine.figures.get(name), (int, float))
    }
    return {
        **figures, "file_bytes": engine.file_bytes, "notes": list(engine.notes),
        "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def measure(network: Network, results: Results, targets: dict[str, Target]) -> None:
    """Every engine of a network that is not known yet."""
    wanted = [f"{p}/{c}" for p in PRECISIONS for c in DEVICES]
    if all(f"{network.name}/{key}" in results.numbers for key in wanted):
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        folder = Path(scratch)
        made, said = graphs_of(network.file_at(folder), network.samples)
        results.once(f"{network.name}/graphs", lambda: said)
        for precision, model in made.items():
            if isinstance(model, EdgekitError):
                refused = {"refused": f"{model.what}: {model.got}", "seconds": 0.0}
                for capability in targets:
                    results.once(
                        f"{network.name}/{precision}/{capability}",
                        lambda: refused,  # noqa: B023
                    )
                continue
            path = folder / f"{network.name}-{precision}.onnx"
            save(model, path)
            for capability, target in targets.items():
                engine = folder / "engine"
                engine.mkdir(exist_ok=True)
                results.once(
                    f"{network.name}/{precision}/{capability}",
                    lambda: built(path, precision, target, engine),  # noqa: B023
                )
            path.unlink()


def cells(name: str, numbers: dict[str, Any]) -> list[str]:
    """A network's line of the table."""
    found = {(p, c): numbers[f"{name}/{p}/{c}"] for p in PRECISIONS for c in DEVICES}
    line = [name]
    for precision in PRECISIONS:
        line.append("/".join("no" if "refused" in found[precision, c] else "ok" for c in DEVICES))
    for capability in DEVICES:
        weights = [found[p, capability].get("weight_bytes") for p in PRECISIONS]
        line += [f"{w / 1e6:.1f}" if w is not None else "-" for w in weights]
        line.append(f"{weights[2] / weights[0]:.2f}" if weights[0] and weights[2] else "-")
    line.append(f"{numbers[f'{name}/graphs']['placed']:.2f}")
    line.append(f"{sum(one['seconds'] for one in found.values()):.0f}")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("graphs", type=Path)
    parser.add_argument("pages", type=Path, nargs="?")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("engines.work"))
    options = parser.parse_args()
    begun = time.perf_counter()
    options.work.mkdir(parents=True, exist_ok=True)
    results = Results(options.work / "engines.json")
    targets = {capability: target_of(capability, options.work) for capability in DEVICES}
    wanted = options.only or (QUICK if options.quick else ())
    chosen = [n for n in networks(options.graphs, options.pages) if not wanted or n.name in wanted]
    head = ("network", *PRECISIONS, *(f"{c} {p}" for c in DEVICES for p in (*PRECISIONS, "int8:")),
            "int8 MACs", "s")  # fmt: skip
    print(f"{head[0]:30} " + " ".join(f"{name:>10}" for name in head[1:]))
    broken: list[str] = []
    for network in chosen:
        try:
            measure(network, results, targets)
        except EdgekitError as error:
            broken.append(f"{network.name}: {error.what}: {error.got}")
            print(f"{network.name:30} {error.what}", flush=True)
            continue
        line = cells(network.name, results.numbers)
        print(f"{line[0]:30} " + " ".join(f"{cell:>10}" for cell in line[1:]), flush=True)
    print("\nok/no on the devices; MB of weights in the plan; int8: is INT8 over FP32")
    sys.exit(told(chosen, results.numbers, broken, time.perf_counter() - begun))


def told(chosen: list[Network], numbers: dict[str, Any], broken: list[str], seconds: float) -> int:
    """Prints the counts and each reason; the exit code."""
    failed = bool(broken)
    for precision in PRECISIONS:
        for capability in DEVICES:
            keys = [f"{network.name}/{precision}/{capability}" for network in chosen]
            found = {key: numbers[key] for key in keys if key in numbers}
            refused = {key: one["refused"] for key, one in found.items() if "refused" in one}
            missing = len(keys) - len(found) + len(refused)
            failed = failed or missing > MOST_MISSING[precision]
            print(f"{precision} for {capability}: {len(keys) - missing} of {len(keys)}")
            for key, why in refused.items():
                print(f"  {key}: {json.dumps(why)[:400]}")
    for line in broken:
        print(f"  {line}")
    print(f"{seconds:.0f} s{'; MISS' if failed else ''}")
    return int(failed)


if __name__ == "__main__":
    main()
