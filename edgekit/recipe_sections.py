"""The tables of a recipe, each with its defaults, and what a value in them may be."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

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
from edgekit.values import LONGEST_SIDE, Interpolation, Layout, Order, Resize

OVERRIDABLE = ("compress", "quantize", "engine", "gate", "bench")

_LONGEST_SHOWN = 40
_LEAST_COUNT = 100  # of MACs or parameters; a smaller number was meant as a share
_METRICS = ("top1", "fidelity")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"{value:g} is not between 0 and 1")
    return value


def _limit(value: object, least: float) -> str:
    """A share up to 1, a number above `least`, or a text such as "50%": as text."""
    text = str(value).strip()
    is_percent = text.endswith("%")
    try:
        number = float(text.removesuffix("%")) / (100 if is_percent else 1)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        shown = repr(value)
        cut = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"
        raise ValueError(f"wanted a number, got {cut}")
    if not (0 < number <= 1 or (not is_percent and number > least)):
        raise ValueError(f"{text} is not between 0 and 1")
    return text


def _count_limit(value: object) -> str:
    return _limit(value, _LEAST_COUNT)


def _time_limit(value: object) -> str:
    return _limit(value, 0)


def quoted(value: str) -> str:
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
        f"{quoted(name)} is not one of {', '.join(_METRICS)} or package.module:function{hint}"
    )


def _factory(name: str) -> str:
    place, _, function = name.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(f"{quoted(name)} is not package.module:function or file.py:function")
    return name


def _own_function(name: str) -> str:
    return _factory(name) if name else name


def _pair(value: tuple[int, ...]) -> tuple[int, ...]:
    if len(value) != 2:
        raise ValueError(f"wanted [height, width], got {list(value)}")
    return value


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f'wanted a duration such as "12h", got {value!r}')
    found = _DURATION.fullmatch(value)
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f'{quoted(value)} is no duration such as "30m", "12h" or "1d"')
    return seconds


Text = Annotated[str, AfterValidator(_text)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[Number, AfterValidator(_share)]
Positive = Annotated[Number, Field(gt=0)]
Whole = Annotated[int, Field(ge=1, le=2**31 - 1)]
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]
Amount = Annotated[str, BeforeValidator(_count_limit)]
Milliseconds = Annotated[str, BeforeValidator(_time_limit)]
Duration = Annotated[float, BeforeValidator(_seconds)]
Shape = Annotated[tuple[Whole, ...], Field(strict=False)]


class Section(BaseModel):
    """A table of a recipe: frozen, strict, no key that it does not know."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


Known = TypeVar("Known", bound=Section)


def read_section(kind: type[Known], keys: Mapping[str, object], where: str) -> Known:
    """One table that stands in no recipe. Raises InputError that lists every fault at once."""
    try:
        return kind.model_validate(dict(keys))
    except ValidationError as error:
        found = documents.faults(error, kind)
        raise InputError(
            "these settings have faults" if len(found) > 1 else "these settings have a fault",
            where=where, got="\n".join(found),
        ) from error  # fmt: skip


class ModelSection(Section):
    """Where the model comes from, relative to the recipe, and what to call it (the file's stem).

    Either `path` (.onnx, .pt2, TorchScript) or `factory`: `file.py:function`, which returns a torch
    module, with `weights` (.safetensors or a state dict). `plan`, a plan.json as `edgekit channels`
    writes it, cuts the module before it is filled. `inputs` has a shape for each argument of its
    forward pass, the batch first.
    """

    path: Text | None = None
    factory: Annotated[str, AfterValidator(_factory)] | None = None
    weights: Text | None = None
    plan: Text | None = None
    inputs: dict[str, Shape] | None = None
    name: Annotated[str, AfterValidator(_file_name)] = ""

    @model_validator(mode="after")
    def _one_place(self) -> ModelSection:
        if bool(self.path) == bool(self.factory):
            raise ValueError("wanted one of path and factory")
        if self.weights and not self.factory:
            raise ValueError("weights go with a factory, a file has its own")
        if self.plan and not self.factory:
            raise ValueError("a plan goes with a factory, a file is cut already")
        if self.factory and not self.inputs:
            raise ValueError("a factory needs inputs, such as images = [1, 3, 224, 224]")
        return self


class PreprocessingSection(Section):
    """How pictures become an input, and uint8 pixels (pixel * scale - mean) / std.

    `mean` and `std` are one number, or one a channel in the order that the model sees. What each
    key does, and where it does not apply, `values.Preprocessing` says. `size` is height and width;
    absent, it is the model's own. `layout` absent: as the shape of the model's input shows.
    """

    scale: Positive = 1 / 255
    mean: Annotated[tuple[Number, ...], Field(strict=False, min_length=1)] = (0.0,)
    std: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] = (1.0,)
    size: Annotated[tuple[Side, ...], Field(strict=False), AfterValidator(_pair)] | None = None
    resize: Resize = "stretch"
    crop_share: Share = 1.0
    fill: Annotated[int, Field(ge=0, le=255)] = 114
    interpolation: Interpolation = "bilinear"
    order: Order = "rgb"
    layout: Layout | None = None

    @model_validator(mode="after")
    def _same_length(self) -> PreprocessingSection:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std has {len(self.std)}; want as many"
            )
        return self

    @model_validator(mode="after")
    def _key_with_a_use(self) -> PreprocessingSection:
        for key, resize in (("crop_share", "crop"), ("fill", "letterbox")):
            if key in self.model_fields_set and self.resize != resize:
                raise ValueError(f'{key} is for resize = "{resize}", and resize is "{self.resize}"')
        return self


