"""Channel removal over well-known networks: what is equal, what is reached, how long it takes.

    python benchmarks/channels.py GRAPHS [--only NAME ...] [--compile] [--peer PYTHON]

GRAPHS is a folder of hollow ONNX graphs with `fill.py`. For each:

- the largest error of a cut that keeps 70, 50 and 30% of the units of every group, picked at
  random, against the full network in which nothing reads what was removed;
- the share of its MACs at which a limit of one half ends, with multiples of 8, and whether ONNX
  Runtime runs the result (and, with `--compile`, TensorRT-RTX compiles it);
- the seconds of finding the groups and of cutting.

`--peer` names a Python with torch, torchvision and torch-pruning: its seconds for tracing and
cutting the same architecture are taken in turns with ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from graphs import filler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "compress"))
from masked import masked

from edgekit.compress.channels.budget import choose_kept
from edgekit.compress.channels.criteria import score_groups
from edgekit.compress.channels.groups import Groups, find_groups
from edgekit.compress.channels.remove import remove_channels
from edgekit.engines import tensorrt_rtx
from edgekit.engines.base import EngineRequest
from edgekit.errors import EdgekitError
from edgekit.models.cost import total_cost
from edgekit.models.model import Model, save, to_bytes
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.targets import resolve_target
from edgekit.values import Array

KEPT = (0.7, 0.5, 0.3)
HALF = 0.5
NEAR = 0.03
TOLERANCE = 1e-4
TURNS = 3
_PEER = Path(__file__).resolve().parent / "peer_torch_pruning.py"
_CAPABILITY = "8.6"


def outputs(model: Model, x: Array) -> list[Array]:
    """What ONNX Runtime computes, without fusions that the two graphs may not share."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(to_bytes(model), options)
    found: list[Array] = session.run(None, {session.get_inputs()[0].name: x})
    return found


def equivalence(model: Model, groups: Groups, x: Array) -> float:
    """The worst relative error over the shares that are kept."""
    worst = 0.0
    for share in KEPT:
        rng = np.random.default_rng(round(100 * share))
        kept = [
            np.sort(rng.choice(g.units, max(1, round(share * g.units)), replace=False))
            for g in groups.groups
        ]
        cut, plan = remove_channels(model, groups, kept)
        pairs = zip(outputs(cut, x), outputs(masked(model, groups, plan), x), strict=True)
        worst = max(worst, *(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs))
    return worst


def halved(model: Model, groups: Groups) -> Model:
    """The model at half of its MACs, with multiples of 8."""
    scores = score_groups("l2", model, groups.groups)
    kept = choose_kept(model, groups.groups, scores, macs=HALF, multiple=8)
    return remove_channels(model, groups, kept)[0]


def compiles(model: Model, folder: Path) -> str:
    """Empty where TensorRT-RTX compiles the model, else what it says."""
    path = folder / "model.onnx"
    save(model, path)
    request = EngineRequest(
        model_path=path, name="net", target=resolve_target("rtx-3060").target, precision="fp32"
    )
    try:
        tensorrt_rtx.compile_model(request, folder / "engine", compute_capability=_CAPABILITY)
    except EdgekitError as error:
        return f"{error.what}: {error.got}"
    return ""


def seconds(model: Model) -> float:
    """How long finding the groups and cutting half of each take."""
    begun = time.perf_counter()
    groups = find_groups(model)
    kept = [np.arange(max(1, group.units // 2)) for group in groups.groups]
    remove_channels(model, groups, kept)
    return time.perf_counter() - begun


def peer_seconds(python: str, name: str) -> float | str:
    """The peer's time for the same, or why there is none."""
    done = subprocess.run(
        [python, str(_PEER), name], capture_output=True, text=True, timeout=300, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:60]
    found = json.loads(lines[-1])
    return float(found["seconds"]) if "seconds" in found else str(found["failed"])[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("graphs", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peer")
    options = parser.parse_args()
    fill = filler(options.graphs)
    missed: list[str] = []
    print(f"{'network':34} {'error':>8} {'MACs':>6} {'ours':>7} {'peer':>7}  notes")
    for path in sorted(options.graphs.glob("*.onnx")):
        if options.only and path.stem not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            full = Path(folder, path.name)
            fill.fill(path, full)
            model = clean(load(full))
            shape = [size if isinstance(size, int) else 1 for size in model.inputs[0].shape]
            x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            groups = find_groups(model)
            error = equivalence(model, groups, x)
            cut = halved(model, groups)
            share = total_cost(cut).macs / total_cost(model).macs
            finite = all(np.isfinite(y).all() for y in outputs(cut, x))
            notes = [] if finite else ["outputs are not finite"]
            if options.compile:
                notes += [said] if (said := compiles(cut, Path(folder))) else []
            times: list[float] = []
            peers: list[float | str] = []
            for _ in range(TURNS):
                times.append(seconds(model))
                if options.peer and not (peers and isinstance(peers[-1], str)):
                    peers.append(peer_seconds(options.peer, path.stem))
        if peers and isinstance(peers[-1], str):
            notes.append(f"peer: {peers[-1]}")
        numbers = [peer for peer in peers if not isinstance(peer, str)]
        peer = min(numbers) if numbers else None
        wrong = (
            error > TOLERANCE or abs(share - HALF) > NEAR or not finite or min(times) > 1
            or (peer is not None and min(times) > peer)
        )  # fmt: skip
        missed += [path.stem] if wrong else []
        print(
            f"{path.stem:34} {error:8.1e} {share:6.3f} {min(times):6.2f}s "
            f"{f'{peer:6.2f}s' if peer is not None else '      -'}  {'; '.join(notes)}",
            flush=True,
        )
    print(f"networks that miss a mark: {', '.join(missed) or 'none'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
