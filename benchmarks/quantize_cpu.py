"""INT8 over FP32 on this processor: our file against the peers', in one run.

    python benchmarks/quantize_cpu.py NETWORK.onnx ... [--peers FOLDER] [--quick] [--threads 1]

For each network: FP32 simplified, our file in this processor's dialect, the files of the peers that
`--peers` has a virtual environment for (`peer_quantizers.py` makes them, from the same samples),
all measured in turns by ONNX Runtime with one input. Printed: the lowest tenth and the median of
the latency, the speed over FP32, the SQNR against FP32 by emulation (graph optimisation off) and
through the kernels, and that of the kernels against the emulation. A miss: a peer's file that is
faster than ours by more than 3%, or kernels of ours that lose more than 1 dB of what the emulation
has. Exit 1 on a miss.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit import machine
from edgekit.bench.runner import measure_side_by_side
from edgekit.bench.workload import Arm
from edgekit.engines import onnxruntime
from edgekit.engines.base import Engine, EngineRequest
from edgekit.errors import EdgekitError
from edgekit.models.model import Model, save
from edgekit.models.simplify import clean, simplify
from edgekit.models.source import load
from edgekit.quantize.dialects import dialect_named
from edgekit.quantize.observe import float_activations, observe
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import minmax
from edgekit.quantize.write import insert_qdq
from edgekit.targets import load_target
from edgekit.values import Array, Batch, run

HERE = Path(__file__).resolve().parent
PEERS = (("ort", "--affine"), ("ort", "--symmetric"), ("nncf", "--affine"), ("modelopt", ""))
NEAR = 1.03
KERNELS_LOSE_DB = 1.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One file of one network, and how far it is from the FP32 network."""

    name: str
    path: Path
    emulated_db: float
    kernels_db: float
    apart_db: float


def smooth_samples(model: Model, count: int, seed: int = 0) -> dict[str, Array]:
    """Made-up pictures: noise that is smoothed along both sides, of unit variance."""
    rng = np.random.default_rng(seed)
    found = {}
    for spec in model.inputs:
        inner = [size if isinstance(size, int) else 224 for size in spec.shape[1:]]
        noise = rng.standard_normal((count, *inner))
        for axis in range(2, noise.ndim):
            spectrum = np.fft.rfft(noise, axis=axis)
            frequency = np.arange(spectrum.shape[axis]).reshape(
                [-1 if a == axis else 1 for a in range(noise.ndim)]
            )
            noise = np.fft.irfft(spectrum / (1 + frequency / 4), n=noise.shape[axis], axis=axis)
        found[spec.name] = (noise / noise.std()).astype(spec.dtype)
    return found


def decibels(reference: Array, found: Array) -> float:
    """10 log10 of the energy of the reference over that of the difference."""
    signal = float((reference.astype(np.float64) ** 2).sum())
    noise = float(((reference.astype(np.float64) - found) ** 2).sum())
    return 10 * float(np.log10(signal / max(noise, signal * 1e-15)))


def outputs(place: Path, samples: Mapping[str, Array], *, optimise: bool = True) -> Array:
    """The first output over the samples."""
    with onnxruntime.open_bytes(place.read_bytes(), optimise=optimise) as session:
        found = []
        count = len(next(iter(samples.values())))
        for i in range(count):
            one = run(session, {name: array[i : i + 1] for name, array in samples.items()})
            found.append(one[session.outputs[0].name])
    return np.concatenate(found)


def files_of(
    model: Model, folder: Path, options: argparse.Namespace
) -> Iterator[tuple[str, Path]]:  # fmt: skip
    """FP32, ours, and each peer's file, as they get ready."""
    calibration = smooth_samples(model, options.samples)
    first = {name: array[:1] for name, array in calibration.items()}

    def once(one: Model) -> dict[str, Array]:
        with onnxruntime.open_model(one) as session:
            return run(session, first)

    floating = prepared(simplify(model, run=once)[0])
    fp32 = folder / "fp32.onnx"
    save(floating, fp32)
    yield "FP32", fp32
    dialect = dialect_named("onnxruntime", cpu_flags=machine.cpu_flags(), arm=machine.is_arm())
    batches = [
        Batch(inputs={name: array[i : i + 1] for name, array in calibration.items()})
        for i in range(options.samples)
    ]
    ranges = observe(floating, float_activations(floating), batches, onnxruntime.open_model)
    ours, _ = insert_qdq(floating, ranges, dialect, minmax)
    save(ours, folder / "ours.onnx")
    yield f"ours {dialect.name}", folder / "ours.onnx"
    if options.peers is None:
        return
    np.savez(folder / "calibration.npz", **calibration)  # type: ignore[arg-type]
    for tool, kind in PEERS:
        python = options.peers / tool / "bin" / "python"
        out = folder / f"{tool}{kind}.onnx"
        if not python.exists():
            print(f"  {tool}: no virtual environment at {python}", file=sys.stderr)
            continue
        command = [python, HERE / "peer_quantizers.py", "--tool", tool, *([kind] if kind else []),
                   fp32, folder / "calibration.npz", out]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
            print(f"  {tool} {kind}: {last[:200]}", file=sys.stderr)
            continue
        yield f"{tool} {kind.removeprefix('--')}".strip(), out


