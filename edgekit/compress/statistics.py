"""BatchNormalization's running statistics, estimated anew: a cut or new weights move them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.data.batches import Batches
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.model import Model
from edgekit.values import Array

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.models.torch_module import GraphModule

SHOWN_AT_ONCE = 100
MOST_SHOWN = 16


def estimate_statistics(
    model: Model, batches: Batches, *, batch: int = SHOWN_AT_ONCE, most: int = MOST_SHOWN
) -> tuple[Model, int]:
    """The Model with running means and variances of these samples, and how many have changed.

    Each becomes the plain mean of those of at most `most` batches of `batch` evenly spaced samples,
    with every layer reading what the batch itself normalised before it. A Model without
    BatchNormalization comes back as it is. Labels are never read.

    Raises InputError for data that do not fit the inputs or that make a statistic NaN or infinite,
    and as `torch_module` does; MissingPackageError without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "statistics are estimated by running the network, which needs torch",
            where="compress.statistics", hint="pip install 'edgekit[compress]'",
        ) from error  # fmt: skip
    from edgekit.models.torch_module import torch_module, write_back

    module = torch_module(model)
    norms = module.statistics_by_name()
    if not norms:
        return model, 0
    names = [spec.name for spec in model.inputs]
    parts = spaced_parts(batches.count, batch, most)
    settle_statistics(
        module, ([torch.from_numpy(batches.pick(part).inputs[n]) for n in names] for part in parts)
    )
    for name, tensor in norms.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(
                f'the statistic "{name}" becomes NaN or infinite on these samples',
                where=model.name, hint="Look for NaN in the weights, or for a bad sample.",
            )  # fmt: skip
    return write_back(module, model, "estimate_statistics"), len(norms)


def spaced_parts(count: int, size: int, most: int) -> list[Array]:
    """The indices of evenly spaced samples, in at most `most` batches of about `size` each."""
    size = min(count, size)
    total = min(count, most * size)
    chosen: Array = np.linspace(0, count - 1, total).round().astype(np.int64)
    return np.array_split(chosen, max(1, total // size))


def settle_statistics(module: GraphModule, shown: Iterable[Sequence[Tensor]]) -> None:
    """Makes the module's running means and variances the plain mean of those of these batches."""
    import torch

    norms = module.statistics_by_name()
    if not norms:
        return
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in norms.items()}
    seen = 0
    for inputs in shown:
        module.observe_statistics(*inputs)
        for name, tensor in norms.items():
            sums[name] += tensor
        seen += 1
    for name, tensor in norms.items():
        tensor.copy_(sums[name] / max(seen, 1))
