"""Measures engines side by side: processes of their own, taking turns A B, B A on one machine."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit.bench import statistics
from edgekit.bench.arm_process import ArmProcess, hired
from edgekit.bench.attended import HERE, Site, attended
from edgekit.bench.taken import Began, Taken
from edgekit.bench.telemetry import Watch
from edgekit.bench.telemetry_report import Part
from edgekit.bench.workload import Arm, Plan, check_arms, lasting_conditions, load_average
from edgekit.errors import InputError
from edgekit.values import Array, Figure, Measurement, Unknown

_WARMUPS_MOST = 8  # times the shortest warm-up

OnProgress = Callable[[float, str], None]
OnStopped = Callable[[tuple[Measurement, ...]], None]


def measure_side_by_side(
    arms: Sequence[Arm],
    *,
    seconds: float,
    rounds: int,
    warmup_seconds: float = 0.5,
    on_progress: OnProgress = lambda fraction, said: None,
    site: Site = HERE,
) -> tuple[Measurement, ...]:
    """`measure` of latency, one process for each arm."""
    plan = Plan(seconds=seconds, rounds=rounds, warmup_seconds=warmup_seconds)
    return measure(arms, plan, on_progress=on_progress, site=site)


def measure(
    arms: Sequence[Arm],
    plan: Plan,
    *,
    on_progress: OnProgress = lambda fraction, said: None,
    on_stopped: OnStopped = lambda taken: None,
    site: Site = HERE,
) -> tuple[Measurement, ...]:
    """One Measurement for each arm, in seconds, in the arms' order.

    A call is one batch staged, executed and fetched by one client, the next when it is done:
    preprocessing, decoding and postprocessing are not in it, and Python's garbage collector is
    off. What a sample is in other scenarios says `scenarios.QUANTITIES`. Of each turn the first
    tenth (at most 0.1 s) is not counted.

    Figures: those of memory (`memory.SOURCES`); the medians of `host_to_device_p50_s`,
    `execute_p50_s` and `device_to_host_p50_s`, which are stage, execute and fetch; `harness_s`,
    what a call of an empty Session takes here; `preprocess_p50_s` and `end_to_end_p50_s` where the
    arm has pixels, of calls after the last round; `burst_fps` and `sustained_fps`; of a server what
    it answered; and what a watch beside the run saw (`TelemetryReport.figures`). The conditions
    that the site's target declares are checked before, during and after.

    Raises InputError, MissingPackageError or ResourceError as the engine's runtime does,
    EdgekitError where a worker dies and ResourceError where it hangs, naming its arm. No worker
    outlives the call. `on_stopped` is handed what had been taken by whole turns, marked as broken
    off, before anything that ends the run early is raised, Ctrl-C too.
    """
    check_arms(arms, plan)
    taken = [Taken(arm=arm, plan=plan) for arm in arms]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-")))
        on_progress(0.0, "starting")
        watch = stack.enter_context(Watch(root=site.root))  # before anything warms the device up
        began, load_before = Began(), load_average()

        def measured() -> tuple[Measurement, ...]:
            report = watch.finished()
            passing = {"load_average": load_before, "other_load": _shown_load(report.other_load)}
            return tuple(
                attended(
                    one.measurement(
                        began,
                        {**lasting_conditions(one.arm, arms, plan, site.root), **passing},
                        report.other_load,
                    ),
                    report, site,
                    Part(windows=one.windows, pids=one.pids, alone=len(taken) == 1),
                )
                for one in taken if one.count
            )  # fmt: skip

        try:
            for process in range(plan.processes):
                _one_process(taken, plan, process, folder, on_progress)
            _check_samples(taken)
        except BaseException as error:
            if stopped := measured():
                said = f"broken off: {str(error) or type(error).__name__}".rstrip(": ")
                on_stopped(tuple(replace(m, broken=(*m.broken, said)) for m in stopped))
            raise
        on_progress(1.0, "")
        return measured()


def _one_process(
    taken: Sequence[Taken], plan: Plan, process: int, folder: Path, on_progress: OnProgress
) -> None:
    """One process for each arm: loaded, warmed up, and its share of the rounds."""
    first, end = (plan.rounds * index // plan.processes for index in (process, process + 1))
    with contextlib.ExitStack() as stack:
        workers = []
        for index, one in enumerate(taken):
            inputs = folder / f"inputs-{index}.npz"
            if not process:
                np.savez(inputs, **one.arm.inputs)  # type: ignore[arg-type]
            workers.append(stack.enter_context(hired(one.arm, plan, inputs)))
        for one, worker in zip(taken, workers, strict=True):
            one.begin(worker.load())
        for one, worker in zip(taken, workers, strict=True):
            if plan.warmup_seconds and not _warm_up(worker, plan.warmup_seconds):
                one.unsteady += 1
        for turn in range(first, end):
            order = list(zip(taken, workers, strict=True))
            for one, worker in order if turn % 2 == 0 else reversed(order):
                on_progress(
                    turn / plan.rounds, f"round {turn + 1} of {plan.rounds}, {one.arm.name}"
                )
                begun = time.monotonic()
                found = worker.turn(plan.seconds / plan.rounds, -(-plan.least_calls // plan.rounds))
                one.add(found, (begun, time.monotonic()))
        if end == plan.rounds:
            for one, worker in zip(taken, workers, strict=True):
                if one.arm.pixels is not None:
                    one.from_pixels = worker.from_pixels(one.arm.pixels, plan.seconds / plan.rounds)


def _check_samples(taken: Sequence[Taken]) -> None:
    for one in taken:
        if not one.count:
            raise InputError(
                f'the arm "{one.arm.name}" has not a single sample', where="bench",
                got=str(one.plan), hint="Measure longer, or let queries arrive faster.",
            )  # fmt: skip


def _warm_up(worker: ArmProcess, seconds: float) -> bool:
    """Turns that do not count, until what was seen of them is steady; whether it was."""
    seen: list[Array] = []
    spent, part = 0.0, seconds
    while spent < _WARMUPS_MOST * seconds:
        seen.append(worker.turn(part).whole_ns)
        spent += part
        steady = statistics.steady_from(np.concatenate(seen))
        if not isinstance(steady, Unknown):
            return True
        part = min(spent, _WARMUPS_MOST * seconds - spent)  # twice as long, all in all
    return False


def _shown_load(load: Figure) -> str:
    return "not readable" if isinstance(load, Unknown) else f"{load:.2f} of the processors"
