"""How one target's file extends another: tables merged key by key, sources with their figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit import documents

OWN = ("name", "title", "family_default", "extends")
"""The keys that say which device a file is of: never inherited."""

_NO_FIGURES = {
    *OWN, "family", "precisions", "power_mode", "sources", "unverified", "runtime.name",
    "runtime.dialect", "runtime.build", "runtime.jetpack", "runtime.trtexec",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a file says: its values, where its figures are from, and which are unverified.

    A figure is known by its place: "memory.bytes".
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict)
    unverified: frozenset[str] = frozenset()


def layer_of(document: Mapping[str, Any]) -> Layer:
    """The Layer of a file's document.

    A source or a mark may be for a whole table ("memory"): it is for each of its figures that this
    file gives. What is no table of sources or no list of marks stays among the values, for whoever
    checks them.
    """
    values = dict(document)
    places = list(figures(values))
    sources: dict[str, str] = {}
    unverified: set[str] = set()
    said, marked = document.get("sources"), document.get("unverified")
    if isinstance(said, Mapping) and all(isinstance(text, str) for text in said.values()):
        del values["sources"]
        for key, text in sorted(said.items(), key=lambda item: len(item[0])):  # the nearer wins
            for place in _covered(key, places):
                sources[place] = text
    if isinstance(marked, list) and all(isinstance(key, str) for key in marked):
        del values["unverified"]
        unverified = {place for key in marked for place in _covered(key, places)}
    return Layer(values=values, sources=sources, unverified=frozenset(unverified))


def _covered(key: str, places: list[str]) -> list[str]:
    return [place for place in places if place == key or place.startswith(f"{key}.")] or [key]


def extended(below: Layer, above: Layer) -> Layer:
    """What the file `above` comes to, which extends the one `below`.

    A figure that `above` gives, or gives a source for, has nothing of what `below` says about it:
    neither the source nor the mark. Of three files it is the same which two are merged first.
    """
    touched = {*figures(above.values), *above.sources}
    return Layer(
        values=documents.merged(
            {key: value for key, value in below.values.items() if key not in OWN}, above.values
        ),
        sources={
            **{place: said for place, said in below.sources.items() if place not in touched},
            **above.sources,
        },
        unverified=frozenset(below.unverified - touched) | above.unverified,
    )


def figures(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The place of every figure: whatever a file says that needs a source."""
    for key, value in values.items():
        place = f"{above}{key}"
        if place in _NO_FIGURES:
            continue
        if isinstance(value, Mapping):
            yield from figures(value, f"{place}.")
        else:
            yield place
