"""What a model is: what goes in and out, what it costs, what can be cut, what a target refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekit.compress.channels.groups import Groups, find_groups
from edgekit.engines.base import EngineRequest
from edgekit.engines.preflight import PreflightReport, preflight
from edgekit.models.cost import Cost, NodeCost, node_costs, total_cost
from edgekit.models.model import Model
from edgekit.models.source import load
from edgekit.targets import resolve_target

_COSTLIEST = 8


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """All that the graph alone says, at a batch of one."""

    model: Model
    operators: Mapping[str, int]
    cost: Cost
    costliest: tuple[NodeCost, ...]
    groups: Groups
    preflight: PreflightReport | None

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        model = self.model
        return {
            "name": model.name,
            "opset": model.opset,
            "history": list(model.history),
            "inputs": [asdict(spec) for spec in model.inputs],
            "outputs": [asdict(spec) for spec in model.outputs],
            "operators": dict(self.operators),
            **asdict(self.cost),
            "costliest": [asdict(cost) for cost in self.costliest],
            "groups": {group.name: group.units for group in self.groups.groups},
            "frozen": dict(self.groups.frozen),
            "preflight": None if self.preflight is None else self.preflight.to_json(),
        }


def inspect(path: Path, target_name: str | None = None) -> Inspection:
    """What the model in a file is; for a target, what its preflight says of it as it stands.

    Raises InputError as `models.source.load` does, and for an unknown target.
    """
    model = load(path)
    costs = sorted(node_costs(model), key=lambda cost: -cost.macs)
    report = None
    if target_name is not None:
        target = resolve_target(target_name).target
        kind = "fp16" if "fp16" in target.precisions else "fp32"
        report = preflight(
            EngineRequest(model_path=path, name=model.name, target=target, precision=kind)
        )
    return Inspection(
        model=model,
        operators=dict(Counter(node.op_type for node in model.graph).most_common()),
        cost=total_cost(model),
        costliest=tuple(cost for cost in costs[:_COSTLIEST] if cost.macs),
        groups=find_groups(model),
        preflight=report,
    )
