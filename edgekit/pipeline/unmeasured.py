"""A target that is not this machine, whose engine was built here all the same."""

from __future__ import annotations

from dataclasses import replace

from edgekit import gate
from edgekit.engines.base import Engine
from edgekit.engines.manifest import load_engine
from edgekit.models.cost import Cost, total_cost
from edgekit.pipeline import steps
from edgekit.pipeline.blaming import stages_of
from edgekit.pipeline.cache import Step
from edgekit.pipeline.candidates import (
    Candidate,
    Chain,
    Project,
    int8_share_of,
    report_of,
)
from edgekit.pipeline.publish import (
    NOT_HERE,
    accuracy_evidence,
    engine_estimates,
    limits_of,
    publish,
    result_of,
)
from edgekit.pipeline.result import Facts, TargetResult
from edgekit.targets import ResolvedTarget
from edgekit.values import Figure, Unknown

ENGINE_FOLDER = "engine"


def finish_elsewhere(
    project: Project, chain: Chain, resolved: ResolvedTarget, candidate: Candidate, baseline: Step
) -> TargetResult:
    """An engine that was built here for a device that is not: no measurement, no verdict yet."""
    target, cache = resolved.target, project.cache
    limits = limits_of(chain.recipe, candidate.precision)
    engine = load_engine(cache.entry(candidate.engine))
    original = load_engine(cache.entry(baseline))
    report = report_of(cache, candidate.verified)
    share = int8_share_of(cache, chain, candidate.precision)
    evidence = accuracy_evidence(report, chain.recipe, share)
    estimates = dict(evidence.estimates)
    estimates |= engine_estimates(engine)
    evidence = replace(evidence, estimates=estimates)
    decision = gate.decide(evidence, limits)
    memory = engine.figures
    notes = [
        resolved.note,
        "the plan's own account of its memory: weights "
        f"{_megabytes(memory.get('weight_bytes'))} (original "
        f"{_megabytes(original.figures.get('weight_bytes'))}), activations "
        f"{_megabytes(memory.get('activation_bytes'))} (original "
        f"{_megabytes(original.figures.get('activation_bytes'))})",
        "accuracy is that of the quantized graph, emulated by ONNX Runtime",
        f"not measured here: {target.title} is not this machine",
        *(f"the engine: {note}" for note in engine.notes),
    ]
    result = result_of(
        project, target, decision, notes, precision=candidate.precision,
        before=_planned_facts("original", original, report.before, total_cost(project.model)),
        after=_planned_facts(
            candidate.precision, engine, report.after, total_cost(chain.compressed.load())
        ),
        blame={candidate.precision: stages_of(cache, candidate.blame)},
    )  # fmt: skip
    contents = {
        ENGINE_FOLDER: cache.entry(candidate.engine),
        steps.MODEL_FILE: candidate.source.path,
    }
    return publish(project, chain, result, contents, evidence, limits, 0.0)


def _planned_facts(what: str, engine: Engine, metric: float, costs: Cost) -> Facts:
    parts = [engine.figures.get(name) for name in ("weight_bytes", "activation_bytes")]
    known = [part for part in parts if isinstance(part, (int, float))]
    return Facts(
        what=what,
        metric=metric,
        macs=costs.macs,
        parameters=costs.parameters,
        file_bytes=engine.file_bytes,
        fps=NOT_HERE,
        p50_ms=NOT_HERE,
        p99_ms=NOT_HERE,
        memory_bytes=sum(known) if len(known) == len(parts) else Unknown("the builder did not say"),
        memory_is="the plan's",
    )


def _megabytes(value: Figure | None) -> str:
    if value is None or isinstance(value, Unknown):
        return "unknown"
    return f"{value / 1e6:.2f} MB"
