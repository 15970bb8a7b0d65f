"""How the loss changes, to first order, as each unit goes.

With a gate z_u on what the readers of unit u see of it (1 now, 0 once it is gone), the first-order
change of the loss L is dL/dz_u. A reader is linear in its weights, so that

    dL/dz_u = sum over the entries w of u in the weights that read it of  w dL/dw

and of a unit that no weight reads (queries and keys), the same sum over the weights and biases that
make it, or over the gamma and beta of the BatchNormalization behind them. Molchanov et al.,
"Importance Estimation for Neural Network Pruning" (2019), equations 7 and 8: a unit's score is the
mean of (dL/dz_u)^2.

Where there are labels, L is the cross-entropy with them. Where there are none, the distance to the
original's own outputs would do, but its gradient vanishes at the original. Its second derivative
does not, and that is the mean square of the gradients of a likelihood whose targets are drawn from
the model's own predictions (the Fisher information):

- class scores (n, classes), p = softmax(scores / T):  labels drawn from p; E[(dL/dz)^2] is the
  curvature of the Kullback-Leibler distance between the original and the gated network. A trained
  network is sure of most samples, which then say nothing at T = 1; softened, as in distillation,
  all of them do;
- any other output y:  L = e . y / rms(y) with e drawn from the normal distribution; E[(dL/dz)^2] is
  |dy/dz|^2, the curvature of the squared distance.

Draws of different samples are independent, so that the square of a batch's sum is the sum of the
samples' squares but for noise, the less the smaller the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.compress.channels.evidence.carriers import norms_of, readers_of
from edgekit.compress.channels.evidence.stream import Fed, device, run_batches
from edgekit.compress.channels.groups import ChannelGroup
from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.models.torch_module import torch_module
from edgekit.values import Array

BATCH = 4
TEMPERATURE = 4.0

# Whose entries along which axis make a unit's gate: (initializer, axis, indices (units, k)).
Gate = tuple[str, int, Array]


def observe_changes(
    model: Model, groups: Sequence[ChannelGroup], batches: Batches, *, seed: int,
    on_fraction: Callable[[float], None],
) -> Mapping[str, Array]:  # fmt: skip
    """The mean over samples of (dL/dz_u)^2 of each group's units, by the group's name.

    Raises InputError for labels that are not classes of the output, where the samples do not fit
    the Model, and where an output becomes NaN or infinite.
    """
    module = torch_module(model).to(device())
    stored = module.parameters_by_name()
    gates = {group.name: _gates(model, group) for group in groups}
    places = sorted({(name, axis) for some in gates.values() for name, axis, _ in some})
    names = sorted({name for name, _ in places})
    for name in names:
        stored[name].requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    sums = {group.name: np.zeros(group.units) for group in groups}
    done = 0
    for fed in run_batches(module, model, batches, BATCH):
        loss = _loss(model, fed, generator)
        found = torch.autograd.grad(loss, [stored[name] for name in names], allow_unused=True)
        products = {
            name: stored[name].detach() * gradient
            for name, gradient in zip(names, found, strict=True)
            if gradient is not None
        }
        along = {
            (name, axis): _summed(products[name], axis) for name, axis in places if name in products
        }
        for group in groups:
            change = np.zeros(group.units)
            for name, axis, indices in gates[group.name]:
                if (name, axis) in along:
                    change += along[name, axis][indices].sum(1)
            if not np.isfinite(change).all():
                raise InputError(
                    "the gradients become NaN or infinite on the samples", where=group.name,
                    hint="Look for an overflow in the model, or for a bad sample.",
                )  # fmt: skip
            sums[group.name] += change**2
        done += fed.count
        on_fraction(done / batches.count)
    return {name: total / batches.count for name, total in sums.items()}


def _gates(model: Model, group: ChannelGroup) -> list[Gate]:
    """The entries that are multiplied with a unit's gate."""
    if readers_of(model, group):
        chosen = [member for member in group.members if member.role == "consumed"]
    elif norms := norms_of(model, group):
        scaled = {value.name for node, _ in norms for value in node.inputs[1:3] if value}
        chosen = [member for member in group.members if member.parameter in scaled]
    else:
        chosen = [member for member in group.members if member.role in ("produced", "along")]
    return [(member.parameter, member.axis, member.indices) for member in chosen]


def _summed(products: Tensor, axis: int) -> Array:
    others = [i for i in range(products.ndim) if i != axis]
    found = products.sum(others, dtype=torch.float64) if others else products.double()
    summed: Array = found.cpu().numpy()
    return summed


def _loss(model: Model, fed: Fed, generator: torch.Generator) -> Tensor:
    """The sum over the samples, and over the outputs where they are their own targets."""
    outputs = {name: y for name, y in fed.outputs.items() if y.is_floating_point()}
    classes = [name for name, y in outputs.items() if y.ndim == 2 and y.shape[1] > 1]
    if fed.labels is not None and fed.labels.ndim == 1 and len(classes) == 1:
        (name,) = classes
        targets = torch.from_numpy(_checked(fed.labels, outputs[name].shape[1]))
        scores = _scores(model, name, outputs[name])
        return functional.cross_entropy(scores, targets.to(scores.device), reduction="sum")
    losses = []
    for name, y in outputs.items():
        if name in classes:
            scores = _scores(model, name, y) / TEMPERATURE
            chances = scores.detach().softmax(1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator)[:, 0].to(y.device)
            losses.append(functional.cross_entropy(scores, drawn, reduction="sum"))
        else:
            noise = torch.randn(y.shape, generator=generator).to(y.device)
            size = y.detach().square().mean().sqrt().clamp_min(1e-12)
            losses.append((noise * y).sum() / size)
    if not losses:
        raise InputError(
            "this model has no output with a gradient", where=model.name,
            hint="Choose a criterion that looks at the weights, such as l2.",
        )  # fmt: skip
    return torch.stack(losses).sum()


def _scores(model: Model, name: str, y: Tensor) -> Tensor:
    """Class scores whose softmax are the class chances: of an output behind a Softmax, its log."""
    value = next(value for value in model.graph.outputs if value.name == name)
    producer = value.producer()
    is_softmax = producer is not None and producer.op_type == "Softmax"
    return y.clamp_min(1e-12).log() if is_softmax else y


def _checked(labels: Array, classes: int) -> Array:
    whole = np.asarray(labels).astype(np.int64)
    if not np.array_equal(whole, labels) or whole.min() < 0 or whole.max() >= classes:
        raise InputError(
            "the labels are not classes of the model's output", where="labels",
            got=f"{labels.dtype}, {labels.min()} to {labels.max()}",
            wanted=f"whole numbers from 0 to {classes - 1}",
        )  # fmt: skip
    return whole
