"""The order of the steps: from a recipe to engines, numbers and verdicts for each target."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit import files
from edgekit.data.batches import Batches, load_batches, refuse_shared_samples
from edgekit.data.metrics import Metric, load_metric
from edgekit.engines import onnxruntime as cpu
from edgekit.errors import InputError
from edgekit.models.model import Model, digest
from edgekit.models.source import load
from edgekit.pipeline import steps
from edgekit.pipeline.cache import Cache, Step, key_of, write_json
from edgekit.pipeline.device import Candidate, Context, finish_target
from edgekit.pipeline.result import BuildResult, OnEvent, StepEvent, StepRecord, TargetResult
from edgekit.quantize.dialects import dialect_named
from edgekit.recipe import Recipe, for_target, load_recipe, resolved
from edgekit.targets import Target, preferred_multiple, resolve_target

DEFAULT_MULTIPLE = 8


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What was asked for: a recipe, targets (the recipe's own where empty) and a place."""

    recipe: Path
    targets: tuple[str, ...] = ()
    out: Path | None = None
    rebench: bool = False
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What a build would do: the recipe with its defaults, and each step, made or not."""

    recipe: Mapping[str, object]
    steps: tuple[tuple[str, str, bool], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "recipe": dict(self.recipe),
            "steps": [
                {"step": step, "target": target, "cached": cached}
                for step, target, cached in self.steps
            ],
            "notes": list(self.notes),
        }
