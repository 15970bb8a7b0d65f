"""Quantization, whole: ranges, scheme, refinement, who stays in float, and what each cost."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgekit import machine
from edgekit.data.batches import Batches
from edgekit.engines import onnxruntime as reference_runtime
from edgekit.engines.integer_share import integer_share
from edgekit.models.model import Model, to_bytes
from edgekit.pipeline.workshop import OnFraction
from edgekit.quantize.dialects import DIALECTS, Dialect, dialect_named
from edgekit.quantize.fp16 import strong_typed, to_fp16
from edgekit.quantize.judging.layers import LayerError, judge_layers
from edgekit.quantize.judging.outputs import PartError, judge_models
from edgekit.quantize.observe import ObserveOptions, observe
from edgekit.quantize.place import place, share_of_macs
from edgekit.quantize.precision.report import PrecisionOptions, PrecisionReport, SearchEvent
from edgekit.quantize.precision.saved import SavedTime
from edgekit.quantize.precision.search import search
from edgekit.quantize.precision.sensitivity import node_sensitivity
from edgekit.quantize.precision.spare import Spared, spare
from edgekit.quantize.ranges import Ranges, choice
from edgekit.quantize.refine.judge import Judge
from edgekit.quantize.refine.refine import RefineOptions, RefineReport, refine
from edgekit.quantize.scheme import Placement, Scheme, WeightOptions, make_scheme
from edgekit.quantize.write import QuantizeReport, nothing_to_quantize, write_qdq
from edgekit.recipe import QuantizeSection
from edgekit.targets import Target
from edgekit.values import Figure, Unknown, figure_to_json

OBSERVE_BATCH = 8
_JUDGED = 64  # samples on which errors are told
_SENSED = 24  # samples on which the sensitivity of nodes is measured
_LAYERED = 16  # samples on which errors are told layer by layer
_REFINED, _SEARCHED = 0.6, 0.9  # of the time


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a Model is quantized for, by what, and how. `version` is that of the runtime."""

    dialect: Dialect
    batches: Batches
    options: QuantizeSection
    version: str

    def scheme_of(self, model: Model, placement: Placement, ranges: Ranges) -> Scheme:
        """The Scheme of a Model with ranges chosen as asked, weights rounded to the nearest."""
        choose = choice(
            self.options.ranges, percent=self.options.percentile,
            symmetric=self.dialect.symmetric, model=model,
        )  # fmt: skip
        bits = WeightOptions(bits=self.options.weight_bits)
        return make_scheme(model, placement, ranges, choose, weights=bits)


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What a quantized Model must keep: `drop_of` gives what it loses, in the metric's unit.

    `max_drop` bounds that, `max_ms` the expected latency; one of the two is there. `saved` is the
    time that INT8 saves on the target, None where nobody knows. `evaluation` names data and metric,
    `state` is the file in which an interrupted search is kept.
    """

    drop_of: Callable[[Model], float]
    evaluation: str
    max_drop: float | None = None
    max_ms: float | None = None
    saved: SavedTime | None = None
    state: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A Model with Q/DQ by a Scheme, and everything that is to be said about it.

    `exact` are the errors of each part of the outputs by emulation, `kernels` those through ONNX
    Runtime's kernels, empty for another runtime; `kernel_share` is the share of the MACs that these
    kernels really work on in integers.
    """

    model: Model
    scheme: Scheme
    placed: QuantizeReport
    ranges: Ranges
    method: str
    int8_share: float
    exact: tuple[PartError, ...]
    kernels: tuple[PartError, ...] = ()
    kernel_share: Figure = field(default_factory=lambda: Unknown("the runtime is not here"))
    layers: tuple[LayerError, ...] = ()
    refined: RefineReport | None = None
    search: PrecisionReport | None = None
    spared: Spared | None = None
    bytes_before: int = 0
    bytes_after: int = 0

    @property
    def met(self) -> bool:
        """Whether the floor holds, where one was set."""
        return self.search is None or self.search.met

    def __str__(self) -> str:
        said = [
            str(self.placed), f"{self.int8_share:.1%} of the MACs of weighted layers in INT8",
            f"ranges by {self.method} over {self.ranges.samples} samples",
        ]  # fmt: skip
        if self.search is not None:
            said.append(str(self.search))
        if self.spared is not None:
            said.append(str(self.spared))
        if self.bytes_after >= self.bytes_before > 0:
            said.append("the file is not smaller than the FP32 one")
        return "; ".join(said)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "said": str(self),
            "dialect": self.placed.dialect,
            "quantized": dict(self.placed.quantized),
            "left": dict(self.placed.left),
            "tensors": self.placed.tensors,
            "int8_share": self.int8_share,
            "kernel_share": figure_to_json(self.kernel_share),
            "method": self.method,
            "samples": self.ranges.samples,
            "settled": self.ranges.settled,
            "doubts": list(self.ranges.doubts),
            "refined": None if self.refined is None else self.refined.to_json(),
            "search": None if self.search is None else self.search.to_json(),
            "spared": None if self.spared is None else self.spared.to_json(),
            "met": self.met,
            "parts": [part.to_json() for part in self.exact],
            "kernel_parts": [part.to_json() for part in self.kernels],
            "layers": [layer.to_json() for layer in self.layers],
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


