"""Samples through the network, and what they show of the tensors with a group's channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from edgekit.compress.channels.evidence.carriers import Carrier, carriers_of
from edgekit.compress.channels.evidence.damage import Damage, state_bytes
from edgekit.compress.channels.groups import ChannelGroup
from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.batch import fixed_batch
from edgekit.models.model import Model, after_step, editable
from edgekit.models.torch_module import GraphModule, torch_module
from edgekit.values import Array

_WHERE = "compress.channels.criterion"
_TENSOR_BYTES = 512 << 20  # of the watched tensors of one batch
_STATE_BYTES = 512 << 20  # of what is summed up about them
_MOST_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Fed:
    """The outputs of some samples, by name, and their labels; rows beyond `count` are dropped."""

    outputs: Mapping[str, Tensor]
    labels: Array | None
    count: int


class Observer(Protocol):
    """Sums up what batches show of some tensors, group by group."""

    def add(self, found: Mapping[str, Tensor], count: int) -> None:
        """Takes in the tensors of one batch of so many samples."""

    def observed(self) -> Mapping[str, Array]:
        """What was seen, by the group's name."""


def device() -> torch.device:
    """Where samples are run: on the first graphics card that torch can use, else on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_batches(module: GraphModule, model: Model, batches: Batches, size: int) -> Iterator[Fed]:
    """The module's outputs for all samples, so many at a time.

    A Model whose batch is fixed gets that many: the last ones are filled up with samples that are
    there already, whose outputs are dropped. Raises InputError for samples that do not fit.
    """
    size = fixed_batch(model) or size
    for begin in range(0, batches.count, size):
        chosen = np.arange(begin, min(begin + size, batches.count))
        batch = batches.pick(np.resize(chosen, size) if fixed_batch(model) else chosen)
        feeds = _checked(batch.inputs, model)
        try:
            outputs = module(*(torch.from_numpy(array).to(device()) for array in feeds))
        except RuntimeError as error:
            raise InputError(
                "the network cannot be run on these samples", where=_WHERE,
                got=str(error).strip().split("\n", 1)[0],
                hint="Look at the shapes of the samples, and at the memory that is left.",
            ) from error  # fmt: skip
        count = len(chosen)
        rows = len(feeds[0])
        kept = {
            name: output[: len(output) * count // rows] if output.ndim and count < rows else output
            for name, output in zip(module.output_names, outputs, strict=True)
        }
        _refuse_infinite(kept)
        yield Fed(
            outputs=kept, count=count,
            labels=None if batch.labels is None else batch.labels[:count],
        )  # fmt: skip


def _checked(inputs: Mapping[str, Array], model: Model) -> list[Array]:
    feeds = []
    for spec in model.inputs:
        array = inputs.get(spec.name)
        fits = array is not None and array.ndim == len(spec.shape) and all(
            not isinstance(want, int) or want == got
            for want, got in zip(spec.shape[1:], array.shape[1:], strict=True)
        )  # fmt: skip
        if array is None or not fits:
            raise InputError(
                "the samples do not fit the model", where=_WHERE,
                got="none" if array is None else f"{spec.name} {array.dtype} {array.shape}",
                wanted=str(spec), hint="Give --data with an array for each input.",
            )  # fmt: skip
        feeds.append(np.ascontiguousarray(array, np.dtype(spec.dtype)))
    return feeds


def _refuse_infinite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f'the tensor "{name}" becomes NaN or infinite on the samples', where=_WHERE,
                hint="Look for an overflow in the model, or for a bad sample.",
            )  # fmt: skip


@torch.no_grad()
def observe_tensors(
    kind: str, model: Model, groups: Sequence[ChannelGroup], batches: Batches, *, seed: int,
    on_fraction: Callable[[float], None],
) -> Iterator[tuple[Sequence[ChannelGroup], Mapping[str, Array]]]:  # fmt: skip
    """Some groups at a time and what was observed of them, as `evidence.gather` says."""
    carriers = {group.name: carriers_of(model, group) for group in groups}
    for name, found in carriers.items():
        if not found:
            raise InputError(
                "no tensor shows the channels of this group", where=name,
                hint="Choose a criterion that looks at the weights, such as l2.",
            )  # fmt: skip
    everything = _names(carriers[group.name] for group in groups)
    watched = _watch(model, everything)
    first = next(run_batches(watched, model, batches.take(1), 1))
    shapes = {name: tuple(first.outputs[name].shape) for name in everything}
    parts = _parts(kind, model, groups, carriers, shapes, batches.count)
    for place, part in enumerate(parts):
        names = _names(carriers[group.name] for group in part)
        module = watched if len(parts) == 1 else _watch(model, names)
        observer = _observer(kind, model, part, carriers, batches.count, seed)
        size = max(1, min(_MOST_AT_ONCE, _TENSOR_BYTES // max(1, _bytes(names, shapes))))
        done = 0
        for fed in run_batches(module, model, batches, size):
            observer.add(fed.outputs, fed.count)
            done += fed.count
            on_fraction((place + done / batches.count) / len(parts))
        yield part, observer.observed()


def _observer(
    kind: str, model: Model, groups: Sequence[ChannelGroup],
    carriers: Mapping[str, Sequence[Carrier]], samples: int, seed: int,
) -> Observer:  # fmt: skip
    mine = {group.name: carriers[group.name] for group in groups}
    if kind == "magnitudes":
        return _Magnitudes(mine)
    if kind == "pooled":
        return _Pooled(mine)
    return Damage(model, groups, mine, samples=samples, seed=seed)


def _watch(model: Model, names: Sequence[str]) -> GraphModule:
    """The network with the named values as further outputs."""
    program = editable(model)
    graph = program.graph
    present = {output.name for output in graph.outputs}
    values = {value.name: value for node in graph for value in node.outputs}
    values.update((value.name, value) for value in graph.inputs)
    graph.outputs.extend(values[name] for name in names if name not in present)
    return torch_module(after_step(model, program, "watch")).to(device())


def _names(carriers: Iterator[Sequence[Carrier]]) -> list[str]:
    return list(dict.fromkeys(one.tensor for some in carriers for one in some))


def _bytes(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of these tensors for one sample, in single precision."""
    return sum(4 * int(np.prod(shapes[name])) for name in names)


