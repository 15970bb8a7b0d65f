"""`edgekit bench`: one engine, several side by side, or one against itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekit import files
from edgekit.bench import noise_floor, statistics
from edgekit.bench.attended import Site, site_of
from edgekit.bench.loops import whole_batches
from edgekit.bench.measurement import save_measurements
from edgekit.bench.runner import measure
from edgekit.bench.scenarios import SINGLE_STREAM, scenario_named
from edgekit.bench.workload import Arm, Pixels, Plan
from edgekit.data.batches import Batches, load_batches
from edgekit.engines.fit import require_fit
from edgekit.engines.manifest import load_engine
from edgekit.errors import EdgekitError, InputError
from edgekit.pipeline.alone import preprocessing_beside
from edgekit.pipeline.layer_profile import exported_table, layer_table
from edgekit.pipeline.past import remember
from edgekit.pipeline.result import OnEvent, StepEvent
from edgekit.recipe import load_recipe
from edgekit.targets import load_target
from edgekit.values import Figure, Measurement, Unknown, figure_to_json

_SAMPLES = 64
_AA_RUNS = 4
_PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
_IS = {
    "single_stream": "back to back, one batch at a time: staged, executed, fetched; pre- and "
    "postprocessing are not in it",
    "multi_stream": "back to back, one query at a time; pre- and postprocessing are not in it",
    "offline": "from answer to answer, nothing left out; pre- and postprocessing are not in it",
}


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """Engines by their folders, and how to measure them.

    `data` names real samples (None is refused: zeros are never used); `target` whose conditions
    count, empty: the one that the engines are built for. The recipe's preprocessing goes before
    what lies beside an engine. `history`: see `past.remember`. `profile`
    is what trtexec exported, in place of a run.
    """

    engines: tuple[Path, ...]
    data: str | None
    plan: Plan
    batch: int = 1
    threads: int = 0
    target: str = ""
    recipe: Path | None = None
    out: Path | None = None
    profile: Path | None = None
    history: str = ""


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What `edgekit bench` found. 0, 4 where conditions were broken, 6 where it is not saved.

    A server that does not keep its limit is 1, one of which nobody can say it 3.
    """

    document: dict[str, object]
    exit_code: int


def bench_verb(
    request: BenchRequest, *, aa: bool, layers: bool, on_event: OnEvent = lambda event: None
) -> BenchReport:
    """What the verb was asked for: the noise floor, the layers, or the engines."""
    if aa and layers:
        raise InputError("the noise floor has no layers", where="--layers", got="--aa --layers")
    if request.profile is not None and not layers:
        raise InputError("a profile is of layers", where="--profile", hint="Give --layers too.")
    if aa:
        return measure_noise(request, on_event)
    return profile_layers(request) if layers else bench_engines(request, on_event)


def profile_layers(request: BenchRequest) -> BenchReport:
    """The time of each layer of one engine, and which nodes of the graph it is made of."""
    if len(request.engines) != 1:
        raise InputError(
            "the layers of one engine at a time", where="--layers",
            got=f"{len(request.engines)} engines", wanted="one",
        )  # fmt: skip
    if request.profile is not None:
        engine = load_engine(request.engines[0])
        table = exported_table(engine, request.profile).to_json()
    else:
        (arm,) = _arms(request)
        engine = arm.engine
        batches = whole_batches(arm.inputs, arm.batch)
        table = layer_table(engine, batches, arm.threads).to_json()
    document = {"engine": str(engine.path), "batch": request.batch, **table}
    if request.out is not None:
        files.write_text(request.out, json.dumps(document, indent=2) + "\n")
    return BenchReport(document=document, exit_code=0)


def bench_engines(request: BenchRequest, on_event: OnEvent = lambda event: None) -> BenchReport:
    """Measures the engines in turns; the raw samples go where they are told to.

    Of several the first is what the others are held against. A run that ends early leaves what was
    taken, marked as broken off. Raises as `runner.measure` does.
    """
    arms = _arms(request)
    measured = _measured(arms, request, on_event)
    documents = [_document(arm, m, request.plan) for arm, m in zip(arms, measured, strict=True)]
    document: dict[str, object] = documents[0] if len(documents) == 1 else {"arms": documents}
    if len(measured) > 1 and request.plan.scenario.name != "server":
        document["ratios"] = [_ratio(m, measured[0]) for m in measured[1:]]
    code = max((_exit_code(m, request.plan) for m in measured), key=[0, 3, 1, 4].index)
    if request.out is not None and (unsaved := _unsaved(measured, request.out)) is not None:
        return BenchReport(document={**document, "not_saved": unsaved[0]}, exit_code=unsaved[1])
    if (lost := _unremembered(arms, measured, request.history)) is not None:
        return BenchReport(document={**document, "not_remembered": lost[0]}, exit_code=lost[1])
    return BenchReport(document=document, exit_code=code)


