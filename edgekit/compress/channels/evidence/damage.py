"""What removing channels does to the outputs of the weights that read them, as a quadratic form.

A reader's output is y = sum_u y_u and its bias, y_u = W_u x_u what it makes of unit u: x_u the
inputs under its kernel, W_u their weights. Without the units of a 0/1 vector s it loses
sum_u s_u y_u. The mean of that a bias gives back, or a BatchNormalization whose statistics are
estimated anew; the mean square of what is left is s' D s:

    D[u, v] = cov(y_u, y_v) = sum_{i in u, j in v} (W' W)[i, j] C[i, j],    C = cov(x)

over the entries i, j of the im2col inputs x (a channel at a kernel place). Only C, or D itself
where that is less work, is summed up over the samples, at places in space that are drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgekit.compress.channels.evidence.carriers import Carrier, Product, readers_of
from edgekit.compress.channels.groups import ChannelGroup
from edgekit.models.model import Model, static_shape
from edgekit.models.operators import Mode, Op
from edgekit.models.operators.convolution import conv, conv_transpose
from edgekit.values import Array

PLACES = 16
"""At so many places in space, or tokens, a sample is looked at; everywhere if it has fewer."""

_CHUNK_BYTES = 128 << 20


@dataclass(frozen=True)
class _Extent:
    """Sizes of one reader's work for one group, to choose how to do it."""

    groups: int
    outputs: int
    units: int
    entries: int  # of a unit in each group of the convolution, kernel places included
    rows: int

    @property
    def sums_inputs(self) -> bool:
        """Whether C costs less to sum up than the products y_u . y_v themselves.

        It does unless a unit has very many entries, as a channel that was flattened over space.
        """
        columns = self.units * self.entries
        by_inputs = (self.rows + self.outputs) * columns**2
        by_outputs = self.rows * self.outputs * (columns + self.units**2)
        return by_inputs <= by_outputs

    @property
    def state_bytes(self) -> int:
        """Of what is kept from batch to batch."""
        if self.sums_inputs:
            return 4 * self.groups * (self.units * self.entries) ** 2
        return 4 * self.units**2


