"""An inspection as a person reads it: strings only, no drawing; made for 80 columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from edgekit.engines.preflight.answers import NodeFinding
from edgekit.models.cost import NodeSurvey
from edgekit.models.cost.roofline import Estimate
from edgekit.report import rows
from edgekit.report.inspection import Channels, Inspection, TargetView, producer
from edgekit.values import Figure, Unknown

_NAME = 34  # a longer name loses its middle: the ends tell layers apart
_LISTED = 6
_NODES_LISTED = 20  # all of them are in the JSON


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """A table to draw; a cell of the column `prose` may be broken, no other."""

    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    title: str = ""
    prose: str = ""


def summary(found: Inspection) -> list[tuple[str, str]]:
    """The figures of the whole model: a label and a value each."""
    model, stored, peak = found.model, found.stored, found.peak
    opsets = [
        f"{domain or 'ONNX'} {version}" for domain, version in model.program.opset_imports.items()
    ]
    dead = f", {found.dead} of them without use" if found.dead else ""
    lines = [
        ("model", model.name),
        ("opset", f"{', '.join(opsets)} (IR version {model.program.ir_version})"),
        ("written by", producer(model) or "unknown (the file does not say)"),
        *([("made by", "; ".join(model.history))] if model.history else []),
        ("inputs", "\n".join(map(str, model.inputs))),
        ("outputs", "\n".join(map(str, model.outputs))),
        (
            f"{sum(found.operators.values())} nodes{dead}",
            ", ".join(f"{count} {name}" for name, count in found.operators.items()),
        ),
        ("costs are for", ", ".join(f"{name} {shape}" for name, shape in found.shapes.items())),
        ("MACs", _or_at_least(found.macs, found.macs_at_least, rows.count)),
        ("parameters", f"{stored.parameters:,}"),
    ]
    if stored.statistics:
        lines.append(
            ("statistics", f"{stored.statistics:,} (running means and variances, no parameters)")
        )
    by_type = ", ".join(f"{name} {_size(n)}" for name, n in stored.weight_bytes_by_type.items())
    lines += [
        ("weights", f"{_size(stored.weight_bytes)} ({by_type})"),
        ("peak activations", _or_at_least(peak.peak_bytes, peak.at_least_bytes, _size)),
    ]
    if peak.live:
        largest = ", ".join(f"{t.name} {_size(t.nbytes)}" for t in peak.live[:_LISTED])
        more = f", {len(peak.live) - _LISTED} more" if len(peak.live) > _LISTED else ""
        lines.append((f"at {short(peak.node, 14)}", f"{largest}{more}"))
    return lines


def tables(found: Inspection) -> Iterator[TableRows]:
    """The costliest nodes, what can be pruned, and what cannot be trained."""
    by_macs = found.by_macs()
    total = found.macs_at_least
    if by_macs:
        yield TableRows(
            title="Most multiply-accumulates",
            columns=("layer", "operator", "MACs", "share", "parameters"),
            lines=tuple(
                (_layer(n), n.op, _count(n.macs), _share(n.macs, total), f"{n.parameters:,}")
                for n in by_macs
            ),
        )
    by_bytes = found.by_bytes()
    if by_bytes:
        yield TableRows(
            title="Most bytes moved (inputs, weights, outputs)",
            columns=("layer", "operator", "bytes", "weights"),
            lines=tuple(
                (_layer(n), n.op, _size(n.moved_bytes), _size(n.weight_bytes)) for n in by_bytes
            ),
        )
    channels = found.channels
    if isinstance(channels, Channels) and channels.groups:
        largest = sorted(channels.groups, key=lambda group: -group.units)[: found.top]
        more = len(channels.groups) - len(largest)
        yield TableRows(
            title="Channels that can only go together, the largest groups"
            + (f" ({more} more)" if more else ""),
            columns=("first weight", "channels", "tensors"),
            lines=tuple((short(g.name, 50), str(g.units), str(len(g.members))) for g in largest),
        )
    if isinstance(channels, Channels) and channels.frozen:
        yield TableRows(
            title="What cannot be pruned",
            columns=("weights", "why"),
            lines=tuple(_by_reason(channels)),
            prose="why",
        )
    if not isinstance(found.untrainable, Unknown) and found.untrainable:
        yield TableRows(
            title="What cannot be trained: no operator in the executor",
            columns=("operator", "nodes"),
            lines=tuple(
                (operator, _listed(nodes)) for operator, nodes in found.untrainable.items()
            ),
            prose="nodes",
        )


def notes(found: Inspection) -> Iterator[str]:
    """What the figures rest on, and which answers there are not."""
    if isinstance(found.channels, Unknown):
        yield f"what can be pruned: {found.channels}"
    elif not found.channels.frozen:
        yield "nothing speaks against pruning any weight's channels"
    if isinstance(found.untrainable, Unknown):
        yield f"what can be trained: {found.untrainable}"
    elif not found.untrainable:
        yield "every operator can be trained"
    dynamic = [spec for spec in found.model.inputs if any(isinstance(d, str) for d in spec.shape)]
    if dynamic:
        listed = ",".join(map(str, dynamic[0].shape))
        yield f"for other sizes: --batch 8, or --shape {dynamic[0].name}={listed} in numbers"
    yield (
        "peak activations: in the file's order; inputs are held throughout, nothing is computed in "
        "place, Reshape and its like are views, kernels' workspaces are not in it"
    )


def target_tables(view: TargetView, top: int) -> Iterator[TableRows]:
    """A target's preflight, the estimates, and where their time goes."""
    title = f"{view.target.title}: "
    if isinstance(view.preflight, Unknown):
        yield TableRows(
            title=f"{title}preflight",
            columns=("check", "answer", "said"),
            lines=(("preflight", "unknown", view.preflight.reason),),
            prose="said",
        )
    else:
        yield TableRows(
            title=f"{title}preflight {view.preflight.verdict.value}",
            columns=("check", "answer", "said"),
            lines=tuple((x.check, x.answer.value, x.said) for x in view.preflight.lines),
            prose="said",
        )
        if view.preflight.nodes:
            yield TableRows(
                title=f"{title}nodes that it refuses, or may refuse",
                columns=("node", "operator", "answer", "why, and what to do"),
                lines=tuple(map(_node_row, view.preflight.nodes[:_NODES_LISTED])),
                prose="why, and what to do",
            )
    known = [one for one in view.estimates if not isinstance(one.latency_s, Unknown)]
    if known:
        yield TableRows(
            title=f"{title}estimate, not measured",
            columns=("precision", "batch", "latency", "FPS", "at least", "bound by", "memory"),
            lines=tuple(map(_estimate_row, known)),
        )
    for one in known[:1]:
        yield TableRows(
            title=f"Where the time goes at {one.precision.upper()}, by the estimate",
            columns=("node", "kind", "time", "share", "bound by"),
            lines=tuple(
                (
                    short(k.node), k.op if k.kind == "other" else k.kind, _ms(k.seconds),
                    _share(k.seconds, one.latency_s), k.bound,
                )
                for k in one.slowest(top)
            ),
        )  # fmt: skip


