"""The cut as data: for every initializer's axis that was cut, which entries were kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import InputError
from edgekit.values import Array

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`kept` holds, by (initializer, axis), the sorted indices of what stays."""

    kept: Mapping[tuple[str, int], Array]

    def to_json(self) -> str:
        """The text of `plan.json`."""
        parameters: dict[str, dict[str, list[int]]] = {}
        for (name, axis), indices in sorted(self.kept.items()):
            parameters.setdefault(name, {})[str(axis)] = indices.tolist()
        return json.dumps({"format": FORMAT, "kept": parameters}, indent=1) + "\n"


def load_plan(path: Path) -> Plan:
    """The Plan in a `plan.json`. Raises InputError where it is missing, or something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "this plan cannot be read", where=str(path), got=str(error),
            wanted="a plan.json, as `edgekit channels` writes it",
        ) from error  # fmt: skip
    return plan_from_json(text)


def plan_from_json(text: str) -> Plan:
    """What `Plan.to_json` wrote. Raises InputError for anything else."""
    try:
        stored = json.loads(text)
        if stored["format"] != FORMAT:
            raise InputError(
                "this plan is of another version", got=str(stored["format"]), wanted=str(FORMAT)
            )
        return Plan(
            kept={
                (name, int(axis)): np.asarray(indices, np.int64)
                for name, axes in stored["kept"].items()
                for axis, indices in axes.items()
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("this is not a channel plan", got=text[:60]) from error
