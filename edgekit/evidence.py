"""All that a gate may look at: figures with their doubt, how old they are, and where from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgekit.bench import comparison, statistics
from edgekit.bench.comparison import Ratio
from edgekit.values import Figure, Measurement, Unknown, figure_from_json, figure_to_json

_DAY_S = 86400.0
NOT_MEASURED = Unknown("no device has measured it")
NO_NOISE_FLOOR = Unknown("no A/A run of this machine is stored")
_MEMORY = {
    "peak_memory_bytes": "the process's peak", "gpu_memory_bytes": "the process on the GPU",
    "nvmap_bytes": "the process's buffers in nvmap",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure as a gate sees it.

    `interval` is where the true value lies; None for one that is exact (a file's size, the
    accuracy on a given set). A `doubt` is a reason why the figure cannot carry a decision. `source`
    says in a few words where the figure is from.
    """

    value: Figure
    interval: tuple[float, float] | None = None
    doubt: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a gate looks at: `estimates` by figure (`gate.RULES`), in the limits' units.

    `on_device`: whether the target itself has been measured. `age_s` is of that measurement,
    `invalid` says under which broken conditions it was taken (throttled, wrong power mode),
    `unchecked` which of the target's conditions nobody could read.
    `noise_floor` is the share by which two runs of one engine differ on the target.
    """

    estimates: Mapping[str, Estimate]
    on_device: bool
    age_s: Figure = NOT_MEASURED
    max_age_s: float = _DAY_S
    invalid: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    noise_floor: Figure = NO_NOISE_FLOOR


def finite(value: Figure) -> Figure:
    """The figure, an Unknown in place of NaN and infinity."""
    if isinstance(value, Unknown) or math.isfinite(value):
        return value
    return Unknown(f"it is {value}, which is no number")


def measured_estimates(
    candidate: Measurement, baseline: Measurement | None = None,
    confidence: float = statistics.CONFIDENCE,
) -> dict[str, Estimate]:  # fmt: skip
    """What a run says: fps, p99_ms, memory_mb, size_mb and joules.

    With a baseline that took turns with it, its speedup too. A percentile from too few calls, and
    a rate from one round, carry a doubt. `confidence` is of each interval: more than 95% for a gate
    that is asked several times.
    """
    p99 = statistics.percentile_estimate(candidate.samples, 99, confidence)
    count, enough = len(candidate.samples), statistics.enough_samples(99)
    few = f"p99 rests on {count} calls, {enough} are needed" if count < enough else ""
    taken = f"{count:,} calls in {len(candidate.rounds)} rounds"
    found = {
        "fps": _from_statistics(statistics.fps(candidate), source=taken),
        "p99_ms": _from_statistics(p99, scale=1e3, doubt=few, source=taken),
        "memory_mb": _memory(candidate),
        "size_mb": _figure(candidate, "file_bytes", "the engine's file", 1e-6),
        "joules": _joules(candidate),
    }
    if baseline is not None:
        found["speedup"] = _from_statistics(
            statistics.speedup(candidate, baseline, confidence),
            source=f"in turn with {baseline.arm}",
        )
    return found


def _joules(measured: Measurement) -> Estimate:
    """The energy of a sample, between the ends that its turns give."""
    found = _figure(measured, "joules_per_sample", "power over its turns, by rate")
    low, high = (
        measured.figures.get(f"joules_per_sample_{end}", Unknown("its spread was not measured"))
        for end in ("low", "high")
    )
    if isinstance(low, Unknown):
        return replace(found, doubt=low.reason)
    if isinstance(high, Unknown):
        return replace(found, doubt=high.reason)
    return replace(found, interval=(low, high))


def regression_estimate(ratio: Ratio) -> Estimate:
    """How much longer a sample takes than the baseline's, as a share: 1 / ratio - 1.

    `ratio` is of the two rates, candidate over baseline: 10% more time is a regression of 0.1,
    whatever share of the rate that is.
    """
    value = 1 / ratio.value - 1
    if isinstance(ratio.interval, Unknown):
        return Estimate(value=value, doubt=ratio.interval.reason, source=ratio.source)
    low, high = ratio.interval
    interval = (1 / high - 1, 1 / low - 1)
    return Estimate(value=value, interval=interval, source=ratio.source)


def paired_regression(
    candidate: Measurement, baseline: Measurement, confidence: float = statistics.CONFIDENCE
) -> Estimate:
    """The regression against a baseline that took turns with the candidate in the same rounds.

    Of undisturbed calls, where several processes took them (`statistics.undisturbed_ratio`).
    """
    found = statistics.undisturbed_ratio(candidate, baseline, confidence)
    source = f"in turn with {baseline.arm}"
    return regression_estimate(Ratio(value=found.value, interval=found.interval, source=source))


def stored_regression(
    candidate: Measurement, baseline: Measurement, *,
    originals: tuple[Measurement, Measurement] | None = None,
    noise_floor: Figure = NO_NOISE_FLOOR, source: str = "",
    confidence: float = statistics.CONFIDENCE,
) -> Estimate:  # fmt: skip
    """The regression against a measurement of another time.

    Where both took turns with one and the same original engine (`originals`: now, then) under one
    runtime, its rate stands between them and what changed of the machine cancels. Else the two
    rates are compared as they are, and the interval is widened by the machine's noise floor;
    without a floor the regression is unknown, for nobody knows how much two times differ.
    """
    if originals is not None and _one_engine(*originals):
        now, then = originals
        ratio = comparison.ratio_by_original(candidate, now, baseline, then, confidence)
    else:
        ratio = comparison.ratio_of_rates(candidate, baseline, noise_floor)
    found = regression_estimate(ratio)
    said = ", ".join(part for part in (source, found.source) if part)
    if found.doubt and isinstance(noise_floor, Unknown):
        return Estimate(value=Unknown(f"{found.value:+.1%}, but {found.doubt}"), source=said)
    return replace(found, source=said)


def _one_engine(one: Measurement, other: Measurement) -> bool:
    """Whether both ran the same engine by the same runtime, which is a part of its speed."""
    now, then = (
        tuple(m.conditions.get(name) for name in ("engine_sha256", "runtime"))
        for m in (one, other)
    )  # fmt: skip
    return all(now) and now == then


def _from_statistics(
    estimated: statistics.Estimated, *, scale: float = 1.0, doubt: str = "", source: str = ""
) -> Estimate:
    value, interval = estimated.value * scale, estimated.interval
    if isinstance(interval, Unknown):
        return Estimate(value=value, doubt=doubt or interval.reason, source=source)
    scaled = (interval[0] * scale, interval[1] * scale)
    return Estimate(value=value, interval=scaled, doubt=doubt, source=source)


def _figure(measurement: Measurement, name: str, source: str, scale: float = 1.0) -> Estimate:
    found = measurement.figures.get(name, Unknown("it was not measured"))
    value = found if isinstance(found, Unknown) else found * scale
    return Estimate(value=value, source=source)


def _memory(measurement: Measurement) -> Estimate:
    """The largest of the process's peak and of what it has on the GPU, in MB.

    Where the two lie in one pool they may overlap, so they are not added up. A GPU's runtime whose
    memory there nobody could read carries a doubt: the process's peak says little of it.
    """
    found = {
        name: measurement.figures[name]
        for name in ("peak_memory_bytes", "gpu_memory_bytes", "nvmap_bytes")
        if name in measurement.figures
    }
    known = {name: value for name, value in found.items() if not isinstance(value, Unknown)}
    if not known:
        return _figure(measurement, "peak_memory_bytes", "")
    largest = max(known, key=lambda name: known[name])
    doubt = ""
    on_gpu = found.get("gpu_memory_bytes")
    if (
        measurement.conditions.get("runtime", "").startswith("tensorrt")
        and isinstance(on_gpu, Unknown)
        and "nvmap_bytes" not in known
    ):
        doubt = f"the GPU's share is not known: {on_gpu.reason}"
    return Estimate(value=known[largest] / 1e6, source=_MEMORY[largest], doubt=doubt)


def evidence_to_json(evidence: Evidence) -> dict[str, object]:
    """JSON-ready, enough to decide again elsewhere."""
    return {
        "on_device": evidence.on_device,
        "age_s": figure_to_json(finite(evidence.age_s)),
        "max_age_s": evidence.max_age_s,
        "invalid": list(evidence.invalid),
        "unchecked": list(evidence.unchecked),
        "noise_floor": figure_to_json(finite(evidence.noise_floor)),
        "estimates": {
            name: {
                "value": figure_to_json(finite(estimate.value)),
                "interval": list(estimate.interval) if estimate.interval else None,
                "doubt": estimate.doubt,
                "source": estimate.source,
            }
            for name, estimate in evidence.estimates.items()
        },
    }


def evidence_from_json(stored: Mapping[str, Any]) -> Evidence:
    """What `evidence_to_json` made, or an older version that had neither sources nor a floor."""
    floor = stored.get("noise_floor")
    return Evidence(
        on_device=stored["on_device"],
        age_s=figure_from_json(stored["age_s"]),
        max_age_s=stored["max_age_s"],
        invalid=tuple(stored["invalid"]),
        unchecked=tuple(stored.get("unchecked", ())),
        noise_floor=NO_NOISE_FLOOR if floor is None else figure_from_json(floor),
        estimates={
            name: Estimate(
                value=figure_from_json(estimate["value"]),
                interval=tuple(estimate["interval"]) if estimate["interval"] else None,
                doubt=estimate["doubt"],
                source=estimate.get("source", ""),
            )
            for name, estimate in stored["estimates"].items()
        },
    )
