"""Two stored measurements beside each other: whether they may be compared, and the ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.bench import statistics
from edgekit.bench.measurement import PASSING
from edgekit.bench.statistics import Estimated
from edgekit.errors import InputError
from edgekit.values import Figure, Measurement, Unknown, figure_to_json

MAY_DIFFER = (
    "engine_sha256", "runtime", "settings", "plan", "beside", "python", "system", *PASSING,
)  # fmt: skip
"""What a release may change: engine and software. Any other condition is of device or mode."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The rate of one measurement over another's, where it lies, and how it was found."""

    value: float
    interval: tuple[float, float] | Unknown
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that two measurements do not share."""

    what: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.what}: {self.old} and {self.new}"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One arm of two files. `changed` are differences that a comparison allows, to be told."""

    arm: str
    old: Measurement
    new: Measurement
    ratio: Ratio
    changed: tuple[Difference, ...]

    @property
    def said(self) -> str:
        """What the interval says: faster, slower or no clear difference."""
        if isinstance(self.ratio.interval, Unknown):
            return f"nobody can say: {self.ratio.interval.reason}"
        low, high = self.ratio.interval
        if low > 1 or high < 1:
            return "faster" if low > 1 else "slower"
        return "the same" if low == high else "no clear difference"

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        interval = self.ratio.interval
        unknown = isinstance(interval, Unknown)
        return {
            "arm": self.arm,
            "quantity": self.new.quantity,
            "batch": self.new.batch,
            "old_fps": statistics.fps(self.old).value,
            "new_fps": statistics.fps(self.new).value,
            "ratio": self.ratio.value,
            "interval": figure_to_json(interval) if unknown else list(interval),  # type: ignore[arg-type]
            "source": self.ratio.source,
            "said": self.said,
            "changed": [{"what": d.what, "old": d.old, "new": d.new} for d in self.changed],
            "doubts": {"old": list(self.old.doubts), "new": list(self.new.doubts)},
        }


def barriers(old: Measurement, new: Measurement) -> tuple[Difference, ...]:
    """What forbids to compare the two: another quantity, unit, batch, device or mode; each named.

    A condition that only one of them knows is a barrier too: nobody can say that it was the same.
    """
    found = [
        Difference(what=name, old=str(getattr(old, name)), new=str(getattr(new, name)))
        for name in ("quantity", "unit", "batch")
        if getattr(old, name) != getattr(new, name)
    ]
    found += [d for d in _differences(old.conditions, new.conditions) if d.what not in MAY_DIFFER]
    found += [
        Difference(what=f"the {side} run is invalid", old=said, new=said)
        for side, measurement in (("old", old), ("new", new))
        for said in measurement.broken
    ]
    return tuple({d.what: d for d in found}.values())


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[Difference]:
    return [
        Difference(what=name, old=old.get(name, "not known"), new=new.get(name, "not known"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def compare(
    old: Sequence[Measurement], new: Sequence[Measurement], noise_floor: Figure
) -> tuple[Compared, ...]:
    """The arms of one run beside those of another, by name; where each has one arm, those.

    Raises InputError where no arm is in both, and where a pair is not comparable: every reason is
    in it.
    """
    pairs = _pairs(old, new)
    refused = [(after, reason) for before, after in pairs for reason in barriers(before, after)]
    if refused:
        raise InputError(
            "these measurements are not comparable",
            got="\n".join(dict.fromkeys(f"{reason}" for _, reason in refused)),
            wanted="the same quantity, batch, device and mode",
            hint="Measure both on one device in one mode: edgekit bench A B takes turns.",
        )  # fmt: skip
    return tuple(
        Compared(
            arm=after.arm if before.arm == after.arm else f"{before.arm}, {after.arm}",
            old=before, new=after, ratio=ratio_of_rates(after, before, noise_floor),
            changed=tuple(
                d for d in _differences(before.conditions, after.conditions)
                if d.what not in PASSING
            ),
        )
        for before, after in pairs
    )  # fmt: skip


def _pairs(
    old: Sequence[Measurement], new: Sequence[Measurement]
) -> list[tuple[Measurement, Measurement]]:
    if len(old) == len(new) == 1:
        return [(old[0], new[0])]
    by_name = {measurement.arm: measurement for measurement in old}
    pairs = [(by_name[m.arm], m) for m in new if m.arm in by_name]
    if not pairs:
        raise InputError(
            "these measurements have no arm in common",
            got=", ".join(m.arm for m in new) or "none",
            wanted=", ".join(by_name) or "at least one",
        )
    return pairs


def ratio_of_rates(candidate: Measurement, baseline: Measurement, noise_floor: Figure) -> Ratio:
    """The ratio of two rates that were measured at two times, widened by the noise floor.

    The interval of ln(a) - ln(b) from those of ln(a) and ln(b), which are independent:
    l = a - b - sqrt((a - l_a)^2 + (u_b - b)^2), u likewise (Zou and Donner, "Construction of
    confidence limits about effect measures", Statistics in Medicine 27, 2008, section 2). It knows
    nothing of what changed between the two times: both ends are moved out by the noise floor, and
    where none is known there is no interval.
    """
    found = _quotient(statistics.fps(candidate), statistics.fps(baseline))
    source = "at two times"
    if isinstance(found.interval, Unknown):
        return Ratio(value=found.value, interval=found.interval, source=source)
    if isinstance(noise_floor, Unknown):
        said = f"measured at two times, and {noise_floor.reason}: edgekit bench --aa"
        return Ratio(value=found.value, interval=Unknown(said), source=source)
    low, high = found.interval
    interval = (low / (1 + noise_floor), high * (1 + noise_floor))
    return Ratio(
        value=found.value, interval=interval,
        source=f"{source}, {100 * noise_floor:.1f}% of noise added",
    )  # fmt: skip


def ratio_by_original(
    candidate: Measurement, original: Measurement,
    baseline: Measurement, baseline_original: Measurement,
    confidence: float = statistics.CONFIDENCE,
) -> Ratio:  # fmt: skip
    """The ratio of two rates, each taken as a multiple of the original that took turns with it.

    What slowed the machine down at one of the two times slowed the original down too, and cancels.
    The interval as in `ratio_of_rates`, of the two speedups, nothing added.
    """
    found = _quotient(
        statistics.speedup(candidate, original, confidence),
        statistics.speedup(baseline, baseline_original, confidence),
    )
    return Ratio(value=found.value, interval=found.interval, source="each beside the original")


def _quotient(above: Estimated, below: Estimated) -> Estimated:
    value = above.value / below.value
    for part in (above, below):
        if isinstance(part.interval, Unknown):
            return Estimated(value=value, interval=part.interval)
        if not part.interval[0] > 0:
            return Estimated(value=value, interval=Unknown("an interval reaches down to zero"))
    assert not isinstance(above.interval, Unknown)
    assert not isinstance(below.interval, Unknown)
    a, b = math.log(above.value), math.log(below.value)
    low_a, high_a = map(math.log, above.interval)
    low_b, high_b = map(math.log, below.interval)
    low = a - b - math.hypot(max(0.0, a - low_a), max(0.0, high_b - b))
    high = a - b + math.hypot(max(0.0, high_a - a), max(0.0, b - low_b))
    return Estimated(value=value, interval=(math.exp(low), math.exp(high)))
