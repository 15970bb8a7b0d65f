"""One target's end of a build: engines, their accuracy, their measurement and the verdict."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit import files, gate
from edgekit.bench import statistics
from edgekit.bench.measurement import age_s, load_measurements, same_conditions, save_measurements
from edgekit.bench.runner import measure_side_by_side
from edgekit.bench.workload import Arm, Plan, lasting_conditions
from edgekit.data.batches import Batches
from edgekit.data.metrics import Metric
from edgekit.engines import machine, onnxruntime
from edgekit.engines.base import Engine, EngineRequest, load_engine, runtime_module
from edgekit.engines.preflight import Answer, preflight
from edgekit.engines.trtexec import device_recipe
from edgekit.errors import InputError
from edgekit.models.cost import total_cost
from edgekit.models.model import Model
from edgekit.pipeline import steps
from edgekit.pipeline.cache import Cache, Step, key_of, read_json, versions, write_json
from edgekit.pipeline.result import Facts, StepEvent, TargetResult
from edgekit.pipeline.steps import Source
from edgekit.pipeline.workshop import Workshop
from edgekit.recipe import Recipe
from edgekit.targets import Precision, ResolvedTarget, Target
from edgekit.values import Array, Figure, Measurement, Unknown, Verdict, run
from edgekit.verify import VerifyReport, from_json

NOT_HERE = Unknown("not measured here")
ENGINE_FOLDER, DEVICE_FOLDER = "engine", "device"
EVIDENCE_FILE, REPORT_FILE, MEASUREMENT_FILE = "evidence.json", "report.json", "measurement.json"
PREFLIGHT_FILE = "preflight.json"
EVIDENCE_FORMAT = 1

_BENCH_SAMPLES = 64
_EXPECTED_SAMPLES = 4
_ACCURACY = ("min_top1", "min_metric", "max_drop", "min_agreement", "min_sqnr_db")
_PACKAGES = ("onnxruntime", "tensorrt_rtx_cu12")


@dataclass(frozen=True, kw_only=True)
class Project:
    """What all targets of a build share, read before the first step."""

    model: Model
    original: Source
    calibration: Batches
    evaluation: Batches
    metric: Metric
    cache: Cache
    place: Path


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A target's models: compressed (BatchNormalization in it), floating (folded), quantized."""

    recipe: Recipe
    compressed: Source
    floating: Source
    quantized: Source | None
    channel_plan: Step | None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One engine that a target could get, and the steps that know of it."""

    precision: Precision
    source: Source
    engine: Step
    verified: Step
    emulated: Step | None = None


def wanted_precisions(target: Target, recipe: Recipe) -> tuple[Precision, ...]:
    """The precisions of the engines to build, the preferred one first.

    Raises InputError where the target has no hardware for the one that was asked for, or no DLA.
    """
    asked = recipe.engine.precision
    if recipe.engine.dla is not None and recipe.engine.dla >= target.dla.cores:
        raise InputError(
            f"{target.title} has no DLA core {recipe.engine.dla}", where="engine.dla",
            got=f"{target.dla.cores} DLA cores", hint="Take engine.dla out of the recipe.",
        )  # fmt: skip
    if asked == "auto":
        known: tuple[Precision, ...] = ("int8", "fp16", "fp32")
        offered = [p for p in known if p in target.precisions]
        if target.runtime.build == "here":
            return tuple(p for p in offered if p != "fp16")
        return (offered[0],)
    if asked not in target.precisions:
        raise InputError(
            f"{target.title} has no {asked.upper()} hardware",
            where=f"engine.precision for {target.name}",
            got=asked, wanted=", ".join(("auto", *target.precisions)),
        )  # fmt: skip
    if asked == "fp16" and target.runtime.name == "tensorrt_rtx":
        raise InputError(
            "TensorRT-RTX takes its types from the graph, and edgekit does not write FP16 graphs "
            "yet",
            where=f"engine.precision for {target.name}", got="fp16", wanted="auto, int8, fp32",
        )  # fmt: skip
    return (asked,)


def finish_target(
    workshop: Workshop, project: Project, chain: Chain, resolved: ResolvedTarget, *, rebench: bool
) -> TargetResult | None:
    """The target's engines, numbers and verdict, published in its folder; None while listing."""
    target = resolved.target
    if target.runtime.build == "device":
        return _finish_device(workshop, project, chain, resolved)
    candidates = [
        _candidate(workshop, project, chain, target, precision)
        for precision in wanted_precisions(target, chain.recipe)
    ]
    baseline = _engine_step(workshop, chain.recipe, target, "fp32", project, project.original)
    workshop.do(baseline, target=target.name, describe=lambda folder: "the original, to compare")
    if target.runtime.build == "here":
        return _finish_here(workshop, project, chain, resolved, candidates, baseline, rebench)
    if workshop.listing:
        return None
    return _finish_elsewhere(project, chain, resolved, candidates[0], baseline)


