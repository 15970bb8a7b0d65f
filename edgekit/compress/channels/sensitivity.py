"""How much of a network's output is lost where one group alone loses a part of its units.

A unit is gone when nothing reads it: the weights that read it are zero (the cut network computes
the same). So for one group only what lies behind its first reader is run, on values that were kept
from before it, and one pass through the network serves all groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import files
from edgekit.compress.channels.groups import ChannelGroup, Member
from edgekit.compress.channels.replay.judge import Judge, Loss
from edgekit.compress.channels.replay.timeline import OpenModel, Walk, timeline_of
from edgekit.data.batches import Batches
from edgekit.data.metrics import Metric
from edgekit.errors import InputError
from edgekit.models.model import Model, constant_of, digest
from edgekit.values import Array, Batch

SHARES = (0.25, 0.5, 0.75)

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class GroupSensitivity:
    """What one group alone costs: an entry for each share of its units that is gone.

    `kept` units of `units` stay. `damage` is 1 - fidelity: sum((a - b)^2) / sum(b^2) against the
    original's outputs b, the mean over the outputs; of an output that is no real number the share
    of entries that differ. `doubt` is its standard error, from so many `samples`. `agreement` is
    the share of these whose largest class score is that of the original; empty where the first
    output is not (samples, classes). `metric` is empty where none was asked for.
    """

    group: str
    units: int
    kept: tuple[int, ...]
    damage: tuple[float, ...]
    doubt: tuple[float, ...]
    samples: tuple[int, ...]
    agreement: tuple[float, ...] = ()
    metric: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Every group's, in the order of the groups; `metric_before` is the original's own score."""

    shares: tuple[float, ...]
    samples: int
    groups: tuple[GroupSensitivity, ...]
    metric: str = ""
    metric_before: float | None = None

    @property
    def damage(self) -> tuple[Array, ...]:
        """For each group (shares,): what a budget by sensitivity goes by."""
        return tuple(np.asarray(group.damage, np.float64) for group in self.groups)

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "shares": list(self.shares), "samples": self.samples, "metric": self.metric,
            "metric_before": self.metric_before, "groups": [_to_json(g) for g in self.groups],
        }  # fmt: skip


def sensitivity_from_json(stored: Mapping[str, Any]) -> Sensitivity:
    """What `Sensitivity.to_json` made."""
    return Sensitivity(
        shares=tuple(stored["shares"]), samples=stored["samples"], metric=stored["metric"],
        metric_before=stored["metric_before"],
        groups=tuple(_from_json(group) for group in stored["groups"]),
    )  # fmt: skip


def measure_sensitivity(  # noqa: PLR0913  every option has its reason
    model: Model, groups: Sequence[ChannelGroup], scores: Sequence[Array], batches: Batches, *,
    open_model: OpenModel, shares: Sequence[float] = SHARES, samples: int = 256,
    tolerance: float = 0.1, metric: Metric | None = None, checkpoint: Path | None = None,
    on_fraction: Callable[[float], None] = lambda share: None,
) -> Sensitivity:  # fmt: skip
    """The Sensitivity of each group to the loss of its least important units by `scores`.

    Of a group, round(share * units) are gone, at least one stays. At most `samples` are run, evenly
    spaced over `batches`, in an order drawn with a fixed seed; fewer for a damage whose standard
    error has come down to the `tolerance`, a share of it (0: never fewer). A metric, which alone
    reads labels, is of all samples. Where a normalisation runs over the
    channels, those that are gone still count in its statistics. A `checkpoint` has what was
    finished, so that the same call goes on after a kill; the caller removes it.
    Raises InputError for too few data, and where an output is not finite, is zero throughout, or
    has no row for each sample.
    """
    chosen = _chosen(model, batches, samples)
    settings = (samples, tolerance, *map(float, shares), metric.digest if metric else "")
    key = "" if checkpoint is None else _key(model, batches, scores, settings)
    notes = _Notes(checkpoint, key)
    line = timeline_of(model)
    begins = [line.position_before({m.parameter for m in _read(group)}) for group in groups]
    work = sum(len(line) - begin for begin in begins) or 1
    done = 0
    with (
        Judge(model, chosen, open_model, tolerance) as judge,
        Walk(line, chosen, open_model) as walk,
    ):
        if metric is not None:
            judge.ask(metric)
        for index in sorted(range(len(groups)), key=lambda i: begins[i]):
            group = groups[index]
            if group.name not in notes.found:
                walk.advance(begins[index])
                notes.add(_measured(group, scores[index], shares, walk, judge))
            done += len(line) - begins[index]
            on_fraction(done / work)
    return Sensitivity(
        shares=tuple(map(float, shares)), samples=sum(map(len, chosen)),
        groups=tuple(notes.found[group.name] for group in groups),
        metric=metric.name if metric is not None else "", metric_before=judge.before,
    )  # fmt: skip


