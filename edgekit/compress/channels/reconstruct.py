"""Closed-form repair: after a cut, the weights that are left take over what the removed ones did.

From unlabelled samples, without gradients: layer after layer, in the order of the graph, a weight
is fitted anew by least squares, so that in the network as it is by now (cut, and repaired up to
there) the layer puts out what the original does. To reconstruct a layer's output from the channels
that are left is ThiNet's idea (Luo, Wu and Lin 2017) and that of He, Zhang and Sun (2017); that the
fit starts from the present weights is Optimal Brain Surgeon's (Hassibi and Stork 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgekit.compress.channels.plan import Plan
from edgekit.compress.statistics import estimate_statistics
from edgekit.data.batches import Batches
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.batch import fixed_batch
from edgekit.models.model import Model, parameters
from edgekit.values import Array

_WHERE = "compress.channels.reconstruct"
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions:
    """How the weights are fitted.

    At most `samples` are looked at, evenly spaced. Of the places of a layer's output at most `rows`
    times as many are drawn as a weight has inputs. The pull toward the present weight is chosen
    from `ridges`, shares of the inputs' mean square. `drifted`: also layers that lost no input, but
    read what has changed. A layer in front of a Relu is fitted `rectified` more times, to what the
    Relu lets through. `statistics`: BatchNormalization is estimated anew at the end; the fits keep
    the outputs where the old statistics expect them, so that this is for nets few of whose layers
    can be fitted. `memory_bytes` bounds the activations that are kept between layers; with less,
    the networks are run from their inputs more often.
    """

    samples: int = 2048
    rows: int = 100
    ridges: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    drifted: bool = True
    rectified: int = 3
    statistics: bool = False
    memory_bytes: int = 2 << 30
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerRepair:
    """What the fit of one weight gained.

    `before` and `after` are the squared error of the layer's output on `rows` rows, as a share of
    the variance of what it should be; `ridge` is the share that was chosen.
    """

    weight: str
    rows: int
    before: float
    after: float
    ridge: float


@dataclass(frozen=True, kw_only=True)
class ReconstructReport:
    """Which weights were fitted, on how many samples; why those in `left` were not.

    `statistics` counts the running means and variances that were estimated anew.
    """

    samples: int
    layers: tuple[LayerRepair, ...]
    left: Mapping[str, str]
    statistics: int = 0

    def __str__(self) -> str:
        before, after = (float(np.mean([getattr(one, side) for one in self.layers] or [0.0]))
                         for side in ("before", "after"))  # fmt: skip
        left = f"; {len(self.left)} left: {'; '.join(set(self.left.values()))}" if self.left else ""
        return (
            f"{len(self.layers)} layers fitted on {self.samples} samples, their mean error "
            f"{before:.3f} to {after:.3f}{left}"
        )

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "samples": self.samples,
            "layers": [vars(layer) for layer in self.layers],
            "left": dict(self.left),
            "statistics": self.statistics,
        }


def reconstruct(
    cut: Model,
    original: Model,
    plan: Plan,
    batches: Batches,
    *,
    options: ReconstructOptions | None = None,
    on_fraction: Callable[[float], None] = lambda share: None,
) -> tuple[Model, ReconstructReport]:
    """The cut Model with weights (and biases or BatchNormalization's means) fitted anew.

    `plan` is what `remove_channels` cut `original` by. Every weight of a Conv, ConvTranspose, Gemm
    or MatMul that lost inputs is fitted, and with `drifted` all that come after one; labels are
    never read. Names, shapes and types stay. Nothing to repair is no error: the report is empty.

    Raises InputError for samples that do not fit, for NaN or infinity in weights or activations,
    for two Models with other inputs or outputs, and as `torch_module` does; MissingPackageError
    without torch.
    """
    try:
        from edgekit.compress.channels.repair.refit import refit
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "the closed-form repair runs the networks, which needs torch", where=_WHERE,
            hint="pip install 'edgekit[compress]'",
        ) from error  # fmt: skip
    options = options or ReconstructOptions()
    if (cut.inputs, cut.outputs) != (original.inputs, original.outputs):
        raise InputError(
            "the original does not have the cut network's inputs and outputs", where=_WHERE,
            got=", ".join(map(str, (*original.inputs, *original.outputs))),
            wanted=", ".join(map(str, (*cut.inputs, *cut.outputs))),
        )  # fmt: skip
    for model in (cut, original):
        _refuse_infinite(model)
    some = _in_batches(cut, batches, options.samples)
    repaired, layers, left = refit(cut, original, plan, some, options, on_fraction)
    report = ReconstructReport(samples=some.count, layers=tuple(layers), left=left)
    if options.statistics and layers:
        repaired, count = estimate_statistics(repaired, some)
        report = replace(report, statistics=count)
    on_fraction(1.0)
    return repaired, report


def _refuse_infinite(model: Model) -> None:
    for name, array in parameters(model):
        if not np.isfinite(np.asarray(array, np.float64).sum()) and not np.isfinite(array).all():
            raise InputError(
                f'the weight "{name}" holds NaN or infinite numbers', where=model.name,
                hint="Export the model again from a checkpoint that is whole.",
            )  # fmt: skip


def _in_batches(model: Model, batches: Batches, most: int) -> Batches:
    """The samples that are looked at, in batches that the Model takes; two where it can be."""
    if not batches.count or most < 1:
        raise InputError(
            "the closed-form repair looks at samples, and there are none", where=_WHERE,
            hint="Give unlabelled samples of what the device will see; a few hundred will do.",
        )  # fmt: skip
    some = batches.take(most)
    _check_fit(model, some)
    size = fixed_batch(model) or max(1, min(_AT_ONCE, some.count // 2))
    if size > some.count:
        raise InputError(
            "there are fewer samples than the model takes at once", where=_WHERE,
            got=str(some.count), wanted=f"{size} or more",
        )  # fmt: skip
    if fixed_batch(model):
        some = some.take(some.count // size * size)
    return some.with_batch_size(size)


def _check_fit(model: Model, batches: Batches) -> None:
    shown = batches.pick(slice(0, 1)).inputs
    for spec in model.inputs:
        array: Array | None = shown.get(spec.name)
        fits = array is not None and array.dtype.name == spec.dtype
        if array is not None and fits:
            pairs = list(zip(array.shape[1:], spec.shape[1:], strict=False))
            fits = array.ndim == len(spec.shape) and all(
                not isinstance(want, int) or got == want for got, want in pairs
            )
        if not fits:
            raise InputError(
                f'the samples do not fit the input "{spec.name}"', where=_WHERE,
                got="no array of that name" if array is None else f"{array.dtype} {array.shape}",
                wanted=str(spec),
            )  # fmt: skip
