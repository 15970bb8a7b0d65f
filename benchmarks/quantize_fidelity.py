"""Fidelity of INT8 on real trained networks: ours against the peers, from the same samples.

    python benchmarks/quantize_fidelity.py NAME.onnx ... [--peers FOLDER] [--out FOLDER]
        [--dialects tensorrt-10 ort-vnni ort-avx2] [--samples 64] [--threads 1] [--quick]

Beside each NAME.onnx lie NAME-calib.npz and NAME-eval.npz (`pages.py` makes them for the three
networks of rapidocr-onnxruntime): an array for each input, first axis the samples. FOLDER has a
virtual environment for each of the peers (`peer_quantizers.py`).

Printed for each file: the SQNR of the outputs on the evaluation samples by emulation (graph
optimisation off), for ONNX Runtime's dialects through its kernels too, and the share of the
multiply-accumulates of weighted layers in INT8. Symmetric dialects stand against symmetric
peers, affine against affine: against each peer the best of our files that has at least the peer's
share in INT8, and never less than 95%. Of an affine peer that is the share which ONNX Runtime
really runs on integers: a ConvTranspose between Q and DQ is none. A miss: less than 2 dB over a
peer. Exit 1 on a miss.

What is measured is written to FOLDER/quantize_fidelity.json at once, and not measured again.
`--quick`: 8 samples of each kind, the first dialect.
"""

from __future__ import annotations

import argparse
import sys
import time
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
from edgekit.engines.integer_share import integer_share
from edgekit.models.model import Model, digest
from edgekit.models.source import load
from edgekit.quantize.dialects import DIALECTS
from edgekit.values import Array

WAYS = (
    Way(name="best"),
    Way(name="refined", refine="auto"),
    Way(name="refined, 5% spared", refine="auto", spare=0.05),
)
LEAD_DB, LEAST_SHARE = 2.0, 0.95
_SAME_SHARE = 1e-3
_AT_ONCE = 4


def samples_of(path: Path, model: Model, most: int | None) -> Batches:
    with np.load(path) as stored:
        arrays = {spec.name: stored[spec.name][:most] for spec in model.inputs}
    return Batches(arrays=arrays, pixels={}, batch_size=_AT_ONCE)


def figures(
    model: Model, test: Batches, wanted: dict[str, Array], threads: int
) -> dict[str, float]:
    return {
        how: sqnr_db(outputs_of(model, test, threads, optimise=optimise), wanted)
        for how, optimise in (("emulated", False), ("kernels", True))
    }


def line(name: str, row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"  {name:28} failed: {row['failed'][:80]}"
    return (
        f"  {name:28} {row['emulated']:5.1f} dB emulated, {row['kernels']:5.1f} through kernels, "
        f"{100 * row['share']:5.1f}% INT8, {row['seconds']:4.0f} s  {row.get('said', '')}"
    )


def theirs(
    path: Path | None, said: dict[str, Any], test: Batches, wanted: dict[str, Array], threads: int
) -> dict[str, Any]:
    if path is None:
        return {"failed": str(said.get("failed"))}
    model = load(path)
    found = figures(model, test, wanted, threads)
    return {**found, "share": layer_share(model), "seconds": said.get("seconds", 0.0)}


def runs(path: Path) -> float:
    """The share of the MACs of a peer's file that ONNX Runtime's kernels really do on integers."""
    return integer_share(load(path)).of_macs


def network(path: Path, results: Results, options: argparse.Namespace) -> int:
    """Prints the rows of one network; returns how many verdicts missed."""
    original = load(path)
    shown, test = (
        samples_of(path.with_name(f"{path.stem}-{part}.npz"), original, most)
        for part, most in (("calib", options.samples), ("eval", options.judged))
    )
    model = ready(path, shown, options.threads)
    wanted = outputs_of(model, test, options.threads, optimise=True)
    mark = f"{path.stem} {digest(model)[:8]} {shown.count} {test.count}"
    print(f"{path.stem}: {shown.count} samples, judged on {test.count} others")
    peers: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    if options.peers is not None:
        samples = options.out / f"{path.stem}-{shown.count}.npz"
        np.savez(samples, **{k: np.asarray(v) for k, v in shown.arrays.items()})
        for peer, kind, file, said in peer_files(
            options.peers, path, samples, options.out, options.threads
        ):
            measure = partial(theirs, file, said, test, wanted, options.threads)
            row = results.once(f"{mark} {peer}", measure)
            if "failed" not in row:
                assert file is not None
                if kind == "affine":
                    row["share"] = results.once(f"{mark} {peer} runs", partial(runs, file))
                peers.setdefault(kind, []).append((peer, row))
            print(line(peer, row), flush=True)
    missed = 0
    for chosen in options.dialects:
        dialect = DIALECTS[chosen]
        rows: dict[str, dict[str, Any]] = {}
        for way in WAYS:

            def make(way: Way = way, chosen: str = chosen) -> dict[str, Any]:
                made = quantized(model, DIALECTS[chosen], way, shown, options.threads)
                found = figures(made.model, test, wanted, options.threads)
                return {**found, "share": made.share, "seconds": made.seconds, "said": made.said}

            row = rows[way.name] = results.once(f"{mark} {chosen} {way.name}", make)
            print(line(f"{chosen}, {way.name}", row), flush=True)
        kind = "symmetric" if dialect.symmetric else "affine"
        for peer, theirs_row in peers.get(kind, []):
            least = max(LEAST_SHARE, theirs_row["share"]) - _SAME_SHARE
            mine = {name: row for name, row in rows.items() if row["share"] >= least}
            name = max(mine, key=lambda name: mine[name]["emulated"], default="")
            lead = mine[name]["emulated"] - theirs_row["emulated"] if mine else -np.inf
            missed += lead < LEAD_DB
            print(
                f"    {lead:+.1f} dB over {peer} ({theirs_row['share']:.1%} INT8): "
                f"{name or 'none has that share'}{' MISSED' * (lead < LEAD_DB)}"
            )
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="+", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--samples", type=int, default=64, help="to calibrate with")
    parser.add_argument("--judged", type=int, help="to judge on, all if not given")
    parser.add_argument(
        "--dialects", nargs="+", default=["tensorrt-10", "ort-vnni", "ort-avx2"],
        choices=tuple(DIALECTS),
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.judged, options.dialects = 8, 8, options.dialects[:1]
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / f"quantize_fidelity{'-quick' * options.quick}.json")
    begun = time.perf_counter()
    missed = sum(network(path, results, options) for path in options.networks)
    print(f"{time.perf_counter() - begun:.0f} s, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
