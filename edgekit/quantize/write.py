"""Q/DQ into the graph, as a Scheme says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, constant_of, editable
from edgekit.quantize.dialects import Dialect
from edgekit.quantize.grids import Grid, bias_grid
from edgekit.quantize.place import place
from edgekit.quantize.placing.patterns import is_absorbed
from edgekit.quantize.prepare import LOWEST_OPSET, prepared
from edgekit.quantize.ranges import Choice, Ranges
from edgekit.quantize.scheme import Scheme, StoredWeight, WeightPlace, make_scheme
from edgekit.values import Array


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """How many of each operator work on integers, and why the others do not, by node."""

    dialect: str
    quantized: Mapping[str, int]
    left: Mapping[str, str]
    tensors: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {op}" for op, n in sorted(self.quantized.items()))
        return "; ".join((f"{counts} quantized", f"{len(self.left)} left", *self.notes))


def insert_qdq(model: Model, ranges: Ranges, dialect: Dialect, choose: Choice) -> tuple[
    Model, QuantizeReport
]:  # fmt: skip
    """The Model with Q/DQ as `dialect` wants them, every weight rounded to the nearest.

    A Model at an older opset is raised to 13, and the report says so. BatchNormalization should be
    folded before. Raises InputError as `place` and `write_qdq` do.
    """
    before = model.opset
    model = prepared(model)
    scheme = make_scheme(model, place(model, dialect), ranges, choose)
    written, report = write_qdq(model, scheme)
    if model.opset != before:
        note = (
            f"opset {before} raised to {model.opset}: there are no scales for each channel before"
        )
        report = replace(report, notes=(note,))
    return written, report


def write_qdq(model: Model, scheme: Scheme) -> tuple[Model, QuantizeReport]:
    """The Model with the Q/DQ of a Scheme of it.

    Raises InputError where the operator set is older than 13, or where nothing is quantized.
    """
    placement = scheme.placement
    _check_opset(model)
    if not placement.integer:
        raise nothing_to_quantize(model, scheme.dialect)
    program = editable(model)
    writer = _Writer(program.graph, scheme)
    for node in list(program.graph):
        if (node.name or "") in placement.weights:
            writer.quantize_weight(node)
    writer.insert_activations()
    RemoveUnusedNodesPass()(program)
    report = QuantizeReport(
        dialect=scheme.dialect.name,
        quantized=dict(Counter(placement.integer.values())),
        left=placement.left,
        tensors=len(placement.reads),
    )
    return after_step(model, program, f"quantize:{scheme.dialect.name}"), report


def nothing_to_quantize(model: Model, dialect: Dialect) -> InputError:
    """The error for a Model none of whose operators a dialect has an integer place for."""
    return InputError(
        "no operator of this model can be quantized", where=model.name,
        got=", ".join(sorted(Counter(node.op_type for node in model.graph))),
        wanted=", ".join(dialect.places),
        hint='Ask for `precision = "fp16"` or "fp32" in [engine].',
    )  # fmt: skip


def _check_opset(model: Model) -> None:
    if model.opset < LOWEST_OPSET:
        raise InputError(
            "this model's operator set is too old for per-channel quantization",
            where=model.name, got=f"opset {model.opset}", wanted=f"opset {LOWEST_OPSET} or later",
            hint="Raise it first (`quantize.prepare.prepared`).",
        )  # fmt: skip


class _Writer:
    """Writes the pairs of one Scheme into one graph."""

    def __init__(self, graph: ir.Graph, scheme: Scheme) -> None:
        self.graph = graph
        self.scheme = scheme
        self.dialect = scheme.dialect
        self.nodes = {node.name or "": node for node in graph}
        self.values = {value.name or "": value for value in graph.inputs}
        self.values.update((v.name or "", v) for node in graph for v in node.outputs)

    def quantize_weight(self, node: ir.Node) -> None:
        """The node reads its stored weight, and its bias as the dialect has it."""
        at = self.scheme.placement.weights[node.name or ""]
        stored = self.scheme.weights[at.node]
        grid, name = stored.grid, at.weight
        if self.dialect.stored_weights:
            value = self._constant(f"{name}.quantized", stored.integers)
        else:
            # Floating-point numbers that lie on the grid: QuantizeLinear gives these very integers.
            value = self._constant(f"{name}.on_grid", stored.values)
            value = self._pair_half("QuantizeLinear", node, value, name, grid)
        node.replace_input_with(1, self._pair_half("DequantizeLinear", node, value, name, grid))
        if self.dialect.integer_bias and (at.bias or at.added):
            self._quantize_bias(node, at, stored)

    def _quantize_bias(self, node: ir.Node, at: WeightPlace, stored: StoredWeight) -> None:
        """The bias that the node adds, or that the Add behind a MatMul does, as integers."""
        adding = self.nodes[at.added] if at.added else node
        index = 2 if adding is node else _stored_input(adding)
        value = adding.inputs[index]
        bias = constant_of(value)
        if value is None or bias is None or bias.ndim != 1:
            return
        grid = bias_grid(self.scheme.activations[at.source], stored.grid, len(bias))
        integers = self._constant(f"{value.name}.quantized", grid.quantize(bias))
        half = self._pair_half("DequantizeLinear", adding, integers, value.name or "", grid)
        adding.replace_input_with(index, half)

    def _pair_half(
        self, op: str, before: ir.Node, value: ir.Value, name: str, grid: Grid
    ) -> ir.Value:
        """The output of one QuantizeLinear or DequantizeLinear of a constant, before a node."""
        scale = self._constant(f"{name}.scale", grid.scale)
        zero = self._constant(f"{name}.zero_point", grid.zero_point)
        attributes = {"axis": grid.axis} if grid.scale.ndim else {}
        while f"{name}.{op}" in self.nodes:  # two layers may read one weight, each with a grid
            name = f"{name}_"
        half = ir.node(op, [value, scale, zero], attributes=attributes, name=f"{name}.{op}")
        self.nodes[f"{name}.{op}"] = half
        self.graph.insert_before(before, half)
        half.outputs[0].name = f"{name}.{'q' if op.startswith('Q') else 'dq'}"
        integers = ir.DataType.from_numpy(grid.zero_point.dtype)
        kind = integers if op == "QuantizeLinear" else ir.DataType.FLOAT
        half.outputs[0].type, half.outputs[0].shape = ir.TensorType(kind), value.shape
        return half.outputs[0]

    def insert_activations(self) -> None:
        """Writes the Q/DQ pair of every placed activation, one pair a tensor."""
        first = next(iter(self.graph))
        for name, reads in self.scheme.placement.reads.items():
            value, grid = self.values[name], self.scheme.activations[name]
            uses = {(use.node, use.idx) for use in value.uses()}
            if reads is not None:
                uses = {(self.nodes[node], index) for node, index in reads}
            scale = self._constant(f"{name}.scale", grid.scale)
            zero = self._constant(f"{name}.zero_point", grid.zero_point)
            source = self._before_clamping(value, grid)
            down = ir.node("QuantizeLinear", [source, scale, zero], name=f"{name}.QuantizeLinear")
            down.outputs[0].name = f"{name}.q"
            up = ir.node(
                "DequantizeLinear", [down.outputs[0], scale, zero], name=f"{name}.DequantizeLinear"
            )
            up.outputs[0].name = f"{name}.dq"
            up.outputs[0].type, up.outputs[0].shape = value.type, value.shape
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(first, [down, up])
            else:
                self.graph.insert_after(producer, [down, up])
            for node, index in uses:
                node.replace_input_with(index, up.outputs[0])
            if reads is None and value.is_graph_output():
                self._give_out(value, up.outputs[0])

    def _give_out(self, value: ir.Value, instead: ir.Value) -> None:
        """Makes another value the graph's output, under the name that this one has."""
        name = value.name
        value.name = f"{name}.float"
        instead.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = instead

    def _before_clamping(self, value: ir.Value, grid: Grid) -> ir.Value:
        """What a Relu or Clip reads, where quantizing it clamps just as that does, else the value.

        ONNX Runtime sees this by itself behind a Conv, but not behind an Add.
        """
        node = value.producer()
        if node is None or not is_absorbed(node, self.dialect):
            return value
        source = node.inputs[0]
        bounds = [*map(constant_of, node.inputs[1:]), None, None][:2]
        low = 0.0 if node.op_type == "Relu" else bounds[0]
        high = None if node.op_type == "Relu" else bounds[1]
        least, most = grid.limits
        ends_below = low is None or grid.quantize(np.asarray(low)) <= least
        ends_above = high is None or grid.quantize(np.asarray(high)) >= most
        return source if source is not None and ends_below and ends_above else value

    def _constant(self, name: str, array: Array) -> ir.Value:
        if name in self.graph.initializers:
            present = self.graph.initializers[name]
            stored = constant_of(present)
            if stored is not None and stored.dtype == array.dtype and np.array_equal(stored, array):
                return present
            return self._constant(f"{name}_", array)
        value = ir.val(name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
        self.graph.register_initializer(value)
        return value


def _stored_input(node: ir.Node) -> int:
    """The position of the input that is stored."""
    return next(i for i, value in enumerate(node.inputs) if constant_of(value) is not None)
