"""Ridge-regularised least squares over a stream of rows, pulled toward the weights that are there.

For inputs x (d,) and targets y (o,), with W0 (d, o) the present weight, the fit is

    min over W, b of  sum |x W + b - y|^2  +  lambda |W - W0|^2
    W = W0 + (A + lambda I)^-1 (B - A W0),   b = mean(y) - mean(x) W

where A = sum (x - mean)(x - mean)^T and B = sum (x - mean)(y - mean)^T: ridge regression (Hoerl and
Kennard 1970) with its centre moved from 0 to W0. Where b may not move, b = 0 and nothing is
centred. lambda is a share of the mean of A's diagonal, and that share is taken which serves best
where it was not fitted: the rows are in two halves, of other samples each, and each half is
predicted from the other.

With fewer rows than inputs the rows themselves are kept, X (n, d), and the same W is found as

    W = W0 + X^T (X X^T + lambda I)^-1 (Y - X W0)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_SHARE_UNTRIED = 1e-2  # with a single batch there is no other half to try a share on
_TINY = 1e-20  # keeps a matrix of zeros solvable


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The weight (groups, d, o) and intercept (groups, o), and how far off the aim they are.

    `before` (the present weight, intercept 0) and `after` are squared errors on all rows, as shares
    of the targets' variance; `ridge` is the share that was chosen.
    """

    weight: Tensor
    intercept: Tensor
    before: float
    after: float
    ridge: float


