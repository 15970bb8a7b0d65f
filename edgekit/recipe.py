"""`edgekit.toml`: what a user asks for, typed and strict, with overrides for single devices."""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from edgekit import documents
from edgekit.errors import InputError
from edgekit.targets import Target, family_names, load_target, target_names
from edgekit.values import Preprocessing

OVERRIDABLE = ("compress", "quantize", "engine", "gate", "bench")

_METRICS = ("top1", "fidelity")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"{value:g} is not between 0 and 1")
    return value


def _quoted(value: str) -> str:
    """The text between double quotes, on one line."""
    return json.dumps(value, ensure_ascii=False)


def _text(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("is empty" if not value else "holds a NUL character")
    return value


def _file_name(value: str) -> str:
    if value and not _FILE_NAME.fullmatch(value):
        raise ValueError(f"{value!r} names a folder too: want letters, digits, _, - and .")
    return value


def _metric(name: str) -> str:
    place, _, function = name.rpartition(":")
    if name in _METRICS or (place and function.isidentifier()):
        return name
    near = difflib.get_close_matches(name, _METRICS, 1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    raise ValueError(
        f"{_quoted(name)} is not one of {', '.join(_METRICS)} or package.module:function{hint}"
    )


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f'wanted a duration such as "12h", got {value!r}')
    found = _DURATION.fullmatch(value)
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f'{_quoted(value)} is no duration such as "30m", "12h" or "1d"')
    return seconds


Text = Annotated[str, AfterValidator(_text)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[Number, AfterValidator(_share)]
Positive = Annotated[Number, Field(gt=0)]
Whole = Annotated[int, Field(ge=1, le=2**31 - 1)]
Duration = Annotated[float, BeforeValidator(_seconds)]
Shape = Annotated[tuple[Whole, ...], Field(strict=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class ModelSection(_Section):
    """The model's file, relative to the recipe, and what to call it (the file's stem)."""

    path: Text
    name: Annotated[str, AfterValidator(_file_name)] = ""


class PreprocessingSection(_Section):
    """uint8 pixels become (pixel * scale - mean) / std: one number, or one a channel."""

    scale: Positive = 1 / 255
    mean: Annotated[tuple[Number, ...], Field(strict=False, min_length=1)] = (0.0,)
    std: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] = (1.0,)

    @model_validator(mode="after")
    def _same_length(self) -> PreprocessingSection:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std has {len(self.std)}; want as many"
            )
        return self


class DataSection(_Section):
    """Where the samples are: an .npz beside the recipe, or `package.module:function`."""

    calibration: Text
    evaluation: Text
    preprocessing: PreprocessingSection | None = None


class EvaluateSection(_Section):
    """How well a model does, and how many samples are run at a time."""

    metric: Annotated[str, AfterValidator(_metric)] = "top1"
    batch: Whole = 100


class ChannelsSection(_Section):
    """Structured channel removal down to a share of the MACs."""

    macs: Share
    criterion: Literal["l2"] = "l2"


class RecoverSection(_Section):
    """Distillation from the original on the calibration samples."""

    epochs: Whole = 6
    learning_rate: Positive = 1e-3
    batch: Whole = 64
    temperature: Positive = 4.0
    mirror: bool = True
    seed: int = Field(default=0, ge=0, lt=2**63)


class CompressSection(_Section):
    """The steps before quantization; a table that is absent is a step that is not done."""

    channels: ChannelsSection | None = None
    recover: RecoverSection | None = None


class QuantizeSection(_Section):
    """How ranges are observed and chosen. `samples` absent: all calibration samples."""

    ranges: Literal["minmax", "percentile"] = "percentile"
    percentile: Annotated[Number, Field(gt=50, le=100)] = 99.999
    samples: Whole | None = None


class BatchRange(_Section):
    """The smallest, the expected and the largest batch."""

    min: Whole = 1
    opt: Whole = 1
    max: Whole = 1

    @model_validator(mode="after")
    def _in_order(self) -> BatchRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"min {self.min}, opt {self.opt}, max {self.max} are not in order")
        return self


