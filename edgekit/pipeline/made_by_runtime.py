"""A device recipe made by a runtime's Python package on this machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit.bench import statistics
from edgekit.bench.attended import Site
from edgekit.bench.measurement import (
    age_s,
    load_measurements,
    same_conditions,
    save_measurements,
)
from edgekit.bench.runner import measure_side_by_side
from edgekit.bench.workload import Arm, Plan, lasting_conditions
from edgekit.engines.base import Engine, EngineRequest, runtime_module
from edgekit.engines.device_recipe.document import DeviceRecipe, refuse_other_version
from edgekit.engines.here import facts_here
from edgekit.engines.manifest import load_engine
from edgekit.pipeline.cache import Step, key_of
from edgekit.pipeline.golden import GoldenReport, compare
from edgekit.pipeline.made import WRONG_ANSWERS, Made, RunOptions, answers_hold
from edgekit.pipeline.publish import NOT_HERE
from edgekit.pipeline.recognised import Recognised, power_note
from edgekit.pipeline.result import StepEvent
from edgekit.pipeline.workshop import Workshop
from edgekit.values import Array, Measurement, run


def made_by_runtime(
    recipe: DeviceRecipe, workshop: Workshop, seen: Recognised, options: RunOptions
) -> Made:
    """Builds the engine, asks it for the golden answers, and measures it.

    On a machine that is not the target the engine is built, where that can be, and not run.
    Raises as the runtime's `build` and `open` do.
    """
    runtime = recipe.target.runtime.name
    version = runtime_module(runtime).installed_version()
    if runtime == "tensorrt" and version[:1].isdecimal():
        refuse_other_version(recipe, version)
    engine = _built(recipe, workshop, recipe.request(), options)
    notes = (seen.note, *(f"the engine: {note}" for note in engine.notes))
    place = engine.path.parent

    def write(folder: Path) -> Engine:
        shutil.copytree(place, folder)
        return load_engine(folder)

    if not seen.is_target:
        return Made(
            write=write, golden=None, measurement=None, why_not=NOT_HERE.reason, notes=notes
        )
    golden = _answers(recipe, engine, workshop)
    if not answers_hold(recipe, golden):
        return Made(
            write=write, golden=golden, measurement=None, why_not=WRONG_ANSWERS, notes=notes
        )
    engines = {recipe.precision: engine}
    if recipe.has_original:
        original = _built(recipe, workshop, recipe.original_request(), options)
        engines = {"original": original, **engines}
    *beside, measurement = _measured(recipe, engines, workshop, options)
    return Made(
        write=write, golden=golden, measurement=measurement,
        baseline=beside[0] if beside else None,
        notes=(*notes, power_note(recipe, facts_here().get("power_mode", ""))),
    )  # fmt: skip


def _built(
    recipe: DeviceRecipe, workshop: Workshop, request: EngineRequest, options: RunOptions
) -> Engine:
    """The engine of a request, built unless it is."""
    target = recipe.target
    runtime = runtime_module(target.runtime.name)
    what = f"{request.model_path.stem} in {request.precision}"

    def make(folder: Path, partial: Path) -> None:
        del partial
        told = workshop.telling(request, what)
        limited = replace(told.builder, time_limit_s=options.time_limit_s)
        runtime.build(replace(told, builder=limited), folder)

    facts = {k: v for k, v in facts_here().items() if k not in ("power_mode", "cores")}
    key = key_of(
        "device-engine", stamp=recipe.stamp, of=what, version=runtime.installed_version(),
        machine=facts,
    )  # fmt: skip
    step = Step(name="engine", key=key, make=make)
    workshop.do(step, target=target.name, describe=_describe)
    return load_engine(workshop.cache.entry(step))


def _describe(folder: Path) -> str:
    engine = load_engine(folder)
    return f"{engine.precision}, {engine.file_bytes / 1e3:,.0f} kB"


def _answers(recipe: DeviceRecipe, engine: Engine, workshop: Workshop) -> GoldenReport:
    begun, name = time.monotonic(), recipe.target.name
    workshop.on_event(StepEvent(step="golden", target=name, state="started"))
    with runtime_module(engine.runtime).open(engine) as session:
        answers = [
            {key: np.array(array) for key, array in run(session, one.inputs).items()}
            for one in recipe.golden
        ]
    report = compare(recipe.golden, answers, recipe.samples)
    said = f"relative error {report.relative_error:.2g}, cosine {report.cosine:.6f}"
    workshop.on_event(StepEvent(step="golden", target=name, state="done", said=said))
    workshop.note("golden", name, cached=False, seconds=time.monotonic() - begun, said=said)
    return report


def _measured(
    recipe: DeviceRecipe, engines: Mapping[str, Engine], workshop: Workshop, options: RunOptions
) -> tuple[Measurement, ...]:
    """The engines measured in turn under these conditions: earlier, where that stands, or anew."""
    plan = Plan(
        seconds=recipe.bench.seconds, rounds=recipe.bench.rounds,
        warmup_seconds=recipe.bench.warmup_seconds,
    )  # fmt: skip
    arms = [
        Arm(
            name=name, engine=engine, inputs=_samples(recipe), batch=recipe.batch,
            threads=recipe.threads,
        )
        for name, engine in engines.items()
    ]  # fmt: skip
    name, max_age = recipe.target.name, float(recipe.judging["evidence"]["max_age_s"])
    key = key_of(
        "measurement", engines=[engine.sha256 for engine in engines.values()], stamp=recipe.stamp
    )
    path = workshop.cache.folder / "measurements" / f"{key}.json"
    if path.is_file() and not options.rebench:
        stored = load_measurements(path)
        age = age_s(stored[0], time.time())
        same = len(stored) == len(arms) and all(
            same_conditions(m.conditions, lasting_conditions(arm, arms, plan))
            for m, arm in zip(stored, arms, strict=True)
        )
        held = not any(m.broken or m.unchecked for m in stored)
        if same and held and 0 <= age <= max_age:
            said = f"taken {age:.0f} s ago"
            workshop.on_event(StepEvent(step="bench", target=name, state="cached", said=said))
            workshop.note("bench", name, cached=True, seconds=0.0, said=said)
            return stored
    begun = time.monotonic()
    workshop.on_event(StepEvent(step="bench", target=name, state="started"))
    measured = measure_side_by_side(
        arms, seconds=plan.seconds, rounds=plan.rounds, warmup_seconds=plan.warmup_seconds,
        on_progress=workshop.progress_of("bench", name), site=Site(target=recipe.target),
    )  # fmt: skip
    save_measurements(measured, path)
    said = f"{statistics.fps(measured[-1]).value:,.0f} FPS"
    workshop.on_event(StepEvent(step="bench", target=name, state="done", said=said))
    workshop.note("bench", name, cached=False, seconds=time.monotonic() - begun, said=said)
    return measured


def _samples(recipe: DeviceRecipe) -> dict[str, Array]:
    """The golden inputs, one after the other; what fills up the last batch left out."""
    names = recipe.golden[0].inputs
    joined = {n: np.concatenate([one.inputs[n] for one in recipe.golden]) for n in names}
    return {name: array[: recipe.samples] for name, array in joined.items()}
