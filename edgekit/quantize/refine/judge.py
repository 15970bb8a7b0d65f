"""One number for how near a quantized network is to its float self, on samples held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.data.batches import Batches
from edgekit.models.model import Model, editable
from edgekit.quantize.judging.parts import Part, output_parts
from edgekit.quantize.observe import OpenSession
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.write import write_qdq
from edgekit.values import Array, Feeds, run

_SQUASHING = ("Softmax", "LogSoftmax", "Sigmoid")
_MOST_DB = 100.0
_TINY = 1e-20


class Judge:
    """What the float network puts out on some samples, to hold quantized ones against."""

    def __init__(self, model: Model, batches: Batches, open_session: OpenSession) -> None:
        self._batches, self._open = batches, open_session
        self._before = before_squashing(model)
        self._parts: Sequence[Part] = [
            *output_parts(model), *(Part(output=name, name=name) for name in self._before)
        ]  # fmt: skip
        self._expected = list(self._outputs(model))

    def score(self, model: Model, scheme: Scheme) -> Array:
        """For each sample the mean over the parts of the outputs of their SQNR in dB.

        What a Softmax or Sigmoid at the end reads is a part too: where that saturates, the output
        alone hardly tells one network from another. By sample, for the noise of all of them
        together is mostly that of one or two.
        """
        return self.score_of(write_qdq(model, scheme)[0])

    def score_of(self, written: Model) -> Array:
        """As `score`, of a Model with its Q/DQ."""
        rows = []
        for expected, found in zip(self._expected, self._outputs(written), strict=True):
            by_part = []
            for part in self._parts:
                x = part.of(expected[part.output]).astype(np.float64)
                by_part.append(_decibels(x, part.of(found[part.output])))
            rows.append(np.mean(by_part, axis=0))
        return np.concatenate(rows)

    def _outputs(self, model: Model) -> Iterator[Feeds]:
        program = editable(model)
        values = {value.name: value for node in program.graph for value in node.outputs}
        program.graph.outputs.extend(values[name] for name in self._before)
        with self._open(replace(model, program=program)) as session:
            for batch in self._batches:
                yield run(session, batch.inputs)


def _decibels(x: Array, y: Array) -> Array:
    """10 log10 of the energy of x over that of y - x, of each entry of the first axis."""
    count = len(x) if x.ndim else 1
    signal = np.square(x).reshape(count, -1).sum(1)
    noise = np.square(y - x).reshape(count, -1).sum(1)
    with np.errstate(divide="ignore"):
        found = 10 * np.log10(np.maximum(signal, _TINY)) - 10 * np.log10(np.maximum(noise, _TINY))
    clipped: Array = np.clip(found, -_MOST_DB, _MOST_DB)
    return clipped


def before_squashing(model: Model) -> list[str]:
    """The values that a Softmax or Sigmoid reads whose output is one of the graph's."""
    found: list[str] = []
    outputs: Sequence[ir.Value] = model.graph.outputs
    for value in outputs:
        node = value.producer()
        source = node.inputs[0] if node is not None and node.op_type in _SQUASHING else None
        if source is not None and source.producer() is not None and not source.is_graph_output():
            found.append(source.name or "")
    return list(dict.fromkeys(found))
