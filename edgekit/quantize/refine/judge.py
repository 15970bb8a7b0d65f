"""One number for how near a quantized network is to its float self, on samples held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.data.batches import Batches
from edgekit.models.model import Model, editable
from edgekit.quantize.judging.outputs import IDENTICAL, judge
from edgekit.quantize.judging.parts import Part, output_parts
from edgekit.quantize.observe import OpenSession
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.write import write_qdq
from edgekit.values import Feeds, Unknown, run

_SQUASHING = ("Softmax", "LogSoftmax", "Sigmoid")
_PERFECT_DB = 120.0


class Judge:
    """What the float network puts out on some samples, to hold quantized ones against."""

    def __init__(self, model: Model, batches: Batches, open_session: OpenSession) -> None:
        self._batches, self._open = batches, open_session
        self._before = before_squashing(model)
        self._parts: Sequence[Part] = [
            *output_parts(model), *(Part(output=name, name=name) for name in self._before)
        ]  # fmt: skip
        self._expected = list(self._outputs(model))

    def score(self, model: Model, scheme: Scheme) -> float:
        """The mean over the parts of the outputs of their SQNR in dB.

        What a Softmax or Sigmoid at the end reads is a part too: where that saturates, the output
        alone hardly tells one network from another. A part that is all 0 counts for nothing.
        """
        return self.score_of(write_qdq(model, scheme)[0])

    def score_of(self, written: Model) -> float:
        """As `score`, of a Model with its Q/DQ."""
        found = judge(self._expected, self._outputs(written), self._parts)
        figures = [_PERFECT_DB if one.sqnr_db == IDENTICAL else one.sqnr_db for one in found]
        known = [figure for figure in figures if not isinstance(figure, Unknown)]
        return float(np.mean(known)) if known else _PERFECT_DB

    def _outputs(self, model: Model) -> Iterator[Feeds]:
        program = editable(model)
        values = {value.name: value for node in program.graph for value in node.outputs}
        program.graph.outputs.extend(values[name] for name in self._before)
        with self._open(replace(model, program=program)) as session:
            for batch in self._batches:
                yield run(session, batch.inputs)


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
