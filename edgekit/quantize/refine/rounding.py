"""Rounding a matrix to integers so that its products stay, by second-order error feedback.

For the Hessian H (groups, d, d) of a layer's inputs and the weight W (groups, d, o) in steps of its
grid, integers Q are sought that make

    E(Q) = sum over columns q, w of  (q - w)^T H (q - w)

small. Row after row of W is rounded to the nearest, and what that costs is made up for by the rows
that are not rounded yet (Frantar et al. 2022, GPTQ, section 3; the second-order step is Optimal
Brain Surgeon's). Then every entry in turn goes to the integer that is best with all others as they
are, until none moves: no sweep can make E larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 64


def rounded_steps(
    weight: Tensor, hessian: Tensor, low: float, high: float, *, sweeps: int = 4
) -> Tensor:
    """The integers (groups, d, o) in low..high; never a larger E than that of the nearest ones.

    `weight` is in steps of its grid, in double precision; H must be positive definite.
    """
    nearest = weight.round().clamp(low, high)
    fed_back = _fed_back(weight, hessian, low, high)
    better = error_of(fed_back, weight, hessian) < error_of(nearest, weight, hessian)
    start = torch.where(better[:, None], fed_back, nearest)
    return _settled(start, weight, hessian, low, high, sweeps)


def error_of(steps: Tensor, weight: Tensor, hessian: Tensor) -> Tensor:
    """E of each column, (groups, o)."""
    off = steps - weight
    found: Tensor = (off * (hessian @ off)).sum(1)
    return found


def _fed_back(weight: Tensor, hessian: Tensor, low: float, high: float) -> Tensor:
    """GPTQ: the rows in the order of their inputs' energy, the largest first.

    With U the upper Cholesky factor of H^-1, rounding row i by an error e moves the rows behind it
    by -U[i, j] / U[i, i] * e.
    """
    groups, width, _ = weight.shape
    order = hessian.diagonal(dim1=-2, dim2=-1).argsort(-1, descending=True)
    which = torch.arange(groups)[:, None]
    turned = hessian[which[:, :, None], order[:, :, None], order[:, None, :]]
    factor, _ = torch.linalg.cholesky_ex(turned)
    inverse = torch.cholesky_inverse(factor)
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    if bool(failed.any()):
        return weight.round().clamp(low, high)
    left = weight[which, order].clone()
    found = torch.empty_like(left)
    for begin in range(0, width, _BLOCK):
        end = min(begin + _BLOCK, width)
        errors = torch.empty_like(left[:, begin:end])
        for i in range(begin, end):
            found[:, i] = left[:, i].round().clamp(low, high)
            error = (left[:, i] - found[:, i]) / upper[:, i, i, None]
            errors[:, i - begin] = error
            left[:, i:end] -= upper[:, i, i:end, None] * error[:, None]
        left[:, end:] -= upper[:, begin:end, end:].mT @ errors
    back = torch.empty_like(found)
    back[which, order] = found
    return back


def _settled(
    steps: Tensor, weight: Tensor, hessian: Tensor, low: float, high: float, sweeps: int
) -> Tensor:
    """Coordinate descent over the integers: each goes where E is least with the others fixed."""
    steps = steps.clone()
    slope = hessian @ (steps - weight)  # half the gradient of E
    curvature = hessian.diagonal(dim1=-2, dim2=-1)
    for _ in range(sweeps):
        moved = False
        for i in range(steps.shape[1]):
            best = (steps[:, i] - slope[:, i] / curvature[:, i, None]).round().clamp(low, high)
            change = best - steps[:, i]
            if not bool(change.any()):
                continue
            moved = True
            steps[:, i] = best
            slope += hessian[:, :, i, None] * change[:, None]
        if not moved:
            break
    return steps
