"""Samples on disk or from a user's function, checked once, handed out in batches."""

from __future__ import annotations

import functools
import hashlib
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekit.data.functions import load_function, user_code
from edgekit.errors import InputError
from edgekit.values import Array, Batch, Preprocessing, TensorSpec

LABELS = "labels"

# What zipfile, zlib and numpy's header parser raise over damaged bytes.
_UNREADABLE = (
    ValueError, TypeError, OSError, EOFError, KeyError, IndexError, ArithmeticError, RuntimeError,
    SyntaxError, tokenize.TokenError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """A re-iterable, sized, hashable source of Batch; arrays stay as they are stored.

    `arrays` by input name, first axis the samples, the same number in each; `labels` is None where
    there are none. `preprocessing` is applied batch by batch to the arrays named in `pixels`, which
    are uint8 there and of the type that `pixels` says afterwards.
    """

    arrays: Mapping[str, Array]
    labels: Array | None = None
    preprocessing: Preprocessing | None = None
    pixels: Mapping[str, str]
    batch_size: int

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(next(iter(self.arrays.values())))

    def __len__(self) -> int:
        """The number of batches."""
        return (self.count + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, self.count, self.batch_size):
            yield self.pick(slice(begin, begin + self.batch_size))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batches) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[str, int]:
        return self.digest, self.batch_size

    def pick(self, samples: Array | slice) -> Batch:
        """The samples at those indices, in that order, preprocessed."""
        stored = {name: array[samples] for name, array in self.arrays.items()}
        return Batch(
            inputs={name: self._prepared(name, array) for name, array in stored.items()},
            labels=None if self.labels is None else self.labels[samples],
        )

    def _prepared(self, name: str, stored: Array) -> Array:
        if self.preprocessing is None or name not in self.pixels:
            return stored
        return self.preprocessing.apply(stored).astype(self.pixels[name], copy=False)

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of everything that decides what comes out, the batch size apart."""
        digest = hashlib.sha256(repr((self.preprocessing, sorted(self.pixels.items()))).encode())
        parts = [("input", name, array) for name, array in sorted(self.arrays.items())]
        if self.labels is not None:
            parts.append(("labels", LABELS, self.labels))
        for part, name, array in parts:
            digest.update(repr((part, name, array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @functools.cached_property
    def sample_digests(self) -> tuple[str, ...]:
        """The SHA-256 of each sample's stored arrays, in the order of the samples, labels apart."""
        arrays = [np.ascontiguousarray(array) for _, array in sorted(self.arrays.items())]
        found = []
        for index in range(self.count):
            digest = hashlib.sha256()
            for array in arrays:
                digest.update(array[index].tobytes())
            found.append(digest.hexdigest())
        return tuple(found)

    def take(self, samples: int) -> Batches:
        """At most that many samples, evenly spaced over all of them, in their order."""
        if samples >= self.count:
            return self
        return self._only(np.linspace(0, self.count - 1, samples).round().astype(np.int64))

    def without(self, samples: Array) -> Batches:
        """All samples but those at the indices, in their order."""
        return self._only(np.setdiff1d(np.arange(self.count), samples))

    def _only(self, samples: Array) -> Batches:
        return replace(
            self,
            arrays={name: array[samples] for name, array in self.arrays.items()},
            labels=None if self.labels is None else self.labels[samples],
        )

    def with_batch_size(self, batch_size: int) -> Batches:
        """The same samples in batches of another size."""
        return replace(self, batch_size=batch_size)


def load_batches(
    source: str,
    *,
    folder: Path,
    inputs: tuple[TensorSpec, ...],
    preprocessing: Preprocessing | None,
    batch_size: int,
    role: str,
) -> Batches:
    """The samples that `source` names: an `.npz`, or a function that returns a mapping of arrays.

    `role` ("calibration", "evaluation") is how errors call it. An array stored as uint8 for an
    input of another type is pixels and needs preprocessing. Raises InputError for a file that is
    missing or broken, and for an array that is missing, of the wrong shape or type, with NaN or
    infinity, or without a sample.
    """
    where = f"{role} data {source}"
    stored = _call(source, folder) if _names_function(source) else _read(folder / source, where)
    arrays = {spec.name: _checked(_array(stored, spec, inputs, where), spec, where)
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
    pixels = {
        spec.name: spec.dtype
        for spec in inputs
        if arrays[spec.name].dtype == np.uint8 and spec.dtype != "uint8"
    }
    for name in pixels:
        _check_preprocessing(preprocessing, arrays[name], name, where)
    return Batches(
        arrays=arrays, labels=labels, preprocessing=preprocessing, pixels=pixels,
        batch_size=batch_size,
    )  # fmt: skip


def refuse_shared_samples(calibration: Batches, evaluation: Batches) -> None:
    """Raises InputError where a sample is in both: an accuracy on seen samples means nothing."""
    seen = set(calibration.sample_digests)
    shared = [i for i, digest in enumerate(evaluation.sample_digests) if digest in seen]
    if shared:
        raise InputError(
            "calibration and evaluation share samples", where="[data]",
            got=f"{len(shared)} of {evaluation.count} evaluation samples are in the calibration "
            f"data too, the first at index {shared[0]}",
            wanted="no sample in both",
            hint="Take them out of one of the two: an accuracy on seen samples means nothing.",
        )  # fmt: skip


def _names_function(source: str) -> bool:
    return ":" in source and not source.endswith(".npz")


def _read(path: Path, where: str) -> Mapping[str, Array]:
    if not path.is_file():
        raise InputError(
            "there is no such data file", where=where, got="a folder" if path.is_dir() else "",
            wanted=str(path), hint="Give the path of an .npz; in a recipe it is relative to it.",
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


def _reason(error: Exception) -> str:
    """What is wrong with the file: numpy blames pickles both for objects and for plain garbage."""
    if "Object arrays" in str(error):
        return "an array of Python objects, which edgekit does not unpickle"
    if "pickle" in str(error):
        return "no .npz file"
    return f"{type(error).__name__}: {error}"


def _call(source: str, folder: Path) -> Mapping[str, Array]:
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


_RETURNED = "a dict from input name to numpy array, and optionally `labels`"


def _array(
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


def _check_preprocessing(
    preprocessing: Preprocessing | None, pixels: Array, name: str, where: str
) -> None:
    if preprocessing is None:
        raise InputError(
            f'the array "{name}" holds pixels, and nothing says how the model wants them',
            where=where, got="uint8", wanted="the model's own type, or [data.preprocessing]",
            hint="Give scale, mean and std in [data.preprocessing].",
        )  # fmt: skip
    channels = pixels.shape[1] if pixels.ndim > 1 else 1
    for key, numbers in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(numbers) not in (1, channels):
            raise InputError(
                f'{key} does not fit the {channels} channels of "{name}"',
                where="data.preprocessing", got=f"{len(numbers)} numbers",
                wanted="1 number" if channels == 1 else f"1 number or {channels}",
                hint="Give one number for all channels or one for each.",
            )  # fmt: skip
