"""What is measured: arms, their inputs, and the conditions that a measurement holds under."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import machine
from edgekit.bench.device_state import lasting_state
from edgekit.bench.scenarios import SINGLE_STREAM, Scenario
from edgekit.engines.base import Engine, runtime_module
from edgekit.errors import InputError
from edgekit.values import Feeds, Preprocessing

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Samples before their preprocessing, uint8 where `dtypes` has their input's own type."""

    arrays: Feeds
    dtypes: Mapping[str, str]
    preprocessing: Preprocessing


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One engine to measure. `inputs` are real samples by input name, first axis the samples.

    The samples are taken in turn, `batch` at a time: one input over and over would lie in the
    cache, and a network's speed can depend on its values. `threads` 0 is the engine's setting.
    With `pixels` the time from pixels to answer is measured too, apart from the samples.
    """

    name: str
    engine: Engine
    inputs: Feeds
    batch: int = 1
    threads: int = 0
    pixels: Pixels | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How arms take turns: `rounds` rounds A B, B A, A B, ...; `seconds` for each arm in all.

    `warmup_seconds` for each arm come first and are not counted; where what was seen of them is
    not steady there are more, up to eight times as many. The rounds are dealt out to `processes`
    processes for each arm, one after the other, each with its own load of the engine and warm-up.
    An arm's turns are prolonged until it has `least_calls` in all, but none by more than half of
    `patience_s`; a worker that says nothing for `patience_s` longer than it was asked for is ended.
    """

    seconds: float
    rounds: int
    warmup_seconds: float
    processes: int = 1
    least_calls: int = 0
    scenario: Scenario = SINGLE_STREAM
    patience_s: float = 120.0

    def __str__(self) -> str:
        said = f"{self.rounds} rounds, {self.seconds:g} s, warm-up {self.warmup_seconds:g} s"
        extras = [f"{self.processes} processes"] if self.processes > 1 else []
        extras += [f"at least {self.least_calls} calls"] if self.least_calls else []
        extras += [] if self.scenario == SINGLE_STREAM else [self.scenario.name]
        return ", ".join([said, *extras])


def check_arms(arms: Sequence[Arm], plan: Plan) -> None:
    """Raises InputError where there is nothing to measure, or two arms have one name."""
    names = [arm.name for arm in arms]
    if not arms or len(set(names)) != len(names):
        raise InputError(
            "arms need different names, and there must be one", got=", ".join(names) or "none"
        )
    if plan.rounds < 1 or plan.seconds <= 0 or plan.warmup_seconds < 0 or plan.least_calls < 0:
        raise InputError("this plan measures nothing", where="bench", got=str(plan))
    if not 1 <= plan.processes <= plan.rounds:
        raise InputError(
            "every process takes one round at least", where="bench.processes", got=str(plan),
            wanted=f"1 to {plan.rounds} processes",
        )  # fmt: skip
    for arm in arms:
        counts = {name: len(array) for name, array in arm.inputs.items()}
        if not counts or min(counts.values()) < 1 or arm.batch < 1:
            raise InputError(
                f'the arm "{arm.name}" has no samples to run on',
                where="bench", got=str(counts), hint="Measure with real inputs.",
            )  # fmt: skip
        if plan.scenario.samples_per_query % arm.batch:
            raise InputError(
                "a query of several samples is whole batches", where=f'the arm "{arm.name}"',
                got=f"{plan.scenario.samples_per_query} samples in batches of {arm.batch}",
            )  # fmt: skip


def lasting_conditions(
    arm: Arm, arms: Sequence[Arm], plan: Plan, root: Path = Path("/")
) -> dict[str, str]:
    """The conditions that must be the same for one measurement to stand for another.

    Known without measuring: engine, runtime, machine, threads, the plan, and who else took turns;
    of a Jetson its power mode and whether its clocks are pinned.
    """
    runtime = runtime_module(arm.engine.runtime)
    cpus = machine.usable_cpus()
    threads = arm.threads or int(arm.engine.settings.get("threads", 0))
    found = {
        "engine_sha256": arm.engine.sha256,
        "runtime": f"{arm.engine.runtime} {runtime.installed_version()}",
        "batch": str(arm.batch),
        "threads": str(threads or machine.physical_cores(cpus)),
        "settings": " ".join(f"{k}={v}" for k, v in sorted(arm.engine.settings.items())),
        "plan": str(plan),
        "beside": " ".join(other.engine.sha256 for other in arms if other is not arm),
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": machine.cpu_model(),
        "cpu_flags": " ".join(sorted(machine.cpu_flags())),
        "cpus": str(len(cpus)),
    }
    found |= plan.scenario.conditions | lasting_state(root)
    try:
        found["governor"] = _GOVERNOR.read_text().strip()
    except OSError:
        found["governor"] = "not readable"
    return found


def load_average() -> str:
    """The system's load average of the last minute, as text."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "not readable"