class ShapeRange(_Section):
    """The smallest, the expected and the largest shape of one input."""

    min: Shape
    opt: Shape
    max: Shape

    @model_validator(mode="after")
    def _in_order(self) -> ShapeRange:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max do not have as many axes")
        if not all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError("min, opt and max are not in order")
        return self


class EngineSection(_Section):
    """How an engine is built. `auto`: INT8 where the target has it; on a target that is measured
    here, the fastest that keeps the accuracy which the gate asks for."""

    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    batch: BatchRange = BatchRange()
    shapes: dict[str, ShapeRange] = Field(default_factory=dict)
    workspace_mb: Whole | None = None
    dla: int | None = Field(default=None, ge=0)
    streams: Whole = 1
    threads: int = Field(default=0, ge=0, le=1024)


class GateSection(_Section):
    """Limits of a release; one that is absent is not checked. Shares are between 0 and 1."""

    min_fps: Positive | None = None
    min_speedup: Positive | None = None
    max_p99_ms: Positive | None = None
    max_memory_mb: Positive | None = None
    max_size_mb: Positive | None = None
    min_top1: Share | None = None
    min_metric: Number | None = None
    max_drop: Annotated[Number, Field(ge=0)] | None = None
    min_agreement: Share | None = None
    min_sqnr_db: Number | None = None

    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class BenchSection(_Section):
    """How long to measure each arm, in how many turns; how old a measurement may be used."""

    seconds: Positive = 6.0
    rounds: Annotated[int, Field(ge=2)] = 12
    warmup_seconds: Annotated[Number, Field(ge=0)] = 0.5
    batch: Whole = 1
    max_age: Duration = 86400.0


class BuildSection(_Section):
    """What `edgekit build` makes without being told more, and where.

    A target is a name, or the path of a board's own file, relative to the recipe.
    """

    targets: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    out: Text = "build"


class Override(_Section):
    """`[target.NAME.SECTION]`: kept as written, merged and checked for each device."""

    compress: dict[str, Any] = Field(default_factory=dict)
    quantize: dict[str, Any] = Field(default_factory=dict)
    engine: dict[str, Any] = Field(default_factory=dict)
    gate: dict[str, Any] = Field(default_factory=dict)
    bench: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _overridable(cls, sections: object) -> object:
        unknown = [
            str(name)
            for name in (sections if isinstance(sections, Mapping) else ())
            if name not in OVERRIDABLE
        ]
        if unknown:
            near = difflib.get_close_matches(unknown[0], OVERRIDABLE, 1, 0.5)
            names = " and ".join(map(_quoted, unknown))
            hint = f'did you mean "{near[0]}"?' if near else f"want {', '.join(OVERRIDABLE)}"
            raise ValueError(f"{names} cannot be overridden for a target; {hint}")
        return sections


class Recipe(_Section):
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
    _document: dict[str, Any] = {}
    _boards: dict[str, Target] = {}

    @property
    def folder(self) -> Path:
        """The recipe's folder."""
        return self._folder

    @property
    def targets(self) -> tuple[str, ...]:
        """What `edgekit build` makes: names, and files as seen from where the caller stands."""
        return tuple(_from(self._folder, name) for name in self.build.targets)

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.model.name or Path(self.model.path).stem

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing as a value, None where the recipe has none."""
        section = self.data.preprocessing
        if section is None:
            return None
        return Preprocessing(scale=section.scale, mean=section.mean, std=section.std)


def load_recipe(path: Path) -> Recipe:
    """The recipe in a file, its overrides checked too.

    Raises InputError that lists every fault at once, each with its line of sight.
    """
    return parse_recipe(documents.read_toml(path, what="recipe"), path)


def parse_recipe(document: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe in a document that was read from `path`. Raises as `load_recipe` does."""
    boards, found = _own_boards(document, path.parent)
    known = (*target_names(), *family_names(), *boards)
    found += [*_faults_of(document), *_unknown_targets(document, known)]
    found += _override_faults(document, boards)
    if found:
        raise InputError(
            "this recipe has faults" if len(found) > 1 else "this recipe has a fault",
            where=str(path), got="\n".join(found),
            hint="`edgekit build --dry-run` prints what a recipe comes to.",
        )  # fmt: skip
    return _recipe(copy.deepcopy(dict(document)), path.parent, boards)