def _candidate(
    workshop: Workshop, project: Project, chain: Chain, target: Target, precision: Precision
) -> Candidate:
    """Makes the engine of a precision and verifies it against the original."""
    source = chain.floating
    if precision == "int8":
        assert chain.quantized is not None
        source = chain.quantized
    here = target.runtime.build == "here"
    engine = None
    if target.runtime.build != "device":
        engine = _engine_step(workshop, chain.recipe, target, precision, project, source)
        workshop.do(engine, target=target.name, describe=_describe_engine)
    verified = _verify(workshop, project, target, source, emulated=not here)
    emulated = None
    if here and precision == "int8":
        emulated = _verify(workshop, project, target, source, emulated=True)
    return Candidate(
        precision=precision, source=source, engine=engine or verified, verified=verified,
        emulated=emulated,
    )  # fmt: skip


def _verify(
    workshop: Workshop, project: Project, target: Target, source: Source, *, emulated: bool
) -> Step:
    """The step that compares a model's outputs with the original's."""
    cache = project.cache
    steps_of = [(project.original, False, ""), (source, emulated, target.name)]
    made = []
    for model, without_kernels, name in steps_of:
        step = steps.outputs_step(
            model, project.evaluation, workshop.progress_of("outputs", name),
            emulated=without_kernels,
        )  # fmt: skip
        workshop.do(step, target=name)
        made.append(step)
    step = steps.verify_step(cache, made[0], made[1], project.evaluation, project.metric)
    workshop.do(step, target=target.name, describe=steps.describe_verify)
    return step


def _engine_request(
    recipe: Recipe, target: Target, precision: Precision, project: Project, source: Source
) -> EngineRequest:
    options = recipe.engine
    workspace = target.builder.workspace_bytes
    return EngineRequest(
        model_path=source.path,
        name=project.model.name,
        target=target,
        precision=precision,
        batch=(options.batch.min, options.batch.opt, options.batch.max),
        shapes={name: (s.min, s.opt, s.max) for name, s in options.shapes.items()},
        workspace_bytes=options.workspace_mb * 10**6 if options.workspace_mb else workspace,
        dla_core=options.dla,
        threads=options.threads,
        sample=_samples(project.calibration, _EXPECTED_SAMPLES),
    )


def _samples(batches: Batches, count: int) -> Mapping[str, Array]:
    """The first few preprocessed samples, evenly spaced."""
    chosen = batches.take(count)
    return next(iter(chosen.with_batch_size(chosen.count))).inputs


def _request_key(request: EngineRequest, source: Source) -> dict[str, object]:
    """All of a request that decides what is built, JSON-ready."""
    return {
        "source": source.key,
        "target": request.target.model_dump(mode="json", exclude={"sources", "title"}),
        "precision": request.precision,
        "batch": request.batch,
        "shapes": {name: list(extent) for name, extent in request.shapes.items()},
        "workspace": request.workspace_bytes,
        "dla": request.dla_core,
        "threads": request.threads,
        "versions": versions(_PACKAGES),
        "cpu": sorted(machine.cpu_flags()) if request.target.runtime.build == "here" else [],
    }


def _engine_step(
    workshop: Workshop, recipe: Recipe, target: Target, precision: Precision, project: Project,
    source: Source,
) -> Step:  # fmt: skip
    """The step that builds an engine on this machine."""
    request = _engine_request(recipe, target, precision, project, source)

    def make(folder: Path, partial: Path) -> None:
        del partial
        workshop.progress_of("engine", target.name)(0.0, precision)
        runtime_module(target.runtime.name).build(request, folder)

    key = key_of("engine", **_request_key(request, source))
    return Step(name="engine", key=key, make=make)


def _describe_engine(folder: Path) -> str:
    engine = load_engine(folder)
    return f"{engine.precision}, {engine.file_bytes / 1e3:,.0f} kB"


def _report(cache: Cache, step: Step) -> VerifyReport:
    return from_json(read_json(cache.entry(step) / steps.REPORT_FILE))


