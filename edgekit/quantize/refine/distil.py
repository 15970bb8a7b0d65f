"""Quantization-aware distillation: the quantized network is trained to answer as the float one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.compress.recover import RecoverOptions, RecoverReport, recover
from edgekit.data.batches import Batches
from edgekit.models.batch import fixed_batch
from edgekit.models.model import Model, after_step, constant_of, editable, set_parameter
from edgekit.quantize.refine.graph import with_biases
from edgekit.quantize.refine.overflow import bounded
from edgekit.quantize.scheme import Scheme, StoredWeight, with_weights
from edgekit.quantize.write import write_qdq
from edgekit.values import Array

OnFraction = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class DistilOptions:
    """How long, on how many samples; the rest is as in `compress.recover.RecoverOptions`.

    `mirror` shows images flipped from left to right too: not for text, nor where left and right
    mean something.
    """

    samples: int = 1024
    epochs: int = 4
    learning_rate: float = 1e-4
    batch: int = 32
    mirror: bool = False
    seed: int = 0


def distil(
    model: Model, scheme: Scheme, teacher: Model, batches: Batches,
    options: DistilOptions | None = None, *, on_fraction: OnFraction = lambda share: None,
) -> tuple[Model, Scheme, RecoverReport]:  # fmt: skip
    """The Model and Scheme with weights that were trained in the quantized network.

    Activations and weights are rounded in the forward pass, gradients go straight through
    (`models.operators.quantization`). Grids stay: what comes out are other integers, biases and
    unquantized weights. Raises InputError and MissingPackageError as `recover` does.
    """
    options = options or DistilOptions()
    model, scheme = with_biases(model, scheme)
    written, _ = write_qdq(model, scheme)
    some = batches.take(options.samples)
    chosen = RecoverOptions(
        epochs=options.epochs, learning_rate=options.learning_rate,
        batch=fixed_batch(model) or options.batch, mirror=options.mirror, seed=options.seed,
    )  # fmt: skip
    trained, report = recover(
        written, teacher, some, chosen,
        on_progress=lambda done, total, said: on_fraction(done / max(total, 1)),
    )  # fmt: skip
    return *read_back(model, scheme, trained), report


def read_back(model: Model, scheme: Scheme, written: Model) -> tuple[Model, Scheme]:
    """The Model and Scheme whose `write_qdq` has the numbers of a written and then trained one."""
    program = editable(model)
    nodes = {node.name or "": node for node in written.graph}
    weights: dict[str, StoredWeight] = {}
    for name, array in _floats(written):
        before = program.graph.initializers.get(name)
        if before is not None and before.const_value is not None:
            set_parameter(program.graph, name, array)
    for place in scheme.placement.weights.values():
        node, stored = nodes[place.node], scheme.weights[place.node]
        integers = _integers(node.inputs[1], stored)
        found = StoredWeight(integers=integers, grid=stored.grid)
        weights[place.node] = bounded(found, place) if scheme.dialect.adds_in_16_bits else found
        if place.bias and len(node.inputs) > 2:
            bias = _real(node.inputs[2])
            like = constant_of(program.graph.initializers[place.bias])
            assert like is not None
            set_parameter(program.graph, place.bias, bias.reshape(like.shape).astype(like.dtype))
    return after_step(model, program, "distil"), with_weights(scheme, weights)


def _floats(model: Model) -> list[tuple[str, Array]]:
    found = []
    for name, value in model.graph.initializers.items():
        array = constant_of(value)
        if array is not None and array.dtype.kind == "f":
            found.append((name, array))
    return found


def _integers(value: ir.Value | None, stored: StoredWeight) -> Array:
    """What a DequantizeLinear before a layer reads: stored, or made by a QuantizeLinear."""
    back = value.producer() if value is not None else None
    source = back.inputs[0] if back is not None else None
    assert source is not None
    quantizing = source.producer()
    if quantizing is None:
        integers = constant_of(source)
        assert integers is not None
        return integers
    array = constant_of(quantizing.inputs[0])
    assert array is not None
    return stored.grid.quantize(array)


def _real(value: ir.Value | None) -> Array:
    """A bias: stored as it is, or integers behind a DequantizeLinear."""
    array = constant_of(value)
    if array is not None:
        return array
    back = value.producer() if value is not None else None
    assert back is not None
    integers, scale = constant_of(back.inputs[0]), constant_of(back.inputs[1])
    assert integers is not None
    assert scale is not None
    return integers.astype(np.float64) * scale