def _parts(
    kind: str, model: Model, groups: Sequence[ChannelGroup],
    carriers: Mapping[str, Sequence[Carrier]], shapes: Mapping[str, tuple[int, ...]], samples: int,
) -> list[list[ChannelGroup]]:  # fmt: skip
    """The groups, in their order, cut where one more would take too much memory."""
    parts: list[list[ChannelGroup]] = []
    names: set[str] = set()
    state = 0
    for group in groups:
        more = {one.tensor for one in carriers[group.name]}
        own = state_bytes(model, group, samples) if kind == "damage" else 0
        tensors = _bytes(sorted(names | more), shapes)
        if not parts or tensors > _TENSOR_BYTES or state + own > _STATE_BYTES:
            parts.append([])
            names, state = set(), 0
        parts[-1].append(group)
        names |= more
        state += own
    return parts


class _Magnitudes:
    """The mean absolute value of each channel, over samples and space."""

    def __init__(self, carriers: Mapping[str, Sequence[Carrier]]) -> None:
        self._carriers = carriers
        self._places = sorted({(c.tensor, c.axis) for some in carriers.values() for c in some})
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._count = 0

    def add(self, found: Mapping[str, Tensor], count: int) -> None:
        for place in self._places:
            tensor, axis = found[place[0]], place[1]
            means = tensor.abs().float().movedim(axis, -1).flatten(0, -2).mean(0).double()
            self._sums[place] = self._sums.get(place, torch.zeros_like(means)) + means * count
        self._count += count

    def observed(self) -> Mapping[str, Array]:
        means = {place: (total / self._count).cpu().numpy() for place, total in self._sums.items()}
        return {
            name: np.stack([means[c.tensor, c.axis][c.entries].mean(1) for c in some])
            for name, some in self._carriers.items()
        }


class _Pooled:
    """For each sample the mean of each unit's channels over space."""

    def __init__(self, carriers: Mapping[str, Sequence[Carrier]]) -> None:
        self._carriers = carriers
        self._rows: dict[str, list[Array]] = {name: [] for name in carriers}

    def add(self, found: Mapping[str, Tensor], count: int) -> None:
        places = {(c.tensor, c.axis): c for some in self._carriers.values() for c in some}
        means = {place: _pooled(found[c.tensor], c, count) for place, c in places.items()}
        for name, some in self._carriers.items():
            rows = [means[c.tensor, c.axis][:, c.entries].mean(2) for c in some]
            self._rows[name].append(np.stack(rows, axis=1))

    def observed(self) -> Mapping[str, Array]:
        return {name: np.concatenate(rows) for name, rows in self._rows.items()}


def _pooled(tensor: Tensor, carrier: Carrier, count: int) -> Array:
    """(samples, channels), the mean over all other axes."""
    if not tensor.ndim or len(tensor) % count:
        raise InputError(
            f'the first axis of "{carrier.tensor}" is not the samples', where=_WHERE,
            got=f"shape {tuple(tensor.shape)} for {count} samples",
            hint="Choose another criterion, such as activation.",
        )  # fmt: skip
    channels = tensor.float().movedim(carrier.axis, -1)
    found: Array = channels.reshape(count, -1, channels.shape[-1]).mean(1).cpu().numpy()
    return found
