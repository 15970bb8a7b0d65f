"""One step alone, on files that a user names: what the verbs beside `build` call."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit import files
from edgekit.data.batches import load_batches
from edgekit.data.metrics import load_metric
from edgekit.engines import onnxruntime
from edgekit.engines.base import runtime_module
from edgekit.engines.fit import require_fit
from edgekit.engines.manifest import MANIFEST_FILE, load_engine
from edgekit.errors import InputError
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.pipeline.draft import Wishes, draft_recipe
from edgekit.pipeline.origin import Origin, open_origin
from edgekit.recipe import load_recipe
from edgekit.values import (
    Preprocessing,
    Session,
    TensorSpec,
)  # fmt: skip
from edgekit.verify import outputs_of, to_json, verify

_BATCH = 100


def draft_file(origin: Origin, wishes: Wishes, *, out: Path, force: bool) -> dict[str, Any]:
    """Writes a first recipe for a model. Raises InputError where there is one, unless forced."""
    if out.exists() and not force:
        raise InputError(
            "there is a recipe already, and it may be yours", where=str(out),
            hint="Name another file with --out, or give --force.",
        )  # fmt: skip
    opened = open_origin(origin)
    files.write_text(out, draft_recipe(opened, _beside(origin, out), wishes))
    found: dict[str, Any] = {"recipe": str(out), "model": opened.model.name}
    if opened.difference is not None:
        found["largest difference from the source"] = opened.difference
    return {**found, "notes": list(opened.notes)} if opened.notes else found


def _beside(origin: Origin, recipe: Path) -> Origin:
    """The origin as a recipe in another folder has to name it."""
    folder = recipe.resolve().parent

    def moved(place: str) -> str:
        path, colon, name = place.rpartition(":") if origin.is_factory else (place, "", "")
        if colon and not path.endswith(".py"):
            return place  # a package is found wherever it is
        return os.path.relpath((origin.folder / path).resolve(), folder) + colon + name

    weights, plan = (
        given and os.path.relpath((origin.folder / given).resolve(), folder)
        for given in (origin.weights, origin.plan)
    )
    return replace(origin, place=moved(origin.place), weights=weights, plan=plan)


@dataclass(frozen=True, kw_only=True)
class _Side:
    """A model or an engine to compare: what goes in and out, and how to open it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing | None
    open: Callable[[], Session]


def _side(origin: Origin, preprocessing: Preprocessing | None) -> _Side:
    if (origin.path / MANIFEST_FILE).is_file():
        engine = load_engine(origin.path)
        require_fit(engine)
        runtime = runtime_module(engine.runtime)
        return _Side(
            inputs=engine.inputs, outputs=engine.outputs, open=lambda: runtime.open(engine),
            preprocessing=preprocessing or preprocessing_beside(origin.path),
        )  # fmt: skip
    model = clean(open_origin(origin, preprocessing=preprocessing).model)
    return _Side(
        inputs=model.inputs, outputs=model.outputs, preprocessing=model.preprocessing,
        open=lambda: onnxruntime.open_model(model),
    )  # fmt: skip


def verify_files(
    reference: Origin, candidate: Origin, *, data: str, recipe: Path | None, metric: str | None
) -> dict[str, Any]:
    """Compares two models, or engines by their folders, on the same samples.

    Preprocessing and metric come from the recipe, if there is one; else from the reference.
    """
    wanted = load_recipe(recipe) if recipe is not None else None
    preprocessing = wanted.preprocessing if wanted is not None else None
    sides = [_side(origin, preprocessing) for origin in (reference, candidate)]
    first, second = ([*side.inputs, *side.outputs] for side in sides)
    if [_comparable(spec) for spec in first] != [_comparable(spec) for spec in second]:
        raise InputError(
            "the two models do not have the same inputs and outputs",
            got=", ".join(map(str, second)), wanted=", ".join(map(str, first)),
        )  # fmt: skip
    batches = load_batches(
        data, folder=Path(), inputs=sides[0].inputs, preprocessing=sides[0].preprocessing,
        batch_size=_BATCH, role="evaluation",
    )  # fmt: skip
    named = metric or (wanted.evaluate.metric if wanted is not None else "")
    score = load_metric(named or ("top1" if batches.labels is not None else "fidelity"), Path())
    found = []
    for side in sides:
        with side.open() as session:
            found.append(outputs_of(session, batches))
    (expected, labels), (outputs, _) = found
    return to_json(verify(expected, outputs, labels, score))


def _comparable(spec: TensorSpec) -> tuple[object, ...]:
    """Name, type and sizes; how a dynamic size is called does not matter."""
    return spec.name, spec.dtype, tuple(s if isinstance(s, int) else None for s in spec.shape)


def preprocessing_beside(folder: Path) -> Any:
    """What the model beside an engine says of its pixels; None where there is no such model."""
    place = (folder if folder.is_dir() else folder.parent).parent / "model.onnx"
    return load(place).preprocessing if place.is_file() else None
