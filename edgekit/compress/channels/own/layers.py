"""The numbers that torch's own layers keep beside their weights, after the weights were cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from edgekit.compress.channels.own.narrow_attention import narrowed, parts_left
from edgekit.errors import InputError
from edgekit.values import Array

Cut = Mapping[int, tuple[Array, int]]
"""What was kept of a tensor, by axis: the entries, and how many there were."""

# Attributes that are the length of an axis of `weight`, by the name of torch's class.
_LENGTHS: Mapping[str, Mapping[str, int]] = {
    "Linear": {"out_features": 0, "in_features": 1},
    "Bilinear": {"out_features": 0, "in1_features": 1, "in2_features": 2},
    "Embedding": {"num_embeddings": 0, "embedding_dim": 1},
    "EmbeddingBag": {"num_embeddings": 0, "embedding_dim": 1},
    "PReLU": {"num_parameters": 0},
}
# Tensors that have one entry a channel and so are of one length.
_ALIKE = ("weight", "bias", "running_mean", "running_var")

# Where torch has the classes that hold tensors and compute nothing themselves.
_PLAIN = (".module", ".container")


def recount(layer: nn.Module, name: str, cut: Mapping[str, Cut]) -> None:
    """Brings a layer's numbers into line with its tensors, some of which were cut.

    A layer of the user's own has none that are known: whether it computes what it should, only a
    run can tell. Raises InputError for a layer of torch's that is not known here.
    """
    bases = [base for base in type(layer).__mro__ if base.__module__.startswith("torch.nn.")]
    for base in bases:
        if base.__name__ in _RULES:
            _RULES[base.__name__](layer, name, cut)
            return
    if base_of_layers := [base for base in bases if not base.__module__.endswith(_PLAIN)]:
        raise InputError(
            f"edgekit does not know how a {base_of_layers[0].__name__} gets narrower", where=name,
            got=f"cut: {', '.join(sorted(cut))}", hint="Freeze it, or cut it by hand.",
        )  # fmt: skip


def check_layer(layer: nn.Module, name: str) -> None:
    """Raises InputError where the tensors of one of torch's layers contradict each other."""
    bases = {base.__name__ for base in type(layer).__mro__ if base.__module__.startswith("torch.")}
    found: dict[str, int] = {}
    if bases & {"Linear", "_ConvNd"}:
        made: Any = layer.out_features if "Linear" in bases else layer.out_channels
        found = {"weight": made, **_lengths(layer, ("bias",))}
    elif bases & {"_NormBase", "GroupNorm"}:
        found = _lengths(layer, _ALIKE)
    if len(set(found.values())) > 1:
        raise InputError(
            f'the plan does not fit "{name}"',
            got=", ".join(f"{own} for {count} channels" for own, count in sorted(found.items())),
            wanted="as many channels in each",
            hint="An exporter that transposes weights or gives them other names makes such plans: "
            "make the plan from the module itself.",
        )  # fmt: skip


def _lengths(layer: nn.Module, names: tuple[str, ...]) -> dict[str, int]:
    tensors: dict[str, Any] = {own: getattr(layer, own, None) for own in names}
    return {own: len(tensor) for own, tensor in tensors.items() if tensor is not None}


def _by_length(layer: Any, name: str, cut: Mapping[str, Cut]) -> None:
    del name, cut
    bases = (base.__name__ for base in type(layer).__mro__)
    lengths = next(_LENGTHS[base] for base in bases if base in _LENGTHS)
    for attribute, axis in lengths.items():
        setattr(layer, attribute, layer.weight.shape[axis])


def _embedding(layer: Any, name: str, cut: Mapping[str, Cut]) -> None:
    kept, rows = cut["weight"].get(0, (None, 0))
    if kept is not None and layer.padding_idx is not None:
        place = int(np.searchsorted(kept, layer.padding_idx % rows))
        stays = place < len(kept) and kept[place] == layer.padding_idx % rows
        layer.padding_idx = place if stays else None
    _by_length(layer, name, cut)


def _norm(layer: Any, name: str, cut: Mapping[str, Cut]) -> None:
    del name, cut
    layer.num_features = next(iter(_lengths(layer, _ALIKE).values()))


def _group_norm(layer: Any, name: str, cut: Mapping[str, Cut]) -> None:
    kept, channels = next(iter(cut.values()))[0]
    layer.num_groups = parts_left(kept, channels, layer.num_groups, name)
    layer.num_channels = len(kept)


def _layer_norm(layer: Any, name: str, cut: Mapping[str, Cut]) -> None:
    del name, cut
    layer.normalized_shape = tuple(layer.weight.shape)


def _convolution(layer: Any, name: str, cut: Mapping[str, Cut]) -> None:
    """`weight` is (out, in / groups, ...), of a transposed one (in, out / groups, ...)."""
    if "weight" not in cut:
        return
    if 0 in cut["weight"]:
        kept, length = cut["weight"][0]
        layer.groups = parts_left(kept, length, layer.groups, name)
    whole, of_a_group = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    layer.in_channels, layer.out_channels = (
        (whole, of_a_group) if layer.transposed else (of_a_group, whole)
    )


_RULES: Mapping[str, Callable[[Any, str, Mapping[str, Cut]], None]] = {
    **dict.fromkeys(_LENGTHS, _by_length),
    "Embedding": _embedding, "EmbeddingBag": _embedding,
    "_NormBase": _norm, "GroupNorm": _group_norm, "LayerNorm": _layer_norm, "RMSNorm": _layer_norm,
    "_ConvNd": _convolution, "MultiheadAttention": narrowed,
}  # fmt: skip
