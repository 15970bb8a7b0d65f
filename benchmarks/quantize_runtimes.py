"""Every dialect's file of every graph: is it accepted where it can be tried, and is it INT8?

    python benchmarks/quantize_runtimes.py GRAPHS [--only NAME ...] [--quick] [--work FOLDER]

GRAPHS is a folder of ONNX graphs, filled ones or hollow ones with `fill.py` beside them. Each is
simplified, observed on a few random samples and written in every dialect. `tensorrt-strong` is
parsed and compiled by TensorRT-RTX for compute capability 8.6; `ort-*` are run by ONNX Runtime and
the share of MACs on integer kernels is read from its own optimised graph; `tensorrt-8` and
`tensorrt-10` go through our lint and run under ONNX Runtime with its optimisations off. Results are
kept in the work folder, graph by graph: an interrupted run goes on from there. Exit 1 on a miss.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from graphs import feeds_of, filler

from edgekit import files
from edgekit.engines import onnxruntime, tensorrt_rtx
from edgekit.engines.base import EngineRequest
from edgekit.engines.integer_share import integer_share
from edgekit.errors import EdgekitError
from edgekit.models.model import Model, digest, save
from edgekit.models.opset import lowered, raised
from edgekit.models.simplify import clean, simplify
from edgekit.models.source import load
from edgekit.quantize import fp16
from edgekit.quantize.dialects import DIALECTS, Dialect
from edgekit.quantize.lint import lint
from edgekit.quantize.observe import float_activations, observe
from edgekit.quantize.place import place, share_of_macs
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import Ranges, minmax
from edgekit.quantize.scheme import make_scheme
from edgekit.quantize.write import write_qdq
from edgekit.targets import load_target
from edgekit.values import Array, Batch, run

SAMPLES = 4
LEAST_SHARE, LEAST_RUNNING = 0.95, 0.90
QUICK = ("mobilenet_v2", "resnet18", "squeezenet1_1", "shufflenet_v2_x1_0", "vit_tiny_patch16_224")
HALF_OPSET = 19


def calibration(model: Model) -> list[Batch]:
    """A few made-up samples, one a batch."""
    feeds = feeds_of(model)
    rng = np.random.default_rng(1)
    noisy = [
        {
            name: (x + 0.3 * rng.standard_normal(x.shape)).astype(x.dtype)
            for name, x in feeds.items()
        }
        for _ in range(SAMPLES - 1)
    ]
    return [Batch(inputs=inputs) for inputs in (feeds, *noisy)]


def ready(path: Path) -> tuple[Model, Ranges, dict[str, Array]]:
    """The graph simplified and prepared, its ranges, and one sample."""
    model = clean(load(path))
    feeds = feeds_of(model)

    def outputs(one: Model) -> dict[str, Array]:
        with onnxruntime.open_model(one) as session:
            return run(session, feeds)

    floating, _ = simplify(model, run=outputs)
    floating = prepared(floating)
    ranges = observe(
        floating, float_activations(floating), calibration(floating), onnxruntime.open_model
    )
    return floating, ranges, feeds


def tried(
    model: Model, ranges: Ranges, feeds: dict[str, Array], dialect: Dialect
) -> dict[str, object]:
    """What came of one dialect; `miss` is "" where nothing is wrong."""
    placement = place(model, dialect)
    quantized, _ = write_qdq(model, make_scheme(model, placement, ranges, minmax))
    found: dict[str, object] = {"placed": share_of_macs(model, placement), "miss": ""}
    faults = [
        str(f) for f in lint(lowered_for(quantized, dialect), dialect) if f.severity != "note"
    ]
    if faults:
        found["miss"] = f"lint: {faults[0]} ({len(faults)} in all)"
    elif dialect.name == "tensorrt-strong":
        found["miss"] = compiled(half(quantized))
    elif dialect.runtime == "onnxruntime":
        share = integer_share(quantized, as_on_arm=dialect.name == "ort-arm")
        found["running"] = share.of_macs
        with onnxruntime.open_model(quantized) as session:
            found["miss"] = not_finite(run(session, feeds))
        if share.of_macs < LEAST_RUNNING:
            found["miss"] = f"only {share.of_macs:.0%} of the MACs run on integers"
    else:
        with onnxruntime.open_model(lowered_for(quantized, dialect), optimise=False) as session:
            found["miss"] = not_finite(run(session, feeds))
    if not found["miss"] and placement_share(found) < LEAST_SHARE:
        found["miss"] = f"only {placement_share(found):.1%} of the MACs are placed in INT8"
    return found


def placement_share(found: Mapping[str, object]) -> float:
    share = found["placed"]
    assert isinstance(share, float)
    return share


def lowered_for(model: Model, dialect: Dialect) -> Model:
    """The file as the dialect's runtime reads it."""
    most = dialect.opsets[1]
    return lowered(model, most) if model.opset > most else model


