"""What build.sh left on a device, read: its answers, a measurement and the doubts about it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit import board
from edgekit.engines.device_recipe.document import DeviceRecipe
from edgekit.engines.trtexec import output
from edgekit.engines.trtexec.flags import version_from_number
from edgekit.engines.trtexec.script_parts import (
    ENGINE_FILE,
    ORIGINAL_ENGINE_FILE,
    answer_name,
    rounds_of,
    times_name,
)
from edgekit.errors import InputError
from edgekit.values import Array, Figure, Measurement, Unknown

AGAIN = "Run build.sh on the device again, and copy all of its results/."


@dataclass(frozen=True, kw_only=True)
class DeviceRun:
    """What a device made of a recipe through trtexec.

    `answers` are the outputs of each golden batch. `rates` are the queries a second of each round,
    as trtexec counts them; the measurement's samples are the latencies of the queries, in order,
    with copies between host and device left out. `baseline` is the original's, measured in turn,
    where the recipe has it. `facts` are the device's own words, `layers` the
    times of the engine's layers, run one by one.
    """

    version: str
    answers: tuple[Mapping[str, Array], ...]
    measurement: Measurement
    baseline: Measurement | None
    rates: tuple[float, ...]
    facts: Mapping[str, str]
    notes: tuple[str, ...]
    layers: tuple[output.LayerTiming, ...] | Unknown
    root: Path


def read_results(recipe: DeviceRecipe, results: Path) -> DeviceRun:
    """Reads a folder that build.sh left. Raises InputError for another recipe's, or a part of one.

    Nothing that is missing is made up for: no half of the rounds, no other golden batch.
    """
    version = _version(recipe, results)
    built = read_run(results / "build.log")
    answers = tuple(_answer(recipe, results / answer_name(k)) for k in range(len(recipe.golden)))
    measurement, rates, doubts = _measurement(recipe, results, version)
    baseline = None
    if recipe.has_original:
        baseline, _, _ = _measurement(recipe, results, version, original=True)
    facts = _facts(results)
    conditions = {**measurement.conditions, **{f"device_{k}": v for k, v in facts.items()}}
    return DeviceRun(
        version=version,
        answers=answers,
        measurement=_with(measurement, conditions, doubts),
        baseline=baseline,
        rates=rates,
        facts=facts,
        notes=tuple(f"while it was built: {warning}" for warning in built.warnings[:5]),
        layers=_layers(results / "profile.json"),
        root=results / "root",
    )


def _answer(recipe: DeviceRecipe, path: Path) -> Mapping[str, Array]:
    read_run(path.with_suffix(".log"))
    return output.read_outputs(path, recipe.outputs)


def _layers(path: Path) -> tuple[output.LayerTiming, ...] | Unknown:
    """The layers' times. They decide nothing: what cannot be read is unknown."""
    if not path.is_file():
        return Unknown("trtexec exported no times of layers")
    try:
        return output.read_profile(path)[1]
    except InputError as error:
        return Unknown(f"{error.what}: {error.got}")


def _version(recipe: DeviceRecipe, results: Path) -> str:
    """The TensorRT that was there. Raises InputError where the results are not this recipe's."""
    try:
        stamp, _, number = (results / "stamp").read_text().strip().rpartition("-")
    except OSError as error:
        raise InputError(
            "these are no results of a device recipe", where=str(results),
            got=error.strerror or str(error), hint=AGAIN,
        ) from error  # fmt: skip
    if stamp != recipe.stamp:
        raise InputError(
            "these results are of another recipe", where=str(results),
            got=f"stamp {stamp[:16]}", wanted=f"stamp {recipe.stamp[:16]}",
            hint="Copy this recipe to the device, and run its build.sh.",
        )  # fmt: skip
    return version_from_number(number) or str(recipe.builds[0]["runtime"]["version"])


