"""TOML documents and what is wrong with them, said in plain words with a line of sight."""

from __future__ import annotations

import datetime
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgekit.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SHORT = 80
_TYPES = {
    "int": "a whole number", "float": "a number", "string": "a text", "bool": "true or false",
    "dict": "a table", "model": "a table", "list": "a list", "tuple": "a list",
}  # fmt: skip


def read_toml(path: Path, *, what: str) -> dict[str, Any]:
    """The document. Raises InputError for a missing file, and for one that is no TOML."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"there is no such {what} file", where=str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"this {what} file cannot be read", where=str(path), got=str(error)
        ) from error
    try:
        document: dict[str, Any] = tomllib.loads(content)
    except (ValueError, RecursionError) as error:  # numbers too long, tables too deep for Python
        raise InputError(f"this {what} file is no TOML", where=str(path), got=str(error)) from error
    return document


def faults(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every fault as `place.in.the.document: what is wrong`, sorted by place.

    `model` is what was validated: its fields tell what an unknown key may have been meant to be.
    """
    return sorted(f"{place}: {said}" for place, said in _faults(error.errors(), model, prefix))


def _faults(
    details: Sequence[ErrorDetails], model: type[BaseModel], prefix: str
) -> Iterator[tuple[str, str]]:
    for detail in details:
        below = any(other["loc"][:-1] == detail["loc"] for other in details)
        if detail["type"] == "too_short" and below:
            continue  # an entry that is wrong is not one that is missing
        path = [str(part) for part in detail["loc"] if not str(part).startswith("function-")]
        place = ".".join([prefix, *path] if prefix else path) or "the document"
        yield place, _said(detail, model, path)


def _said(detail: ErrorDetails, model: type[BaseModel], path: list[str]) -> str:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    got = _shown(given)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], _keys(model, path[:-1]), 1, 0.5)
        return f'unknown key; did you mean "{near[0]}"?' if near else "unknown key"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        wanted = str(context.get("expected", "")).replace("'", '"')
        names = [part.strip('" ') for part in wanted.replace(" or ", ",").split(",")]
        near = difflib.get_close_matches(str(given), names, 1, 0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        return f"{got} is not one of {wanted}{hint}"
    if kind in _BOUNDS:
        limits = {name: _shown(limit) for name, limit in context.items()}
        return f"{got} is not {_BOUNDS[kind].format(**limits)}"
    if kind == "value_error":
        return str(context["error"])
    stem = kind.removesuffix("_type").removesuffix("_parsing")
    if stem in _TYPES:
        return f"wanted {_TYPES[stem]}, got {got}"
    return f"{detail['msg'][0].lower()}{detail['msg'][1:]}, got {got}"


_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "string_pattern_mismatch": "of the form {pattern}",
    "too_short": "at least {min_length} long",
}


def _shown(value: object) -> str:
    """The value as TOML would write it, and short."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def _keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that the table at that path may have."""
    table: object = model
    for part in path:
        if isinstance(table, type) and issubclass(table, BaseModel):
            field = table.model_fields.get(part)
            table = _table_type(field.annotation) if field is not None else None
        elif get_origin(table) is dict:  # its keys are the user's own names
            table = _table_type(get_args(table)[1])
    return (
        list(table.model_fields) if isinstance(table, type) and issubclass(table, BaseModel) else []
    )


def _table_type(annotation: object) -> object:
    """What of a field's type is a table: a model or a dict, `| None` taken off; else None."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return kind
    return None


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both documents as one: where both have a table it is merged, else what is `above` wins."""
    found = dict(below)
    for key, value in above.items():
        present = found.get(key)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            found[key] = merged(present, value)
        else:
            found[key] = value
    return found
