"""Multiply-accumulates of a node: one formula for each operator that multiplies and adds up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgekit.models.cost.anatomy import bodies, is_standard, label
from edgekit.models.cost.sizes import Forms, Sizes, sizes_of
from edgekit.models.model import attribute
from edgekit.values import Unknown

Formula = Callable[[ir.Node, Forms], int | Unknown]

# Multiplications hide in them, but how many depends on the algorithm.
_UNCOUNTED = frozenset({"Det", "DFT", "LinearAttention", "STFT"})


def macs_of(node: ir.Node, known: Forms) -> int | Unknown:
    """How many multiply-accumulates one run of the node takes.

    With o the elements of the output, i those of the input, |W| those of a weight, prod(...) a
    product of sizes, all as in the operator's page of ONNX's Operators.md:

        Conv, QLinearConv, ConvInteger, DeformConv
                            o * prod(W.shape[1:])          W (c_out, c_in / group, k...)
        ConvTranspose       i * prod(W.shape[1:])          W (c_in, c_out / group, k...)
        Gemm, MatMul, QLinearMatMul, MatMulInteger
                            o * k                          k: the axis that is summed over
        Einsum              prod(of every letter)          two operands
        LSTM, GRU, RNN      steps * batch * (|W| + |R|)    all gates and directions
        Attention           b * h * l_q * l_k * (d + d_v)  h: query heads; l_k with the past's

    Both operands may be activations; a bias is no multiply-accumulate. Grouped convolutions follow
    from the kernel's shape. Any other operator of ONNX's own has 0: its cost is its bytes.

    Unknown: a shape that is not known, an operator of another domain, a graph inside the node that
    multiplies, an operator whose count depends on its algorithm.
    """
    if not is_standard(node):
        return Unknown(f'{_named(node)} is of the domain "{node.domain}", whose arithmetic we lack')
    if any(_multiplies(body) for body in bodies(node)):
        return Unknown(f"what runs inside {_named(node)} is not counted")
    if node.op_type in _UNCOUNTED:
        return Unknown(f"{_named(node)}: its count depends on the algorithm")
    formula = _FORMULAS.get(node.op_type)
    if formula is None:
        return 0
    found = formula(node, known)
    return Unknown(f"{_named(node)}: {found.reason}") if isinstance(found, Unknown) else found


def multiplies(node: ir.Node) -> bool:
    """Whether the node has multiply-accumulates, or may have some."""
    return (
        not is_standard(node)
        or node.op_type in _FORMULAS
        or node.op_type in _UNCOUNTED
        or any(_multiplies(body) for body in bodies(node))
    )


def is_opaque(node: ir.Node) -> bool:
    """Whether no shape would make the node's count known."""
    return multiplies(node) and not (is_standard(node) and node.op_type in _FORMULAS)


def _multiplies(body: ir.Graph) -> bool:
    return any(multiplies(node) for node in body)


def _named(node: ir.Node) -> str:
    return f'{node.op_type} "{label(node)}"'


def _input(node: ir.Node, index: int, known: Forms) -> Sizes | Unknown:
    return sizes_of(node.inputs[index] if index < len(node.inputs) else None, known)


def _convolution(kernel_at: int) -> Formula:
    def count(node: ir.Node, known: Forms) -> int | Unknown:
        output, kernel = sizes_of(node.outputs[0], known), _input(node, kernel_at, known)
        if isinstance(output, Unknown) or isinstance(kernel, Unknown):
            return output if isinstance(output, Unknown) else _first(kernel)
        return math.prod(output) * math.prod(kernel[1:])

    return count


def _transposed(node: ir.Node, known: Forms) -> int | Unknown:
    source, kernel = _input(node, 0, known), _input(node, 1, known)
    if isinstance(source, Unknown) or isinstance(kernel, Unknown):
        return source if isinstance(source, Unknown) else _first(kernel)
    return math.prod(source) * math.prod(kernel[1:])


def _product(left_at: int) -> Formula:
    def count(node: ir.Node, known: Forms) -> int | Unknown:
        output, left = sizes_of(node.outputs[0], known), _input(node, left_at, known)
        if isinstance(output, Unknown) or isinstance(left, Unknown):
            return output if isinstance(output, Unknown) else _first(left)
        transposed = node.op_type == "Gemm" and attribute(node, "transA", 0)
        return math.prod(output) * (left[0] if transposed else left[-1])

    return count


def _einsum(node: ir.Node, known: Forms) -> int | Unknown:
    operands = str(attribute(node, "equation", "")).replace(" ", "").split("->")[0].split(",")
    if len(operands) == 1:
        return 0
    if len(operands) > 2:
        return Unknown("the count depends on which operands are multiplied first")
    letters: dict[str, int] = {}
    for index, labels in enumerate(operands):
        sizes = _input(node, index, known)
        if isinstance(sizes, Unknown):
            return sizes
        before, dots, after = labels.partition("...")
        hidden = len(sizes) - len(before) - len(after)
        # "..." stands for the axes that have no letter, counted from the right when broadcast.
        names = [*before, *(f".{hidden - i}" for i in range(hidden) if dots), *after]
        if len(names) != len(sizes):
            return Unknown("the equation does not fit its operands")
        for name, size in zip(names, sizes, strict=True):
            letters[name] = max(size, letters.get(name, 1))
    return math.prod(letters.values())


def _recurrent(node: ir.Node, known: Forms) -> int | Unknown:
    source, weights, back = (_input(node, i, known) for i in range(3))
    for sizes in (source, weights, back):
        if isinstance(sizes, Unknown):
            return sizes
    # X (steps, batch, inputs), or (batch, steps, inputs) where layout is 1.
    return math.prod(_whole(source)[:2]) * (math.prod(_whole(weights)) + math.prod(_whole(back)))


def _attention(node: ir.Node, known: Forms) -> int | Unknown:
    query, key, value = (_input(node, i, known) for i in range(3))
    for sizes in (query, key, value):
        if isinstance(sizes, Unknown):
            return sizes
    q, k, v = _whole(query), _whole(key), _whole(value)
    past = _input(node, 4, known) if len(node.inputs) > 4 and node.inputs[4] else ()
    if isinstance(past, Unknown):
        return past
    length = k[-2] + (past[-2] if past else 0)
    heads = attribute(node, "q_num_heads", 0) if len(q) == 3 else q[1]
    value_heads = attribute(node, "kv_num_heads", 0) if len(v) == 3 else 1
    if not heads or not value_heads:
        return Unknown("its number of heads is not given")
    # (b, l, h * d) in three dimensions, (b, h, l, d) in four.
    depth = q[-1] // heads if len(q) == 3 else q[-1]
    return q[0] * heads * q[-2] * length * (depth + v[-1] // value_heads)


def _whole(sizes: Sizes | Unknown) -> Sizes:
    assert not isinstance(sizes, Unknown)
    return sizes


def _first(sizes: Sizes | Unknown) -> Unknown:
    assert isinstance(sizes, Unknown)
    return sizes


_FORMULAS: Mapping[str, Formula] = {
    "Attention": _attention,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "ConvTranspose": _transposed,
    "DeformConv": _convolution(1),
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _product(0),
    "LSTM": _recurrent,
    "MatMul": _product(0),
    "MatMulInteger": _product(0),
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _product(0),
    "RNN": _recurrent,
}
