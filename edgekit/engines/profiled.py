"""What a runtime's own profiler says of an engine's layers, whichever runtime it is."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.values import Figure


@dataclass(frozen=True, kw_only=True)
class ProfiledLayer:
    """One layer: mean and median seconds a call.

    `ends` are tensors that it may have computed, `nodes` the ONNX nodes that it says it is made of;
    either may be empty, and no name need be one of the graph.
    """

    name: str
    kind: str
    seconds: float
    median_seconds: Figure
    ends: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """The layers in the order run. `whole_seconds` is the mean of a call, with what lies between.

    A profiler slows down what it watches: these are shares of a call, not its latency.
    """

    layers: tuple[ProfiledLayer, ...]
    whole_seconds: Figure
    calls: int
    source: str