def engine(place: Path, threads: int) -> Engine:
    """The engine for this CPU, as `edgekit build` makes it."""
    folder = place.with_suffix("")
    folder.mkdir()
    request = EngineRequest(
        model_path=place, name=place.stem, target=load_target("cpu"), precision="fp32",
        threads=threads,
    )  # fmt: skip
    return onnxruntime.build(request, folder)


def compared(path: Path, folder: Path, options: argparse.Namespace) -> list[str]:
    """Prints one network's table and returns what misses."""
    model = clean(load(path))
    held_out = smooth_samples(model, 8, seed=1)
    candidates, engines = [], {}
    reference: Array | None = None
    for name, place in files_of(model, folder, options):
        try:
            kernels = outputs(place, held_out)
            emulated = outputs(place, held_out, optimise=False)
            engines[name] = engine(place, options.threads)
        except EdgekitError as error:
            print(f"  {name}: {error.what}: {error.got[:200]}", file=sys.stderr)
            continue
        reference = emulated if reference is None else reference
        candidates.append(
            Candidate(
                name=name, path=place, emulated_db=decibels(reference, emulated),
                kernels_db=decibels(reference, kernels), apart_db=decibels(emulated, kernels),
            )
        )  # fmt: skip
    arms = [
        Arm(name=name, engine=one, inputs=held_out, batch=1, threads=options.threads)
        for name, one in engines.items()
    ]
    measured = measure_side_by_side(arms, seconds=options.seconds, rounds=options.rounds)
    low = {one.arm: 1e3 * float(np.quantile(one.samples, 0.1)) for one in measured}
    middle = {one.arm: 1e3 * float(np.median(one.samples)) for one in measured}
    print(f"\n{path.stem}\n{'':18} {'ms (p10)':>9} {'median':>8} {'x FP32':>7} {'emulated':>9} "
          f"{'kernels':>8} {'apart dB':>9} {'MB':>6}")  # fmt: skip
    for one in candidates:
        print(
            f"{one.name:18} {low[one.name]:9.2f} {middle[one.name]:8.2f} "
            f"{low['FP32'] / low[one.name]:7.2f} {one.emulated_db:9.1f} {one.kernels_db:8.1f} "
            f"{one.apart_db:9.1f} {one.path.stat().st_size / 1e6:6.2f}", flush=True,
        )  # fmt: skip
    ours = next(one for one in candidates if one.name.startswith("ours"))
    missed = [
        f"{path.stem}: {one.name} takes {low[one.name]:.2f} ms, ours {low[ours.name]:.2f}"
        for one in candidates[2:]
        if low[ours.name] > NEAR * low[one.name]
    ]
    if ours.kernels_db < ours.emulated_db - KERNELS_LOSE_DB:
        missed.append(f"{path.stem}: our kernels are {ours.apart_db:.1f} dB from the emulation")
    if low[ours.name] >= low["FP32"]:
        print(f"{path.stem}: INT8 does not pay here, ship FP32")
    print(json.dumps({"network": path.stem, "p10_ms": low, "median_ms": middle}))
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", type=Path, nargs="+")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.seconds, options.rounds = 8, 3.0, 6
    begun = time.perf_counter()
    missed = []
    for path in options.networks:
        with tempfile.TemporaryDirectory() as scratch:
            missed += compared(path, Path(scratch), options)
    print(f"\n{time.perf_counter() - begun:.0f} s; missed: {'; '.join(missed) or 'nothing'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
