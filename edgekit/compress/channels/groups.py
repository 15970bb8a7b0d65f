"""Channels of several tensors that can only be removed together, found from the graph alone."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.propagate import trace
from edgekit.compress.channels.trace import Slot, Trace
from edgekit.models.model import Model
from edgekit.values import Array


@dataclass(frozen=True, kw_only=True)
class Member:
    """A group's part in one axis of one initializer.

    `indices` (units, k): the k entries along `axis` that go with each unit. `role` is "produced",
    "consumed" or "along"; `norm` is the BatchNormalization behind a producing convolution.
    """

    parameter: str
    axis: int
    role: str
    indices: Array
    norm: ir.Node | None = None


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """`units` interchangeable units; removing one removes an entry or more of every member.

    `name` is the first weight that makes them; where one weight makes several groups (its channels
    meet different partners), `weight#2` and so on name the later ones.
    """

    name: str
    units: int
    members: tuple[Member, ...]

    @property
    def channels_per_unit(self) -> int:
        """How many channels of a tensor go with a unit: one for each group of a grouped Conv.

        Where the producing weights differ in it, the largest number that divides all of theirs.
        """
        return math.gcd(*(m.indices.shape[1] for m in self.members if m.role == "produced"))


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of a graph; why other channels stay; and what else holds channel counts.

    `frozen` gives a reason for each initializer some of whose output channels stay.
    `group_attributes` (by the output of a depthwise convolution) and `shape_entries` (by constant
    and position in it) are the numbers that follow a cut: each counts the channels listed, by the
    ids that stand for them. `unit_of_root` says which of those belong to which group and unit.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: Mapping[str, str]
    group_attributes: Mapping[str, Array]
    shape_entries: Mapping[tuple[str, int], Array]
    unit_of_root: Mapping[int, tuple[int, int]]


def find_groups(model: Model) -> Groups:
    """The channel groups of a Model, in the order in which their channels are first made."""
    return _resolve(trace(model.graph))


def _resolve(found: Trace) -> Groups:
    root_of = found.roots()
    roots = {key: root_of[slot.ids] for key, slot in found.slots.items()}
    frozen_roots: dict[int, str] = {}
    for one, reason in found.frozen.items():
        frozen_roots.setdefault(int(root_of[one]), reason)

    # The footprint of a class of merged channels: how many entries of which slots it has.
    footprints: dict[int, list[tuple[tuple[str, int], int]]] = defaultdict(list)
    for key, array in roots.items():
        values, counts = np.unique(array, return_counts=True)
        for root, count in zip(values.tolist(), counts.tolist(), strict=True):
            footprints[root].append((key, count))
    alike: dict[tuple[tuple[tuple[str, int], int], ...], list[int]] = defaultdict(list)
    for root in sorted(footprints):
        if root not in frozen_roots:
            alike[tuple(footprints[root])].append(root)

    groups: list[ChannelGroup] = []
    named: Counter[str] = Counter()
    unit_of_root: dict[int, tuple[int, int]] = {}
    for footprint, units in alike.items():
        produced = [key for key, _ in footprint if found.slots[key].role == "produced"]
        if not produced:
            continue
        for unit, root in enumerate(units):
            unit_of_root[root] = (len(groups), unit)
        first = produced[0][0]
        named[first] += 1
        groups.append(
            ChannelGroup(
                name=first if named[first] == 1 else f"{first}#{named[first]}",
                units=len(units),
                members=tuple(
                    _member(found.slots[key], roots[key], units, count) for key, count in footprint
                ),
            )
        )
    frozen = {}
    for key, slot in found.slots.items():
        stays = {int(r) for r in np.unique(roots[key])} & frozen_roots.keys()
        if slot.role == "produced" and stays:
            frozen[key[0]] = frozen_roots[min(stays)]
    return Groups(
        groups=tuple(groups),
        frozen=frozen,
        group_attributes={
            node.outputs[0].name or "": root_of[ids] for node, ids in found.group_counts.items()
        },
        shape_entries={key: root_of[entry.ids] for key, entry in found.shape_entries.items()},
        unit_of_root=unit_of_root,
    )


def _member(slot: Slot, roots: Array, units: list[int], count: int) -> Member:
    order = np.argsort(roots, kind="stable")
    begins = np.searchsorted(roots[order], units)
    indices = order[begins[:, None] + np.arange(count)[None, :]]
    return Member(
        parameter=slot.value.name or "",
        axis=slot.axis,
        role=slot.role,
        indices=indices,
        norm=slot.norm,
    )
