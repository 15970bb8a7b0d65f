"""What each node's quantization alone does to the outputs, to first order, for all nodes at once.

With d the error that a node's quantization makes in its own output and J the derivative of the
model's outputs by that output, the outputs change by J d. For a random direction v with independent
entries of mean 0 and variance 1, E[(v . J d)^2] = |J d|^2 (Hutchinson, A stochastic estimator of
the trace of the influence matrix, 1989), and v . J d = (J^T v) . d: one backward pass of v gives
J^T v at every node. The samples of a batch do not touch one another, so each is a draw of its own.
Where the outputs are few, the directions of a sample are orthogonal, and as many as there are
outputs know |J d|^2 exactly.
The d are exact: one run of a graph in which every node is computed on integers too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.models.torch_module import GraphModule, torch_module
from edgekit.quantize.judging.alone import Shadows, with_outputs
from edgekit.quantize.judging.outputs import OpenSession
from edgekit.quantize.judging.parts import Part
from edgekit.quantize.judging.pieces import in_pieces
from edgekit.values import Array, Batch, Feeds, run

_MOST_ORTHOGONAL = 1024  # outputs of a sample; more are nearly orthogonal by themselves


def projected_damage(  # noqa: PLR0913  every option has its reason
    model: Model, shadows: Shadows, parts: Sequence[Part], batches: Sequence[Batch],
    open_session: OpenSession, *, draws: int, seed: int, on_fraction: Callable[[float], None],
) -> dict[str, float]:  # fmt: skip
    """By node the mean over the parts of |J d|^2 / sum x^2, x being the part's entries.

    `draws` directions for each sample. Raises InputError where an output is zero throughout, or
    where a gradient becomes NaN or infinite.
    """
    sites = shadows.exact
    module = torch_module(with_outputs(model, sites))
    order = {name: i for i, name in enumerate(module.output_names)}
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    sums = dict.fromkeys(shadows.sites, 0.0)
    energy: dict[Part, float] = {}
    samples = 0
    counted = sum(map(len, batches))
    signal = np.zeros(len(parts))
    with open_session(shadows.model) as session:
        for batch in in_pieces(model, sites, batches):
            errors = _errors(shadows, run(session, batch.inputs))
            outputs = _forward(module, model, batch.inputs)
            taps = [outputs[order[site]] for site in sites]
            energies = [_energy(part, outputs[order[part.output]]) for part in parts]
            signal += energies
            if not energy:  # the first batch weighs the parts against one another
                energy = {p: e / len(batch) for p, e in zip(parts, energies, strict=True)}
                _refuse_zeros(energy)
            directions = list(_directions(parts, outputs, order, energy, draws, generator))
            for left, direction in enumerate(directions, 1 - len(directions)):
                loss = torch.stack([
                    (along * outputs[order[name]]).sum() for name, along in direction.items()
                ]).sum()  # fmt: skip
                gradients = torch.autograd.grad(
                    loss, taps, allow_unused=True, retain_graph=left < 0
                )
                by_site = {
                    site: g.numpy()
                    for site, g in zip(sites, gradients, strict=True)
                    if g is not None
                }
                for node, made in errors.items():
                    sums[node] += _squares(node, by_site, made, len(batch)) / len(directions)
            samples += len(batch)
            on_fraction(samples / counted)
    # One part's weight is known better now: by all samples.
    exact = energy[parts[0]] * samples / signal[0] if len(parts) == 1 else 1.0
    return {node: exact * value / samples for node, value in sums.items()}


def _forward(module: GraphModule, model: Model, inputs: Feeds) -> tuple[Tensor, ...]:
    fed = []
    for spec in model.inputs:
        x = torch.from_numpy(np.ascontiguousarray(inputs[spec.name]))
        fed.append(x.requires_grad_(x.is_floating_point()))
    if not any(x.requires_grad for x in fed):
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    with torch.enable_grad():
        found: tuple[Tensor, ...] = module(*fed)
    return found


def _energy(part: Part, output: Tensor) -> float:
    array = part.of(output.detach().numpy())
    return float(np.square(array, dtype=np.float64).sum())


def _directions(
    parts: Sequence[Part], outputs: Sequence[Tensor], order: Mapping[str, int],
    energy: Mapping[Part, float], draws: int, generator: torch.Generator,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """Directions in the space of all outputs, each part over sqrt(parts * energy of a sample).

    `draws` of them, or as many as a sample has outputs.
    """
    weights: dict[str, Tensor] = {}
    for part in parts:
        output = outputs[order[part.output]].detach()
        view = weights.setdefault(part.output, torch.zeros_like(output, dtype=torch.float32))
        for axis, begin, end in part.ranges:
            view = view.narrow(axis, begin, end - begin)
        view += (len(parts) * energy[part]) ** -0.5 if energy[part] else 0.0
    smooth = {name: w for name, w in weights.items() if outputs[order[name]].requires_grad}
    if not smooth:
        raise InputError("no output of this model follows its inputs smoothly")
    rows = len(next(iter(smooth.values())))
    sizes = [w.numel() // rows for w in smooth.values()]
    if any(len(w) != rows for w in smooth.values()) or sum(sizes) > _MOST_ORTHOGONAL:
        for _ in range(draws):
            yield {
                name: w * (2 * torch.randint(0, 2, w.shape, generator=generator) - 1)
                for name, w in smooth.items()
            }
        return
    width = sum(sizes)
    drawn = torch.randn(rows, width, min(draws, width), generator=generator)
    along = torch.linalg.qr(drawn)[0] * width**0.5
    for draw in range(along.shape[2]):
        pieces = along[:, :, draw].split(sizes, 1)
        yield {
            name: w * piece.reshape(w.shape)
            for (name, w), piece in zip(smooth.items(), pieces, strict=True)
        }


def _errors(shadows: Shadows, found: Feeds) -> dict[str, dict[str, Array]]:
    """By node what its quantization changes, at each site."""
    return {
        node: {site.exact: found[site.integer] - found[site.exact] for site in sites}
        for node, sites in shadows.sites.items()
    }


def _squares(node: str, gradients: Feeds, errors: Feeds, samples: int) -> float:
    """The sum over the samples of (g . d)^2; of all at once where they are no axis."""
    total: Array = np.zeros(samples)
    for site, d in errors.items():
        if site not in gradients:
            continue
        g = gradients[site]
        rows = samples if g.ndim and len(g) == samples else 1
        products = np.einsum("ij,ij->i", g.reshape(rows, -1), d.reshape(rows, -1))
        total = total + products if rows == samples else total.sum() + products
    squares = float(np.square(total, dtype=np.float64).sum())
    if not np.isfinite(squares):
        raise InputError(
            "the gradients become NaN or infinite on the samples", where=node,
            hint="Look for an overflow in the model, or for a bad sample.",
        )  # fmt: skip
    return squares


def _refuse_zeros(energy: Mapping[Part, float]) -> None:
    for part, value in energy.items():
        if not np.isfinite(value):
            raise InputError(f'the output "{part}" becomes NaN or infinite')
    if not any(energy.values()):
        raise InputError(
            "the loss of the outputs cannot be told", got="zeros on every sample",
            hint="Look at the data and its preprocessing.",
        )  # fmt: skip
