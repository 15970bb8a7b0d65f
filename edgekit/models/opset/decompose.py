"""Operators written by older ones. Constants are of the node's own element type."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgekit.models.opset.place import Place, RefusalError

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def gelu(place: Place) -> None:
    """ONNX Gelu: x (1 + erf(x / sqrt 2)) / 2, or the tanh form.

    The tanh form is 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    """
    x = place.input(0)
    half, one = place.scalar(0.5, x), place.scalar(1, x)
    if place.text("approximate", "none") == "none":
        bent = place.put("Erf", place.put("Div", x, place.scalar(math.sqrt(2), x), like=x), like=x)
        product = place.put("Mul", x, place.put("Add", bent, one, like=x), like=x)
        place.become("Mul", product, half)
        return
    cube = place.put("Mul", place.put("Mul", x, x, like=x), x, like=x)
    scaled = place.put("Mul", cube, place.scalar(0.044715, x), like=x)
    inner = place.put("Add", x, scaled, like=x)
    turned = place.put("Mul", inner, place.scalar(math.sqrt(2 / math.pi), x), like=x)
    bent = place.put("Tanh", turned, like=x)
    product = place.put("Mul", place.put("Add", bent, one, like=x), half, like=x)
    place.become("Mul", x, product)


def hard_swish(place: Place) -> None:
    """ONNX HardSwish: x max(0, min(1, x / 6 + 1 / 2))."""
    x = place.input(0)
    place.become("Mul", x, place.put("HardSigmoid", x, like=x, alpha=1 / 6, beta=0.5))


def mish(place: Place) -> None:
    """ONNX Mish: x tanh(softplus x)."""
    x = place.input(0)
    place.become("Mul", x, place.put("Tanh", place.put("Softplus", x, like=x), like=x))


def swish(place: Place) -> None:
    """ONNX Swish: x sigmoid(alpha x)."""
    x, alpha = place.input(0), place.number("alpha", 1.0)
    inner = x if alpha == 1 else place.put("Mul", x, place.scalar(alpha, x), like=x)
    place.become("Mul", x, place.put("Sigmoid", inner, like=x))


def celu(place: Place) -> None:
    """ONNX Celu: alpha elu(x / alpha), elu with its own alpha 1."""
    x, alpha = place.input(0), place.scalar(place.number("alpha", 1.0), place.input(0))
    place.become("Mul", place.put("Elu", place.put("Div", x, alpha, like=x), like=x), alpha)


def or_equal(strict: str, place: Place) -> None:
    """ONNX GreaterOrEqual and LessOrEqual: false where a side is NaN, so not a negation."""
    sides = place.input(0), place.input(1)
    place.become("Or", place.put(strict, *sides), place.put("Equal", *sides))


def cast_like(place: Place) -> None:
    """ONNX CastLike: a Cast to the type that the second input has."""
    place.become("Cast", place.input(0), to=int(place.dtype(place.input(1))))


def layer_normalization(place: Place) -> None:
    """ONNX LayerNormalization: (x - mean) / sqrt(variance + epsilon) scale + bias.

    Mean and variance are over the axes from `axis` on, in float32 where x is narrower
    (`stash_type`). The mean and the inverse deviation are handed on where they are read.
    """
    x, scale, bias = place.input(0), place.input(1), place.optional(2)
    axes = _axes_from(place, x)
    epsilon = place.number("epsilon", 1e-5)
    wide = _widened(place, x)
    mean = place.put("ReduceMean", wide, axes=axes, keepdims=1)
    centred = place.put("Sub", wide, mean, like=wide)
    squares = place.put("Pow", centred, place.scalar(2, wide), like=wide)
    variance = place.put("ReduceMean", squares, axes=axes, keepdims=1)
    raised = place.put("Add", variance, place.scalar(epsilon, wide), like=variance)
    deviation = place.put("Sqrt", raised, like=variance)
    normal = _narrowed(place, place.put("Div", centred, deviation, like=wide), x)
    for index, name in enumerate(("mean", "inverse deviation")[: len(place.node.outputs) - 1], 1):
        output = place.node.outputs[index]
        if not (output.uses() or output.is_graph_output()):
            continue
        if output.dtype not in (None, wide.dtype):
            raise RefusalError(f"its {name} is read, and is of another type than it is made in")
        found = mean if index == 1 else place.put("Reciprocal", deviation, like=deviation)
        place.hand_over(index, found)
    place.node.resize_outputs(1)
    if bias is None:
        place.become("Mul", normal, scale)
    else:
        place.become("Add", place.put("Mul", normal, scale, like=x), bias)


def rms_normalization(place: Place) -> None:
    """ONNX RMSNormalization: x / sqrt(mean x^2 + epsilon) scale, the mean from `axis` on."""
    x, scale = place.input(0), place.input(1)
    axes = place.integers_as_input(_axes_from(place, x))
    epsilon = place.number("epsilon", 1e-5)
    wide = _widened(place, x)
    squares = place.put("Mul", wide, wide, like=wide)
    mean = place.put("ReduceMean", squares, axes, keepdims=1)
    raised = place.put("Add", mean, place.scalar(epsilon, wide), like=mean)
    root = place.put("Sqrt", raised, like=mean)
    place.become("Mul", _narrowed(place, place.put("Div", wide, root, like=wide), x), scale)


def group_normalization(place: Place) -> None:
    """ONNX GroupNormalization: each group of channels normalised as one instance.

    Scale and bias are one a channel from opset 21 on and one a group before; where they have as
    many numbers as there are channels, they are taken as that.
    """
    x, scale, bias = place.input(0), place.input(1), place.input(2)
    groups, epsilon = place.integer("num_groups", 0), place.number("epsilon", 1e-5)
    rank, channels = place.rank(x), place.size(x, 1)
    by_group = place.opset < 20 and place.size(scale, 0) != channels
    wide = _widened(place, x)
    grouped = place.put("Reshape", wide, place.integers_as_input([0, groups, -1]))
    if by_group:
        weight, offset = _widened(place, scale), _widened(place, bias)
    else:
        element = place.dtype(wide).numpy()
        weight, offset = place.hold(np.ones(groups, element)), place.hold(np.zeros(groups, element))
    normal = place.put(
        "InstanceNormalization", grouped, weight, offset, epsilon=epsilon, like=grouped
    )
    back = _shape_of(place, x)
    if by_group:
        if wide is x:
            place.become("Reshape", normal, back)
        else:
            place.become(
                "Cast", place.put("Reshape", normal, back, like=wide), to=int(place.dtype(x))
            )
        return
    whole = _narrowed(place, place.put("Reshape", normal, back, like=wide), x)
    column = place.integers_as_input([channels] + [1] * (rank - 2))
    scaled = place.put("Mul", whole, place.put("Reshape", scale, column), like=x)
    place.become("Add", scaled, place.put("Reshape", bias, column))


def trilu(place: Place) -> None:
    """ONNX Trilu: what lies on the other side of diagonal k becomes zero."""
    x = place.input(0)
    k = int(place.constant(1, "diagonals").reshape(-1)[0]) if place.has(1) else 0
    whole = np.ones((place.size(x, -2), place.size(x, -1)), bool)
    mask = np.triu(whole, k) if place.integer("upper", 1) else np.tril(whole, k)
    place.become("Where", place.hold(mask), x, place.scalar(0, x))


def _axes_from(place: Place, x: ir.Value) -> list[int]:
    """The axes from the attribute `axis` on; counted from the back where it is."""
    axis = place.integer("axis", -1)
    return list(range(axis, 0)) if axis < 0 else list(range(axis, place.rank(x)))


def _widened(place: Place, x: ir.Value) -> ir.Value:
    if place.dtype(x) not in _NARROW:
        return x
    return place.put("Cast", x, to=int(ir.DataType.FLOAT))


def _narrowed(place: Place, wide: ir.Value, x: ir.Value) -> ir.Value:
    if wide.dtype == x.dtype:
        return wide
    return place.put("Cast", wide, to=int(place.dtype(x)), like=x)


def _shape_of(place: Place, x: ir.Value) -> ir.Value:
    """The shape as a constant where at most one size is dynamic, else computed."""
    sizes = [size if isinstance(size, int) else -1 for size in x.shape or ()]
    if sizes.count(-1) <= 1 and all(sizes):
        return place.integers_as_input(sizes)
    return place.put("Shape", x)
