"""A device recipe made by trtexec, here or over a command prefix, or by hand with build.sh."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgekit import board, gate
from edgekit.bench import statistics
from edgekit.bench.attended import state_checked
from edgekit.bench.device_state import DeviceState, stored_state
from edgekit.engines.device_recipe.document import DeviceRecipe, refuse_other_version
from edgekit.engines.processes.shells import Shell
from edgekit.engines.trtexec.engine import device_engine
from edgekit.engines.trtexec.output import LayerTiming
from edgekit.engines.trtexec.results import DeviceRun, read_results
from edgekit.engines.trtexec.running import GPUS_FILE, device_root, run_recipe
from edgekit.engines.trtexec.script_parts import CLOCKS_FILE, RESULTS_FOLDER
from edgekit.pipeline.golden import compare
from edgekit.pipeline.made import WRONG_ANSWERS, Made, answers_hold
from edgekit.pipeline.recognised import Recognised, power_note, recognise_device
from edgekit.pipeline.result import StepEvent
from edgekit.pipeline.workshop import Workshop
from edgekit.values import Measurement, Unknown, figure_to_json

_MEMORY_IS = "fall of what is available"


def made_by_trtexec(
    recipe: DeviceRecipe, shell: Shell, workshop: Workshop, time_limit_s: float
) -> Made:
    """Runs the recipe's build.sh where the shell leads, and reads what it leaves.

    Raises as `run_recipe` and `read_results` do, and InputError where the device is another one.
    """
    name = recipe.target.name
    begun = time.monotonic()
    workshop.on_event(StepEvent(step="trtexec", target=name, state="started"))
    tell = workshop.progress_of("trtexec", name)
    tell(0.0, f"looking at {shell.name}")
    seen = _recognised(recipe, shell)
    results = recipe.folder / RESULTS_FOLDER
    steps = len(recipe.golden) + recipe.bench.rounds + 2
    done = 0

    def on_line(line: str) -> None:
        nonlocal done
        done += 1
        tell(min(0.99, done / steps), line)

    run_recipe(recipe, shell, results, limit_s=time_limit_s, on_line=on_line)
    said = f"built and measured on {shell.name}"
    workshop.on_event(StepEvent(step="trtexec", target=name, state="done", said=said))
    workshop.note("trtexec", name, cached=False, seconds=time.monotonic() - begun, said=said)
    # The device's own clock may be off by years; it has measured just now.
    return _made(recipe, results, seen, taken_at=time.time())


def made_of_results(recipe: DeviceRecipe, results: Path, workshop: Workshop) -> Made:
    """Reads what build.sh left on a device. Raises as `read_results` does."""
    name, begun = recipe.target.name, time.monotonic()
    run = read_results(recipe, results)
    made = _made(recipe, results, recognise_device(recipe, run.root, _gpus(run.root)))
    said = f"read from {results}"
    workshop.on_event(StepEvent(step="results", target=name, state="done", said=said))
    workshop.note("results", name, cached=False, seconds=time.monotonic() - begun, said=said)
    return made


def _recognised(recipe: DeviceRecipe, shell: Shell) -> Recognised:
    if shell.is_here:
        return recognise_device(recipe, Path("/"), board.gpus())
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        root = device_root(shell, Path(folder) / "root")
        return recognise_device(recipe, root, _gpus(root))


def _gpus(root: Path) -> Sequence[board.Gpu]:
    try:
        return board.parse_gpus((root / GPUS_FILE).read_text(errors="replace"))
    except OSError:
        return ()


def _made(
    recipe: DeviceRecipe, results: Path, seen: Recognised, *, taken_at: float | None = None
) -> Made:
    run = read_results(recipe, results)
    refuse_other_version(recipe, run.version)
    golden = compare(recipe.golden, run.answers, recipe.samples)
    measurement: Measurement | None = run.measurement
    if measurement is not None and taken_at is not None:
        measurement = replace(measurement, taken_at=taken_at)
    baseline = run.baseline
    state = _state(run)
    if measurement is not None:
        measurement = state_checked(measurement, state, recipe.target)
    if baseline is not None:
        baseline = state_checked(baseline, state, recipe.target)
    if not answers_hold(recipe, golden):
        measurement = None
    notes = [seen.note, *run.notes, f"TensorRT {run.version}, by trtexec"]
    notes += [power_note(recipe, run.facts.get("power_mode", "")), _slowest(run.layers)]
    return Made(
        write=lambda folder: device_engine(recipe, results, run, folder),
        golden=golden,
        measurement=measurement,
        baseline=None if measurement is None else baseline,
        why_not="" if measurement is not None else WRONG_ANSWERS,
        memory_is=_MEMORY_IS,
        estimates={} if measurement is None else {"fps": _rate(run)},
        notes=tuple(notes),
        layers=() if isinstance(run.layers, Unknown) else tuple(map(_layer_row, run.layers)),
    )


def _state(run: DeviceRun) -> DeviceState:
    """How the device stood when trtexec was asked, as build.sh wrote it down."""
    try:
        clocks = (run.root / CLOCKS_FILE).read_text(errors="replace")
    except OSError:
        clocks = ""
    return stored_state(run.root, power_mode=run.facts.get("power_mode", ""), clocks=clocks)


def _layer_row(layer: LayerTiming) -> dict[str, object]:
    return {
        "name": layer.name, "mean_ms": layer.mean_ms,
        "median_ms": figure_to_json(layer.median_ms), "share": layer.share,
    }  # fmt: skip


def _slowest(layers: Sequence[LayerTiming] | Unknown) -> str:
    if isinstance(layers, Unknown):
        return layers.reason
    top = sorted(layers, key=lambda layer: -layer.share)[:3]
    return "slowest layers: " + ", ".join(f"{layer.name} ({layer.share:.0%})" for layer in top)


def _rate(run: DeviceRun) -> gate.Estimate:
    """Samples a second: batch times the queries a second that trtexec counts, over its rounds.

    A query is a whole batch. What passes between two queries is in it, as it is not in the sum of
    their latencies.
    """
    rounds = replace(
        run.measurement, samples=tuple(1 / rate for rate in run.rates),
        rounds=tuple(range(len(run.rates))),
    )  # fmt: skip
    found = statistics.fps(rounds)
    if isinstance(found.interval, Unknown):
        return gate.Estimate(value=found.value, doubt=found.interval.reason)
    return gate.Estimate(value=found.value, interval=found.interval)
