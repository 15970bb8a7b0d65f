"""A device with a JetPack chosen: its runtime and its power mode are those of that JetPack."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from edgekit.targeting.inheritance import Layer, figures

_NUMBERS = re.compile(r"\d+(\.\d+)*")


def jetpack_among(known: Iterable[str], asked: str) -> str:
    """The one of the known JetPacks that a user means by `asked`, empty where it is none.

    Either the newest of those that `asked` begins like, or the one that the release belongs to: of
    4.6.1 and 6.2, "4.6" and "4.6.4" are the first, "6" and "6.2.1" the second.
    """
    wanted = _numbers(asked)
    versions = list(known)
    inside = [v for v in versions if wanted and version_key(v)[: len(wanted)] == wanted]
    return max(inside, key=version_key, default="") or jetpack_of_release(versions, asked)


def jetpack_of_release(known: Iterable[str], release: str) -> str:
    """The one of the known JetPacks that a release belongs to, empty where it belongs to none.

    A known one stands for itself and the releases after it with the same first two numbers.
    """
    found = _numbers(release)
    before = [v for v in known if version_key(v)[:2] == found[:2] and version_key(v) <= found]
    return max(before, key=version_key, default="")


def _numbers(release: str) -> tuple[int, ...]:
    """Of a release such as "6.1rev1" the numbers that it begins with."""
    said = _NUMBERS.match(release)
    return version_key(said[0]) if said else ()


def version_key(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare it by."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def settled(layer: Layer, jetpack: str = "") -> Layer:
    """The device with a JetPack (its file's default where empty) and a power mode of that JetPack.

    What [runtime] and [peak] say themselves goes before what the default JetPack and its power mode
    bring. Another JetPack becomes part of the name. The sources go along.
    """
    values = dict(layer.values)
    runtime, packs = _table(values, "runtime"), _table(values, "jetpacks")
    said = runtime.get("jetpack")
    default = said if isinstance(said, str) else ""
    chosen = jetpack or default
    is_other = bool(jetpack) and jetpack != default
    if is_other and isinstance(values.get("name"), str):
        values["name"] = f"{values['name']}@{jetpack}"
    if all(isinstance(known, str) for known in packs) and packs:
        values["jetpacks"] = {known: packs[known] for known in sorted(packs, key=version_key)}
    carried: dict[str, str] = {}  # the place that a figure gets, and the one that it is from
    # A JetPack or a mode that is not there is refused by name, later: not as what it would bring.
    brought = _table(packs, chosen if chosen in packs else next(iter(packs), ""))
    if brought and isinstance(values.get("runtime", {}), Mapping):
        own = {} if is_other else runtime
        values["runtime"] = {**runtime, **brought, **own, "jetpack": jetpack or said}
        carried |= {f"runtime.{k}": f"jetpacks.{chosen}.{k}" for k in brought if k not in own}
    if mode := _mode(values, chosen if packs else ""):
        if values["power_mode"] in _table(values, "power_modes"):
            values["power_mode"] = mode
        carried |= _use_mode(values, mode, first=is_other)
    places = {place: source for place, source in carried.items() if place in set(figures(values))}
    return replace(
        layer, values=values,
        sources={**layer.sources, **{
            place: layer.sources[source]
            for place, source in places.items() if source in layer.sources
        }},
        unverified=layer.unverified
        | {place for place, source in places.items() if source in layer.unverified},
    )  # fmt: skip


def _mode(values: Mapping[str, Any], jetpack: str) -> str:
    """The power mode of the figures: the file's, or the fastest one that the JetPack has."""
    modes, named = _table(values, "power_modes"), values.get("power_mode")
    if not isinstance(named, str):
        return ""
    there = {
        name: mode
        for name, mode in modes.items()
        if isinstance(mode, Mapping) and _has(jetpack, mode.get("since"))
    }
    if named in there or not there:
        return named if named in modes else ""
    return max(there, key=lambda name: _number(there[name].get("gpu_hz")))


def _has(jetpack: str, since: object) -> bool:
    if not jetpack or not isinstance(since, str) or not since:
        return True
    return version_key(jetpack) >= version_key(since)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _use_mode(values: dict[str, Any], mode: str, *, first: bool) -> dict[str, str]:
    """Fills in the peak and the bandwidth of a power mode; `first`: before what is there."""
    place, found = f"power_modes.{mode}", _table(_table(values, "power_modes"), mode)
    carried: dict[str, str] = {}
    peak, brought = _table(values, "peak"), _table(found, "peak")
    if brought and isinstance(values.get("peak", {}), Mapping):
        values["peak"] = {**peak, **brought} if first else {**brought, **peak}
        taken = [key for key in brought if first or key not in peak]
        carried |= {f"peak.{key}": f"{place}.peak.{key}" for key in taken}
    memory, key = _table(values, "memory"), "bandwidth_bytes_per_s"
    if key in found and memory and (first or key not in memory):
        values["memory"] = {**memory, key: found[key]}
        carried[f"memory.{key}"] = f"{place}.{key}"
    return carried


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}
