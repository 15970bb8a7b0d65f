"""What calibration learnt about each tensor, and the ways to choose a range from it.

A way to choose is one function from a `TensorRange` to the (low, high) that the integer grid must
cover; `choice` gives one by its name.
"""

from __future__ import annotations

import functools
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgekit import files
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.quantize.ranging.consumers import Best, weighted_consumers, weights_of
from edgekit.quantize.ranging.entropy import entropy
from edgekit.quantize.ranging.histogram import Channels, TensorRange
from edgekit.quantize.ranging.levels import mse
from edgekit.values import Array

METHODS = ("minmax", "percentile", "entropy", "mse", "best")

_FORMAT = 1
_BEST_PERCENTS = (99.9, 99.99, 99.999)

Choice: TypeAlias = Callable[[TensorRange], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """A `TensorRange` for each tensor by name, from `samples` samples.

    After `settled` samples no tensor's watched range moved any more; None where it moved until the
    end or nobody looked. `sampled` is how many values of a tensor the histograms look at in one
    sample. The digests are those of the model and the data, "" where they are not known.
    """

    tensors: Mapping[str, TensorRange]
    samples: int
    settled: int | None = None
    sampled: int = 0
    doubts: tuple[str, ...] = ()
    model_digest: str = ""
    data_digest: str = ""

    def __str__(self) -> str:
        moved = (
            "ranges still moved at the end"
            if self.settled is None
            else f"ranges stood still after {self.settled}"
        )
        looked = f"; histograms of at most {self.sampled:,} values of a tensor in each sample"
        return (
            f"{len(self.tensors)} tensors over {self.samples} samples, {moved}"
            f"{looked if self.sampled else ''}"
        )


def minmax(observed: TensorRange) -> tuple[float, float]:
    """The exact minimum and maximum: nothing is clipped."""
    return observed.low, observed.high


def percentile(observed: TensorRange, percent: float = 99.999) -> tuple[float, float]:
    """The range that holds `percent` of the values; the rest is shared by the two tails.

    A side on which nothing lies (the negative one after a ReLU) clips nothing. The borders are
    those of the histogram's bins, never outside the exact minimum and maximum.
    """
    total = observed.counts.sum()
    one_sided = observed.low >= 0 or observed.high <= 0
    tail = total * (1 - percent / 100) / (1 if one_sided else 2)
    cumulative = np.cumsum(observed.counts)
    low, high = observed.low, observed.high
    if observed.low < 0:
        first = int(np.searchsorted(cumulative, tail, "right"))
        low = max(low, first * observed.bin_width - observed.reach)
    if observed.high > 0:
        last = int(np.searchsorted(cumulative, total - tail, "left"))
        last = min(last, len(observed.counts) - 1)
        high = min(high, (last + 1) * observed.bin_width - observed.reach)
    return low, high


def choice(
    name: str, *, percent: float = 99.999, symmetric: bool = False, model: Model | None = None
) -> Choice:
    """The way to choose of that name, for symmetric or affine grids.

    `percent` is for percentile; `model` for best, which wants the weights that read each tensor.
    Raises InputError for an unknown name, and for best without a model.
    """
    if name == "minmax":
        return minmax
    if name == "percentile":
        return functools.partial(percentile, percent=percent)
    if name == "entropy":
        return functools.partial(entropy, symmetric=symmetric)
    if name == "mse":
        return functools.partial(mse, symmetric=symmetric)
    if name == "best":
        return _best(model, symmetric=symmetric)
    raise InputError(
        f'there is no way called "{name}" to choose a range',
        where="quantize.ranges", wanted=", ".join(METHODS),
    )  # fmt: skip


def _best(model: Model | None, *, symmetric: bool) -> Choice:
    if model is None:
        raise InputError(
            'ranges can be chosen by "best" only for a model that is at hand',
            where="quantize.ranges", wanted="the model whose weights read the tensors",
        )  # fmt: skip
    weights = {
        node.name or "": found
        for nodes in weighted_consumers(model).values()
        for node in nodes
        if (found := weights_of(node)) is not None
    }
    best = Best(weights=weights, symmetric=symmetric)
    others: list[Choice] = [
        minmax,
        *(functools.partial(percentile, percent=percent) for percent in _BEST_PERCENTS),
        functools.partial(entropy, symmetric=symmetric),
        functools.partial(mse, symmetric=symmetric),
    ]
    return lambda observed: best.choose(observed, [other(observed) for other in others])


def save_ranges(ranges: Ranges, path: Path) -> None:
    """Writes NAME.npz (histograms, arrays) and NAME.json (numbers, to read too); path is either.

    Raises as `files.write_bytes` does.
    """
    arrays: dict[str, Array] = {
        "counts": np.array([t.counts for t in ranges.tensors.values()], np.float64)
    }
    for place, found in enumerate(ranges.tensors.values()):
        if found.channels is not None:
            stacked = np.stack([np.asarray(a, np.float64) for a in vars(found.channels).values()])
            arrays[f"channels/{place}"] = stacked
        arrays.update({f"rows/{place}/{node}": rows for node, rows in found.rows.items()})
    with files.replacing(path.with_suffix(".npz")) as partial:
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        arrays_digest = files.digest_file(partial)
    numbers = {
        name: {k: v for k, v in vars(found).items() if isinstance(v, (int, float))}
        for name, found in ranges.tensors.items()
    }
    document = {"format": _FORMAT, "arrays_sha256": arrays_digest, **_header(ranges)}
    text = json.dumps({**document, "tensors": numbers}, indent=1)
    files.write_text(path.with_suffix(".json"), f"{text}\n")


def _header(ranges: Ranges) -> dict[str, Any]:
    return {name: value for name, value in vars(ranges).items() if name != "tensors"}


def load_ranges(path: Path, *, model_digest: str = "", data_digest: str = "") -> Ranges:
    """What `save_ranges` wrote; path is either file.

    Raises InputError for files that are missing, damaged or not of one another, and where a digest
    is given that is not the stored one: ranges of another model or of other data are stale.
    """
    place = path.with_suffix(".json")
    try:
        stored = json.loads(place.read_text(encoding="utf-8"))
        if stored["format"] != _FORMAT:
            raise _unreadable(place, f"format {stored['format']}")
        found = _read(stored, path.with_suffix(".npz"))
    except FileNotFoundError as error:
        raise InputError("there are no such ranges", where=str(error.filename)) from error
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise _unreadable(place, str(error)) from error
    for what, wanted, got in (
        ("model", model_digest, found.model_digest), ("data", data_digest, found.data_digest),
    ):  # fmt: skip
        if wanted and got != wanted:
            raise InputError(
                f"these ranges were observed with another {what}", where=str(place),
                got=got[:12] or "none recorded", wanted=wanted[:12], hint="Observe again.",
            )  # fmt: skip
    return found


def _read(stored: Mapping[str, Any], place: Path) -> Ranges:
    if files.digest_file(place) != stored["arrays_sha256"]:
        raise ValueError(f"{place.name} is not the one that it was written with")
    with np.load(place, allow_pickle=False) as arrays:
        names = list(stored["tensors"])
        rows: dict[int, dict[str, Array]] = {}
        for key in arrays.files:
            kind, _, rest = key.partition("/")
            if kind == "rows":
                index, _, node = rest.partition("/")
                rows.setdefault(int(index), {})[node] = arrays[key]
        counts = arrays["counts"]
        tensors = {
            name: TensorRange(
                **stored["tensors"][name], counts=counts[index], rows=rows.get(index, {}),
                channels=_channels(arrays, f"channels/{index}"),
            )
            for index, name in enumerate(names)
        }  # fmt: skip
    header = {name: stored[name] for name in ("samples", "settled", "sampled")}
    return Ranges(
        tensors=tensors, doubts=tuple(stored["doubts"]), model_digest=stored["model_digest"],
        data_digest=stored["data_digest"], **header,
    )  # fmt: skip


def _channels(arrays: Any, key: str) -> Channels | None:
    if key not in arrays.files:
        return None
    low, high, mean, mean_square = arrays[key]
    return Channels(low=low, high=high, mean=mean, mean_square=mean_square)


def _unreadable(place: Path, got: str) -> InputError:
    return InputError(
        "these ranges cannot be read", where=str(place), got=got, hint="Observe the model again."
    )
