"""A target whose engine is built elsewhere: preflighted here, and a recipe for the device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit import gate
from edgekit.engines.device_recipe.document import BenchPlan
from edgekit.engines.device_recipe.writing import write_device_recipe
from edgekit.engines.preflight.preflight import Answer, preflight
from edgekit.errors import InputError
from edgekit.models.cost import total_cost
from edgekit.models.model import save
from edgekit.pipeline import steps
from edgekit.pipeline.blame import stages_to_json
from edgekit.pipeline.blaming import stages_of
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
from edgekit.pipeline.golden import golden_batches
from edgekit.pipeline.past import baseline_of
from edgekit.pipeline.publish import (
    accuracy_evidence,
    graph_facts,
    limits_of,
    publish,
    result_of,
)
from edgekit.pipeline.result import Facts, TargetResult
from edgekit.pipeline.steps import Source
from edgekit.pipeline.workshop import Workshop
from edgekit.targets import Precision, ResolvedTarget, Target

DEVICE_FOLDER, PREFLIGHT_FILE = "device", "preflight.json"


def finish_device(
    workshop: Workshop, project: Project, chain: Chain, resolved: ResolvedTarget
) -> TargetResult | None:
    """Everything that the device needs to build its own engine, preflighted here."""
    target, cache = resolved.target, project.cache
    precision = wanted_precisions(target, chain.recipe)[0]
    limits = limits_of(chain.recipe, precision)
    candidate = candidate_of(workshop, project, chain, target, precision, handed_over=True)
    step = _device_step(workshop, project, chain, target, candidate)
    workshop.do(step, target=target.name, describe=_describe_preflight)
    if workshop.listing:
        return None
    evidence = _evidence(project, chain, precision, candidate)
    decision = gate.decide(evidence, limits)
    flight: dict[str, Any] = read_json(cache.entry(step) / PREFLIGHT_FILE)
    notes = [resolved.note, *_told(flight)]
    if precision == "int8":
        notes += ["accuracy is that of the quantized graph, emulated by ONNX Runtime"]
    notes += [
        f"not measured here: copy {DEVICE_FOLDER}/ to the device, and run there `edgekit build "
        f"--from {DEVICE_FOLDER}`" + (", or build.sh" if target.runtime.name == "tensorrt" else "")
    ]
    before, after = _facts(project, chain, precision, candidate)
    result = result_of(
        project, target, decision, notes, precision=precision, before=before, after=after,
        blame={precision: stages_of(cache, candidate.blame)},
    )  # fmt: skip
    contents = {
        DEVICE_FOLDER: cache.entry(step) / DEVICE_FOLDER,
        PREFLIGHT_FILE: cache.entry(step) / PREFLIGHT_FILE,
        steps.MODEL_FILE: candidate.source.path,
    }
    return publish(project, chain, result, contents, evidence, limits, 0.0)


def _told(flight: Mapping[str, Any]) -> list[str]:
    if not flight["lines"]:
        return []
    lines = "; ".join(f"{line['check']}: {line['said']}" for line in flight["lines"])
    return [f"preflight {flight['verdict']}: {lines}"]


def _evidence(
    project: Project, chain: Chain, precision: Precision, candidate: Candidate
) -> gate.Evidence:
    report = report_of(project.cache, candidate.verified)
    share = int8_share_of(project.cache, chain, precision)
    return accuracy_evidence(report, chain.recipe, share)


def _facts(
    project: Project, chain: Chain, precision: Precision, candidate: Candidate
) -> tuple[Facts, Facts]:
    """The original's and the handed over graph's, nothing of them measured."""
    report = report_of(project.cache, candidate.verified)
    return (
        graph_facts(
            "original", project.original.path.stat().st_size, report.before,
            total_cost(project.model),
        ),
        graph_facts(
            precision, candidate.source.path.stat().st_size, report.after,
            total_cost(chain.compressed.load()),
        ),
    )  # fmt: skip


def _device_step(
    workshop: Workshop, project: Project, chain: Chain, target: Target, candidate: Candidate
) -> Step:
    """The preflight, and the folder that the device builds from."""
    precision, recipe = candidate.precision, chain.recipe
    request = engine_request(recipe, target, precision, project, candidate.source)
    limits, options = limits_of(recipe, precision), recipe.bench
    beside = {"min_speedup", "max_regression"} & set(limits)
    original = _original(workshop, project, target) if beside else None
    plan = BenchPlan(
        seconds=options.seconds, rounds=options.rounds, warmup_seconds=options.warmup_seconds
    )

    def make(folder: Path, partial: Path) -> None:
        flight: dict[str, object] = {"target": target.name, "verdict": "skipped", "lines": []}
        if target.runtime.name.startswith("tensorrt"):
            workshop.progress_of("device", target.name)(0.0, "preflight")
            found = preflight(request)
            if found.verdict is Answer.REFUSED:
                refused = [line for line in found.lines if line.answer is Answer.REFUSED]
                raise InputError(
                    f"{target.title} refuses this model", where=target.name,
                    got="\n".join(f"{line.check}: {line.said}" for line in refused),
                    hint="`edgekit inspect MODEL --target` shows the operators; another precision "
                    "or an older opset may be accepted.",
                )  # fmt: skip
            flight = found.to_json()
        workshop.progress_of("device", target.name)(0.5, "golden answers")
        golden, samples = golden_batches(
            candidate.source.load(), project.evaluation, options.batch
        )  # fmt: skip
        before, after = _facts(project, chain, precision, candidate)
        judging = {
            "metric": project.metric.name,
            "limits": limits,
            "evidence": gate.evidence_to_json(_evidence(project, chain, precision, candidate)),
            "before": before.to_json(),
            "after": after.to_json(),
            "past": {"history": options.history, "baseline": baseline_of(recipe)},
            "blame": stages_to_json(stages_of(project.cache, candidate.blame), project.metric.name),
        }
        place = None
        if original is not None:
            place = partial / "original.onnx"
            save(original.load(), place)
        write_device_recipe(
            request, folder / DEVICE_FOLDER, golden=golden, samples=samples, bench=plan,
            judging=judging, original=place,
        )  # fmt: skip
        write_json(folder / PREFLIGHT_FILE, flight)

    key = key_of(
        "device", data=project.evaluation.digest, verified=candidate.verified.key,
        blame=candidate.blame.key, limits=limits, baseline=baseline_of(recipe),
        original="" if original is None else original.key,
        bench=options.model_dump(mode="json"), **request_key(request, candidate.source),
    )  # fmt: skip
    return Step(name="device", key=key, make=make)


def _original(workshop: Workshop, project: Project, target: Target) -> Source:
    """The original as the target reads it."""
    if project.model.opset <= target.runtime.opset:
        return project.original
    step = steps.opset_step(project.original, target.runtime.opset)
    workshop.do(step, target=target.name, describe=steps.describe_said)
    return steps.made_model(project.cache, step, project.model.name)


def _describe_preflight(folder: Path) -> str:
    verdict = read_json(folder / PREFLIGHT_FILE)["verdict"]
    return "device recipe written" + ("" if verdict == "skipped" else f", preflight {verdict}")
