"""Which channels may be scaled without a change of what a network computes, and scaling them.

Between the weights that make a channel and those that read it, an operator f with f(s x) = s f(x)
for s > 0 lets a factor through: what makes the channel is multiplied by s, what reads it divided
(Nagel et al. 2019, Data-Free Quantization, section 4.1). Channels that are added have one factor;
those that meet anything else have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgekit.models.model import (
    Model,
    attribute,
    constant_of,
    editable,
    set_parameter,
    static_shape,
)
from edgekit.models.schedule import captured_by
from edgekit.quantize.placing.anatomy import weight_axis
from edgekit.values import Array

_FROZEN = 0  # the factor that is 1

_LETS_THROUGH = frozenset({
    "Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
    "Identity", "Dropout", "Resize", "Upsample",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Track:
    """The factor of each channel of a value, by id along its channel axis."""

    axis: int
    ids: Array


@dataclass(frozen=True, kw_only=True)
class Scalable:
    """The channels of a network: a Track of values by name, and what weighted nodes read and make.

    Ids are those of classes that have one factor; id 0 is 1. `limits` has the largest value that a
    factor must keep its channel under, for each id that meets a Clip, by the name of the Clip's
    input. `reads` and `makes` are by the name of a weighted node, `added` by that of an Add of
    constants, and `multiplied`, what is read and what is made, by that of a Mul by constants.
    """

    tracks: Mapping[str, Track]
    reads: Mapping[str, Array]
    makes: Mapping[str, Array]
    added: Mapping[str, Track]
    multiplied: Mapping[str, tuple[Array, Track]]
    limits: Mapping[str, float]
    count: int

    def free(self) -> Array:
        """The ids that may have a factor and are tracked somewhere."""
        seen = [np.unique(track.ids) for track in self.tracks.values()]
        found = np.unique(np.concatenate(seen)) if seen else np.zeros(0, np.int64)
        free: Array = found[found != _FROZEN]
        return free


def find_scalable(model: Model) -> Scalable:
    """Which channels of a Model may be scaled."""
    tracer = _Tracer(model)
    for node in model.graph:
        tracer.visit(node)
    for value in model.graph.outputs:
        tracer.freeze(value)
    return tracer.finished()


def scaled(model: Model, scalable: Scalable, factors: Array) -> Model:
    """The Model with each channel multiplied by the factor of its id: it computes the same.

    `factors` are positive, the first one is 1.
    """
    program = editable(model)
    graph = program.graph
    for node in graph:
        name = node.name or ""
        if name in scalable.makes:
            _scale_weight(graph, node, factors[scalable.reads[name]], factors[scalable.makes[name]])
        elif name in scalable.added:
            track = scalable.added[name]
            _scale_constant(graph, node, track.axis, factors[track.ids])
        elif name in scalable.multiplied:
            read, track = scalable.multiplied[name]
            _scale_constant(graph, node, track.axis, factors[track.ids] / factors[read])
    return replace(model, program=program)


def weight_by_input(node: ir.Node, weight: Array) -> Array:
    """The weight (made, read, ...): its channels first as made, then as read by each of these."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return weight
    return np.swapaxes(weight, 0, 1)


