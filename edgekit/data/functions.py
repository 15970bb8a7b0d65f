"""A user's own function, named in a recipe as `package.module:function` or `file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit import files
from edgekit.errors import InputError


def load_function(spec: str, folder: Path) -> Callable[..., Any]:
    """The function; files are relative to `folder`, packages are found from there too.

    Raises InputError where there is none, or where importing it fails.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise InputError(
            "this names no function", got=spec, wanted="package.module:function or file.py:function"
        )
    try:
        module = (
            _load_file(folder / place) if place.endswith(".py") else _load_module(place, folder)
        )
    except InputError:
        raise
    except Exception as error:  # the user's own code: whatever it raises is said to the user
        raise InputError(
            f'importing "{place}" failed', where=spec, got=f"{type(error).__name__}: {error}",
            hint=f'Try it alone: python -c "import {place}"' if not place.endswith(".py") else "",
        ) from error  # fmt: skip
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(
            f'"{place}" has no function "{name}"', where=spec,
            wanted=", ".join(n for n, v in vars(module).items() if callable(v))[:200],
        )  # fmt: skip
    found: Callable[..., Any] = function
    return found


def function_digest(spec: str, folder: Path) -> str:
    """The hash of the file that holds the function, for keys; else the spec's."""
    place = spec.rpartition(":")[0]
    if place.endswith(".py"):
        path = folder / place
        return files.digest_file(path) if path.is_file() else files.digest_bytes(spec.encode())
    function = load_function(spec, folder)
    source = getattr(sys.modules.get(function.__module__), "__file__", None)
    return files.digest_file(Path(source)) if source else files.digest_bytes(spec.encode())


def _load_file(path: Path) -> object:
    if not path.is_file():
        raise InputError("there is no such file", where=str(path))
    name = f"edgekit_user_{files.digest_bytes(str(path.resolve()).encode())[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError("this file is no Python module", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _load_module(name: str, folder: Path) -> object:
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
    return importlib.import_module(name)