def _finish_here(  # noqa: PLR0913, PLR0917
    workshop: Workshop, project: Project, chain: Chain, resolved: ResolvedTarget,
    candidates: Sequence[Candidate], baseline: Step, rebench: bool,
) -> TargetResult | None:  # fmt: skip
    """Measures the candidates beside the original, takes the fastest that is good enough."""
    target, cache, limits = resolved.target, project.cache, chain.recipe.gate.limits()
    if workshop.listing:
        workshop.note("bench", target.name, cached=False, seconds=0.0, said="")
        return None
    engines = {"original": load_engine(cache.entry(baseline))}
    engines |= {c.precision: load_engine(cache.entry(c.engine)) for c in candidates}
    measured, reused = _measure(workshop, project, chain.recipe, target, engines, rebench=rebench)
    by_arm = {m.arm: m for m in measured}
    reports = {c.precision: _report(cache, c.verified) for c in candidates}
    original_costs, costs = total_cost(project.model), total_cost(chain.compressed.load())
    before = _measured_facts(
        "original", by_arm["original"], reports[candidates[0].precision].before, original_costs,
        project.original.path.stat().st_size,
    )  # fmt: skip
    arms = {
        c.precision: _measured_facts(
            c.precision, by_arm[c.precision], reports[c.precision].after, costs,
            engines[c.precision].file_bytes,
        )
        for c in candidates
    }  # fmt: skip
    chosen, why = _choose(candidates, by_arm, reports, limits)
    evidence = _evidence(reports[chosen.precision], project.metric.name, chain.recipe)
    estimates = dict(evidence.estimates) | gate.measured_estimates(
        by_arm[chosen.precision], by_arm["original"]
    )
    age = age_s(by_arm[chosen.precision], time.time())
    evidence = replace(evidence, estimates=estimates, on_device=True, age_s=age)
    decision = gate.decide(evidence, limits)
    notes = [resolved.note, why, *_emulation_notes(cache, candidates, reports)]
    notes += [f"measured {'earlier, ' if reused else ''}{_ago(age)}"]
    notes += [f"{m.arm}: {doubt}" for m in measured for doubt in m.doubts]
    result = TargetResult(
        target=target.name,
        title=target.title,
        metric_name=project.metric.name,
        precision=chosen.precision,
        before=before,
        after=arms[chosen.precision],
        arms=(before, *arms.values()),
        verdict=decision.verdict,
        checks=decision.checks,
        notes=tuple(note for note in notes if note),
        folder=str(project.place / target.name),
        files=(),
        measured_age_s=age,
    )
    contents = {
        ENGINE_FOLDER: cache.entry(chosen.engine),
        steps.MODEL_FILE: chosen.source.path,
        MEASUREMENT_FILE: _measurement_path(project, engines, chain.recipe),
    }
    return _publish(project, chain, result, contents, evidence, limits, by_arm["original"].taken_at)


def _measurement_path(project: Project, engines: Mapping[str, Engine], recipe: Recipe) -> Path:
    """Where the measurement of just these engines under this plan is kept."""
    options = recipe.bench
    key = key_of(
        "measurement",
        engines={name: engine.sha256 for name, engine in engines.items()},
        plan=[options.seconds, options.rounds, options.warmup_seconds, options.batch],
        data=project.evaluation.digest,
    )
    return project.cache.folder / "measurements" / f"{key}.json"


def _measure(
    workshop: Workshop, project: Project, recipe: Recipe, target: Target,
    engines: Mapping[str, Engine], *, rebench: bool,
) -> tuple[tuple[Measurement, ...], bool]:  # fmt: skip
    """The measurement of all engines side by side, and whether an earlier one still stands.

    One stands for the same engines under the same conditions, until it is older than `max_age`.
    """
    options = recipe.bench
    inputs = _samples(project.evaluation, _BENCH_SAMPLES)
    arms = [
        Arm(
            name=name, engine=engine, inputs=inputs, batch=options.batch,
            threads=recipe.engine.threads,
        )
        for name, engine in engines.items()
    ]  # fmt: skip
    path = _measurement_path(project, engines, recipe)
    plan = Plan(
        seconds=options.seconds, rounds=options.rounds, warmup_seconds=options.warmup_seconds
    )
    if path.is_file() and not rebench:
        stored = load_measurements(path)
        fresh = all(0 <= age_s(m, time.time()) <= options.max_age for m in stored)
        same = all(
            same_conditions(m.conditions, lasting_conditions(arm, arms, plan))
            for m, arm in zip(stored, arms, strict=True)
        )
        if fresh and same:
            said = f"taken {_ago(age_s(stored[0], time.time()))}"
            workshop.on_event(
                StepEvent(step="bench", target=target.name, state="cached", said=said)
            )
            workshop.note("bench", target.name, cached=True, seconds=0.0, said=said)
            return stored, True
    workshop.on_event(StepEvent(step="bench", target=target.name, state="started"))
    begun = time.monotonic()
    measured = measure_side_by_side(
        arms, seconds=options.seconds, rounds=options.rounds,
        warmup_seconds=options.warmup_seconds,
        on_progress=workshop.progress_of("bench", target.name),
    )  # fmt: skip
    save_measurements(measured, path)
    said = ", ".join(f"{m.arm} {statistics.fps(m).value:,.0f} FPS" for m in measured)
    workshop.on_event(StepEvent(step="bench", target=target.name, state="done", said=said))
    workshop.note("bench", target.name, cached=False, seconds=time.monotonic() - begun, said=said)
    return measured, False