def observe_for(
    model: Model, dialects: tuple[Dialect, ...], batches: Batches, on_fraction: OnFraction, *,
    samples: int | Literal["auto"] | None, rows: bool,
) -> Ranges:  # fmt: skip
    """The Ranges of every tensor that one of the dialects quantizes, from one pass over the data.

    `model` is prepared (`quantize.prepare`). `rows`: with what the choice "best" needs. Raises
    InputError as `observe` does, and where there is nothing to quantize.
    """
    names = dict.fromkeys(name for d in dialects for name in place(model, d).reads)
    if not names:
        raise nothing_to_quantize(model, dialects[0])
    some = batches.with_batch_size(OBSERVE_BATCH)
    return observe(
        model, names, some, reference_runtime.open_model,
        options=ObserveOptions(samples=samples, rows=rows, data_digest=batches.digest),
        on_batch=lambda done: on_fraction(min(1.0, done / some.count), f"{done} samples"),
    )  # fmt: skip


def dialect_of(target: Target) -> Dialect:
    """The dialect that a target's runtime wants, on this machine where that matters."""
    return dialect_named(
        target.runtime.dialect,
        version=target.runtime.version if target.runtime.name != "tensorrt_rtx" else "11.0",
        cpu_flags=machine.cpu_flags(),
        arm=machine.is_arm(),
    )


def every_dialect() -> tuple[Dialect, ...]:
    """Every dialect: ranges that are observed for all serve every target."""
    return tuple(DIALECTS.values())


def quantize(
    model: Model, ranges: Ranges, job: Job, *, floor: Floor | None = None,
    on_fraction: OnFraction = lambda share, said: None,
) -> Quantized:  # fmt: skip
    """A prepared floating Model, quantized as the job says, from Ranges of it.

    With a `floor` nodes stay in floating point until it holds, as few as can be; without one, those
    that `spare` of the options allows and that help. Raises InputError
    as `write_qdq`, `refine` and `search` do.
    """
    seen = [ranges]

    def scheme_again(changed: Model, placement: Placement) -> Scheme:
        """What equalisation needs: the ranges of the changed Model, observed anew."""
        again = observe(
            changed, placement.reads, job.batches.with_batch_size(OBSERVE_BATCH),
            reference_runtime.open_model,
            options=ObserveOptions(
                samples=job.options.samples, rows=job.options.ranges == "best"
            ),
        )  # fmt: skip
        seen.append(again)
        return job.scheme_of(changed, placement, again)

    scheme = job.scheme_of(model, place(model, job.dialect), ranges)
    current, refined, spared = model, None, None
    if job.options.spare and floor is None:
        # Before refining, which makes each layer up for the rounding of those before it.
        on_fraction(0.0, "who is spared")
        scheme, spared = _spared(model, scheme, job)
    if job.options.refine != "none":
        current, scheme, refined = refine(
            model, scheme, job.batches, open_as_written, RefineOptions(steps=job.options.refine),
            rescheme=scheme_again,
            on_fraction=lambda share, said: on_fraction(_REFINED * share, f"refine: {said}"),
        )  # fmt: skip
    found, damage = None, {}
    if floor is not None or importlib.util.find_spec("torch") is not None:
        on_fraction(_REFINED, "sensitivity")
        damage = _damage(current, scheme, job)
    if floor is not None:
        scheme, found = _searched(
            current, scheme, job, floor, damage,
            lambda share, said: on_fraction(_REFINED + (_SEARCHED - _REFINED) * share, said),
        )  # fmt: skip
    on_fraction(_SEARCHED, "errors by layer")
    judged = _judged(model, current, scheme, seen[-1], job)
    layers = judge_layers(
        current, scheme, seen[-1], job.batches.take(_LAYERED).with_batch_size(OBSERVE_BATCH),
        open_as_written, damage=damage,
    )  # fmt: skip
    return replace(judged, refined=refined, search=found, spared=spared, layers=layers)


