"""What quantizing cost, for people: the parts of the outputs, the worst layers, every layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekit.quantize.judging.layers import LayerError, layer_error_from_json
from edgekit.quantize.judging.outputs import PartError, part_error_from_json
from edgekit.quantize.precision.report import (
    PrecisionOptions,
    PrecisionReport,
    Tried,
    report_from_json,
)
from edgekit.report.inspection_rows import TableRows
from edgekit.values import Figure, Unknown, figure_from_json

Tries = Mapping[str, Sequence[str]]
"""By node, what was tried on it and what came of it, a line each."""

PART_COLUMNS = ("output part", "SQNR", "cosine", "largest error", "relative", "through kernels")
LAYER_COLUMNS = ("layer", "operator", "alone", "at the output", "accumulated", "clipped", "as")
WORST_COLUMNS = ("layer", "alone", "at the output", "what was tried")
LEFT_COLUMNS = ("nodes", "why")
FRONT_COLUMNS = ("in floating point", "drop", "expected", "MACs in INT8")

_NONE = "-"
_SHORT = {"uint8": "u8", "int8": "s8"}
_SHOWN = 30


def summary(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a whole quantization, from the document of `edgekit quantize`."""
    found = [("model", document["model"]), ("for", document["target"]), ("said", document["said"])]
    if "calibration_cache" in document:
        found.append(("cache", document["calibration_cache"]))
    if "parts" not in document:
        return found
    before, after = document["bytes_before"], document["bytes_after"]
    found.append(("file", f"{before / 1e6:.2f} MB -> {after / 1e6:.2f} MB"))
    share = figure_from_json(document["kernel_share"])
    if not isinstance(share, Unknown):
        found.append(("kernels", f"{share:.1%} of the MACs really run on integers here"))
    if document["refined"] is not None:
        found.append(("refined", document["refined"]["said"]))
    if document["spared"] is not None:
        found.append(("spared", document["spared"]["said"]))
    found += [("doubt", doubt) for doubt in document["doubts"]]
    return found


def tables(document: Mapping[str, Any]) -> Iterator[TableRows]:
    """The tables of a quantization, from the document of `edgekit quantize`."""
    if "parts" not in document:
        left = Counter(document["left"].values())
        why = tuple((str(count), reason) for reason, count in left.most_common())
        if why:
            yield TableRows(columns=("nodes", "why in FP32"), lines=why, prose="why in FP32")
        return
    exact, kernels = (
        tuple(map(part_error_from_json, document[key])) for key in ("parts", "kernel_parts")
    )
    yield TableRows(columns=PART_COLUMNS, lines=tuple(part_rows(exact, kernels)), title="Outputs")
    layers = tuple(map(layer_error_from_json, document["layers"]))
    lines = tuple(layer_rows(layers))
    yield TableRows(columns=LAYER_COLUMNS, lines=lines[:_SHOWN], title=_layers_title(len(lines)))
    stored = document["search"]
    found = stored and report_from_json(stored, PrecisionOptions(**stored["limits"]))
    tried = _tried_on_all(document)
    tries = tries_of(found) if found else {}
    yield TableRows(
        columns=WORST_COLUMNS, title="The five worst", prose="what was tried",
        lines=tuple(
            worst_rows(layers, {one.node: [*tried, *tries.get(one.node, ())] for one in layers})
        ),
    )  # fmt: skip
    yield TableRows(
        columns=LEFT_COLUMNS, lines=tuple(left_rows(layers)), title="Left in floating point",
        prose="why",
    )  # fmt: skip
    if found:
        yield TableRows(
            columns=FRONT_COLUMNS, lines=tuple(front_rows(found)),
            title="What may be had for how much",
        )  # fmt: skip


def _layers_title(count: int) -> str:
    if count <= _SHOWN:
        return "Layers on integers, the worst first"
    return f"Layers on integers, the worst {_SHOWN} of {count} (--json has all)"


def _tried_on_all(document: Mapping[str, Any]) -> list[str]:
    """What was done to every layer: the refinements that were kept."""
    steps = document["refined"]["steps"] if document["refined"] is not None else []
    return [f"{step['name']} ({'kept' if step['kept'] else 'no gain'})" for step in steps]


def part_rows(
    emulated: Sequence[PartError], kernels: Sequence[PartError] = ()
) -> Iterator[tuple[str, ...]]:
    """A line for each part of the outputs: by emulation, and its SQNR through real kernels."""
    through = {one.part: one.sqnr_db for one in kernels}
    for one in emulated:
        yield (
            _part_name(one), decibels(one.sqnr_db), _number(one.cosine, 5), f"{one.largest:.4g}",
            _number(one.relative, 4),
            decibels(through[one.part]) if one.part in through else _NONE,
        )  # fmt: skip


