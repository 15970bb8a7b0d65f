"""What a model is: what goes in and out, what it costs, what can be cut, what a target refuses."""

from __future__ import annotations

import importlib.util
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgekit.compress.channels.groups import ChannelGroup, find_groups
from edgekit.engines.device_rates import rates_of
from edgekit.engines.preflight.answers import PreflightReport
from edgekit.errors import InputError
from edgekit.models.cost import NodeSurvey, Stored, stored_numbers, survey
from edgekit.models.cost.anatomy import label, live_nodes
from edgekit.models.cost.liveness import Peak, peak_activations
from edgekit.models.cost.roofline import Estimate, KernelTime, Rates, estimate
from edgekit.models.cost.sizes import Forms, forms, missing_sizes
from edgekit.models.model import Model, editable, save
from edgekit.models.operators import builders
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.pipeline.origin import Origin, open_origin, parse_inputs
from edgekit.report.preflighted import preflight_as_built
from edgekit.targets import Precision, Target, resolve_target
from edgekit.values import Figure, Unknown, figure_to_json

TOP = 8


@dataclass(frozen=True, kw_only=True)
class Channels:
    """What can be pruned: the groups, and a reason for each weight whose channels stay."""

    groups: tuple[ChannelGroup, ...]
    frozen: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TargetView:
    """What is known of the model on a target without running it there. The times are estimates.

    `memory_bytes` is what the target has.
    """

    target: Target
    note: str
    preflight: PreflightReport | Unknown
    rates: Rates
    estimates: tuple[Estimate, ...]

    @property
    def memory_bytes(self) -> Figure:
        """The memory that the target has."""
        if self.target.memory is None or self.target.memory.bytes is None:
            return Unknown("the target's file does not say")
        return self.target.memory.bytes

    def to_json(self, top: int) -> dict[str, object]:
        """JSON-ready; the slowest `top` kernels are listed apart."""
        found = self.preflight
        return {
            "name": self.target.name,
            "title": self.target.title,
            "note": self.note,
            "preflight": _unknown(found) if isinstance(found, Unknown) else found.to_json(),
            "memory_bytes": figure_to_json(self.memory_bytes),
            "estimates_rest_on": [*self.rates.said, self.rates.efficiency_said],
            "estimates": [_estimate_to_json(one, top) for one in self.estimates],
        }


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """All that is known of a model without running it; what is not is Unknown, with a reason.

    `model` is the file's graph as it stands; `batch` and `shapes` are the sizes that all figures
    are for. `macs_at_least` are those of the nodes that are known. `untrainable` has the nodes by
    operator.
    """

    model: Model
    operators: Mapping[str, int]
    dead: int
    batch: int
    shapes: Mapping[str, str]
    macs: int | Unknown
    macs_at_least: int
    stored: Stored
    peak: Peak
    nodes: tuple[NodeSurvey, ...]
    untrainable: Mapping[str, tuple[str, ...]] | Unknown
    channels: Channels | Unknown
    on_target: TargetView | None
    top: int

    def by_macs(self) -> tuple[NodeSurvey, ...]:
        """The nodes of the most multiply-accumulates, the costliest first."""
        known = [node for node in self.nodes if isinstance(node.macs, int) and node.macs]
        return tuple(sorted(known, key=lambda node: -_number(node.macs))[: self.top])

    def by_bytes(self) -> tuple[NodeSurvey, ...]:
        """The nodes that move the most bytes: inputs, weights and outputs."""
        known = [n for n in self.nodes if isinstance(n.moved_bytes, int) and n.moved_bytes]
        return tuple(sorted(known, key=lambda node: -_number(node.moved_bytes))[: self.top])

    def to_json(self) -> dict[str, object]:
        """One JSON document. A figure that is not known is `{"unknown": reason}`.

        name, history, opset, opsets (by domain), ir_version, producer; inputs and outputs (name,
        dtype, shape: a number or a name for each size); operators (how many of each), nodes,
        dead_nodes; batch and shapes: the sizes that what follows is for; parameters, statistics
        (stored means and variances), weight_bytes, weight_bytes_by_type; macs, macs_at_least;
        activations: peak_bytes, at_least_bytes, node, live (name, nbytes); costliest: by_macs and
        by_bytes, `top` nodes each; untrainable: operator to nodes; channels: groups (name to
        units) and frozen (weight to reason); target: null, or what `TargetView` has. Times are in
        seconds, and an estimate wherever they stand.
        """
        model, peak = self.model, self.peak
        channels = self.channels
        return {
            "name": model.name,
            "history": list(model.history),
            "opset": model.opset,
            "opsets": dict(model.program.opset_imports),
            "ir_version": model.program.ir_version,
            "producer": producer(model),
            "inputs": [asdict(spec) for spec in model.inputs],
            "outputs": [asdict(spec) for spec in model.outputs],
            "operators": dict(self.operators),
            "nodes": sum(self.operators.values()),
            "dead_nodes": self.dead,
            "batch": self.batch,
            "shapes": dict(self.shapes),
            "parameters": self.stored.parameters,
            "statistics": self.stored.statistics,
            "weight_bytes": self.stored.weight_bytes,
            "weight_bytes_by_type": dict(self.stored.weight_bytes_by_type),
            "macs": _whole(self.macs),
            "macs_at_least": self.macs_at_least,
            "activations": {
                "peak_bytes": _whole(peak.peak_bytes),
                "at_least_bytes": peak.at_least_bytes,
                "node": peak.node,
                "live": [asdict(tensor) for tensor in peak.live],
            },
            "costliest": {
                "by_macs": [_node_to_json(node) for node in self.by_macs()],
                "by_bytes": [_node_to_json(node) for node in self.by_bytes()],
            },
            "untrainable": _unknown(self.untrainable)
            if isinstance(self.untrainable, Unknown)
            else {operator: list(nodes) for operator, nodes in self.untrainable.items()},
            "channels": _unknown(channels)
            if isinstance(channels, Unknown)
            else {
                "groups": {group.name: group.units for group in channels.groups},
                "frozen": dict(channels.frozen),
            },
            "target": None if self.on_target is None else self.on_target.to_json(self.top),
        }


