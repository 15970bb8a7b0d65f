"""In which order a graph is run, and what is known before it is: no torch, only the graph.

What follows from the shapes of the graph's inputs alone (Shape, and all that is computed from it
and from constants) is `shaped`: it is computed once for each set of shapes. What can be overwritten
because nobody reads it again, and when a value dies, is known here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from edgekit.models.operators import DATA_SIZED, HOST_INPUTS, RANDOM

# Shape of a tensor, whatever its contents are.
MEASURES = ("Shape", "Size")
# Their outputs are new memory, and their own gradient does not need them.
_FRESH = ("Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul", "Add")


@dataclass(frozen=True)
class Step:
    """A node: where its inputs lie, where its outputs go, what of them is wanted as lists too."""

    node: ir.Node
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    lists: tuple[tuple[int, int], ...]
    shaped: bool
    overwrites: bool


@dataclass
class Schedule:
    """The steps of one graph over numbered slots; the last slot, -1, is nobody's.

    A value that is read as a list (`operators.HOST_INPUTS`) has a second slot for it.
    """

    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    constants: dict[ir.Value, int] = field(default_factory=dict)
    listed_constants: dict[ir.Value, int] = field(default_factory=dict)
    listed_inputs: list[tuple[int, int]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    slots: int = 0

    def recorded(self) -> list[int]:
        """The slots that shaped steps write and others read."""
        written = {s for step in self.steps if step.shaped for s in _written(step)}
        read = {s for step in self.steps if not step.shaped for s in step.reads}
        return sorted(written & (read | set(self.outputs)))

    def dying(self, steps: list[Step]) -> list[tuple[int, ...]]:
        """For each of the steps the slots whose last reader it is; what is recorded stays."""
        stays = {*self.outputs, *self.constants.values(), *self.listed_constants.values(), -1}
        stays |= {*self.recorded()}
        last: dict[int, int] = {}
        for i, step in enumerate(steps):
            for slot in (*_written(step), *step.reads):
                last[slot] = i
        dies: list[list[int]] = [[] for _ in steps]
        for slot, i in last.items():
            if slot not in stays:
                dies[i].append(slot)
        return [tuple(slots) for slots in dies]


def _written(step: Step) -> Iterator[int]:
    yield from step.writes
    yield from (to for _, to in step.lists)


def schedule(
    graph: ir.Graph, captured: Iterable[ir.Value] = (), varying: frozenset[str] = frozenset()
) -> Schedule:
    """The Schedule of a graph. `captured`: what a subgraph reads of the graphs around it.

    `varying` are the initializers that training changes: nothing that follows from them is known
    before.
    """
    found = Schedule()
    tensors: dict[ir.Value, int] = {}
    lists: dict[ir.Value, int] = {}

    def new(slots: dict[ir.Value, int], value: ir.Value) -> int:
        if value not in slots:
            slots[value] = found.slots
            found.slots += 1
        return slots[value]

    listed = {
        value for node in graph for i, value in enumerate(node.inputs)
        if value is not None and not node.domain and i in HOST_INPUTS.get(node.op_type, ())
    }  # fmt: skip
    for value in (*graph.inputs, *captured):
        found.inputs.append(new(tensors, value))
        if value in listed:
            found.listed_inputs.append((tensors[value], new(lists, value)))
    known = _shaped(graph, varying)
    for node in graph:
        reads = []
        for i, read in enumerate(node.inputs):
            as_list = not node.domain and i in HOST_INPUTS.get(node.op_type, ())
            if read is None:
                reads.append(-1)
                continue
            slot = new(lists if as_list else tensors, read)
            if read.is_initializer() and read.graph is graph and not read.is_graph_input():
                (found.listed_constants if as_list else found.constants)[read] = slot
            reads.append(slot)
        inner = list(captured_by(node))
        if not inner and not _subgraphs(node):
            while reads and reads[-1] == -1:
                reads.pop()
        reads += [new(tensors, value) for value in inner]
        for value in inner:
            if value.is_initializer() and value.graph is graph:
                found.constants[value] = tensors[value]
        writes = [new(tensors, v) if v.name else -1 for v in node.outputs]
        found.steps.append(
            Step(
                node=node,
                reads=tuple(reads),
                writes=tuple(writes),
                lists=tuple((tensors[v], new(lists, v)) for v in node.outputs if v in listed),
                shaped=bool(node.outputs) and all(v in known for v in node.outputs),
                overwrites=_may_overwrite(node, graph),
            )
        )
    for value in graph.outputs:
        found.outputs.append(new(tensors, value))
        if value.is_initializer() and value.graph is graph:
            found.constants[value] = tensors[value]
    return found


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for stored in node.attributes.values():
        if stored.type == ir.AttributeType.GRAPH:
            yield stored.as_graph()
        elif stored.type == ir.AttributeType.GRAPHS:
            yield from stored.as_graphs()


def captured_by(node: ir.Node) -> dict[ir.Value, None]:
    """What the graphs inside a node read of the graphs around them, in a fixed order."""
    found: dict[ir.Value, None] = {}
    for graph in _subgraphs(node):
        own: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
        for inner in graph:
            for value in (*inner.inputs, *captured_by(inner)):
                if value is not None and value not in own:
                    found[value] = None
            own.update(inner.outputs)
        for value in graph.outputs:
            if value not in own:
                found[value] = None
    return found


def _shaped(graph: ir.Graph, varying: frozenset[str]) -> set[ir.Value]:
    """The values that follow from constants and the shapes of the graph's inputs alone."""
    known = {
        value for name, value in graph.initializers.items()
        if name not in varying and not value.is_graph_input()
    }  # fmt: skip
    sized = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        hosts = [node.inputs[i] for i in HOST_INPUTS.get(node.op_type, ()) if i < len(node.inputs)]
        if node.domain or node.op_type in (*DATA_SIZED, *RANDOM) or any(_subgraphs(node)):
            if node.op_type in ("Dropout", *RANDOM[:-1]) and all(v in sized for v in given):
                sized.update(node.outputs)
            continue
        if all(v in sized for v in given) and all(v is None or v in known for v in hosts):
            sized.update(node.outputs)
        measured = node.op_type in MEASURES and all(v in sized for v in given)
        if measured or all(v in known for v in given):
            known.update(node.outputs)
            sized.update(node.outputs)
    return known


def _may_overwrite(node: ir.Node, graph: ir.Graph) -> bool:
    """Whether the first input is fresh memory that only this node reads."""
    if not node.inputs or node.inputs[0] is None:
        return False
    value = node.inputs[0]
    producer = value.producer()
    return (
        producer is not None
        and producer.graph is graph
        and producer.op_type in _FRESH
        and not producer.domain
        and len(value.uses()) == 1
        and not value.is_graph_output()
    )