def _measured_facts(
    what: str, measurement: Measurement, metric: float, costs: Any, file_bytes: int
) -> Facts:
    return Facts(
        what=what,
        metric=metric,
        macs=costs.macs,
        parameters=costs.parameters,
        file_bytes=file_bytes,
        fps=statistics.fps(measurement).value,
        p50_ms=1e3 * statistics.percentile(measurement.samples, 50),
        p99_ms=1e3 * statistics.percentile(measurement.samples, 99),
        memory_bytes=measurement.figures.get("peak_memory_bytes", NOT_HERE),
        memory_is="peak of the process",
    )


def _choose(
    candidates: Sequence[Candidate], by_arm: Mapping[str, Measurement],
    reports: Mapping[Precision, VerifyReport], limits: Mapping[str, float],
) -> tuple[Candidate, str]:  # fmt: skip
    """The fastest candidate that keeps the gate's accuracy, and why it is that one."""
    accuracy = {name: limit for name, limit in limits.items() if name in _ACCURACY}

    def good_enough(candidate: Candidate) -> bool:
        if not accuracy:
            return True
        estimates = _accuracy_estimates(reports[candidate.precision])
        found = gate.decide(gate.Evidence(estimates=estimates, on_device=True), accuracy)
        return found.verdict is Verdict.PASS

    rates = {c.precision: statistics.fps(by_arm[c.precision]).value for c in candidates}
    good = [c for c in candidates if good_enough(c)]
    chosen = max(good or candidates, key=lambda c: rates[c.precision])
    if len(candidates) == 1:
        return chosen, ""
    others = [c for c in candidates if c is not chosen]
    compared = ", ".join(
        f"{rates[chosen.precision] / rates[o.precision]:.2f} times the FPS of {o.precision}"
        for o in others
    )
    why = f"{chosen.precision} was chosen: {compared}"
    if any(o not in good for o in others) and chosen in good:
        why += "; the others do not keep the gate's accuracy"
    if not good:
        why += "; none keeps the gate's accuracy"
    flags = machine.cpu_flags()
    if chosen.precision != "int8" and not flags & {"avx512_vnni", "avx_vnni"}:
        why += "; this CPU has no VNNI, so INT8 gains little here"
    return chosen, why


def _accuracy_estimates(report: VerifyReport) -> dict[str, gate.Estimate]:
    found: dict[str, Figure] = {
        "metric": report.after,
        "drop": report.drop,
        "agreement": report.agreement,
        "sqnr_db": report.sqnr_db,
    }
    if report.metric == "top1":
        found["top1"] = report.after
    return {name: gate.Estimate(value=value) for name, value in found.items()}


def _evidence(report: VerifyReport, metric: str, recipe: Recipe) -> gate.Evidence:
    del metric
    return gate.Evidence(
        estimates=_accuracy_estimates(report),
        on_device=False,
        age_s=NOT_HERE,
        max_age_s=recipe.bench.max_age,
    )


def _emulation_notes(
    cache: Cache, candidates: Sequence[Candidate], reports: Mapping[Precision, VerifyReport]
) -> list[str]:
    """INT8's quality through the kernels beside the quantization's own."""
    notes = []
    for candidate in candidates:
        if candidate.emulated is None:
            continue
        own, through = _report(cache, candidate.emulated), reports[candidate.precision]
        notes.append(
            f"int8: SQNR {_decibels(own.sqnr_db)} emulated, {_decibels(through.sqnr_db)} through "
            f"the kernels; agreement with the original {_share(own.agreement)} and "
            f"{_share(through.agreement)}"
        )
    return notes


def _decibels(value: Figure) -> str:
    return value.reason if isinstance(value, Unknown) else f"{value:.1f} dB"


def _share(value: Figure) -> str:
    return value.reason if isinstance(value, Unknown) else f"{100 * value:.2f}%"


