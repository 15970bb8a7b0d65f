"""How a training loop runs: in this process alone, or as Hugging Face accelerate arranges it.

accelerate is imported only for mixed precision, and where several processes were launched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor, nn

from edgekit.errors import InputError, MissingPackageError
from edgekit.train.launch import launched

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

_NAMES = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # what accelerate calls them
_KINDS = ("NO", "MULTI_CPU", "MULTI_GPU")  # of accelerate's ways to share out: a replica a process


class Acceleration(Protocol):
    """What the training loop leaves to others; `index` is this process's among `processes`."""

    index: int
    processes: int

    def prepare(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What to run instead: the same parameters, in all processes, at the precision."""

    def backward(self, loss: Tensor) -> None:
        """Leaves the gradients, their mean over the processes, at the parameters."""

    def mean(self, number: Tensor) -> float:
        """The mean over the processes of one number each."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep: the scale of the loss in fp16."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""

    def release(self) -> None:
        """Makes the module that was prepared what it was before, its parameters apart."""


class Alone:
    """This process, at full precision."""

    index = 0
    processes = 1

    def prepare(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Both as they are."""
        return module, optimizer

    def backward(self, loss: Tensor) -> None:
        """Leaves the gradients at the parameters."""
        loss.backward()  # type: ignore[no-untyped-call]

    def mean(self, number: Tensor) -> float:
        """The number."""
        return number.item()

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Does nothing."""

    def release(self) -> None:
        """Does nothing."""


class Accelerated:
    """An `accelerate.Accelerator`, whatever it found: one process or several, mixed precision."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._prepared: nn.Module | None = None
        self.index: int = accelerator.process_index
        self.processes: int = accelerator.num_processes

    def prepare(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The module with autocast, and with averaged gradients; the optimizer with a scaler."""
        module, optimizer = self._accelerator.prepare(module, optimizer)
        self._prepared = module
        return module, optimizer

    def backward(self, loss: Tensor) -> None:
        """Leaves the gradients, averaged over the processes and scaled in fp16."""
        self._accelerator.backward(loss)

    def mean(self, number: Tensor) -> float:
        """The mean over the processes."""
        averaged: Tensor = self._accelerator.reduce(number.detach(), reduction="mean")
        return averaged.item()

    def state(self) -> dict[str, Any]:
        """The scaler's."""
        scaler = self._accelerator.scaler
        return {} if scaler is None else dict(scaler.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back the scaler's."""
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(dict(state))

    def release(self) -> None:
        """Takes autocast out of the module, and lets go of it."""
        if self._prepared is not None:
            self._accelerator.unwrap_model(self._prepared, keep_fp32_wrapper=False)
            self._accelerator.free_memory()
            self._prepared = None


def choose_acceleration(precision: Precision) -> Acceleration:
    """Alone at fp32 in one process, else through accelerate; ask again as often as you like.

    After this, "cuda" is the graphics card of this process. Raises InputError for a precision that
    this machine cannot train in, and for a launch that shares out otherwise than one replica of the
    network a process; MissingPackageError without accelerate.
    """
    if precision not in get_args(Precision):
        raise InputError(
            "there is no such precision to train in", where="precision", got=str(precision),
            wanted=", ".join(get_args(Precision)),
        )  # fmt: skip
    _, processes = launched()
    if precision == "fp32" and processes == 1:
        return Alone()
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError(
            "fp16 trains on a graphics card only", where="precision", got="no CUDA device",
            hint="bf16 runs on the CPU too.",
        )  # fmt: skip
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", _NAMES[precision]):
        raise InputError(
            "accelerate was launched for another precision", where="precision", got=asked,
            wanted=precision, hint="Leave --mixed_precision out: the recipe's precision decides.",
        )  # fmt: skip
    try:
        import accelerate
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise MissingPackageError(
            "mixed precision and several processes go through accelerate", where="train",
            got=str(error), hint="pip install 'edgekit[accelerate]'",
        ) from error  # fmt: skip
    # It keeps one precision for the whole process; a later run may want another (seen in 1.15).
    AcceleratorState._reset_state()
    accelerator = accelerate.Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=_NAMES[precision]
    )
    if accelerator.distributed_type.name not in _KINDS:
        raise InputError(
            "this way of sharing out a network is not supported", where="accelerate launch",
            got=accelerator.distributed_type.name, wanted="a whole replica in each process",
            hint="Launch with `accelerate launch --multi_gpu`, or with torchrun.",
        )  # fmt: skip
    if accelerator.device.type != ("cuda" if torch.cuda.is_available() else "cpu"):
        raise InputError(
            "accelerate was launched for another device than torch finds",
            where="accelerate launch", got=accelerator.device.type,
            hint="Hide the graphics cards: CUDA_VISIBLE_DEVICES=''.",
        )  # fmt: skip
    return Accelerated(accelerator)
