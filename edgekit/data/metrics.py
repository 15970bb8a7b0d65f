"""How well a model does: by labels, or by how near it stays to the original."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.data.functions import function_digest, load_function, user_code
from edgekit.errors import InputError
from edgekit.values import Array, Figure, Unknown

Outputs = Mapping[str, Array]
Score = Callable[[Outputs, Array | None, Outputs], float]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A named score, more is better. `digest` changes whenever its code does."""

    name: str
    digest: str
    score: Score

    def __call__(self, outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
        """The score of `outputs`; `reference` is what the original gives on the same samples."""
        found = self.score(outputs, labels, reference)
        if not math.isfinite(found):
            raise InputError(
                f'the metric "{self.name}" gave no finite number', where="evaluate.metric",
                got=str(found), wanted="a finite number, more is better",
                hint="A score of nothing (0 / 0) is one too: look at what it divides by.",
            )  # fmt: skip
        return found


def load_metric(name: str, folder: Path) -> Metric:
    """The metric of that name, or the user's `package.module:function(outputs, labels) -> float`.

    Raises InputError for an unknown name, with the nearest.
    """
    if name in _NAMED:
        return Metric(name=name, digest=name, score=_NAMED[name])
    if ":" not in name:
        near = difflib.get_close_matches(name, _NAMED, 1)
        raise InputError(
            f'there is no metric called "{name}"', where="evaluate.metric",
            wanted=f"{', '.join(_NAMED)} or package.module:function",
            hint=f'Did you mean "{near[0]}"?' if near else "",
        )  # fmt: skip
    function = load_function(name, folder)

    def score(outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
        del reference
        with user_code("the metric failed", name):
            return float(function(outputs, labels))

    return Metric(name=name, digest=function_digest(name, folder), score=score)


def top1(outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
    """The share of samples whose largest score is the label's: first output (n, classes)."""
    del reference
    scores = _first(outputs)
    if labels is None:
        raise InputError(
            'the metric "top1" needs labels', where="data.evaluation",
            hint='Put an array "labels" beside the inputs, or pictures into a folder for each '
            'class, or use the metric "fidelity".',
        )  # fmt: skip
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise InputError(
            'the metric "top1" needs one row of class scores and one label a sample',
            where="evaluate.metric", got=f"scores {scores.shape}, labels {labels.shape}",
            wanted="scores (n, classes), labels (n,)",
            hint='Use "fidelity", or a function of your own: package.module:function.',
        )  # fmt: skip
    classes = scores.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            "there are labels that are no class of the model", where="data.evaluation",
            got=f"{labels.min()} to {labels.max()}", wanted=f"0 to {classes - 1}",
            hint="Map the labels to the order of the model's outputs.",
        )  # fmt: skip
    return float((scores.argmax(1) == labels).mean())


def fidelity(outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
    """1 - sum((a - b)^2) / sum(b^2) against the original's outputs b, the mean over outputs.

    1 is identical, 0 as good as answering 0 to everything. An output that is 0 throughout counts 1
    where it is kept and 0 where it is not.
    """
    del labels
    scores = []
    for name, expected in reference.items():
        noise, signal = _energies(outputs[name], expected)
        scores.append(1 - noise / signal if signal else float(noise == 0))
    return float(np.mean(scores))


_NAMED: Mapping[str, Score] = {"top1": top1, "fidelity": fidelity}


def agreement(outputs: Outputs, reference: Outputs) -> float:
    """The share of samples whose largest class score is the reference's: first output (n, c)."""
    return float((_first(outputs).argmax(1) == _first(reference).argmax(1)).mean())


def sqnr_db(outputs: Outputs, reference: Outputs) -> Figure:
    """10 log10(sum(b^2) / sum((a - b)^2)) of the first output, b being the reference's."""
    noise, signal = _energies(_first(outputs), _first(reference))
    if not noise:
        return Unknown("the outputs are identical")
    if not signal:
        return Unknown("the reference's outputs are all 0")
    return 10 * math.log10(signal / noise)


def _first(outputs: Outputs) -> Array:
    return next(iter(outputs.values()))


def _energies(found: Array, expected: Array) -> tuple[float, float]:
    """Sum((a - b)^2) and sum(b^2), in float64."""
    if found.shape != expected.shape:
        raise InputError(
            "the outputs do not have the original's shape", where="evaluate",
            got=str(found.shape), wanted=str(expected.shape),
        )  # fmt: skip
    b = expected.astype(np.float64)
    return float(((found - b) ** 2).sum()), float((b**2).sum())