def state_bytes(model: Model, group: ChannelGroup, samples: int) -> int:
    """How much is kept from batch to batch to observe the group."""
    found = 8 * group.units**2
    for reader in readers_of(model, group):
        product = reader.product
        kernel = int(np.prod(static_shape(product.stored)[2:]))
        entries = -(-reader.entries.shape[1] // product.groups) * kernel
        outputs = static_shape(product.stored)[product.permutation[product.axes[0]]]
        extent = _Extent(product.groups, outputs, group.units, entries, samples * PLACES)
        found += extent.state_bytes
    return found


class Damage:
    """The form D of each group, summed over its readers, as a share of each reader's var(y).

    Of a group that no weight reads, D is diagonal: the units' shares of the mean square of the
    tensors that carry them.
    """

    def __init__(
        self, model: Model, groups: Sequence[ChannelGroup],
        carriers: Mapping[str, Sequence[Carrier]], *, samples: int, seed: int,
    ) -> None:  # fmt: skip
        self._opset = model.opset
        self._generator = torch.Generator().manual_seed(seed)
        self._samples = samples
        self._readings: dict[tuple[ir.Node, int], _Reading] = {}
        self._unread: dict[str, list[tuple[Carrier, Array]]] = {}
        self._groups = groups
        for group in groups:
            readers = readers_of(model, group)
            if not readers:
                zeros = np.zeros(group.units)
                self._unread[group.name] = [(c, zeros.copy()) for c in carriers[group.name]]
            for reader in readers:
                key = reader.product.node, reader.product.place
                reading = self._readings.setdefault(key, _Reading(reader.product, model.opset))
                reading.watch(group.name, reader.entries)

    def add(self, found: Mapping[str, Tensor], count: int) -> None:
        """Takes in the tensors of one batch."""
        for reading in self._readings.values():
            reading.add(found[reading.tensor], self._samples, self._generator)
        for carrier, sums in (one for some in self._unread.values() for one in some):
            squares = found[carrier.tensor].float().square()
            means = squares.movedim(carrier.axis, -1).flatten(0, -2).mean(0).double()
            np.add(sums, count * means.cpu().numpy()[carrier.entries].sum(1), out=sums)

    def observed(self) -> Mapping[str, Array]:
        """D (units, units) by the group's name."""
        forms = {
            name: sum((np.diag(_share(sums, sums.sum())) for _, sums in some), np.zeros(()))
            for name, some in self._unread.items()
        }
        for group in self._groups:
            for reading in self._readings.values():
                if group.name in reading.pieces:
                    forms[group.name] = forms.get(group.name, 0.0) + reading.form(group.name)
        return forms


def _share(part: Array, whole: float) -> Array:
    return part / whole if whole > 0 else np.zeros_like(part)


class _Reading:
    """One reader's inputs, as rows under its kernel, and what the groups' units make of them."""

    def __init__(self, product: Product, opset: int) -> None:
        self._product = product
        self._opset = opset
        source = product.source
        self.tensor = "" if source is None else source.name or ""
        self._weight = torch.tensor(product.weight(), dtype=torch.float32)
        self._kernels: dict[tuple[int, ...], Tensor] = {}
        self._squares = 0.0
        self._first: Tensor | None = None  # about what is summed up, so that little cancels
        self._sums: Tensor | None = None
        self._count = 0
        self.pieces: dict[str, _Piece] = {}

    def watch(self, name: str, entries: Array) -> None:
        """Has the units observed whose channels among the inputs are `entries` (units, k)."""
        groups, inputs = self._weight.shape[0], self._weight.shape[2]
        columns = _columns(entries, groups, inputs)
        if name in self.pieces:  # one weight reads it in two places of its own input
            columns = np.concatenate([self.pieces[name].columns.numpy(), columns], axis=2)
        self.pieces[name] = _Piece(columns, self._weight)

    def add(self, x: Tensor, samples: int, generator: torch.Generator) -> None:
        rows = self._rows(x.float(), generator)  # (groups, rows, inputs, places)
        if self._first is None:
            self._first = rows.mean(1, keepdim=True)
        rows = rows - self._first
        made = rows.flatten(2) @ self._weight.to(x.device).flatten(2).mT
        self._squares += float(made.square().sum(dtype=torch.float64))
        sums = rows.sum(1, keepdim=True, dtype=torch.float64)
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += rows.shape[1]
        for piece in self.pieces.values():
            piece.add(rows, samples * PLACES)

    def form(self, name: str) -> Array:
        """(units, units), a share of the variance of the whole output."""
        assert self._sums is not None
        mean = (self._sums / self._count).float().cpu()
        made = mean.flatten(2) @ self._weight.flatten(2).mT
        variance = self._squares / self._count - float(made.square().sum(dtype=torch.float64))
        piece = self.pieces[name]
        means = piece.made_of(mean)
        return _share(piece.form() / self._count - means @ means.T, variance)

    def _rows(self, x: Tensor, generator: torch.Generator) -> Tensor:
        groups, inputs = self._weight.shape[0], self._weight.shape[2]
        if not self._product.convolves:
            rows = x.movedim(self._product.source_axis, -1).flatten(0, -2)
            most = PLACES * max(1, len(x))
            rows = rows[_drawn(len(rows), most, generator)]
            return rows[None, :, :, None]
        kernels = self._kernel_places(tuple(x.shape[2:]))
        drawn = kernels[_drawn(len(kernels), PLACES, generator)].to(x.device)
        space = torch.nn.functional.pad(x.flatten(2), (0, 1))  # the last is outside: 0
        rows = space[:, :, drawn]  # (samples, channels, drawn, places)
        split = rows.reshape(len(x), groups, inputs, *rows.shape[2:])
        return split.permute(1, 0, 3, 2, 4).flatten(1, 2)

    def _kernel_places(self, sizes: tuple[int, ...]) -> Tensor:
        """(outputs in space, kernel places): where in flattened space each reads, -1 outside.

        The operator itself says it, when it is run over numbered places with a kernel for each of
        its places that is 1 there and 0 elsewhere.
        """
        if sizes not in self._kernels:
            node, groups = self._product.node, self._product.groups
            kernel = static_shape(self._product.stored)[2:]
            places = int(np.prod(kernel))
            numbered = torch.arange(1.0, 1.0 + int(np.prod(sizes)), dtype=torch.float64)
            each = torch.eye(places, dtype=torch.float64).reshape(places, 1, *kernel)
            if node.op_type == "ConvTranspose":
                each = each.swapaxes(0, 1).repeat(groups, *(1,) * (len(kernel) + 1))
            else:
                each = each.repeat(groups, *(1,) * (len(kernel) + 1))
            op = Op(node, (None,) * len(node.inputs), self._opset, Mode())
            run = (conv if node.op_type == "Conv" else conv_transpose)(op)
            found = run(numbered.reshape(1, 1, *sizes).expand(1, groups, *sizes), each)
            self._kernels[sizes] = found[0, :places].flatten(1).mT.round().long() - 1
        return self._kernels[sizes]


def _drawn(count: int, most: int, generator: torch.Generator) -> Tensor | slice:
    """Indices of at most so many of `count`, none twice."""
    if count <= most:
        return slice(None)
    return torch.randperm(count, generator=generator)[:most].sort().values


def _columns(entries: Array, groups: int, inputs: int) -> Array:
    """(groups, units, e): each unit's inputs in each group of a convolution, `inputs` for none."""
    units, each = entries.shape
    group, column = np.divmod(entries.reshape(-1), inputs)
    key = group * units + np.repeat(np.arange(units), each)
    order = np.argsort(key, kind="stable")
    counts = np.bincount(key, minlength=groups * units)
    place = np.arange(len(key)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.full((groups * units, counts.max()), inputs)
    found[key[order], place] = column[order]
    return found.reshape(groups, units, -1)


class _Piece:
    """One group's part in a reader: its inputs' columns and what was summed up about them."""

    def __init__(self, columns: Array, weight: Tensor) -> None:
        self.columns = torch.from_numpy(columns)
        groups, outputs, _, places = weight.shape
        self._units = columns.shape[1]
        # (groups, outputs, units * entries), a unit's entries side by side
        self._weight = _picked(weight, self.columns)
        self._shape = groups, outputs, self._units, columns.shape[2] * places
        self._extent: _Extent | None = None
        self._sums: Tensor | None = None

    def add(self, rows: Tensor, expected_rows: int) -> None:
        own = _picked(rows, self.columns.to(rows.device))
        if self._extent is None:
            self._extent = _Extent(*self._shape, expected_rows)
        sums = own.mT @ own if self._extent.sums_inputs else self._of_outputs(own)
        self._sums = sums if self._sums is None else self._sums.add_(sums)

    def _of_outputs(self, own: Tensor) -> Tensor:
        """sum over rows of y_u . y_v (units, units), chunk by chunk."""
        groups, outputs, units, entries = self._shape
        weight = self._weight.to(own.device).reshape(groups, outputs, units, entries)
        by_unit = weight.permute(0, 2, 3, 1)  # (groups, units, entries, outputs)
        most = max(1, _CHUNK_BYTES // (4 * groups * units * outputs))
        found = own.new_zeros(units, units)
        rows = own.reshape(groups, -1, units, entries)
        for begin in range(0, rows.shape[1], most):
            some = rows[:, begin : begin + most]
            made = (some.permute(0, 2, 1, 3) @ by_unit).flatten(2)  # (groups, units, rows outputs)
            found += (made @ made.mT).sum(0)
        return found

    def made_of(self, rows: Tensor) -> Array:
        """y_u (units, groups * outputs) of one row (groups, 1, inputs, places)."""
        groups, outputs, units, entries = self._shape
        own = _picked(rows, self.columns).reshape(groups, units, entries)
        weight = self._weight.reshape(groups, outputs, units, entries)
        found: Array = torch.einsum("gue,goue->ugo", own, weight).flatten(1).double().numpy()
        return found

    def form(self) -> Array:
        """sum over rows of y_u . y_v (units, units), in double precision."""
        assert self._sums is not None
        assert self._extent is not None
        if not self._extent.sums_inputs:
            whole: Array = self._sums.double().cpu().numpy()
            return whole
        _, _, units, entries = self._shape
        found = np.zeros((units, units))
        for sums, weight in zip(self._sums.cpu(), self._weight, strict=True):
            both = (sums * (weight.mT @ weight)).reshape(units, entries, units, entries)
            found += both.sum((1, 3), dtype=torch.float64).numpy()
        return found


def _picked(parts: Tensor, columns: Tensor) -> Tensor:
    """(groups, m, inputs, places) to (groups, m, units * e * places), 0 where there is no input."""
    groups, rows, inputs, places = parts.shape
    flat = columns.flatten(1)
    if flat.shape[1] == inputs and bool((flat == torch.arange(inputs, device=flat.device)).all()):
        return parts.flatten(2)  # all of them, in their order: nothing is copied
    padded = torch.nn.functional.pad(parts, (0, 0, 0, 1))
    chosen = flat[:, None, :, None].expand(groups, rows, -1, places)
    return padded.gather(2, chosen).flatten(2)