def measure_noise(request: BenchRequest, on_event: OnEvent = lambda event: None) -> BenchReport:
    """Measures an engine against itself, several times, and stores what that says of the machine.

    The floor is for the target that the engine was built for, on this machine in this mode.
    """
    if len(request.engines) != 1:
        raise InputError(
            "one engine is measured against itself", where="--aa",
            got=f"{len(request.engines)} engines", wanted="one",
        )  # fmt: skip
    (arm,) = _arms(request)
    same = [replace(arm, name=name) for name in ("first", "second")]
    runs = [
        _measured(same, request, on_event, f"{run + 1} of {_AA_RUNS}, ") for run in range(_AA_RUNS)
    ]
    found = [statistics.undisturbed_ratio(second, first) for first, second in runs]
    share = statistics.noise_floor(found)
    latest = runs[-1][0]
    broken = tuple(dict.fromkeys(said for run in runs for m in run for said in m.broken))
    doubts = tuple(dict.fromkeys(said for run in runs for m in run for said in m.doubts))
    document: dict[str, object] = {
        "engine": str(arm.engine.path),
        "target": arm.engine.target,
        "noise_floor": figure_to_json(share),
        "ratios": [
            {"value": one.value, "interval": _interval(one.interval)} for one in found
        ],
        "plan": f"{_AA_RUNS} runs of {request.plan}",
        "machine": noise_floor.machine_of(latest.conditions),
        "broken": list(broken),
        "doubts": list(doubts),
    }  # fmt: skip
    if broken:
        return BenchReport(document=document, exit_code=4)
    if isinstance(share, Unknown):
        return BenchReport(document=document, exit_code=3)
    floor = noise_floor.NoiseFloor(
        target=arm.engine.target, share=share, taken_at=latest.taken_at,
        plan=str(document["plan"]), engine=arm.engine.sha256,
        machine=noise_floor.machine_of(latest.conditions), doubts=doubts,
    )  # fmt: skip
    document["stored"] = str(noise_floor.store(floor))
    return BenchReport(document=document, exit_code=0)


def _measured(
    arms: Sequence[Arm], request: BenchRequest, on_event: OnEvent, said: str = ""
) -> tuple[Measurement, ...]:
    """One run; what was taken of a run that ends early lies beside the place for the whole."""
    name = arms[0].engine.target
    on_event(StepEvent(step="bench", target=name, state="started"))

    def progress(fraction: float, words: str) -> None:
        on_event(
            StepEvent(
                step="bench", target=name, state="progress", fraction=fraction, said=said + words
            )
        )

    def stopped(taken: tuple[Measurement, ...]) -> None:
        if request.out is not None:
            save_measurements(taken, broken_off_file(request.out))

    found = measure(
        arms, request.plan, on_progress=progress, on_stopped=stopped,
        site=_site(request.target, arms),
    )  # fmt: skip
    on_event(StepEvent(step="bench", target=name, state="done", said=said.rstrip(", ")))
    return found


def broken_off_file(out: Path) -> Path:
    """Where the samples of a run lie that ended before its time."""
    return out.with_name(f"{out.stem}.broken-off{out.suffix}")


def _site(name: str, arms: Sequence[Arm]) -> Site:
    """The conditions of the target that is named, else of the one that all engines are built for.

    Raises as `load_target` does for one that is named.
    """
    if name:
        return Site(target=load_target(name))
    return site_of({arm.engine.target for arm in arms})


def _arms(request: BenchRequest) -> list[Arm]:
    if request.data is None:
        raise InputError(
            "a measurement needs real inputs", where=str(request.engines[0]),
            hint="Name some: --data evaluation.npz, an array for each input of the engine.",
        )  # fmt: skip
    arms = []
    given = load_recipe(request.recipe).preprocessing if request.recipe is not None else None
    for folder in request.engines:
        engine = load_engine(folder)
        require_fit(engine)
        batches = load_batches(
            request.data, folder=Path(), inputs=engine.inputs,
            preprocessing=given or preprocessing_beside(folder), batch_size=_SAMPLES, role="bench",
        )  # fmt: skip
        name = engine.precision if len(request.engines) == 1 else str(folder)
        arms.append(
            Arm(
                name=name, engine=engine, inputs=next(iter(batches)).inputs, batch=request.batch,
                threads=request.threads, pixels=_pixels(batches),
            )
        )  # fmt: skip
    return arms


