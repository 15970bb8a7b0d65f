"""How each operator passes channels on: a rule for each, and the walk that applies them.

What no rule explains is frozen, with the operator as the reason, never guessed. A new operator is
one function in one of the modules beside this one, named here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgekit.compress.channels.rules import meeting, places, shapes, weights
from edgekit.compress.channels.rules.trace import Part, Trace, freeze_around, named, pass_on
from edgekit.errors import InputError
from edgekit.models.cost.sizes import forms
from edgekit.models.model import Model

Rule = Callable[[Trace, ir.Node], None]

_PROBED = 64  # the size of a dynamic axis that nobody gave: a picture's sides


def trace(model: Model) -> Trace:
    """What the graph alone says about its channels. Linear in nodes times channels."""
    graph = model.graph
    found = Trace(opset=model.opset, sizes=_sizes(model))
    for value in graph.inputs:
        sizes = found.sizes_of(value)
        if sizes is not None and len(sizes) > 1 and not value.is_initializer():
            part = Part((1,), found.fresh(sizes[1]))
            found.freeze(part.ids, f'"{value.name}" is a graph input')
            found.label(value, [part])
    for node in graph:
        found.node = node
        rule = RULES.get(node.op_type) if not node.domain else None
        if rule is None or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            freeze_around(found, node)
        else:
            rule(found, node)
    for value in graph.outputs:
        found.freeze_value(value, f'"{value.name}" is a graph output')
    _freeze_captured(found, graph)
    _freeze_read_otherwise(found)
    return found


def _sizes(model: Model) -> dict[ir.Value, tuple[int, ...] | None]:
    """The sizes of every value at a batch of 1; open sides of a picture are given a size."""
    shapes = {
        spec.name: tuple(
            size if isinstance(size, int) else (1 if axis == 0 else _PROBED)
            for axis, size in enumerate(spec.shape)
        )
        for spec in model.inputs
    }
    open_sides = any(isinstance(size, str) for spec in model.inputs for size in spec.shape[1:])
    try:
        known = forms(model, shapes=shapes if open_sides else None)
    except InputError:
        known = forms(model)
    return {value: form.sizes for value, form in known.items()}


def _freeze_captured(found: Trace, graph: ir.Graph) -> None:
    """What the inside of an If or a Loop reads has no rule: it stays."""
    for value in list(found.labels):
        for reader, _ in value.uses():
            if reader.graph is not graph:
                found.freeze_value(value, f"{named(reader)}, in a subgraph, stands in the way")


def _freeze_read_otherwise(found: Trace) -> None:
    """An initializer is cut only where a rule knows each of its readers."""
    for slot in found.slots.values():
        value = slot.value
        if not value.is_initializer() or value.is_graph_input() or value.is_graph_output():
            found.freeze(slot.cells, f'"{value.name}" is not an inner constant of the graph')
            continue
        for reader, _ in value.uses():
            if reader not in slot.readers:
                found.freeze(slot.cells, f'{named(reader)} reads "{value.name}" too')


_PASSING = (
    "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "Elu", "Selu",
    "Celu", "Softplus", "Softsign", "Mish", "Gelu", "Swish", "Erf", "Exp", "Log", "Sqrt", "Neg",
    "Abs", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "ThresholdedRelu", "Identity", "Dropout",
    "Cast", "CastLike", "Not", "IsNaN", "IsInf", "Sin", "Cos", "Tan", "Atan", "Shrink",
)  # fmt: skip
_PLACES = (
    "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
    "GridSample", "RoiAlign", "MaxRoiPool",
)  # fmt: skip
_ARITHMETIC = (
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "Pow", "PRelu", "Mod", "Where",
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor",
)  # fmt: skip
_REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceProd", "ReduceLogSumExp",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_PASSING, pass_on),
    **dict.fromkeys(_PLACES, places.places),
    **dict.fromkeys(_ARITHMETIC, meeting.elementwise),
    **dict.fromkeys(("Conv", "ConvTranspose"), weights.convolution),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), weights.normalisation),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), weights.layer_normalisation),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), weights.recurrent),
    **dict.fromkeys(_REDUCTIONS, places.reduction),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), shapes.moved_axes),
    **dict.fromkeys(("Reshape", "Flatten"), shapes.reshape),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), shapes.depth_to_space),
    **dict.fromkeys(("Softmax", "LogSoftmax"), places.softmax),
    "GroupNormalization": weights.group_normalisation,
    "MatMul": meeting.matmul,
    "Gemm": meeting.gemm,
    "Einsum": meeting.einsum,
    "Concat": places.concat,
    "Split": places.split,
    "Slice": places.slice_,
    "Gather": places.gather,
    "CumSum": places.cumulative,
    "Pad": places.pad,
    "Resize": places.resize,
    "Upsample": pass_on,
    "Expand": places.expand,
    "Tile": places.tile,
    "Transpose": shapes.transpose,
    "Shape": shapes.shape,
    "Size": shapes.shape,
}