def inspect_origin(
    origin: Origin,
    target_name: str | None = None,
    *,
    batch: int | None = None,
    shapes: Sequence[str] = (),
    top: int = TOP,
) -> Inspection:
    """As `inspect`, for a model from anywhere: what torch exports is looked at as a file."""
    if not origin.is_exported:
        return inspect(origin.path, target_name, batch=batch, shapes=shapes, top=top)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder, f"{origin.name}.onnx")
        save(open_origin(origin).model, path)
        return inspect(path, target_name, batch=batch, shapes=shapes, top=top)


def inspect(
    path: Path,
    target_name: str | None = None,
    *,
    batch: int | None = None,
    shapes: Sequence[str] = (),
    top: int = TOP,
) -> Inspection:
    """What the model in a file is; for a target also what it would refuse, and the estimates.

    A dynamic first size is `batch` (1 where None); `shapes` has texts like `input=1,3,640,640`.
    What cannot be known spoils nothing else. Raises InputError as `models.source.load` does, for
    sizes that the model does not take, and for an unknown target.
    """
    if top < 1:
        raise InputError("at least one layer is listed", where="--top", got=str(top))
    target = None if target_name is None else resolve_target(target_name)
    model = load(path)
    plain = _plain(model)
    given = parse_inputs(shapes, "--shape")
    known = forms(plain, batch=batch, shapes=given)
    nodes = survey(plain, known)
    macs = [node.macs for node in nodes]
    missing, peak = missing_sizes(plain, known), peak_activations(plain, known)
    live = set(live_nodes(model.graph))
    used = _batch_of(plain, known)
    view = None
    if target is not None:
        view = _on_target(path, plain, known, target.target, used)
        estimates = tuple(_with_reason(one, missing) for one in view.estimates)
        view = replace(view, note=target.note, estimates=estimates)
    return Inspection(
        model=model,
        operators=dict(Counter(_kind(node) for node in model.graph).most_common()),
        dead=sum(node not in live for node in model.graph),
        batch=used,
        shapes={
            value.name or "": known[value].shown
            for value in plain.graph.inputs
            if not value.is_initializer()
        },
        macs=_blamed(_sum(macs), missing),
        macs_at_least=sum(map(_number, macs)),
        stored=stored_numbers(plain),
        peak=replace(peak, peak_bytes=_blamed(peak.peak_bytes, missing)),
        nodes=nodes,
        untrainable=untrainable(plain),
        channels=_channels(plain),
        on_target=view,
        top=top,
    )


def producer(model: Model) -> str:
    """Who wrote the file, as far as it says; empty where it does not."""
    program = model.program
    return " ".join(filter(None, (program.producer_name, program.producer_version)))


