"""Where a quantized network loses: each node alone, what has come together by then, what clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.quantize.grids import Grid
from edgekit.quantize.judging.alone import (
    Shadows,
    alone,
    ends_of,
    is_end,
    shadowed,
    with_outputs,
)
from edgekit.quantize.judging.outputs import Difference, OpenSession, decibels, judge
from edgekit.quantize.judging.parts import output_parts
from edgekit.quantize.judging.pieces import in_pieces
from edgekit.quantize.ranges import Ranges
from edgekit.quantize.ranging.histogram import TensorRange
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.write import write_qdq
from edgekit.values import Batch, Figure, Unknown, figure_from_json, figure_to_json, run

_NOT_ASKED = Unknown("not asked for")


@dataclass(frozen=True, kw_only=True)
class LayerTensor:
    """A tensor that a node reads or makes in integers.

    `scale` and `zero_point` are the largest of all channels where there are `channels` of them;
    `clipped` is the share of the observed values outside the grid, of a weight unknown.
    """

    name: str
    role: Literal["input", "output", "weight"]
    dtype: str
    bits: int
    scale: float
    zero_point: int
    channels: int
    clipped: Figure


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """What one node's quantization does.

    `alone_db` is the SQNR at the node's own output with this node alone on integers, `output_db`
    that at the model's outputs; `accumulated_db` is the SQNR at the node's output with the whole
    network on integers. A node in floating point has its `reason`, and no figures.
    """

    node: str
    op: str
    alone_db: Figure
    output_db: Figure
    accumulated_db: Figure
    tensors: tuple[LayerTensor, ...] = ()
    reason: str = ""

    @property
    def clipped(self) -> Figure:
        """The largest clipped share of its activations."""
        shares = [t.clipped for t in self.tensors if not isinstance(t.clipped, Unknown)]
        return max(shares, default=Unknown("no activation in integers"))

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "node": self.node, "op": self.op, "reason": self.reason,
            "alone_db": figure_to_json(self.alone_db),
            "output_db": figure_to_json(self.output_db),
            "accumulated_db": figure_to_json(self.accumulated_db),
            "tensors": [
                {**asdict(t), "clipped": figure_to_json(t.clipped)} for t in self.tensors
            ],
        }  # fmt: skip


def layer_error_from_json(stored: Mapping[str, Any]) -> LayerError:
    """What `LayerError.to_json` made."""
    return LayerError(
        node=stored["node"], op=stored["op"], reason=stored["reason"],
        alone_db=figure_from_json(stored["alone_db"]),
        output_db=figure_from_json(stored["output_db"]),
        accumulated_db=figure_from_json(stored["accumulated_db"]),
        tensors=tuple(
            LayerTensor(**{**one, "clipped": figure_from_json(one["clipped"])})
            for one in stored["tensors"]
        ),
    )  # fmt: skip


def judge_layers(
    model: Model, scheme: Scheme, ranges: Ranges, batches: Iterable[Batch],
    open_session: OpenSession, *, damage: Mapping[str, float] | None = None,
) -> tuple[LayerError, ...]:  # fmt: skip
    """The LayerError of every node, in the graph's order, from one pass over the batches.

    `open_session` is to run graphs as they are written (without a runtime's optimisations).
    `damage` by node, as `precision` measures it, becomes `output_db`. A few samples' activations
    are alive at a time, however large the batches are. Raises InputError where there is no sample,
    or where a tensor becomes NaN or infinite.
    """
    shadows = shadowed(model, scheme)
    quantized, names = _tapped(model, scheme, shadows)
    own = {node: Difference() for node in shadows.sites}
    together = {node: Difference() for node in shadows.sites}
    samples = 0
    with open_session(shadows.model) as exact, open_session(quantized) as whole:
        for batch in in_pieces(model, shadows.exact, batches):
            found, accumulated = run(exact, batch.inputs), run(whole, batch.inputs)
            samples += len(batch)
            for node, sites in shadows.sites.items():
                for site in sites:
                    own[node].add(found[site.exact], found[site.integer], where=node)
                    together[node].add(
                        found[site.exact], accumulated[names[site.exact]], where=node
                    )
    if not samples:
        raise InputError("there is no sample to judge the layers with", where=model.name)
    return tuple(
        LayerError(
            node=name, op=node.op_type, reason=scheme.placement.left.get(name, ""),
            alone_db=own[name].sqnr_db if name in own else _reason(scheme, name),
            accumulated_db=together[name].sqnr_db if name in own else _reason(scheme, name),
            output_db=decibels((damage or {}).get(name, _NOT_ASKED))
            if name in own
            else _reason(scheme, name),
            tensors=tuple(_tensors(node, scheme, ranges)) if name in own else (),
        )
        for node in model.graph
        for name in (node.name or "",)
    )  # fmt: skip


def damage_alone(
    model: Model, scheme: Scheme, nodes: Sequence[str], batches: Sequence[Batch],
    open_session: OpenSession, *, on_node: Callable[[str, float], None] = lambda node, damage: None,
) -> dict[str, float]:  # fmt: skip
    """The damage at the model's outputs of each of some nodes alone, each by a run of the data.

    sum (x - y)^2 / sum x^2, the mean over the parts of the outputs: exact, and slow. `on_node`
    hears each as soon as it is known.
    """
    found: dict[str, float] = {}
    parts = output_parts(model)
    with open_session(model) as session:
        expected = [run(session, batch.inputs) for batch in batches]
    for node in nodes:
        quantized, _ = write_qdq(model, alone(model, scheme, node))
        with open_session(quantized) as session:
            errors = judge(expected, (run(session, b.inputs) for b in batches), parts)
        found[node] = float(np.mean([damage_of(one.sqnr_db) for one in errors]))
        on_node(node, found[node])
    return found


def damage_of(sqnr_db: Figure) -> float:
    """sum (x - y)^2 / sum x^2 of an SQNR; 0 where the two are identical or there is no signal."""
    return 0.0 if isinstance(sqnr_db, Unknown) else 10 ** (-sqnr_db / 10)


def clipped_share(observed: TensorRange, grid: Grid) -> float:
    """The share of the observed values that lie outside a per-tensor grid.

    By the histogram; inside the bin of a border values count as spread evenly, and none lies
    outside the exact minimum and maximum.
    """
    total = float(observed.counts.sum())
    if not total:
        return 0.0
    least, most = grid.range
    edges = np.clip(observed.edges, observed.low, observed.high)
    width = np.diff(edges)
    inside = np.clip(edges[1:], least, most) - np.clip(edges[:-1], least, most)
    points = (edges[1:] >= least) & (edges[:-1] <= most)  # bins of one value
    share = np.where(width > 0, inside / np.where(width > 0, width, 1.0), points)
    return float(max(0.0, 1 - (observed.counts * share).sum() / total))


def _tapped(model: Model, scheme: Scheme, shadows: Shadows) -> tuple[Model, dict[str, str]]:
    """The whole quantized network with every node's end as an output, and the name of each."""
    quantized, _ = write_qdq(model, scheme)
    made = {value.name or "" for node in quantized.graph for value in node.outputs}
    names = {
        site: f"{site}.dq" if is_end(site, scheme.placement) and f"{site}.dq" in made else site
        for site in shadows.exact
    }
    return with_outputs(quantized, names.values()), names


def _reason(scheme: Scheme, node: str) -> Unknown:
    return Unknown(scheme.placement.left.get(node, "in floating point"))


def _tensors(node: ir.Node, scheme: Scheme, ranges: Ranges) -> Iterable[LayerTensor]:
    placement = scheme.placement
    name = node.name or ""
    read = list(dict.fromkeys(v.name or "" for v in node.inputs if v is not None))
    for one in read:
        uses = placement.reads.get(one, frozenset())
        if uses is None or any(user == name for user, _ in uses):
            yield _tensor(one, "input", scheme.activations[one], ranges)
    for value, _ in ends_of(node, placement.dialect):
        made = value.name or ""
        if is_end(made, placement):
            yield _tensor(made, "output", scheme.activations[made], ranges)
    if name in scheme.weights:
        yield _tensor(placement.weights[name].weight, "weight", scheme.weights[name].grid, ranges)


def _tensor(
    name: str, role: Literal["input", "output", "weight"], grid: Grid, ranges: Ranges
) -> LayerTensor:
    observed = ranges.tensors.get(name)
    clipped: Figure = Unknown("of a weight" if role == "weight" else "not observed")
    if role != "weight" and observed is not None:
        clipped = clipped_share(observed, grid)
    zeros: Any = np.asarray(grid.zero_point).reshape(-1)
    return LayerTensor(
        name=name, role=role, dtype=str(grid.zero_point.dtype), bits=grid.bits,
        scale=float(np.max(grid.scale)), zero_point=int(zeros[np.abs(zeros.astype(int)).argmax()]),
        channels=int(np.size(grid.scale)), clipped=clipped,
    )  # fmt: skip