def for_target(recipe: Recipe, target: str | Target) -> Recipe:
    """The recipe as it is for one device: its family's overrides, then its own on top.

    What comes back has no overrides any more. A board's own file, which the recipe does not list,
    is given as the Target that it is.
    """
    name = target if isinstance(target, str) else target.name
    family = _family(target, recipe._boards)
    overrides = _table(recipe._document, "target")
    layers = [_table(overrides, layer) for layer in dict.fromkeys((family, name))]
    return _recipe(_overridden(recipe._document, *layers), recipe.folder, recipe._boards)


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with its defaults filled in, paths and overrides as written, JSON-ready."""
    shown = recipe.model_dump(mode="json", exclude={"target"})
    shown["model"]["name"] = recipe.name
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
    overrides = _table(document, "target")
    plain = _faults_of(_overridden(document))
    found = []
    for name in overrides:
        own = _table(overrides, name)
        faults = _new_faults(document, own, known=plain)
        family = _family(name, boards)
        if family != name and family in overrides:
            above = _table(overrides, family)
            known = [*plain, *faults, *_new_faults(document, above, known=plain)]
            faults += _new_faults(_overridden(document, above), own, known=known)
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
        merged = _deep_merge(merged, {name: _table(layer, name) for name in OVERRIDABLE
                                      if _table(layer, name)})  # fmt: skip
    return merged


def _deep_merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        present = merged.get(key)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            merged[key] = _deep_merge(present, value)
        else:
            merged[key] = value
    return merged


def _places(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The line of sight of every value in a table."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _places(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table of that name; an empty one where there is none, or no table."""
    found = document.get(key)
    return found if isinstance(found, Mapping) else {}


def _family(target: str | Target, boards: Mapping[str, Target]) -> str:
    """The family whose overrides apply to a target; empty where it has none."""
    if isinstance(target, str):
        if target in boards:
            target = boards[target]
        elif target in target_names():
            target = load_target(target)
        else:
            return ""
    return target.family if target.family in family_names() else ""


def _listed_targets(document: Mapping[str, Any]) -> list[str]:
    listed = _table(document, "build").get("targets")
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []


def _own_boards(document: Mapping[str, Any], folder: Path) -> tuple[dict[str, Target], list[str]]:
    """The targets by name whose files `build.targets` lists, and what is wrong with the others."""
    boards, found = {}, []
    for name in _listed_targets(document):
        if not name.endswith(".toml") or "\0" in name:
            continue
        try:
            board = load_target(_from(folder, name))
        except InputError as error:
            said = error.got.splitlines() or [error.what]
            found += [f"build.targets: {name}: {line}" for line in said]
        else:
            boards[board.name] = board
    return boards, found


def _from(folder: Path, target: str) -> str:
    """The name of a target, or the path of its file, which is relative to the folder."""
    return str(folder / target) if target.endswith(".toml") else target


def _unknown_targets(document: Mapping[str, Any], known: Iterable[str]) -> Iterator[str]:
    """What is said of the names of devices in the recipe that there are no profiles of."""
    named = [("target", str(name)) for name in _table(document, "target")]
    named += [("build.targets", n) for n in _listed_targets(document) if not n.endswith(".toml")]
    for place, name in named:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        if not near and place == "target":
            hint = "; a board of your own is listed in build.targets, as the path of its file"
        yield f"{place}: there is no target called {_quoted(name)}{hint}"
