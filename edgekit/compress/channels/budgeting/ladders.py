"""Which numbers of units a group may keep, so that the channels left suit the device."""

from __future__ import annotations

import math

NARROW_MULTIPLE = 8
FLOOR = 0.25  # a group keeps at least this share of its units


def allowed_counts(units: int, multiple: int, channels_per_unit: int = 1) -> tuple[int, ...]:
    """The numbers of units that a group may keep, largest first; `units` itself always.

    The channels that are kept are a multiple of `multiple` where there are at least twice as many,
    else of 8; never less than a quarter of the group, never 0. So of 9 to 15 channels 8 may stay,
    and 8 or fewer stay whole: no device gains by less.
    """
    channels = units * channels_per_unit
    wanted = multiple if channels >= 2 * multiple else min(NARROW_MULTIPLE, multiple)
    step = wanted // math.gcd(wanted, channels_per_unit)
    least = max(1, math.ceil(units * FLOOR))
    counts = [count for count in range(step, units, step) if count >= least]
    return (units, *reversed(counts))
