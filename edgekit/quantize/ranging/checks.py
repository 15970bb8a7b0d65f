"""Whether samples can be calibrated with: what cannot work is refused, what is odd is said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from edgekit.errors import InputError
from edgekit.values import Array, Batch, Preprocessing

ENOUGH = 32
"""Samples: with fewer, ranges rest on chance."""

_WHERE = "data.calibration"
_PIXELS = (0.0, 255.0)
_SLACK = 0.25  # of the expected span: interpolation and augmentation reach a little outside
_NARROW = 0.1  # of the expected span: no picture of any contrast is so flat
_HINT = "Name unlabelled samples of what the device will see; a few hundred will do."


def check_batches(batches: Iterable[Batch], preprocessing: Preprocessing | None) -> tuple[str, ...]:
    """What is odd about the samples, a sentence each; empty where nothing is.

    Raises InputError where nothing can be learnt from them: there is none, one holds NaN or
    infinity, all are the same, or every number in them is the same.
    """
    checker = BatchChecker(preprocessing)
    for batch in batches:
        checker.add(batch)
    return checker.doubts()


class BatchChecker:
    """The checks on a stream of batches; it keeps 20 bytes a sample."""

    def __init__(self, preprocessing: Preprocessing | None) -> None:
        self._preprocessing = preprocessing
        self._samples = 0
        self._seen: set[bytes] = set()
        self._flat: dict[str, int] = {}
        self._ends: dict[str, tuple[float, float]] = {}
        self._pictures: set[str] = set()

    def add(self, batch: Batch) -> None:
        """Looks at one batch. Raises InputError for a sample that holds NaN or infinity."""
        # SHA-1, for it is the quickest where the processor has instructions for it.
        hashes = [hashlib.sha1(usedforsecurity=False) for _ in range(len(batch))]
        for name, array in sorted(batch.inputs.items()):
            rows = np.ascontiguousarray(array).reshape(len(array), -1)
            for found, row in zip(hashes, rows, strict=True):
                found.update(row.data)
            if rows.shape[1] and rows.dtype.kind in "fiu":
                self._look(name, rows, is_picture=array.ndim == 4)
        self._seen.update(found.digest() for found in hashes)
        self._samples += len(batch)

    def _look(self, name: str, rows: Array, *, is_picture: bool) -> None:
        # A NaN is in the minimum, an infinity in one of the two.
        lows, highs = rows.min(axis=1), rows.max(axis=1)
        bad = np.flatnonzero(~(np.isfinite(lows) & np.isfinite(highs)))
        if len(bad):
            row = rows[bad[0]]
            raise InputError(
                "a calibration sample holds NaN or infinity",
                where=f'{_WHERE}, input "{name}", sample {self._samples + int(bad[0])}',
                got=f"{int((~np.isfinite(row)).sum())} of {row.size} numbers",
                hint="Leave that sample out, or mend what makes it.",
            )  # fmt: skip
        low, high = self._ends.get(name, (np.inf, -np.inf))
        self._ends[name] = min(low, float(lows.min())), max(high, float(highs.max()))
        self._flat[name] = self._flat.get(name, 0) + int((lows == highs).sum())
        if is_picture and rows.dtype.kind == "f":
            self._pictures.add(name)

    def doubts(self) -> tuple[str, ...]:
        """What is odd about all of them. Raises InputError as `check_batches` does."""
        self._refuse_what_teaches_nothing()
        count, repeats = self._samples, self._samples - len(self._seen)
        found = []
        if count < ENOUGH:
            found.append(
                f"{count} {'sample' if count == 1 else 'samples'}: ranges of fewer than {ENOUGH} "
                "rest on chance; a few hundred are usual"
            )
        if repeats:
            found.append(f"{repeats} of {count} samples are repeats of another")
        for name, flat in self._flat.items():
            low, high = self._ends[name]
            if low == high:
                found.append(f'the input "{name}" is {low:g} everywhere, in every sample')
            elif flat and name in self._pictures:
                found.append(f'"{name}": {flat} of {count} samples are one number everywhere')
        found += [doubt for name in sorted(self._pictures) if (doubt := self._range_doubt(name))]
        return tuple(found)

    def _refuse_what_teaches_nothing(self) -> None:
        if not self._samples:
            raise InputError("there is no sample to calibrate with", where=_WHERE, hint=_HINT)
        if self._ends and all(low == high for low, high in self._ends.values()):
            shown = ", ".join(f"{name}: {low:g}" for name, (low, _) in self._ends.items())
            raise InputError(
                "every calibration sample is one number everywhere", where=_WHERE,
                got=f"{shown}, in all {self._samples}", wanted="samples that differ", hint=_HINT,
            )  # fmt: skip
        if self._samples > 1 and len(self._seen) == 1:
            raise InputError(
                "all calibration samples are the same one", where=_WHERE,
                got=f"{self._samples} times the same", wanted="samples that differ", hint=_HINT,
            )  # fmt: skip

    def _range_doubt(self, name: str) -> str:
        """How the values miss what the preprocessing makes of pixels 0 to 255; "" where not."""
        if self._preprocessing is None or self._flat[name] == self._samples:
            return ""
        (low, high), (least, most) = self._ends[name], ends_of(self._preprocessing)
        span, slack = most - least, _SLACK * (most - least)
        said = (
            f'the values of "{name}" lie in {low:.4g} to {high:.4g}, '
            f"and the model's preprocessing gives {least:.4g} to {most:.4g}"
        )
        outside = low < least - slack or high > most + slack
        if outside and low >= 0 and 1 < high <= 255:
            return f"{said}: are they pixels as they are stored?"
        if outside:
            return f"{said}: is it another preprocessing?"
        if high - low < _NARROW * span:
            return f"{said}: were they scaled twice?"
        if low >= 0 and high <= 1 and least < -slack:
            return f"{said}: are they pixels / 255, without mean and std?"
        return ""


def ends_of(preprocessing: Preprocessing) -> tuple[float, float]:
    """The least and the most that the preprocessing makes of pixels from 0 to 255."""
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    ends = [(pixel * preprocessing.scale - mean) / std for pixel in _PIXELS]
    return float(np.min(ends)), float(np.max(ends))
