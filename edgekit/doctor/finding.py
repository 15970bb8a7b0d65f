"""One thing that edgekit can use."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class State(enum.Enum):
    """`missing`: not here, which matters only for what it is for. `wrong`: here, and no good."""

    GOOD = "good"
    MISSING = "missing"
    WRONG = "wrong"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that edgekit can use: its state, what was found, what for, and what mends it."""

    name: str
    state: State
    found: str
    purpose: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """JSON-ready."""
        return {**vars(self), "state": self.state.value}


def named(findings: Iterable[Finding], name: str) -> Finding:
    """The finding of that name. Raises KeyError where nobody looked for it."""
    for finding in findings:
        if finding.name == name:
            return finding
    raise KeyError(name)
