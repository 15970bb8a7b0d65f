"""Plain, frozen values that several rooms share. No behaviour beyond reading them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeAlias

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


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """uint8 pixels (n, c, h, w) become float32: (pixel * scale - mean[c]) / std[c]."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def apply(self, pixels: Array) -> Array:
        """The pixels as float32, of the same shape."""
        shape = (1, -1) + (1,) * (pixels.ndim - 2)
        # One multiplication and one addition a pixel: x * (scale / std) + (-mean / std).
        std = np.asarray(self.std, np.float64)
        factor = np.asarray(self.scale / std, np.float32).reshape(shape)
        shift = np.asarray(-np.asarray(self.mean) / std, np.float32).reshape(shape)
        return pixels.astype(np.float32) * factor + shift


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
    round of the interleaved run begins. `taken_at` is seconds since the epoch.
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
    """One line of a verdict: `value` against `limit`, decided on the side that doubts more."""

    name: str
    limit: float
    value: Figure
    interval: tuple[float, float] | None
    verdict: Verdict
    because: str