def _ago(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 3600 else f"{seconds / 3600:.1f} h ago"


def _finish_elsewhere(
    project: Project, chain: Chain, resolved: ResolvedTarget, candidate: Candidate, baseline: Step
) -> TargetResult:
    """An engine that was built here for a device that is not: no measurement, no verdict yet."""
    target, cache, limits = resolved.target, project.cache, chain.recipe.gate.limits()
    engine = load_engine(cache.entry(candidate.engine))
    original = load_engine(cache.entry(baseline))
    report = _report(cache, candidate.verified)
    evidence = _evidence(report, project.metric.name, chain.recipe)
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
        notes=tuple(note for note in notes if note),
        folder=str(project.place / target.name),
        files=(),
        measured_age_s=NOT_HERE,
    )
    contents = {
        ENGINE_FOLDER: cache.entry(candidate.engine),
        steps.MODEL_FILE: candidate.source.path,
    }
    return _publish(project, chain, result, contents, evidence, limits, 0.0)


def _planned_facts(what: str, engine: Engine, metric: float, costs: Any) -> Facts:
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
        memory_is="weights and activations of the plan",
    )


def _megabytes(value: Figure | None) -> str:
    if value is None or isinstance(value, Unknown):
        return "unknown"
    return f"{value / 1e6:.2f} MB"


def _finish_device(
    workshop: Workshop, project: Project, chain: Chain, resolved: ResolvedTarget
) -> TargetResult | None:
    """Everything that the device needs to build its own engine, preflighted here."""
    target, cache, limits = resolved.target, project.cache, chain.recipe.gate.limits()
    precision = wanted_precisions(target, chain.recipe)[0]
    candidate = _candidate(workshop, project, chain, target, precision)
    step = _device_step(workshop, project, chain, target, candidate)
    workshop.do(step, target=target.name, describe=_describe_preflight)
    if workshop.listing:
        return None
    report = _report(cache, candidate.verified)
    evidence = _evidence(report, project.metric.name, chain.recipe)
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
        before=_graph_facts("original", original, report.before, total_cost(project.model)),
        after=_graph_facts(
            precision, candidate.source.path.stat().st_size, report.after,
            total_cost(chain.compressed.load()),
        ),
        verdict=decision.verdict,
        checks=decision.checks,
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
    return _publish(project, chain, result, contents, evidence, limits, 0.0)


def _device_step(
    workshop: Workshop, project: Project, chain: Chain, target: Target, candidate: Candidate
) -> Step:
    """The preflight, and the folder that the device builds from."""
    request = _engine_request(chain.recipe, target, candidate.precision, project, candidate.source)

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
                 **_request_key(request, candidate.source))  # fmt: skip
    return Step(name="device", key=key, make=make)


def _describe_preflight(folder: Path) -> str:
    return f"preflight {read_json(folder / PREFLIGHT_FILE)['verdict']}, device recipe written"


def _graph_facts(what: str, file_bytes: int, metric: float, costs: Any) -> Facts:
    return Facts(
        what=what,
        metric=metric,
        macs=costs.macs,
        parameters=costs.parameters,
        file_bytes=file_bytes,
        fps=NOT_HERE,
        p50_ms=NOT_HERE,
        p99_ms=NOT_HERE,
        memory_bytes=NOT_HERE,
        memory_is="on the device",
    )


def _publish(  # noqa: PLR0913, PLR0917
    project: Project, chain: Chain, result: TargetResult, contents: Mapping[str, Path],
    evidence: gate.Evidence, limits: Mapping[str, float], taken_at: float,
) -> TargetResult:  # fmt: skip
    """Puts a target's files into its folder, all at once, and names them in the result."""
    if chain.channel_plan is not None:
        contents = {
            **contents,
            steps.PLAN_FILE: project.cache.entry(chain.channel_plan) / steps.PLAN_FILE,
        }
    names = (*contents, EVIDENCE_FILE, REPORT_FILE)
    result = replace(result, files=tuple(sorted(names)))
    place = project.place / result.target
    files.remove_partials(place)
    with files.replacing_folder(place) as folder:
        for name, source in contents.items():
            if source.is_dir():
                shutil.copytree(source, folder / name)
            else:
                shutil.copyfile(source, folder / name)
        write_json(
            folder / EVIDENCE_FILE,
            {
                "format": EVIDENCE_FORMAT,
                "target": result.target,
                "limits": dict(limits),
                "taken_at": taken_at,
                "evidence": gate.evidence_to_json(evidence),
            },
        )
        write_json(folder / REPORT_FILE, result.to_json())
    return result
