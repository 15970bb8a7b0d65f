"""The graph with taps: each tensor is reduced to a few numbers where it is made, and freed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.models.model import Model, add_parameter, after_step, editable
from edgekit.quantize.ranging.finite import may_turn_nan
from edgekit.values import Array, Feeds

_AXES_ARE_INPUTS = 18  # the operator set since which ReduceMin and its kin read their axes
_SUM_AXES_ARE_INPUTS = 13  # and ReduceSum
_PREFIX = "edgekit.tap"

ENDS, SUM = ("low", "high"), "sum"
CHANNELS = ("channel_low", "channel_high", "channel_mean", "channel_mean_square")


def tap_name(part: str, tensor: str) -> str:
    """What a tap's part is called: an output, or for `pick` the input with the indices."""
    return f"{_PREFIX}.{part}/{tensor}"


def tapped(model: Model, names: Sequence[str], *, channels: Collection[str] = ()) -> Model:
    """The Model with only taps as its outputs, for each tensor of `names` by `tap_name`:

        shape   its sizes
        low, high   of each row (n,): a sample, or the whole where it has fewer than 2 axes
        sum     of each row, where a NaN could be that `low` and `high` pass over (`may_turn_nan`)
        picked  the values at the indices of the further input `pick` into the flattened tensor
        channel_low, channel_high, channel_mean, channel_mean_square   (c,), where in `channels`

    What the taps do not need is not computed.
    """
    program = editable(model)
    graph = program.graph
    values = {value.name: value for value in graph.inputs}
    order = {name: place for place, name in enumerate(values)}
    for node in graph:
        for value in node.outputs:
            order[value.name] = len(order)
            values[value.name] = value
    graph.outputs.clear()
    suspected = may_turn_nan(model, frozenset(names))
    # ONNX Runtime (1.32) orders the nodes depth-first from the last end of the graph: the taps of
    # the first tensor stand last, so that each tensor can be freed before the next is made.
    # Inserted where the tensors are, the taps run at the end, with all tensors still alive.
    for name in sorted(names, key=lambda name: order[name], reverse=True):
        _Tap(graph, values[name], model.opset).add(
            with_sum=name in suspected, with_channels=name in channels
        )
    RemoveUnusedNodesPass()(program)  # ONNX Runtime computes nodes that lead nowhere too
    return after_step(model, program, "tap")


class _Tap:
    """Adds the nodes of one tap to the end of the graph."""

    def __init__(self, graph: ir.Graph, value: ir.Value, opset: int) -> None:
        self.graph = graph
        self.value = value
        self.name = value.name or ""
        self.opset = opset

    def add(self, *, with_sum: bool, with_channels: bool) -> None:
        self._emit("shape", self._node("Shape", [self.value]), ir.DataType.INT64)
        source = self.value
        if source.dtype is not ir.DataType.FLOAT:
            source = self._node("Cast", [source], to=ir.DataType.FLOAT)
        if source.shape is not None and len(source.shape) >= 2:
            rows = self._node("Flatten", [source], axis=1)
        else:
            rows = self._node("Reshape", [source, self._constant([1, -1])])
        operators = ("ReduceMin", "ReduceMax")
        for part, operator in zip(ENDS, operators, strict=True):
            self._emit(part, self._reduced(operator, rows, [1]))
        if with_sum:
            self._emit(SUM, self._reduced("ReduceSum", rows, [1]))
        pick = ir.val(
            tap_name("pick", self.name), type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([f"{self.name}.picked"]),
        )  # fmt: skip
        self.graph.inputs.append(pick)
        flat = self._node("Reshape", [source, self._constant([-1])])
        # On one axis the two are the same; ONNX Runtime's GatherElements is three times as quick.
        self._emit("picked", self._node("GatherElements", [flat, pick], axis=0))
        if with_channels:
            rank = len(source.shape or self.value.shape or (0, 0))
            axes = [axis for axis in range(rank) if axis != 1]
            squares = self._node("Mul", [source, source])
            for part, operator, of in zip(
                CHANNELS, (*operators, "ReduceMean", "ReduceMean"),
                (source, source, source, squares), strict=True,
            ):  # fmt: skip
                self._emit(part, self._reduced(operator, of, axes))

    def _reduced(self, operator: str, value: ir.Value, axes: list[int]) -> ir.Value:
        since = _SUM_AXES_ARE_INPUTS if operator == "ReduceSum" else _AXES_ARE_INPUTS
        if self.opset >= since:
            return self._node(operator, [value, self._constant(axes)], keepdims=0)
        return self._node(operator, [value], axes=axes, keepdims=0)

    def _constant(self, numbers: list[int]) -> ir.Value:
        name = f"{_PREFIX}.numbers/{','.join(map(str, numbers))}"
        present = self.graph.initializers.get(name)
        return (
            present
            if present is not None
            else add_parameter(self.graph, name, np.array(numbers, np.int64))
        )

    def _node(self, operator: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        node = ir.node(operator, inputs, attributes=attributes)  # type: ignore[arg-type]
        node.outputs[0].name = f"{_PREFIX}.{len(self.graph)}/{self.name}"
        self.graph.append(node)
        return node.outputs[0]

    def _emit(self, part: str, value: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        value.name = tap_name(part, self.name)
        value.type = ir.TensorType(dtype)
        self.graph.outputs.append(value)


def with_picks(feeds: Feeds, picks: dict[str, Array]) -> dict[str, Array]:
    """The feeds of a tapped model: the model's own, and the indices of each tensor by name."""
    return {**feeds, **{tap_name("pick", name): indices for name, indices in picks.items()}}
