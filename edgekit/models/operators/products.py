"""Matrix products and attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.models.operators import Builder, Function, Op


def gemm(op: Op) -> Function:
    """ONNX Gemm: alpha A' B' + beta C."""
    alpha, beta = float(op.get("alpha", 1.0)), float(op.get("beta", 1.0))
    left, right = bool(op.get("transA", 0)), bool(op.get("transB", 0))
    if alpha == beta == 1.0 and not left and right and len(op.node.inputs) > 2:
        constant = op.constant(2)
        if constant is not None and constant.ndim == 1:
            return functional.linear

    def function(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = (a.t() if left else a) @ (b.t() if right else b)
        product = product if alpha == 1.0 else (alpha * product).to(a.dtype)
        return product if c is None else product + (c if beta == 1.0 else (beta * c).to(c.dtype))

    return function


def einsum(op: Op) -> Function:
    """ONNX Einsum."""
    equation = str(op.get("equation"))
    return lambda *operands: torch.einsum(equation, *operands)


def integer_product(op: Op) -> Function:
    """ONNX MatMulInteger: the int32 product of both less their zero points."""

    def function(
        a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
    ) -> Tensor:
        left, right = a.to(torch.int32), b.to(torch.int32)
        if a_zero is not None:
            rows = a_zero.to(torch.int32)
            left = left - (rows.unsqueeze(-1) if rows.ndim == 1 and rows.numel() > 1 else rows)
        if b_zero is not None:
            right = right - b_zero.to(torch.int32)
        return left @ right

    return function


@dataclass(frozen=True)
class _Sight:
    """Which keys a query sees: up to itself, and so many to its left and right (-1: all)."""

    causal: bool
    left: int
    right: int

    def hidden(self, queries: int, keys: int, offset: int | Tensor) -> Tensor | None:
        """True where a key is out of sight; the first query stands at `offset`."""
        column = torch.arange(keys).reshape(1, -1)
        place = torch.arange(queries).reshape(-1, 1) + offset
        found: Tensor | None = None
        bounds = []
        if self.causal or self.right >= 0:
            bounds.append(column > place + (0 if self.causal else self.right))
        if self.left >= 0:
            bounds.append(column < place - self.left)
        for beyond in bounds:
            found = beyond if found is None else found | beyond
        return found


def attention(op: Op) -> Function:
    """ONNX Attention: softmax(Q K' scale + bias) V, heads apart (n, h, t, d) or packed (n, t, hd).

    Query heads may share keys; a past is put before the keys; `softcap` bounds the scores before
    the bias is added. A query that sees no key gives 0.
    """
    sight = _Sight(
        bool(op.get("is_causal", 0)), int(op.get("left_window_size", -1)),
        int(op.get("right_window_size", -1)),
    )  # fmt: skip
    softcap, scale = float(op.get("softcap", 0.0)), op.get("scale")
    shown = int(op.get("qk_matmul_output_mode", 0))
    q_heads, kv_heads = op.get("q_num_heads"), op.get("kv_num_heads")
    outputs = len(op.node.outputs)

    def apart(x: Tensor, heads: Any) -> Tensor:
        if x.ndim == 4:
            return x
        n, t, width = x.shape
        return x.reshape(n, t, int(heads), width // int(heads)).transpose(1, 2)

    def function(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
        past_v: Tensor | None = None, lengths: Tensor | None = None,
    ) -> Any:  # fmt: skip
        packed = q.ndim == 3
        q, k, v = apart(q, q_heads), apart(k, kv_heads), apart(v, kv_heads)
        if past_k is not None and past_v is not None:
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        present = k, v
        if k.shape[1] != q.shape[1]:
            each = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
        factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
        scores = (q * factor**0.5) @ (k * factor**0.5).transpose(-1, -2)
        capped = torch.tanh(scores / softcap) * softcap if softcap else scores
        offset: int | Tensor = 0 if past_k is None else past_k.shape[2]
        if lengths is not None:
            offset = (lengths - q.shape[2]).reshape(-1, 1, 1, 1).cpu()
        hidden = sight.hidden(q.shape[2], k.shape[2], offset)
        if lengths is not None:
            beyond = torch.arange(k.shape[2]) >= lengths.reshape(-1, 1, 1, 1).cpu()
            hidden = beyond if hidden is None else hidden | beyond
        biased = _biased(capped, mask, hidden)
        weights = torch.softmax(biased.to(torch.float32), dim=-1).to(q.dtype)
        weights = weights.masked_fill(torch.isneginf(biased).all(-1, keepdim=True), 0.0)
        y = weights @ v
        if packed:
            y = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)
        if outputs == 1:
            return y
        return (y, *present, (scores, capped, biased, weights)[shown])[:outputs]

    return function


def _biased(scores: Tensor, mask: Tensor | None, hidden: Tensor | None) -> Tensor:
    """The scores with the mask added, minus infinity where nothing may be seen."""
    if mask is not None:
        short = scores.shape[-1] - mask.shape[-1]
        if mask.dtype == torch.bool:
            wall = functional.pad(~mask, [0, short], value=True) if short else ~mask
            scores = scores.masked_fill(wall, float("-inf"))
        else:
            scores = scores + functional.pad(mask, [0, short], value=float("-inf"))
    if hidden is not None:
        scores = scores.masked_fill(hidden.to(scores.device), float("-inf"))
    return scores


def rotary_embedding(op: Op) -> Function:
    """ONNX RotaryEmbedding: pairs of features turned by the angle of their position."""
    interleaved, width = bool(op.get("interleaved", 0)), int(op.get("rotary_embedding_dim", 0))
    heads = op.get("num_heads")

    def function(
        x: Tensor, cosine: Tensor, sine: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        shape = x.shape
        packed = len(shape) == 3
        x = x.reshape(shape[0], shape[1], int(heads), -1) if packed else x.transpose(1, 2)
        turned = width or x.shape[-1]
        part, rest = x[..., :turned], x[..., turned:]
        c, s = (cosine, sine) if positions is None else (cosine[positions], sine[positions])
        c, s = c[..., : turned // 2].unsqueeze(2), s[..., : turned // 2].unsqueeze(2)
        if interleaved:
            a, b = part[..., 0::2], part[..., 1::2]
        else:
            a, b = part.chunk(2, dim=-1)
        real, imaginary = c * a - s * b, s * a + c * b
        if interleaved:
            part = torch.stack([real, imaginary], dim=-1).flatten(-2)
        else:
            part = torch.cat([real, imaginary], dim=-1)
        found = torch.cat([part, rest], dim=-1)
        return found.reshape(shape) if packed else found.transpose(1, 2)

    return function


BUILDERS: Mapping[str, Builder] = {
    "Attention": attention,
    "Det": lambda op: torch.linalg.det,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": lambda op: torch.matmul,
    "MatMulInteger": integer_product,
    "RotaryEmbedding": rotary_embedding,
}
