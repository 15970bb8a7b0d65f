"""Measures layers alone: each as a small graph through the target's runtime, at many widths."""

from __future__ import annotations

import contextlib
import gc
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgekit.compress.channels.budgeting.layers import Layer
from edgekit.engines.base import EngineRequest, runtime_module
from edgekit.models.model import Model, save
from edgekit.targets import Target
from edgekit.values import Array, Feeds, Session

Prepare = Callable[[Model], Model]
"""What makes a floating-point graph ready for the runtime: Q/DQ in its dialect, say."""

_OPSET = 17
_FEW = 1
# A layer's time is the slope between a graph of one copy and one of several: what a call costs, and
# what it takes to bring data into the runtime's own layout and back, is in both.
_MORE = 4
_SHORT_MORE = 24
_SHORT_S = 3e-5
_LEAST_CALLS = 5


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Seconds of one layer inside a network.

    `spread` is the distance of the rounds' quartiles over the seconds. `resolved` is False where
    the rounds do not tell the layer from nothing; the seconds are then the upper quartile of what
    was seen either way: hardly less than it takes. `taken_at` is seconds since the epoch.
    """

    seconds: float
    spread: float
    rounds: int
    resolved: bool
    taken_at: float


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """How layers take turns: `rounds` rounds, in each every graph for `turn_s`."""

    rounds: int = 9
    turn_s: float = 0.008
    threads: int = 0


def measure_layers(
    layers: Sequence[Layer], target: Target, plan: LayerPlan,
    *, prepare: Prepare = lambda model: model,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[LayerTime, ...]:  # fmt: skip
    """The time of each layer, all of them in turn, in the order given.

    For each one graph with one copy of the layer and one with n more, of the same input, added up;
    the layer's time is the difference of what the two take undisturbed, over n. The sum runs inside
    a convolution's kernel where the runtime fuses it, as in a residual network. Raises as the
    runtime's `build` does.
    """
    with contextlib.ExitStack() as stack:
        pairs = []
        for index, layer in enumerate(layers):
            pairs.append(_pair(stack, layer, prepare, (target, plan)))
            on_progress(0.5 * (index + 1) / len(layers))
        for turn in range(plan.rounds):
            for pair in pairs:
                pair.take_turn(plan.turn_s)
            on_progress(0.5 + 0.5 * (turn + 1) / plan.rounds)
    return tuple(pair.time() for pair in pairs)


def measure_bytes_per_s(elements: int, target: Target, plan: LayerPlan) -> float:
    """How many bytes a second a sum of two tensors of that size moves in the target's runtime.

    Each of the chained sums reads two tensors and writes one.
    """
    with contextlib.ExitStack() as stack:
        few, more = (_sums(elements, count) for count in (1, 1 + _MORE))
        where = target, plan
        pair = _Pair(_opened(stack, few, "fp32", where), _opened(stack, more, "fp32", where), _MORE)
        for _ in range(plan.rounds):
            pair.take_turn(plan.turn_s)
    return 12.0 * elements / pair.time().seconds


@dataclass
class _Pair:
    """A graph of one copy, one of `copies` more, and for each the calls of every round."""

    few: tuple[Session, Feeds]
    more: tuple[Session, Feeds]
    copies: int
    calls: tuple[list[Array], list[Array]] = field(default_factory=lambda: ([], []))

    def take_turn(self, seconds: float) -> None:
        """One more round."""
        for (session, feeds), calls in zip((self.few, self.more), self.calls, strict=True):
            calls.append(_turn(session, feeds, seconds))

    def time(self) -> LayerTime:
        """The slope between the two, of all rounds together and of each alone."""
        rounds = [
            (_low(more) - _low(few)) / self.copies for few, more in zip(*self.calls, strict=True)
        ]
        few, more = (_low(np.concatenate(calls)) for calls in self.calls)
        return layer_time((more - few) / self.copies, rounds)


def _low(calls: Array) -> float:
    """What a call takes where nobody disturbs it: the lowest tenth ends there.

    Other programs only ever add to a call, and to a long one more often than to a short one: the
    median of a machine at work would make wide layers dearer than they are.
    """
    return float(np.quantile(calls, 0.1))


_Where = tuple[Target, LayerPlan]


def _pair(
    stack: contextlib.ExitStack, layer: Layer, prepare: Prepare, where: _Where
) -> _Pair:  # fmt: skip
    few = _opened(stack, prepare(layer_model(layer, _FEW)), layer.precision, where)
    is_short = _low(_turn(*few, where[1].turn_s)) < _SHORT_S
    copies = _SHORT_MORE if is_short else _MORE
    more = _opened(stack, prepare(layer_model(layer, _FEW + copies)), layer.precision, where)
    return _Pair(few, more, copies)


def _opened(
    stack: contextlib.ExitStack, model: Model, precision: str, where: _Where
) -> tuple[Session, Feeds]:
    target, plan = where
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-")))
    runtime = runtime_module(target.runtime.name)
    place = folder / "layer.onnx"
    save(model, place)
    request = EngineRequest(
        model_path=place, name=model.name, target=target, precision=precision, threads=plan.threads
    )
    session = stack.enter_context(runtime.open(runtime.build(request, folder)))
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: rng.standard_normal([int(size) for size in spec.shape]).astype(spec.dtype)
        for spec in model.inputs
    }
    session.stage(feeds)
    return session, feeds


def _turn(session: Session, feeds: Feeds, seconds: float) -> Array:
    """The seconds of a turn's calls, five at least; the first fifth of it is not counted."""
    clock = time.perf_counter
    session.stage(feeds)
    samples: list[float] = []
    gc.disable()
    try:
        begun = clock()
        settled, end = begun + 0.2 * seconds, begun + seconds
        while True:
            start = clock()
            session.execute()
            done = clock()
            if start >= settled:
                samples.append(done - start)
                if done >= end and len(samples) >= _LEAST_CALLS:
                    break
    finally:
        gc.enable()
    return np.asarray(samples)


