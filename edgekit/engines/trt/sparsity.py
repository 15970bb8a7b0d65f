"""Whether a graph's weights are 2:4: two zeros in every four along the inputs that are summed.

Source: Mishra et al., Accelerating Sparse Deep Neural Networks (2021), section 3; for a
convolution the four are input channels at one place of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.values import Array

if TYPE_CHECKING:
    import onnx_ir as ir

_GROUP, _KEPT = 4, 2
_PASSES_ZEROS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})


@dataclass(frozen=True, kw_only=True)
class SparsityCount:
    """How many layers have weights that could be 2:4, and how many of them are."""

    sparse: int
    able: int


def is_two_of_four(weights: Array) -> bool:
    """Whether every four along the last axis hold two zeros; (..., k), k a multiple of four."""
    if weights[(0,) * (weights.ndim - 1)].all():  # the first row is dense: no need to see more
        return False
    grouped = weights.reshape(-1, _GROUP)
    return bool((np.count_nonzero(grouped, axis=1) <= _KEPT).all())


def count_sparse(graph: ir.Graph) -> SparsityCount:
    """Counts the Conv, Gemm and MatMul with constant weights, through Q/DQ and casts.

    A grouped convolution, and one whose inputs are no multiple of four, is not able to be 2:4.
    """
    sparse = able = 0
    for node in graph:
        weights = _summed_last(node)
        if weights is not None:
            able += 1
            sparse += is_two_of_four(weights)
    return SparsityCount(sparse=sparse, able=able)


def _summed_last(node: ir.Node) -> Array | None:
    """The weights with the axis that is summed last, None where they cannot be 2:4."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    weights = _constant(node.inputs[1])
    if weights is None or weights.ndim < 2:
        return None
    if node.op_type == "Conv":
        if node.attributes.get_int("group", 1) != 1:
            return None
        last = np.moveaxis(weights, 1, -1)
    elif node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        last = weights
    else:
        last = np.moveaxis(weights, -2, -1)
    return last if last.shape[-1] % _GROUP == 0 and last.size else None


def _constant(value: ir.Value | None) -> Array | None:
    """The constant that a value is, as far as its zeros go: scales of Q/DQ change none of them."""
    permutations: list[list[int]] = []
    while value is not None and value.const_value is None:
        made_by = value.producer()
        if made_by is None:
            return None
        if made_by.op_type == "Transpose":
            rank = len(value.shape) if value.shape is not None else 0
            permutations.append(
                list(made_by.attributes.get_ints("perm", list(reversed(range(rank)))))
            )
        elif made_by.op_type not in _PASSES_ZEROS:
            return None
        value = made_by.inputs[0]
    if value is None or value.const_value is None:
        return None
    found: Array = value.const_value.numpy()
    for permutation in reversed(permutations):
        if len(permutation) != found.ndim:
            return None
        found = found.transpose(permutation)
    return found
