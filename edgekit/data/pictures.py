"""Pictures as an array that is decoded where it is read."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edgekit import files
from edgekit.errors import InputError
from edgekit.values import LONGEST_SIDE, Array, Layout, Preprocessing, TensorSpec

if TYPE_CHECKING:
    from edgekit.data.decode import Decoding

KEPT_BYTES = 2**28
"""So much of a set is kept decoded, for training reads it once an epoch: a quarter gigabyte."""

_MOST_THREADS = 8

_T = TypeVar("_T")
_R = TypeVar("_R")


class PictureArray:
    """uint8 pixels (n, c, h, w) or (n, h, w, c) of files that are decoded as they are indexed.

    What is indexed comes as a numpy array; `only` chooses without decoding. Up to KEPT_BYTES stay
    decoded, shared with all that is chosen from the same array: the memory is bounded, whatever the
    number of pictures. The files must stay as they are.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, paths: Sequence[Path], decoding: Decoding, shelf: _Shelf | None = None
    ) -> None:
        self.paths = tuple(paths)
        self.decoding = decoding
        self._shelf = shelf if shelf is not None else _Shelf()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, c, h, w) or (n, h, w, c)."""
        return (len(self.paths), *self.decoding.shape)

    @property
    def ndim(self) -> int:
        """Always 4."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, samples: Array | slice) -> Array:
        """The pixels of those pictures. Raises InputError, which names the file, as decoding does.

        The threads change nothing of what comes out: each writes into its own row.
        """
        from edgekit.data.decode import read_pixels

        chosen = self._chosen(samples)
        found = np.empty((len(chosen), *self.decoding.shape), np.uint8)
        absent = []
        for row, path in enumerate(chosen):
            kept = self._shelf.pixels.get(path)
            if kept is None:
                absent.append(row)
            else:
                found[row] = kept

        def read(row: int) -> None:
            found[row] = read_pixels(chosen[row], self.decoding)

        _each(read, absent)
        for row in absent:
            self._shelf.keep(chosen[row], found[row])
        return found

    def only(self, samples: Array | slice) -> PictureArray:
        """The array of those pictures alone, of which none is decoded."""
        return PictureArray(self._chosen(samples), self.decoding, self._shelf)

    def _chosen(self, samples: Array | slice) -> tuple[Path, ...]:
        return tuple(self.paths[int(i)] for i in np.arange(len(self.paths))[samples])

    @functools.cached_property
    def file_digests(self) -> tuple[str, ...]:
        """The SHA-256 of each file's content, in order. Raises InputError for one that is gone."""
        return tuple(_each(self._shelf.digest, self.paths))

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of all contents and of what decides how they are decoded; not of names."""
        how = (self.decoding, metadata.version("pillow"))
        digest = hashlib.sha256(repr(how).encode())
        for found in self.file_digests:
            digest.update(bytes.fromhex(found))
        return digest.hexdigest()


class _Shelf:
    """What is known of the files of one source: pixels, as far as there is room, and digests.

    Nothing leaves it again: of a set that is read round and round, an unchanging part is worth as
    much as any other, and what was read last is worth nothing.
    """

    def __init__(self) -> None:
        self.pixels: dict[Path, Array] = {}
        self._digests: dict[Path, str] = {}
        self._bytes = 0

    def keep(self, path: Path, pixels: Array) -> None:
        if path not in self.pixels and self._bytes + pixels.nbytes <= KEPT_BYTES:
            self.pixels[path] = pixels.copy()
            self._bytes += pixels.nbytes

    def digest(self, path: Path) -> str:
        if path not in self._digests:
            try:
                self._digests[path] = files.digest_file(path)
            except OSError as error:
                raise InputError(
                    "this picture cannot be read", where=str(path), got=str(error)
                ) from error
        return self._digests[path]


def open_pictures(
    paths: Sequence[Path], spec: TensorSpec, preprocessing: Preprocessing | None, where: str
) -> PictureArray:
    """The pictures as an array that fits the input. Every file's head is read, none is decoded.

    Raises InputError where the input is none for pictures, where the preprocessing does not say
    what is needed, and for a file that is no picture or too large.
    """
    decoding = _decoding(spec, preprocessing, where)
    from edgekit.data.decode import check_picture

    _each(check_picture, paths)
    return PictureArray(paths, decoding)


def layout_of(spec: TensorSpec) -> Layout | None:
    """Where the input has its channels, as its shape shows: 1 or 3 of them. None: it does not."""
    if len(spec.shape) != 4:
        return None
    first, last = (spec.shape[axis] in (1, 3) for axis in (1, 3))
    if first == last:
        return None
    return "nchw" if first else "nhwc"


def _decoding(spec: TensorSpec, preprocessing: Preprocessing | None, where: str) -> Decoding:
    from edgekit.data.decode import Decoding

    if preprocessing is None:
        raise InputError(
            "nothing says how the model wants its pictures", where=where, wanted="preprocessing",
            hint="Give scale, mean and std in [data.preprocessing] of a recipe; an empty table is "
            "pixel / 255, stretched to the model's size.",
        )  # fmt: skip
    if len(spec.shape) != 4:
        raise InputError(
            f'the input "{spec.name}" is none for pictures', where=where, got=str(spec),
            wanted="(n, c, h, w) or (n, h, w, c)", hint="Give its samples as an .npz.",
        )  # fmt: skip
    layout = preprocessing.layout or layout_of(spec)
    if layout is None:
        raise InputError(
            f'the shape of the input "{spec.name}" does not show where its channels are',
            where=where, got=str(spec), wanted="1 or 3 channels on axis 1 or on the last one",
            hint='Say it in [data.preprocessing]: layout = "nchw", or "nhwc".',
        )  # fmt: skip
    _, *axes = spec.shape
    channels, height, width = axes if layout == "nchw" else (axes[2], axes[0], axes[1])
    if channels not in (1, 3):
        raise InputError(
            f'the input "{spec.name}" does not take 1 or 3 channels', where=where,
            got=f"{channels} channels in {spec}, layout {layout}",
            wanted="3 for colour or 1 for grey",
            hint="Look at the layout in [data.preprocessing], or give the samples as an .npz.",
        )  # fmt: skip
    high, wide = _size((height, width), preprocessing, spec, where)
    return Decoding(
        height=high, width=wide, channels=int(channels), resize=preprocessing.resize,
        crop_share=preprocessing.crop_share, fill=preprocessing.fill,
        interpolation=preprocessing.interpolation, order=preprocessing.order, layout=layout,
    )  # fmt: skip


def _size(
    sides: tuple[int | str, int | str], preprocessing: Preprocessing, spec: TensorSpec, where: str
) -> tuple[int, int]:
    """The (height, width) that pictures become: the one asked for, or the model's own."""
    size = preprocessing.size if preprocessing.size is not None else sides
    if any(isinstance(side, str) for side in size):
        raise InputError(
            f'the input "{spec.name}" takes pictures of any size', where=where, got=str(spec),
            wanted="one size for all",
            hint="Give it in [data.preprocessing]: size = [height, width].",
        )  # fmt: skip
    height, width = (int(side) for side in size)
    if any(isinstance(s, int) and s != w for s, w in zip(sides, (height, width), strict=True)):
        raise InputError(
            f'the input "{spec.name}" takes pictures of another size', where=where,
            got=f"size [{height}, {width}] in [data.preprocessing]", wanted=str(spec),
            hint="Leave size out: the model has its own.",
        )  # fmt: skip
    if not (1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE):
        raise InputError(
            f'the input "{spec.name}" is of no size that a picture has', where=where,
            got=f"{height} x {width}", wanted=f"1 to {LONGEST_SIDE} either way",
        )  # fmt: skip
    return height, width


def _each(do: Callable[[_T], _R], over: Sequence[_T]) -> list[_R]:
    """What the function gives for each, in order, by as many threads as there are processors.

    Pillow and hashlib work outside Python's lock. The first in order that fails is raised.
    """
    from edgekit.data.decode import quiet

    threads = min(_MOST_THREADS, _processors(), len(over))
    with quiet():
        if threads <= 1:
            return [do(one) for one in over]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(do, over))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
