"""Samples on disk or from a user's function, checked once, handed out in batches."""

from __future__ import annotations

import functools
import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekit.data.functions import load_function
from edgekit.errors import InputError
from edgekit.values import Array, Batch, Preprocessing, TensorSpec

LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A re-iterable, sized, hashable source of Batch; arrays stay as they are stored.

    `arrays` by input name, first axis the samples; preprocessing is applied batch by batch, to
    uint8 arrays only. `labels` is None where there are none.
    """

    arrays: Mapping[str, Array]
    labels: Array | None
    preprocessing: Preprocessing | None
    batch_size: int

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(next(iter(self.arrays.values())))

    def __len__(self) -> int:
        """The number of batches."""
        return math.ceil(self.count / self.batch_size)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, self.count, self.batch_size):
            chosen = slice(begin, begin + self.batch_size)
            yield Batch(
                inputs={name: self._prepared(array[chosen]) for name, array in self.arrays.items()},
                labels=None if self.labels is None else self.labels[chosen],
            )

    def _prepared(self, array: Array) -> Array:
        if self.preprocessing is not None and array.dtype == np.uint8:
            return self.preprocessing.apply(array)
        return array

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of everything that decides what comes out, the batch size apart."""
        digest = hashlib.sha256(repr(self.preprocessing).encode())
        parts = {**self.arrays} if self.labels is None else {**self.arrays, LABELS: self.labels}
        for name, array in sorted(parts.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @functools.cached_property
    def sample_digests(self) -> tuple[str, ...]:
        """The SHA-256 of each sample's stored arrays, labels apart."""
        arrays = [np.ascontiguousarray(array) for _, array in sorted(self.arrays.items())]
        found = []
        for index in range(self.count):
            digest = hashlib.sha256()
            for array in arrays:
                digest.update(array[index].tobytes())
            found.append(digest.hexdigest())
        return tuple(found)

    def take(self, samples: int) -> Batches:
        """At most that many samples, evenly spaced over all of them."""
        if samples >= self.count:
            return self
        chosen = np.linspace(0, self.count - 1, samples).round().astype(np.int64)
        return replace(
            self,
            arrays={name: array[chosen] for name, array in self.arrays.items()},
            labels=None if self.labels is None else self.labels[chosen],
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

    `role` ("calibration", "evaluation") is how errors call it. Raises InputError for a file that
    is missing or broken, and for an array that is missing, of the wrong shape or type, with NaN or
    infinity, or without a sample.
    """
    where = f"{role} data {source}"
    stored = dict(_call(source, folder) if ":" in source else _read_npz(folder / source, where))
    labels = stored.pop(LABELS, None)
    arrays = {}
    for spec in inputs:
        if spec.name not in stored:
            raise InputError(
                f'there is no array for the input "{spec.name}"', where=where,
                got=", ".join([*stored, *([LABELS] if labels is not None else [])]) or "nothing",
                wanted=", ".join(s.name for s in inputs),
                hint="Name each array after the model's input.",
            )  # fmt: skip
        arrays[spec.name] = _checked(stored[spec.name], spec, preprocessing, where)
    counts = {name: len(array) for name, array in arrays.items()}
    if labels is not None:
        counts[LABELS] = len(labels) if labels.ndim else 0
    if len(set(counts.values())) != 1:
        raise InputError(
            "the arrays do not have the same number of samples", where=where,
            got=", ".join(f"{name}: {count}" for name, count in counts.items()),
        )  # fmt: skip
    return Batches(arrays=arrays, labels=labels, preprocessing=preprocessing, batch_size=batch_size)


def refuse_shared_samples(calibration: Batches, evaluation: Batches) -> None:
    """Raises InputError where a sample is in both: an accuracy on seen samples means nothing."""
    seen = set(calibration.sample_digests)
    shared = [i for i, digest in enumerate(evaluation.sample_digests) if digest in seen]
    if shared:
        raise InputError(
            "calibration and evaluation share samples", where="[data]",
            got=f"{len(shared)} of {evaluation.count} evaluation samples are in the calibration "
            f"data too, the first at index {shared[0]}",
            hint="Take them out of one of the two: an accuracy on seen samples means nothing.",
        )  # fmt: skip


def _read_npz(path: Path, where: str) -> dict[str, Array]:
    if not path.is_file():
        raise InputError("there is no such data file", where=where, wanted=str(path))
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise InputError(
                    "this is one array, not an .npz of arrays by name", where=where,
                    hint="Save it with numpy.savez(path, INPUT=array).",
                )  # fmt: skip
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError, zlib.error) as error:
        pickled = "pickle" in str(error).lower() and path.read_bytes()[:2] == b"PK"
        raise InputError(
            "this data file cannot be read", where=where,
            got="an array of Python objects" if pickled else f"{type(error).__name__}: {error}",
            wanted="an .npz of numeric arrays by name",
            hint="Write the file once more with numpy.savez_compressed.",
        ) from error  # fmt: skip


def _call(source: str, folder: Path) -> Mapping[str, Array]:
    function = load_function(source, folder)
    try:
        made = function()
    except Exception as error:  # the user's own code: whatever it raises is said to the user
        raise InputError(
            "the data function failed", where=source, got=f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, Mapping) or not all(isinstance(v, np.ndarray) for v in made.values()):
        raise InputError(
            "the data function gave no mapping of arrays", where=source, got=type(made).__name__,
            wanted="a dict from input name to numpy array, and optionally `labels`",
        )  # fmt: skip
    return made


def _checked(
    array: Array, spec: TensorSpec, preprocessing: Preprocessing | None, where: str
) -> Array:
    named = f'the array "{spec.name}"'
    if array.ndim != len(spec.shape):
        raise InputError(
            f"{named} has the wrong number of axes", where=where, got=str(array.shape),
            wanted=str(spec), hint="The first axis is the samples.",
        )  # fmt: skip
    if not len(array):
        raise InputError(f"{named} holds no sample", where=where, got=str(array.shape))
    wrong = [
        (got, size)
        for got, size in zip(array.shape[1:], spec.shape[1:], strict=True)
        if isinstance(size, int) and got != size
    ]
    if wrong:
        raise InputError(
            f"{named} has the wrong shape", where=where, got=str(array.shape), wanted=str(spec)
        )
    if preprocessing is not None and array.dtype == np.uint8:
        channels = array.shape[1] if array.ndim > 1 else 1
        lengths = {len(preprocessing.mean), len(preprocessing.std)} - {1}
        if lengths - {channels}:
            raise InputError(
                "mean and std do not fit the channels", where="data.preprocessing",
                got=f"{max(lengths)} numbers", wanted=f"1 or {channels} of each",
            )  # fmt: skip
        return array
    if array.dtype.name != spec.dtype:
        also = " or uint8" if preprocessing is not None else ""
        hint = (
            "Give [data.preprocessing] in the recipe, so that pixels can be stored as uint8."
            if array.dtype == np.uint8
            else f"Convert it: array.astype(numpy.{spec.dtype})."
        )
        raise InputError(
            f"{named} has the wrong type", where=where, got=array.dtype.name,
            wanted=f"{spec.dtype}{also}", hint=hint,
        )  # fmt: skip
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            bad = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))
            raise InputError(
                f"{named} holds NaN or infinity", where=where,
                got=f"{int((~finite).sum())} values, in {len(bad)} samples, the first at index "
                f"{bad[0]}",
            )  # fmt: skip
    return array
