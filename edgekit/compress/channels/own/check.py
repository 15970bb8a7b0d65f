"""Whether a user's cut module computes what the cut graph computes, and if not, why not."""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgekit.compress.channels.own.blame import (
    bare_numbers,
    first_line,
    other_numbers,
    written_width,
)
from edgekit.compress.channels.own.code import (
    Call,
    Line,
    Recorder,
    Suspect,
    failing_line,
    line_of,
    suspects,
)
from edgekit.compress.channels.own.module import take_weights
from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, editable
from edgekit.values import Array, Feeds, TensorSpec

TOLERANCE = 1e-4  # of max|a - b| / max|b|

Compute = Callable[[Model, Feeds], Mapping[str, Array]]

# No multiple of this is the size of a batch, so that a `view` with a width written into it fails
# where it stands, and does not turn samples into channels.
_BATCH = 7


def verify_module(cut: nn.Module, whole: nn.Module, model: Model, compute: Compute) -> float:
    """The relative error between a cut module and the cut graph, whose weights it takes, in place.

    Both run on the same random inputs of the model's shapes, in evaluation mode; `whole` is the
    module before the cut, and `compute` gives a Model's outputs by name. Raises InputError where
    the module does not run, which names the line that has a width written into it, and where the
    error is above the tolerance, which names the first layer that differs.
    """
    if _kind(cut)[1] == torch.float32:
        return _verified(cut, whole, model, compute)
    # Halves cannot be compared to 1e-4: the check is in full precision.
    types = [one.dtype for one in (*cut.parameters(), *cut.buffers())]
    try:
        return _verified(cut.float(), copy.deepcopy(whole).float(), model, compute)
    finally:
        for one, dtype in zip((*cut.parameters(), *cut.buffers()), types, strict=True):
            one.data = one.data.to(dtype)


def _verified(cut: nn.Module, whole: nn.Module, model: Model, compute: Compute) -> float:
    take_weights(cut, model)
    feeds = _noise(model.inputs)
    found = run_cut(cut, whole, list(feeds.values()))
    expected = list(compute(model, feeds).values())
    leaves = [
        one.detach().cpu().numpy() for one in pytree.tree_leaves(found) if torch.is_tensor(one)
    ]
    if len(leaves) != len(expected):
        raise InputError(
            "the module has another number of outputs than the graph", where=model.name,
            got=str(len(leaves)), wanted=str(len(expected)),
        )  # fmt: skip
    error = max(map(_relative_error, leaves, expected))
    if not error <= TOLERANCE:
        raise _difference(cut, whole, model, feeds, compute, error)
    return error


def run_cut(cut: nn.Module, whole: nn.Module, inputs: Sequence[Array]) -> Any:
    """What the cut module returns for the inputs, in evaluation mode.

    Layers that have a width and no weights (a LayerNorm without them) get the width of what they
    are given. Raises InputError where the forward pass fails, with the line to change.
    """
    given = [_as_tensor(one, *_kind(cut)) for one in inputs]
    try:
        with _evaluating(cut), _adopting_widths(cut):
            return cut(*given)
    except Exception as error:  # the user's own code, which may raise anything
        line = failing_line(error.__traceback__)
        found = _suspects(cut, whole, given)
        raise written_width(cut, error, line, found) from error


def _suspects(cut: nn.Module, whole: nn.Module, given: Sequence[Tensor]) -> list[Suspect]:
    """The suspected lines of a pass. Raises InputError where the module never took these inputs."""
    before, error = _recorded(whole, given)
    if error is not None:
        shapes = ", ".join(str(tuple(one.shape)) for one in given)
        raise InputError(
            "the module does not take these inputs", where=type(whole).__name__,
            got=f"{shapes}: {type(error).__name__}: {first_line(error)}",
            wanted="one input for each argument of forward, in its order",
        ) from error  # fmt: skip
    after, _ = _recorded(cut, given)
    return suspects(before, after)


def _recorded(module: nn.Module, given: Sequence[Tensor]) -> tuple[list[Call], Exception | None]:
    """The calls of a pass as far as it went, and what it raised, if it did."""
    calls = Recorder()
    try:
        with _evaluating(module), calls:
            module(*given)
    except Exception as error:  # the user's own code, which may raise anything
        return calls.calls, error
    return calls.calls, None


