"""Which targets a machine is, and by what that was recognised.

Written from captured files; no part of it has run on a Jetson or beside a graphics card.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit import board, machine
from edgekit.board import Gpu
from edgekit.targeting.schema import Target


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A target that the machine is, and by what."""

    target: str
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine was found to be, and by what.

    `target` is the one to build for where nothing else is said: the Jetson that it is, else "cpu".
    It is empty on a Jetson that no profile describes; `family` is known even then. `seen` are all
    that it is: a machine with a graphics card is a target by its processor and by the card.
    `jetpack` is empty where it is no Jetson or its release is not known. `near`: where no profile
    describes it, the targets with its chip. `unknown`: graphics cards that no profile describes.
    """

    target: str
    family: Literal["cpu", "jetson"]
    evidence: str
    seen: tuple[Seen, ...] = ()
    jetpack: str = ""
    near: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def recognise(targets: Sequence[Target], *, root: Path, gpus: Sequence[Gpu]) -> Machine:
    """What the machine is whose files are under `root`, and which has these graphics cards."""
    processor = tuple(_processors(targets, root))
    if board.is_tegra(root):
        return _jetson(targets, root, processor)
    cards = tuple(_cards(targets, gpus))
    unknown = tuple(_card(gpu) for gpu in gpus if not any(_is_card(t, gpu) for t in targets))
    cpu = Seen(target="cpu", evidence=f"{platform.system()} on {platform.machine()}")
    seen = (cpu, *processor, *cards)
    return Machine(
        target="cpu", family="cpu", seen=seen, unknown=unknown,
        evidence="; ".join([*dict.fromkeys(one.evidence for one in seen), *unknown]),
    )  # fmt: skip


def _jetson(targets: Sequence[Target], root: Path, processor: tuple[Seen, ...]) -> Machine:
    # The board's own list is the surest: a tree may be written for a module of another size.
    own = " ".join(board.device_tree_strings("nvidia,boardids", root))
    numbers = sorted(board.board_numbers(root), key=lambda number: number not in own)
    model = board.model_name(root) or "a Tegra without a model's name"
    jetpack, l4t = board.jetpack_version(root), board.l4t_version(root)
    release = [f"JetPack {jetpack}"] if jetpack else [f"L4T {l4t}"] if l4t else []
    cpu = Seen(target="cpu", evidence=f"{platform.system()} on {platform.machine()}")
    for number in numbers:
        target = next((t for t in targets if number in t.identity.p_numbers), None)
        if target is not None:
            said = ", ".join([model, number, *release])
            return Machine(
                target=target.name, family="jetson", evidence=said, jetpack=jetpack,
                seen=(Seen(target=target.name, evidence=said), cpu, *processor),
            )  # fmt: skip
    known = numbers or board.device_tree_strings("compatible", root)
    said = ", ".join([model, *known, *release])
    chip = board.soc_name(root)
    return Machine(
        target="", family="jetson", evidence=said, jetpack=jetpack, seen=(cpu, *processor),
        near=tuple(target.name for target in targets if chip and target.identity.soc == chip),
    )  # fmt: skip


def _processors(targets: Sequence[Target], root: Path) -> Iterator[Seen]:
    """The targets that the processor or the board is."""
    cpuinfo = root / "proc" / "cpuinfo"
    flags = machine.cpu_flags(cpuinfo)
    model = board.model_name(root)
    for target in targets:
        known = target.identity
        if model and any(model.startswith(text) for text in known.models):
            yield Seen(target=target.name, evidence=model)
        elif flags.intersection(known.cpu_flags) and not flags.intersection(known.missing_flags):
            which = ", ".join(sorted(flags.intersection(known.cpu_flags)))
            yield Seen(target=target.name, evidence=f"{machine.cpu_model(cpuinfo)} with {which}")


def _cards(targets: Sequence[Target], gpus: Sequence[Gpu]) -> Iterator[Seen]:
    for gpu in gpus:
        for target in targets:
            if _is_card(target, gpu):
                yield Seen(target=target.name, evidence=_card(gpu))


def _card(gpu: Gpu) -> str:
    return f"{gpu.name}, compute capability {gpu.compute_capability}, driver {gpu.driver}"


def _is_card(target: Target, gpu: Gpu) -> bool:
    is_same = target.compute_capability == gpu.compute_capability
    return is_same and gpu.name in target.identity.gpu_names
