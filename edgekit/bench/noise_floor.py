"""By how much two runs of one engine differ on a machine, as `edgekit bench --aa` found it.

One small JSON file for each target, in the user's data folder. It holds for the machine and mode
that it was measured in, and for no other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit import files
from edgekit.values import Figure, Unknown

FORMAT = 1

MACHINE = (
    "host", "cpu", "cpus", "governor", "power_mode", "clocks",
)  # fmt: skip
"""The conditions that a floor is bound to, as far as a measurement has them."""

NEVER = "its noise floor was never measured here"


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """`share` is how far an engine may seem to be from itself; `taken_at` seconds since the epoch.

    `plan` says how it was measured, `machine` is what of the conditions it is bound to, `engine`
    the SHA-256 of what was measured. `doubts` are those of the run.
    """

    target: str
    share: float
    taken_at: float
    plan: str
    engine: str
    machine: Mapping[str, str]
    doubts: tuple[str, ...] = ()


def floor_file(target: str) -> Path:
    """Where the floor of a target lies: in the user's data folder (XDG_DATA_HOME)."""
    base = os.environ.get("XDG_DATA_HOME", "")
    # The specification: a relative path there is to be ignored.
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "share"
    return folder / "edgekit" / "noise" / f"{target}.json"


def machine_of(conditions: Mapping[str, str]) -> dict[str, str]:
    """What of a measurement's conditions a floor is bound to."""
    return {name: conditions[name] for name in MACHINE if name in conditions}


def store(floor: NoiseFloor) -> Path:
    """Writes the floor in the place of an older one. Raises as `files.write_text` does."""
    path = floor_file(floor.target)
    files.write_text(path, json.dumps({"format": FORMAT, **asdict(floor)}, indent=2) + "\n")
    return path


def stored(target: str, conditions: Mapping[str, str]) -> Figure:
    """The share that is known for the target under these conditions, or why there is none."""
    floor = read(target)
    if isinstance(floor, Unknown):
        return floor
    now = machine_of(conditions)
    other = [name for name, value in floor.machine.items() if now.get(name) != value]
    if other:
        return Unknown(f"its noise floor was measured with another {', '.join(other)}")
    return floor.share


def read(target: str) -> NoiseFloor | Unknown:
    """The floor of a target as it was stored, or why there is none."""
    path = floor_file(target)
    try:
        found: Any = json.loads(path.read_text())
        if found.pop("format") != FORMAT:
            return Unknown(f"{path} is of another version of edgekit")
        floor = NoiseFloor(**{**found, "doubts": tuple(found["doubts"])})
        if floor.target != target or not 0 <= floor.share < 10:
            return Unknown(f"{path} is damaged")
        return floor
    except FileNotFoundError:
        return Unknown(NEVER)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Unknown(f"{path} cannot be read: {type(error).__name__}")