def _difference(
    cut: nn.Module, whole: nn.Module, model: Model, feeds: Feeds, compute: Compute, error: float
) -> InputError:
    """Why the numbers differ although the cut module runs: suspected lines, the first layer."""
    given = [_as_tensor(one, *_kind(cut)) for one in feeds.values()]
    found = _suspects(cut, whole, given)
    layer = _first_that_differs(cut, model, feeds, compute)
    widths = {
        before
        for one, other in zip(whole.parameters(), cut.parameters(), strict=True)
        for before, after in zip(one.shape, other.shape, strict=True)
        if before != after
    }
    said = [f"relative error {error:.2g}, wanted at most {TOLERANCE:g}"]
    if layer is not None:
        said.append(f"the first layer that differs is {layer[0]}, called at {layer[1]}")
    if not found:
        said.append(f"numbers of that size in modules: {', '.join(bare_numbers(cut, widths))}")
    place = str(layer[1]) if layer is not None else model.name
    return other_numbers(found, "; ".join(said), place)


def _first_that_differs(
    cut: nn.Module, model: Model, feeds: Feeds, compute: Compute
) -> tuple[str, Line | None] | None:
    """The first layer, in the order of the pass, whose output is not that of its node.

    An export by edgekit names a node after its module: `layer1.0.conv1/Conv`. A layer that runs
    twice has nodes that cannot be told apart, and is passed over.
    """
    made: dict[str, str] = {}
    for node in model.graph:
        path, slash, _ = (node.name or "").rpartition("/")
        if slash and node.outputs[0].name:
            made[path] = node.outputs[0].name
    seen: dict[str, list[tuple[Tensor, Line | None]]] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            del layer, inputs
            if torch.is_tensor(output):
                seen.setdefault(path, []).append((output, line_of(sys._getframe(1))))

        return hook

    layers = [(path, one) for path, one in cut.named_modules() if path in made]
    hooks = [one.register_forward_hook(note(path)) for path, one in layers]
    try:
        with _evaluating(cut):
            cut(*(_as_tensor(one, *_kind(cut)) for one in feeds.values()))
    finally:
        for hook in hooks:
            hook.remove()
    graph = compute(_tapped(model, [made[path] for path in seen]), feeds)
    for path, outputs in seen.items():
        if len(outputs) > 1:
            continue
        output, line = outputs[0]
        if not _relative_error(output.detach().cpu().numpy(), graph[made[path]]) <= TOLERANCE:
            return f'"{path}"', line
    return None


def _tapped(model: Model, names: Sequence[str]) -> Model:
    """The Model with the named values as further outputs."""
    program = editable(model)
    values = {value.name: value for node in program.graph for value in node.outputs}
    present = {value.name for value in program.graph.outputs}
    program.graph.outputs.extend(values[name] for name in names if name not in present)
    return after_step(model, program, "tap")


def _noise(inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Seeded random inputs; a dynamic first axis is `_BATCH` long. Other sizes must be known."""
    rng = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for spec in inputs:
        shape = [_BATCH if axis == 0 and isinstance(size, str) else size
                 for axis, size in enumerate(spec.shape)]  # fmt: skip
        sizes = [size for size in shape if isinstance(size, int)]
        if len(sizes) < len(shape):
            raise InputError(
                "the module cannot be checked on inputs of an unknown size", where=str(spec),
                wanted="a model whose sizes are known, the batch apart",
                hint="Export it with fixed sizes for the check.",
            )  # fmt: skip
        array = rng.normal(size=sizes) if "float" in spec.dtype else rng.integers(0, 2, sizes)
        found[spec.name] = array.astype(spec.dtype)
    return found


def _as_tensor(array: Array, device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array).to(device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _kind(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode and without gradients; afterwards as it was."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, mode in modes:
            layer.training = mode


@contextlib.contextmanager
def _adopting_widths(module: nn.Module) -> Iterator[None]:
    """Meanwhile normalisations without weights take the width of what they are given, for good."""

    def adopt(layer: Any, inputs: tuple[Any, ...]) -> None:
        if not inputs or not torch.is_tensor(inputs[0]):
            return
        if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            layer.normalized_shape = tuple(inputs[0].shape[-len(layer.normalized_shape) :])
        elif isinstance(layer, nn.GroupNorm):
            layer.num_channels = inputs[0].shape[1]
        else:
            layer.num_features = inputs[0].shape[1]

    kinds = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    bare = [
        layer for layer in module.modules()
        if isinstance(layer, kinds) and not any(True for _ in layer.parameters(recurse=False))
        and not any(True for _ in layer.buffers(recurse=False))
    ]  # fmt: skip
    hooks = [layer.register_forward_pre_hook(adopt) for layer in bare]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _relative_error(found: Array, expected: Array) -> float:
    """max|a - b| / max|b|; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(a - b).max(initial=0.0) / (np.abs(b).max(initial=0.0) or 1.0))
