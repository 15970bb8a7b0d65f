"""Steps that mend the rounding, one after the other, each kept where it measurably helps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from edgekit.data.batches import Batches
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.model import Model
from edgekit.quantize.observe import OpenSession
from edgekit.quantize.refine.absorb import absorb_biases
from edgekit.quantize.refine.equalise import equalise
from edgekit.quantize.refine.judge import Judge
from edgekit.quantize.scheme import Placement, Scheme
from edgekit.values import Array

STEPS = ("equalise", "absorb", "bias", "round", "adaround", "distil")
_CHEAP = ("equalise", "absorb", "bias", "round")
_OBSERVING = ("equalise", "absorb")
_NEEDING_TORCH = frozenset(STEPS) - frozenset(_OBSERVING)

_FEW = 128  # samples of which none can be spared
_FEW_TO_HOLD_OUT = 8  # with fewer samples the steps are judged on what they saw
_JUDGED = 96
_HELD_OUT_OF = 4
_AT_ONCE = 8
_GAIN_DB = 0.02  # less is noise

OnFraction = Callable[[float, str], None]
Rescheme = Callable[[Model, Placement], Scheme]


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """Which steps, and how many samples they look at.

    `steps` are names of STEPS, which are done in that order, or "auto": all but the last two, and
    AdaRound too where weights have less than 8 bits. `memory_bytes` bounds what is kept of
    activations between layers.
    """

    steps: Literal["auto"] | tuple[str, ...] = "auto"
    samples: int = 512
    memory_bytes: int = 1 << 30
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RefineStep:
    """What one step brought: the mean over samples and parts of the outputs of their SQNR in dB,
    after the steps before it that were not dropped at once, and after it too.
    """

    name: str
    before_db: float
    after_db: float
    said: str
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class RefineReport:
    """What each step brought, and all that were kept, judged on `judged` samples, by emulation.

    `held_out`: the steps did not see these samples.
    """

    steps: tuple[RefineStep, ...]
    judged: int
    held_out: bool
    before_db: float
    after_db: float

    def __str__(self) -> str:
        kept = [step.name for step in self.steps if step.kept]
        if not kept:
            return "no step helped"
        return f"{', '.join(kept)}: {self.before_db:.1f} to {self.after_db:.1f} dB"

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "said": str(self), "judged": self.judged, "held_out": self.held_out,
            "before_db": self.before_db, "after_db": self.after_db,
            "steps": [vars(step) for step in self.steps],
        }  # fmt: skip


def refine(  # noqa: PLR0913  every option has its reason
    model: Model, scheme: Scheme, batches: Batches, open_session: OpenSession,
    options: RefineOptions | None = None, *, rescheme: Rescheme | None = None,
    on_fraction: OnFraction = lambda share, said: None,
) -> tuple[Model, Scheme, RefineReport]:  # fmt: skip
    """The Model and Scheme after some steps, none of which leaves a layer in floating point.

    Steps that are named are done and kept. With "auto" a step that the samples, which no step sees,
    agree to be worse is dropped at once; and of the networks on the way that is returned whose
    outputs are nearest to the float network's, with the steps that made it. Where samples are few,
    these steps are then done again with all of them.

    `open_session` must run Q/DQ as they are written. `rescheme` observes a changed Model again and
    gives its Scheme with a placement; without it nothing is equalised.

    Without torch, "auto" does what can be done, and the report says what was not. Raises
    InputError for an unknown step, and as the steps do; MissingPackageError for a named one.
    """
    options = options or RefineOptions()
    names = _names(options, scheme, rescheme)
    shown, judged, held_out = _divided(batches)
    judge = Judge(model, judged, open_session)
    first = _State(model=model, scheme=scheme, teacher=model, score=judge.score(model, scheme))
    now = best = first
    done: list[RefineStep] = []

    def run(name: str, shown: Batches, on: _State, on_share: _OnShare) -> tuple[_State, Any]:
        step = _Step(
            shown=shown, teacher=on.teacher, open_session=open_session, rescheme=rescheme,
            options=options,
        )  # fmt: skip
        changed, rounded, report = _STEPS[name](step, on.model, on.scheme, on_share)
        teacher = changed if name in _OBSERVING else on.teacher
        return replace(on, model=changed, scheme=rounded, teacher=teacher), report

    for i, name in enumerate(names):

        def on_share(share: float, i: int = i, name: str = name) -> None:
            on_fraction((i + share) / len(names), name)

        on_share(0.0)
        before_db = now.mean_db
        if name in _NEEDING_TORCH and _missing_torch(options):
            said = "not done: torch is not installed (pip install 'edgekit[compress]')"
            done.append(RefineStep(name=name, before_db=before_db, after_db=before_db, said=said))
            continue
        after, report = run(name, shown, now, on_share)
        after = replace(
            after, score=judge.score(after.model, after.scheme), applied=(*now.applied, i)
        )
        done.append(
            RefineStep(name=name, before_db=before_db, after_db=after.mean_db, said=str(report))
        )
        if options.steps != "auto" or not _is_worse(after.score, now.score):
            now = after
        if options.steps != "auto" or after.mean_db > best.mean_db + _GAIN_DB:
            best = after
    found = best
    if held_out and options.steps == "auto" and batches.count <= _FEW:
        found = first
        for i in best.applied:
            found, _ = run(names[i], batches, found, lambda share: None)
    on_fraction(1.0, "")
    steps = tuple(replace(step, kept=i in best.applied) for i, step in enumerate(done))
    final = RefineReport(
        steps=steps, judged=judged.count, held_out=held_out, before_db=first.mean_db,
        after_db=best.mean_db,
    )  # fmt: skip
    return found.model, found.scheme, final


@dataclass(frozen=True, kw_only=True)
class _State:
    """A network on the way, how near it is by sample, and the positions of the steps it has had."""

    model: Model
    scheme: Scheme
    teacher: Model
    score: Array
    applied: tuple[int, ...] = ()

    @property
    def mean_db(self) -> float:
        """The mean over the samples."""
        return float(np.mean(self.score))


def _is_worse(after: Array, before: Array) -> bool:
    """Whether the samples agree on it: by two standard errors of their mean difference."""
    apart = after - before
    return bool(apart.mean() < -2 * apart.std() / len(apart) ** 0.5 - _GAIN_DB)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What every step is given beside the network."""

    shown: Batches
    teacher: Model
    open_session: OpenSession
    rescheme: Rescheme | None
    options: RefineOptions