def _chosen(model: Model, batches: Batches, samples: int) -> list[Batch]:
    """The samples to run, in batches that the model takes: a fixed one takes no others."""
    firsts = [spec.shape[0] for spec in model.inputs if spec.shape]
    fixed = max((size for size in firsts if isinstance(size, int)), default=0)
    if min(samples, batches.count) < max(fixed, 2):
        raise InputError(
            "there are too few samples", where=model.name,
            got=f"{min(samples, batches.count)} samples",
            wanted=f"at least {fixed}, the model's fixed batch" if fixed > 1 else "at least 2",
        )  # fmt: skip
    taken = batches.take(samples)
    order = np.random.default_rng(0).permutation(taken.count)
    size = fixed or _BATCH
    count = len(order) // size * size if fixed else len(order)
    return [taken.pick(order[begin : begin + size]) for begin in range(0, count, size)]


def _read(group: ChannelGroup) -> tuple[Member, ...]:
    """The members whose zeros take a unit away.

    Those that read it; where a product of two activations is all that does (queries and keys), the
    weights that make it, and what is added to them.
    """
    consumed = tuple(m for m in group.members if m.role == "consumed")
    return consumed or group.members


def _measured(
    group: ChannelGroup, scores: Array, shares: Sequence[float], walk: Walk, judge: Judge
) -> GroupSensitivity:
    members = _read(group)
    weights = {m.parameter: _weight(walk.line.model, m.parameter) for m in members}
    order = np.argsort(scores, kind="stable")
    gone = [min(round(share * group.units), group.units - 1) for share in shares]
    found: list[Loss] = []
    with walk.rest(tuple(weights)) as outputs_of:
        for count in gone:
            if not count:
                found.append(judge.nothing_lost())
                continue
            zeroed = {name: weight.copy() for name, weight in weights.items()}
            for member in members:
                entries = member.indices[order[:count]].reshape(-1)
                np.moveaxis(zeroed[member.parameter], member.axis, 0)[entries] = 0
            found.append(judge.loss(outputs_of(zeroed), where=group.name))
    return GroupSensitivity(
        group=group.name, units=group.units, kept=tuple(group.units - count for count in gone),
        damage=tuple(one.damage for one in found), doubt=tuple(one.doubt for one in found),
        samples=tuple(one.samples for one in found),
        agreement=tuple(one.agreement for one in found if one.agreement is not None),
        metric=tuple(one.metric for one in found if one.metric is not None),
    )  # fmt: skip


def _weight(model: Model, name: str) -> Array:
    array = constant_of(model.graph.initializers[name])
    assert array is not None
    return array


class _Notes:
    """The groups that are finished, in a file under what they were measured with."""

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self._key = key
        self.found: dict[str, GroupSensitivity] = {}
        if path is None or not path.is_file():
            return
        try:
            stored = json.loads(path.read_text())
            if stored["key"] == key:
                self.found = {one["group"]: _from_json(one) for one in stored["groups"]}
        except (OSError, ValueError, KeyError, TypeError):
            return  # a damaged file counts as nothing

    def add(self, one: GroupSensitivity) -> None:
        """Notes one more group, on the disk too."""
        self.found[one.group] = one
        if self._path is not None:
            groups = [_to_json(group) for group in self.found.values()]
            files.write_text(self._path, json.dumps({"key": self._key, "groups": groups}))


def _key(
    model: Model, batches: Batches, scores: Sequence[Array], settings: tuple[object, ...]
) -> str:
    parts = [digest(model), batches.digest, repr(settings)]
    parts += [files.digest_bytes(np.argsort(one, kind="stable").tobytes()) for one in scores]
    return files.digest_bytes("\n".join(parts).encode())


def _to_json(one: GroupSensitivity) -> dict[str, object]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(one).items()}


def _from_json(stored: Mapping[str, Any]) -> GroupSensitivity:
    lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
    return GroupSensitivity(group=stored["group"], units=stored["units"], **lists)
