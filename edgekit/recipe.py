"""`edgekit.toml`: what a user asks for, typed and strict, with overrides for single devices."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError

from edgekit import documents
from edgekit.errors import InputError
from edgekit.recipe_sections import (
    OVERRIDABLE,
    BenchSection,
    BuildSection,
    ChannelsSection,
    CompressSection,
    DataSection,
    EngineSection,
    EvaluateSection,
    GateSection,
    ModelSection,
    Override,
    PreprocessingSection,
    QuantizeSection,
    RecoverSection,
    Section,
)
from edgekit.recipe_targets import (
    from_folder,
    full_name,
    names_above,
    own_boards,
    table_at,
    unknown_targets,
)
from edgekit.targets import Target, family_names, target_names
from edgekit.values import Preprocessing

__all__ = [
    "ChannelsSection", "PreprocessingSection", "QuantizeSection", "Recipe", "RecoverSection",
    "for_target", "load_recipe", "parse_recipe", "resolved", "with_engine",
]  # fmt: skip


class Recipe(Section):
    """A whole recipe. `folder` is where it lies: its paths are relative to that."""

    model: ModelSection
    data: DataSection
    evaluate: EvaluateSection = EvaluateSection()
    compress: CompressSection = CompressSection()
    quantize: QuantizeSection = QuantizeSection()
    engine: EngineSection = EngineSection()
    gate: GateSection = GateSection()
    bench: BenchSection = BenchSection()
    build: BuildSection = BuildSection()
    target: dict[str, Override] = Field(default_factory=dict)
    _folder: Path = Path()
    _document: dict[str, Any] = PrivateAttr(default_factory=dict)
    _boards: dict[str, Target] = PrivateAttr(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The recipe's folder."""
        return self._folder

    @property
    def targets(self) -> tuple[str, ...]:
        """What `edgekit build` makes: names, and files as seen from where the caller stands."""
        return tuple(from_folder(self._folder, name) for name in self.build.targets)

    @property
    def name(self) -> str:
        """What the model is called."""
        factory = (self.model.factory or "").rpartition(":")[2]
        own = factory or Path(self.model.path or "").stem
        return self.model.name or own

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing as a value, None where the recipe has none."""
        section = self.data.preprocessing
        if section is None:
            return None
        size = section.size
        return Preprocessing(
            scale=section.scale,
            mean=section.mean,
            std=section.std,
            size=None if size is None else (size[0], size[1]),
            resize=section.resize,
            crop_share=section.crop_share,
            fill=section.fill,
            interpolation=section.interpolation,
            order=section.order,
            layout=section.layout,
        )


def load_recipe(path: Path) -> Recipe:
    """The recipe in a file, its overrides checked too.

    Raises InputError that lists every fault at once, each with its line of sight.
    """
    return parse_recipe(documents.read_toml(path, what="recipe"), path)


def parse_recipe(document: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe in a document that was read from `path`. Raises as `load_recipe` does."""
    folder = path.parent
    boards, found = own_boards(document, folder)
    known = (*target_names(folder), *family_names(), *boards)
    found += [*_faults_of(document), *unknown_targets(document, known, folder)]
    found += _override_faults(document, boards)
    if found:
        raise InputError(
            "this recipe has faults" if len(found) > 1 else "this recipe has a fault",
            where=str(path), got="\n".join(found),
            hint="`edgekit build --dry-run` prints what a recipe comes to.",
        )  # fmt: skip
    return _recipe(copy.deepcopy(dict(document)), folder, boards)


def for_target(recipe: Recipe, target: str | Target) -> Recipe:
    """The recipe as it is for one device: its family's overrides, then its own on top.

    Those of a device with another JetPack (`NAME@JETPACK`) come after the device's. What comes back
    has no overrides any more. A board's own file, which the recipe does not list, is given as the
    Target that it is.
    """
    name = target if isinstance(target, str) else target.name
    overrides = table_at(recipe._document, "target")
    above = names_above(name, target, recipe._boards)
    same = [
        other for other in overrides if "@" in other and full_name(other, recipe.folder) == name
    ]
    layers = [table_at(overrides, layer) for layer in dict.fromkeys((*above, name, *same))]
    return _recipe(_overridden(recipe._document, *layers), recipe.folder, recipe._boards)


def with_engine(recipe: Recipe, options: Mapping[str, object]) -> Recipe:
    """The recipe with these keys of [engine], for every device: they go before its overrides.

    Raises InputError where they have faults.
    """
    if not options:
        return recipe
    document = dict(recipe._document)
    document["engine"] = {**table_at(document, "engine"), **options}
    overrides = {
        name: {
            **override,
            "engine": {
                key: value
                for key, value in table_at(override, "engine").items()
                if key not in options
            },
        }
        for name, override in table_at(document, "target").items()
    }
    if overrides:
        document["target"] = overrides
    if found := _faults_of(document):
        raise InputError("these options have a fault", got="\n".join(found))
    return _recipe(document, recipe.folder, recipe._boards)


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with its defaults filled in, paths and overrides as written, JSON-ready."""
    shown = recipe.model_dump(mode="json", exclude={"target"})
    named = {key: value for key, value in shown["model"].items() if value is not None}
    shown["model"] = {**named, "name": recipe.name}
    if recipe.target:
        shown["target"] = {
            name: override.model_dump(mode="json", exclude_unset=True)
            for name, override in recipe.target.items()
        }
    return shown


def _recipe(document: dict[str, Any], folder: Path, boards: dict[str, Target]) -> Recipe:
    """The Recipe of a document without faults."""
    recipe = Recipe.model_validate(document)
    recipe._folder, recipe._document, recipe._boards = folder, document, boards
    return recipe


def _faults_of(document: Mapping[str, Any]) -> list[str]:
    try:
        Recipe.model_validate(dict(document))
    except ValidationError as error:
        return documents.faults(error, Recipe)
    return []


def _override_faults(document: Mapping[str, Any], boards: Mapping[str, Target]) -> list[str]:
    """What is wrong with a device's recipe and is not so without its overrides."""
    overrides = table_at(document, "target")
    plain = _faults_of(_overridden(document))
    found = []
    for name in overrides:
        own = table_at(overrides, name)
        faults = _new_faults(document, own, known=plain)
        above = [table_at(overrides, other) for other in names_above(name, name, boards)]
        if any(above):
            known = [*plain, *faults]
            for other in above:
                known += _new_faults(document, other, known=plain)
            faults += _new_faults(_overridden(document, *above), own, known=known)
        found += [f"target.{name}.{fault}" for fault in faults]
    return found


def _new_faults(
    document: Mapping[str, Any], override: Mapping[str, Any], *, known: list[str]
) -> list[str]:
    """The faults that come with the override, and those that it repeats."""
    repeated = tuple(f"{place}: " for place in _places(override))
    said = set()
    for fault in _faults_of(_overridden(document, override)):
        if fault not in known or fault.startswith(repeated):
            said.add(fault)
    return sorted(said)


def _overridden(document: Mapping[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """The document without its overrides, and the sections of each layer merged into it."""
    merged = {key: value for key, value in document.items() if key != "target"}
    for layer in layers:
        merged = documents.merged(merged, {name: table_at(layer, name) for name in OVERRIDABLE
                                      if table_at(layer, name)})  # fmt: skip
    return merged


def _places(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The line of sight of every value in a table."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _places(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"
