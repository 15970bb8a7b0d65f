"""Where a series is steady: after the warm-up; and how its end stands to its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.values import Array, Unknown

FEWEST = 20
_BATCH = 5
_MOST_BATCHES = 1000
_SLACK = 1.05
_ENDS = 0.2


def steady_from(samples: Sequence[float] | Array) -> int | Unknown:
    """The index of the first sample of the steady part: what comes before it is warm-up.

    White's marginal standard error rule ("An effective truncation heuristic for bias reduction in
    simulation output", Simulation 69, 1997): over m successive batches z, cut d away such that
    sum_(i>=d) (z_i - mean of them)^2 / (m - d)^2 is least. The batches are medians of 5 samples (of
    more in a long series), which rare slow calls do not move; and of the cuts whose value is
    within 5% of the least, the first counts, so that chance cuts nothing.

    Unknown with fewer than 20 samples, and where the best cut lies beyond the middle: then it has
    not been steady for as long as it was not, and more samples are needed.
    """
    n = len(samples)
    if n < FEWEST:
        return Unknown(f"{n} samples say too little of whether it is steady")
    size = max(_BATCH if n >= 2 * FEWEST else 1, n // _MOST_BATCHES)
    count = n // size
    series = np.asarray(samples, np.float64)[: count * size].reshape(count, size)
    batches = np.median(series, axis=1)
    batches -= batches.mean()
    left = np.arange(count, 0, -1)
    sums = np.cumsum(batches[::-1])[::-1]
    squares = np.cumsum(batches[::-1] ** 2)[::-1]
    # The last cuts leave too few batches to have a spread at all.
    errors = (np.maximum(squares - sums**2 / left, 0.0) / left**2)[: count - max(count // 10, 5)]
    errors[errors <= errors.max() * 1e-12] = 0.0
    cut = int(np.flatnonzero(errors <= errors.min() * _SLACK)[0])
    if cut > count / 2:
        return Unknown("it is not steady yet: it still changed in the second half")
    return cut * size


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Samples a second at the beginning of a run (burst) and at its end (sustained)."""

    burst: float
    sustained: float


def burst_and_sustained(
    samples: Sequence[float] | Array, batch: int = 1, seconds: float = 0.0
) -> Ends | Unknown:
    """The rate of the first and of the last `seconds` of work; 0: of a fifth of the run each.

    The time is that of the calls, added up. Unknown where the two parts would overlap.
    """
    series = np.asarray(samples, np.float64)
    ends = np.cumsum(series)
    part = seconds or _ENDS * float(ends[-1])
    first = int(np.searchsorted(ends, part * (1 - 1e-12))) + 1
    last = len(series) - int(np.searchsorted(ends, (ends[-1] - part) * (1 + 1e-12), "right"))
    if last < 1 or first + last > len(series):
        return Unknown(f"{ends[-1]:.3g} s of calls do not hold two parts of {part:.3g} s")
    return Ends(
        burst=batch * first / float(series[:first].sum()),
        sustained=batch * last / float(series[-last:].sum()),
    )
