"""A plan on a user's own `nn.Module`: the same channels leave it that left the graph.

Names are the module's own: an export by edgekit keeps them. A plan of a graph whose exporter
renamed or transposed the weights is refused.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.compress.channels.own.layers import Cut, check_layer, recount
from edgekit.compress.channels.plan import Plan
from edgekit.errors import InputError
from edgekit.models.model import Model, constant_of
from edgekit.values import Array

# What torch's exporter calls a constant that no module holds, such as the ones by which a
# normalisation without weights multiplies (torch 2.13).
_OF_THE_EXPORTER = re.compile(r"val_\d+")

_RENAMED = (
    "Make the plan from the module itself: edgekit's own export keeps its names and the order of "
    "its axes. Weights behind torch.nn.utils.parametrize: remove the parametrizations first."
)


@dataclass
class _Tensor:
    """A tensor of a module, everywhere that it is held: tied weights are held twice."""

    value: Tensor
    names: list[str] = field(default_factory=list)
    places: list[tuple[nn.Module, str]] = field(default_factory=list)

    def replace(self, value: Tensor) -> None:
        """Puts another tensor in every place, a parameter where it was one."""
        if isinstance(self.value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=self.value.requires_grad)
        self.value = value
        for owner, own in self.places:
            kinds: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers, owner.__dict__)
            for held in kinds:
                if own in held:
                    held[own] = value
                    break


def cut_module(module: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the module without the channels that the plan leaves out; its code is the user's.

    The module that is given stays whole: it is the teacher of the copy, and a plan that does not
    fit leaves nothing half cut. Parameters, buffers, tensors that are plain attributes, and the
    numbers of torch's own layers follow; tied weights stay tied. An attention that keeps fewer
    heads than its width holds becomes a `NarrowAttention` with the same parameter names.
    Raises InputError for a tensor that the module does not have, that is too small or of another
    layout, and for a layer whose numbers are not known to follow.
    """
    try:
        found = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            "the module cannot be copied", where=type(module).__name__, got=str(error)[:200],
            hint="Cut a module fresh from its factory, which keeps no results of a pass yet.",
        ) from error  # fmt: skip
    tensors = _tensors_of(found)
    by_name = {name: one for one in tensors for name in one.names}
    wanted = _axes_of(plan, by_name, found)
    cut: dict[nn.Module, dict[str, Cut]] = defaultdict(dict)
    for one in tensors:
        axes = wanted.get(id(one))
        if axes is None:
            continue
        lengths = one.value.shape
        one.replace(_selected(one, axes))
        for owner, own in one.places:
            cut[owner][own] = {axis: (kept, lengths[axis]) for axis, kept in axes.items()}
    names = {layer: name for name, layer in found.named_modules()}
    for layer, members in cut.items():
        recount(layer, names[layer], members)
    for layer in cut:
        check_layer(layer, names[layer])
    return found


def take_weights(module: nn.Module, model: Model) -> int:
    """Gives the module the graph's values by name, in place; how many tensors there were.

    Raises InputError where none has a name of the module's, or one has another shape there.
    """
    by_name = {name: one.value for one in _tensors_of(module) for name in one.names}
    taken = 0
    for name, stored in model.graph.initializers.items():
        tensor, array = by_name.get(name), constant_of(stored)
        if tensor is None or array is None:
            continue
        if tuple(tensor.shape) != array.shape:
            raise InputError(
                f'"{name}" has another shape in the graph than in the module', where=model.name,
                got=f"{array.shape} in the graph", wanted=str(tuple(tensor.shape)), hint=_RENAMED,
            )  # fmt: skip
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.array(array)))
        taken += 1
    if not taken:
        raise InputError(
            "the graph is not that of this module", where=model.name,
            got="no tensor of a name that the module has", hint=_RENAMED,
        )  # fmt: skip
    return taken


def _tensors_of(module: nn.Module) -> list[_Tensor]:
    """Every tensor that the module holds, each once, with all its names and places."""
    found: dict[int, _Tensor] = {}
    seen: set[tuple[int, str]] = set()
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for own, value in _held_by(owner):
            one = found.setdefault(id(value), _Tensor(value))
            one.names.append(f"{prefix}.{own}" if prefix else own)
            if (id(owner), own) not in seen:
                seen.add((id(owner), own))
                one.places.append((owner, own))
    return list(found.values())


def _held_by(owner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for held in (owner._parameters, owner._buffers, owner.__dict__):
        for own, value in held.items():
            if isinstance(value, Tensor):
                yield own, value


def _axes_of(
    plan: Plan, by_name: Mapping[str, _Tensor], module: nn.Module
) -> dict[int, dict[int, Array]]:
    """What to keep of each tensor, by its identity and axis."""
    missing = sorted({n for n, _ in plan.kept if n not in by_name})
    unexplained = [name for name in missing if not _OF_THE_EXPORTER.fullmatch(name)]
    if unexplained or (plan.kept and len(missing) == len({n for n, _ in plan.kept})):
        names = unexplained or missing
        raise InputError(
            "the plan is for another network", where=type(module).__name__,
            got=f"no tensor {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
            wanted="the module that the model was exported from, with the same names",
            hint=_RENAMED,
        )  # fmt: skip
    wanted: dict[int, dict[int, Array]] = defaultdict(dict)
    for (name, axis), kept in plan.kept.items():
        one = by_name.get(name)
        if one is None:
            continue
        before = wanted[id(one)].setdefault(axis, kept)
        if not np.array_equal(before, kept):
            raise InputError(
                "the plan cuts tied weights in two ways", got=", ".join(one.names),
                wanted="the same entries for every name of one tensor",
            )  # fmt: skip
    return dict(wanted)


def _selected(one: _Tensor, axes: Mapping[int, Array]) -> Tensor:
    tensor = one.value.detach()
    for axis, kept in axes.items():
        size = tensor.shape[axis] if axis < tensor.ndim else 0
        if not len(kept) or kept[0] < 0 or kept[-1] >= size or (np.diff(kept) <= 0).any():
            entries = f"entries {kept[0]} to {kept[-1]}" if len(kept) else "no entry"
            raise InputError(
                f'the plan does not fit "{one.names[0]}"', got=f"{entries} of axis {axis}",
                wanted=f"sorted entries of a tensor of {tuple(one.value.shape)}", hint=_RENAMED,
            )  # fmt: skip
        tensor = tensor.index_select(axis, torch.from_numpy(np.array(kept)).to(tensor.device))
    return tensor
