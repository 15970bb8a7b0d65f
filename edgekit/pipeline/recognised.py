"""Whether a machine is the device that a recipe is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import board
from edgekit.board import Gpu
from edgekit.engines.device_recipe.document import DeviceRecipe
from edgekit.errors import InputError
from edgekit.targeting.detection import recognise


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """Whether the device is the recipe's; `note` says what is not plain, else is empty."""

    is_target: bool
    note: str


def recognise_device(recipe: DeviceRecipe, root: Path, gpus: Sequence[Gpu]) -> Recognised:
    """Whether the machine with these files under `root` is the recipe's target.

    One that it is not may do for a target whose engines are built anywhere. Raises InputError for
    any other, with what differs.
    """
    target = recipe.target
    machine = recognise([target], root=root, gpus=gpus)
    found = next((seen for seen in machine.seen if seen.target == target.name), None)
    if found is not None:
        return Recognised(is_target=True, note=_jetpack_note(recipe, machine.jetpack))
    known = target.identity
    told_by = (*known.p_numbers, *known.gpu_names, *known.models, *known.cpu_flags)
    if not told_by:
        return Recognised(
            is_target=True,
            note=f"taken for {target.title}: its profile does not say how it is recognised",
        )
    if target.runtime.build == "anywhere":
        return Recognised(is_target=False, note=f"this machine is no {target.title}")
    raise InputError(
        f"the device is not the one that this recipe is for: {target.title}",
        where=str(recipe.folder), got=_seen(root, gpus, machine.evidence),
        wanted=f"one of {', '.join(told_by)}",
        hint="Make the recipe for this device on the build host: edgekit build --target NAME.",
    )  # fmt: skip


def power_note(recipe: DeviceRecipe, mode: str) -> str:
    """The power mode that it was measured in, beside the one of the profile's figures."""
    profile = recipe.target.power_mode
    if not mode:
        return "the power mode is not known" if profile else ""
    if not profile or mode == profile:
        return f"power mode {mode}"
    return f"measured in power mode {mode}; the profile's figures are those of {profile}"


def _jetpack_note(recipe: DeviceRecipe, jetpack: str) -> str:
    known = [build["jetpack"] for build in recipe.builds if build["jetpack"]]
    if not jetpack or not known or any(_same(jetpack, one) for one in known):
        return ""
    return f"JetPack {jetpack} is here; the recipe's settings are for {', '.join(known)}"


def _same(one: str, other: str) -> bool:
    return one.split(".")[:2] == other.split(".")[:2]


def _seen(root: Path, gpus: Sequence[Gpu], evidence: str) -> str:
    if root == Path("/") or board.is_tegra(root):
        return evidence
    cards = ", ".join(f"{gpu.name}, compute capability {gpu.compute_capability}" for gpu in gpus)
    return cards or "no Jetson, and no GPU that nvidia-smi lists"
