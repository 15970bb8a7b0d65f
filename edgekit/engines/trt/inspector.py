"""What TensorRT's engine inspector says of each layer, in one report for all of its formats.

8.x and 10.x print `Layers` and `Bindings`, with a tensor's format and type in one text
(`Format/Datatype`); 11.x prints `I/O Tensors`, with `Format` and `Datatype` apart; an engine that
was built without detailed profiling verbosity lists the names of its layers and nothing else.
Sources: NVIDIA/TensorRT at 10.3, tools/experimental/trt-engine-explorer and tools/Polygraphy;
TensorRT 11.3's page on moving the inspector from 10.x. trtexec's --exportLayerInfo is the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.errors import InputError
from edgekit.values import Figure, Unknown

REFORMAT = "Reformat"

_UNSAID = "unknown"
# Narrowest first: a layer computes in the narrowest type that it reads (the others are its scales,
# its bias, or what is added to its result).
_TYPES: tuple[tuple[str, str], ...] = (
    ("int4", "int4"), ("fp4", "fp4"), ("int8", "int8"), ("fp8", "fp8"), ("uint8", "uint8"),
    ("bf16", "bf16"), ("bfloat16", "bf16"), ("half", "fp16"), ("fp16", "fp16"),
    ("float", "fp32"), ("fp32", "fp32"), ("tf32", "fp32"), ("int32", "int32"), ("int64", "int64"),
    ("bool", "bool"),
)  # fmt: skip
_ORDER = {kind: place for place, (_, kind) in enumerate(_TYPES)}
_WORD = re.compile(r"[A-Za-z]+\d*")
_METADATA = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_SEPARATORS = re.compile(r" \+ |, | \|\| |\[|\]|\(|\)|\{|\}|\x1e")


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One layer of an engine. `precision` is the type that it computes in, "unknown" where unsaid.

    `nodes` are the ONNX nodes that the layer is known to be made of.
    """

    name: str
    kind: str
    precision: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """The layers of an engine, and what they come to.

    `reformats` counts the layers that only change a tensor's layout or type: what fusion lost.
    `int8_layers` is the share of the other layers that compute in INT8, `int8_macs` the share of
    the model's multiply-accumulates. `unmatched_macs` is the share of those whose nodes no layer
    names: that much more could be INT8.
    """

    layers: tuple[EngineLayer, ...]
    reformats: Figure
    int8_layers: Figure
    int8_macs: Figure
    unmatched_macs: Figure


def read_layers(text: str, macs: Mapping[str, float]) -> LayerReport:
    """The report of an inspector's JSON; `macs` are those of each ONNX node by name.

    Raises InputError where the text is none of the inspector's.
    """
    try:
        document = json.loads(text)
        listed = document["Layers"]
        layers = tuple(_layer(stored, macs) for stored in listed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "this is no layer information of TensorRT",
            got=f"{type(error).__name__}: {error}", wanted='JSON with "Layers"',
        ) from error  # fmt: skip
    return report_of(layers, macs)


def report_of(layers: Sequence[EngineLayer], macs: Mapping[str, float]) -> LayerReport:
    """The sums over the layers."""
    if any(layer.kind == _UNSAID for layer in layers):
        unsaid = Unknown("the engine was built without detailed verbosity: it has names only")
        return LayerReport(
            layers=tuple(layers), reformats=unsaid, int8_layers=unsaid, int8_macs=unsaid,
            unmatched_macs=unsaid,
        )  # fmt: skip
    working = [layer for layer in layers if layer.kind != REFORMAT]
    in_int8 = sum(layer.precision == "int8" for layer in working)
    int8, matched = _shares(working, macs)
    total = sum(macs.values())
    nothing = Unknown("the model has no multiply-accumulates that are known")
    return LayerReport(
        layers=tuple(layers),
        reformats=float(len(layers) - len(working)),
        int8_layers=in_int8 / len(working) if working else Unknown("the engine has no layers"),
        int8_macs=int8 / total if total else nothing,
        unmatched_macs=1 - matched / total if total else nothing,
    )


def _shares(layers: Sequence[EngineLayer], macs: Mapping[str, float]) -> tuple[float, float]:
    """MACs in INT8, and MACs that some layer names; a node that several name is shared evenly."""
    named = Counter(node for layer in layers for node in set(layer.nodes))
    int8 = matched = 0.0
    for layer in layers:
        for node in set(layer.nodes):
            part = macs.get(node, 0.0) / named[node]
            matched += part
            int8 += part if layer.precision == "int8" else 0.0
    return int8, matched


def _layer(stored: object, macs: Mapping[str, float]) -> EngineLayer:
    if isinstance(stored, str):
        return EngineLayer(
            name=stored, kind=_UNSAID, precision=_UNSAID, nodes=_nodes(stored, "", macs)
        )
    assert isinstance(stored, dict)
    name = str(stored["Name"])
    return EngineLayer(
        name=name,
        kind=str(stored.get("LayerType", _UNSAID)),
        precision=_precision(stored),
        nodes=_nodes(name, str(stored.get("Metadata", "")), macs),
    )


def _precision(layer: Mapping[str, Any]) -> str:
    """The type of the weights, else the narrowest that goes in, else that comes out."""
    weights = layer.get("Weights")
    if isinstance(weights, Mapping) and weights.get("Count", 0):
        found = _type_in(str(weights.get("Type", "")))
        if found:
            return found
    for side in ("Inputs", "Outputs"):
        kinds = [kind for tensor in layer.get(side) or () if (kind := _tensor_type(tensor))]
        if kinds:
            return min(kinds, key=_ORDER.__getitem__)
    return _UNSAID


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    said = tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype")
    return _type_in(str(said or tensor.get("Format") or ""))


def _type_in(text: str) -> str:
    words = {word.lower() for word in _WORD.findall(text)}
    return next((kind for word, kind in _TYPES if word in words), "")


def _nodes(name: str, metadata: str, macs: Mapping[str, float]) -> tuple[str, ...]:
    """The ONNX nodes that a layer is made of: what its metadata lists, else what its name holds."""
    listed = _METADATA.findall(metadata)
    found = dict.fromkeys(listed or _parts(name, macs))
    return tuple(found)


def names_in(name: str) -> tuple[str, ...]:
    """What a layer's name may be made of: itself, and its parts between TensorRT's separators."""
    parts = [part for part in _SEPARATORS.split(name) if part]
    ends = [end for part in parts if "..." in part for end in part.split("...")]
    return tuple(dict.fromkeys([name, *parts, *ends]))


def _parts(name: str, macs: Mapping[str, float]) -> Iterator[str]:
    if name in macs:
        yield name
        return
    for part in _SEPARATORS.split(name):
        if part in macs:
            yield part
        elif "..." in part:  # a range of a foreign node: only its two ends are told
            yield from (end for end in part.split("...") if end in macs)
