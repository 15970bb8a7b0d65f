"""A plan on a user's own `nn.Module`: the same channels leave it that left the graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.channels.plan import Plan
from edgekit.errors import InputError
from edgekit.values import Array

if TYPE_CHECKING:
    from torch import nn

# The attributes that say how many channels there are, and the axis of `weight` that they count; a
# grouped convolution's input axis counts the channels of one group.
_COUNTS: Mapping[str, Mapping[str, int]] = {
    "_ConvNd": {"out_channels": 0, "in_channels": 1},
    "_ConvTransposeNd": {"in_channels": 0, "out_channels": 1},
    "Linear": {"out_features": 0, "in_features": 1},
    "_BatchNorm": {"num_features": 0},
    "_InstanceNorm": {"num_features": 0},
    "PReLU": {"num_parameters": 0},
    "GroupNorm": {"num_channels": 0},
}


def cut_module(module: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the module without the channels that the plan leaves out; its code is the user's.

    Layers that torch knows have their counts changed with their weights. A forward pass that has
    channel numbers written into it (a view of 512, a split) must be changed by hand.
    Raises InputError for a tensor that the module does not have, or that is too small.
    """
    import torch
    from torch import nn

    found = copy.deepcopy(module)
    stored: dict[str, torch.Tensor] = {
        **dict(found.named_parameters()),
        **dict(found.named_buffers()),
    }
    missing = sorted({name for name, _ in plan.kept if name not in stored})
    if missing:
        raise InputError(
            "the plan is for another network", got=f"no tensor {', '.join(missing[:8])}",
            wanted="the module that the model was exported from, with the same names",
        )  # fmt: skip
    for (name, axis), indices in plan.kept.items():
        tensor = stored[name]
        if axis >= tensor.ndim or (len(indices) and indices[-1] >= tensor.shape[axis]):
            raise InputError(
                f'the plan does not fit "{name}"', got=f"axis {axis}, entry {indices[-1]}",
                wanted=f"a tensor of {tuple(tensor.shape)}",
            )  # fmt: skip
        kept = tensor.detach().index_select(axis, torch.from_numpy(np.asarray(indices)))
        owner, _, own = name.rpartition(".")
        place = found.get_submodule(owner)
        if isinstance(tensor, nn.Parameter):
            setattr(place, own, nn.Parameter(kept, requires_grad=tensor.requires_grad))
            stored[name] = getattr(place, own)
        else:
            place.register_buffer(own, kept)
            stored[name] = kept
    for name, layer in found.named_modules():
        _recount(layer, name, plan.kept)
    return found


def _recount(layer: Any, name: str, kept: Mapping[tuple[str, int], Array]) -> None:
    """Brings the numbers of a layer into line with its weight."""
    prefix = f"{name}." if name else ""
    if not any(
        tensor.startswith(prefix) and "." not in tensor[len(prefix) :] for tensor, _ in kept
    ):
        return
    bases = {base.__name__ for base in type(layer).__mro__}
    weight = getattr(layer, "weight", None)
    for base, counts in _COUNTS.items():
        if base not in bases or weight is None:
            continue
        if base in ("_ConvNd", "_ConvTransposeNd") and layer.groups > 1:
            is_depthwise = layer.groups == layer.in_channels
            if is_depthwise:
                multiplier = layer.out_channels // layer.groups
                layer.out_channels = weight.shape[0]
                layer.groups = layer.in_channels = weight.shape[0] // multiplier
                return
            layer.out_channels = weight.shape[0]
            layer.in_channels = weight.shape[1] * layer.groups
            return
        for attribute, axis in counts.items():
            setattr(layer, attribute, weight.shape[axis])
        return