_OnShare = Callable[[float], None]
_Result = tuple[Model, Scheme, Any]


def _equalise(step: _Step, model: Model, scheme: Scheme, on_share: _OnShare) -> _Result:
    del on_share
    assert step.rescheme is not None
    return equalise(model, scheme, step.shown, step.open_session, step.rescheme)


def _bias(step: _Step, model: Model, scheme: Scheme, on_share: _OnShare) -> _Result:
    from edgekit.quantize.refine.bias import BiasOptions, correct_biases

    chosen = BiasOptions(samples=step.options.samples, memory_bytes=step.options.memory_bytes)
    return correct_biases(
        model, scheme, step.shown, chosen, reference=step.teacher, on_fraction=on_share
    )


def _round(step: _Step, model: Model, scheme: Scheme, on_share: _OnShare) -> _Result:
    from edgekit.quantize.refine.weights import RoundOptions, round_weights

    chosen = RoundOptions(
        samples=step.options.samples, memory_bytes=step.options.memory_bytes,
        seed=step.options.seed,
    )  # fmt: skip
    return round_weights(
        model, scheme, step.shown, chosen, reference=step.teacher, on_fraction=on_share
    )


def _absorb(step: _Step, model: Model, scheme: Scheme, on_share: _OnShare) -> _Result:
    del on_share
    assert step.rescheme is not None
    return absorb_biases(model, scheme, step.shown, step.open_session, step.rescheme)


def _adaround(step: _Step, model: Model, scheme: Scheme, on_share: _OnShare) -> _Result:
    from edgekit.quantize.refine.adaround import AdaroundOptions, adaround

    chosen = AdaroundOptions(memory_bytes=step.options.memory_bytes, seed=step.options.seed)
    return adaround(model, scheme, step.shown, chosen, reference=step.teacher, on_fraction=on_share)


def _distil(step: _Step, model: Model, scheme: Scheme, on_share: _OnShare) -> _Result:
    from edgekit.quantize.refine.distil import DistilOptions, distil

    chosen = DistilOptions(seed=step.options.seed)
    return distil(model, scheme, step.teacher, step.shown, chosen, on_fraction=on_share)


_STEPS: Mapping[str, Callable[[_Step, Model, Scheme, _OnShare], _Result]] = {
    "equalise": _equalise, "absorb": _absorb, "bias": _bias, "round": _round,
    "adaround": _adaround, "distil": _distil,
}  # fmt: skip


def _names(options: RefineOptions, scheme: Scheme, rescheme: Rescheme | None) -> tuple[str, ...]:
    if options.steps == "auto":
        few_bits = any(stored.grid.bits < 8 for stored in scheme.weights.values())
        names = (*_CHEAP, "adaround") if few_bits else _CHEAP
        return tuple(name for name in names if rescheme is not None or name not in _OBSERVING)
    unknown = [name for name in options.steps if name not in STEPS]
    if unknown or not options.steps:
        raise InputError(
            "there is no refinement of that name", where="quantize.refine",
            got=", ".join(unknown) or "no name", wanted=", ".join(STEPS),
        )  # fmt: skip
    if rescheme is None and any(name in _OBSERVING for name in options.steps):
        raise InputError(
            "this refinement needs to observe the network again", where="quantize.refine",
            got="no function to observe with", wanted="rescheme",
        )  # fmt: skip
    return tuple(name for name in STEPS if name in options.steps)


def _missing_torch(options: RefineOptions) -> bool:
    """Whether torch is missing. Raises MissingPackageError where a step was named that needs it."""
    if importlib.util.find_spec("torch") is not None:
        return False
    if options.steps != "auto":
        raise MissingPackageError(
            "this refinement runs the network layer by layer, which needs torch",
            where="quantize.refine", got=", ".join(options.steps),
            hint="pip install 'edgekit[compress]'",
        )  # fmt: skip
    return True


def _divided(batches: Batches) -> tuple[Batches, Batches, bool]:
    """What the steps see, and what they are judged on: one in four samples, where there are many.

    Raises InputError where there is no sample.
    """
    count = batches.count
    size = min(batches.batch_size, _AT_ONCE)
    if count < _FEW_TO_HOLD_OUT:
        return batches, batches.with_batch_size(size), False
    held = np.unique(np.linspace(0, count - 1, min(_JUDGED, count // _HELD_OUT_OF)).astype(int))
    some = batches.without(np.setdiff1d(np.arange(count), held))
    return batches.without(held), some.with_batch_size(size), True
