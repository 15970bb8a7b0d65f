"""What a build tells while it runs, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.gate import check_to_json
from edgekit.pipeline.blame import Stage, stages_to_json
from edgekit.values import Check, Figure, Verdict, figure_from_json, figure_to_json


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One word of a running build: a step began, came further, ended, or was there already.

    `fraction` is between 0 and 1 and only with state "progress".
    """

    step: str
    target: str
    state: str  # "started", "progress", "done", "cached", "waiting"
    fraction: float = 0.0
    said: str = ""


OnEvent = Callable[[StepEvent], None]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A step that a build went through. `target` is empty for one that all targets share."""

    step: str
    target: str
    cached: bool
    seconds: float
    said: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One side of a target's table: the original, or what was built of it.

    `memory_bytes` is what `memory_is` says: a process's peak, or a plan's weights and activations.
    """

    what: str
    metric: Figure
    macs: Figure
    parameters: Figure
    file_bytes: Figure
    fps: Figure
    p50_ms: Figure
    p99_ms: Figure
    memory_bytes: Figure
    memory_is: str

    def to_json(self) -> dict[str, object]:
        """JSON-ready; an unknown figure is `{"unknown": reason}`."""
        figures = {
            name: figure_to_json(getattr(self, name))
            for name in (
                "metric", "macs", "parameters", "file_bytes", "fps", "p50_ms", "p99_ms",
                "memory_bytes",
            )
        }  # fmt: skip
        return {"what": self.what, **figures, "memory_is": self.memory_is}


def facts_from_json(stored: Mapping[str, Any]) -> Facts:
    """What `Facts.to_json` made."""
    words = {name: str(stored[name]) for name in ("what", "memory_is")}
    figures = {n: figure_from_json(value) for n, value in stored.items() if n not in words}
    return Facts(**words, **figures)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """What a build made for one target. `notes` say why things are as they are.

    `blame` has for each precision that was tried what every step on the way to it lost.
    """

    target: str
    title: str
    metric_name: str
    precision: str
    before: Facts
    after: Facts
    verdict: Verdict
    checks: tuple[Check, ...]
    because: str
    notes: tuple[str, ...]
    folder: str
    files: tuple[str, ...]
    measured_age_s: Figure
    arms: tuple[Facts, ...] = ()
    blame: Mapping[str, tuple[Stage, ...]] = field(default_factory=dict)

    @property
    def made(self) -> str:
        """What there is now: an engine, or a recipe by which the device makes its own."""
        return "device recipe" if "device" in self.files else "engine"

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "target": self.target,
            "title": self.title,
            "made": self.made,
            "metric": self.metric_name,
            "precision": self.precision,
            "verdict": self.verdict.value,
            "because": self.because,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "arms": [arm.to_json() for arm in self.arms],
            "checks": [check_to_json(check) for check in self.checks],
            "blame": {
                precision: stages_to_json(stages, self.metric_name)
                for precision, stages in self.blame.items()
            },
            "notes": list(self.notes),
            "folder": self.folder,
            "files": list(self.files),
            "measured_age_s": figure_to_json(self.measured_age_s),
        }


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A target that took no part in a build of several, and the error that says why."""

    target: str
    title: str
    error: EdgekitError

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        error = self.error
        return {
            "target": self.target, "title": self.title, "what": error.what, "where": error.where,
            "got": error.got, "wanted": error.wanted, "hint": error.hint,
            "exit_code": error.exit_code,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """All targets of one build, and the steps that it went through.

    `all_targets`: nobody named the targets one by one.
    """

    model: str
    targets: tuple[TargetResult, ...]
    steps: tuple[StepRecord, ...]
    seconds: float
    summary: str
    strict: bool = False
    reports: Mapping[str, object] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    all_targets: bool = False

    @property
    def up_to_date(self) -> bool:
        """Whether nothing had to be done."""
        return all(step.cached for step in self.steps)

    @property
    def exit_code(self) -> int:
        """The worst of the targets': 1, then 4, then a refusal's 2 or 5, then 3.

        A pending one counts with `strict` only. So does a refusal where all targets were asked for
        and some of them got what they wanted: who names a target is owed it.
        """
        codes = {
            target.verdict.exit_code
            for target in self.targets
            if self.strict or target.verdict is not Verdict.PENDING
        }
        if self.strict or not self.all_targets or not self.targets:
            codes |= {refusal.error.exit_code for refusal in self.refused}
        return next((code for code in (1, 4, 2, 5, 3) if code in codes), 0)

    def to_json(self) -> dict[str, object]:
        """JSON-ready: what `summary.json` holds."""
        return {
            "format": 1,
            "model": self.model,
            "exit_code": self.exit_code,
            "up_to_date": self.up_to_date,
            "seconds": round(self.seconds, 3),
            "summary": self.summary,
            "targets": [target.to_json() for target in self.targets],
            "refused": [refusal.to_json() for refusal in self.refused],
            "steps": [
                {
                    "step": s.step,
                    "target": s.target,
                    "cached": s.cached,
                    "seconds": round(s.seconds, 3),
                    "said": s.said,
                }
                for s in self.steps
            ],
            "reports": dict(self.reports),
        }
