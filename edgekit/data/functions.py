"""A user's own function, named in a recipe as `package.module:function` or `file.py:function`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekit import files
from edgekit.errors import EdgekitError, InputError


def load_function(spec: str, folder: Path) -> Callable[..., Any]:
    """The function; files are relative to `folder`, packages are found from there too.

    Raises InputError where there is none, or where importing it fails.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise InputError(
            "this names no function", got=spec, wanted="package.module:function or file.py:function"
        )
    module = _load_file(folder / place, spec) if _is_file(place) else _load_module(place, folder)
    function = getattr(module, name, None)
    if not callable(function):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise InputError(
            f'"{place}" has no function "{name}"', where=spec,
            got=f"a {type(function).__name__}" if function is not None else "",
            wanted=f"one of {', '.join(public[:12])}" if public else "",
        )  # fmt: skip
    found: Callable[..., Any] = function
    return found


def function_digest(spec: str, folder: Path) -> str:
    """The SHA-256 of the file that holds the function, for keys: it changes with the code.

    What that file imports is not in it. Raises InputError as `load_function` does.
    """
    place = spec.rpartition(":")[0]
    function = load_function(spec, folder)
    if _is_file(place):
        return files.digest_file(folder / place)
    source = getattr(sys.modules.get(function.__module__), "__file__", None)
    return files.digest_file(Path(source)) if source else files.digest_bytes(spec.encode())


@contextlib.contextmanager
def user_code(what: str, where: str) -> Iterator[None]:
    """Turns whatever the user's own code raises into an InputError that quotes it."""
    try:
        yield
    except EdgekitError:
        raise
    except Exception as error:  # foreign code may raise anything, and it is the user's to mend
        raise InputError(what, where=where, got=f"{type(error).__name__}: {error}") from error


def _is_file(place: str) -> bool:
    return place.endswith(".py")


def _load_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise InputError("there is no such file", where=where, wanted=str(path))
    name = f"edgekit_user_{files.digest_bytes(str(path.resolve()).encode())[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a name that ends in .py always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the user's look for it there
    with user_code(f'running "{path.name}" failed', where):
        spec.loader.exec_module(module)
    return module


def _load_module(name: str, folder: Path) -> ModuleType:
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
    with user_code(f'importing "{name}" failed', f"from {place}"):
        return importlib.import_module(name)
