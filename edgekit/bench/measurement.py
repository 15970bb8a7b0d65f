"""Measurements on disk, and when one may stand for another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit import files
from edgekit.errors import InputError
from edgekit.values import Measurement, Unknown, figure_from_json, figure_to_json

FORMAT = 1

PASSING = ("other_load", "load_average", "power_source")
"""Conditions that are of the moment: they do not make two measurements different ones."""


def to_json(measurement: Measurement) -> dict[str, object]:
    """JSON-ready, every raw sample kept."""
    return {
        "arm": measurement.arm,
        "quantity": measurement.quantity,
        "unit": measurement.unit,
        "batch": measurement.batch,
        "taken_at": measurement.taken_at,
        "rounds": list(measurement.rounds),
        "processes": list(measurement.processes),
        "figures": {name: figure_to_json(f) for name, f in measurement.figures.items()},
        "conditions": dict(measurement.conditions),
        "doubts": list(measurement.doubts),
        "broken": list(measurement.broken),
        "unchecked": list(measurement.unchecked),
        "readings": list(measurement.readings),
        "samples": list(measurement.samples),
    }


def from_json(stored: Mapping[str, Any]) -> Measurement:
    """What `to_json` made."""
    return Measurement(
        arm=stored["arm"],
        quantity=stored["quantity"],
        unit=stored["unit"],
        samples=tuple(float(sample) for sample in stored["samples"]),
        rounds=tuple(int(index) for index in stored["rounds"]),
        batch=int(stored["batch"]),
        taken_at=float(stored["taken_at"]),
        figures={name: figure_from_json(f) for name, f in stored["figures"].items()},
        conditions=dict(stored["conditions"]),
        doubts=tuple(stored["doubts"]),
        broken=tuple(stored.get("broken", ())),
        processes=tuple(int(index) for index in stored.get("processes", ())),
        unchecked=tuple(stored.get("unchecked", ())),
        readings=tuple(stored.get("readings", ())),
    )


def save_measurements(measurements: Sequence[Measurement], path: Path) -> None:
    """Writes the measurements of one run, at once. Raises as `files.write_text` does."""
    document = {"format": FORMAT, "measurements": [to_json(m) for m in measurements]}
    files.write_text(path, json.dumps(document, separators=(",", ":")) + "\n")


def load_measurements(path: Path) -> tuple[Measurement, ...]:
    """What `save_measurements` wrote. Raises InputError where the file is no such thing."""
    try:
        stored = json.loads(path.read_text())
        if stored["format"] != FORMAT:
            raise InputError(
                "these measurements have a format that this version of edgekit does not read",
                where=str(path), got=f"format {stored['format']!r}", wanted=f"format {FORMAT}",
                hint="Measure again: edgekit bench.",
            )  # fmt: skip
        return tuple(from_json(m) for m in stored["measurements"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "these measurements cannot be read",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            hint="Measure again: edgekit bench.",
        ) from error


def continued(earlier: Measurement, later: Measurement) -> Measurement:
    """The two `pooled`; where what must last changed between them, the later one alone, broken."""
    changed = changed_conditions(earlier.conditions, later.conditions)
    if not changed:
        return pooled(earlier, later)
    said = ", ".join(
        f"{name} ({earlier.conditions.get(name, 'none')} -> {later.conditions.get(name, 'none')})"
        for name in changed
    )
    return replace(later, broken=(*later.broken, f"between two runs this changed: {said}"))


def pooled(earlier: Measurement, later: Measurement) -> Measurement:
    """Two runs of one arm under the same conditions as one measurement, as old as the earlier.

    Samples and rounds follow one another; of a figure that is a peak the larger one stays, of a
    lower end (its name says "low") the smaller one.
    Raises ValueError where the runs are not of the same thing.
    """
    same = ("arm", "quantity", "unit", "batch")
    if any(getattr(earlier, name) != getattr(later, name) for name in same) or not same_conditions(
        earlier.conditions, later.conditions
    ):
        raise ValueError(f"{earlier.arm} and {later.arm} are not runs of the same thing")
    figures = dict(earlier.figures)
    for name, value in later.figures.items():
        before = figures.get(name, value)
        if not isinstance(before, Unknown) and not isinstance(value, Unknown):
            figures[name] = (min if name.endswith("_low") else max)(before, value)
    count = len(earlier.samples)
    return replace(
        earlier,
        samples=earlier.samples + later.samples,
        rounds=earlier.rounds + tuple(count + index for index in later.rounds),
        processes=_processes(earlier, later),
        figures=figures,
        doubts=tuple(dict.fromkeys(earlier.doubts + later.doubts)),
        broken=tuple(dict.fromkeys(earlier.broken + later.broken)),
        unchecked=tuple(dict.fromkeys(earlier.unchecked + later.unchecked)),
        readings=earlier.readings + later.readings,
    )


def _processes(earlier: Measurement, later: Measurement) -> tuple[int, ...]:
    if not earlier.processes and not later.processes:
        return ()
    count = len(earlier.samples)
    return (earlier.processes or (0,)) + tuple(count + i for i in later.processes or (0,))


def age_s(measurement: Measurement, now: float) -> float:
    """Seconds since it was taken; below zero where the clock was set back."""
    return now - measurement.taken_at


def changed_conditions(
    then: Mapping[str, str], now: Mapping[str, str]
) -> tuple[str, ...]:  # fmt: skip
    """The names of the conditions that are not what they were, apart from those of the moment."""
    names = sorted((then.keys() | now.keys()) - set(PASSING))
    return tuple(name for name in names if then.get(name) != now.get(name))


def same_conditions(then: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether a measurement taken then may stand for one taken now."""
    return not changed_conditions(then, now)
