"""`edgekit.toml`: what a user asks for, typed and strict, with overrides for single devices."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
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
from edgekit.targets import family_names, load_target, target_names
from edgekit.values import Preprocessing

OVERRIDABLE = ("compress", "quantize", "engine", "gate", "bench")

_METRICS = ("top1", "fidelity")
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(s|m|h|d)$")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"{value:g} is not between 0 and 1")
    return value


def _finite_number(value: object) -> object:
    """TOML's whole numbers are numbers too; its inf and nan are none that can be used."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _metric(name: str) -> str:
    if name in _METRICS or ":" in name:
        return name
    near = difflib.get_close_matches(name, _METRICS, 1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    raise ValueError(
        f'"{name}" is not one of {", ".join(_METRICS)} or package.module:function{hint}'
    )


def _seconds(value: object) -> object:
    if isinstance(value, str):
        found = _DURATION.match(value)
        if not found:
            raise ValueError(f'"{value}" is no duration such as "30m", "12h" or "1d"')
        return float(found[1]) * _SECONDS[found[2]]
    raise ValueError(f'wanted a duration such as "12h", got {value!r}')


Number = Annotated[float, BeforeValidator(_finite_number), Field(allow_inf_nan=False)]
Share = Annotated[Number, AfterValidator(_share)]
Positive = Annotated[Number, Field(gt=0)]
Whole = Annotated[int, Field(ge=1)]
Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Shape = Annotated[tuple[Whole, ...], Field(strict=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class ModelSection(_Section):
    """The model's file, relative to the recipe, and what to call it (the file's stem)."""

    path: str
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$")


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

    calibration: str
    evaluation: str
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

    epochs: Whole = 8
    learning_rate: Positive = 1e-3
    batch: Whole = 64
    temperature: Positive = 4.0
    mirror: bool = True
    seed: int = Field(default=0, ge=0)


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
    threads: int = Field(default=0, ge=0)


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
    rounds: Annotated[int, Field(ge=2)] = 6
    warmup_seconds: Annotated[Number, Field(ge=0)] = 0.5
    batch: Whole = 1
    max_age: Duration = 86400.0


class BuildSection(_Section):
    """What `edgekit build` makes without being told more, and where."""

    targets: Annotated[tuple[str, ...], Field(strict=False)] = ()
    out: str = "build"


class Override(_Section):
    """`[target.NAME.SECTION]`: kept as written, merged and checked for each device."""

    compress: dict[str, Any] = Field(default_factory=dict)
    quantize: dict[str, Any] = Field(default_factory=dict)
    engine: dict[str, Any] = Field(default_factory=dict)
    gate: dict[str, Any] = Field(default_factory=dict)
    bench: dict[str, Any] = Field(default_factory=dict)


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

    @property
    def folder(self) -> Path:
        """The recipe's folder."""
        return self._folder

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
    try:
        recipe = Recipe.model_validate(dict(document))
    except ValidationError as error:
        raise _faulty(
            path, [*documents.faults(error, Recipe), *_unknown_targets(document)]
        ) from error
    found = list(_unknown_targets(document))
    for name in recipe.target:
        try:
            _merged(recipe, [name])
        except ValidationError as error:
            found += documents.faults(error, Recipe, f"target.{name}")
    if found:
        raise _faulty(path, found)
    recipe._folder = path.parent
    return recipe


def for_target(recipe: Recipe, name: str) -> Recipe:
    """The recipe as it is for one device: its family's overrides, then its own on top.

    Raises InputError where an override that fits alone does not fit the family's.
    """
    family = load_target(name).family if name in target_names() else ""
    layers = [layer for layer in (family, name) if layer in recipe.target]
    try:
        merged = _merged(recipe, layers)
    except ValidationError as error:
        raise _faulty(recipe.folder, documents.faults(error, Recipe, f"target.{name}")) from error
    merged._folder = recipe.folder
    return merged


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with its defaults filled in, JSON-ready."""
    return recipe.model_dump(mode="json", exclude={"target"} if not recipe.target else None)


def _merged(recipe: Recipe, layers: list[str]) -> Recipe:
    document = recipe.model_dump(exclude_unset=True)
    for layer in layers:
        override = recipe.target[layer].model_dump(exclude_unset=True)
        document = _deep_merge(document, override)
    # A duration is read from text, and is a number once it has been read.
    for section in [document, *(o for o in document.get("target", {}).values())]:
        age = section.get("bench", {}).get("max_age")
        if isinstance(age, float):
            section["bench"]["max_age"] = f"{age}s"
    return Recipe.model_validate(document)


def _deep_merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        present = merged.get(key)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            merged[key] = _deep_merge(present, value)
        else:
            merged[key] = value
    return merged


def _unknown_targets(document: Mapping[str, Any]) -> list[str]:
    """Names of devices in the recipe that there are no profiles of."""
    known = (*target_names(), *family_names())
    overrides = document.get("target")
    build = document.get("build")
    listed = build.get("targets") if isinstance(build, Mapping) else None
    named = [("target", str(n)) for n in overrides] if isinstance(overrides, Mapping) else []
    if isinstance(listed, list):
        named += [("build.targets", n) for n in listed if isinstance(n, str)]
    found = []
    for place, name in named:
        if name in known or name.endswith(".toml"):
            continue
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        found.append(f'{place}: there is no target called "{name}"{hint}')
    return found


def _faulty(path: Path, found: list[str]) -> InputError:
    return InputError(
        "this recipe has faults" if len(found) > 1 else "this recipe has a fault",
        where=str(path), got="\n".join(found),
        hint="`edgekit build --dry-run` prints what a recipe comes to.",
    )  # fmt: skip