def ranked(layers: Sequence[LayerError]) -> list[LayerError]:
    """The layers on integers, the worst first: at the model's output, where that is known."""
    on_integers = [layer for layer in layers if not layer.reason]
    return sorted(on_integers, key=_quality)


def layer_rows(layers: Sequence[LayerError]) -> Iterator[tuple[str, ...]]:
    """A line for each layer on integers, the worst first."""
    for layer in ranked(layers):
        share = layer.clipped
        yield (
            layer.node, layer.op, decibels(layer.alone_db), decibels(layer.output_db),
            decibels(layer.accumulated_db),
            _NONE if isinstance(share, Unknown) else f"{share:.2%}", _stored_as(layer),
        )  # fmt: skip


def worst_rows(
    layers: Sequence[LayerError], tries: Tries, *, count: int = 5
) -> Iterator[tuple[str, ...]]:
    """The worst layers with what was tried on each."""
    for layer in ranked(layers)[:count]:
        said = "; ".join(tries.get(layer.node, ())) or "nothing"
        yield layer.node, decibels(layer.alone_db), decibels(layer.output_db), said


def left_rows(layers: Sequence[LayerError]) -> Iterator[tuple[str, str]]:
    """For each reason how many nodes of which operators it left in floating point, most first."""
    found: dict[str, Counter[str]] = {}
    for layer in layers:
        if layer.reason:
            found.setdefault(layer.reason, Counter())[layer.op] += 1
    for reason, counts in sorted(found.items(), key=lambda item: -sum(item[1].values())):
        yield ", ".join(f"{n} {op}" for op, n in counts.most_common()), reason


def front_rows(found: PrecisionReport) -> Iterator[tuple[str, ...]]:
    """The Pareto front of a search: what may be had for how much; the chosen one is marked."""
    for one in found.front:
        mark = " (chosen)" if found.met and one == found.best else ""
        yield (
            f"{_left(one)}{mark}",
            f"{one.drop:.4g}",
            _milliseconds(one.ms),
            f"{one.int8_share:.1%}",
        )


def tries_of(found: PrecisionReport) -> dict[str, list[str]]:
    """By node what the search for mixed precision did with it, a line."""
    if found.best is None:
        return {}
    seen: dict[str, int] = Counter(node for one in found.tried for node in one.excluded)
    chosen = set(found.best.excluded)
    return {
        node: [
            f"left in {found.precision.upper()}"
            if node in chosen
            else f"in {found.precision.upper()} in {times} candidates, put back"
        ]
        for node, times in seen.items()
    }


def decibels(value: Figure) -> str:
    """An SQNR as a person reads it; for an unknown one a dash, or that nothing was lost."""
    if isinstance(value, Unknown):
        return "identical" if value.reason == "identical" else _NONE
    return f"{value:.1f} dB"


def _quality(layer: LayerError) -> tuple[float, float, str]:
    def ordered(value: Figure) -> float:
        return float("inf") if isinstance(value, Unknown) else value

    return ordered(layer.output_db), ordered(layer.alone_db), layer.node


def _part_name(one: PartError) -> str:
    return one.part.output if not one.part.ranges else f"{one.part.output}: {one.part.name}"


def _number(value: Figure, digits: int) -> str:
    return _NONE if isinstance(value, Unknown) else f"{value:.{digits}f}"


def _milliseconds(value: Figure) -> str:
    return _NONE if isinstance(value, Unknown) else f"{value:.3g} ms"


def _left(one: Tried) -> str:
    if not one.excluded:
        return "nothing"
    first = ", ".join(one.excluded[:2])
    more = len(one.excluded) - 2
    return f"{first} and {more} more" if more > 0 else first


def _stored_as(layer: LayerError) -> str:
    """The types of what a layer reads and writes, the bits where they are fewer than 8."""
    kinds: dict[str, list[str]] = {"input": [], "weight": [], "output": []}
    for tensor in layer.tensors:
        kinds[tensor.role].append(_SHORT[tensor.dtype] + (f"/{tensor.bits}" * (tensor.bits < 8)))
    read = " x ".join(dict.fromkeys(kinds["input"])) or "float"
    if kinds["weight"]:
        read += f" x {kinds['weight'][0]}"
    return f"{read} -> {kinds['output'][0] if kinds['output'] else 'float'}"
