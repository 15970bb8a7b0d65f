"""How large a number may become inside a float16 kernel that sums or squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.models.model import attribute, constant_of


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The largest magnitudes around a node, and how many entries it takes together (1: unknown)."""

    into: float
    out: float
    count: int


_BOUNDS: Mapping[str, tuple[str, Callable[[Reach], float]]] = {
    "ReduceMean": ("sum", lambda r: r.out * r.count),
    "GlobalAveragePool": ("sum", lambda r: r.out * r.count),
    "AveragePool": ("sum", lambda r: r.out * r.count),
    "ReduceL2": ("sum of squares", lambda r: r.out**2),
    "ReduceLogSum": ("sum", lambda r: _exp(r.out)),
    "ReduceLogSumExp": ("sum of exponentials", lambda r: _exp(max(r.into, r.out))),
    "LpNormalization": ("sum of squares", lambda r: r.into**2 * r.count),
    "InstanceNormalization": ("square of a deviation", lambda r: r.into**2),
    "MeanVarianceNormalization": ("square of a deviation", lambda r: r.into**2),
    "LRN": ("square", lambda r: r.into**2),
}


def inner_reach(node: ir.Node, largest: Mapping[str, float]) -> tuple[str, float]:
    """What is largest inside the node, in words, and how large; ("", 0) where nothing is larger.

    LayerNormalization and GroupNormalization are no part of it: ONNX has them computed in float32
    (their `stash_type`).
    """
    if node.domain or node.op_type not in _BOUNDS:
        return "", 0.0
    source, output = node.inputs[0], node.outputs[0]
    into = largest.get(source.name or "", 0.0) if source is not None else 0.0
    words, bound = _BOUNDS[node.op_type]
    out = largest.get(output.name or "", 0.0)
    return words, bound(Reach(into=into, out=out, count=_count(node)))


def _exp(power: float) -> float:
    return math.exp(min(power, 700.0))


def _count(node: ir.Node) -> int:
    """How many entries of the input make one of the output, where the sizes are known; else 1."""
    if node.op_type == "AveragePool":
        return math.prod(attribute(node, "kernel_shape", (1,)))
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return 1
    if node.op_type == "GlobalAveragePool":
        axes = list(range(2, len(shape)))
    elif node.op_type == "LpNormalization":
        axes = [int(attribute(node, "axis", -1))]
    else:
        listed = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        given = attribute(node, "axes", range(len(shape))) if listed is None else listed
        axes = [int(axis) for axis in np.atleast_1d(np.asarray(given))]
    sizes = [shape[axis] for axis in axes]
    return math.prod(size for size in sizes if isinstance(size, int))
