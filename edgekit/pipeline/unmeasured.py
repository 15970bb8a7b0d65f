"""A target that is not this machine: a real engine, or all that the device needs to build one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit import gate
from edgekit.engines import onnxruntime
from edgekit.engines.base import Engine, load_engine
from edgekit.engines.preflight import Answer, preflight
from edgekit.engines.trtexec import device_recipe
from edgekit.errors import InputError
from edgekit.models.cost import Cost, total_cost
from edgekit.pipeline import steps
from edgekit.pipeline.cache import Step, key_of, read_json, write_json
from edgekit.pipeline.candidates import (
    Candidate,
    Chain,
    Project,
    candidate_of,
    engine_request,
    int8_share_of,
    report_of,
    request_key,
    wanted_precisions,
)
from edgekit.pipeline.publish import (
    NOT_HERE,
    accuracy_evidence,
    graph_facts,
    limits_of,
    publish,
)
from edgekit.pipeline.result import Facts, TargetResult
from edgekit.pipeline.workshop import Workshop
from edgekit.targets import ResolvedTarget, Target
from edgekit.values import Figure, Unknown, run

ENGINE_FOLDER, DEVICE_FOLDER, PREFLIGHT_FILE = "engine", "device", "preflight.json"


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
    estimates["size_mb"] = gate.Estimate(value=engine.file_bytes / 1e6)
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
    ]
    result = TargetResult(
        target=target.name,
        title=target.title,
        metric_name=project.metric.name,
        precision=candidate.precision,
        before=_planned_facts("original", original, report.before, total_cost(project.model)),
        after=_planned_facts(
            candidate.precision, engine, report.after, total_cost(chain.compressed.load())
        ),
        verdict=decision.verdict,
        checks=decision.checks,
        because=decision.because,
        notes=tuple(note for note in notes if note),
        folder=str(project.place / target.name),
        files=(),
        measured_age_s=NOT_HERE,
    )
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


def finish_device(
    workshop: Workshop, project: Project, chain: Chain, resolved: ResolvedTarget
) -> TargetResult | None:
    """Everything that the device needs to build its own engine, preflighted here."""
    target, cache = resolved.target, project.cache
    precision = wanted_precisions(target, chain.recipe)[0]
    limits = limits_of(chain.recipe, precision)
    candidate = candidate_of(workshop, project, chain, target, precision)
    step = _device_step(workshop, project, chain, target, candidate)
    workshop.do(step, target=target.name, describe=_describe_preflight)
    if workshop.listing:
        return None
    report = report_of(cache, candidate.verified)
    share = int8_share_of(cache, chain, precision)
    evidence = accuracy_evidence(report, chain.recipe, share)
    decision = gate.decide(evidence, limits)
    flight: dict[str, Any] = read_json(cache.entry(step) / PREFLIGHT_FILE)
    notes = [
        resolved.note,
        f"preflight {flight['verdict']}: "
        + "; ".join(f"{line['check']}: {line['said']}" for line in flight["lines"]),
        "accuracy is that of the quantized graph, emulated by ONNX Runtime",
        f"not measured here: copy {DEVICE_FOLDER}/ to the device and run build.sh there",
    ]
    original = project.original.path.stat().st_size
    result = TargetResult(
        target=target.name,
        title=target.title,
        metric_name=project.metric.name,
        precision=precision,
        before=graph_facts("original", original, report.before, total_cost(project.model)),
        after=graph_facts(
            precision, candidate.source.path.stat().st_size, report.after,
            total_cost(chain.compressed.load()),
        ),
        verdict=decision.verdict,
        checks=decision.checks,
        because=decision.because,
        notes=tuple(note for note in notes if note),
        folder=str(project.place / target.name),
        files=(),
        measured_age_s=NOT_HERE,
    )  # fmt: skip
    contents = {
        DEVICE_FOLDER: cache.entry(step) / DEVICE_FOLDER,
        PREFLIGHT_FILE: cache.entry(step) / PREFLIGHT_FILE,
        steps.MODEL_FILE: candidate.source.path,
    }
    return publish(project, chain, result, contents, evidence, limits, 0.0)


def _device_step(
    workshop: Workshop, project: Project, chain: Chain, target: Target, candidate: Candidate
) -> Step:
    """The preflight, and the folder that the device builds from."""
    request = engine_request(chain.recipe, target, candidate.precision, project, candidate.source)

    def make(folder: Path, partial: Path) -> None:
        del partial
        workshop.progress_of("device", target.name)(0.0, "preflight")
        flight = preflight(request)
        if flight.verdict is Answer.REFUSED:
            refused = [line for line in flight.lines if line.answer is Answer.REFUSED]
            raise InputError(
                f"{target.title} refuses this model", where=target.name,
                got="\n".join(f"{line.check}: {line.said}" for line in refused),
                hint="`edgekit inspect MODEL --target` shows the operators; another precision or "
                "an older opset may be accepted.",
            )  # fmt: skip
        inputs = request.sample
        assert inputs is not None
        with onnxruntime.open_model(candidate.source.load(), optimise=False) as session:
            outputs = run(session, inputs)
        device_recipe(request, folder / DEVICE_FOLDER, inputs=inputs, outputs=outputs)
        write_json(folder / PREFLIGHT_FILE, flight.to_json())

    key = key_of("device", data=project.calibration.digest,
                 **request_key(request, candidate.source))  # fmt: skip
    return Step(name="device", key=key, make=make)


def _describe_preflight(folder: Path) -> str:
    return f"preflight {read_json(folder / PREFLIGHT_FILE)['verdict']}, device recipe written"