def layer_time(together: float, rounds: Sequence[float]) -> LayerTime:
    """The LayerTime of a slope over all rounds and those of each round."""
    low, high = np.quantile(rounds, [0.25, 0.75])
    resolved = bool(low > 0 and together > 0)
    least = float(np.quantile(np.abs(rounds), 0.75))
    seconds = together if resolved else max(least, 1e-9)
    return LayerTime(
        seconds=seconds,
        spread=float(high - low) / seconds,
        rounds=len(rounds),
        resolved=resolved,
        taken_at=time.time(),
    )


def layer_model(layer: Layer, copies: int) -> Model:
    """A graph of `copies` of the layer with weights of their own, all of one input, added up.

    Input `x` (batch, channels_in, inner...) for a convolution, (batch, inner..., channels_in) for a
    product; the weights are seeded noise that keeps the variance.
    """
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    total = ""
    for copy in range(copies):
        weight, bias, output = f"w{copy}", f"b{copy}", f"y{copy}"
        stored += [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in ((weight, _weight(layer, rng)), (bias, _bias(layer, rng)))
        ]
        nodes += _layer_nodes(layer, weight, bias, output)
        if total:
            nodes.append(helper.make_node("Add", [output, total], [f"s{copy}"]))
            output = f"s{copy}"
        if layer.activation:
            nodes.append(_activation(layer.activation, output, f"a{copy}", stored))
            output = f"a{copy}"
        total = output
    widths = (layer.channels_in, *layer.inner)
    if layer.op == "MatMul":
        widths = (*layer.inner, layer.channels_in)
    return _model("layer", nodes, stored, {"x": (layer.batch, *widths)}, total)


def _layer_nodes(layer: Layer, weight: str, bias: str, output: str) -> list[onnx.NodeProto]:
    if layer.op == "MatMul" and not layer.inner:
        return [helper.make_node("Gemm", ["x", weight, bias], [output])]
    if layer.op == "MatMul":
        return [
            helper.make_node("MatMul", ["x", weight], [f"{output}.product"]),
            helper.make_node("Add", [f"{output}.product", bias], [output]),
        ]
    return [
        helper.make_node(
            layer.op, ["x", weight, bias], [output], kernel_shape=layer.kernel,
            strides=layer.strides, pads=layer.pads, dilations=layer.dilations, group=layer.group,
        )
    ]  # fmt: skip


def _weight(layer: Layer, rng: np.random.Generator) -> Array:
    shape: tuple[int, ...] = (layer.channels_in, layer.channels_out)
    fan_in = layer.channels_in
    if layer.op == "Conv":
        shape = (layer.channels_out, layer.channels_in // layer.group, *layer.kernel)
        fan_in = math.prod(shape[1:])
    elif layer.op == "ConvTranspose":
        shape = (layer.channels_in, layer.channels_out // layer.group, *layer.kernel)
    return rng.normal(0, fan_in**-0.5, shape)


def _bias(layer: Layer, rng: np.random.Generator) -> Array:
    return rng.normal(0, 0.1, layer.channels_out)


def _activation(
    op: str, source: str, output: str, stored: list[onnx.TensorProto]
) -> onnx.NodeProto:  # fmt: skip
    if op != "Clip":
        return helper.make_node(op, [source], [output])
    if not any(tensor.name == "least" for tensor in stored):
        stored += [
            numpy_helper.from_array(np.float32(bound), name)
            for name, bound in (("least", 0.0), ("most", 6.0))
        ]
    return helper.make_node(op, [source, "least", "most"], [output])


def _sums(elements: int, count: int) -> Model:
    nodes = [
        helper.make_node("Add", [f"s{i - 1}" if i else "x", "z"], [f"s{i}"]) for i in range(count)
    ]
    shapes = {"x": (1, elements), "z": (1, elements)}
    return _model("sums", nodes, [], shapes, f"s{count - 1}")


def _model(
    name: str, nodes: list[onnx.NodeProto], stored: list[onnx.TensorProto],
    inputs: Mapping[str, tuple[int, ...]], output: str,
) -> Model:  # fmt: skip
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        stored,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    return Model(name=name, program=ir.from_proto(inferred))
