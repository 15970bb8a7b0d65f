"""Plain, frozen values that several rooms share. No behaviour beyond reading them."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Feeds: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True)
class Unknown:
    """A figure that nobody has: the reason stands where the number would."""

    reason: str

    def __str__(self) -> str:
        return f"unknown ({self.reason})"


Figure: TypeAlias = float | Unknown
"""A number, or why there is none. Never 0, NaN or infinity for "not measured"."""


def figure_to_json(figure: Figure) -> float | dict[str, str]:
    """The number, or `{"unknown": reason}`."""
    return {"unknown": figure.reason} if isinstance(figure, Unknown) else figure


def figure_from_json(stored: object) -> Figure:
    """What `figure_to_json` made."""
    if isinstance(stored, Mapping):
        return Unknown(str(stored["unknown"]))
    if isinstance(stored, (int, float)):
        return float(stored)
    raise TypeError(stored)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of a model. `shape` keeps a dynamic dimension as its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})"


Resize: TypeAlias = Literal["stretch", "letterbox", "crop"]
Interpolation: TypeAlias = Literal["bilinear", "bicubic", "nearest", "area"]
Order: TypeAlias = Literal["rgb", "bgr"]
Layout: TypeAlias = Literal["nchw", "nhwc"]

LONGEST_SIDE = 2**15
"""The most pixels that an input may be high or wide: more is a slip, or a trap."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes what the model reads.

    uint8 pixels become float32: (pixel * scale - mean[c]) / std[c], c counting the channels as the
    model sees them: with `order` "bgr", mean[0] is blue's.

    The other fields say how a picture becomes pixels, and are for pictures only: arrays of pixels
    are in the model's size and order already. `size` is (height, width), None the model's own.

        stretch     to `size`, whatever becomes of its proportions
        letterbox   the longer side fits, the picture is in the middle, the rest is `fill`
        crop        the shorter side is resized to `size` / `crop_share`, then the middle is cut out

    `interpolation` are Pillow's filters, which average over all that a pixel covers when a picture
    shrinks (antialiasing; "area" is its box filter), "nearest" apart. `layout` is where arrays and
    pictures have their channels, axis 1 or the last one; None: as the model's input shows, axis 1
    where it does not.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    resize: Resize = "stretch"
    crop_share: float = 1.0
    fill: int = 114
    interpolation: Interpolation = "bilinear"
    order: Order = "rgb"
    layout: Layout | None = None

    def apply(self, pixels: Array) -> Array:
        """The pixels as float32, of the same shape: (n, c, ...), or (n, ..., c) in "nhwc"."""
        inner = (1,) * (pixels.ndim - 2)
        shape = (1, *inner, -1) if self.layout == "nhwc" else (1, -1, *inner)
        # One multiplication and one addition a pixel: x * (scale / std) + (-mean / std).
        std = np.asarray(self.std, np.float64)
        factor = np.asarray(self.scale / std, np.float32).reshape(shape)
        shift = np.asarray(-np.asarray(self.mean) / std, np.float32).reshape(shape)
        return pixels.astype(np.float32) * factor + shift


def preprocessing_to_json(preprocessing: Preprocessing) -> dict[str, object]:
    """Every field by name, JSON-ready."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(preprocessing).items()
    }


def preprocessing_from_json(stored: object) -> Preprocessing:
    """What `preprocessing_to_json` made; a missing key has its default, an unknown one is ignored.

    Raises ValueError, which says what is wrong, for anything else.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"wanted a table, got {stored!r:.80}")
    default = Preprocessing()
    size = stored.get("size")
    layout = stored.get("layout")
    return Preprocessing(
        scale=_number(stored.get("scale", default.scale), "scale", above=0),
        mean=_numbers(stored.get("mean", default.mean), "mean"),
        std=_numbers(stored.get("std", default.std), "std", above=0),
        size=None if size is None else _stored_size(size),
        resize=_one_of(stored.get("resize", default.resize), "resize", get_args(Resize)),
        crop_share=_number(stored.get("crop_share", 1.0), "crop_share", above=0, most=1),
        fill=_whole(stored.get("fill", default.fill), "fill", 0, 255),
        interpolation=_one_of(
            stored.get("interpolation", default.interpolation),
            "interpolation",
            get_args(Interpolation),
        ),
        order=_one_of(stored.get("order", default.order), "order", get_args(Order)),
        layout=None if layout is None else _one_of(layout, "layout", get_args(Layout)),
    )


