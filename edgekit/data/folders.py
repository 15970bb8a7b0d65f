"""Which pictures a folder or a CSV names, in which order, and the labels that come with them."""

from __future__ import annotations

import csv
import difflib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import InputError
from edgekit.values import Array

CLASSES_FILE = "classes.txt"
LABELS_FILE = "labels.csv"

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Samples that somebody means to be read and that would be missed: better said than left out.
_OTHER_PICTURES = (
    ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".ppm", ".pgm", ".tga", ".dng",
    ".cr2", ".cr3", ".nef", ".arw", ".raw", ".exr", ".ico", ".psd",
)  # fmt: skip

_MOST_CLASSES = 2**31 - 1
_SHOWN = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Pictures in a fixed order, and for each the index of its class, where there are classes."""

    paths: tuple[Path, ...]
    labels: Array | None = None


def list_pictures(place: Path, where: str) -> Listing:
    """The pictures of a folder or of a CSV, in this order of preference.

        a .csv, or a folder with a `labels.csv`   a row a picture: path and maybe label
        a folder of folders                       a folder a class, sorted by name, then by picture
        a folder of pictures                      sorted by name, no labels

    The order of the classes is that of `classes.txt` (a name a line) beside them where there is
    one, else sorted by name. Hidden files and what is no picture are left out. Raises InputError
    where nothing or more than one of these is meant.
    """
    if place.suffix.lower() == ".csv":
        return _listed(place, where)
    if (place / LABELS_FILE).is_file():
        return _listed(place / LABELS_FILE, where)
    pictures, folders = _contents(place, where)
    if pictures and folders:
        raise InputError(
            "this folder holds both pictures and folders", where=where,
            got=f"{_counted(len(pictures), 'picture')} ({_some(p.name for p in pictures)}) and "
            f"{_counted(len(folders), 'folder')} ({_some(f.name for f in folders)})",
            wanted="a folder for each class, or pictures alone",
            hint="Move the pictures into the folders of their classes.",
        )  # fmt: skip
    if folders:
        return _by_class(place, folders, where)
    if not pictures:
        raise _no_picture(place, where)
    return Listing(paths=tuple(pictures))


def _contents(folder: Path, where: str) -> tuple[list[Path], list[Path]]:
    """The pictures and the folders in a folder, sorted by name."""
    try:
        found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError("this folder cannot be read", where=where, got=str(error)) from error
    folders = [entry for entry in found if entry.is_dir()]
    others = [e for e in found if e.suffix.lower() in _OTHER_PICTURES and e not in folders]
    if others:
        raise InputError(
            "there are pictures of a kind that is not read", where=where,
            got=f"{_counted(len(others), 'file')} ({_some(o.name for o in others)}) in {folder}",
            wanted=", ".join(SUFFIXES), hint="Convert them, or take them out.",
        )  # fmt: skip
    pictures = [e for e in found if e.suffix.lower() in SUFFIXES and e not in folders]
    ignored = len(found) - len(folders) - len(pictures)
    if ignored:
        _log.info("%s: %d files that are no pictures were left out", folder, ignored)
    return pictures, folders


def _by_class(place: Path, folders: Sequence[Path], where: str) -> Listing:
    classes = read_classes(place)
    known = [folder.name for folder in folders] if classes is None else classes
    unknown = [folder.name for folder in folders if folder.name not in known]
    if unknown:
        raise InputError(
            f"there are folders that are no class of {CLASSES_FILE}", where=where,
            got=_some(unknown), wanted=_some(known),
            hint=_near(unknown[0], known) or f"Add them to {place / CLASSES_FILE}.",
        )  # fmt: skip
    by_name = {folder.name: folder for folder in folders}
    paths: list[Path] = []
    labels: list[int] = []
    for index, name in enumerate(known):
        if name not in by_name:
            continue
        pictures, inner = _contents(by_name[name], where)
        if inner:
            raise InputError(
                "the folder of a class holds folders of its own", where=where,
                got=f"{by_name[name]}: {_some(f.name for f in inner)}",
                wanted="pictures alone",
                hint=f"If those are the classes, name {by_name[name]} instead.",
            )  # fmt: skip
        if not pictures and classes is None:
            raise _no_picture(by_name[name], where, folders)
        paths += pictures
        labels += [index] * len(pictures)
    if not paths:
        raise _no_picture(place, where, folders)
    return Listing(paths=tuple(paths), labels=np.asarray(labels, np.int64))


def _no_picture(folder: Path, where: str, among: Sequence[Path] = ()) -> InputError:
    entries = [e for e in folder.iterdir() if e.is_file() and not e.name.startswith(".")]
    suffixes = Counter(entry.suffix.lower() or "no suffix" for entry in entries)
    seen = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(_SHOWN))
    return InputError(
        f"there is no picture in {folder}", where=where, got=seen or "an empty folder",
        wanted=f"{', '.join(SUFFIXES)}",
        hint=f"An empty folder would be a class too, and move the labels of those after it: take "
        f"it away, or write the classes into {CLASSES_FILE}, one a line."
        if len(among) > 1
        else "Name a folder of pictures, or one with a folder for each class.",
    )  # fmt: skip


def read_classes(folder: Path) -> list[str] | None:
    """The lines of the folder's `classes.txt`; None where there is none.

    Raises InputError for a file that cannot be read, an empty line and a name that comes twice.
    """
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    names = [line.strip() for line in _read_text(path).rstrip().splitlines()]
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if not names or "" in names or twice:
        raise InputError(
            "these classes have no clear order", where=str(path),
            got=f"{twice[0]} twice" if twice else "an empty line" if names else "an empty file",
            wanted="the name of a class a line, in the order of the model's outputs",
        )  # fmt: skip
    return names


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str


def _listed(table: Path, where: str) -> Listing:
    """The pictures that a CSV lists; paths are relative to it."""
    rows, labelled = _rows(table, where)
    paths = [table.parent / row.path for row in rows]
    missing = [row for row, path in zip(rows, paths, strict=True) if not path.is_file()]
    if missing:
        raise InputError(
            "there are pictures that are not where the CSV says", where=where,
            got=f"{len(missing)} of {len(rows)}, the first on line {missing[0].line}: "
            f"{missing[0].path!r:.200}",
            wanted=f"paths of files, relative to {table.parent}",
            hint='A first line that is no picture must be the header "path,label".',
        )  # fmt: skip
    wrong = [row for row in rows if Path(row.path).suffix.lower() not in SUFFIXES]
    if wrong:
        raise InputError(
            "the CSV lists files that are no pictures", where=where,
            got=f"{len(wrong)} of {len(rows)}, the first on line {wrong[0].line}: {wrong[0].path}",
            wanted=", ".join(SUFFIXES),
        )  # fmt: skip
    first: dict[Path, _Row] = {}
    for row, path in zip(rows, paths, strict=True):
        earlier = first.setdefault(path, row)
        if earlier is not row:
            raise InputError(
                "the CSV lists a picture twice", where=where,
                got=f"{row.path} on line {earlier.line} and on line {row.line}",
                hint="Each sample counts once.",
            )  # fmt: skip
    labels = _labels(rows, read_classes(table.parent), where) if labelled else None
    return Listing(paths=tuple(paths), labels=labels)


def _rows(table: Path, where: str) -> tuple[list[_Row], bool]:
    """The rows of the CSV, and whether they have labels."""
    text = _read_text(table)
    try:
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        cells = [(lines.line_num, [c.strip() for c in row]) for row in lines if any(row)]
    except csv.Error as error:
        raise InputError("this is no CSV", where=where, got=str(error)) from error
    if not cells:
        raise InputError("this CSV lists no picture", where=where, got="an empty file")
    header = [cell.lower() for cell in cells[0][1]]
    columns = ["path", "label"][: len(header)]
    if "path" in header:
        columns = header
        cells = cells[1:]
    elif len(header) > 2:
        raise _odd_line(cells[0], "a path, or a path and a label, or a header", where)
    for numbered in cells:
        if len(numbered[1]) != len(columns):
            raise _odd_line(numbered, f"{_counted(len(columns), 'cell')}", where)
    if not cells:
        raise InputError("this CSV lists no picture", where=where, got="a header alone")
    labelled = "label" in columns
    at, label_at = columns.index("path"), columns.index("label") if labelled else 0
    rows = [_Row(line, row[at], row[label_at]) for line, row in cells]
    for row in rows:
        if not row.path or not row.label:
            missing = "path" if not row.path else "label"
            raise InputError(
                f"a row of the CSV has no {missing}", where=where, got=f"line {row.line}",
                hint="Labels are for all pictures or for none.",
            )  # fmt: skip
    return rows, labelled


def _odd_line(numbered: tuple[int, list[str]], wanted: str, where: str) -> InputError:
    line, row = numbered
    return InputError(
        "a row of the CSV has another number of cells", where=where,
        got=f"line {line}: {','.join(row)!r:.200}", wanted=wanted,
        hint="Cells are separated by commas; a path with a comma stands between double quotes.",
    )  # fmt: skip


def _labels(rows: Sequence[_Row], classes: list[str] | None, where: str) -> Array:
    """The index of each row's class. Names in `classes` go before numbers."""
    named = [row for row in rows if classes is None or row.label not in classes]
    numbers = [row.label.isascii() and row.label.isdigit() for row in rows]
    if classes is not None and not named:
        index = {name: i for i, name in enumerate(classes)}
        return np.asarray([index[row.label] for row in rows], np.int64)
    if all(numbers):
        most = _MOST_CLASSES if classes is None else len(classes) - 1
        large = [row for row in rows if len(row.label) > 10 or int(row.label) > most]
        if large:
            raise InputError(
                "a label is no index of a class", where=where,
                got=f"{large[0].label:.40} on line {large[0].line}", wanted=f"0 to {most}",
            )  # fmt: skip
        return np.asarray([int(row.label) for row in rows], np.int64)
    if classes is not None:
        raise InputError(
            f"a label is no class of {CLASSES_FILE}", where=where,
            got=f"{named[0].label!r:.80} on line {named[0].line}", wanted=_some(classes),
            hint=_near(named[0].label, classes),
        )  # fmt: skip
    if any(numbers):
        number, name = rows[numbers.index(True)], rows[numbers.index(False)]
        raise InputError(
            "some labels are numbers and others are names", where=where,
            got=f"{number.label} on line {number.line}, {name.label!r:.80} on line {name.line}",
            wanted="indices of classes, or names",
            hint=f"Names that are digits need a {CLASSES_FILE} beside the CSV.",
        )  # fmt: skip
    odd = [row for row in rows if _is_number(row.label)]
    if odd:
        raise InputError(
            "a label is a number, but no index of a class", where=where,
            got=f"{odd[0].label} on line {odd[0].line}", wanted="0, 1, 2 and so on, or names",
        )  # fmt: skip
    index = {name: i for i, name in enumerate(sorted({row.label for row in rows}))}
    return np.asarray([index[row.label] for row in rows], np.int64)


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("there is no such data file", where=str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "this file cannot be read", where=str(path), got=str(error), wanted="text in UTF-8"
        ) from error


def _some(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _near(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, names, 1)
    return f'Did you mean "{found[0]}"?' if found else ""
