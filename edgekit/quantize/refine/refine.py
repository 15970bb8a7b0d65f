"""Steps that mend the rounding, one after the other, each kept where it measurably helps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

STEPS = ("equalise", "absorb", "bias", "round", "adaround", "distil")
_CHEAP = ("equalise", "absorb", "bias", "round")
_OBSERVING = ("equalise", "absorb")
_NEEDING_TORCH = frozenset(STEPS) - frozenset(_OBSERVING)

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
    """What one step brought: the mean SQNR of the outputs' parts before and after it, in dB."""

    name: str
    kept: bool
    before_db: float
    after_db: float
    said: str


@dataclass(frozen=True, kw_only=True)
class RefineReport:
    """What each step brought, judged on `judged` samples, by emulation.

    `held_out`: the steps did not see these samples.
    """

    steps: tuple[RefineStep, ...]
    judged: int
    held_out: bool

    def __str__(self) -> str:
        kept = [step for step in self.steps if step.kept]
        if not kept:
            return "no step helped"
        names = ", ".join(f"{step.name} {step.after_db - step.before_db:+.1f} dB" for step in kept)
        return f"{names}: {kept[0].before_db:.1f} to {kept[-1].after_db:.1f} dB"

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "said": str(self), "judged": self.judged, "held_out": self.held_out,
            "steps": [vars(step) for step in self.steps],
        }  # fmt: skip


def refine(  # noqa: PLR0913  every option has its reason
    model: Model, scheme: Scheme, batches: Batches, open_session: OpenSession,
    options: RefineOptions | None = None, *, rescheme: Rescheme | None = None,
    on_fraction: OnFraction = lambda share, said: None,
) -> tuple[Model, Scheme, RefineReport]:  # fmt: skip
    """The Model and Scheme after some steps, none of which leaves a layer in floating point.

    With "auto" a step is kept where the outputs come nearer to the float network's on samples that
    it did not see; steps that are named are done and kept. `open_session` must run Q/DQ as they are
    written. `rescheme` observes a changed Model again and gives its Scheme with a placement;
    without it nothing is equalised.

    Without torch, "auto" does what can be done, and the report says what was not. Raises
    InputError for an unknown step, and as the steps do; MissingPackageError for a named one.
    """
    options = options or RefineOptions()
    names = _names(options, scheme, rescheme)
    shown, judged, held_out = _divided(batches)
    judge = Judge(model, judged, open_session)
    teacher, score = model, judge.score(model, scheme)
    done: list[RefineStep] = []
    for i, name in enumerate(names):

        def on_share(share: float, i: int = i, name: str = name) -> None:
            on_fraction((i + share) / len(names), name)

        on_share(0.0)
        if name in _NEEDING_TORCH and _missing_torch(options):
            done.append(
                RefineStep(
                    name=name,
                    kept=False,
                    before_db=score,
                    after_db=score,
                    said="not done: torch is not installed (pip install 'edgekit[compress]')",
                )
            )
            continue
        step = _Step(
            shown=shown, teacher=teacher, open_session=open_session, rescheme=rescheme,
            options=options,
        )  # fmt: skip
        changed, rounded, said = _STEPS[name](step, model, scheme, on_share)
        after = judge.score(changed, rounded)
        kept = options.steps != "auto" or after > score + _GAIN_DB
        done.append(
            RefineStep(name=name, kept=kept, before_db=score, after_db=after, said=str(said))
        )
        if kept:
            model, scheme, score = changed, rounded, after
            teacher = model if name in _OBSERVING else teacher
    on_fraction(1.0, "")
    return model, scheme, RefineReport(steps=tuple(done), judged=judged.count, held_out=held_out)


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