class Rows(Protocol):
    """Rows that were counted in, x (groups, rows, d) and y (groups, rows, o)."""

    count: int

    def add(self, x: Tensor, y: Tensor) -> None:
        """Counts rows in."""

    def forget_targets(self) -> None:
        """Makes room for other targets of the same rows."""

    def add_targets(self, x: Tensor, y: Tensor) -> None:
        """Counts in the new targets of rows, in the order in which the rows were added."""

    def solve(
        self, present: Tensor, shares: Sequence[float], *, movable: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """W and b for each share in turn."""

    def error(self, weight: Tensor, intercept: Tensor) -> float:
        """sum |x W + b - y|^2, over all groups and outputs."""

    def variance(self) -> float:
        """sum |y - mean(y)|^2."""

    def joined(self, other: Rows) -> Rows:
        """These rows and those of another one of the same kind."""


def no_rows(groups: int, width: int, made: int, *, few: bool) -> Rows:
    """Where rows are counted in: as sums, whose size does not depend on them, or `few` as such."""
    return _Few() if few else Sums(groups, width, made)


def fit(
    halves: tuple[Rows, Rows], present: Tensor, *, movable: bool, shares: Sequence[float]
) -> Fit:
    """The fit to the rows of both halves. `movable`: whether there may be an intercept."""
    whole = halves[0].joined(halves[1])
    share = _best_share(halves, present, shares, movable=movable)
    ((weight, intercept),) = whole.solve(present, [share], movable=movable)
    variance = whole.variance() or _TINY
    return Fit(
        weight=weight,
        intercept=intercept,
        before=whole.error(present, torch.zeros_like(intercept)) / variance,
        after=whole.error(weight, intercept) / variance,
        ridge=share,
    )


def _best_share(
    halves: tuple[Rows, Rows], present: Tensor, shares: Sequence[float], *, movable: bool
) -> float:
    if len(shares) == 1:
        return shares[0]
    if not all(half.count for half in halves):
        return min(shares, key=lambda share: abs(share - _SHARE_UNTRIED))
    errors = torch.zeros(len(shares), dtype=torch.float64)
    for fitted, judged in (halves, halves[::-1]):
        for i, (weight, intercept) in enumerate(fitted.solve(present, shares, movable=movable)):
            errors[i] += judged.error(weight, intercept)
    return shares[int(errors.nan_to_num(torch.inf).argmin())]


class Sums:
    """The sums that a fit needs of its rows, in double precision."""

    def __init__(self, groups: int, width: int, made: int) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64)

        self.count = 0
        self.x, self.y, self.yy = zeros(width), zeros(made), zeros(made)
        self.xx, self.xy = zeros(width, width), zeros(width, made)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Counts rows in: x (groups, n, width), y (groups, n, made)."""
        self.xx += x.mT @ x
        self.x += x.sum(1, dtype=torch.float64)
        self.count += x.shape[1]
        self.add_targets(x, y)

    def forget_targets(self) -> None:
        """Makes room for other targets of the same rows."""
        for sums in (self.xy, self.y, self.yy):
            sums.zero_()

    def add_targets(self, x: Tensor, y: Tensor) -> None:
        """Counts in the targets of rows that were added."""
        self.xy += x.mT @ y
        self.y += y.sum(1, dtype=torch.float64)
        self.yy += y.double().square().sum(1)

    def joined(self, other: Rows) -> Sums:
        """The sums over these rows and those of another one."""
        assert isinstance(other, Sums)
        found = Sums(self.x.shape[0], self.x.shape[1], self.y.shape[1])
        found.count = self.count + other.count
        for name in ("x", "y", "xx", "xy", "yy"):
            setattr(found, name, getattr(self, name) + getattr(other, name))
        return found

    def error(self, weight: Tensor, intercept: Tensor) -> float:
        """sum |x W + b - y|^2, over all groups and outputs."""
        crossed = self.xx @ weight - 2 * self.xy + 2 * self.x[..., None] * intercept[:, None]
        rest = self.yy - 2 * self.y * intercept + self.count * intercept.square()
        return max(float((weight * crossed).sum() + rest.sum()), 0.0)

    def variance(self) -> float:
        """sum |y - mean(y)|^2."""
        return max(float((self.yy - self.y.square() / max(self.count, 1)).sum()), 0.0)

    def solve(
        self, present: Tensor, shares: Sequence[float], *, movable: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """W and b for each share in turn."""
        xx, xy = self.xx, self.xy
        if movable:
            xx = xx - self.x[..., None] * (self.x[:, None] / self.count)
            xy = xy - self.x[..., None] * (self.y[:, None] / self.count)
        scale = _mean_diagonal(xx.diagonal(dim1=-2, dim2=-1).sum(-1), xx.shape[-1])
        residual = xy - xx @ present
        unit = torch.eye(xx.shape[-1], dtype=xx.dtype)
        for share in shares:
            factor, _ = torch.linalg.cholesky_ex(xx + share * scale * unit)
            weight = present + torch.cholesky_solve(residual, factor)
            intercept = torch.zeros_like(self.y)
            if movable:
                intercept = (self.y - (self.x[:, None] @ weight)[:, 0]) / self.count
            yield weight, intercept


class _Few:
    """The rows themselves, fewer than a weight has inputs."""

    def __init__(self) -> None:
        self.count = 0
        self.xs: list[Tensor] = []
        self.ys: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        self.xs.append(x)
        self.count += x.shape[1]
        self.add_targets(x, y)

    def forget_targets(self) -> None:
        self.ys.clear()

    def add_targets(self, x: Tensor, y: Tensor) -> None:
        del x
        self.ys.append(y.double())

    def joined(self, other: Rows) -> _Few:
        assert isinstance(other, _Few)
        found = _Few()
        found.count = self.count + other.count
        found.xs, found.ys = self.xs + other.xs, self.ys + other.ys
        return found

    def error(self, weight: Tensor, intercept: Tensor) -> float:
        narrow = weight.float()
        off = [
            (x @ narrow + intercept[:, None] - y).square().sum()
            for x, y in zip(self.xs, self.ys, strict=True)
        ]
        return float(torch.stack(off).sum())

    def variance(self) -> float:
        y = torch.cat(self.ys, 1)
        return float((y - y.mean(1, keepdim=True)).square().sum())

    def solve(
        self, present: Tensor, shares: Sequence[float], *, movable: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = torch.cat(self.xs, 1), torch.cat(self.ys, 1)
        mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        if movable:
            x, y = x - mean_x, y - mean_y
        products = (x @ x.mT).double()
        scale = _mean_diagonal(products.diagonal(dim1=-2, dim2=-1).sum(-1), x.shape[-1])
        residual = y - (x @ present.float()).double()
        unit = torch.eye(products.shape[-1], dtype=products.dtype)
        for share in shares:
            factor, _ = torch.linalg.cholesky_ex(products + share * scale * unit)
            weight = present + x.mT @ torch.cholesky_solve(residual, factor).float()
            intercept = torch.zeros_like(mean_y[:, 0])
            if movable:
                intercept = (mean_y - mean_x @ weight.float())[:, 0]
            yield weight, intercept


def _mean_diagonal(trace: Tensor, width: int) -> Tensor:
    return (trace / width).clamp_min(_TINY)[:, None, None]
