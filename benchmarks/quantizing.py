"""What the two benchmarks of quantization's quality share: results on disk, ways to quantize."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import files
from edgekit.data.batches import Batches
from edgekit.engines.onnxruntime import open_model
from edgekit.models.model import Model
from edgekit.models.simplify import clean, simplify
from edgekit.models.source import load
from edgekit.pipeline.quantization import restricted
from edgekit.quantize.dialects import Dialect
from edgekit.quantize.observe import ObserveOptions, observe
from edgekit.quantize.place import place, share_of_macs
from edgekit.quantize.precision.sensitivity import node_sensitivity
from edgekit.quantize.precision.spare import Spared, spare
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import choice
from edgekit.quantize.refine.judge import Judge
from edgekit.quantize.refine.refine import RefineOptions, refine
from edgekit.quantize.scheme import Placement, Scheme, WeightOptions, make_scheme
from edgekit.quantize.write import write_qdq
from edgekit.values import Array, Session, run

HERE = Path(__file__).resolve().parent
PEERS = (
    ("ort", "minmax", "symmetric"), ("ort", "minmax", "affine"),
    ("nncf", "mean_minmax", "symmetric"), ("nncf", "mean_minmax", "affine"),
    ("modelopt", "max", "symmetric"), ("modelopt", "entropy", "symmetric"),
)  # fmt: skip


class Results:
    """Numbers by what was measured, on disk as soon as they are there, never measured twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.numbers: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self.numbers:
            self.numbers[key] = measure()
            files.write_text(self.path, json.dumps(self.numbers, indent=1) + "\n")
        return self.numbers[key]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a network is quantized: `refine` as in RefineOptions, or "none"."""

    name: str
    ranges: str = "best"
    refine: Any = "none"
    weights: WeightOptions | None = None
    spare: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file with its Q/DQ, the share of MACs in INT8, how long it took, and what refining said."""

    model: Model
    share: float
    seconds: float
    said: str = ""


def opener(threads: int, *, optimise: bool) -> Callable[[Model], AbstractContextManager[Session]]:
    return lambda model: open_model(model, threads=threads, optimise=optimise)


def ready(path: Path, few: Batches, threads: int) -> Model:
    """The float network as every way starts from it: simplified, prepared."""
    feeds = next(iter(few.with_batch_size(2))).inputs

    def outputs(model: Model) -> Mapping[str, Array]:
        with open_model(model, threads=threads) as session:
            return run(session, feeds)

    return prepared(simplify(clean(load(path)), run=outputs)[0])


def quantized(model: Model, dialect: Dialect, way: Way, shown: Batches, threads: int) -> Made:
    """The network quantized in one way."""
    begun = time.perf_counter()
    plain = opener(threads, optimise=True)

    def scheme_of(changed: Model, placement: Placement) -> Scheme:
        options = ObserveOptions(rows=way.ranges == "best")
        ranges = observe(changed, placement.reads, shown, plain, options=options)
        chosen = choice(way.ranges, symmetric=dialect.symmetric, model=changed)
        return make_scheme(changed, placement, ranges, chosen, weights=way.weights)

    scheme = scheme_of(model, place(model, dialect))
    current, said = model, ""
    if way.spare:
        scheme, spared = _spared(model, scheme, shown, way.spare, threads)
        said = f"{spared}; "
    if way.refine != "none":
        current, scheme, report = refine(
            model, scheme, shown, opener(threads, optimise=False), RefineOptions(steps=way.refine),
            rescheme=scheme_of,
        )  # fmt: skip
        said += "; ".join(
            f"{step.name} {step.after_db - step.before_db:+.1f}{'' if step.kept else ' (not kept)'}"
            for step in report.steps
        )
    written, _ = write_qdq(current, scheme)
    return Made(
        model=written, share=share_of_macs(current, scheme.placement),
        seconds=time.perf_counter() - begun, said=said,
    )  # fmt: skip


def _spared(
    model: Model, scheme: Scheme, shown: Batches, share: float, threads: int
) -> tuple[Scheme, Spared]:
    opened = opener(threads, optimise=False)
    judge = Judge(model, shown.with_batch_size(4), opened)
    damage = node_sensitivity(model, scheme, list(shown.with_batch_size(4)), opened).damage
    return spare(
        model, scheme, lambda excluded: restricted(model, scheme, excluded), damage,
        lambda tried: float(judge.score(model, tried).mean()), share,
    )  # fmt: skip


def outputs_of(model: Model, batches: Batches, threads: int, *, optimise: bool) -> dict[str, Array]:
    """All outputs over all batches."""
    with open_model(model, threads=threads, optimise=optimise) as session:
        found = [run(session, batch.inputs) for batch in batches]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def sqnr_db(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    """10 log10 of the energy of the wanted outputs over that of the difference."""
    signal = sum(float((b.astype(np.float64) ** 2).sum()) for b in wanted.values())
    noise = sum(float(((found[n] - b.astype(np.float64)) ** 2).sum()) for n, b in wanted.items())
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def peer_files(
    peers: Path,
    source: Path,
    samples: Path,
    folder: Path,
    threads: int,
    *,
    per_tensor: bool = False,
) -> Iterator[tuple[str, str, Path | None, dict[str, Any]]]:
    """(name, symmetric or affine, file or None where it failed, what it said) for each peer."""
    for tool, method, kind in PEERS:
        python = peers / tool / "bin" / "python"
        name = f"{tool} {method} {kind}"
        out = folder / f"{source.stem}-{tool}-{method}-{kind}.onnx"
        log = out.with_suffix(".json")
        if not python.is_file():
            continue
        if not log.is_file():
            command = [
                str(python), str(HERE / "peer_quantizers.py"), "--tool", tool, "--method", method,
                f"--{kind}", "--threads", str(threads), str(source), str(samples), str(out),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = done.stdout.strip().splitlines()
            said = lines[-1] if done.returncode == 0 and lines else json.dumps(
                {"failed": done.stderr.strip().splitlines()[-1:] or ["without a word"]}
            )  # fmt: skip
            files.write_text(log, said + "\n")
            print(f"  {name}: {said[:150]}", file=sys.stderr, flush=True)
        yield name, kind, out if out.is_file() else None, json.loads(log.read_text())


def layer_share(model: Model) -> float:
    """The share of Conv, ConvTranspose and Gemm of a Q/DQ file that read both operands as integers.

    By multiply-accumulates where shapes are known, else by number.
    """
    from edgekit.models.cost import node_costs

    macs = {cost.node: cost.macs for cost in node_costs(model)}
    total = done = 0
    for node in model.graph:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        count = macs.get(node.name or "", 1) or 1
        operands = [value.producer() if value is not None else None for value in node.inputs[:2]]
        total += count
        done += count * all(p is not None and p.op_type == "DequantizeLinear" for p in operands)
    return done / total if total else 0.0