def open_as_written(model: Model) -> Any:
    """A Session without the runtime's optimisations: Q/DQ in floating point."""
    return reference_runtime.open_model(model, optimise=False)


def restricted(model: Model, scheme: Scheme, excluded: Mapping[str, str]) -> Scheme:
    """The Scheme with more nodes left in floating point, every other grid and integer as it is."""
    placement = place(model, scheme.dialect, excluded=excluded)
    return Scheme(
        placement=placement,
        activations={name: scheme.activations[name] for name in placement.reads},
        weights={node: scheme.weights[node] for node in placement.weights},
    )


def _damage(model: Model, scheme: Scheme, job: Job) -> dict[str, float]:
    few = list(job.batches.take(_SENSED).with_batch_size(OBSERVE_BATCH))
    return dict(node_sensitivity(model, scheme, few, open_as_written).damage)


def _spared(model: Model, scheme: Scheme, job: Job) -> tuple[Scheme, Spared]:
    few = job.batches.take(_JUDGED)
    judge = Judge(model, few.with_batch_size(OBSERVE_BATCH), open_as_written)
    return spare(
        model, scheme, lambda excluded: restricted(model, scheme, excluded),
        _damage(model, scheme, job), lambda tried: float(judge.score(model, tried).mean()),
        job.options.spare,
    )  # fmt: skip


def _searched(
    model: Model, scheme: Scheme, job: Job, floor: Floor, damage: Mapping[str, float],
    on_fraction: OnFraction,
) -> tuple[Scheme, PrecisionReport]:  # fmt: skip
    limits = PrecisionOptions(
        max_drop=floor.max_drop, most_ms=floor.max_ms, min_int8_share=job.options.min_int8_share,
        evaluation=floor.evaluation,
    )  # fmt: skip
    done = 0

    def on_event(event: SearchEvent) -> None:
        nonlocal done
        done += 1
        left = len(event.best.excluded)
        on_fraction(
            min(1.0, done / limits.most_tries),
            f"drop {event.best.drop:.4g} with {left} left in float",
        )

    report = search(
        model, lambda excluded: restricted(model, scheme, excluded), damage, floor.saved,
        floor.drop_of, limits, state_path=floor.state, on_event=on_event,
    )  # fmt: skip
    if report.best is None:
        return scheme, report
    left = dict.fromkeys(report.best.excluded, "left in float for the accuracy floor")
    return restricted(model, scheme, left), report


def _judged(floating: Model, model: Model, scheme: Scheme, ranges: Ranges, job: Job) -> Quantized:
    """What is written, and the errors that it has on a part of the samples."""
    written, placed = write_qdq(model, scheme)
    some = list(job.batches.take(_JUDGED).with_batch_size(OBSERVE_BATCH))
    opened = reference_runtime.open_model
    exact = judge_models(floating, written, some, opened, open_as_written)
    kernels: tuple[PartError, ...] = ()
    kernel_share: Figure = Unknown("the kernels of this runtime are not here")
    if scheme.dialect.runtime == "onnxruntime":
        kernels = judge_models(floating, written, some, opened, opened)
        kernel_share = integer_share(written).of_macs
    final = written
    if scheme.dialect.half_precision:
        _, half = to_fp16(model, some, opened)
        final = strong_typed(written, kept=half.left)
    return Quantized(
        model=final, scheme=scheme, placed=placed, ranges=ranges, method=job.options.ranges,
        int8_share=share_of_macs(model, scheme.placement), exact=exact, kernels=kernels,
        kernel_share=kernel_share,
        bytes_before=len(to_bytes(floating)), bytes_after=len(to_bytes(final)),
    )  # fmt: skip
