"""The time that each node saves in INT8 on a device: measured layer by layer, or estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgekit.compress.channels.budgeting.latency import LayerTable
from edgekit.compress.channels.budgeting.layers import network_of
from edgekit.errors import InputError
from edgekit.models.cost.anatomy import label
from edgekit.models.cost.fusion import kernels
from edgekit.models.cost.roofline import Estimate, Rates, estimate
from edgekit.models.cost.sizes import forms
from edgekit.models.model import Model
from edgekit.targets import Precision
from edgekit.values import Unknown

Source = Literal["measured", "roofline"]


@dataclass(frozen=True, kw_only=True)
class SavedTime:
    """Milliseconds that a node takes less in INT8 than in `precision`, by node, and how known.

    Negative where INT8 is slower. A node that is not here runs inside the kernel of another one, or
    its time does not change. `float_ms` is the whole network's time in `precision`.
    """

    ms: Mapping[str, float]
    float_ms: float
    precision: Precision
    source: Source

    @property
    def total_ms(self) -> float:
        """What all nodes save together."""
        return sum(self.ms.values())


def saved_by_roofline(
    model: Model, rates: Rates, *, precision: Precision, batch: int = 1
) -> SavedTime:
    """The SavedTime by what the device can do at most: an estimate (`models.cost.roofline`).

    Raises InputError where a rate or a size is not known.
    """
    known = forms(model, batch=batch)
    slow = estimate(model, known, rates, precision=precision, batch=batch)
    fast = estimate(model, known, rates, precision="int8", batch=batch)
    before, after = _seconds(slow), _seconds(fast)
    return SavedTime(
        ms={node: 1e3 * (seconds - after[node]) for node, seconds in before.items()},
        float_ms=1e3 * sum(before.values()), precision=precision, source="roofline",
    )  # fmt: skip


def saved_by_tables(model: Model, floating: LayerTable, integer: LayerTable) -> SavedTime:
    """The SavedTime by two measured tables of this Model's layers.

    What is no layer (it moves bytes, and is not in the tables one by one) saves nothing here.
    Raises InputError where a layer is missing, or the tables are not of the same runtime and batch.
    """
    if (floating.runtime, floating.batch) != (integer.runtime, integer.batch):
        raise InputError(
            "the two tables are not of the same runtime and batch",
            got=f"{integer.runtime}, batch {integer.batch}",
            wanted=f"{floating.runtime}, batch {floating.batch}",
        )  # fmt: skip
    heads = kernels(model, floating.runtime)
    seconds: list[dict[str, float]] = []
    for table in (floating, integer):
        network = network_of(
            model, (), runtime=table.runtime, batch=table.batch, precision=table.precision
        )
        missing = [str(p.layer) for p in network.layers if p.layer not in table.seconds]
        if missing:
            raise InputError(
                "the table lacks layers of this network", got=", ".join(missing[:3]),
                where=f"the table in {table.precision}",
                hint="Measure this very model: edgekit table MODEL --target NAME.",
            )  # fmt: skip
        seconds.append({
            label(heads[p.position].head): table.scale * table.seconds[p.layer]
            for p in network.layers
        })  # fmt: skip
        other = table.scale * network.other_bytes / table.bytes_per_s
        if table is floating:
            float_ms = 1e3 * (sum(seconds[0].values()) + other)
    before, after = seconds
    return SavedTime(
        ms={node: 1e3 * (found - after[node]) for node, found in before.items()},
        float_ms=float_ms, precision=floating.precision, source="measured",
    )  # fmt: skip


def _seconds(found: Estimate) -> dict[str, float]:
    if isinstance(found.latency_s, Unknown):
        raise InputError(
            "there is no estimate of what INT8 saves", got=found.latency_s.reason,
            hint="Give the target's peak rates and bandwidth in its file.",
        )  # fmt: skip
    return {kernel.node: kernel.seconds for kernel in found.kernels}
