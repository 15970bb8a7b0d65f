"""Samples on disk or from a user's function, checked once, handed out in batches."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from edgekit.data.arrays import LABELS, call_for_arrays, fitting, read_arrays
from edgekit.data.folders import list_pictures
from edgekit.data.pictures import PictureArray, layout_of, open_pictures
from edgekit.errors import InputError
from edgekit.values import Array, Batch, Preprocessing, TensorSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """A re-iterable, sized, hashable source of Batch; arrays stay as they are stored.

    `arrays` by input name, first axis the samples, the same number in each; pictures are decoded as
    they are read. `labels` is None where there are none. `preprocessing` is applied batch by batch
    to the arrays named in `pixels`, which are uint8 there and of the type that `pixels` says
    afterwards.
    """

    arrays: Mapping[str, Array | PictureArray]
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
        """The samples at those indices, in that order, preprocessed.

        Raises InputError for a picture that is damaged.
        """
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
        digest = hashlib.sha256(repr((self._arithmetic, sorted(self.pixels.items()))).encode())
        parts = [("input", name, array) for name, array in sorted(self.arrays.items())]
        if self.labels is not None:
            parts.append(("labels", LABELS, self.labels))
        for part, name, array in parts:
            digest.update(repr((part, name, array.dtype.str, array.shape)).encode())
            if isinstance(array, PictureArray):
                digest.update(array.digest.encode())
            else:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def _arithmetic(self) -> tuple[object, ...]:
        """What `Preprocessing.apply` computes with; the rest is in the pictures' own digest."""
        used = self.preprocessing
        if used is None or not self.pixels:
            return ()
        return used.scale, used.mean, used.std, used.layout

    @functools.cached_property
    def sample_digests(self) -> tuple[str, ...]:
        """The SHA-256 of each sample as it is stored, in the order of the samples, labels apart.

        Of arrays the numbers, of a picture the file: a picture's pixels in an .npz are another.
        """
        arrays = [
            a if isinstance(a, PictureArray) else np.ascontiguousarray(a)
            for _, a in sorted(self.arrays.items())
        ]
        found = []
        for index in range(self.count):
            digest = hashlib.sha256()
            for array in arrays:
                if isinstance(array, PictureArray):
                    digest.update(array.file_digests[index].encode())
                else:
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
            arrays={
                name: array.only(samples) if isinstance(array, PictureArray) else array[samples]
                for name, array in self.arrays.items()
            },
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
    """The samples that `source` names.

    An .npz, a folder or a .csv of pictures (`folders.list_pictures`), or a function that returns a
    mapping of arrays. `role` ("calibration", "evaluation") is how errors call it. Arrays are in the
    model's layout and size; one that is stored as uint8 for an input of another type is pixels and
    needs preprocessing, and pictures need it always. Raises InputError for a source that is missing
    or broken, and for samples that do not fit the inputs.
    """
    where = f"{role} data {source}"
    place = folder / source
    arrays: dict[str, Array | PictureArray] = {}
    if place.is_dir() or place.suffix.lower() == ".csv":
        listing = list_pictures(place, where)
        (spec,) = inputs if len(inputs) == 1 else _too_many(inputs, where)
        arrays[spec.name] = open_pictures(listing.paths, spec, preprocessing, where)
        labels = listing.labels
    else:
        is_function = ":" in source and not source.endswith(".npz")
        stored = call_for_arrays(source, folder) if is_function else read_arrays(place, where)
        found, labels = fitting(stored, inputs, where)
        arrays.update(found)
    preprocessing = _with_layout(preprocessing, inputs)
    pixels = {
        spec.name: spec.dtype
        for spec in inputs
        if arrays[spec.name].dtype == np.uint8 and spec.dtype != "uint8"
    }
    for name in pixels:
        _check_preprocessing(preprocessing, arrays[name].shape, name, where)
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


def _too_many(inputs: tuple[TensorSpec, ...], where: str) -> NoReturn:
    raise InputError(
        "pictures are one input, and the model has another number", where=where,
        got=", ".join(map(str, inputs)) or "no input", wanted="a model of one input",
        hint="Give an array for each input: an .npz, or a function of your own.",
    )  # fmt: skip


def _with_layout(
    preprocessing: Preprocessing | None, inputs: tuple[TensorSpec, ...]
) -> Preprocessing | None:
    """The preprocessing with the layout that the first input shows where it has none itself."""
    if preprocessing is None or preprocessing.layout is not None:
        return preprocessing
    shown = [layout for spec in inputs if (layout := layout_of(spec)) is not None]
    return replace(preprocessing, layout=shown[0] if shown else "nchw")


def _check_preprocessing(
    preprocessing: Preprocessing | None, shape: tuple[int, ...], name: str, where: str
) -> None:
    if preprocessing is None:
        raise InputError(
            f'the array "{name}" holds pixels, and nothing says how the model wants them',
            where=where, got="uint8", wanted="the model's own type, or [data.preprocessing]",
            hint="Give scale, mean and std in [data.preprocessing].",
        )  # fmt: skip
    axis = -1 if preprocessing.layout == "nhwc" else 1
    channels = shape[axis] if len(shape) > 1 else 1
    for key, numbers in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(numbers) not in (1, channels):
            raise InputError(
                f'{key} does not fit the {channels} channels of "{name}"',
                where="data.preprocessing",
                got=f"{len(numbers)} numbers, layout {preprocessing.layout}",
                wanted="1 number" if channels == 1 else f"1 number or {channels}",
                hint="Give one number for all channels or one for each.",
            )  # fmt: skip
