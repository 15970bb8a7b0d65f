"""What was measured before of a model on a target, as its gate uses it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit import gate
from edgekit.bench import noise_floor
from edgekit.engines.base import Engine, runtime_module
from edgekit.engines.device_recipe.document import DeviceRecipe
from edgekit.engines.fit import require_fit
from edgekit.engines.manifest import load_engine
from edgekit.errors import InputError
from edgekit.evidence import Estimate, paired_regression, stored_regression
from edgekit.gate import Decision
from edgekit.history import (
    LAST_PASSED,
    Baseline,
    Entry,
    Revision,
    history_file,
    open_history,
    run_name,
)
from edgekit.pipeline.revision import revision_of
from edgekit.recipe import Recipe
from edgekit.values import Figure, Measurement, Unknown

ORIGINAL, BASELINE = "original", "baseline"
NO_REVISION = Revision()
OFF = "none"
"""What `[bench] history` says where nothing is to be remembered."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """The baseline's own engine, to take turns with the candidates as the arm of that name.

    `engine` is None where that arm is there already: the engine has not changed since.
    """

    entry: Entry
    arm: str
    engine: Engine | None


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

    def check(self, limits: Mapping[str, float], conditions: Mapping[str, str]) -> None:
        """Says before anything is measured what would be said afterwards.

        Raises InputError for a limit under the noise floor and for a history that cannot be used.
        """
        gate.check_limits(limits, self.noise_floor(conditions))
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

    def noise_floor(self, conditions: Mapping[str, str]) -> Figure:
        """By how much two runs of one engine differ under these conditions, if that is known."""
        return noise_floor.stored(self.target, conditions)

    def rival(self, engines: Mapping[str, Engine]) -> Rival | None:
        """The baseline's engine where it can run again: still there, and under its own runtime.

        Two engines that take turns are held against one another far more closely than two
        measurements of two days. None where it is gone, or where the runtime has changed since:
        then what the runtime costs is part of the question, and both would have the new one.
        """
        if self.path is None or not self.pick:
            return None
        with open_history(self.path) as history:
            found = history.picked(self.pick, model=self.model, target=self.target)
            if isinstance(found, Unknown):
                return None
            entry = found[-1]
            runtime = history.measurement(entry.id).conditions.get("runtime", "")
        same = [arm for arm, engine in engines.items() if engine.sha256 == entry.engine]
        engine = engines[same[0]] if same else _engine_at(entry)
        if engine is None or runtime != _runtime_of(engine):
            return None
        if same:
            arm = next((arm for arm in same if arm != ORIGINAL), same[0])
            return Rival(entry=entry, arm=arm, engine=None)
        return Rival(entry=entry, arm=BASELINE, engine=engine)

    def record(self, measured: Sequence[Measurement], engines: Mapping[str, Engine]) -> None:
        """Adds a run; one that is there already is written anew. Raises as `open_history` does."""
        if self.path is not None:
            places = {arm: str(engine.path.resolve()) for arm, engine in engines.items()}
            with open_history(self.path) as history:
                history.record(
                    measured, model=self.model, target=self.target, revision=self.revision,
                    places=places,
                )  # fmt: skip

    def judge(self, measured: Sequence[Measurement], arm: str, decision: Decision) -> None:
        """Writes down what the gate said of one arm of a run."""
        if self.path is not None:
            with open_history(self.path) as history:
                history.judge(run_name(measured), arm, decision.verdict, decision.because)

    def regression(
        self, measured: Sequence[Measurement], arm: str, confidence: float,
        rival: Rival | None = None,
    ) -> Estimate:  # fmt: skip
        """The regression of one arm of a run against the baseline that the recipe asks for.

        Against the rival's arm where there is one, else against what is stored.
        """
        by_arm = {m.arm: m for m in measured}
        if rival is not None and rival.arm == arm:
            return Estimate(value=0.0, source=f"the engine is the same, {_named(rival.entry)}")
        if rival is not None:
            paired = paired_regression(by_arm[arm], by_arm[rival.arm], confidence)
            return replace(paired, source=f"{paired.source}, {_named(rival.entry)}")
        found = self._baseline(by_arm[arm], run_name(measured))
        if isinstance(found, Unknown):
            return Estimate(value=found)
        now, then = by_arm.get(ORIGINAL), found.original
        return stored_regression(
            by_arm[arm], found.measurement,
            originals=None if now is None or then is None else (now, then),
            noise_floor=self.noise_floor(by_arm[arm].conditions), source=_named(found.entry),
            confidence=confidence,
        )  # fmt: skip

    def _baseline(self, new: Measurement, run: str) -> Baseline | Unknown:
        if self.path is None or not self.pick:
            return Unknown("no baseline was asked for")
        with open_history(self.path) as history:
            return history.baseline(
                self.pick, new, model=self.model, target=self.target, not_run=run
            )


def remember(measured: Sequence[Measurement], engines: Sequence[Engine], named: str = "") -> None:
    """Adds measurements that no gate was asked about, each to the history of its own model.

    `named` is another file than the user's, or "none". Raises as `open_history` does.
    """
    if named == OFF:
        return
    with open_history(history_file(named)) as history:
        for measurement, engine in zip(measured, engines, strict=True):
            history.record(
                [measurement], model=engine.name, target=engine.target, revision=NO_REVISION,
                places={measurement.arm: str(engine.path.resolve())},
            )  # fmt: skip


def past_of(recipe: Recipe, target: str) -> Past:
    """What a recipe says of the history, for one target."""
    named = recipe.bench.history
    path = history_file(str(recipe.folder / Path(named).expanduser()) if named else "")
    return Past(
        path=None if named == OFF else path, model=recipe.name, target=target,
        pick=baseline_of(recipe), revision=revision_of(recipe.folder),
    )  # fmt: skip


def past_of_device(recipe: DeviceRecipe) -> Past:
    """The same for a device recipe: the history is the device's own, in its user's data folder."""
    told = recipe.judging.get("past", {})
    usual = LAST_PASSED if "max_regression" in recipe.judging["limits"] else ""
    return Past(
        path=None if told.get("history") == OFF else history_file(), model=recipe.name,
        target=recipe.target.name, pick=str(told.get("baseline", usual)),
        revision=revision_of(recipe.folder),
    )  # fmt: skip


def baseline_of(recipe: Recipe) -> str:
    """What a recipe takes for the baseline; empty where no limit needs one."""
    return "" if recipe.gate.max_regression is None else recipe.gate.baseline or LAST_PASSED


def _engine_at(entry: Entry) -> Engine | None:
    """The engine that was measured, where it still lies in its place and runs on this machine."""
    if not entry.place:
        return None
    try:
        engine = load_engine(Path(entry.place))
        require_fit(engine)
    except InputError:
        return None
    return engine if engine.sha256 == entry.engine else None


def _runtime_of(engine: Engine) -> str:
    return f"{engine.runtime} {runtime_module(engine.runtime).installed_version()}"


def _named(entry: Entry) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.taken_at))
    commit = f", commit {entry.revision.commit[:10]}" if entry.revision.commit else ""
    return f"against {entry.id} of the history ({entry.arm}, {when} UTC{commit})"
