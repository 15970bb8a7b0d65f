"""How sensitive a model is to the loss of each channel group, measured once and kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.compress.channels.criteria import score_groups
from edgekit.compress.channels.groups import groups_to_cut
from edgekit.compress.channels.sensitivity import (
    SHARES,
    Sensitivity,
    measure_sensitivity,
    sensitivity_from_json,
)
from edgekit.data.batches import Batches, load_batches
from edgekit.data.metrics import Metric, load_metric
from edgekit.engines import onnxruntime as reference_runtime
from edgekit.models.model import Model, digest
from edgekit.models.simplify import clean
from edgekit.pipeline.cache import Cache, Step, key_of, read_json, versions, write_json
from edgekit.pipeline.origin import Origin, open_origin
from edgekit.pipeline.result import OnEvent
from edgekit.pipeline.workshop import OnFraction, Workshop
from edgekit.recipe import load_recipe

SENSITIVITY_FILE = "sensitivity.json"

_BATCH = 32
_SCORING = 0.2  # of the time, where a criterion looks at data


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions:
    """Which units go first (a criterion), and how closely to look.

    `tolerance` is the standard error of a damage, as a share of it, at which no more samples are
    run for it.
    """

    criterion: str = "l2"
    shares: tuple[float, ...] = SHARES
    samples: int = 256
    tolerance: float = 0.1
    metric: Metric | None = None


@dataclass(frozen=True, kw_only=True)
class SensitivityRequest:
    """A model, its data, and what of it to ask.

    The recipe's preprocessing is used, if there is one.
    `metric` is the name of one, to be measured beside the damage. `cache` None is the user's.
    """

    origin: Origin
    data: str
    recipe: Path | None = None
    metric: str = ""
    cache: Path | None = None
    options: SensitivityOptions = field(default_factory=SensitivityOptions)


def sensitivity_of(
    request: SensitivityRequest, *, on_event: OnEvent = lambda event: None
) -> Sensitivity:
    """The Sensitivity of a model on its data; from the cache where it is known.

    Raises InputError for everything that is wrong with the model or the data, and for a model no
    channel of which can be removed.
    """
    recipe = load_recipe(request.recipe) if request.recipe is not None else None
    preprocessing = recipe.preprocessing if recipe is not None else None
    model = clean(open_origin(request.origin, preprocessing=preprocessing).model)
    batches = load_batches(
        request.data, folder=Path(), inputs=model.inputs, preprocessing=model.preprocessing,
        batch_size=_BATCH, role="sensitivity",
    )  # fmt: skip
    metric = load_metric(request.metric, Path()) if request.metric else None
    options = SensitivityOptions(
        criterion=request.options.criterion, shares=request.options.shares,
        samples=request.options.samples, tolerance=request.options.tolerance, metric=metric,
    )  # fmt: skip
    workshop = Workshop(cache=Cache(request.cache or cache_folder()), on_event=on_event)
    step = sensitivity_step(
        model, digest(model), batches, options, workshop.progress_of("sensitivity")
    )
    workshop.do(step, describe=describe_sensitivity)
    return load_sensitivity(workshop.cache.entry(step))


def sensitivity_step(
    model: Model, key: str, batches: Batches, options: SensitivityOptions, on_fraction: OnFraction
) -> Step:
    """The step that measures it, taken up again after a kill. `key` stands for the model."""

    def make(folder: Path, partial: Path) -> None:
        found = _measured(model, batches, options, partial / "groups.json", on_fraction)
        write_json(folder / SENSITIVITY_FILE, found.to_json())

    made = key_of(
        "sensitivity", source=key, data=batches.digest, criterion=options.criterion,
        how=[list(options.shares), options.samples, options.tolerance],
        metric=options.metric.digest if options.metric is not None else "",
        versions=versions(["onnxruntime", "torch"]),
    )  # fmt: skip
    return Step(name="sensitivity", key=made, make=make)


def load_sensitivity(folder: Path) -> Sensitivity:
    """What the step left in its folder."""
    return sensitivity_from_json(read_json(folder / SENSITIVITY_FILE))


def describe_sensitivity(folder: Path) -> str:
    """How many groups were looked at, in a line."""
    found = load_sensitivity(folder)
    return f"{len(found.groups)} groups, at most {found.samples} samples each"


def cache_folder() -> Path:
    """Where sensitivities of all models lie: `edgekit/sensitivity` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "edgekit" / "sensitivity"


def _measured(
    model: Model, batches: Batches, options: SensitivityOptions, checkpoint: Path,
    on_fraction: OnFraction,
) -> Sensitivity:  # fmt: skip
    groups = groups_to_cut(model)
    scores = score_groups(
        options.criterion, model, groups.groups, batches=batches,
        on_fraction=lambda share: on_fraction(_SCORING * share, options.criterion),
    )  # fmt: skip
    return measure_sensitivity(
        model, groups.groups, scores, batches, open_model=reference_runtime.open_model,
        shares=options.shares, samples=options.samples, tolerance=options.tolerance,
        metric=options.metric, checkpoint=checkpoint,
        on_fraction=lambda share: on_fraction(_SCORING + (1 - _SCORING) * share, ""),
    )  # fmt: skip
