"""Channels of several tensors that can only be removed together, found from the graph alone."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.rules.propagate import trace
from edgekit.compress.channels.rules.trace import Fork, Option, Slot, Trace
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.values import Array

_SPLIT_UP = "its channels meet others so that no unit of them can go alone"


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
class Count:
    """Numbers that follow a cut, in an input (its index) or attribute of the node that makes
    `output`: `written`, of which `counts` has by position the channels (entries, k) that one counts
    (an entry while any of its k stays), or which are indices among the channels `chosen`.
    """

    output: str
    place: int | str
    written: Array
    counts: Mapping[int, Array]
    chosen: Array | None = None

    def largest(self) -> int:
        """The largest id among the channels."""
        arrays = [*self.counts.values(), *([] if self.chosen is None else [self.chosen])]
        return max((int(array.max()) for array in arrays if array.size), default=0)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of a graph; why other channels stay; and what else holds channel counts.

    `frozen` gives a reason for each initializer some of whose output channels stay. Channels stand
    in `numbers` by an id for all that go together; `unit_of_root` says which of those belong to
    which group and unit.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: Mapping[str, str]
    numbers: tuple[Count, ...]
    unit_of_root: Mapping[int, tuple[int, int]]


def find_groups(model: Model) -> Groups:
    """The channel groups of a Model, in the order in which their channels are first made."""
    found = trace(model)
    roots = _decide(found, _merge(np.arange(found.count), found.merged))
    return _resolve(found, roots)


def groups_to_cut(model: Model) -> Groups:
    """As `find_groups`; raises InputError, with the reasons, where there is none."""
    groups = find_groups(model)
    if not groups.groups:
        reasons = sorted(set(groups.frozen.values()))
        raise InputError(
            "no channel of this model can be removed", where=model.name,
            got="; ".join(reasons[:3]) or "no convolution or matrix with constant weights",
            hint="Leave [compress.channels] out of the recipe.",
        )  # fmt: skip
    return groups


def _merge(roots: Array, pairs: Sequence[tuple[Array, Array]]) -> Array:
    """For each id the smallest of all that are merged with it, the pairs included.

    Every round each class takes the smallest class that it touches, then follows it to the end: a
    few rounds, each linear.
    """
    if not pairs:
        return roots
    left = np.concatenate([one.reshape(-1) for one, _ in pairs])
    right = np.concatenate([other.reshape(-1) for _, other in pairs])
    while True:
        a, b = roots[left], roots[right]
        apart = a != b
        if not apart.any():
            return roots
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        parents = np.arange(len(roots))
        np.minimum.at(parents, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(further := parents[parents], parents):
            parents = further
        roots = parents[roots]


def _decide(found: Trace, roots: Array) -> Array:
    """The roots after each fork has gone the way that leaves the most channels to choose from."""
    frozen = np.concatenate([ids for ids, _ in found.frozen] or [np.zeros(0, np.int64)])
    for fork in found.forks:
        stays = np.zeros(len(roots), bool)
        stays[roots[frozen]] = True
        best = max(fork.options, key=lambda option: _choices(fork, roots, stays, option))
        roots = _merge(roots, [_spread(a, b) for a, b in best])
    return roots


def _spread(left: Array, right: Array) -> tuple[Array, Array]:
    a, b = np.broadcast_arrays(left, right)
    return a.reshape(-1), b.reshape(-1)


def _choices(fork: Fork, roots: Array, stays: Array, option: Option) -> int:
    """How many classes of a fork's channels could be removed, each alone, after an option."""
    names = np.unique(roots[fork.cells])
    pairs = []
    for a, b in option:
        left, right = _spread(roots[a], roots[b])
        pairs.append((np.searchsorted(names, left), np.searchsorted(names, right)))
    merged = _merge(np.arange(len(names)), pairs)
    frozen = np.unique(merged[stays[names]])
    return len(np.setdiff1d(np.unique(merged), frozen))


def _resolve(found: Trace, roots: Array) -> Groups:
    entries = {key: _entry_roots(slot, roots) for key, slot in found.slots.items()}
    reason_of: dict[int, str] = {}
    for ids, reason in found.frozen:
        for one in np.unique(roots[ids]).tolist():
            reason_of.setdefault(one, reason)
    alike = _alike(found, roots, entries)
    while True:
        groups, unit_of_root = _groups(found, entries, alike, reason_of)
        stuck = _never_whole(found, roots, unit_of_root, groups) - reason_of.keys()
        if not stuck:
            break
        reason_of |= dict.fromkeys(stuck, _SPLIT_UP)
    frozen = {}
    for key, slot in found.slots.items():
        stays = set(np.unique(roots[slot.cells]).tolist()) & reason_of.keys()
        if slot.role == "produced" and stays:
            frozen[key[0]] = reason_of[min(stays)]
    return Groups(
        groups=groups,
        frozen=frozen,
        numbers=tuple(
            Count(
                output=rewrite.node.outputs[0].name or "", place=rewrite.place,
                written=rewrite.written,
                counts={at: roots[cells] for at, cells in rewrite.counts.items()},
                chosen=None if rewrite.chosen is None else roots[rewrite.chosen],
            )
            for rewrite in found.rewrites.values()
        ),
        unit_of_root=unit_of_root,
    )  # fmt: skip


