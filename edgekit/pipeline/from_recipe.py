"""`edgekit build --from`: a device recipe becomes an engine, verified, measured and gated."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit import board, files, gate
from edgekit.bench import statistics
from edgekit.bench.measurement import age_s, save_measurements
from edgekit.engines.base import Engine, missing_package, runtime_module
from edgekit.engines.device_recipe.document import DeviceRecipe, has_trtexec, load_device_recipe
from edgekit.engines.processes.shells import HERE, shell_of
from edgekit.engines.trtexec.flags import version_of
from edgekit.engines.trtexec.running import trtexec_here
from edgekit.errors import InputError, MissingPackageError
from edgekit.pipeline.cache import Cache, write_json
from edgekit.pipeline.gating import EVIDENCE_FILE, evidence_document
from edgekit.pipeline.golden import golden_estimates, golden_limits, stages_with
from edgekit.pipeline.made import Made, RunOptions
from edgekit.pipeline.made_by_runtime import made_by_runtime
from edgekit.pipeline.made_by_trtexec import made_by_trtexec, made_of_results
from edgekit.pipeline.past import Past, past_of_device
from edgekit.pipeline.publish import NOT_HERE, REPORT_FILE, engine_estimates
from edgekit.pipeline.recognised import recognise_device
from edgekit.pipeline.result import (
    BuildResult,
    Facts,
    OnEvent,
    StepEvent,
    TargetResult,
    facts_from_json,
)
from edgekit.pipeline.workshop import Workshop
from edgekit.values import Figure, Measurement, Unknown

BUILT_FOLDER = "built"
ENGINE_FOLDER, MEASUREMENT_FILE, GOLDEN_FILE = "engine", "measurement.json", "golden.json"
LAYERS_FILE = "layers.json"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class FromRequest:
    """A recipe's folder and where to make its engine.

    `via` is a command prefix that leads to the device, `results` a folder that build.sh left there;
    with neither the engine is made on this machine. `out` None is the folder `built` in the recipe.
    `unused` are options that were given and have no say: the recipe has settled what they ask.
    """

    folder: Path | None
    out: Path | None = None
    via: str = ""
    results: Path | None = None
    rebench: bool = False
    strict: bool = False
    time_limit_s: float = 7200.0
    unused: tuple[str, ...] = ()


def given(options: Mapping[str, object]) -> tuple[str, ...]:
    """The names of the options that were given."""
    return tuple(name for name, value in options.items() if value)


def build_from(request: FromRequest, *, on_event: OnEvent) -> BuildResult:
    """Makes the recipe's engine, compares its answers with the golden ones, measures and gates it.

    An engine that does not answer as the model does is not measured: it fails. What is made already
    is not made again. Raises InputError where a file of the recipe was changed, or the device is
    another one, MissingPackageError where nothing there can build it, and else as the build does.
    """
    begun = time.monotonic()
    if request.folder is None:
        raise InputError(
            "--via and --results belong to a device recipe", wanted="--from FOLDER",
            hint="The folder is device/ of a target that edgekit build made.",
        )  # fmt: skip
    if request.unused:
        raise InputError(
            "a device recipe has settled what these options ask", got=", ".join(request.unused),
            hint="Give them to the build that writes the recipe.",
        )  # fmt: skip
    recipe = load_device_recipe(request.folder)
    out = request.out or request.folder / BUILT_FOLDER
    workshop = Workshop(cache=Cache(out.parent / ".cache"), on_event=on_event)
    waiting = StepEvent(step="build", target=recipe.target.name, state="waiting")
    with files.locked(out.parent / f".{out.name}.lock", on_wait=lambda: on_event(waiting)):
        past = past_of_device(recipe)
        past.check(recipe.judging["limits"], {})
        made = _made(recipe, request, workshop)
        result = _publish(recipe, made, out, past)
        built = BuildResult(
            model=recipe.name,
            targets=(result,),
            steps=tuple(workshop.records),
            seconds=time.monotonic() - begun,
            summary=str(out / SUMMARY_FILE),
            strict=request.strict,
        )
        write_json(out / SUMMARY_FILE, built.to_json())
    return built


def _made(recipe: DeviceRecipe, request: FromRequest, workshop: Workshop) -> Made:
    """By the way that the request asks for; without one, by what this machine has."""
    target = recipe.target
    if request.results is not None or request.via:
        if not has_trtexec(target):
            raise InputError(
                f"an engine for {target.title} is not built by trtexec",
                where="--results" if request.results is not None else "--via",
                hint="Run `edgekit build --from` on the device itself.",
            )  # fmt: skip
        if request.results is not None and request.via:
            raise InputError("--via and --results are two ways to the same; give one of them")
    if request.results is not None:
        return made_of_results(recipe, request.results, workshop)
    if request.via:
        return made_by_trtexec(recipe, shell_of(request.via), workshop, request.time_limit_s)
    runtime = runtime_module(target.runtime.name)
    if _python_can(target.runtime.name, runtime.installed_version()):
        seen = recognise_device(recipe, Path("/"), board.gpus())
        options = RunOptions(rebench=request.rebench, time_limit_s=request.time_limit_s)
        return made_by_runtime(recipe, workshop, seen, options)
    if has_trtexec(target):
        if not trtexec_here(recipe):
            raise _nothing_builds(recipe)
        return made_by_trtexec(recipe, HERE, workshop, request.time_limit_s)
    extra = "rtx" if target.runtime.name == "tensorrt_rtx" else target.runtime.name
    got = ImportError(f"{runtime.PACKAGE} is absent")
    raise missing_package(runtime.PACKAGE, extra=extra, got=got)


def _python_can(runtime: str, version: str) -> bool:
    """Whether the runtime's Python package is here and can be used: TensorRT's from 8.5 on."""
    if version == "absent":
        return False
    return runtime != "tensorrt" or not version[:1].isdecimal() or version_of(version) >= (8, 5)


def _nothing_builds(recipe: DeviceRecipe) -> MissingPackageError:
    versions = dict.fromkeys(build["runtime"]["version"] for build in recipe.builds)
    wanted = " or ".join(f"TensorRT {version}" for version in versions)
    return MissingPackageError(
        f"nothing on this machine builds an engine for {recipe.target.title}",
        where=str(recipe.folder), got="neither TensorRT's Python package nor trtexec",
        wanted=wanted, hint="Run this on the device, or from here with --via 'ssh user@device'; "
        "a device without Python takes the folder and its build.sh.",
    )  # fmt: skip


def _publish(recipe: DeviceRecipe, made: Made, out: Path, past: Past) -> TargetResult:
    """Puts engine, measurement, evidence and report into the folder, all at once."""
    limits = {**golden_limits_of(recipe, made), **recipe.judging["limits"]}
    runs = [m for m in (made.baseline, made.measurement) if m is not None]
    if runs:
        past.record(runs, {})
    files.remove_partials(out)
    with files.replacing_folder(out) as folder:
        engine = made.write(folder / ENGINE_FOLDER)
        evidence = _evidence(recipe, made, engine, past)
        decision = gate.decide(evidence, limits)
        if made.measurement is not None:
            past.judge(runs, made.measurement.arm, decision)
        contents = [ENGINE_FOLDER, EVIDENCE_FILE, REPORT_FILE]
        if made.golden is not None:
            write_json(folder / GOLDEN_FILE, made.golden.to_json())
            contents.append(GOLDEN_FILE)
        if made.measurement is not None:
            save_measurements(runs, folder / MEASUREMENT_FILE)
            contents.append(MEASUREMENT_FILE)
        if made.layers:
            write_json(folder / LAYERS_FILE, {"layers": list(made.layers)})
            contents.append(LAYERS_FILE)
        result = TargetResult(
            target=recipe.target.name,
            title=recipe.target.title,
            metric_name=recipe.judging["metric"],
            precision=recipe.precision,
            before=_before(recipe, made),
            after=_after(recipe, made, engine),
            verdict=decision.verdict,
            checks=decision.checks,
            because=decision.because,
            notes=_notes(recipe, made),
            folder=str(out),
            files=tuple(sorted(contents)),
            measured_age_s=evidence.age_s,
            blame={recipe.precision: stages_with(recipe.judging.get("blame"), made.golden)},
        )
        taken_at = made.measurement.taken_at if made.measurement is not None else 0.0
        document = evidence_document(result, evidence, limits, model=recipe.name, taken_at=taken_at)
        write_json(folder / EVIDENCE_FILE, document)
        write_json(folder / REPORT_FILE, result.to_json())
    return result


def golden_limits_of(recipe: DeviceRecipe, made: Made) -> dict[str, float]:
    """The limits on golden answers; none where nobody could run the engine."""
    return {} if made.golden is None else golden_limits(made.golden, recipe.tolerance)


def _evidence(recipe: DeviceRecipe, made: Made, engine: Engine, past: Past) -> gate.Evidence:
    """What the host knows of accuracy, and what was measured there."""
    known = gate.evidence_from_json(recipe.judging["evidence"])
    estimates = {**known.estimates, **engine_estimates(engine)}
    if made.golden is not None:
        estimates |= golden_estimates(made.golden)
    age: Figure = NOT_HERE
    if made.measurement is None:
        measured = [rule.figure for rule in gate.RULES.values() if rule.measured]
        estimates |= {name: gate.Estimate(value=Unknown(made.why_not)) for name in measured}
    else:
        speedup = Unknown("the original was not built on the device")
        estimates["speedup"] = gate.Estimate(value=speedup)
        estimates |= gate.measured_estimates(made.measurement, made.baseline)
        estimates |= made.estimates
        age = age_s(made.measurement, time.time())
    runs = [m for m in (made.baseline, made.measurement) if m is not None]
    if made.measurement is not None and past.pick:
        arm, confidence = made.measurement.arm, statistics.CONFIDENCE
        estimates["regression"] = past.regression(runs, arm, confidence)
        known = replace(known, noise_floor=past.noise_floor(made.measurement.conditions))
    return replace(
        known, estimates=estimates, on_device=made.golden is not None, age_s=age,
        invalid=tuple(dict.fromkeys(said for run in runs for said in run.broken)),
        unchecked=tuple(dict.fromkeys(said for run in runs for said in run.unchecked)),
    )  # fmt: skip


def _before(recipe: DeviceRecipe, made: Made) -> Facts:
    known = facts_from_json(recipe.judging["before"])
    if made.baseline is None:
        return known
    size = made.baseline.figures.get("file_bytes", known.file_bytes)
    return _measured(replace(known, file_bytes=size), made.baseline, made)


def _after(recipe: DeviceRecipe, made: Made, engine: Engine) -> Facts:
    known = facts_from_json(recipe.judging["after"])
    facts = replace(known, file_bytes=float(engine.file_bytes))
    if made.measurement is None:
        why = Unknown(made.why_not)
        return replace(facts, fps=why, p50_ms=why, p99_ms=why, memory_bytes=why)
    found = _measured(facts, made.measurement, made)
    rate = made.estimates.get("fps")
    return found if rate is None else replace(found, fps=rate.value)


def _measured(facts: Facts, measured: Measurement, made: Made) -> Facts:
    return replace(
        facts,
        fps=statistics.fps(measured).value,
        p50_ms=1e3 * statistics.percentile(measured.samples, 50),
        p99_ms=1e3 * statistics.percentile(measured.samples, 99),
        memory_bytes=measured.figures.get("peak_memory_bytes", Unknown("not measured")),
        memory_is=made.memory_is,
    )


def _notes(recipe: DeviceRecipe, made: Made) -> tuple[str, ...]:
    notes = list(made.notes)
    if made.golden is not None:
        report = made.golden
        top1 = "" if isinstance(report.top1, Unknown) else f", the same top-1 in {report.top1:.0%}"
        notes.append(
            f"golden answers: largest relative error {report.relative_error:.2g} "
            f'(output "{report.farthest}"), cosine {report.cosine:.6f}{top1}; '
            f"{report.samples} samples"
        )
    notes.append("the metric is the one that the host found for this graph")
    if made.measurement is not None:
        notes += list(made.measurement.doubts)
    elif made.why_not:
        notes.append(f"not measured: {made.why_not}")
    return tuple(note for note in notes if note)
