"""What became of a device recipe: an engine, its answers, and a measurement where it was run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit import gate
from edgekit.engines.base import Engine
from edgekit.engines.device_recipe.document import DeviceRecipe
from edgekit.pipeline.golden import GoldenReport, golden_estimates, golden_limits
from edgekit.values import Measurement, Verdict

WRONG_ANSWERS = "the engine does not answer as the model does"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """`rebench`: measure again, whatever is known. `time_limit_s` is the build's."""

    rebench: bool
    time_limit_s: float


@dataclass(frozen=True, kw_only=True)
class Made:
    """An engine that `write` puts into a folder, with all that is known of it.

    `golden` is None where it could not be run, `measurement` where it was not measured: `why_not`
    says it. `estimates` go before those of the measurement's samples. `baseline` is the original's,
    measured in turn with it; `layers` are times of the engine's layers.
    """

    write: Callable[[Path], Engine]
    golden: GoldenReport | None
    measurement: Measurement | None
    baseline: Measurement | None = None
    why_not: str = ""
    memory_is: str = "process peak"
    estimates: Mapping[str, gate.Estimate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layers: tuple[Mapping[str, object], ...] = ()


def answers_hold(recipe: DeviceRecipe, report: GoldenReport) -> bool:
    """Whether an engine's answers are within the recipe's tolerance."""
    evidence = gate.Evidence(estimates=golden_estimates(report), on_device=True)
    decided = gate.decide(evidence, golden_limits(report, recipe.tolerance))
    return decided.verdict is Verdict.PASS