def _entry_roots(slot: Slot, roots: Array) -> Array:
    """For each entry of a slot the class that it goes with; -1 where it takes several to go."""
    cells = roots[slot.cells]
    return np.where((cells == cells[:, :1]).all(axis=1), cells[:, 0], -1)


def _alike(found: Trace, roots: Array, entries: Mapping[tuple[str, int], Array]) -> Array:
    """A number for each class of channels, the same for those with the same footprint.

    A footprint: how many entries of which slots go with the class, and which numbers count it where
    these may not become 0. A class that no slot has is 0.
    """
    alike = np.zeros(len(roots), np.int64)
    last = 0

    def tell_apart(classes: Array, counts: Array) -> None:
        nonlocal last
        pairs = alike[classes] * (counts.max(initial=0) + 1) + counts
        kinds, kind = np.unique(pairs, return_inverse=True)
        alike[classes] = last + 1 + kind
        last += len(kinds)

    # The parameters of a BatchNormalization have the same entries as the kernel: once is enough.
    for array in {array.tobytes(): array for array in entries.values()}.values():
        tell_apart(*np.unique(array[array >= 0], return_counts=True))
    for rewrite in found.rewrites.values():
        for cells in rewrite.counts.values() if rewrite.separates else ():
            classes = np.unique(roots[cells])
            classes = classes[alike[classes] > 0]
            tell_apart(classes, np.zeros_like(classes))
    return alike


def _groups(
    found: Trace, entries: Mapping[tuple[str, int], Array], alike: Array, frozen: Mapping[int, str]
) -> tuple[tuple[ChannelGroup, ...], dict[int, tuple[int, int]]]:
    """The groups: classes with the same footprint are the units of one."""
    kinds = alike.copy()
    kinds[list(frozen)] = 0
    order = np.argsort(kinds, kind="stable")
    numbers, begins = np.unique(kinds[order], return_index=True)
    units_of = {
        kind: units
        for kind, units in zip(numbers.tolist(), np.split(order, begins[1:]), strict=True)
        if kind
    }
    members: dict[int, list[Member]] = defaultdict(list)
    known: dict[bytes, dict[int, Array]] = {}
    for key, array in entries.items():
        slot = found.slots[key]
        content = array.tobytes()
        if content not in known:
            known[content] = _indices(array, kinds, units_of)
        for kind, indices in known[content].items():
            members[kind].append(
                Member(
                    parameter=key[0], axis=key[1], role=slot.role, norm=slot.norm, indices=indices
                )
            )
    groups: list[ChannelGroup] = []
    named: Counter[str] = Counter()
    unit_of_root: dict[int, tuple[int, int]] = {}
    for kind in sorted(members, key=lambda kind: int(units_of[kind][0])):
        produced = [member for member in members[kind] if member.role == "produced"]
        if not produced:
            continue
        units = units_of[kind].tolist()
        unit_of_root |= {root: (len(groups), unit) for unit, root in enumerate(units)}
        first = produced[0].parameter
        named[first] += 1
        groups.append(
            ChannelGroup(
                name=first if named[first] == 1 else f"{first}#{named[first]}",
                units=len(units),
                members=tuple(members[kind]),
            )
        )
    return tuple(groups), unit_of_root


def _indices(array: Array, kinds: Array, units_of: Mapping[int, Array]) -> dict[int, Array]:
    """For each kind of class that has entries here, the entries of each of its units (units, k)."""
    present = np.unique(kinds[array[array >= 0]])
    by_root = np.argsort(array, kind="stable")
    ordered = array[by_root]
    found = {}
    for kind in present[present > 0].tolist():
        units = units_of[kind]
        begin = np.searchsorted(ordered, units)
        count = int(np.searchsorted(ordered, units[0], "right") - begin[0])
        found[kind] = by_root[begin[:, None] + np.arange(count)[None, :]]
    return found


def _never_whole(
    found: Trace, roots: Array, unit_of_root: Mapping[int, tuple[int, int]],
    groups: Sequence[ChannelGroup],
) -> set[int]:  # fmt: skip
    """Classes that must stay, since together they could empty what takes several of them to go.

    An entry that goes only with several classes, and a number that counts channels, must keep one
    of them. They do where all units of a group are among them, or a class that stays for good.
    """
    stuck: set[int] = set()
    sets = [cells for slot in found.slots.values() for cells in _mixed(roots[slot.cells])]
    for rewrite in found.rewrites.values():
        if rewrite.separates:
            sets += [np.unique(roots[cells]) for cells in rewrite.counts.values()]
    for classes in {tuple(np.unique(cells).tolist()) for cells in sets}:
        places = [unit_of_root.get(root) for root in classes]
        if None in places:
            continue
        units = Counter(place[0] for place in places if place is not None)
        if not any(groups[group].units == count for group, count in units.items()):
            stuck.update(classes)
    return stuck


def _mixed(cells: Array) -> list[Array]:
    """The rows that hold more than one class."""
    rows = cells[(cells != cells[:, :1]).any(axis=1)]
    return list(np.unique(np.sort(rows, axis=1), axis=0)) if len(rows) else []