def _pixels(batches: Batches) -> Pixels | None:
    """The samples before their preprocessing, where they are arrays of pixels."""
    if batches.preprocessing is None or not batches.pixels:
        return None
    if not all(isinstance(array, np.ndarray) for array in batches.arrays.values()):
        return None  # pictures: decoding them is another matter
    stored = {name: array[:_SAMPLES] for name, array in batches.arrays.items()}
    return Pixels(
        arrays=stored, dtypes=batches.pixels, preprocessing=batches.preprocessing
    )  # fmt: skip


def _exit_code(measured: Measurement, plan: Plan) -> int:
    if measured.broken:
        return 4
    if plan.scenario.name != "server" or not plan.scenario.latency_limit_s:
        return 0
    bound = statistics.early_stopping(measured.samples, 99)
    if isinstance(bound, Unknown):
        return 3
    kept = bound <= plan.scenario.latency_limit_s and not measured.figures["unanswered"]
    return 0 if kept else 1


def _unsaved(measured: Sequence[Measurement], out: Path) -> tuple[dict[str, str], int] | None:
    """Why the samples are not where they were wanted: what was measured is told all the same."""
    try:
        save_measurements(measured, out)
    except EdgekitError as error:
        return {"what": error.what, "where": error.where, "hint": error.hint}, error.exit_code
    return None


def _unremembered(
    arms: Sequence[Arm], measured: Sequence[Measurement], history: str
) -> tuple[dict[str, str], int] | None:
    """Why the history has not got it, likewise."""
    try:
        remember(measured, [arm.engine for arm in arms], history)
    except EdgekitError as error:
        return {"what": error.what, "where": error.where, "hint": error.hint}, error.exit_code
    return None


def _ratio(one: Measurement, first: Measurement) -> dict[str, object]:
    found = statistics.speedup(one, first)
    return {
        "of": one.arm,
        "to": first.arm,
        "speedup": found.value,
        "interval": _interval(found.interval),
    }


def _interval(interval: tuple[float, float] | Unknown) -> object:
    return figure_to_json(interval) if isinstance(interval, Unknown) else list(interval)


def _document(arm: Arm, measured: Measurement, plan: Plan) -> dict[str, object]:
    scenario = plan.scenario
    found: dict[str, object] = {
        "engine": str(arm.engine.path), "scenario": scenario.name, "quantity": measured.quantity,
        "batch": arm.batch,
    }  # fmt: skip
    if scenario.name in _IS:
        rate = statistics.fps(measured)
        found |= {
            "fps": rate.value, "fps_interval": _interval(rate.interval),
            "fps_is": _IS[scenario.name],
        }  # fmt: skip
    for percent in _PERCENTS:
        found[f"p{percent:g}_ms"] = 1e3 * statistics.percentile(measured.samples, percent)
    if scenario.name != "offline":
        found["early_stopping_ms"] = {
            f"p{percent:g}": figure_to_json(_milliseconds(measured, percent))
            for percent in _PERCENTS[1:]
        }
    if scenario.name == "server":
        found |= {"rate": scenario.rate, "latency_limit_ms": 1e3 * scenario.latency_limit_s}
    return {
        **found,
        "calls": len(measured.samples),
        "processes": len(measured.processes) or 1,
        "figures": {name: figure_to_json(value) for name, value in measured.figures.items()},
        "conditions": dict(measured.conditions),
        "doubts": list(measured.doubts),
        "broken": list(measured.broken),
    }


def _milliseconds(measured: Measurement, percent: float) -> Figure:
    bound = statistics.early_stopping(measured.samples, percent)
    return bound if isinstance(bound, Unknown) else 1e3 * bound


def plan_of(  # noqa: PLR0913
    *, seconds: float, processes: int, least_calls: int = 0, rounds: int = 0,
    warmup_seconds: float = 0.5, scenario: str = SINGLE_STREAM.name, samples_per_query: int = 0,
    rate: float = 0.0, latency_limit_ms: float = 0.0,
) -> Plan:  # fmt: skip
    """The plan that the options of the verb describe; two rounds a process where none is told."""
    return Plan(
        seconds=seconds, rounds=rounds or max(2 * processes, 6), processes=processes,
        warmup_seconds=warmup_seconds, least_calls=least_calls,
        scenario=scenario_named(
            scenario, samples_per_query=samples_per_query, rate=rate,
            latency_limit_ms=latency_limit_ms,
        ),
    )  # fmt: skip