def read_run(path: Path, *, wants_graph: bool = False) -> output.TrtexecLog:
    """The log of a run that came to a good end. Raises InputError for any other."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise InputError(
            "a log of trtexec is not in the results", where=str(path),
            got=error.strerror or str(error), hint=AGAIN,
        ) from error  # fmt: skip
    log = output.read_log(text, wants_graph=wants_graph)
    if log.outcome != "PASSED":
        raise InputError(
            "trtexec did not come to a good end", where=str(path),
            got="\n".join(log.errors[-5:]) or log.outcome or "a log that ends in the middle",
            wanted="&&&& PASSED", hint=AGAIN,
        )  # fmt: skip
    return log


def _measurement(
    recipe: DeviceRecipe, results: Path, version: str, *, original: bool = False
) -> tuple[Measurement, tuple[float, ...], tuple[str, ...]]:
    samples: list[float] = []
    starts: list[int] = []
    rates: list[float] = []
    doubts: list[str] = []
    rounds = rounds_of(recipe.bench.rounds)
    drops: list[Figure] = []
    for turn in range(rounds):
        place = results / times_name(turn, original=original)
        log = read_run(place.with_suffix(".log"), wants_graph=True)
        qps = log.figure("throughput_qps")
        if isinstance(qps, Unknown) or qps <= 0:
            raise InputError(
                "trtexec's log has no throughput", where=str(place.with_suffix(".log")),
                wanted="Throughput: N qps", hint=AGAIN,
            )  # fmt: skip
        starts.append(len(samples))
        samples += [ms / 1e3 for ms in output.read_times(place)]
        rates.append(qps)
        doubts += log.doubts
        drops.append(_memory_drop(place.with_suffix(".memory")))
    known = [drop for drop in drops if not isinstance(drop, Unknown)]
    shared = recipe.target.memory is not None and recipe.target.memory.shared_with_cpu
    memory: Figure = Unknown("a GPU's own memory is not in what trtexec tells")
    if shared:
        memory = max(known) if len(known) == rounds else Unknown("the device did not tell it")
    engine = results / (ORIGINAL_ENGINE_FILE if original else ENGINE_FILE)
    per_round = -(-recipe.bench.seconds // rounds)
    return (
        Measurement(
            arm="original" if original else recipe.precision,
            quantity="latency",
            unit="s",
            samples=tuple(samples),
            rounds=tuple(starts),
            batch=recipe.batch,
            taken_at=_taken_at(results),
            figures={
                "peak_memory_bytes": memory,
                "file_bytes": float(engine.stat().st_size)
                if engine.is_file()
                else Unknown("the engine is not in the results"),
                "throughput_qps": statistics.fmean(rates),
            },
            conditions={
                "runtime": f"tensorrt {version}, by trtexec",
                "batch": str(recipe.batch),
                "plan": f"{rounds} rounds, {per_round:g} s each, "
                f"warm-up {recipe.bench.warmup_seconds:g} s",
                "latency": "computation only: copies between host and device are not in it",
                "memory": "the fall of MemAvailable while it ran",
            },
        ),
        tuple(rates),
        tuple(dict.fromkeys(doubts)),
    )


def _with(
    measurement: Measurement, conditions: Mapping[str, str], doubts: tuple[str, ...]
) -> Measurement:
    return replace(measurement, conditions=conditions, doubts=doubts)


def _memory_drop(path: Path) -> Figure:
    """By how many bytes the available memory fell, at most, below what it was before."""
    try:
        available = [int(line) for line in path.read_text().split()]
    except (OSError, ValueError):
        return Unknown("the device did not tell it")
    if len(available) < 2:
        return Unknown("the run was too short to look at the memory")
    return float(max(0, available[0] - min(available[1:]))) * 1024


def _taken_at(results: Path) -> float:
    path = (results / times_name(0)).with_suffix(".date")
    try:
        return float(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            "the results do not say when they were taken", where=str(path),
            got=f"{type(error).__name__}: {error}", hint=AGAIN,
        ) from error  # fmt: skip


def _facts(results: Path) -> dict[str, str]:
    """The device's own words: machine, system, host, trtexec, power mode, model, L4T."""
    try:
        rows = (results / "device.txt").read_text(errors="replace").splitlines()
    except OSError:
        rows = []
    found = dict(row.split(": ", 1) for row in rows if ": " in row)
    root = results / "root"
    known = {
        "model": board.model_name(root), "l4t": board.l4t_version(root),
        "jetpack": board.jetpack_version(root),
    }  # fmt: skip
    return {name: value for name, value in {**found, **known}.items() if value}
