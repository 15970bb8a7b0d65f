"""What a cut network may cost: limits as a person gives them, and as absolute numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TypeAlias

from edgekit.errors import InputError


@dataclass(frozen=True)
class Share:
    """A share of what the whole network costs, in (0, 1]."""

    value: float

    def __str__(self) -> str:
        return f"{100 * self.value:g}%"


Limit: TypeAlias = Share | float

_LEAST_COUNT = 100  # of MACs or parameters; a smaller number was meant as a share


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a cut network may cost; all that are given must hold.

    A number of MACs or parameters up to 1 is a share, above it a count. `latency_ms` is in
    milliseconds, a share of it is a `Share`.
    """

    macs: Limit | None = None
    parameters: Limit | None = None
    latency_ms: Limit | None = None

    def given(self) -> dict[str, Limit]:
        """Those that are given, by name. Raises InputError where there is none, or a wrong one."""
        found: dict[str, Limit] = {}
        for name in (field.name for field in fields(self)):
            limit: Limit | None = getattr(self, name)
            if limit is None:
                continue
            if not isinstance(limit, Share) and name != "latency_ms" and 0 < limit <= 1:
                limit = Share(float(limit))
            _check(name, limit)
            found[name] = limit
        if not found:
            raise InputError(
                "no limit is given", where="compress.channels",
                wanted="one of macs, parameters and latency_ms at least",
            )  # fmt: skip
        return found


def absolute(limit: Limit, whole: float) -> float:
    """The limit as a number of what the whole network costs `whole` of."""
    return limit.value * whole if isinstance(limit, Share) else float(limit)


def parse_limit(text: str) -> Limit:
    """The limit that a text means: `50%` is a share, anything else a number.

    Raises InputError for a text that is neither.
    """
    stripped = text.strip()
    try:
        if stripped.endswith("%"):
            return Share(float(stripped[:-1]) / 100)
        return float(stripped)
    except ValueError as error:
        raise InputError(
            "this is no limit", got=text, wanted='a share such as "50%", or a number'
        ) from error


def _check(name: str, limit: Limit) -> None:
    value = limit.value if isinstance(limit, Share) else limit
    is_count = name != "latency_ms" and not isinstance(limit, Share)
    most = 1.0 if isinstance(limit, Share) else math.inf
    if (_LEAST_COUNT if is_count else 0) < value <= most and math.isfinite(value):
        return
    count = f"a count, more than {_LEAST_COUNT}"
    wanted = "milliseconds, more than 0" if name == "latency_ms" else count
    raise InputError(
        f"the budget of {name} is not between 0 and 1", where=f"compress.channels.{name}",
        got=str(limit) if isinstance(limit, Share) else f"{limit:g}",
        wanted=f"a share of the whole, more than 0 and at most 100%, or {wanted}",
    )  # fmt: skip
