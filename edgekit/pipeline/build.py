"""The order of the steps: from a recipe to engines, numbers and a verdict for each target."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgekit import files
from edgekit.data.batches import load_batches, refuse_shared_samples
from edgekit.data.metrics import load_metric
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.batch import fixed_batch, free_batch
from edgekit.models.model import Model, digest
from edgekit.models.opset import raised
from edgekit.models.simplify import clean
from edgekit.pipeline import steps, verification
from edgekit.pipeline.cache import Cache, key_of, write_json
from edgekit.pipeline.candidates import Project, wanted_precisions
from edgekit.pipeline.chain import make_chain, multiple_of
from edgekit.pipeline.device import finish_target
from edgekit.pipeline.origin import (
    Origin,
    describe_export,
    export_step,
    open_exported,
    open_origin,
)  # fmt: skip
from edgekit.pipeline.result import BuildResult, OnEvent, Refusal, StepEvent, TargetResult
from edgekit.pipeline.steps import Source, outputs_of_model
from edgekit.pipeline.workshop import Workshop
from edgekit.recipe import Recipe, for_target, load_recipe, resolved, with_engine
from edgekit.targets import ResolvedTarget, resolve_target, target_names

LEAST_OPSET = 13  # the first in which a scale for each channel can be written
SUMMARY_FILE = "summary.json"
ALL_TARGETS = "all"


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What was asked for: a recipe, targets (the recipe's own where empty) and a place.

    The target ALL_TARGETS is every one that there is a profile of, and those of the recipe.
    `engine` are keys of [engine] that go before what the recipe says, for every target.
    """

    recipe: Path
    targets: tuple[str, ...] = ()
    out: Path | None = None
    rebench: bool = False
    strict: bool = False
    trust_pickle: bool = False
    recipe_only: bool = False
    engine: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What a build would do: the recipe with its defaults, and each step, made already or not."""

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


def build(request: BuildRequest, *, on_event: OnEvent) -> BuildResult:
    """Makes everything that the request asks for, and reports on it.

    What is cached is not made again; a build that was killed goes on where it was. Of several
    targets one that refuses, or whose runtime is not here, does not stop the others. Raises
    EdgekitError for bad input, for a refusal where there is one target or all say the same, and for
    a full disk.
    """
    begun = time.monotonic()
    workshop, project, targets, recipe = _project(request, on_event)
    with _alone(project.place, on_event):
        results, refused = _finished(request, workshop, project, targets, recipe)
        summary = project.place / SUMMARY_FILE
        built = BuildResult(
            model=project.model.name,
            targets=tuple(results),
            steps=tuple(workshop.records),
            seconds=time.monotonic() - begun,
            summary=str(summary),
            strict=request.strict,
            refused=refused,
            all_targets=ALL_TARGETS in request.targets,
        )
        write_json(summary, built.to_json())
    return built


def plan(request: BuildRequest) -> BuildPlan:
    """What `build` would do. Nothing is made or written. Raises as `build` does for bad input."""
    workshop, project, targets, recipe = _project(request, lambda event: None, listing=True)
    _, refused = _finished(request, workshop, project, targets, recipe)
    return BuildPlan(
        recipe=resolved(recipe),
        steps=tuple((r.step, r.target, r.cached) for r in workshop.records),
        notes=(
            *(target.note for target in targets if target.note),
            *(f"{refusal.target} is refused: {refusal.error.what}" for refusal in refused),
        ),
    )


def _finished(
    request: BuildRequest, workshop: Workshop, project: Project, targets: list[ResolvedTarget],
    recipe: Recipe,
) -> tuple[list[TargetResult], tuple[Refusal, ...]]:  # fmt: skip
    """What was made for each target, one after the other, and the targets that refuse.

    Steps that two targets share have one key, and are made once.
    """
    refused = {one.target: one for one in _refusals(targets, recipe)}
    taking = [found for found in targets if found.target.name not in refused]
    everything = [found.target for found in taking]
    results: list[TargetResult] = []
    if taking:
        _judge_original(workshop, project)
    for found in taking:
        target = found.target
        wanted = for_target(recipe, target)
        try:
            multiple = multiple_of(everything, recipe, wanted)
            chain = make_chain(workshop, project, target, wanted, multiple)
            result = finish_target(
                workshop, project, chain, found, rebench=request.rebench,
                recipe_only=request.recipe_only,
            )  # fmt: skip
        except (InputError, MissingPackageError) as error:
            refused[target.name] = Refusal(target=target.name, title=target.title, error=error)
            _raise_if_one(targets, list(refused.values()))
        else:
            if result is not None:
                results.append(result)
    return results, tuple(refused.values())


def _refusals(targets: list[ResolvedTarget], recipe: Recipe) -> list[Refusal]:
    """The targets that have no hardware for what the recipe asks of them."""
    found = []
    for resolved_target in targets:
        target = resolved_target.target
        try:
            wanted_precisions(target, for_target(recipe, target))
        except InputError as error:
            found.append(Refusal(target=target.name, title=target.title, error=error))
    return found


def _raise_if_one(targets: list[ResolvedTarget], refused: list[Refusal]) -> None:
    """Raises the error of all targets where they have the same; else each is told as its own."""
    said = {str(refusal.error) for refusal in refused}
    if len(refused) == len(targets) and len(said) == 1:
        raise refused[0].error


def _project(
    request: BuildRequest, on_event: OnEvent, *, listing: bool = False
) -> tuple[Workshop, Project, list[ResolvedTarget], Recipe]:
    """Everything that is read before the first step: all bad input is found here.

    `listing`: nothing is written, an exported model is not kept.
    """
    recipe = with_engine(load_recipe(request.recipe), request.engine)
    targets = _targets(request, recipe)
    _raise_if_one(targets, _refusals(targets, recipe))
    folder = recipe.folder
    out = request.out if request.out is not None else folder / recipe.build.out
    cache = Cache(out / ".cache")
    origin = Origin(
        place=recipe.model.path or recipe.model.factory or "", folder=folder,
        weights=recipe.model.weights or "", plan=recipe.model.plan or "",
        inputs=recipe.model.inputs or {},
        trust_pickle=request.trust_pickle,
    )  # fmt: skip
    workshop = Workshop(cache=cache, on_event=on_event, listing=listing)
    model, path = _model(workshop, origin, recipe)
    inputs = model.inputs
    loaded = {
        role: load_batches(
            source, folder=folder, inputs=inputs, preprocessing=recipe.preprocessing,
            batch_size=recipe.evaluate.batch, role=role,
        )
        for role, source in (
            ("calibration", recipe.data.calibration), ("evaluation", recipe.data.evaluation),
        )
    }  # fmt: skip
    refuse_shared_samples(loaded["calibration"], loaded["evaluation"])
    metric = load_metric(recipe.evaluate.metric, folder)
    return (
        workshop,
        Project(
            model=model,
            original=_original(model, path),
            calibration=loaded["calibration"],
            evaluation=loaded["evaluation"],
            metric=metric,
            cache=cache,
            place=out / model.name,
        ),
        targets,
        recipe,
    )


def _model(workshop: Workshop, origin: Origin, recipe: Recipe) -> tuple[Model, Path]:
    """The original, cleaned, and its ONNX file; what torch exports is kept there."""
    name, preprocessing = recipe.name, recipe.preprocessing
    step = export_step(origin) if origin.is_exported else None
    if step is not None:
        workshop.do(step, describe=describe_export)
    if step is None or workshop.listing:
        opened = open_origin(origin, name=name, preprocessing=preprocessing)
    else:
        place = workshop.cache.entry(step)
        opened = open_exported(place, name=name, preprocessing=preprocessing)
    model = clean(opened.model)
    if model.opset < LEAST_OPSET:
        model = raised(model, LEAST_OPSET)
    size = fixed_batch(model)
    if size:
        model = free_batch(model, run=outputs_of_model)
        said = f"the batch was fixed at {size}; it is free now, checked on samples side by side"
        workshop.on_event(StepEvent(step="load", target="", state="done", said=said))
        workshop.note("load", "", cached=False, seconds=0.0, said=said)
    return model, opened.path


def _targets(request: BuildRequest, recipe: Recipe) -> list[ResolvedTarget]:
    names = request.targets or recipe.targets
    if ALL_TARGETS in names:
        named = [name for name in names if name != ALL_TARGETS]
        names = (*named, *recipe.targets, *target_names(recipe.folder))
    if not names:
        raise InputError(
            "there is no target to build for", where=str(request.recipe),
            hint='Name one with --target, or in the recipe: [build] targets = ["cpu"].',
        )  # fmt: skip
    found: dict[str, ResolvedTarget] = {}
    for name in names:
        target = resolve_target(name, beside=recipe.folder)
        found.setdefault(target.target.name, target)
    return list(found.values())


def _original(model: Model, path: Path) -> Source:
    """The Model as it was loaded; its key is of its content, wherever the file lies."""
    return Source(key=key_of("original", digest=digest(model)), path=path, load=lambda: model)


@contextmanager
def _alone(place: Path, on_event: OnEvent) -> Iterator[None]:
    """Two builds of one model into one place take turns."""

    def waiting() -> None:
        on_event(StepEvent(step="build", target="", state="waiting"))

    with files.locked(place / ".lock", on_wait=waiting):
        yield


def _judge_original(workshop: Workshop, project: Project) -> None:
    """The original's own metric, first of all: a metric that fails, fails before any long step."""
    step = verification.outputs_step(
        project.original, project.evaluation, workshop.progress_of("outputs"), emulated=False
    )
    workshop.do(step, describe=steps.describe_said)
    own = verification.verify_step(project.cache, step, step, project.evaluation, project.metric)
    workshop.do(
        own, describe=lambda folder: f"the original: {verification.describe_metric(folder)}"
    )