class DataSection(Section):
    """Where the samples are, relative to the recipe.

    An .npz, a folder of pictures, a .csv of pictures, or `package.module:function`.
    """

    calibration: Text
    evaluation: Text
    preprocessing: PreprocessingSection | None = None


class EvaluateSection(Section):
    """How well a model does, and how many samples are run at a time."""

    metric: Annotated[str, AfterValidator(_metric)] = "top1"
    batch: Whole = 100


class ChannelsSection(Section):
    """Structured channel removal down to limits: a share up to 1, a count, or a text like "50%".

    `latency_ms` needs `table`, a file that `edgekit table` wrote. `criterion` and `budget`: see
    `compress.channels.cut.CutOptions`. `repair`: the weights that are
    left are fitted anew on the calibration samples.
    """

    macs: Amount | None = None
    params: Amount | None = None
    latency_ms: Milliseconds | None = None
    table: Text | None = None
    criterion: Literal[
        "auto",
        "l1",
        "l2",
        "bn_scale",
        "fpgm",
        "taylor",
        "activation",
        "entropy",
        "thinet",
        "random",
    ] = "auto"
    budget: Literal["auto", "uniform", "global", "sensitivity", "latency"] = "auto"
    samples: Whole = 512
    repair: bool = True
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _limited(self) -> ChannelsSection:
        if self.macs is None and self.params is None and self.latency_ms is None:
            raise ValueError("wanted a limit: macs, params or latency_ms, such as macs = 0.5")
        if (self.latency_ms is None) != (self.table is None):
            raise ValueError("latency_ms goes with a table: edgekit table MODEL --target … -o FILE")
        if self.budget == "latency" and self.latency_ms is None:
            raise ValueError("a budget by latency needs latency_ms")
        return self


class RecoverSection(Section):
    """Distillation from the original on the calibration samples.

    `schedule` rises for `warm_up_epochs`, then falls: cosine and linear to zero at the last epoch,
    step by `step_factor` every `step_epochs`. `mirror` and `shift` (pixels) are for images;
    `augment` is a function of the user's. `patience`: the epochs without progress on held-out
    samples that end it; 0: never. `hint` weighs the last feature map that both networks share.
    `momentum` and `nesterov` are sgd's, which needs a `learning_rate` of its own.
    """

    epochs: Whole = 6
    learning_rate: Positive = 1e-3
    batch: Whole = 64
    temperature: Positive = 4.0
    hint: Annotated[Number, Field(ge=0)] = 0.0
    mirror: bool = True
    shift: Annotated[int, Field(ge=0, le=LONGEST_SIDE)] = 0
    augment: Annotated[str, AfterValidator(_own_function)] = ""
    seed: int = Field(default=0, ge=0, lt=2**63)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    warm_up_epochs: Annotated[Number, Field(ge=0)] = 0.3
    step_epochs: Whole = 2
    step_factor: Share = 0.1
    patience: Annotated[int, Field(ge=0)] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _key_with_a_use(self) -> RecoverSection:
        for key, other, wanted in (
            ("momentum", "optimizer", "sgd"), ("nesterov", "optimizer", "sgd"),
            ("step_epochs", "schedule", "step"), ("step_factor", "schedule", "step"),
        ):  # fmt: skip
            got = getattr(self, other)
            if key in self.model_fields_set and got != wanted:
                raise ValueError(f'{key} is for {other} = "{wanted}", and {other} is "{got}"')
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> RecoverSection:
        if self.optimizer == "sgd" and "learning_rate" not in self.model_fields_set:
            raise ValueError("sgd needs a learning_rate, such as 0.02: the default is adamw's")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum; give momentum, or nesterov = false")
        if self.warm_up_epochs >= self.epochs:
            raise ValueError(
                f"warm_up_epochs {self.warm_up_epochs:g} leaves none of {self.epochs} epochs"
            )
        return self


class CompressSection(Section):
    """The steps before quantization; a table that is absent is a step that is not done."""

    channels: ChannelsSection | None = None
    recover: RecoverSection | None = None


Refinement = Literal["equalise", "absorb", "bias", "round", "adaround", "distil"]
Refinements = Annotated[tuple[Refinement, ...], Field(strict=False, min_length=1)]


