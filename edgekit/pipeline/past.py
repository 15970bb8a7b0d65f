"""What was measured before of a model on a target, as its gate uses it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import gate
from edgekit.errors import InputError
from edgekit.evidence import NO_NOISE_FLOOR, Estimate, stored_regression
from edgekit.gate import Decision
from edgekit.history import LAST_PASSED, Baseline, Revision, history_file, open_history, run_name
from edgekit.pipeline.revision import revision_of
from edgekit.recipe import Recipe
from edgekit.values import Figure, Measurement, Unknown

ORIGINAL = "original"
NO_REVISION = Revision()
OFF = "none"
"""What `[bench] history` says where nothing is to be remembered."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """The history of one model and target. `path` is None where none is kept.

    `pick` is what the recipe takes for the baseline, empty where no limit needs one.
    """

    path: Path | None
    model: str
    target: str
    pick: str = ""
    revision: Revision = NO_REVISION
    noise_floor: Figure = NO_NOISE_FLOOR

    def check(self, limits: Mapping[str, float]) -> None:
        """Says before anything is measured what would be said afterwards.

        Raises InputError for a limit under the noise floor and for a history that cannot be used.
        """
        gate.check_limits(limits, self.noise_floor)
        if self.path is None:
            if "max_regression" in limits:
                raise InputError(
                    "a regression is against the history, and none is kept",
                    where="gate.max_regression", got=f'[bench] history = "{OFF}"',
                    hint="Name a file for it, or leave [bench] history out.",
                )  # fmt: skip
            return
        with open_history(self.path):
            pass

    def record(self, measured: Sequence[Measurement]) -> None:
        """Adds a run; one that is there already is written anew. Raises as `open_history` does."""
        if self.path is not None:
            with open_history(self.path) as history:
                history.record(
                    measured, model=self.model, target=self.target, revision=self.revision
                )

    def judge(self, measured: Sequence[Measurement], arm: str, decision: Decision) -> None:
        """Writes down what the gate said of one arm of a run."""
        if self.path is not None:
            with open_history(self.path) as history:
                history.judge(run_name(measured), arm, decision.verdict, decision.because)

    def regression(self, measured: Sequence[Measurement], arm: str, confidence: float) -> Estimate:
        """The regression of one arm of a run against the baseline that the recipe asks for."""
        by_arm = {m.arm: m for m in measured}
        found = self._baseline(by_arm[arm], run_name(measured))
        if isinstance(found, Unknown):
            return Estimate(value=found)
        now, then = by_arm.get(ORIGINAL), found.original
        return stored_regression(
            by_arm[arm], found.measurement,
            originals=None if now is None or then is None else (now, then),
            noise_floor=self.noise_floor, source=_named(found), confidence=confidence,
        )  # fmt: skip

    def _baseline(self, new: Measurement, run: str) -> Baseline | Unknown:
        if self.path is None or not self.pick:
            return Unknown("no baseline was asked for")
        with open_history(self.path) as history:
            return history.baseline(
                self.pick, new, model=self.model, target=self.target, not_run=run
            )


def past_of(recipe: Recipe, target: str, noise_floor: Figure = NO_NOISE_FLOOR) -> Past:
    """What a recipe says of the history, for one target."""
    named = recipe.bench.history
    path = history_file(str(recipe.folder / Path(named).expanduser()) if named else "")
    regression = recipe.gate.max_regression
    return Past(
        path=None if named == OFF else path, model=recipe.name, target=target,
        pick="" if regression is None else recipe.gate.baseline or LAST_PASSED,
        revision=revision_of(recipe.folder), noise_floor=noise_floor,
    )  # fmt: skip


def _named(baseline: Baseline) -> str:
    entry = baseline.entry
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.taken_at))
    commit = f", commit {entry.revision.commit[:10]}" if entry.revision.commit else ""
    return f"against {entry.id} of the history ({entry.arm}, {when} UTC{commit})"
