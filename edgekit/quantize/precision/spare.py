"""A few nodes stay in floating point for what they bring: the most fidelity for their MACs.

Some layers have little arithmetic and spoil much: a stem, the reduction behind a squeeze. A small
share of the multiply-accumulates, left in floating point where it tells most, often brings more
decibels than any rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgekit.models.model import Model
from edgekit.quantize.place import macs_by_layer
from edgekit.quantize.scheme import Scheme

REASON = "spared: in integers it costs the most fidelity for its MACs"

_GAIN_DB = 0.1  # less is not worth a layer in floating point
_TRIFLE = 1e-4  # of the MACs: what a node without any is counted as
_DEPTHS = (1.0, 0.5, 0.25)  # of the share that may be spared


@dataclass(frozen=True, kw_only=True)
class Spared:
    """The nodes that stay in floating point, their share of the MACs, and what it brought in dB."""

    nodes: tuple[str, ...]
    share: float
    before_db: float
    after_db: float

    def __str__(self) -> str:
        if not self.nodes:
            return "no node in floating point brings much"
        return (
            f"{len(self.nodes)} nodes with {self.share:.1%} of the MACs left in float: "
            f"{self.before_db:.1f} to {self.after_db:.1f} dB"
        )

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "said": str(self), "nodes": list(self.nodes), "share": self.share,
            "before_db": self.before_db, "after_db": self.after_db,
        }  # fmt: skip


def spare(
    model: Model, scheme: Scheme, restricted: Callable[[Mapping[str, str]], Scheme],
    damage: Mapping[str, float], score: Callable[[Scheme], float], most_share: float,
) -> tuple[Scheme, Spared]:  # fmt: skip
    """The Scheme with at most `most_share` of the MACs in floating point in all, if that helps.

    `restricted` gives the Scheme with some nodes, each with its reason, in floating point; `damage`
    is that of each node alone (`precision.sensitivity`); `score` how near a Scheme's outputs are to
    the float ones, in dB. Candidates take the nodes in the order of damage for each MAC, and of
    damage, until the share, a half or a quarter of it is full; the best one by `score` is taken.
    """
    macs = macs_by_layer(model)
    total = sum(macs.values()) or 1
    shares = {node: macs.get(node, 0) / total for node in scheme.placement.integer}
    allowed = most_share - (1 - sum(shares.values()) if macs else 0)
    nodes = [node for node in shares if damage.get(node, 0.0) > 0]
    by_worth = sorted(nodes, key=lambda node: (-damage[node] / max(shares[node], _TRIFLE), node))
    by_damage = sorted(nodes, key=lambda node: (-damage[node], node))
    candidates = dict.fromkeys(
        _fill(order, shares, depth * allowed)
        for order in (by_worth, by_damage) for depth in _DEPTHS
    )  # fmt: skip
    before = best = score(scheme)
    found = scheme
    chosen: tuple[str, ...] = ()
    for candidate in filter(None, candidates):
        tried = restricted(dict.fromkeys(candidate, REASON))
        reached = score(tried)
        if reached > best + _GAIN_DB:
            found, chosen, best = tried, candidate, reached
    share = sum(shares[node] for node in chosen)
    return found, Spared(nodes=chosen, share=share, before_db=before, after_db=best)


def _fill(
    order: list[str], shares: Mapping[str, float], most: float
) -> tuple[str, ...]:  # fmt: skip
    """As many as the share allows, in this order; one that is too large is passed over."""
    chosen: list[str] = []
    left = most
    for node in order:
        if shares[node] <= left:
            chosen.append(node)
            left -= shares[node]
    return tuple(chosen)