def half(model: Model) -> Model:
    """Everything around the Q/DQ in float16, as a strongly typed network wants it."""
    higher = model if model.opset >= HALF_OPSET else raised(model, HALF_OPSET)
    return fp16.strong_typed(higher)


def compiled(model: Model) -> str:
    """What TensorRT-RTX has against the model; "" where it builds an engine for 8.6."""
    target = load_target("rtx-3060")
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        save(model, Path(folder, "model.onnx"))
        request = EngineRequest(
            model_path=Path(folder, "model.onnx"), name=model.name, target=target, precision="int8"
        )
        try:
            tensorrt_rtx.compile_model(request, Path(folder, "engine"), compute_capability="8.6")
        except EdgekitError as error:
            return f"{error.what}: {error.got}"[:300]
    return ""


def not_finite(outputs: Mapping[str, Array]) -> str:
    bad = [name for name, array in outputs.items() if not np.isfinite(array).all()]
    return f"not finite: {', '.join(bad)}" if bad else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("graphs", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--dialects", nargs="*", default=[d for d in DIALECTS if d != "dla"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runtimes.work"))
    options = parser.parse_args()
    begun = time.perf_counter()
    wanted = options.only or (QUICK if options.quick else ())
    paths = [p for p in sorted(options.graphs.rglob("*.onnx")) if not wanted or p.stem in wanted]
    misses: list[str] = []
    print(f"{'network':30} " + " ".join(f"{name:>16}" for name in options.dialects))
    with tempfile.TemporaryDirectory() as scratch:
        for path in paths:
            store = options.work / f"{path.stem}.json"
            known = json.loads(store.read_text()) if store.exists() else {}
            if set(options.dialects) - known.keys():
                full = path
                if (options.graphs / "fill.py").exists():
                    full = Path(scratch, path.name)
                    filler(options.graphs).fill(path, full)
                model, ranges, feeds = ready(full)
                for name in options.dialects:
                    if name not in known:
                        try:
                            known[name] = tried(model, ranges, feeds, DIALECTS[name])
                        except EdgekitError as error:
                            known[name] = {
                                "placed": 0.0,
                                "miss": f"{error.what}: {error.got}"[:300],
                            }
                        known["digest"] = digest(model)
                        files.write_text(store, json.dumps(known, indent=1))
            cells = []
            for name in options.dialects:
                row = known[name]
                running = f"/{row['running']:.2f}" if "running" in row else ""
                cells.append(f"{row['placed']:.2f}{running} {'MISS' if row['miss'] else 'ok'}")
                if row["miss"]:
                    misses.append(f"{path.stem} {name}: {row['miss']}")
            print(f"{path.stem:30} " + " ".join(f"{cell:>16}" for cell in cells), flush=True)
    print(f"\nplaced/running: shares of the layers' MACs; {time.perf_counter() - begun:.0f} s")
    print("\n".join(misses) or "nothing missed")
    sys.exit(1 if misses else 0)


if __name__ == "__main__":
    main()
