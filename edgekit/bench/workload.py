"""What is measured: arms, their inputs, and the conditions that a measurement holds under."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import machine
from edgekit.bench.device_state import lasting_state
from edgekit.engines.base import Engine, runtime_module
from edgekit.errors import InputError
from edgekit.values import Feeds

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One engine to measure. `inputs` are real samples by input name, first axis the samples.

    The samples are taken in turn, `batch` at a time: one input over and over would lie in the
    cache, and a network's speed can depend on its values. `threads` 0 is the engine's setting.
    """

    name: str
    engine: Engine
    inputs: Feeds
    batch: int = 1
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How arms take turns: `rounds` rounds, in each every arm once; `seconds` for each arm in all.

    `warmup_seconds` for each arm come first and are not counted.
    """

    seconds: float
    rounds: int
    warmup_seconds: float


def check_arms(arms: Sequence[Arm], plan: Plan) -> None:
    """Raises InputError where there is nothing to measure, or two arms have one name."""
    names = [arm.name for arm in arms]
    if not arms or len(set(names)) != len(names):
        raise InputError(
            "arms need different names, and there must be one", got=", ".join(names) or "none"
        )
    if plan.rounds < 1 or plan.seconds <= 0 or plan.warmup_seconds < 0:
        raise InputError("this plan measures nothing", where="bench", got=str(plan))
    for arm in arms:
        counts = {name: len(array) for name, array in arm.inputs.items()}
        if not counts or min(counts.values()) < 1 or arm.batch < 1:
            raise InputError(
                f'the arm "{arm.name}" has no samples to run on',
                where="bench", got=str(counts), hint="Measure with real inputs.",
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
        "plan": f"{plan.rounds} rounds, {plan.seconds:g} s, warm-up {plan.warmup_seconds:g} s",
        "beside": " ".join(other.engine.sha256 for other in arms if other is not arm),
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": machine.cpu_model(),
        "cpu_flags": " ".join(sorted(machine.cpu_flags())),
        "cpus": str(len(cpus)),
    }
    found |= lasting_state(root)
    try:
        found["governor"] = _GOVERNOR.read_text().strip()
    except OSError:
        found["governor"] = "not readable"
    return found


def load_average() -> str:
    """The system's load average of the last minute, as text."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "not readable"
