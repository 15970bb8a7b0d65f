"""How much of the outputs is lost where one node alone works on integers: no labels needed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.quantize.judging.alone import shadowed
from edgekit.quantize.judging.layers import damage_alone
from edgekit.quantize.judging.outputs import OpenSession
from edgekit.quantize.judging.parts import output_parts
from edgekit.quantize.scheme import Scheme
from edgekit.values import Batch

Method = Literal["auto", "gradients", "each"]

_FEW = 8
SAMPLES = 24


@dataclass(frozen=True, kw_only=True)
class NodeSensitivity:
    """The damage by node: sum (x - y)^2 / sum x^2, the mean over the parts of the outputs.

    `method` is "gradients" (to first order, all nodes at once) or "each" (one run for each node).
    """

    damage: Mapping[str, float]
    samples: int
    method: Literal["gradients", "each"]
    because: str = ""

    def ranked(self) -> list[str]:
        """The nodes, the most sensitive first."""
        return sorted(self.damage, key=lambda node: (-self.damage[node], node))

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "damage": dict(self.damage), "samples": self.samples, "method": self.method,
            "because": self.because,
        }  # fmt: skip


def node_sensitivity(  # noqa: PLR0913  every option has its reason
    model: Model, scheme: Scheme, batches: Sequence[Batch], open_session: OpenSession, *,
    method: Method = "auto", samples: int = SAMPLES, draws: int = 4, seed: int = 0,
    on_fraction: Callable[[float], None] = lambda share: None,
) -> NodeSensitivity:  # fmt: skip
    """The NodeSensitivity of every node on integers of a Scheme.

    It looks at the first batches that hold `samples`, of gradients in `draws` directions: a ranking
    needs no more (benchmarks/quantize_sensitivity.py).
    `open_session` is to run graphs as they are written. "auto" takes gradients, and where torch or
    one of the model's operators is missing, one run for each node on at most 8 samples; `because`
    says so. A few samples' activations are alive at once, however large the batches are. Raises
    InputError where there is no sample, an output is zero throughout, or a tensor becomes NaN or
    infinite.
    """
    if not sum(map(len, batches)):
        raise InputError("there is no sample to measure sensitivity with", where=model.name)
    missing = _missing(model) if method != "each" else ""
    if method == "each" or (method == "auto" and missing):
        chosen = _few(batches, samples if method == "each" else min(samples, _FEW))
        nodes = list(scheme.placement.integer)
        done = iter(range(1, len(nodes) + 1))
        found = damage_alone(
            model, scheme, nodes, chosen, open_session,
            on_node=lambda node, damage: on_fraction(next(done) / len(nodes)),
        )  # fmt: skip
        return NodeSensitivity(
            damage=found, samples=sum(map(len, chosen)), method="each", because=missing
        )
    if missing:
        raise InputError(
            "the sensitivity of this model cannot be told from gradients", where=model.name,
            got=missing, hint="Take one run for each node.",
        )  # fmt: skip
    from edgekit.quantize.precision.gradients import projected_damage

    chosen = _few(batches, samples)
    damage = projected_damage(
        model, shadowed(model, scheme), output_parts(model), chosen, open_session, draws=draws,
        seed=seed, on_fraction=on_fraction,
    )  # fmt: skip
    return NodeSensitivity(damage=damage, samples=sum(map(len, chosen)), method="gradients")


def _missing(model: Model) -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    from edgekit.models.torch_module import untrainable

    return ", ".join(untrainable(model))


def _few(batches: Sequence[Batch], samples: int) -> list[Batch]:
    """The first batches that hold so many samples."""
    chosen: list[Batch] = []
    for batch in batches:
        chosen.append(batch)
        if sum(map(len, chosen)) >= samples:
            break
    return chosen