class QuantizeSection(Section):
    """How ranges are observed and chosen, what mends the rounding, who may stay in float.

    `samples` absent: all calibration samples; "auto": until the ranges stand still. `refine`
    "auto" keeps of the cheap steps those that measurably help. `max_drop` is what INT8 may lose of
    the metric: nodes stay in floating point until it holds, as long as `min_int8_share` of the MACs
    of weighted layers stay in INT8. Under `max_ms`, the expected latency on the target, the least
    loss is looked for instead. `spare` is a share of the MACs, in all, that may stay in floating
    point where it brings the most fidelity, without labels; under a floor it has no meaning.
    `tables`, two files of `edgekit table` in FP32 and in INT8, say what each node saves; else the
    roofline does. `weight_bits` under 8 are simulated: the stored type stays.
    """

    ranges: Literal["minmax", "percentile", "entropy", "mse", "best"] = "best"
    percentile: Annotated[Number, Field(gt=50, le=100)] = 99.999
    samples: Whole | Literal["auto"] | None = None
    refine: Literal["auto", "none"] | Refinements = "auto"
    max_drop: Annotated[Number, Field(ge=0)] | None = None
    max_ms: Positive | None = None
    min_int8_share: Share = 0.95
    spare: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    tables: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    weight_bits: Annotated[int, Field(ge=2, le=8)] = 8


class BatchRange(Section):
    """The smallest, the expected and the largest batch."""

    min: Whole = 1
    opt: Whole = 1
    max: Whole = 1

    @model_validator(mode="after")
    def _in_order(self) -> BatchRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"min {self.min}, opt {self.opt}, max {self.max} are not in order")
        return self


class ShapeRange(Section):
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


class EngineSection(Section):
    """How an engine is built. `auto`: INT8 where the target has it; on a target that is measured
    here, the fastest that keeps the accuracy which the gate asks for. The limits of memory and
    time are for the process that builds. `typing`: every type from the graph, or flags that leave
    what is not quantized to TensorRT (8.5 to 10.x), where these were measured faster. `refit`
    keeps an engine's weights exchangeable, `strip` leaves them out of the plan. `search_s` lets a
    CPU's runtime measure the settings of its session for so long; equal builds may then find other
    settings."""

    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    batch: BatchRange = BatchRange()
    shapes: dict[str, ShapeRange] = Field(default_factory=dict)
    workspace_mb: Whole | None = None
    dla: int | None = Field(default=None, ge=0)
    streams: Whole = 1
    threads: int = Field(default=0, ge=0, le=1024)
    memory_limit_mb: Whole | None = None
    time_limit_s: Positive | None = None
    typing: Literal["auto", "strong", "flags"] = "auto"
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    max_dla_fallbacks: int | None = Field(default=None, ge=0)
    refit: bool = False
    strip: bool = False
    search_s: float = Field(default=0.0, ge=0, le=600, allow_inf_nan=False)


class GateSection(Section):
    """Limits of a release; one that is absent is not checked. Shares are between 0 and 1.

    `max_regression` is the share by which a sample may take longer than in the `baseline`, a
    measurement of the history: "last-passed", a tag, or a commit's hash. "last-passed" moves along
    with every release, so that many small regressions add up; a tag does not. `max_joules` is for
    one sample. `min_map` is for a metric of the user's own whose function says map in its name.
    """

    min_fps: Positive | None = None
    min_speedup: Positive | None = None
    max_regression: Annotated[Number, Field(ge=0)] | None = None
    baseline: Annotated[str, AfterValidator(_text)] | None = None
    max_p99_ms: Positive | None = None
    max_memory_mb: Positive | None = None
    max_joules: Positive | None = None
    max_size_mb: Positive | None = None
    min_top1: Share | None = None
    min_map: Share | None = None
    min_metric: Number | None = None
    max_drop: Annotated[Number, Field(ge=0)] | None = None
    min_agreement: Share | None = None
    min_sqnr_db: Number | None = None
    min_int8_share: Share | None = None
    max_dla_fallbacks: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _key_with_a_use(self) -> GateSection:
        if self.baseline is not None and self.max_regression is None:
            raise ValueError("baseline is for max_regression, such as max_regression = 0.05")
        return self

    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        set_here = self.model_dump(exclude={"baseline"})
        return {name: value for name, value in set_here.items() if value is not None}


class BenchSection(Section):
    """How long to measure each arm, in how many turns; how old a measurement may be used.

    `history` is the file of all measurements, relative to the recipe: absent, one in the user's
    data folder; "none", nothing is remembered. `processes` for each arm, one after the other, each
    with its own load of the engine: absent, 5 where the gate has max_regression, else one.
    """

    seconds: Positive = 6.0
    rounds: Annotated[int, Field(ge=2)] = 12
    warmup_seconds: Annotated[Number, Field(ge=0)] = 0.5
    batch: Whole = 1
    max_age: Duration = 86400.0
    history: str = ""
    processes: Whole | None = None


class BuildSection(Section):
    """What `edgekit build` makes without being told more, and where.

    A target is a name, or the path of a board's own file, relative to the recipe.
    """

    targets: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    out: Text = "build"


class Override(Section):
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
            names = " and ".join(map(quoted, unknown))
            hint = f'did you mean "{near[0]}"?' if near else f"want {', '.join(OVERRIDABLE)}"
            raise ValueError(f"{names} cannot be overridden for a target; {hint}")
        return sections
