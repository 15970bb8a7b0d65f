"""Which of the numbers that a graph stores are parameters: what training found by gradients."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping

import onnx_ir as ir

from edgekit.models.cost.anatomy import is_standard, label, reads
from edgekit.models.model import attribute

Places = tuple[int, ...]


class Role(enum.Enum):
    """What a stored tensor is. `SETTING`: a bound, an exponent, a scale, an index, a shape."""

    PARAMETER = "parameter"
    STATISTIC = "statistic"
    SETTING = "setting"


_STATISTICS: Mapping[str, Places] = {"BatchNormalization": (3, 4)}
# Inputs that say how an operator works. They may be real numbers and are no weights.
_SETTINGS: Mapping[str, Places] = {
    "Bernoulli": (0,), "CastLike": (1,), "Clip": (1, 2), "ConvInteger": (2, 3),
    "DequantizeLinear": (1, 2), "Dropout": (1, 2), "Expand": (1,), "MatMulInteger": (2, 3),
    "NonMaxSuppression": (2, 3, 4), "OneHot": (1, 2), "Pad": (1, 2, 3), "Pow": (1,),
    "QLinearConv": (1, 2, 4, 5, 6, 7), "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2), "Range": (0, 1, 2), "Resize": (1, 2, 3), "Upsample": (1,),
}  # fmt: skip
# Integers at these places are weights; anywhere else they are indices, shapes or masks.
_QUANTIZED: Mapping[str, Places] = {
    "ConvInteger": (1,), "DequantizeLinear": (0,), "MatMulInteger": (0, 1), "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
}  # fmt: skip
_ARITHMETIC = frozenset({
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "Where", "Equal", "Less", "LessOrEqual",
    "Greater", "GreaterOrEqual",
})  # fmt: skip
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})


def role_of(value: ir.Value, fixed: set[ir.Value], live: set[ir.Node]) -> Role:
    """What a stored value is, by what reads it; what is only moved on its way is followed.

    A parameter is a real tensor, or integers that stand for one (behind DequantizeLinear, in a
    QLinearConv), that an operator computes with. The running mean and variance of a
    BatchNormalization are statistics. A single number in an elementwise formula (the 1/sqrt(d) of
    an attention, an epsilon) is a setting, but for one that is added to a product: a bias. The
    graph does not say which tensors were trained: a stored table of positions that was not, is
    counted too. The bias that PyTorch's exporter gives to a Conv without one (torch 2.9 to 2.14: a
    vector of zeros named `val_` and a number) is no parameter of the network, and a setting.

    `fixed`: what follows from stored numbers alone; `live`: the nodes that count.
    """
    roles = {
        _role_in(value, node, place, fixed, live) for node, place in value.uses() if node in live
    }
    for role in (Role.PARAMETER, Role.STATISTIC):
        if role in roles:
            return role
    return Role.SETTING


def _role_in(
    value: ir.Value, node: ir.Node, place: int, fixed: set[ir.Value], live: set[ir.Node]
) -> Role:
    operator = node.op_type
    is_real = _is_real(value)
    if is_standard(node):
        if place in _STATISTICS.get(operator, ()):
            return Role.STATISTIC
        if place in _SETTINGS.get(operator, ()):
            return Role.SETTING
        is_moved = operator in _MOVES and place == 0
        if not is_real and not is_moved and place not in _QUANTIZED.get(operator, ()):
            return Role.SETTING
        if operator in _WITH_BIAS and place == 2 and _is_exporters(value, node.inputs[1]):
            return Role.SETTING
        if operator in _ARITHMETIC and _is_single(value) and not _is_bias(node):
            return Role.SETTING
    elif not is_real:
        return Role.SETTING
    results = [output for output in node.outputs if output in fixed]
    if results:  # the node computes one stored number from others: what is made of it?
        found = {role_of(output, fixed, live) for output in results}
        return next((r for r in (Role.PARAMETER, Role.STATISTIC) if r in found), Role.SETTING)
    return Role.PARAMETER


_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})
# What the exporter computed has this name; what a module owns has the module's.
_COMPUTED = re.compile(r"val_\d+$")


def _is_exporters(bias: ir.Value, kernel: ir.Value | None) -> bool:
    """Whether the exporter made the bias: the kernel has a module's name, and the bias has none."""
    if kernel is None or not _COMPUTED.match(bias.name or ""):
        return False
    return not _COMPUTED.match(kernel.name or "")


_MOVES = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"})


def _is_real(value: ir.Value) -> bool:
    """Whether it holds real numbers; where no type is written, by what it is computed from."""
    tensor = ir.convenience.get_const_tensor(value)
    dtype = tensor.dtype if tensor is not None else value.dtype
    if dtype is not None:
        return dtype.is_floating_point()
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type == "Cast":
        return ir.DataType(attribute(producer, "to", 1)).is_floating_point()
    if producer.op_type == "DequantizeLinear":
        return True
    source = producer.inputs[0] if producer.inputs else None
    return source is not None and _is_real(source)


def _is_single(value: ir.Value) -> bool:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return bool(tensor.size == 1)
    return value.shape is not None and all(size == 1 for size in value.shape)


def _is_bias(node: ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs if value is not None]
    return node.op_type == "Add" and any(
        p is not None and p.op_type in _PRODUCTS and is_standard(p) for p in producers
    )


def weights_of(node: ir.Node, fixed: set[ir.Value]) -> tuple[ir.Value, ...]:
    """The stored values that a node needs, directly or through what is computed from them alone."""
    found: dict[ir.Value, None] = {}
    waiting = [value for value in reads(node) if value in fixed]
    while waiting:
        value = waiting.pop()
        producer = value.producer()
        if producer is None or producer.op_type == "Constant":
            found[value] = None
        else:
            waiting += [v for v in producer.inputs if v is not None and v in fixed]
    return tuple(sorted(found, key=lambda value: value.name or label(node)))
