"""Where a dialect wants Q/DQ: which tensors, read by whom, and why a node stays in float."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from edgekit.models.cost import node_costs
from edgekit.models.model import Model, attribute, constant_of
from edgekit.quantize.dialects import Dialect, Side
from edgekit.quantize.placing.anatomy import (
    WEIGHTED,
    is_float,
    makes_no_numbers,
    multiplies_weight,
    tail_of,
    weight_axis,
    why_not_a_layer,
)
from edgekit.quantize.placing.patterns import (
    TAIL,
    Plan,
    inputs_read,
    is_absorbed,
    obstacle,
)
from edgekit.quantize.scheme import Placement, WeightPlace

__all__ = ["WEIGHTED", "macs_by_layer", "place", "share_of_macs", "weight_axis"]


def place(
    model: Model, dialect: Dialect, *, excluded: Mapping[str, str] | None = None
) -> Placement:
    """Where Q/DQ stand in a Model by the dialect's rules.

    Every layer whose weight is stored works on integers. What is between layers does so where that
    joins them: its inputs are made of integers, and its output is read as such. What comes behind
    the last layer stays in floating point.

    `excluded` nodes stay in floating point too, each for its reason. BatchNormalization should be
    folded before, and weights be initializers (`models.simplify.clean`).
    """
    planner = _Planner(model.graph, dialect, excluded or {})
    planner.choose()
    planner.write()
    reads = planner.reads
    return Placement(
        dialect=dialect,
        reads={name: None if every is None else frozenset(every) for name, every in reads.items()},
        weights=planner.weights,
        integer=planner.integer,
        left={node.name or "": reason for node, reason in planner.left.items()},
        shared=tuple(_sharing(model.graph, dialect, planner.integer, reads)),
    )


def share_of_macs(model: Model, placement: Placement) -> float:
    """The share, 0 to 1, of the layers' multiply-accumulates that work on integers.

    Layers are Conv, ConvTranspose, Gemm and the MatMul of a stored weight; 1.0 where there is none.
    A dynamic batch is 1. Raises InputError where a shape is not known.
    """
    macs = macs_by_layer(model)
    total = sum(macs.values())
    done = sum(count for node, count in macs.items() if node in placement.integer)
    return done / total if total else 1.0


def macs_by_layer(model: Model) -> dict[str, int]:
    """The multiply-accumulates of each layer; what a layer is and errors as in `share_of_macs`."""
    layers = {node.name or "" for node in model.graph if multiplies_weight(node)}
    return {cost.node: cost.macs for cost in node_costs(model) if cost.node in layers}


class _Planner:
    """Chooses who works on integers, then notes what that reads and writes."""

    def __init__(self, graph: ir.Graph, dialect: Dialect, excluded: Mapping[str, str]) -> None:
        self.graph, self.dialect, self.excluded = graph, dialect, excluded
        self.plan = Plan(
            dialect=dialect,
            positions={node: position for position, node in enumerate(graph)},
            tail=tail_of(graph),
        )
        self.reads: dict[str, set[tuple[str, int]] | None] = {}
        self.weights: dict[str, WeightPlace] = {}
        self.integer: dict[str, str] = {}
        self.left: dict[ir.Node, str] = {}

    def choose(self) -> None:
        """Starts from all that could work on integers and leaves out what has no use for them."""
        candidates = []
        for node in self.graph:
            reason = self._first_look(node)
            if reason:
                self.left[node] = reason
                continue
            self.plan.working.add(node)
            if node.op_type not in WEIGHTED:
                candidates.append(node)
        changed = True
        while changed:
            changed = False
            for node in reversed(candidates):
                if node in self.plan.working and (reason := obstacle(self.plan, node)):
                    self.plan.working.discard(node)
                    self.left[node] = reason
                    changed = True

    def write(self) -> None:
        """Notes the reads, the weights and the reasons."""
        for node in self.graph:
            if node in self.plan.working:
                self._write_one(node)
            elif is_absorbed(node, self.dialect) and _follows(node, self.plan.working):
                self.left[node] = "the integers of the node in front of it end where it clamps"

    def _first_look(self, node: ir.Node) -> str:
        """A reason that holds whatever else works on integers."""
        name = node.name or ""
        if name in self.excluded:
            return self.excluded[name]
        if makes_no_numbers(node):
            return "it computes sizes or indices"
        if node.domain or node.op_type not in self.dialect.places:
            return TAIL if node in self.plan.tail else _no_kernel(node, self.dialect)
        if node.op_type not in WEIGHTED:
            return ""
        if not is_float(node.inputs[0]):
            return "an input is not float32"
        return why_not_a_layer(node)

    def _write_one(self, node: ir.Node) -> None:
        name = node.name or ""
        side = self.dialect.places[node.op_type]
        is_layer = node.op_type in WEIGHTED
        for index in [0] if is_layer else inputs_read(self.plan, node):
            self._read(node.inputs[index], (name, index))
        if is_layer:
            self.weights[name] = _weight_place(node)
            if node.op_type == "Conv" and self.dialect.quantized_outputs:
                self._write_output(node.outputs[0], also_graph_outputs=True)
        elif side is Side.BOTH or self.dialect.quantized_outputs:
            for output in node.outputs:
                self._write_output(output)
        self.integer[name] = node.op_type

    def _write_output(self, value: ir.Value, *, also_graph_outputs: bool = False) -> None:
        end = self.plan.end_of(value)
        if also_graph_outputs or (end.uses() and not end.is_graph_output()):
            self.reads[end.name or ""] = None

    def _read(self, value: ir.Value | None, use: tuple[str, int]) -> None:
        assert value is not None
        present = self.reads.setdefault(value.name or "", set())
        if present is not None:
            present.add(use)


def _no_kernel(node: ir.Node, dialect: Dialect) -> str:
    runtime = "TensorRT" if dialect.runtime == "tensorrt" else "ONNX Runtime"
    return f"{runtime} has no integer {node.op_type}, or none that gains"


def _follows(node: ir.Node, working: set[ir.Node]) -> bool:
    source = node.inputs[0]
    return source is not None and source.producer() in working


def _weight_place(node: ir.Node) -> WeightPlace:
    source, weight = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert source is not None
    assert weight is not None
    return WeightPlace(
        node=node.name or "", op=node.op_type, weight=weight.name or "", axis=weight_axis(node),
        bias=(bias.name or "") if bias is not None and bias.is_initializer() else "",
        source=source.name or "", added=_added_bias(node), groups=int(attribute(node, "group", 1)),
    )  # fmt: skip


def _added_bias(node: ir.Node) -> str:
    """The Add behind a MatMul that adds a stored vector and reads nothing else."""
    uses = list(node.outputs[0].uses())
    if node.op_type != "MatMul" or len(uses) != 1 or node.outputs[0].is_graph_output():
        return ""
    behind, index = uses[0].node, uses[0].idx
    if behind.op_type != "Add" or behind.domain:
        return ""
    bias = constant_of(behind.inputs[1 - index])
    weight = constant_of(node.inputs[1])
    assert weight is not None
    return (behind.name or "") if bias is not None and bias.shape == weight.shape[1:] else ""


def _sharing(
    graph: ir.Graph, dialect: Dialect, integer: Mapping[str, str], placed: Mapping[str, object]
) -> Iterator[frozenset[str]]:
    """The sets of placed tensors that must have one scale, by name."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for node in graph:
        if (node.name or "") in integer and node.op_type in dialect.shared_scale:
            values = [
                *node.outputs,
                *(node.inputs if node.op_type == "Concat" else node.inputs[:1]),
            ]
            names = [v.name for v in values if v is not None and v.name]
            first, *others = [find(name) for name in names] or [""]
            for other in others:
                leader[other] = first
    groups: dict[str, set[str]] = {}
    for name in leader:
        if name in placed:
            groups.setdefault(find(name), set()).add(name)
    yield from (frozenset(group) for group in groups.values() if len(group) > 1)
