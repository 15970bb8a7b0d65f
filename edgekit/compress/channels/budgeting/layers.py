"""The layers of a network as plain shapes that can be measured alone, and at other widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.budgeting.costs import weight_of
from edgekit.compress.channels.budgeting.extents import Extents, extents_of
from edgekit.compress.channels.budgeting.ladders import allowed_counts
from edgekit.compress.channels.groups import ChannelGroup
from edgekit.errors import InputError
from edgekit.models.cost.fusion import Runtime, kernels
from edgekit.models.cost.sizes import Forms, forms, sizes_of
from edgekit.models.model import Model, attribute, static_shape
from edgekit.targets import Precision
from edgekit.values import Array, Unknown

Operator = Literal["Conv", "ConvTranspose", "MatMul"]
_GRID = (0.25, 0.5, 0.75, 1.0)
_ACTIVATIONS = ("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One operator with stored weights at one width, and what runs inside its kernel.

    `inner` is what the input has besides batch and channels: its sizes in space for a convolution,
    the rows for a product of matrices (a Gemm has none). `activation` is the operator that follows
    in the same kernel, or empty.
    """

    op: Operator
    batch: int
    channels_in: int
    channels_out: int
    inner: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    activation: str = ""
    precision: Precision = "fp32"

    def __str__(self) -> str:
        kernel = f" {'x'.join(map(str, self.kernel))}" if self.kernel else ""
        stride = f" /{self.strides[0]}" if any(s > 1 for s in self.strides) else ""
        groups = f" in {self.group} groups" if self.group > 1 else ""
        place = f" at {'x'.join(map(str, self.inner))}" if self.inner else ""
        widths = f"{self.channels_in} to {self.channels_out}"
        return f"{self.op}{kernel}{stride} {widths}{groups}{place}"

    def narrowed(self, channels_in: int, channels_out: int, *, whole_groups: bool) -> Layer:
        """The same layer at another width. `whole_groups`: a group keeps its width, some leave."""
        group = self.group * channels_in // self.channels_in if whole_groups else self.group
        return replace(self, channels_in=channels_in, channels_out=channels_out, group=group)

    def to_json(self) -> dict[str, object]:
        """Every field by name, JSON-ready."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def layer_from_json(stored: Mapping[str, Any]) -> Layer:
    """What `Layer.to_json` made. Raises TypeError or KeyError for anything else."""
    if stored["op"] not in get_args(Operator):
        raise KeyError(stored["op"])
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    return Layer(**fields)


@dataclass(frozen=True, kw_only=True)
class PlacedLayer:
    """A layer where it stands in a network: the rows (g,) of what it reads and of what it makes.

    `position` is its kernel's in `models.cost.fusion.kernels`.
    `whole_groups` says that input and output lose the same share and the number of its groups
    follows (depthwise and the like): its widths lie on a line.
    """

    position: int
    layer: Layer
    reads: Array
    makes: Array
    whole_groups: bool

    def grid(self, multiple: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The widths to know it at, rising: of what it reads, and of what it makes.

        Near 25, 50, 75 and 100% of each, at counts that the device likes; one where nothing can
        leave, and one of what it makes where that follows from what it reads.
        """
        layer = self.layer
        per_group = 1 if self.whole_groups else layer.group
        read = _knots(layer.channels_in, multiple, per_group, moves=bool(self.reads.any()))
        if self.whole_groups:
            whole = [n for n in read if not (n * layer.group) % layer.channels_in]
            return tuple(whole), (layer.channels_out,)
        made = _knots(layer.channels_out, multiple, per_group, moves=bool(self.makes.any()))
        return read, made

    def points(self, multiple: int) -> list[list[Layer]]:
        """The layer at every width of its grid: a row for each width that it reads."""
        read, made = self.grid(multiple)
        layer = self.layer
        if self.whole_groups:
            ratio = layer.channels_out / layer.channels_in
            return [[layer.narrowed(n, round(n * ratio), whole_groups=True)] for n in read]
        return [[layer.narrowed(n, m, whole_groups=False) for m in made] for n in read]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network as time sees it: its layers, and the bytes that all other kernels move.

    `other_bytes` is their sum where nothing leaves, `other_row` (g,) its row as in Extents.
    `other_sizes` are the bytes of each of them.
    """

    layers: tuple[PlacedLayer, ...]
    other_bytes: float
    other_row: Array
    other_sizes: tuple[float, ...]


def network_of(
    model: Model, groups: Sequence[ChannelGroup], *,
    runtime: Runtime, batch: int = 1, precision: Precision = "fp32",
) -> Network:  # fmt: skip
    """The Network of a Model. A Conv, ConvTranspose, Gemm or MatMul with a weight is a layer."""
    known = forms(model, batch=batch)
    extents = extents_of(model, groups, known)
    placed: list[PlacedLayer] = []
    sizes: list[float] = []
    row = np.zeros(len(groups))
    for position, kernel in enumerate(kernels(model, runtime)):
        found = _placed(position, kernel.nodes, extents, known)
        if found is not None:
            placed.append(replace(found, layer=replace(found.layer, precision=precision)))
            continue
        moved = [(_nbytes(value, known), value) for value in (*kernel.read, *kernel.written)]
        sizes.append(sum(size for size, _ in moved))
        row += np.sum([size * extents.of(value) for size, value in moved], 0) if moved else 0.0
    total = sum(sizes)
    return Network(
        layers=tuple(placed), other_bytes=total, other_row=row / (total or 1.0),
        other_sizes=tuple(sizes),
    )  # fmt: skip


def _placed(
    position: int, nodes: Sequence[ir.Node], extents: Extents, known: Forms
) -> PlacedLayer | None:  # fmt: skip
    node = nodes[0]
    if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    source, operand = node.inputs[:2]
    weight = weight_of(node, known, extents.fixed)
    if weight is None or source is None or source in extents.fixed or operand is None:
        return None
    activation = next((n.op_type for n in nodes[1:] if n.op_type in _ACTIVATIONS), "")
    if node.op_type in ("Gemm", "MatMul"):
        if attribute(node, "transA", 0) or len(static_shape(weight)) != 2:
            return None
        return _product(position, node, activation, extents, known)
    return _convolution(position, node, activation, extents, known)


def _product(
    position: int, node: ir.Node, activation: str, extents: Extents, known: Forms
) -> PlacedLayer:  # fmt: skip
    source, output = node.inputs[0], node.outputs[0]
    read, made = _sizes(source, known), _sizes(output, known)
    layer = Layer(
        op="MatMul", batch=read[0], channels_in=read[-1], channels_out=made[-1],
        inner=read[1:-1], activation=activation,
    )  # fmt: skip
    return PlacedLayer(
        position=position, layer=layer, reads=extents.of(source), makes=extents.of(output),
        whole_groups=False,
    )  # fmt: skip


def _convolution(
    position: int, node: ir.Node, activation: str, extents: Extents, known: Forms
) -> PlacedLayer:  # fmt: skip
    source, kernel = node.inputs[:2]
    read, made, shape = (_sizes(v, known) for v in (source, node.outputs[0], kernel))
    rank, group = len(shape) - 2, int(attribute(node, "group", 1))
    layer = Layer(
        op="Conv" if node.op_type == "Conv" else "ConvTranspose",
        batch=read[0],
        channels_in=read[1],
        channels_out=made[1],
        inner=read[2:],
        kernel=shape[2:],
        strides=tuple(attribute(node, "strides", (1,) * rank)),
        pads=_pads(node, read, made, shape),
        dilations=tuple(attribute(node, "dilations", (1,) * rank)),
        group=group,
        activation=activation,
    )
    weight = weight_of(node, known, extents.fixed)
    none, name = np.zeros(extents.groups), weight.name or "" if weight is not None else ""
    inner, outer = (1, 0) if node.op_type == "Conv" else (0, 1)
    reads = extents.axis_rows.get((name, inner), none)
    makes = extents.axis_rows.get((name, outer), none)
    whole_groups = group > 1 and node.op_type == "Conv" and not reads.any()
    return PlacedLayer(
        position=position, layer=layer, reads=makes if whole_groups else reads,
        makes=none if whole_groups else makes, whole_groups=whole_groups,
    )  # fmt: skip


def _pads(
    node: ir.Node, read: Sequence[int], made: Sequence[int], shape: Sequence[int]
) -> tuple[int, ...]:
    """The padding, that of `auto_pad` computed: as much as the output's size needs."""
    rank = len(shape) - 2
    given = attribute(node, "pads")
    if given is not None or attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        return tuple(given or (0,) * (2 * rank))
    strides = attribute(node, "strides", (1,) * rank)
    dilations = attribute(node, "dilations", (1,) * rank)
    total = [
        max(0, (out - 1) * step + (size - 1) * spread + 1 - n)
        for n, out, size, step, spread in zip(
            read[2:], made[2:], shape[2:], strides, dilations, strict=True
        )
    ]
    return (*(t // 2 for t in total), *(t - t // 2 for t in total))


def _knots(channels: int, multiple: int, per_group: int, *, moves: bool) -> tuple[int, ...]:
    if not moves:
        return (channels,)
    units = channels // per_group
    counts = np.asarray(allowed_counts(units, multiple, per_group))
    near = {int(counts[np.abs(counts - share * units).argmin()]) for share in _GRID}
    return tuple(count * per_group for count in sorted(near))


def _sizes(value: ir.Value | None, known: Forms) -> tuple[int, ...]:
    found = sizes_of(value, known)
    if isinstance(found, Unknown):
        raise InputError(
            "the sizes of a layer are not known", got=found.reason,
            hint="Export the model with fixed sizes but for the batch.",
        )  # fmt: skip
    return found


def _nbytes(value: ir.Value, known: Forms) -> float:
    form = known.get(value)
    found = form.nbytes if form is not None else None
    return float(found) if isinstance(found, int) else 0.0
