"""A figure with its interval, and the quantiles and ranks that intervals are made of.

All intervals are two-sided, at 95% where nothing else is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from edgekit.values import Array, Unknown

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """A figure from samples, and where its true value lies, or why nobody can say."""

    value: float
    interval: tuple[float, float] | Unknown


@lru_cache(maxsize=1024)
def student_quantile(probability: float, degrees: int) -> float:
    """The t that a Student variable of so many degrees of freedom does not exceed so often.

    By bisection over the distribution's closed form for whole degrees of freedom (Abramowitz and
    Stegun, 26.7.3 and 26.7.4), with theta = atan(t / sqrt(degrees)). Over 400 degrees the normal
    quantile z with the first term of its expansion, z + (z^3 + z) / (4 degrees) (26.7.5).
    """
    if degrees > 400:
        z = NormalDist().inv_cdf(probability)
        return z + (z**3 + z) / (4 * degrees)
    if probability < 0.5:
        return -student_quantile(1 - probability, degrees)
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        below = _student_within(middle, degrees) / 2 + 0.5 < probability
        low, high = (middle, high) if below else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _student_within(theta: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(theta))."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term, total = (cosine, cosine if degrees > 1 else 0.0) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def student_interval(
    values: Array, confidence: float = CONFIDENCE
) -> tuple[float, float] | Unknown:
    """mean -+ t s / sqrt(n), n - 1 degrees of freedom: independent values, normal about one."""
    if len(values) < 2:
        return Unknown("one round shows no spread")
    t = student_quantile(0.5 + confidence / 2, len(values) - 1)
    mean = float(values.mean())
    half = t * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean - half, mean + half


def order_ranks(n: int, p: float, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """The ranks l and u (from 1) of n independent samples between which their p-quantile lies.

    With B binomial(n, p): l is the largest rank with P(B < l) <= (1 - confidence) / 2, u the
    smallest with P(B >= u) <= the same (David and Nagaraja, Order Statistics, section 7.1). None
    where n is too small for such ranks.
    """
    cumulative = np.cumsum(binomial(n, p))
    tail = (1 - confidence) / 2
    below = np.flatnonzero(cumulative <= tail)  # P(B <= k): l = k + 1
    above = np.flatnonzero(1 - cumulative <= tail)  # P(B >= k + 1): u = k + 1
    low, high = (int(below[-1]) + 1 if below.size else 0), int(above[0]) + 1
    return None if low < 1 or high > n else (low, high)


def binomial(n: int, p: float) -> Array:
    """P(B = k) for k = 0 .. n, B binomial(n, p), 0 < p < 1."""
    k = np.arange(1, n + 1)
    log_choices = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))])
    ranks = np.arange(n + 1)
    weights: Array = np.exp(log_choices + ranks * math.log(p) + (n - ranks) * math.log1p(-p))
    return weights
