"""Attention whose heads together are narrower, or wider, than the stream that they read.

torch's MultiheadAttention has one width for both (torch 2.13, `embed_dim`), so that a head cannot
leave it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import InputError
from edgekit.values import Array


class NarrowAttention(nn.MultiheadAttention):
    """What MultiheadAttention computes, from weights that hold any number of heads.

    softmax(q k^T / sqrt(d)) v over the heads (Vaswani et al., "Attention Is All You Need", 2017,
    3.2); d is the width that a head had before it was cut, since the graph has that number too.
    Parameters, arguments and results are those of torch's class.
    """

    scale: float

    def forward(  # noqa: PLR0913, PLR0917 - as torch's
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None,
        average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """(output, weights or None), of the shapes that torch's documentation gives."""
        del is_causal  # a hint beside attn_mask, which says it all
        is_single = query.dim() == 2
        if is_single:
            query, key, value = (one.unsqueeze(0) for one in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (one.transpose(0, 1) for one in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = _added(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = functional.dropout(weights, dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(
                q, k, v, mask, dropout, scale=self.scale
            )
        found = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if is_single:
            return found[0], None if weights is None else weights[0]
        return found if self.batch_first else found.transpose(0, 1), weights

    def _projected(self, *inputs: Tensor) -> list[Tensor]:
        """The queries, keys and values of each head: (n, heads, length, d)."""
        packed = self.in_proj_weight
        matrices = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if packed is None
            else packed.chunk(3)
        )
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            _by_head(functional.linear(one, matrix, bias), self.num_heads)
            for one, matrix, bias in zip(inputs, matrices, biases, strict=True)
        ]


def _by_head(projected: Tensor, heads: int) -> Tensor:
    """(n, length, heads * d) as (n, heads, length, d)."""
    return projected.reshape(*projected.shape[:2], heads, -1).transpose(1, 2)


def _added(mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    """What is added to the scores (n, heads, queries, keys); a true entry of a mask forbids."""
    found: Tensor | None = None
    if mask is not None:
        shaped = mask.reshape(-1, q.shape[1], *mask.shape[1:]) if mask.dim() == 3 else mask
        found = _as_scores(shaped, q)
    if padding is not None:
        hidden = _as_scores(padding, q)[:, None, None, :]
        found = hidden if found is None else found + hidden
    return found


def _as_scores(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


def narrowed(layer: Any, name: str, cut: Mapping[str, Mapping[int, tuple[Array, int]]]) -> None:
    """Brings the numbers of a MultiheadAttention into line; if it must be, it is narrow afterwards.

    Raises InputError where the three projections lose different heads, or a head a part.
    """
    width = _one_cut(layer, name, cut)
    before = layer.num_heads
    packed = layer.in_proj_weight
    queries = layer.q_proj_weight if packed is None else packed[: len(packed) // 3]
    inner, stream = queries.shape
    if width is not None:
        layer.num_heads = parts_left(width, layer.head_dim * before, before, name)
    layer.kdim, layer.vdim = (
        (stream, stream)
        if packed is not None
        else (layer.k_proj_weight.shape[1], layer.v_proj_weight.shape[1])
    )
    if (
        inner == stream == layer.out_proj.weight.shape[0]
        and inner == layer.num_heads * layer.head_dim
    ):
        layer.embed_dim = stream
        return
    if layer.bias_k is not None or layer.bias_v is not None or layer.add_zero_attn:
        raise InputError(
            "an attention with bias_k, bias_v or add_zero_attn cannot lose heads", where=name
        )
    if type(layer) is not nn.MultiheadAttention and type(layer) is not NarrowAttention:
        raise InputError(
            "an attention of your own cannot lose heads without its stream", where=name,
            got=type(layer).__name__, wanted="torch.nn.MultiheadAttention itself",
        )  # fmt: skip
    if type(layer) is nn.MultiheadAttention:
        layer.__class__ = NarrowAttention
        layer.scale = float(layer.head_dim) ** -0.5
    layer.embed_dim, layer.head_dim = stream, inner // layer.num_heads
    # torch's fast path for encoder layers computes with `embed_dim` alone; this keeps it off.
    layer._qkv_same_embed_dim = False


def _one_cut(
    layer: Any, name: str, cut: Mapping[str, Mapping[int, tuple[Array, int]]]
) -> Array | None:
    """The kept inner channels, the same for queries, keys and values; None where all stay."""
    whole = layer.head_dim * layer.num_heads
    found: list[Array] = []
    if layer.in_proj_weight is not None:
        kept, _ = cut.get("in_proj_weight", {}).get(0, (np.arange(3 * whole), 0))
        found = [kept[kept // whole == part] % whole for part in range(3)]
    else:
        for own in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            found.append(cut.get(own, {}).get(0, (np.arange(whole), 0))[0])
    if not all(np.array_equal(found[0], other) for other in found[1:]):
        raise InputError(
            "the plan takes different channels from queries, keys and values", where=name,
            wanted="whole heads",
        )  # fmt: skip
    return None if len(found[0]) == whole else found[0]


def parts_left(kept: Array, channels: int, parts: int, name: str) -> int:
    """How many of the parts of equal size the kept channels leave: some go, or all get narrower.

    Raises InputError where those that stay would be of different sizes.
    """
    counts = np.bincount(kept // (channels // parts), minlength=parts)
    left = counts[counts > 0]
    if (left != left[0]).any():
        raise InputError(
            f'the plan does not fit the {parts} groups or heads of "{name}"',
            got=f"{', '.join(map(str, counts.tolist()[:16]))} channels kept of each",
            wanted="whole ones, or as many channels of each",
        )  # fmt: skip
    return len(left)
