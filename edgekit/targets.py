"""A device as data: one TOML file a target, found in a checkout and in an installed wheel."""

from __future__ import annotations

import difflib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit import documents
from edgekit.errors import InputError

Precision = Literal["fp32", "fp16", "int8"]
Positive = Field(gt=0)

_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE.parent / "targets", _PACKAGE / "_targets")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Runtime(_Part):
    """What runs engines there. `build`: on this machine, on any, or on the device only."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    version: str = Field(pattern=r"^\d+(\.\d+)+$")
    dialect: Literal["onnxruntime", "tensorrt"]
    build: Literal["here", "anywhere", "device"]
    opset: int = Positive
    jetpack: str = ""
    trtexec: str = ""


class Memory(_Part):
    """How much, how fast, and whether the CPU takes from the same pool."""

    bytes: int = Positive
    bandwidth_bytes_per_s: float = Positive
    shared_with_cpu: bool


class Dla(_Part):
    """Deep learning accelerators beside the GPU."""

    cores: int = Field(default=0, ge=0)


class Builder(_Part):
    """Defaults of the engine builder; a recipe's [engine] wins."""

    workspace_bytes: int | None = Field(default=None, gt=0)


class Identity(_Part):
    """How the device is recognised: NVIDIA's part numbers of the module, and its SoC."""

    part_numbers: tuple[str, ...] = Field(default=(), strict=False)
    soc: str = ""
    power_modes: tuple[str, ...] = Field(default=(), strict=False)


class Target(_Part):
    """A device. `multiple` is the preferred channel multiple by precision, `peak` operations/s."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    family: Literal["cpu", "rtx", "jetson"]
    family_default: bool = False
    compute_capability: str = Field(default="", pattern=r"^(\d+\.\d+)?$")
    precisions: tuple[Precision, ...] = Field(min_length=1, strict=False)
    multiple: dict[Precision, int]
    runtime: Runtime
    memory: Memory | None = None
    peak: dict[Precision, float] = Field(default_factory=dict)
    dla: Dla = Dla()
    builder: Builder = Builder()
    identity: Identity = Identity()
    sources: tuple[str, ...] = Field(default=(), strict=False)


@dataclass(frozen=True, kw_only=True)
class ResolvedTarget:
    """The target that a name means; `note` says how a family's name was read, else is empty."""

    target: Target
    note: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine was found to be. `target` is empty where no profile describes it."""

    target: str
    evidence: str


def target_names() -> tuple[str, ...]:
    """The names of all shipped targets, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def family_names() -> tuple[str, ...]:
    """The names that mean a member of a family."""
    return ("jetson",)


def load_target(name: str) -> Target:
    """The shipped target of that name, or the one in the file that it is the path of.

    Raises InputError for an unknown name, with the nearest, and for a broken file, with every
    fault in it.
    """
    if name.endswith(".toml"):
        return _read(Path(name))
    names = target_names()
    if name not in names:
        known = (*names, *family_names())
        near = difflib.get_close_matches(name, known, 2, 0.5)
        raise InputError(
            f'there is no target called "{name}"',
            wanted=", ".join(known),
            hint="Did you mean " + " or ".join(f'"{n}"' for n in near) + "?"
            if near
            else "A device of your own is one TOML file: --target ./my-board.toml",
        )
    return _read(_folder() / f"{name}.toml")


def resolve_target(name: str, *, root: Path = Path("/")) -> ResolvedTarget:
    """What a name means here: a family's is the module that this machine is, or the default.

    Raises InputError as `load_target` does, and on a module of the family without a profile.
    """
    if name not in family_names():
        return ResolvedTarget(target=load_target(name), note="")
    machine = detect_machine(root=root)
    if machine.evidence.startswith("Jetson"):
        if not machine.target:
            raise InputError(
                "this Jetson has no profile yet", got=machine.evidence,
                wanted=", ".join(target_names()),
                hint="Name the nearest one, or write your own: --target ./my-jetson.toml",
            )  # fmt: skip
        return ResolvedTarget(
            target=load_target(machine.target), note=f'"{name}" is this machine: {machine.evidence}'
        )
    default = next(t for t in map(load_target, target_names()) if t.family_default)
    return ResolvedTarget(
        target=default, note=f'"{name}" on a machine that is none means {default.title}'
    )


def detect_machine(*, root: Path = Path("/")) -> Machine:
    """What this machine is, from the files under `root`: a Jetson by its module's part number.

    A graphics card is not looked for: `cpu` means that engines for the CPU run here.
    """
    tree = root / "proc" / "device-tree"
    compatible = _words(tree / "compatible")
    if any(word.startswith("nvidia,tegra") for word in compatible):
        said = " ".join(
            [*_words(tree / "nvidia,boardids"), *_words(tree / "nvidia,dtsfilename"), *compatible]
        )
        model = " ".join(_words(tree / "model")) or "unknown model"
        for target in map(load_target, target_names()):
            if any(number in said for number in target.identity.part_numbers):
                return Machine(target=target.name, evidence=f"Jetson, {model}")
        return Machine(target="", evidence=f"Jetson, {model}, {said[:80]}")
    return Machine(target="cpu", evidence=f"{platform.system()} on {platform.machine()}")


def preferred_multiple(target: Target, precision: Precision) -> int:
    """The channel multiple that the target prefers at that precision, 1 where it has none."""
    return target.multiple.get(precision, 1)


def _folder() -> Path:
    for place in _PLACES:
        if place.is_dir() and any(place.glob("*.toml")):
            return place
    raise InputError(
        "edgekit's own target files are missing", where=" or ".join(map(str, _PLACES)),
        hint="Install edgekit again.",
    )  # fmt: skip


def _read(path: Path) -> Target:
    document = documents.read_toml(path, what="target")
    try:
        return Target.model_validate(document)
    except ValidationError as error:
        raise InputError(
            "this target file has faults",
            where=str(path),
            got="\n".join(documents.faults(error, Target)),
        ) from error


def _words(path: Path) -> list[str]:
    """The NUL-separated strings of a device-tree file; none where it is not there."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    return [word.decode(errors="replace") for word in content.split(b"\0") if word]
