"""A measurement together with what a watch saw beside it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bench import statistics
from edgekit.bench.conditions import Judged, check_conditions, check_start
from edgekit.bench.device_state import DeviceState
from edgekit.bench.telemetry_report import Part, TelemetryReport
from edgekit.errors import InputError
from edgekit.values import Figure, Measurement, Unknown

if TYPE_CHECKING:
    from edgekit.targets import Target


_JOULES_CONFIDENCE = 0.99


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a measurement is taken: the target whose conditions count, and the system's files.

    `doubts` are reasons to doubt whatever is measured there.
    """

    target: Target | None = None
    root: Path = Path("/")
    doubts: tuple[str, ...] = ()


HERE = Site()
"""This machine, with no target's conditions."""


def site_of(targets: Collection[str]) -> Site:
    """The conditions of the one target that all engines are built for, by its name.

    An engine may come from a machine that has a target of its own: without its file nothing is
    demanded, and a doubt says so.
    """
    from edgekit.targets import load_target

    names = sorted(set(targets))
    if len(names) > 1:
        said = f"the engines are for {', '.join(names)}: no conditions were checked"
        return Site(doubts=(said,))
    (only,) = names
    try:
        return Site(target=load_target(only))
    except InputError:
        said = f'the target "{only}" is not known here: no conditions were checked'
        return Site(doubts=(said,))


def state_checked(measured: Measurement, state: DeviceState, target: Target) -> Measurement:
    """The measurement of a tool that no watch was beside, checked by the state that it began in."""
    judged = check_start(target, state)
    broken, unchecked = tuple(map(str, judged.broken)), tuple(map(str, judged.unread))
    return replace(
        measured, doubts=(*measured.doubts, *unchecked, *broken), broken=broken,
        unchecked=unchecked,
    )  # fmt: skip


def attended(measured: Measurement, report: TelemetryReport, site: Site, part: Part) -> Measurement:
    """The measurement with the watch's figures of its part, and the target's conditions checked."""
    judged = check_conditions(site.target, report) if site.target is not None else Judged()
    broken = tuple(map(str, judged.broken))
    passing = {"power_source": report.power_source or "not readable"}
    slowed = () if any(each.when == "during" for each in judged.broken) else report.doubts()
    return replace(
        measured,
        figures={
            **measured.figures,
            **report.figures(_rate(measured), part),
            **_joules_between(measured, report, part),
        },
        conditions={**measured.conditions, **passing},
        doubts=(*measured.doubts, *site.doubts, *slowed, *map(str, judged.unread), *broken),
        broken=broken,
        unchecked=tuple(map(str, judged.unread)),
        readings=(report.to_json(),),
    )


def _rate(measured: Measurement) -> Figure:
    """Samples a second while the arm was at work; of a server, those that it answered."""
    if not measured.samples:
        return Unknown("no sample was taken")
    answered = measured.figures.get("answered_per_s")
    return answered if answered is not None else statistics.fps(measured).value


def _joules_between(
    measured: Measurement, report: TelemetryReport, part: Part
) -> dict[str, Figure]:
    """Between which two figures the energy of a sample lies, from its turns as they differ.

    With 99% confidence: a gate may ask several times, and the readings are few. `joules_per_sample`
    itself is of all turns together.
    """
    low: Figure
    high: Figure
    powers = report.window_powers_w(part.windows)
    lacking = next((power for power in powers if isinstance(power, Unknown)), None)
    if lacking is not None:
        low = high = lacking
    elif "answered_per_s" in measured.figures or len(powers) != len(measured.rounds):
        low = high = Unknown("the rate of each turn is not known")
    else:
        turns = np.asarray(powers, np.float64) / statistics.round_rates(measured)
        found = statistics.student_interval(turns, _JOULES_CONFIDENCE)
        low, high = (found, found) if isinstance(found, Unknown) else found
    return {"joules_per_sample_low": low, "joules_per_sample_high": high}
