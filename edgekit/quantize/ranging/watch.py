"""Whether ranges still move: after how many samples they stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgekit.quantize.ranging.checks import ENOUGH
from edgekit.quantize.ranging.histogram import GrowingHistogram, TensorRange
from edgekit.values import Array

_FIRST_MARKS = 16  # samples between two looks, at first
_MARK_SHARE = 4  # later a quarter of the samples so far

Choose = Callable[[TensorRange], tuple[float, float]]


class Watch:
    """Looks now and then whether the watched magnitudes still move; ever more seldom."""

    def __init__(self, choose: Choose, tolerance: float) -> None:
        self._choose = choose
        self._tolerance = tolerance
        self._marks: dict[int, list[tuple[int, Array]]] = {}

    def look(self, piece: int, samples: int, growing: Sequence[GrowingHistogram]) -> bool:
        """Whether nothing moved in the second half of the samples; only at a mark it looks."""
        marks = self._marks.setdefault(piece, [])
        last = marks[-1][0] if marks else 0
        if samples < last + max(_FIRST_MARKS, last // _MARK_SHARE):
            return False
        marks.append((samples, self._magnitudes(growing)))
        settled = self._settled(marks)
        return settled is not None and samples >= ENOUGH and settled <= samples // 2

    def end(self, piece: int, samples: int, growing: Sequence[GrowingHistogram]) -> None:
        """Looks a last time."""
        marks = self._marks.setdefault(piece, [])
        if samples and (not marks or marks[-1][0] != samples):
            marks.append((samples, self._magnitudes(growing)))

    def settled(self) -> int | None:
        """After how many samples nothing moved any more; None where it did until the end."""
        found = [self._settled(marks) for marks in self._marks.values()]
        known = [samples for samples in found if samples is not None]
        return max(known) if found and len(known) == len(found) else None

    def _settled(self, marks: list[tuple[int, Array]]) -> int | None:
        if len(marks) < 2:
            return None
        final = marks[-1][1]
        still: int | None = None
        for samples, magnitudes in reversed(marks[:-1]):
            if (np.abs(magnitudes - final) > self._tolerance * final).any():
                break
            still = samples
        return still

    def _magnitudes(self, growing: Sequence[GrowingHistogram]) -> Array:
        ranges = [histogram.finished() for histogram in growing if histogram.looked_at]
        chosen = [self._choose(found) for found in ranges]
        return np.array([max(abs(low), abs(high)) for low, high in chosen])
