"""Files that torch wrote: what they hold; weights and modules out of them, nothing run.

Nothing is unpickled but tensors, unless the user says of a file that it is trusted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgekit.errors import InputError, MissingPackageError

Kind = Literal["pt2", "torchscript", "state_dict", "pickle"]

# What zipfile and torch's readers raise over damaged bytes.
_UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, zlib.error, RuntimeError, ValueError,
    EOFError, AttributeError, KeyError, IndexError, TypeError, AssertionError, OSError,
    OverflowError, ImportError,
)  # fmt: skip
# Under these keys a training script keeps the state dict among other things.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "ema_state_dict")


def kind_of(path: Path) -> Kind:
    """What a `.pt`, `.pth` or `.pt2` file holds, by its contents; nothing in it is run.

    Raises InputError for a file that is missing or no file of torch's.
    """
    if not path.is_file():
        raise InputError("there is no such model file", where=str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except _UNREADABLE as error:
        if path.read_bytes()[:1] == b"\x80":
            return "pickle"
        raise InputError(
            "this is no file of torch's, or only a part of one", where=str(path),
            hint="Copy the file once more.",
        ) from error  # fmt: skip
    if any(name.startswith("models/") and name.endswith(".json") for name in names):
        return "pt2"
    if "serialized_exported_program.json" in names:
        return "pt2"
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return "torchscript"
    if "data.pkl" not in names:
        raise InputError("this is no file of torch's", where=str(path), got=", ".join(names[:5]))
    return "state_dict" if _is_state_dict(path) else "pickle"


def _is_state_dict(path: Path) -> bool:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE:
        return False
    return isinstance(stored, Mapping)


def load_weights(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Fills a module from `.safetensors` or a state dict; what was done to the keys is returned.

    Nothing is unpickled but tensors. Raises InputError where a key is missing or unexpected or of
    another shape: all of them are listed.
    """
    stored, notes = _read_weights(path)
    wanted = module.state_dict()
    if stored and all(name.startswith("module.") for name in stored):
        stored = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
        notes = (*notes, 'every key began with "module.", which was left out')
    # Old files do not count the batches; nothing reads the count outside training.
    missing = [n for n in wanted if n not in stored and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in stored if name not in wanted]
    other = [
        f"{name} {tuple(stored[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    if missing or unexpected or other:
        faults = [
            f"{len(names)} {what}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            for what, names in (
                ("missing", missing), ("unexpected", unexpected), ("of another shape", other),
            )
            if names
        ]  # fmt: skip
        raise InputError(
            "these weights are not those of the module", where=str(path), got="; ".join(faults),
            wanted=f"the {len(wanted)} tensors of {type(module).__name__}",
            hint="Name the factory that made the trained model, with the same arguments.",
        )  # fmt: skip
    module.load_state_dict(stored, strict=False)
    return notes


def _read_weights(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    if not path.is_file():
        raise InputError("there is no such file of weights", where=str(path))
    if path.suffix == ".safetensors":
        return _read_safetensors(path), ()
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        raise InputError(
            "this file holds more than tensors, or is damaged; edgekit does not unpickle it",
            where=str(path), got=first_line(error),
            hint="Save the weights alone: torch.save(model.state_dict(), ...), or as safetensors.",
        ) from error  # fmt: skip
    notes: tuple[str, ...] = ()
    if isinstance(stored, Mapping) and not _all_tensors(stored):
        for key in _STATE_KEYS:
            if isinstance(stored.get(key), Mapping) and _all_tensors(stored[key]):
                stored, notes = stored[key], (f'the state dict is under "{key}"',)
                break
    if not isinstance(stored, Mapping) or not _all_tensors(stored):
        raise InputError(
            "this file is no state dict", where=str(path), got=type(stored).__name__,
            wanted="names and their tensors",
            hint="torch.save(model.state_dict(), path) makes one.",
        )  # fmt: skip
    return dict(stored), notes


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        import safetensors
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingPackageError(
            "reading .safetensors needs a package", where=str(path), wanted="safetensors",
            hint="pip install 'edgekit[compress]'",
        ) from error  # fmt: skip
    try:
        found: dict[str, Tensor] = load_file(str(path))
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise InputError(
            "these weights cannot be read", where=str(path), got=first_line(error),
            hint="Copy the file once more.",
        ) from error  # fmt: skip
    return found


def _all_tensors(stored: Mapping[Any, Any]) -> bool:
    return bool(stored) and all(isinstance(value, Tensor) for value in stored.values())


def load_pickle(path: Path, *, trusted: bool) -> nn.Module:
    """The module of a pickle, where the user trusts it; running it runs any code that is in it.

    Raises InputError where it is not trusted, which says what to do instead.
    """
    if not trusted:
        raise InputError(
            "this file is a pickled module: to open it is to run code that is in it",
            where=str(path),
            hint="Save the weights alone (torch.save(model.state_dict(), ...)) and name the "
            "factory: file.py:function; or export it to .onnx where it was trained; or, if you "
            "know who made it, give --trust-pickle.",
        )  # fmt: skip
    try:
        stored = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle may raise anything, its own code runs here
        raise InputError(
            "the pickled module cannot be opened", where=str(path), got=first_line(error),
            hint="The code that made it must be importable: run edgekit in the same environment.",
        ) from error  # fmt: skip
    if isinstance(stored, Mapping) and isinstance(stored.get("model"), nn.Module):
        stored = stored["model"]
    if not isinstance(stored, nn.Module):
        raise InputError(
            "this pickle holds no module", where=str(path), got=type(stored).__name__,
            hint="A state dict needs the factory of its module: file.py:function.",
        )  # fmt: skip
    return stored.float()


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Forbids what torch.export falls back to: unpickling anything (torch 2.13, serialize.py)."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences torch: its exporter prints, logs and warns of what no user can act on."""
    names = [n for n in logging.root.manager.loggerDict if n.startswith(("torch", "onnxscript"))]
    before = {n: logging.getLogger(n).level for n in (*names, "torch.onnx", "onnxscript")}
    for name in before:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
