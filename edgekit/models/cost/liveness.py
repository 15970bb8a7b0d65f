"""How much memory the activations need at once: who is alive at each node, not the sum of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.models.cost.anatomy import bodies, fixed_values, is_view, label, live_nodes, reads
from edgekit.models.cost.sizes import Forms
from edgekit.models.model import Model
from edgekit.values import Unknown


@dataclass(frozen=True, kw_only=True)
class LiveTensor:
    """A tensor that takes memory at the peak; its views take none of their own."""

    name: str
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most bytes of activations at once, the node at which they are, and what they are.

    Unknown where some tensor's size is; `at_least_bytes`, `node` and `live` (the largest first)
    then leave out what is not known.
    """

    peak_bytes: int | Unknown
    at_least_bytes: int
    node: str
    live: tuple[LiveTensor, ...]


def peak_activations(
    model: Model, known: Forms, *, bytes_of: Mapping[ir.Value, int] | None = None
) -> Peak:
    """The peak of the activations when the nodes run in the graph's order.

    A tensor takes memory from the node that makes it to the last node that reads it, both
    included; one that nobody reads takes it at its own node. The inputs of the graph belong to the
    caller and stay from the first node to the last, its outputs stay from where they are made.
    Reshape, Flatten, Squeeze, Unsqueeze and Identity make a view: the same memory, alive as long
    as any of its names. No other operator is taken to work in place, and a kernel's own workspace
    is not counted. What follows from stored numbers alone is no activation; what no output depends
    on does not run.

    `bytes_of` replaces the size of some tensors, as another precision does.
    """
    nodes = live_nodes(model.graph)
    fixed = fixed_values(model.graph)
    home = _homes(model.graph, nodes, fixed)
    last = _last_uses(model.graph, nodes, home)
    sizes: dict[ir.Value, int] = {}
    doubts: list[str] = []
    for value in dict.fromkeys(home.values()):
        form = known.get(value)
        nbytes = Unknown("it is not of this graph") if form is None else form.nbytes
        if isinstance(nbytes, Unknown):
            doubts.append(f'"{value.name}": {nbytes.reason}')
        else:
            sizes[value] = (bytes_of or {}).get(value, nbytes)
    doubts += [
        f'what runs inside {node.op_type} "{label(node)}" is not counted'
        for node in nodes
        if any(bodies(node))
    ]

    alive = {home[v]: None for v in model.graph.inputs if v in home}
    total = sum(sizes.get(value, 0) for value in alive)
    best, at, held = -1, "", list(alive)
    for index, node in enumerate(nodes):
        for output in node.outputs:
            memory = home.get(output)
            if memory is not None and memory not in alive:
                alive[memory] = None
                total += sizes.get(memory, 0)
        if total > best:
            best, at, held = total, label(node), list(alive)
        for memory in [m for m in alive if last[m] <= index]:
            del alive[memory]
            total -= sizes.get(memory, 0)
    live = [LiveTensor(name=v.name or "", nbytes=sizes[v]) for v in held if v in sizes]
    more = f", and {len(doubts) - 1} more" if len(doubts) > 1 else ""
    return Peak(
        peak_bytes=Unknown(doubts[0] + more) if doubts else max(best, 0),
        at_least_bytes=max(best, 0),
        node=at,
        live=tuple(sorted(live, key=lambda tensor: -tensor.nbytes)),
    )


def _homes(
    graph: ir.Graph, nodes: tuple[ir.Node, ...], fixed: set[ir.Value]
) -> dict[ir.Value, ir.Value]:
    """For each activation the one whose memory it lies in: itself, or what it is a view of."""
    home = {value: value for value in graph.inputs if value not in fixed}
    for node in nodes:
        for output in node.outputs:
            if output in fixed or not output.name:
                continue
            source = node.inputs[0] if is_view(node) and node.inputs else None
            home[output] = home[source] if source is not None and source in home else output
    return home


def _last_uses(
    graph: ir.Graph, nodes: tuple[ir.Node, ...], home: Mapping[ir.Value, ir.Value]
) -> dict[ir.Value, int]:
    """For each memory the index of the last node at which it is needed."""
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in (*reads(node), *node.outputs):
            if value in home:
                last[home[value]] = index
    for value in (*graph.inputs, *graph.outputs):
        if value in home:
            last[home[value]] = len(nodes)
    return last
