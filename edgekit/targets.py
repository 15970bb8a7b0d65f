"""A device as data: one TOML file a target, found in a checkout and in an installed wheel."""

from __future__ import annotations

import difflib
import functools
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgekit import documents
from edgekit.errors import InputError

Precision = Literal["fp32", "fp16", "int8"]
Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# A wheel carries its targets inside the package; in a checkout they lie beside it. In this order:
# beside an installed package, a folder of that name is somebody else's.
_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "_targets", _PACKAGE.parent / "targets")

# NVIDIA's number of a board: "p3767-0005" is a module, "p3768-0000" a carrier.
_BOARD = re.compile(r"(?<![a-z0-9])p\d{4}-\d{4}(?!\d)")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Runtime(_Part):
    """What runs engines there. `build`: on this machine, on any, or on the device only."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    version: str = Field(pattern=r"^\d+(\.\d+)+$")
    dialect: Literal["onnxruntime", "tensorrt"]
    build: Literal["here", "anywhere", "device"]
    opset: Count
    jetpack: str = ""
    trtexec: str = ""


class Memory(_Part):
    """How much, how fast, and whether the CPU takes from the same pool."""

    bytes: Count
    bandwidth_bytes_per_s: Rate
    shared_with_cpu: bool


class Dla(_Part):
    """Deep learning accelerators beside the GPU."""

    cores: int = Field(default=0, ge=0)


class Shares(_Part):
    """Which share of its peak rates the device was seen to reach, by class of operator.

    `memory` is of the bandwidth (above 1 where caches serve much), `start_s` seconds a kernel.
    """

    dense: Rate | None = None
    pointwise: Rate | None = None
    grouped: Rate | None = None
    depthwise: Rate | None = None
    gemm: Rate | None = None
    memory: Rate | None = None
    start_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class Builder(_Part):
    """Defaults of the engine builder; a recipe's [engine] wins."""

    workspace_bytes: Count | None = None


class Identity(_Part):
    """How the device is recognised: NVIDIA's numbers of the module, its SoC, its power modes."""

    p_numbers: tuple[Annotated[str, Field(pattern=r"^p\d{4}-\d{4}$")], ...] = Field(
        default=(), strict=False
    )
    soc: str = ""
    power_modes: tuple[str, ...] = Field(default=(), strict=False)


class Target(_Part):
    """A device. `multiple` is the preferred channel multiple by precision, `peak` operations/s.

    A precision that is not in `peak` has an unknown rate; without `memory` it is unknown too.
    `efficiency` is for estimates (models/roofline.py).
    `family_default`: the target that the family's name means where no member is at hand.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str = Field(min_length=1)
    family: Literal["cpu", "rtx", "jetson"]
    family_default: bool = False
    compute_capability: str = Field(default="", pattern=r"^(\d+\.\d+)?$")
    precisions: tuple[Precision, ...] = Field(min_length=1, strict=False)
    multiple: dict[Precision, Count]
    runtime: Runtime
    memory: Memory | None = None
    peak: dict[Precision, Rate] = Field(default_factory=dict)
    efficiency: Shares = Shares()
    dla: Dla = Dla()
    builder: Builder = Builder()
    identity: Identity = Identity()
    sources: tuple[str, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _knows_its_gpu(self) -> Target:
        if self.runtime.name != "onnxruntime" and not self.compute_capability:
            raise ValueError("compute_capability is missing: a GPU's engine is built for one")
        return self


@dataclass(frozen=True, kw_only=True)
class ResolvedTarget:
    """The target that a name means; `note` says how a family's name was read, else is empty."""

    target: Target
    note: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine was found to be, and by what.

    `target` is empty where no profile describes it; `family` is known even then.
    """

    target: str
    family: Literal["cpu", "jetson"]
    evidence: str


def target_names() -> tuple[str, ...]:
    """The names of all shipped targets, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def family_names() -> tuple[str, ...]:
    """The names that mean a member of a family, sorted: the families that have a default."""
    return tuple(sorted(target.family for target in _shipped() if target.family_default))


def load_target(name: str) -> Target:
    """The shipped target of that name, or the one in the file that it is the path of.

    Raises InputError for an unknown name, with the nearest, and for a broken file, with every
    fault in it.
    """
    if name.endswith(".toml"):
        return _load_file(Path(name))
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
    if machine.family != name:
        default = next(t for t in _shipped() if t.family_default and t.family == name)
        return ResolvedTarget(
            target=default, note=f'"{name}" means {default.title}: this machine is no {name}'
        )
    if not machine.target:
        members = [target.name for target in _shipped() if target.family == name]
        raise InputError(
            f"there is no profile of the {name} module that this machine is",
            got=machine.evidence, wanted=", ".join(members),
            hint="Name the nearest of these, or write its profile: --target ./my-board.toml",
        )  # fmt: skip
    found = load_target(machine.target)
    return ResolvedTarget(
        target=found, note=f'"{name}" means {found.title}: this machine is one ({machine.evidence})'
    )


def detect_machine(*, root: Path = Path("/")) -> Machine:
    """What this machine is, from the files under `root`: a Jetson by its module's number.

    A graphics card is not looked for: `cpu` means that engines for the CPU run here.
    """
    tree = root / "proc" / "device-tree"
    compatible = _strings(tree / "compatible")
    if not any(word.startswith("nvidia,tegra") for word in compatible):
        return Machine(
            target="cpu", family="cpu", evidence=f"{platform.system()} on {platform.machine()}"
        )
    words = [*compatible, *_strings(tree / "nvidia,dtsfilename")]
    words += _strings(tree / "nvidia,boardids")
    boards = list(dict.fromkeys(board for word in words for board in _BOARD.findall(word)))
    model = " ".join(_strings(tree / "model")) or "a Tegra without a model's name"
    for target in _shipped():
        for board in boards:
            if board in target.identity.p_numbers:
                return Machine(target=target.name, family="jetson", evidence=f"{model}, {board}")
    said = ", ".join([model, *(boards or compatible)])
    return Machine(target="", family="jetson", evidence=said)


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


@functools.cache
def _shipped() -> tuple[Target, ...]:
    """All shipped targets, in the order of their names."""
    return tuple(map(load_target, target_names()))


def _load_file(path: Path) -> Target:
    """A user's own target, which may not pass for a shipped one: results are filed by name."""
    target = _read(path)
    if target.name in target_names() and path.resolve().parent != _folder().resolve():
        raise InputError(
            "this target file has the name of a target that edgekit ships", where=str(path),
            got=f'name = "{target.name}"', wanted="a name of its own",
            hint=f'Call it "my-{target.name}", say: results are filed under that name.',
        )  # fmt: skip
    return target


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


def _strings(path: Path) -> list[str]:
    """The NUL-separated strings of a device-tree file; none where it is not there."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    return [word.decode(errors="replace").strip() for word in content.split(b"\0") if word]