def read_ids(node: ir.Node, ids: Array, made: int) -> Array:
    """The ids of what each made channel reads, (made, inputs of its group)."""
    groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
    split = ids.reshape(groups, -1)
    return np.repeat(split, made // groups, axis=0)


def _scale_weight(graph: ir.Graph, node: ir.Node, reads: Array, makes: Array) -> None:
    if (reads == 1).all() and (makes == 1).all():
        return
    value = node.inputs[1]
    weight = constant_of(value)
    assert value is not None
    assert weight is not None
    turned = weight_by_input(node, weight).astype(np.float64)
    factor = makes[:, None] / read_ids(node, reads, len(makes))
    turned = turned * factor.reshape(*factor.shape, *(1,) * (turned.ndim - 2))
    set_parameter(graph, value.name or "", weight_by_input(node, turned).astype(weight.dtype))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant_of(bias)
    if bias is not None and array is not None:
        set_parameter(graph, bias.name or "", (array.reshape(-1) * makes).astype(array.dtype))


def _scale_constant(graph: ir.Graph, node: ir.Node, axis: int, factors: Array) -> None:
    if (factors == 1).all():
        return
    for value in node.inputs:
        array = constant_of(value)
        if value is None or array is None:
            continue
        shape = [1] * len(node.outputs[0].shape or ())
        shape[axis] = -1
        product = array.astype(np.float64) * factors.reshape(shape)
        set_parameter(graph, value.name or "", product.astype(array.dtype))


class _Tracer:
    """Goes through the nodes in order; classes of ids are merged as they meet."""

    def __init__(self, model: Model) -> None:
        self.graph = model.graph
        self.parents = [_FROZEN]
        self.tracks: dict[ir.Value, Track] = {}
        self.reads: dict[str, Array] = {}
        self.makes: dict[str, Array] = {}
        self.added: dict[str, Track] = {}
        self.multiplied: dict[str, tuple[Array, Track]] = {}
        self.limits: dict[str, float] = {}
        self.rules: Mapping[str, Callable[[ir.Node], bool]] = {
            **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), self._weighted),
            **dict.fromkeys(_LETS_THROUGH, self._same),
            **dict.fromkeys(("Add", "Sub"), self._sum),
            **dict.fromkeys(("Mul", "Div"), self._product),
            **dict.fromkeys(("ReduceMean", "ReduceMax"), self._reduced),
            "Clip": self._clip, "Concat": self._concat, "Split": self._split, "Slice": self._slice,
            "Pad": self._pad, "Flatten": self._flatten, "Reshape": self._flatten,
            "Squeeze": self._flatten, "Transpose": self._transpose,
        }  # fmt: skip

    def visit(self, node: ir.Node) -> None:
        """Follows the channels through a node, or freezes them where that cannot be."""
        for value in captured_by(node):
            self.freeze(value)
        rule = None if node.domain else self.rules.get(node.op_type)
        if rule is None or not rule(node):
            for read in node.inputs:
                self.freeze(read)

    def freeze(self, value: ir.Value | None) -> None:
        """Sets the factors of a value's channels to 1."""
        if value is not None and value in self.tracks:
            for one in self.tracks[value].ids.tolist():
                self.merge(one, _FROZEN)

    def merge(self, one: int, other: int) -> None:
        """Gives two ids one factor; the smaller stands for both."""
        a, b = self.find(one), self.find(other)
        self.parents[max(a, b)] = min(a, b)

    def find(self, one: int) -> int:
        """The id that stands for this one."""
        while self.parents[one] != one:
            self.parents[one] = self.parents[self.parents[one]]
            one = self.parents[one]
        return one

    def finished(self) -> Scalable:
        """What was found, with every id that of its class."""
        roots = np.array([self.find(i) for i in range(len(self.parents))])
        classes, numbered = np.unique(roots, return_inverse=True)

        def settled(track: Track) -> Track:
            return replace(track, ids=numbered[track.ids])

        return Scalable(
            tracks={v.name or "": settled(track) for v, track in self.tracks.items()},
            reads={name: numbered[ids] for name, ids in self.reads.items()},
            makes={name: numbered[ids] for name, ids in self.makes.items()},
            added={name: settled(track) for name, track in self.added.items()},
            multiplied={
                name: (numbered[read], settled(track))
                for name, (read, track) in self.multiplied.items()
            },
            limits=self.limits,
            count=len(classes),
        )

    def _fresh(self, count: int) -> Array:
        begin = len(self.parents)
        self.parents += range(begin, begin + count)
        return np.arange(begin, begin + count)

    def _weighted(self, node: ir.Node) -> bool:
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        array, offset = constant_of(weight), constant_of(bias)
        if array is None or not node.name or (bias is not None and offset is None):
            return False
        plain = node.op_type in ("Conv", "MatMul") or (
            node.op_type == "ConvTranspose" and attribute(node, "group", 1) == 1
        ) or (
            node.op_type == "Gemm"
            and not attribute(node, "transA", 0)
            and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
        )  # fmt: skip
        made = array.shape[weight_axis(node)] if array.ndim > 1 else 0
        is_convolution = node.op_type in ("Conv", "ConvTranspose")
        if not plain or not (is_convolution or array.ndim == 2):
            return False
        if not _is_own(weight) or (bias is not None and not _is_own(bias)):
            return False
        if offset is not None and offset.size != made:
            return False
        read = weight_by_input(node, array).shape[1] * int(attribute(node, "group", 1))
        source, output = node.inputs[0], node.outputs[0]
        rank = len(array.shape) if is_convolution else _rank(source)
        if source is None or rank < 2:
            return False
        axis = 1 if is_convolution else rank - 1
        track = self.tracks.get(source)
        if track is not None and (track.axis != axis or len(track.ids) != read):
            self.freeze(source)
            track = None
        self.reads[node.name] = np.zeros(read, np.int64) if track is None else track.ids
        self.makes[node.name] = self._fresh(made)
        self.tracks[output] = Track(axis=axis, ids=self.makes[node.name])
        return True

    def _same(self, node: ir.Node) -> bool:
        track = self._track(node.inputs[0])
        if track is None or any(output.uses() for output in node.outputs[1:]):
            return False
        if node.op_type == "PRelu" and constant_of(node.inputs[1]) is None:
            return False
        if node.op_type in ("Resize", "Upsample"):
            value, made = node.inputs[0], node.outputs[0]
            extrapolates = attribute(node, "coordinate_transformation_mode", "") in (
                "tf_crop_and_resize",
            )
            if extrapolates or _size(value, track.axis) != _size(made, track.axis):
                return False
        self.tracks[node.outputs[0]] = track
        return True

    def _clip(self, node: ir.Node) -> bool:
        track = self._track(node.inputs[0])
        bounds = [constant_of(value) for value in (*node.inputs[1:], None, None)[:2]]
        given = [value is not None for value in (*node.inputs[1:], None, None)[:2]]
        if track is None or any(
            is_given and bound is None for is_given, bound in zip(given, bounds, strict=True)
        ):
            return False
        low, high = bounds
        if low is not None and float(low) != 0:
            return False
        if high is not None:
            if low is None:
                return False
            self.limits[node.inputs[0].name or ""] = float(high)  # type: ignore[union-attr]
        self.tracks[node.outputs[0]] = track
        return True

    def _sum(self, node: ir.Node) -> bool:
        left, right = node.inputs
        constants = [constant_of(left), constant_of(right)]
        if all(constant is None for constant in constants):
            return self._merged(node)
        value, other = (left, right) if constants[0] is None else (right, left)
        track, array = self._track(value), constant_of(other)
        rank = _rank(value)
        if track is None or array is None or not node.name or not _is_own(other, scalar=True):
            return False
        shape = (1,) * (rank - array.ndim) + array.shape
        if len(shape) != rank or shape[track.axis] not in (1, len(track.ids)):
            return False
        self.added[node.name] = self.tracks[node.outputs[0]] = track
        return True

    def _merged(self, node: ir.Node) -> bool:
        tracks = [self._track(value) for value in node.inputs]
        first = tracks[0]
        if first is None or any(_rank(v) != _rank(node.outputs[0]) for v in node.inputs):
            return False
        for track in tracks[1:]:
            if track is None or track.axis != first.axis or len(track.ids) != len(first.ids):
                return False
        for track in tracks[1:]:
            assert track is not None
            for one, other in zip(first.ids.tolist(), track.ids.tolist(), strict=True):
                self.merge(one, other)
        self.tracks[node.outputs[0]] = first
        return True

    def _by_constant(self, node: ir.Node) -> bool:
        """A constant factor, the same everywhere or one for each channel, can take up any other."""
        left, right = node.inputs
        value, constant = (left, right) if constant_of(left) is None else (right, left)
        array = constant_of(constant)
        rank = _rank(value)
        if value is None or array is None or not node.name or not _is_own(constant, scalar=True):
            return False
        track = self._track(value)
        axis = 1 if track is None else track.axis
        size = _size(value, axis)
        shape = (1,) * (rank - array.ndim) + array.shape
        plain = all(n == 1 or (i == axis and n == size) for i, n in enumerate(shape))
        if rank < 3 or len(shape) != rank or size is None or not plain or not array.all():
            return False
        read = np.zeros(size, np.int64) if track is None else track.ids
        made = Track(axis=axis, ids=self._fresh(size))
        self.multiplied[node.name] = read, made
        self.tracks[node.outputs[0]] = made
        return True

    def _product(self, node: ir.Node) -> bool:
        """What is multiplied by something that has no factor keeps its own."""
        left, right = node.inputs
        if node.op_type == "Mul" and self._by_constant(node):
            return True
        sides = [self._track(left), self._track(right)]
        free = [s is not None and any(self.find(i) for i in s.ids.tolist()) for s in sides]
        which = 1 if free[1] and not free[0] and node.op_type == "Mul" else 0
        track, value = sides[which], node.inputs[which]
        if all(free) or free[1 - which] or track is None or value is None:
            return False
        if _rank(value) != _rank(node.outputs[0]) or not _rank(value):
            return False
        if _size(node.outputs[0], track.axis) != len(track.ids):
            return False
        self.tracks[node.outputs[0]] = track
        return True

    def _reduced(self, node: ir.Node) -> bool:
        track = self._track(node.inputs[0])
        listed = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = attribute(node, "axes") if listed is None else listed
        rank = _rank(node.inputs[0])
        if track is None or axes is None or not rank or not attribute(node, "keepdims", 1):
            return False
        if track.axis in {int(axis) % rank for axis in np.atleast_1d(axes)}:
            return False
        self.tracks[node.outputs[0]] = track
        return True

    def _concat(self, node: ir.Node) -> bool:
        tracks = [self._track(value) for value in node.inputs]
        axis = int(attribute(node, "axis", 0)) % max(_rank(node.outputs[0]), 1)
        if any(track is None for track in tracks):
            # What has no track goes through with the factor 1.
            known = [t for t in tracks if t is not None]
            sizes = [_size(value, axis) or 0 for value in node.inputs]
            if not known or known[0].axis != axis or not all(sizes):
                return False
            tracks = [
                Track(axis=axis, ids=np.zeros(size, np.int64)) if track is None else track
                for track, size in zip(tracks, sizes, strict=True)
            ]
        found = [track for track in tracks if track is not None]
        if any(track.axis != found[0].axis for track in found):
            return False
        if found[0].axis != axis:
            return self._merged(node)
        ids = np.concatenate([track.ids for track in found])
        self.tracks[node.outputs[0]] = Track(axis=axis, ids=ids)
        return True

    def _split(self, node: ir.Node) -> bool:
        track = self._track(node.inputs[0])
        rank = _rank(node.inputs[0])
        if track is None or not rank:
            return False
        axis = int(attribute(node, "axis", 0)) % rank
        begin = 0
        for output in node.outputs:
            if axis != track.axis:
                self.tracks[output] = track
                continue
            size = _size(output, axis)
            if size is None:
                return False
            self.tracks[output] = Track(axis=axis, ids=track.ids[begin : begin + size])
            begin += size
        return True

    def _slice(self, node: ir.Node) -> bool:
        track = self._track(node.inputs[0])
        rank = _rank(node.inputs[0])
        bounds = [constant_of(value) for value in node.inputs[1:]]
        if track is None or not rank or len(bounds) < 2 or any(b is None for b in bounds):
            return False
        starts, ends, *rest = [np.atleast_1d(b).tolist() for b in bounds if b is not None]
        axes = rest[0] if rest else range(len(starts))
        steps = rest[1] if len(rest) > 1 else [1] * len(starts)
        ids = track.ids
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if axis % rank == track.axis:
                if step < 0:
                    return False
                ids = ids[start:end:step]
        if not len(ids):
            return False
        self.tracks[node.outputs[0]] = replace(track, ids=ids)
        return True

    def _pad(self, node: ir.Node) -> bool:
        track = self._track(node.inputs[0])
        value = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
        filled = len(node.inputs) > 2 and node.inputs[2] is not None
        if track is None or (filled and (value is None or value.any())):
            return False
        if attribute(node, "mode", "constant") != "constant":
            return False
        before, after = _size(node.inputs[0], track.axis), _size(node.outputs[0], track.axis)
        pads = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        if pads is None or before is None:
            return False
        rank = _rank(node.inputs[0])
        if len(pads) != 2 * rank or (after is not None and after < before):
            return False
        first, last = int(pads[track.axis]), int(pads[rank + track.axis])
        if min(first, last) < 0:
            return False
        # Zeros stay zeros, whatever factor their channel has.
        ids = np.concatenate([self._fresh(first), track.ids, self._fresh(last)])
        self.tracks[node.outputs[0]] = Track(axis=track.axis, ids=ids)
        return True

    def _flatten(self, node: ir.Node) -> bool:
        """(n, c, ...) to (n, c * ...), with the numbers of a channel in a row."""
        value, output = node.inputs[0], node.outputs[0]
        track = self._track(value)
        sizes = [_size(value, axis) for axis in range(1, _rank(value))]
        if track is None or track.axis != 1 or any(size is None for size in sizes):
            return False
        rest = math.prod(size for size in sizes[1:] if size is not None)
        if _rank(output) != 2 or _size(output, 1) != len(track.ids) * rest:
            return False
        self.tracks[output] = Track(axis=1, ids=np.repeat(track.ids, rest))
        return True

    def _transpose(self, node: ir.Node) -> bool:
        track = self._track(node.inputs[0])
        rank = _rank(node.inputs[0])
        order = list(attribute(node, "perm", range(rank)[::-1]))
        if track is None or not rank:
            return False
        self.tracks[node.outputs[0]] = replace(track, axis=order.index(track.axis))
        return True

    def _track(self, value: ir.Value | None) -> Track | None:
        return None if value is None else self.tracks.get(value)


def _is_own(value: ir.Value | None, *, scalar: bool = False) -> bool:
    """Whether a constant is an initializer that one node reads and nobody else."""
    if value is None or not value.is_initializer() or value.is_graph_output():
        return False
    return len(list(value.uses())) == 1 and (scalar or bool(static_shape(value)))


def _rank(value: ir.Value | None) -> int:
    return 0 if value is None or value.shape is None else len(value.shape)


def _size(value: ir.Value | None, axis: int) -> int | None:
    if value is None or value.shape is None or axis >= len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None