def target_notes(view: TargetView) -> Iterator[str]:
    """What the estimates rest on, and why some are not there."""
    if view.note:
        yield view.note
    for one in view.estimates:
        if isinstance(one.latency_s, Unknown):
            yield f"estimate at {one.precision.upper()}: {one.latency_s}"
    if not isinstance(view.memory_bytes, Unknown):
        yield f"memory of the device: {_size(view.memory_bytes)}"
    for one in view.estimates:
        if _is_more(one.memory_bytes, view.memory_bytes):
            yield f"at {one.precision.upper()} it does not fit in the memory, by the estimate"
    yield from view.rates.said
    yield view.rates.efficiency_said
    yield (
        "an estimate takes every node at the one precision, kernels one after another, and "
        "BatchNormalization, activations and sums fused into what they follow; its memory is "
        "weights and activations, without the runtime's own"
    )


def short(name: str, width: int = _NAME) -> str:
    """The name, its middle left out where it is too long."""
    if len(name) <= width:
        return name
    left = (width - 1) // 2
    return f"{name[:left]}…{name[-(width - 1 - left) :]}"


def _layer(node: NodeSurvey) -> str:
    """The layer as its author called it: its largest weight's name, else the node's."""
    return short(node.weights[0].removesuffix(".weight") if node.weights else node.node)


def _node_row(found: NodeFinding) -> tuple[str, ...]:
    said = f"{found.check}: {found.reason}. {found.remedy}"
    return short(found.node, 20), short(found.operator, 18), found.answer.value, said


def _estimate_row(one: Estimate) -> tuple[str, ...]:
    share = one.share_bound_by_bytes()
    bound = str(share) if isinstance(share, Unknown) else f"bytes {100 * share:.0f}%"
    return (
        one.precision.upper(), str(one.batch), _ms(one.latency_s), rows.rate(one.fps),
        _ms(one.at_least_s), bound, _size(one.memory_bytes),
    )  # fmt: skip


def _by_reason(channels: Channels) -> Iterator[tuple[str, str]]:
    weights: dict[str, list[str]] = defaultdict(list)
    for name, reason in channels.frozen.items():
        weights[reason].append(name)
    for reason, names in weights.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{short(names[0], 26)}{others}", reason


def _or_at_least(figure: Figure, least: int, shown: object) -> str:
    assert callable(shown)
    if isinstance(figure, Unknown):
        return f"{figure}; at least {shown(least)}" if least else str(figure)
    return str(shown(figure))


def _is_more(wanted: Figure, there: Figure) -> bool:
    return not isinstance(wanted, Unknown) and not isinstance(there, Unknown) and wanted > there


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _count(figure: Figure) -> str:
    return str(figure) if isinstance(figure, Unknown) else rows.count(figure)


def _size(figure: Figure) -> str:
    if isinstance(figure, Unknown):
        return str(figure)
    return f"{figure:,.0f} B" if figure < 1e4 else rows.size(figure)


def _ms(figure: Figure) -> str:
    return str(figure) if isinstance(figure, Unknown) else f"{1e3 * figure:,.3g} ms"


def _share(part: Figure, whole: Figure) -> str:
    if isinstance(part, Unknown) or isinstance(whole, Unknown) or not whole:
        return ""
    return f"{100 * part / whole:.1f}%"
