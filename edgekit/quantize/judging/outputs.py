"""How far one network's outputs are from another's, part by part, in a stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.quantize.judging.parts import Part, output_parts
from edgekit.values import (
    Array,
    Batch,
    Feeds,
    Figure,
    Session,
    Unknown,
    figure_from_json,
    figure_to_json,
    run,
)

OpenSession = Callable[[Model], AbstractContextManager[Session]]

IDENTICAL = Unknown("identical")


@dataclass(frozen=True, kw_only=True)
class PartError:
    """What one part of the outputs lost, over `samples` samples.

    With x the original's entries and y the other's: `sqnr_db` is 10 log10(sum x^2 / sum (x - y)^2),
    `cosine` is sum xy / sqrt(sum x^2 sum y^2), `largest` is max|x - y|, and `relative` that over
    max|x|.
    """

    part: Part
    samples: int
    sqnr_db: Figure
    cosine: Figure
    largest: float
    relative: Figure

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "output": self.part.output, "part": self.part.name,
            "ranges": [list(one) for one in self.part.ranges], "samples": self.samples,
            "sqnr_db": figure_to_json(self.sqnr_db), "cosine": figure_to_json(self.cosine),
            "largest": self.largest, "relative": figure_to_json(self.relative),
        }  # fmt: skip


def part_error_from_json(stored: dict[str, object]) -> PartError:
    """What `PartError.to_json` made."""
    ranges: Sequence[Sequence[int]] = stored["ranges"]  # type: ignore[assignment]
    part = Part(
        output=str(stored["output"]), name=str(stored["part"]),
        ranges=tuple((int(a), int(b), int(c)) for a, b, c in ranges),
    )  # fmt: skip
    return PartError(
        part=part, samples=int(str(stored["samples"])), largest=float(str(stored["largest"])),
        sqnr_db=figure_from_json(stored["sqnr_db"]), cosine=figure_from_json(stored["cosine"]),
        relative=figure_from_json(stored["relative"]),
    )  # fmt: skip


class Difference:
    """The sums that tell two tensors apart, batch after batch."""

    def __init__(self) -> None:
        self.signal = self.noise = self.other = self.dot = 0.0
        self.largest = self.top = 0.0

    def add(self, expected: Array, found: Array, *, where: str) -> None:
        """Counts one more batch. Raises InputError for another shape, NaN or infinity."""
        if expected.shape != found.shape:
            raise InputError(
                "the two models do not give the same shape", where=where, got=str(found.shape),
                wanted=str(expected.shape),
            )  # fmt: skip
        x = np.ascontiguousarray(expected, np.float64).reshape(-1)
        y = np.ascontiguousarray(found, np.float64).reshape(-1)
        apart = y - x
        noise = float(apart @ apart)
        if not math.isfinite(noise):
            raise InputError(
                "this tensor becomes NaN or infinite", where=where,
                hint="Look for an overflow in the model, or for a bad sample.",
            )  # fmt: skip
        self.signal += float(x @ x)
        self.other += float(y @ y)
        self.dot += float(x @ y)
        self.noise += noise
        self.largest = max(self.largest, float(np.abs(apart).max(initial=0.0)))
        self.top = max(self.top, float(np.abs(x).max(initial=0.0)))

    @property
    def damage(self) -> Figure:
        """sum (x - y)^2 / sum x^2."""
        return self.noise / self.signal if self.signal else Unknown("zeros on every sample")

    @property
    def sqnr_db(self) -> Figure:
        """10 log10(sum x^2 / sum (x - y)^2)."""
        return decibels(self.damage)

    @property
    def cosine(self) -> Figure:
        """sum xy / sqrt(sum x^2 sum y^2)."""
        both = math.sqrt(self.signal) * math.sqrt(self.other)
        return self.dot / both if both else Unknown("zeros on every sample")

    @property
    def relative(self) -> Figure:
        """max|x - y| / max|x|."""
        return self.largest / self.top if self.top else Unknown("zeros on every sample")


def decibels(damage: Figure) -> Figure:
    """-10 log10 of sum (x - y)^2 / sum x^2."""
    if isinstance(damage, Unknown):
        return damage
    return -10 * math.log10(damage) if damage > 0 else IDENTICAL


def judge(
    float_outputs: Iterable[Feeds], quantized_outputs: Iterable[Feeds], parts: Sequence[Part]
) -> tuple[PartError, ...]:
    """The error of each part over two streams of outputs, batch by batch of the same samples.

    Raises InputError where there is none, where one stream ends before the other, where shapes
    differ, and where an output becomes NaN or infinite.
    """
    sums = [Difference() for _ in parts]
    samples = 0
    ends = iter(quantized_outputs)
    for expected in float_outputs:
        found = next(ends, None)
        if found is None:
            raise InputError("the quantized outputs are fewer than the original's")
        for part, difference in zip(parts, sums, strict=True):
            here = f"output {part}"
            difference.add(part.of(expected[part.output]), part.of(found[part.output]), where=here)
        samples += len(next(iter(expected.values())))
    if not samples or next(ends, None) is not None:
        raise InputError(
            "there is no sample to judge with" if not samples
            else "the quantized outputs are more than the original's",
            hint="Name samples of what the device will see.",
        )  # fmt: skip
    return tuple(
        PartError(
            part=part, samples=samples, sqnr_db=one.sqnr_db, cosine=one.cosine,
            largest=one.largest, relative=one.relative,
        )
        for part, one in zip(parts, sums, strict=True)
    )  # fmt: skip


def judge_models(
    model: Model, quantized: Model, batches: Iterable[Batch], open_float: OpenSession,
    open_quantized: OpenSession,
) -> tuple[PartError, ...]:  # fmt: skip
    """The error of each part of a Model's outputs in another that stands for it; one pass.

    `open_quantized` decides what is judged: without a runtime's optimisations the quantization
    itself, with them its kernels too. Raises as `judge` does.
    """
    parts = output_parts(model)
    with open_float(model) as original, open_quantized(quantized) as other:
        pairs = ((run(original, b.inputs), run(other, b.inputs)) for b in batches)
        expected, found = _unzipped(pairs)
        return judge(expected, found, parts)


def _unzipped(pairs: Iterable[tuple[Feeds, Feeds]]) -> tuple[Iterable[Feeds], Iterable[Feeds]]:
    """Two streams that are read in turn, first the first: a pair is held, never more."""
    held: list[Feeds] = []

    def firsts() -> Iterable[Feeds]:
        for first, second in pairs:
            held.append(second)
            yield first

    def seconds() -> Iterable[Feeds]:
        while held:
            yield held.pop()

    return firsts(), seconds()
