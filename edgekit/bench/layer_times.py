"""The layers that a profiler saw, mapped back to the nodes of the graph that the engine is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.engines.profiled import Profiled, ProfiledLayer
from edgekit.values import Figure, Unknown, figure_to_json

_FUSED_BEHIND = frozenset(
    ("Add", "Sum", "Mul", "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSigmoid",
     "HardSwish", "Elu", "Gelu", "Softplus", "BatchNormalization")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GraphNode:
    """A node of the graph: its tensors by name, initializers among the inputs."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MappedLayer:
    """A layer, its share of all layers' time, and the nodes of the graph that it computes."""

    layer: ProfiledLayer
    share: float
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """All layers. `unmapped_share` is of their time; `between_share` is of a call, in no layer."""

    profiled: Profiled
    layers: tuple[MappedLayer, ...]
    unmapped_share: float
    between_share: Figure

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "source": self.profiled.source,
            "calls": self.profiled.calls,
            "whole_ms": figure_to_json(_milliseconds(self.profiled.whole_seconds)),
            "between_share": figure_to_json(self.between_share),
            "unmapped_share": self.unmapped_share,
            "layers": [
                {
                    "name": one.layer.name, "kind": one.layer.kind,
                    "ms": 1e3 * one.layer.seconds,
                    "median_ms": figure_to_json(_milliseconds(one.layer.median_seconds)),
                    "share": one.share, "nodes": list(one.nodes),
                }
                for one in self.layers
            ],
        }  # fmt: skip


def map_layers(profiled: Profiled, graph: Sequence[GraphNode]) -> LayerTable:
    """Each layer with its nodes: those that it names, else those that lead to what it computes.

    A layer that ends in a tensor of the graph is made of the nodes from there back to the ends of
    other layers. Sums and activations that are no layer of their own stand with the last layer
    that they read from, into which runtimes fuse them; another node without a layer of its own
    stands with the one that follows. What only changes a tensor's layout, or is not of the graph
    at all, has no nodes: that is unmapped.
    """
    known = {node.name: node for node in graph}
    makers = {tensor: node for node in graph for tensor in node.outputs}
    ends = {layer.name: _end(layer, makers, known) for layer in profiled.layers}
    places = {tensor: i for i, tensors in enumerate(ends.values()) for tensor in tensors}
    fused = _fused_behind(graph, makers, places)
    total = sum(layer.seconds for layer in profiled.layers)
    mapped = []
    for index, layer in enumerate(profiled.layers):
        named = tuple(name for name in layer.nodes if name in known)
        nodes = named or (*_back_from(ends[layer.name], makers, places), *fused.get(index, ()))
        share = layer.seconds / total if total else 0.0
        mapped.append(MappedLayer(layer=layer, share=share, nodes=nodes))
    whole = profiled.whole_seconds
    return LayerTable(
        profiled=profiled,
        layers=tuple(mapped),
        unmapped_share=sum(one.share for one in mapped if not one.nodes),
        between_share=whole if isinstance(whole, Unknown) else max(0.0, 1 - total / whole),
    )


def _end(
    layer: ProfiledLayer, makers: Mapping[str, GraphNode], known: Mapping[str, GraphNode]
) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(tensor for tensor in layer.ends if tensor in makers))
    if found or layer.name not in known:
        return found
    return known[layer.name].outputs


def _fused_behind(
    graph: Sequence[GraphNode], makers: Mapping[str, GraphNode], places: dict[str, int]
) -> dict[int, list[str]]:
    """Nodes by the place of the layer that they are fused into; `places` gets their tensors too."""
    found: dict[int, list[str]] = {}
    for node in graph:
        if node.op not in _FUSED_BEHIND or any(tensor in places for tensor in node.outputs):
            continue
        read = [tensor for tensor in node.inputs if tensor in makers]
        if not read or not all(tensor in places for tensor in read):
            continue
        place = max(places[tensor] for tensor in read)
        found.setdefault(place, []).append(node.name)
        places.update(dict.fromkeys(node.outputs, place))
    return found


def _back_from(
    tensors: Sequence[str], makers: Mapping[str, GraphNode], cuts: Mapping[str, int]
) -> tuple[str, ...]:
    """The names of the nodes that lead to the tensors, from the first to the last."""
    found: dict[str, None] = {}
    waiting = list(tensors)
    while waiting:
        node = makers.get(waiting.pop(0))
        if node is None or node.name in found:
            continue
        found[node.name] = None
        waiting += [tensor for tensor in node.inputs if tensor not in cuts]
    return tuple(reversed(found))


def _milliseconds(seconds: Figure) -> Figure:
    return seconds if isinstance(seconds, Unknown) else 1e3 * seconds