def _number(
    stored: object, name: str, *, above: float = -math.inf, most: float = math.inf
) -> float:
    is_number = isinstance(stored, (int, float)) and not isinstance(stored, bool)
    if not is_number or not above < (value := _as_float(stored)) <= most or math.isinf(value):
        raise ValueError(f"{name}: {stored!r:.80} is no such number")
    return value


def _as_float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer of JSON may be of any length
        return math.inf


def _numbers(stored: object, name: str, *, above: float = -math.inf) -> tuple[float, ...]:
    if not isinstance(stored, (list, tuple)) or not stored:
        raise ValueError(f"{name}: {stored!r:.80} is no list of numbers")
    return tuple(_number(value, name, above=above) for value in stored)


def _whole(stored: object, name: str, least: int, most: int) -> int:
    if not isinstance(stored, int) or isinstance(stored, bool) or not least <= stored <= most:
        raise ValueError(f"{name}: {stored!r:.80} is no whole number from {least} to {most}")
    return stored


def _stored_size(stored: object) -> tuple[int, int]:
    if not isinstance(stored, (list, tuple)) or len(stored) != 2:
        raise ValueError(f"size: {stored!r:.80} is not [height, width]")
    height, width = (_whole(side, "size", 1, LONGEST_SIDE) for side in stored)
    return height, width


def _one_of(stored: object, name: str, choices: tuple[Any, ...]) -> Any:
    if stored not in choices:
        raise ValueError(f"{name}: {stored!r:.80} is not one of {', '.join(choices)}")
    return stored


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some samples: `inputs` by the model's input names, first axis the samples; maybe labels."""

    inputs: Feeds
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class Session(Protocol):
    """A loaded engine. A context manager; `stage`, `execute` and `fetch` in that order."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `stage` wants."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `fetch` gives."""

    def stage(self, feeds: Feeds) -> None:
        """Puts the inputs where the engine reads them (host to device)."""

    def execute(self) -> None:
        """Runs once and waits for the end."""

    def fetch(self) -> dict[str, Array]:
        """The outputs by name, on the host."""

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def run(session: Session, feeds: Feeds) -> dict[str, Array]:
    """The outputs of one staged, executed and fetched batch."""
    session.stage(feeds)
    session.execute()
    return session.fetch()


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Raw samples of one quantity on one machine, and every reason to doubt them.

    `samples` are in the order taken, nothing trimmed. `rounds` holds the index at which each
    round of the interleaved run begins, `processes` (some of the same) those at which another
    process took over; empty: there was one. `taken_at` is seconds since the epoch. `broken` are the
    conditions of the target that did not hold: with any, the run is invalid. `unchecked` are those
    that nobody could read: with any, it decides nothing. `readings` is what was seen beside each
    run (heat, clocks, power, memory), JSON-ready.
    """

    arm: str
    quantity: str
    unit: str
    samples: tuple[float, ...]
    rounds: tuple[int, ...]
    batch: int
    taken_at: float
    figures: Mapping[str, Figure] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    readings: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    processes: tuple[int, ...] = ()


class Verdict(enum.Enum):
    """What a gate says. `pending`: no device has measured it yet."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"
    PENDING = "pending"

    @property
    def exit_code(self) -> int:
        """Of `edgekit gate`; the same for a build, but that a pending target does not fail one."""
        return {"pass": 0, "fail": 1, "inconclusive": 3, "invalid": 4, "pending": 3}[self.value]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of a verdict: `value` against `limit`, decided on the side that doubts more.

    `margin` is how far that side is from the limit, in its unit: below zero where it is broken, or
    may be. `source` says where the value is from.
    """

    name: str
    limit: float
    value: Figure
    interval: tuple[float, float] | None
    verdict: Verdict
    because: str
    margin: Figure
    source: str = ""
