"""Recurrent layers: RNN, GRU and LSTM, with every option of ONNX's.

The equations and their letters are those of the ONNX operators. Weights are (directions, gates *
hidden, inputs); a sample shorter than the sequence keeps its last state and gives 0 afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.models.operators import Builder, Function, Op

_Activation = Callable[[Tensor], Tensor]
_States = tuple[Tensor, ...]
_Step = Callable[[Tensor, _States], _States]

# Default alpha and beta of the activations that have them.
_NUMBERS: Mapping[str, tuple[float, float]] = {
    "affine": (1.0, 0.0), "leakyrelu": (0.01, 0.0), "thresholdedrelu": (1.0, 0.0),
    "scaledtanh": (1.0, 1.0), "hardsigmoid": (0.2, 0.5), "elu": (1.0, 0.0),
}  # fmt: skip


def _activation(name: str, alpha: float, beta: float) -> _Activation | None:
    known: dict[str, _Activation] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softsign": functional.softsign,
        "softplus": functional.softplus,
        "affine": lambda x: alpha * x + beta,
        "leakyrelu": lambda x: functional.leaky_relu(x, alpha),
        "thresholdedrelu": lambda x: torch.where(x > alpha, x, torch.zeros_like(x)),
        "scaledtanh": lambda x: alpha * torch.tanh(beta * x),
        "hardsigmoid": lambda x: torch.clamp(alpha * x + beta, 0, 1),
        "elu": lambda x: functional.elu(x, alpha),
    }
    return known.get(name)


def _activations(op: Op, defaults: tuple[str, ...]) -> list[_Activation]:
    directions = 2 if op.get("direction", "forward") == "bidirectional" else 1
    names = [str(n).lower() for n in op.get("activations", defaults * directions)]
    alphas, betas = list(op.get("activation_alpha", ())), list(op.get("activation_beta", ()))
    found = []
    for name in names:
        alpha, beta = _NUMBERS.get(name, (0.0, 0.0))
        if name in _NUMBERS:
            alpha = alphas.pop(0) if alphas else alpha
            if name in ("affine", "scaledtanh", "hardsigmoid"):
                beta = betas.pop(0) if betas else beta
        function = _activation(name, alpha, beta)
        if function is None:
            raise op.refuse(f"it does not know the activation {name}")
        found.append(function)
    return found


@dataclass(frozen=True)
class _Weights:
    """The weights of one direction: w (gates h, i), r (gates h, h), biases, peepholes (3 h)."""

    w: Tensor
    r: Tensor
    wb: Tensor
    rb: Tensor
    p: Tensor | None = None


def _bounded(op: Op) -> _Activation:
    clip = op.get("clip")
    return (lambda x: x) if clip is None else (lambda x: torch.clamp(x, -float(clip), float(clip)))


def _rnn_step(op: Op, weights: _Weights, acts: list[_Activation]) -> _Step:
    bound = _bounded(op)

    def step(x: Tensor, states: _States) -> _States:
        h = functional.linear(x, weights.w, weights.wb)
        return (acts[0](bound(h + functional.linear(states[0], weights.r, weights.rb))),)

    return step


def _gru_step(op: Op, weights: _Weights, acts: list[_Activation]) -> _Step:
    bound, reset_after = _bounded(op), bool(op.get("linear_before_reset", 0))
    f, g = acts

    def step(x: Tensor, states: _States) -> _States:
        (h,) = states
        xz, xr, xh = functional.linear(x, weights.w, weights.wb).chunk(3, -1)
        rz, rr, rh = weights.r.chunk(3, 0)
        bz, br, bh = weights.rb.chunk(3, -1)
        z = f(bound(xz + functional.linear(h, rz, bz)))
        r = f(bound(xr + functional.linear(h, rr, br)))
        if reset_after:
            inner = xh + r * functional.linear(h, rh, bh)
        else:
            inner = xh + functional.linear(r * h, rh, bh)
        return ((1 - z) * g(bound(inner)) + z * h,)

    return step


def _lstm_step(op: Op, weights: _Weights, acts: list[_Activation]) -> _Step:
    bound, coupled = _bounded(op), bool(op.get("input_forget", 0))
    f, g, last = acts
    pi, po, pf = (0.0, 0.0, 0.0) if weights.p is None else weights.p.chunk(3, -1)

    def step(x: Tensor, states: _States) -> _States:
        h, c = states
        gates = functional.linear(x, weights.w, weights.wb)
        gates = gates + functional.linear(h, weights.r, weights.rb)
        i, o, fo, inner = gates.chunk(4, -1)
        i = f(bound(i + pi * c))
        fo = 1 - i if coupled else f(bound(fo + pf * c))
        c = fo * c + i * g(bound(inner))
        return f(bound(o + po * c)) * last(c), c

    return step


_STEPS = {"RNN": _rnn_step, "GRU": _gru_step, "LSTM": _lstm_step}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_ACTIVATIONS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}


def recurrent(op: Op) -> Function:
    """ONNX RNN, GRU and LSTM: all outputs (t, directions, n, h), the last state, the last cell."""
    kind = op.node.op_type
    acts = _activations(op, _ACTIVATIONS[kind])
    direction, batch_first = str(op.get("direction", "forward")), bool(op.get("layout", 0))
    states_count = 2 if kind == "LSTM" else 1
    each = len(_ACTIVATIONS[kind])
    outputs = len(op.node.outputs)

    def function(
        x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
        h: Tensor | None = None, c: Tensor | None = None, p: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        if batch_first:
            x = x.transpose(0, 1)
            h, c = (None if s is None else s.transpose(0, 1) for s in (h, c))
        hidden = r.shape[-1]
        every, finals = [], []
        for d in range(w.shape[0]):
            zero = x.new_zeros(x.shape[1], hidden)
            start = [zero if s is None else s[d] for s in (h, c)][:states_count]
            bias = x.new_zeros(2 * _GATES[kind] * hidden) if b is None else b[d]
            wb, rb = bias.chunk(2)
            weights = _Weights(w[d], r[d], wb, rb, None if p is None else p[d])
            step = _STEPS[kind](op, weights, acts[d * each : (d + 1) * each])
            backwards = direction == "reverse" or d == 1
            shown, last = _scan(step, x, tuple(start), lengths, backwards=backwards)
            every.append(shown)
            finals.append(last)
        y = torch.stack(every, dim=1)
        ends = [torch.stack([final[i] for final in finals]) for i in range(states_count)]
        if batch_first:
            y, ends = y.permute(2, 0, 1, 3), [end.transpose(0, 1) for end in ends]
        return (y, *ends)[:outputs]

    return function


def _scan(
    step: _Step, x: Tensor, states: _States, lengths: Tensor | None, *, backwards: bool
) -> tuple[Tensor, _States]:
    order = range(x.shape[0] - 1, -1, -1) if backwards else range(x.shape[0])
    shown: list[Tensor] = [x.new_zeros(0)] * x.shape[0]
    for t in order:
        after = step(x[t], states)
        if lengths is None:
            shown[t], states = after[0], after
            continue
        alive = (t < lengths.to(x.device)).reshape(-1, 1)
        states = tuple(torch.where(alive, a, s) for a, s in zip(after, states, strict=True))
        shown[t] = torch.where(alive, after[0], torch.zeros_like(after[0]))
    return torch.stack(shown), states


BUILDERS: Mapping[str, Builder] = dict.fromkeys(("RNN", "GRU", "LSTM"), recurrent)
