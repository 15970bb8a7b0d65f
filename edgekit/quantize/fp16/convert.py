"""A float32 graph, with or without Q/DQ, turned to float16 where that does no harm."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveUnusedNodesPass,
)

from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, editable
from edgekit.models.opset import raised
from edgekit.quantize.fp16.emulate import Harm, Judge, emulation_of, harms, largest_magnitudes
from edgekit.quantize.fp16.plan import LARGEST, plan_types
from edgekit.quantize.fp16.slots import HALF, fill_types
from edgekit.quantize.fp16.sums import inner_reach
from edgekit.quantize.fp16.write import settled_scales, write_types
from edgekit.quantize.observe import OpenSession
from edgekit.quantize.ranges import Ranges
from edgekit.values import Batch, Feeds

logger = logging.getLogger(__name__)

LOWEST_OPSET = 13
LOWEST_QUANTIZED_OPSET = 19
"""QuantizeLinear and DequantizeLinear have float16 scales from here on."""

_ROUNDS = 8


@dataclass(frozen=True, kw_only=True)
class Fp16Limits:
    """What float16 may cost.

    `most_error`: relative RMS error of each part of the outputs (0.01 is 40 dB). `headroom`: how
    much larger than on the samples a number may become on other data. `samples`: on how many the
    outputs are compared. `most_runs`: of the network over these, in search of what harms.
    `lacking`: operators that the runtime has no float16 kernel for, each with the reason.
    """

    most_error: float = 0.01
    headroom: float = 2.0
    samples: int = 16
    most_runs: int = 200
    lacking: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fp16Report:
    """What runs in float16 and what does not, and what that does to the outputs.

    `half` counts nodes by operator; `left` has the reason of each node in float32. Of `weights`,
    the numbers that became float16, `subnormal` lost bits and `flushed` became 0. `errors` are the
    relative RMS errors of the parts of the outputs, rounded to float16 at each tensor.
    """

    half: Mapping[str, int]
    left: Mapping[str, str]
    casts: int
    weights: int
    subnormal: int
    flushed: int
    errors: Mapping[str, float]
    samples: int
    runs: int

    def __str__(self) -> str:
        worst = max(self.errors.values(), default=0.0)
        lost = f", {self.flushed} of {self.weights} weights became 0" if self.flushed else ""
        return (
            f"{sum(self.half.values())} nodes in float16, {len(self.left)} in float32, "
            f"{self.casts} casts{lost}; the outputs differ by {worst:.1e}"
        )


def to_fp16(
    model: Model, batches: Iterable[Batch], open_session: OpenSession, *, keep_io: bool = True,
    limits: Fp16Limits | None = None, ranges: Ranges | None = None,
) -> tuple[Model, Fp16Report]:  # fmt: skip
    """The Model in float16, but for the nodes where that overflows or harms the outputs.

    In float32 stay: what ONNX has no float16 for; nodes around a tensor, or with a sum inside
    (`sums.py`), that comes within `headroom` of 65504 on the samples; and, as long as a part of the
    outputs errs by more than `most_error`, the nodes around the tensor whose rounding does most of
    it (`emulate.py`). In a graph with Q/DQ this is looked for with the activations' pairs taken
    out: behind a pair a difference of float16 is either nothing or a whole step, and says nothing
    about float16. `keep_io`: the graph's inputs and outputs stay float32, with casts behind and
    before them. `ranges`, observed before, saves one of the passes over `batches`, which are gone
    through twice.

    Raises InputError where there is no sample, where no node can be float16, or where the outputs
    err too much whatever stays.
    """
    limits = limits or Fp16Limits()
    model = _ready(model)
    plain = _without_pairs(model)
    largest = _largest(plain, batches, open_session, ranges)
    feeds, samples = _some(batches, limits.samples)
    kept = _overflowing(plain, largest, limits)
    runs = 0
    for done in range(_ROUNDS):
        emulation = emulation_of(plain, kept, keep_io=keep_io)
        if not emulation.units:
            raise _nothing_left(model, kept)
        with open_session(emulation.model) as session:
            judge = Judge(emulation, session, feeds)
            errors = judge.errors(range(len(emulation.units)))
            good = max(errors.values()) <= limits.most_error
            # Errors that are not independent add up to more than their squares: ask for less.
            budget = limits.most_error**2 / 2 ** (done + 1)
            found = [] if good else harms(judge, budget, limits.most_runs - runs)
        runs += judge.runs
        if good:
            return _written(model, kept, keep_io=keep_io, errors=errors, samples=samples, runs=runs)
        for harm in found:
            kept = {**_around(plain, harm, kept), **kept}
    raise InputError(
        "float16 changes the outputs too much, whatever stays in float32", where=model.name,
        got=", ".join(f"{name}: {error:.1e}" for name, error in errors.items()),
        wanted=f"a relative error of at most {limits.most_error:g}",
        hint="Ask for fp32, or allow a larger error.",
    )  # fmt: skip


def strong_typed(model: Model, *, kept: Mapping[str, str] | None = None) -> Model:
    """The Model with Q/DQ in which all that is not integer is float16: for strongly typed networks.

    Weights and scales become float16, at opset 19 or later, with casts at the inputs and outputs,
    which stay float32. The nodes in `kept` stay in float32, each for its reason, their Q/DQ with
    them. Scales that float16 does not have are settled as `settled_scales` says.

    Raises InputError where the graph has no Q/DQ.
    """
    model = _ready(model)
    if not _has_qdq(model.graph):
        raise InputError(
            "this graph has no QuantizeLinear", where=model.name,
            hint="`to_fp16` turns a float graph.",
        )  # fmt: skip
    program = editable(model)
    plan = plan_types(program.graph, model.opset, kept or {}, keep_io=True)
    write_types(program, plan, keep_io=True)
    return after_step(model, program, "strong_typed")


def _ready(model: Model) -> Model:
    """The Model with constants stored, nodes named, types known, at an opset that has the types."""
    quantized = _has_qdq(model.graph)
    lowest = LOWEST_QUANTIZED_OPSET if quantized else LOWEST_OPSET
    if model.opset < lowest:
        model = raised(model, lowest)
    program = editable(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program)
    NameFixPass()(program)
    fill_types(program.graph, model.opset)
    if quantized:
        moved = settled_scales(program)
        if moved:
            logger.info(
                "%d scales are too small for float16: their integers were rounded anew", moved
            )
    return Model(
        name=model.name, program=program, preprocessing=model.preprocessing, history=model.history
    )


def _without_pairs(model: Model) -> Model:
    """The Model in which what read a tensor through Q and DQ reads the tensor itself."""
    if not _has_qdq(model.graph):
        return model
    program = editable(model)
    for node in program.graph:
        source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        before = source.producer() if source is not None else None
        if (
            before is not None
            and before.op_type == "QuantizeLinear"
            and before.inputs[0] is not None
        ):
            node.outputs[0].replace_all_uses_with(before.inputs[0], replace_graph_outputs=True)
    RemoveUnusedNodesPass()(program)
    return after_step(model, program, "without_pairs")


def _has_qdq(graph: ir.Graph) -> bool:
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph)


def _largest(
    model: Model, batches: Iterable[Batch], open_session: OpenSession, ranges: Ranges | None
) -> Mapping[str, float]:
    plan = plan_types(model.graph, model.opset, {})
    given = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    made = [value for node in model.graph for value in node.outputs]
    names = [
        value.name or ""
        for value in (*given, *made)
        if plan.home(value) == HALF
        or any(plan.wanted(use.node, use.idx) == HALF for use in value.uses())
    ]
    known = {} if ranges is None else {n: t.amax for n, t in ranges.tensors.items()}
    missing = [name for name in names if name not in known]
    if not missing:
        return known
    return {**known, **largest_magnitudes(model, missing, batches, open_session)}


def _some(batches: Iterable[Batch], count: int) -> tuple[list[Feeds], int]:
    """The first batches with at least so many samples, and how many these are."""
    feeds: list[Feeds] = []
    samples = 0
    for batch in batches:
        feeds.append(batch.inputs)
        samples += len(batch)
        if samples >= count:
            break
    return feeds, samples


def _overflowing(model: Model, largest: Mapping[str, float], limits: Fp16Limits) -> dict[str, str]:
    """The nodes that touch a number too large for float16 or sum one up inside, and why."""
    most = LARGEST / limits.headroom
    kept: dict[str, str] = {}
    for node in model.graph:
        name = node.name or ""
        if node.op_type in limits.lacking and not node.domain:
            kept[name] = limits.lacking[node.op_type]
        for value in (*node.outputs, *node.inputs):
            reach = largest.get(value.name or "", 0.0) if value is not None else 0.0
            if reach > most and value is not None:
                made = "it makes" if value in node.outputs else "it reads"
                kept.setdefault(
                    name, f'{made} "{value.name}", which reaches {reach:.3g}; float16 ends at 65504'
                )
        words, inner = inner_reach(node, largest)
        if inner > most:
            kept.setdefault(
                name, f"the {words} inside may reach {inner:.3g}; float16 ends at 65504"
            )
    return kept


def _around(model: Model, harm: Harm, kept: Mapping[str, str]) -> dict[str, str]:
    """The nodes that make and read a tensor that has to stay in float32, with the reason."""
    graph = model.graph
    plan = plan_types(graph, model.opset, kept)
    value = graph.initializers.get(harm.tensor) or next(
        v
        for v in (*graph.inputs, *(o for node in graph for o in node.outputs))
        if v.name == harm.tensor
    )
    alone = "alone" if harm.told_apart else "with others, not told apart,"
    does = f"by {harm.error:.2g}" if np.isfinite(harm.error) else "to infinity or NaN"
    reason = f'float16 of "{harm.tensor}" {alone} changes "{harm.part}" {does}'
    readers = {u.node.name for u in value.uses() if plan.wanted(u.node, u.idx) == HALF}
    producer = value.producer()
    made = {producer.name} if producer is not None and plan.home(value) == HALF else set()
    return {name: reason for name in readers | made if name}


def _written(
    model: Model, kept: Mapping[str, str], *, keep_io: bool, errors: Mapping[str, float],
    samples: int, runs: int,
) -> tuple[Model, Fp16Report]:  # fmt: skip
    program = editable(model)
    plan = plan_types(program.graph, model.opset, kept, keep_io=keep_io)
    if not plan.half:
        raise _nothing_left(model, plan.left)
    operators = Counter(node.op_type for node in program.graph if node.name in plan.half)
    done = write_types(program, plan, keep_io=keep_io)
    report = Fp16Report(
        half=dict(operators), left=plan.left, casts=done.casts, weights=done.weights,
        subnormal=done.subnormal, flushed=done.flushed, errors=errors, samples=samples, runs=runs,
    )  # fmt: skip
    return after_step(model, program, "to_fp16"), report


def _nothing_left(model: Model, kept: Mapping[str, str]) -> InputError:
    shown = [f"{name}: {reason}" for name, reason in list(kept.items())[:3]]
    return InputError(
        "no node of this network can be float16", where=model.name, got="; ".join(shown),
        hint="Ask for fp32.",
    )  # fmt: skip
