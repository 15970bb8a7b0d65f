"""Values of many samples, kept in memory as far as it may go and on the disk beyond."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgekit import files
from edgekit.values import Array, Feeds


class Shelf:
    """Batches of named arrays, in the order in which they were put; a context manager.

    What is more than `memory_bytes` in all lies in a folder that goes with the shelf.
    """

    def __init__(self, memory_bytes: int = 2**31) -> None:
        self._memory_bytes = memory_bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._kept: list[Feeds | Path] = []
        self._bytes = 0

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the folder, if there is one."""
        if self._folder is not None:
            self._folder.cleanup()

    def __iter__(self) -> Iterator[Feeds]:
        for one in self._kept:
            yield _read(one) if isinstance(one, Path) else one

    def put(self, values: Feeds) -> None:
        """Keeps one more batch. Raises ResourceError on a full disk."""
        size = sum(array.nbytes for array in values.values())
        if self._bytes + size <= self._memory_bytes:
            self._bytes += size
            self._kept.append(values)
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="edgekit-")
        place = Path(self._folder.name, f"{len(self._kept)}.npz")
        with files.translated_errors(place), place.open("wb") as stream:
            # By number: a tensor's name may be no name of a file.
            named = {f"array{i}": array for i, array in enumerate(values.values())}
            np.savez(stream, names=np.array(list(values)), **named)  # type: ignore[arg-type]
        self._kept.append(place)


def _read(place: Path) -> dict[str, Array]:
    with np.load(place, allow_pickle=False) as stored:
        return {str(name): stored[f"array{i}"] for i, name in enumerate(stored["names"])}
