"""Where a training run leaves its state after each epoch, and what another run finds there."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from edgekit import files

Tensors: TypeAlias = Mapping[str, Tensor]

_FORMAT = 2
_BROKEN = (RuntimeError, EOFError, ValueError, OSError, KeyError, TypeError, AttributeError,
           pickle.UnpicklingError)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where the state lies, and what the run is made from beside its options: hashes by name."""

    path: Path
    made_from: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class State:
    """A run after `len(losses)` epochs.

    `held_out` are the losses on held-out samples, the first before any training, and `best` the
    module's tensors where that was least; empty and None where no samples are held out.
    """

    losses: tuple[float, ...]
    held_out: tuple[float, ...]
    module: Tensors
    best: Tensors | None
    optimizer: Mapping[str, Any]
    acceleration: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lay at a checkpoint's place: a state that fits, or why there is none to go on from."""

    state: State | None = None
    why_not: str = ""


def save_state(path: Path, state: State, made_from: Mapping[str, str]) -> None:
    """Writes the state at once, as tensors and plain values, in the place of what was there.

    Raises ResourceError on a full disk, InputError where the place cannot be written.
    """
    stored = {"format": _FORMAT, "made_from": dict(made_from), **vars(state)}
    content = io.BytesIO()  # into a file, torch says of a full disk only that it is a RuntimeError
    torch.save(stored, content)
    files.write_bytes(path, content.getvalue())


def load_state(path: Path, made_from: Mapping[str, str]) -> Found:
    """The state of a run that was made from just this; no code in the file is run.

    Its tensors are on the CPU. A file that is missing is no reason, one that is broken is.
    """
    if not path.is_file():
        return Found()
    try:
        stored: Any = torch.load(path, weights_only=True, map_location="cpu")
        if stored["format"] != _FORMAT:
            return Found(why_not="it is of another version of edgekit")
        theirs = {str(name): str(value) for name, value in stored["made_from"].items()}
        state = State(
            losses=tuple(map(float, stored["losses"])),
            held_out=tuple(map(float, stored["held_out"])),
            module=dict(stored["module"]),
            best=None if stored["best"] is None else dict(stored["best"]),
            optimizer=dict(stored["optimizer"]),
            acceleration=dict(stored["acceleration"]),
        )
    except _BROKEN as error:
        return Found(why_not=f"it cannot be read ({type(error).__name__}: {error!s:.80})")
    if theirs != dict(made_from):
        return Found(why_not=f"it is of another run: {_difference(theirs, made_from)}")
    return Found(state=state)


def _difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Which entries differ, values and all where they are short."""
    names = [n for n in dict.fromkeys((*theirs, *ours)) if theirs.get(n) != ours.get(n)]
    said = []
    for name in names:
        then, now = theirs.get(name, "nothing"), ours.get(name, "nothing")
        short = max(len(then), len(now)) <= 40
        said.append(f"{name} {then}, now {now}" if short else f"another {name}")
    return ", ".join(said)
