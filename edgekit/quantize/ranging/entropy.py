"""The range that loses the least information, as TensorRT's entropy calibration chooses it.

Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, the slides "Entropy calibration" and
"Pseudocode". There the histogram is that of |x|; here it may also be that of x, with an integer
for 0 anywhere in it.
"""

from __future__ import annotations

import numpy as np

from edgekit.quantize.ranging.histogram import TensorRange
from edgekit.values import Array

_HALF_LEVELS = 128  # of |x| under symmetric INT8
_LEVELS = 256
_CANDIDATES_AT_ONCE = 512


def entropy(observed: TensorRange, *, symmetric: bool) -> tuple[float, float]:
    """The range whose quantized histogram diverges least (Kullback-Leibler) from the observed one.

    Symmetric: the threshold over |x|. Affine: the end on each side of 0, the upper one first with
    the lower one whole, then the lower one. Exact zeros are left out: every grid holds 0.
    """
    low, high = min(observed.low, 0.0), max(observed.high, 0.0)
    counts, middle = np.array(observed.counts, np.float64), len(observed.counts) // 2
    counts[middle] = max(counts[middle] - observed.zeros, 0)
    width = observed.bin_width
    if low == high or not counts.any():
        return observed.low, observed.high
    if symmetric:
        magnitudes = _used(counts[middle:] + counts[:middle][::-1])
        threshold = (best_end(magnitudes, _HALF_LEVELS) + 0.5) * width
        return max(low, -threshold), min(high, threshold)
    above, below = _used(counts[middle:]), _used(counts[:middle][::-1])
    if high > 0:
        whole = np.concatenate([below[::-1], above])
        above_bins = best_end(whole, _LEVELS, least=len(below)) - len(below)
        high = min(high, (above_bins + 0.5) * width) if above_bins else high
    if low < 0:
        kept = above[: max(round(high / width), 1)].copy()
        kept[-1:] += above[len(kept) :].sum()
        whole = np.concatenate([kept[::-1], below])
        below_bins = best_end(whole, _LEVELS, least=len(kept)) - len(kept)
        low = max(low, -(below_bins + 0.5) * width) if below_bins else low
    return low, high


def best_end(counts: Array, levels: int, *, least: int = 0) -> int:
    """The number i of first bins whose quantized version diverges least from the whole.

    i runs from `levels` (or `least`) to all bins; with no more bins than levels, all are kept.
    """
    ends = np.arange(max(levels, least + 1), len(counts) + 1)
    if not len(ends):
        return len(counts)
    pieces = np.array_split(ends, -(-len(ends) // _CANDIDATES_AT_ONCE))
    found = np.concatenate([divergences(counts, piece, levels) for piece in pieces])
    return int(ends[int(found.argmin())])


def divergences(counts: Array, ends: Array, levels: int) -> Array:
    """KL(P || Q) for each number of kept bins, (n,); infinite where Q is 0 and P is not.

    For i kept bins, P is counts[:i] with everything beyond added to its last bin. Q is counts[:i]
    without that: its bins are merged into `levels` levels of equal width (bins b with
    floor(b levels / i) alike), and the mass of a level is spread evenly over those of its bins that
    are not empty. Both are divided by their sums.

    A level of mass M, of which m bins are not empty, adds M log(M / m) to sum P log Q, so that
    cumulative sums of the counts, of the bins that are not empty and of p log p are enough.
    """
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    own = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
    total = mass[-1]
    kept = mass[ends]
    beyond = total - kept
    beyond[beyond < total * 1e-12] = 0  # what the sums' rounding leaves
    # The first bin of level l is the least b with b levels >= l i.
    borders = -(-(ends[:, None] * np.arange(levels + 1)) // levels)
    level_mass = np.diff(mass[borders], axis=1)
    level_filled = np.diff(filled[borders], axis=1)
    spread = np.log(level_mass / np.maximum(level_filled, 1), where=level_mass > 0,
                    out=np.zeros_like(level_mass))  # fmt: skip
    last = counts[ends - 1]
    p_log_p = own[ends] - _x_log_x(last) + _x_log_x(last + beyond)
    p_log_q = (level_mass * spread).sum(axis=1) + beyond * spread[:, -1]
    with np.errstate(divide="ignore"):
        # With P and Q of sums `total` and `kept`: subtract log(total / kept).
        found: Array = (p_log_p - p_log_q) / total - np.log(total / kept)
    found[(kept <= 0) | ((beyond > 0) & (last <= 0))] = np.inf
    return found


def _x_log_x(values: Array) -> Array:
    found: Array = values * np.log(values, where=values > 0, out=np.zeros_like(values))
    return found


def _used(counts: Array) -> Array:
    """The counts up to the last that is not 0."""
    filled = np.flatnonzero(counts)
    return counts[: filled[-1] + 1] if len(filled) else counts[:0]