def untrainable(model: Model) -> Mapping[str, tuple[str, ...]] | Unknown:
    """The nodes that the executor cannot train, by operator; Unknown without torch."""
    if importlib.util.find_spec("torch") is None:
        return Unknown("torch is not installed: pip install 'edgekit[compress]'")
    try:
        known = builders()
    except ImportError as error:
        return Unknown(f"torch cannot be imported: {error}")
    found: dict[str, list[str]] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if _kind(node) not in known:
            found.setdefault(_kind(node), []).append(label(node))
    return {operator: tuple(nodes) for operator, nodes in found.items()}


def _plain(model: Model) -> Model:
    """The Model with the file's own functions written out, without what computes nothing."""
    if model.program.functions:
        program = editable(model)
        passes.InlinePass()(program)
        model = replace(model, program=program)
    return clean(model)


def _channels(model: Model) -> Channels | Unknown:
    try:
        found = find_groups(model)
    except InputError as error:
        return Unknown(" ".join(str(error).split()))
    return Channels(groups=found.groups, frozen=found.frozen)


def _on_target(path: Path, model: Model, known: Forms, target: Target, batch: int) -> TargetView:
    rates = rates_of(target)
    is_quantized = any(node.op_type == "DequantizeLinear" for node in model.graph)
    precisions: tuple[Precision, ...] = target.precisions
    if is_quantized and "int8" in precisions:
        precisions = ("int8",)
    best: Precision = "fp16" if "fp16" in precisions else precisions[0]
    return TargetView(
        target=target,
        note="",
        preflight=preflight_as_built(path, model, known, target, best),
        rates=rates,
        estimates=tuple(
            estimate(model, known, rates, precision=precision, batch=batch)
            for precision in precisions
        ),
    )


def _with_reason(found: Estimate, missing: str) -> Estimate:
    return replace(
        found,
        latency_s=_blamed(found.latency_s, missing),
        at_least_s=_blamed(found.at_least_s, missing),
        fps=_blamed(found.fps, missing),
        memory_bytes=_blamed(found.memory_bytes, missing),
        activation_bytes=_blamed(found.activation_bytes, missing),
    )


def _batch_of(model: Model, known: Forms) -> int:
    """The first size of the first input, 1 where there is none."""
    for value in model.graph.inputs:
        sizes = known[value].sizes if value in known else None
        if sizes:
            return sizes[0]
        shape = model.inputs[0].shape
        return shape[0] if shape and isinstance(shape[0], int) else 1
    return 1


def _kind(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _sum(figures: Sequence[int | Unknown]) -> int | Unknown:
    reasons = [figure.reason for figure in figures if isinstance(figure, Unknown)]
    if not reasons:
        return sum(map(_number, figures))
    more = f", and {len(reasons) - 1} more nodes" if len(reasons) > 1 else ""
    return Unknown(reasons[0] + more)


_Found = TypeVar("_Found")


def _blamed(figure: _Found, missing: str) -> _Found | Unknown:
    """What is unknown for want of an input's sizes says so."""
    return Unknown(missing) if missing and isinstance(figure, Unknown) else figure


def _number(figure: int | Unknown) -> int:
    return 0 if isinstance(figure, Unknown) else figure


def _unknown(found: Unknown) -> dict[str, str]:
    return {"unknown": found.reason}


def _whole(figure: int | Unknown) -> int | dict[str, str]:
    return _unknown(figure) if isinstance(figure, Unknown) else figure


def _node_to_json(node: NodeSurvey) -> dict[str, object]:
    return {
        key: _unknown(value) if isinstance(value, Unknown) else value
        for key, value in vars(node).items()
    }


def _estimate_to_json(found: Estimate, top: int) -> dict[str, object]:
    def kernels(listed: Sequence[KernelTime]) -> list[dict[str, object]]:
        return [{**asdict(kernel), "fused": list(kernel.fused)} for kernel in listed]

    return {
        "is_estimate": True,
        "precision": found.precision,
        "batch": found.batch,
        "latency_s": figure_to_json(found.latency_s),
        "at_least_s": figure_to_json(found.at_least_s),
        "fps": figure_to_json(found.fps),
        "memory_bytes": figure_to_json(found.memory_bytes),
        "weight_bytes": found.weight_bytes,
        "activation_bytes": figure_to_json(found.activation_bytes),
        "slowest": [kernel.node for kernel in found.slowest(top)],
        "kernels": kernels(found.kernels),
        "left_out": dict(found.unknown),
    }
