"""One model or engine against another, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.data.metrics import Metric, agreement, sqnr_db
from edgekit.errors import InputError
from edgekit.values import (
    Array,
    Batch,
    Figure,
    Session,
    Unknown,
    figure_from_json,
    figure_to_json,
    run,
)

Outputs = dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """How a candidate does beside its reference on `samples` samples.

    `before` and `after` are the metric of the reference and of the candidate. `agreement` is the
    share of samples with the same top-1, unknown where the output is no class score. `sqnr_db` is
    10 log10(sum b^2 / sum (a - b)^2) of the first output, b being the reference's;
    `relative_error` is the largest max|a - b| / max|b| of any output.
    """

    metric: str
    before: float
    after: float
    agreement: Figure
    sqnr_db: Figure
    relative_error: float
    samples: int

    @property
    def drop(self) -> float:
        """How much of the metric was lost, in the metric's own unit."""
        return self.before - self.after


def outputs_of(
    session: Session, batches: Iterable[Batch], on_batch: Callable[[int], None] = lambda n: None
) -> tuple[Outputs, Array | None]:
    """The outputs over all batches, joined along the first axis, and the labels if all have them.

    Raises InputError where an output's first axis is not the samples, or becomes NaN.
    """
    found: dict[str, list[Array]] = {}
    labels: list[Array] = []
    samples = 0
    for batch in batches:
        for name, array in run(session, batch.inputs).items():
            if array.ndim == 0 or len(array) != len(batch):
                raise InputError(
                    f'the first axis of the output "{name}" is not the samples',
                    where="evaluate", got=f"shape {array.shape} for {len(batch)} samples",
                    hint="Evaluation needs one row of outputs for each sample.",
                )  # fmt: skip
            found.setdefault(name, []).append(array)
        if batch.labels is not None:
            labels.append(batch.labels)
        samples += len(batch)
        on_batch(samples)
    joined = {name: np.concatenate(arrays) for name, arrays in found.items()}
    for name, array in joined.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f'the output "{name}" becomes NaN or infinite on the evaluation samples',
                where="evaluate", got=f"{int((~np.isfinite(array)).sum())} values",
                hint="The model overflows on this data; check its preprocessing.",
            )  # fmt: skip
    return joined, np.concatenate(labels) if labels else None


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far outputs are from a reference's; the figures are those of VerifyReport."""

    agreement: Figure
    sqnr_db: Figure
    relative_error: float


def distance(reference: Outputs, candidate: Outputs) -> Distance:
    """How far a candidate's outputs are from the reference's, both from `outputs_of`.

    Raises InputError where the two do not have the same outputs.
    """
    if reference.keys() != candidate.keys():
        raise InputError(
            "the two models do not have the same outputs",
            got=", ".join(candidate), wanted=", ".join(reference),
        )  # fmt: skip
    first = next(iter(reference.values()))
    classifies = first.ndim == 2 and first.shape[1] > 1
    return Distance(
        agreement=agreement(candidate, reference)
        if classifies
        else Unknown("the first output is not (samples, classes)"),
        sqnr_db=sqnr_db(candidate, reference),
        relative_error=max(_relative_error(candidate[n], reference[n]) for n in reference),
    )


def verify(
    reference: Outputs, candidate: Outputs, labels: Array | None, metric: Metric
) -> VerifyReport:
    """The report on a candidate's outputs beside the reference's, both from `outputs_of`.

    Raises InputError where the two do not have the same outputs.
    """
    apart = distance(reference, candidate)
    return VerifyReport(
        metric=metric.name,
        before=metric(reference, labels, reference),
        after=metric(candidate, labels, reference),
        agreement=apart.agreement,
        sqnr_db=apart.sqnr_db,
        relative_error=apart.relative_error,
        samples=len(next(iter(reference.values()))),
    )


def _relative_error(found: Array, expected: Array) -> float:
    top = float(np.abs(expected.astype(np.float64)).max(initial=0.0)) or 1.0
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    return float(difference.max(initial=0.0)) / top


def to_json(report: VerifyReport) -> dict[str, object]:
    """The report, JSON-ready."""
    return {
        "metric": report.metric,
        "before": report.before,
        "after": report.after,
        "agreement": figure_to_json(report.agreement),
        "sqnr_db": figure_to_json(report.sqnr_db),
        "relative_error": report.relative_error,
        "samples": report.samples,
    }


def from_json(stored: Mapping[str, Any]) -> VerifyReport:
    """What `to_json` made."""
    return VerifyReport(
        metric=stored["metric"],
        before=stored["before"],
        after=stored["after"],
        agreement=figure_from_json(stored["agreement"]),
        sqnr_db=figure_from_json(stored["sqnr_db"]),
        relative_error=stored["relative_error"],
        samples=stored["samples"],
    )
