"""High-bias absorption: what a channel never falls under moves behind its Relu, into the next bias.

Where a layer's channel is at least c > 0 on every sample, its Relu does nothing to it, and c can be
taken off its bias and given to the biases of the layer that reads it, W c (Nagel et al. 2019,
Data-Free Quantization, section 4.1.3, with the observed minimum for their mean less three standard
deviations). The activation's range is then spent on what varies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.data.batches import Batches
from edgekit.models.model import Model, after_step, attribute, constant_of
from edgekit.quantize.observe import ObserveOptions, OpenSession, observe
from edgekit.quantize.ranging.histogram import Channels
from edgekit.quantize.refine.graph import only_reader, with_biases, with_parameters
from edgekit.quantize.refine.scales import weight_by_input
from edgekit.quantize.scheme import Placement, Scheme, array_of
from edgekit.values import Array

_LEAST = 1e-3  # of the channel's maximum: less is not worth a new bias


@dataclass(frozen=True, kw_only=True)
class AbsorbReport:
    """How many channels gave something to the next bias, by the node that makes them."""

    channels: Mapping[str, int]

    def __str__(self) -> str:
        if not self.channels:
            return "no channel is always above zero in front of a Relu with one reader"
        return f"{sum(self.channels.values())} channels of {len(self.channels)} layers lowered"


def absorb_biases(
    model: Model, scheme: Scheme, batches: Batches, open_session: OpenSession,
    rescheme: Callable[[Model, Placement], Scheme],
) -> tuple[Model, Scheme, AbsorbReport]:  # fmt: skip
    """The Model with lowered biases, which computes the same on the samples, and its Scheme.

    Only where one layer reads the channel, and reads no padding: there a zero would be missing what
    was taken off. Nothing to absorb is no error. Raises InputError as `observe` does.
    """
    model, scheme = with_biases(model, scheme)
    pairs = list(_pairs(model, scheme.placement))
    names = [name for pair in pairs for name in (pair.made, pair.activated)]
    if not names:
        return model, scheme, AbsorbReport(channels={})
    ranges = observe(
        model, names, batches, open_session, options=ObserveOptions(channels=names)
    )  # fmt: skip
    arrays: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for pair in pairs:
        channels = ranges.tensors[pair.made].channels
        assert channels is not None
        lowered = _always_there(channels, pair.limit)
        if not lowered.any():
            continue
        counts[pair.node] = int((lowered > 0).sum())
        first, second = pair.bias, pair.next_bias
        bias = arrays.get(first, array_of(model, first))
        arrays[first] = (bias - lowered).astype(bias.dtype)
        bias = arrays.get(second, array_of(model, second))
        arrays[second] = (bias + pair.weight @ lowered).astype(bias.dtype)
    if not counts:
        return model, scheme, AbsorbReport(channels={})
    changed = after_step(model, with_parameters(model, arrays).program, "absorb_biases")
    return changed, rescheme(changed, scheme.placement), AbsorbReport(channels=counts)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A layer, the one that alone reads what its Relu lets through, and both their biases.

    `weight` (o, c) is the reader's, summed over its taps; `limit` is the Clip's upper bound.
    """

    node: str
    made: str
    activated: str
    limit: float
    bias: str
    next_bias: str
    weight: Array


def _pairs(model: Model, placement: Placement) -> list[_Pair]:
    found = []
    for node in model.graph:
        place = placement.weights.get(node.name or "")
        relu = only_reader(node.outputs[0])
        if place is None or not place.bias or relu is None or _limit(relu) is None:
            continue
        reader = only_reader(relu.outputs[0])
        following = placement.weights.get((reader.name or "") if reader is not None else "")
        if reader is None or following is None or not following.bias or _pads(reader):
            continue
        limit = _limit(relu)
        assert limit is not None
        found.append(
            _Pair(
                node=place.node, made=node.outputs[0].name or "",
                activated=relu.outputs[0].name or "", limit=limit, bias=place.bias,
                next_bias=following.bias, weight=_summed(reader),
            )
        )  # fmt: skip
    return found


def _limit(node: ir.Node) -> float | None:
    """Over which value a Relu or Clip(0, ...) cuts off; None for any other node."""
    if node.domain:
        return None
    if node.op_type == "Relu":
        return float("inf")
    if node.op_type != "Clip":
        return None
    bounds = [constant_of(value) for value in (*node.inputs[1:], None, None)[:2]]
    if bounds[0] is None or float(bounds[0]) != 0:
        return None
    if bounds[1] is None:
        return float("inf") if len(node.inputs) < 3 or node.inputs[2] is None else None
    return float(bounds[1])


def _pads(node: ir.Node) -> bool:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return True
    if node.op_type != "Conv":
        return False
    return any(attribute(node, "pads", ())) or attribute(node, "auto_pad", "NOTSET") not in (
        "NOTSET", "VALID",
    )  # fmt: skip


def _summed(node: ir.Node) -> Array:
    weight = constant_of(node.inputs[1])
    assert weight is not None
    turned = weight_by_input(node, weight).astype(np.float64)
    taps = turned.reshape(*turned.shape[:2], -1).sum(2)
    groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
    made, inputs = taps.shape
    wide = np.zeros((made, inputs * groups))
    for group in range(groups):
        rows = slice(group * made // groups, (group + 1) * made // groups)
        wide[rows, group * inputs : (group + 1) * inputs] = taps[rows]
    return wide


def _always_there(channels: Channels, limit: float) -> Array:
    """What each channel never falls under; 0 where that is little, or where it is cut off above."""
    fits = (channels.high < limit) & (channels.low > _LEAST * channels.high)
    found: Array = np.where(fits, np.maximum(channels.low, 0), 0.0)
    return found
