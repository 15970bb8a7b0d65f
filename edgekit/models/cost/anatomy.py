"""What of a graph is alive, what is fixed before any input is seen, and what is only a view."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgekit.models.operators import RANDOM
from edgekit.models.schedule import captured_by

# Their output is their first input's memory under another shape.
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_STANDARD_DOMAINS = ("", "ai.onnx")


def is_standard(node: ir.Node) -> bool:
    """Whether the operator is one of ONNX's own, so that its meaning is known."""
    return node.domain in _STANDARD_DOMAINS


def is_view(node: ir.Node) -> bool:
    """Whether the node computes nothing and copies nothing."""
    return is_standard(node) and node.op_type in VIEWS


def label(node: ir.Node) -> str:
    """The name under which a node is shown: its own, else its first output's."""
    return node.name or (node.outputs[0].name if node.outputs else "") or node.op_type


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """What the node reads, and what the graphs inside it read of the graphs around them."""
    for value in node.inputs:
        if value is not None:
            yield value
    yield from captured_by(node)


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node: the branches of an If, the body of a Loop or a Scan."""
    for stored in node.attributes.values():
        if stored.type == ir.AttributeType.GRAPH:
            yield stored.as_graph()
        elif stored.type == ir.AttributeType.GRAPHS:
            yield from stored.as_graphs()


def live_nodes(graph: ir.Graph) -> tuple[ir.Node, ...]:
    """The nodes that some output of the graph depends on, in the graph's order."""
    wanted = set(graph.outputs)
    alive = []
    for node in reversed(graph):
        if any(output in wanted for output in node.outputs):
            alive.append(node)
            wanted.update(reads(node))
    return tuple(reversed(alive))


def is_stored(value: ir.Value) -> bool:
    """Whether the file holds the value's numbers: an initializer, or what a Constant gives."""
    producer = value.producer()
    return value.is_initializer() or (
        producer is not None and is_standard(producer) and producer.op_type == "Constant"
    )


def fixed_values(graph: ir.Graph) -> set[ir.Value]:
    """The values that follow from stored numbers alone: a runtime computes them once, on loading.

    What is random is not fixed, nor is what an unknown operator or a graph inside a node gives.
    """
    fixed = set(graph.initializers.values())
    for node in graph:
        if not is_standard(node) or node.op_type in RANDOM or any(bodies(node)):
            continue
        # CastLike takes no more than a type from its second input.
        given = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
        if all(value is None or value in fixed for value in given):
            fixed.update(node.outputs)
    return fixed


def stored_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every stored value that a live node reads, those of the graphs inside nodes too, once."""
    seen: set[ir.Value] = set()
    for node in live_nodes(graph):
        for value in reads(node):
            if value not in seen and is_stored(value):
                seen.add(value)
                yield value
        for body in bodies(node):
            for value in stored_values(body):
                if value not in seen:
                    seen.add(value)
                    yield value
    for value in graph.outputs:
        if value not in seen and is_stored(value):
            seen.add(value)
            yield value
