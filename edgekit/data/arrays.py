"""Arrays by name, from an .npz or a user's function, and whether they fit a model's inputs."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit.data.functions import load_function, user_code
from edgekit.errors import InputError
from edgekit.values import Array, TensorSpec

LABELS = "labels"
_RETURNED = "a dict from input name to numpy array, and optionally `labels`"

# What zipfile, zlib and numpy's header parser raise over damaged bytes.
_UNREADABLE = (
    ValueError, TypeError, OSError, EOFError, KeyError, IndexError, ArithmeticError, RuntimeError,
    SyntaxError, tokenize.TokenError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
)  # fmt: skip


def read_arrays(path: Path, where: str) -> Mapping[str, Array]:
    """The arrays of an .npz, nothing unpickled.

    Raises InputError for a file that is missing or broken, or claims more than fits into memory.
    """
    if not path.is_file():
        raise InputError(
            "there is no such data file", where=where, wanted=str(path),
            hint="Give an .npz, a folder of pictures or a .csv of them, relative to the recipe if "
            "it stands in one.",
        )  # fmt: skip
    try:
        with path.open("rb") as stream:
            stored = np.load(stream, allow_pickle=False)
            if isinstance(stored, np.lib.npyio.NpzFile):
                with stored:
                    return {name: stored[name] for name in stored.files}
    except _UNREADABLE as error:
        raise InputError(
            "this data file cannot be read", where=where, got=_reason(error),
            wanted="an .npz of numeric arrays by name",
            hint="Write the file once more with numpy.savez_compressed.",
        ) from error  # fmt: skip
    except MemoryError as error:
        raise InputError(
            "an array of this data file does not fit into memory", where=where, got=str(error),
            hint="A broken file may claim any size: write it once more, or with fewer samples.",
        ) from error  # fmt: skip
    raise InputError(
        "this is one array, not an .npz of arrays by name", where=where,
        hint="Save it with numpy.savez(path, INPUT=array).",
    )  # fmt: skip


def call_for_arrays(source: str, folder: Path) -> Mapping[str, Array]:
    """The arrays that the user's function returns. Raises InputError for anything else."""
    function = load_function(source, folder)
    with user_code("the data function failed", source):
        made = function()
    if not isinstance(made, Mapping):
        raise InputError(
            "the data function gave no mapping of arrays", where=source, got=type(made).__name__,
            wanted=_RETURNED,
        )  # fmt: skip
    found: dict[str, Array] = {}
    for name, array in made.items():
        if not isinstance(array, np.ndarray):
            raise InputError(
                f'the data function gave something else than an array for "{name}"',
                where=source, got=type(array).__name__, wanted=_RETURNED,
                hint="Convert it with numpy.asarray.",
            )  # fmt: skip
        found[str(name)] = array
    return found


def fitting(
    stored: Mapping[str, Array], inputs: tuple[TensorSpec, ...], where: str
) -> tuple[dict[str, Array], Array | None]:
    """The array of each input, and the labels where there are any; the rest is left out.

    An array's type is the input's or uint8. Raises InputError for one that is missing, of the wrong
    shape or type, with NaN or infinity or without a sample, and where their lengths differ.
    """
    arrays = {spec.name: _checked(_named(stored, spec, inputs, where), spec, where)
              for spec in inputs}  # fmt: skip
    labels = None if LABELS in arrays else stored.get(LABELS)
    if labels is not None:
        _check_labels(labels, where)
    counts = {name: len(array) for name, array in arrays.items()}
    if labels is not None:
        counts[LABELS] = len(labels)
    if len(set(counts.values())) > 1:
        raise InputError(
            "the arrays do not have the same number of samples", where=where,
            got=", ".join(f"{name}: {count}" for name, count in counts.items()),
            wanted="one entry a sample in each, along the first axis",
            hint="Write the arrays of one set of samples together.",
        )  # fmt: skip
    return arrays, labels


def _reason(error: Exception) -> str:
    """What is wrong with the file: numpy blames pickles both for objects and for plain garbage."""
    if "Object arrays" in str(error):
        return "an array of Python objects, which edgekit does not unpickle"
    if "pickle" in str(error):
        return "no .npz file"
    return f"{type(error).__name__}: {error}"


def _named(
    stored: Mapping[str, Array], spec: TensorSpec, inputs: tuple[TensorSpec, ...], where: str
) -> Array:
    if spec.name in stored:
        return stored[spec.name]
    raise InputError(
        f'there is no array for the input "{spec.name}"', where=where,
        got=", ".join(stored) or "an empty file", wanted=", ".join(s.name for s in inputs),
        hint="Name each array after the model's input.",
    )  # fmt: skip


def _checked(array: Array, spec: TensorSpec, where: str) -> Array:
    """The array, whose shape and numbers fit the input; its type fits or is uint8."""
    named = f'the array "{spec.name}"'
    if array.ndim != len(spec.shape) or not array.ndim:
        raise InputError(
            f"{named} has the wrong number of axes", where=where, got=str(array.shape),
            wanted=str(spec), hint="The first axis is the samples.",
        )  # fmt: skip
    if not len(array):
        raise InputError(
            f"{named} holds no sample", where=where, got=str(array.shape), wanted=str(spec),
            hint="Store at least one; calibration wants some hundreds.",
        )  # fmt: skip
    sizes = zip(array.shape[1:], spec.shape[1:], strict=True)
    if any(isinstance(wanted, int) and got != wanted for got, wanted in sizes):
        raise InputError(
            f"{named} has the wrong shape", where=where, got=str(array.shape), wanted=str(spec),
            hint="The first axis is the samples; images are (n, channels, height, width) where "
            "the model takes them so.",
        )  # fmt: skip
    if array.dtype.name not in (spec.dtype, "uint8"):
        raise InputError(
            f"{named} has the wrong type", where=where, got=array.dtype.name,
            wanted=f"{spec.dtype}, or uint8 with [data.preprocessing]",
            hint=f"Convert it: array.astype(numpy.{spec.dtype}).",
        )  # fmt: skip
    _check_finite(array, named, where)
    return array


def _check_labels(labels: Array, where: str) -> None:
    if not labels.ndim or labels.dtype.kind not in "biuf":
        raise InputError(
            "the labels are no array of numbers", where=where,
            got=f"{labels.dtype.name} {labels.shape}", wanted="one number a sample, or more",
            hint="Store class indices as int64, shape (n,).",
        )  # fmt: skip
    _check_finite(labels, "the array of labels", where)


def _check_finite(array: Array, named: str, where: str) -> None:
    if array.dtype.kind != "f":
        return
    per_sample = np.isfinite(array).reshape(len(array), -1)
    if not per_sample.all():
        bad = np.flatnonzero(~per_sample.all(axis=1))
        raise InputError(
            f"{named} holds NaN or infinity", where=where,
            got=f"{int((~per_sample).sum())} values in {len(bad)} samples, the first at index "
            f"{bad[0]}",
            wanted="finite numbers", hint="Look at how these samples were made, or leave them out.",
        )  # fmt: skip
