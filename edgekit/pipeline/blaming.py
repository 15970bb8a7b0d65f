"""The step of a build that tells which of the others lost what, from outputs that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.data.batches import Batches
from edgekit.data.metrics import Metric
from edgekit.models.model import Model
from edgekit.pipeline.blame import (
    Apart,
    PartApart,
    Stage,
    blamed,
    stages_from_json,
    stages_to_json,
)
from edgekit.pipeline.cache import Cache, Step, key_of, read_json, write_json
from edgekit.pipeline.steps import REPORT_FILE
from edgekit.pipeline.verification import load_outputs
from edgekit.quantize.judging.outputs import judge
from edgekit.quantize.judging.parts import Part, output_parts
from edgekit.values import Feeds
from edgekit.verify import Outputs, distance

_SLICE = 64  # samples that are compared in float64 at once


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for the evaluation samples: after which step of the build, and how.

    `outputs` is the step that stored the answers.
    """

    step: str
    through: str
    outputs: Step


def blame_step(
    cache: Cache, asked: Sequence[Asked], original: Model, batches: Batches, metric: Metric
) -> Step:
    """Compares each one's outputs with the last one's and the first's; nothing is run.

    `original` tells which parts its outputs have. Two of the outputs and the first's are in memory
    at a time.
    """

    def make(folder: Path, partial: Path) -> None:
        del partial
        parts = output_parts(original)
        first = last = load_outputs(cache, asked[0].outputs)
        stages: list[Stage] = []
        for one in asked:
            here = load_outputs(cache, one.outputs) if stages else first
            stages.append(
                Stage(
                    step=one.step,
                    through=one.through,
                    samples=len(next(iter(here.values()))),
                    metric=metric(here, batches.labels, first),
                    last=_apart(last, here, parts) if stages else None,
                    first=_apart(first, here, parts) if stages else None,
                )
            )
            last = here
        write_json(folder / REPORT_FILE, stages_to_json(stages, metric.name))

    key = key_of(
        "blame", asked=[[one.step, one.through, one.outputs.key] for one in asked],
        data=batches.digest, metric=metric.digest,
    )  # fmt: skip
    return Step(name="blame", key=key, make=make)


def stages_of(cache: Cache, step: Step) -> tuple[Stage, ...]:
    """The stages that a blame step left."""
    return stages_from_json(read_json(cache.entry(step) / REPORT_FILE))


def describe_blame(folder: Path) -> str:
    """Which step lost most, in a line."""
    stored = read_json(folder / REPORT_FILE)
    return blamed(stages_from_json(stored), str(stored["metric"]))


def _apart(other: Outputs, here: Outputs, parts: Sequence[Part]) -> Apart:
    whole = distance(other, here)
    found = judge(_sliced(other), _sliced(here), parts)
    return Apart(
        agreement=whole.agreement,
        relative_error=whole.relative_error,
        parts=tuple(
            PartApart(output=one.part.output, part=one.part.name, sqnr_db=one.sqnr_db)
            for one in found
        ),
    )


def _sliced(outputs: Outputs) -> Iterator[Feeds]:
    """The same samples, some at a time."""
    samples = len(next(iter(outputs.values())))
    for begin in range(0, samples, _SLICE):
        yield {name: array[begin : begin + _SLICE] for name, array in outputs.items()}
