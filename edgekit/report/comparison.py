"""Two files of measurements beside each other, as rows and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bench import statistics
from edgekit.bench.comparison import Compared, compare
from edgekit.bench.measurement import load_measurements
from edgekit.bench.noise_floor import stored
from edgekit.evidence import NO_NOISE_FLOOR
from edgekit.report import rows
from edgekit.values import Figure, Unknown

COLUMNS = ("arm", "batch", "old FPS", "new FPS", "new / old", "95% interval", "says")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The arms that two files share, each compared."""

    old: Path
    new: Path
    arms: tuple[Compared, ...]

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "old": str(self.old), "new": str(self.new), "arms": [arm.to_json() for arm in self.arms]
        }  # fmt: skip

    @property
    def exit_code(self) -> int:
        """3 where nobody can say of an arm, else 0."""
        return 3 if any(isinstance(arm.ratio.interval, Unknown) for arm in self.arms) else 0


def compare_files(
    old: Path, new: Path, *, noise_floor: float | None = None, target: str = ""
) -> Comparison:
    """The measurements of two files, as `edgekit bench -o` and builds leave them.

    The noise floor is the one given, else that of the target under the new measurement's
    conditions, where one is stored. Raises InputError where a file cannot be read, and where they
    are not comparable, with each reason.
    """
    before, after = load_measurements(old), load_measurements(new)
    floor: Figure = NO_NOISE_FLOOR
    if noise_floor is not None:
        floor = noise_floor
    elif target and after:
        floor = stored(target, after[0].conditions)
    arms = compare(before, after, floor)
    return Comparison(old=old, new=new, arms=arms)


def table(found: Comparison) -> list[tuple[str, ...]]:
    """A row for each arm."""
    return [_row(arm) for arm in found.arms]


def _row(arm: Compared) -> tuple[str, ...]:
    interval = arm.ratio.interval
    between = "" if isinstance(interval, Unknown) else f"{interval[0]:.3f} to {interval[1]:.3f}"
    old, new = (rows.rate(statistics.fps(m).value) for m in (arm.old, arm.new))
    said = "nobody can say" if isinstance(interval, Unknown) else arm.said
    return arm.arm, str(arm.new.batch), old, new, f"{arm.ratio.value:.3f}", between, said


def notes(found: Comparison) -> Sequence[str]:
    """How the ratios were found, what differs between the two, and the doubts of both."""
    said = []
    for arm in found.arms:
        interval = arm.ratio.interval
        how = interval.reason if isinstance(interval, Unknown) else f"measured {arm.ratio.source}"
        said.append(f"{arm.arm}: {how}")
        said += [f"{arm.arm}: {changed}" for changed in arm.changed]
        for name, side in (("old", arm.old), ("new", arm.new)):
            if side.doubts:
                said.append(f"{arm.arm}, {name}: {'; '.join(side.doubts)}")
    return said
