"""Where targets' files lie, and what one of them says together with those that it extends."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekit import documents
from edgekit.errors import InputError
from edgekit.targeting.inheritance import Layer, extended, layer_of

FOLDER = "targets"
"""What the folder of a user's own targets is called, beside a recipe or in the current folder."""

# A wheel carries its targets inside the package; in a checkout they lie beside it. In this order:
# beside an installed package, a folder of that name is somebody else's.
_PACKAGE = Path(__file__).resolve().parent.parent
_PLACES = (_PACKAGE / "_targets", _PACKAGE.parent / FOLDER)


def shipped_folder() -> Path:
    """The folder of the targets that edgekit ships. Raises InputError where there is none."""
    for place in _PLACES:
        if place.is_dir() and any(place.glob("*.toml")):
            return place
    raise InputError(
        "edgekit's own target files are missing", where=" or ".join(map(str, _PLACES)),
        hint="Install edgekit again.",
    )  # fmt: skip


def own_folders(beside: Path | None = None) -> tuple[Path, ...]:
    """The folders of the user's own targets that are there, the first one first to be asked.

    Beside the recipe, where there is one, then in the current folder.
    """
    places = [Path(FOLDER)] if beside is None else [beside / FOLDER, Path(FOLDER)]
    seen = {shipped_folder().resolve()}
    found = []
    for place in places:
        if place.is_dir() and place.resolve() not in seen:
            seen.add(place.resolve())
            found.append(place)
    return tuple(found)


def own_files(beside: Path | None = None) -> dict[str, Path]:
    """The user's own targets by name: the file is called as its target is.

    Raises InputError for a folder that cannot be read.
    """
    found: dict[str, Path] = {}
    for folder in own_folders(beside):
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
        except OSError as error:
            raise InputError(
                "the folder of your own targets cannot be read", where=str(folder), got=str(error)
            ) from error
        for path in paths:
            found.setdefault(path.stem, path)
    return found


def shipped_files() -> dict[str, Path]:
    """The targets that edgekit ships, by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.toml"))}


def read_file(path: Path) -> tuple[Layer, tuple[Path, ...]]:
    """What a file and those that it extends come to; the files, itself first.

    Raises InputError for a file that is missing or no TOML, for one that extends a target that is
    not there, and for a circle of them.
    """
    layers, paths = [], []
    for layer, place in _chain(path):
        layers.append(layer)
        paths.append(place)
    found = layers.pop()
    while layers:
        found = extended(found, layers.pop())
    return found, tuple(paths)


def _chain(path: Path) -> Iterator[tuple[Layer, Path]]:
    """A file's own Layer, then that of the file that it extends, and so on."""
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        if any(following.resolve() == place.resolve() for place in seen):
            raise InputError(
                "these target files extend one another in a circle", where=str(path),
                got=" -> ".join(place.name for place in [*seen, following]),
                hint="Take one `extends` out.",
            )  # fmt: skip
        seen.append(following)
        document = documents.read_toml(following, what="target")
        yield layer_of(document), following
        following = _base(document.get("extends"), following, seen)


def _base(wanted: object, path: Path, seen: Sequence[Path]) -> Path | None:
    """The file that `path` extends: of its own folder, else one that edgekit ships.

    A file that extends its own name means the one that edgekit ships under it.
    """
    if wanted is None:
        return None
    if not isinstance(wanted, str) or not wanted or "\0" in wanted:
        raise InputError(
            "this target file has faults", where=str(path),
            got=f"extends: wanted the name of a target, got {wanted!r}",
        )  # fmt: skip
    if wanted.endswith(".toml"):
        return path.parent / wanted
    shipped = shipped_folder()
    beside = path.parent / f"{wanted}.toml"
    ours = shipped / f"{wanted}.toml"
    if beside.is_file() and not (beside.resolve() == path.resolve() and ours.is_file()):
        return beside
    if ours.is_file():
        return ours
    known = sorted({*shipped_files(), *(p.stem for p in path.parent.glob("*.toml"))} - {path.stem})
    near = difflib.get_close_matches(wanted, known, 1, 0.5)
    raise InputError(
        "this target file extends one that is not there", where=str(path),
        got=f'extends = "{wanted}"', wanted=", ".join(known),
        hint=f'Did you mean "{near[0]}"?' if near else "`edgekit targets` lists them.",
    )  # fmt: skip
