"""The devices that a recipe names: which there are, and whose overrides are theirs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import InputError
from edgekit.recipe_sections import quoted
from edgekit.targets import (
    Target,
    family_names,
    load_target,
    own_target_files,
    target_names,
)


def own_boards(document: Mapping[str, Any], folder: Path) -> tuple[dict[str, Target], list[str]]:
    """The user's own targets that the recipe names, and what is wrong with the others.

    Those whose files `build.targets` lists, and those in the folder `targets`, by name.
    """
    boards, found = {}, []
    seen: set[str] = set()
    own = own_target_files(folder)
    listed = [("build.targets", name) for name in _listed_targets(document)]
    for place, name in [*listed, *(("target", str(key)) for key in table_at(document, "target"))]:
        plain = name.partition("@")[0]
        is_path = name.endswith(".toml") and place == "build.targets"
        if "\0" in name or plain in seen or not (is_path or plain in own):
            continue
        seen.add(plain)
        try:
            board = load_target(from_folder(folder, name if is_path else plain), folder)
        except InputError as error:
            said = error.got.splitlines() or [error.what]
            found += [f"{place}: {name}: {line}" for line in said]
        else:
            boards[board.name] = board
    return boards, found


def unknown_targets(
    document: Mapping[str, Any], known: Iterable[str], folder: Path
) -> Iterator[str]:
    """What is said of the names of devices in the recipe that there are no profiles of."""
    named = [("target", str(name)) for name in table_at(document, "target")]
    named += [("build.targets", n) for n in _listed_targets(document) if not n.endswith(".toml")]
    for place, name in named:
        plain, at, _ = name.partition("@")
        if plain in known:
            if at:
                yield from _unknown_jetpack(place, name, folder)
            continue
        near = difflib.get_close_matches(plain, known, 1, 0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        if not near and place == "target":
            hint = "; a board of your own is listed in build.targets, as the path of its file"
        yield f"{place}: there is no target called {quoted(name)}{hint}"


def names_above(name: str, target: str | Target, boards: Mapping[str, Target]) -> tuple[str, ...]:
    """Whose overrides apply to a device before its own: its family's, its file's."""
    profile = name.partition("@")[0]
    if isinstance(target, str):
        if profile in boards:
            target = boards[profile]
        elif profile in target_names():
            target = load_target(profile)
    family = target.family if isinstance(target, Target) else ""
    above = (family if family in family_names() else "", profile)
    return tuple(other for other in dict.fromkeys(above) if other and other != name)


def full_name(name: str, folder: Path) -> str:
    """The name of the target that `NAME@JETPACK` means."""
    return load_target(name, folder).name


def from_folder(folder: Path, target: str) -> str:
    """The name of a target, or the path of its file, which is relative to the folder."""
    return str(folder / target) if target.endswith(".toml") else target


def table_at(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table of that name; an empty one where there is none, or no table."""
    found = document.get(key)
    return found if isinstance(found, Mapping) else {}


def _listed_targets(document: Mapping[str, Any]) -> list[str]:
    listed = table_at(document, "build").get("targets")
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []


def _unknown_jetpack(place: str, name: str, folder: Path) -> Iterator[str]:
    """What is said of a name with a JetPack that the device does not have."""
    if name.partition("@")[0] in family_names():
        if place == "target":
            yield f"{place}: {name}: a family has no JetPack of its own; name a module"
        return  # which module it means, only the machine that builds knows
    try:
        load_target(name, folder)
    except InputError as error:
        yield f"{place}: {name}: {error.what}; want {error.wanted}"
