"""A device as data: one TOML file a target, found in a checkout and in an installed wheel.

What a file may say is in targeting/schema.py, how one extends another in targeting/inheritance.py,
what becomes of its JetPacks in targeting/jetpack.py, how a machine is recognised in
targeting/detection.py.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from edgekit import board, documents
from edgekit.board import Gpu
from edgekit.errors import InputError
from edgekit.targeting import files
from edgekit.targeting.detection import Machine, Seen, recognise
from edgekit.targeting.inheritance import Layer, figures
from edgekit.targeting.jetpack import jetpack_among, jetpack_of_release, settled
from edgekit.targeting.schema import JetPack, PowerMode, Precision, Profile, Runtime, Target

__all__ = [
    "JetPack", "Machine", "PowerMode", "Precision", "Profile", "ResolvedTarget", "Runtime", "Seen",
    "Target", "all_profiles", "detect_machine", "family_names", "load_profile", "load_target",
    "own_target_files", "preferred_multiple", "resolve_target", "target_names", "targets_with_dla",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ResolvedTarget:
    """The target that a name means; `note` says what is not plain from the name, else is empty."""

    target: Target
    note: str


def target_names(beside: Path | None = None) -> tuple[str, ...]:
    """The names of all shipped targets and of the user's own, sorted.

    The user's own lie in a folder `targets` of the current folder and, before that, of `beside`,
    the folder of a recipe.
    """
    return tuple(sorted({*files.shipped_files(), *files.own_files(beside)}))


def family_names() -> tuple[str, ...]:
    """The names that mean a member of a family, sorted: the families that have a default."""
    return tuple(sorted(target.family for target in _shipped() if target.family_default))


def own_target_files(beside: Path | None = None) -> dict[str, Path]:
    """The user's own targets by name, and their files."""
    return files.own_files(beside)


def targets_with_dla() -> tuple[str, ...]:
    """The names of the shipped targets that have a deep learning accelerator, sorted."""
    return tuple(target.name for target in _shipped() if target.dla.cores)


def load_target(name: str, beside: Path | None = None) -> Target:
    """The target of that name, or the one in the file that it is the path of.

    `NAME@JETPACK` is a Jetson with another JetPack than its file's default. A user's own file goes
    before a shipped one of the same name. Raises InputError for an unknown name, with the nearest,
    and for a broken file, with every fault in it.
    """
    return load_profile(name, beside).target


def load_profile(name: str, beside: Path | None = None) -> Profile:
    """As `load_target`, with the files that the target is from."""
    plain, at, jetpack = name.partition("@")
    own = files.own_files(beside)
    if plain.endswith(".toml"):
        path = Path(plain)
        return _loaded(path, jetpack, own=not _is_shipped(path), at=at)
    if plain in own:
        return _loaded(own[plain], jetpack, own=True, at=at)
    shipped = files.shipped_files()
    if plain in shipped:
        return _loaded(shipped[plain], jetpack, own=False, at=at)
    known = (*sorted({*shipped, *own}), *family_names())
    near = difflib.get_close_matches(plain, known, 2, 0.5)
    raise InputError(
        f'there is no target called "{plain}"',
        wanted=", ".join(known),
        hint="Did you mean " + " or ".join(f'"{n}"' for n in near) + "?"
        if near
        else "A device of your own is one TOML file: --target ./my-board.toml",
    )


def all_profiles(beside: Path | None = None) -> tuple[Profile, ...]:
    """Every target, the user's own among them, sorted by name.

    Raises InputError with the faults of all of the user's files that have some.
    """
    found, broken = [], []
    for name in target_names(beside):
        try:
            found.append(load_profile(name, beside))
        except InputError as error:
            broken.append(error)
    if len(broken) > 1:
        lines = [
            f"{error.where}: {line}"
            for error in broken for line in (error.got or error.what).splitlines()
        ]  # fmt: skip
        raise InputError("these target files have faults", got="\n".join(lines))
    if broken:
        raise broken[0]
    return tuple(found)


def resolve_target(
    name: str, *, root: Path = Path("/"), beside: Path | None = None
) -> ResolvedTarget:
    """What a name means here: a family's is the module that this machine is, or the default.

    Engines of a processor that this machine has are built here. Raises InputError as `load_target`
    does, and on a module of the family without a profile.
    """
    family, at, jetpack = name.partition("@")
    if family in family_names() and family not in files.own_files(beside):
        return _member(family, f"{at}{jetpack}", root, beside)
    profile = load_profile(name, beside)
    target = profile.target
    if target.runtime.build == "device" and target.family == "cpu":
        here = recognise([target], root=root, gpus=())
        found = next((seen for seen in here.seen if seen.target == target.name), None)
        if found is not None:
            runtime = target.runtime.model_copy(update={"build": "here"})
            target = target.model_copy(update={"runtime": runtime})
    overridden = profile.own and target.profile in files.shipped_files()
    note = f'"{target.name}" is your own: {profile.files[0]}' if overridden else ""
    return ResolvedTarget(target=target, note=note)


def detect_machine(*, root: Path = Path("/"), gpus: Sequence[Gpu] | None = None) -> Machine:
    """What this machine is, from the files under `root`: a Jetson by its module's number.

    The graphics cards are those that `nvidia-smi` on PATH lists, where none are given.
    """
    targets = [profile.target for profile in all_profiles()]
    if gpus is None:
        gpus = () if board.is_tegra(root) else board.gpus()
    return recognise(targets, root=root, gpus=gpus)


def preferred_multiple(target: Target, precision: Precision) -> int:
    """The channel multiple that the target prefers at that precision, 1 where it has none."""
    return target.multiple.get(precision, 1)


def _member(family: str, jetpack: str, root: Path, beside: Path | None) -> ResolvedTarget:
    """The member of a family; `jetpack` is empty or "@6.0"."""
    machine = detect_machine(root=root, gpus=())
    if machine.family != family:
        default = next(t for t in _shipped() if t.family_default and t.family == family)
        target = load_target(f"{default.name}{jetpack}", beside)
        return ResolvedTarget(
            target=target, note=f'"{family}" means {target.title}: this machine is no {family}'
        )
    if not machine.target:
        members = machine.near or [t.name for t in _shipped() if t.family == family]
        raise InputError(
            f"there is no profile of the {family} module that this machine is",
            got=machine.evidence, wanted=", ".join(members),
            hint="Name the nearest of these, or write its profile: a file targets/my-board.toml "
            'that says extends = "the nearest", and what is different.',
        )  # fmt: skip
    target = load_target(machine.target, beside)
    found = jetpack_of_release(target.jetpacks, machine.jetpack)
    note = f'"{family}" means {target.title}: this machine is one ({machine.evidence})'
    if found and not jetpack:
        jetpack = f"@{found}"
    elif not jetpack and machine.jetpack:
        note += f"; its file knows no such JetPack, so that of {target.runtime.jetpack} is meant"
    target = load_target(f"{machine.target}{jetpack}", beside)
    return ResolvedTarget(target=target, note=note)


def _is_shipped(path: Path) -> bool:
    return path.resolve().parent == files.shipped_folder().resolve()


@functools.cache
def _shipped() -> tuple[Target, ...]:
    """All shipped targets, in the order of their names."""
    found = sorted(files.shipped_files().items())
    return tuple(_loaded(path, "", own=False).target for _, path in found)


def _loaded(path: Path, jetpack: str, *, own: bool, at: str = "") -> Profile:
    layer, paths = _read(path)
    profile = Profile(
        target=_validated(layer, paths), own=own, files=tuple(map(_shown, paths))
    )  # fmt: skip
    target = profile.target
    if "@" in target.name:
        raise _faulty([f'name: "{target.name}" has an @, after which a JetPack is named'], paths)
    if own:
        _refuse_taken_name(path, target)
    if not at:
        return profile
    chosen = jetpack_among(target.jetpacks, jetpack)
    if not chosen:
        raise InputError(
            f"{target.title} has no JetPack {jetpack}" if jetpack else "which JetPack is not said",
            where=f"{target.name}@{jetpack}",
            wanted=", ".join(f"{target.name}@{known}" for known in target.jetpacks)
            or f"{target.name}: it has no JetPack",
        )
    return replace(profile, target=_validated(layer, paths, chosen))


def _refuse_taken_name(path: Path, target: Target) -> None:
    """Results are filed by a target's name, so its file must be where the name is looked up."""
    if path.resolve().parent.name == files.FOLDER:
        if target.name != path.stem:
            raise InputError(
                "this target file has faults", where=str(path),
                got=f'name: "{target.name}" is not what the file is called',
                hint=f'Call the file {target.name}.toml, or the target "{path.stem}".',
            )  # fmt: skip
    elif target.name in files.shipped_files():
        raise InputError(
            "this target file has the name of a target that edgekit ships", where=str(path),
            got=f'name = "{target.name}"', wanted="a name of its own",
            hint=f'Call it "my-{target.name}", say: results are filed under that name. A file '
            f"{files.FOLDER}/{target.name}.toml beside the recipe takes the place of ours.",
        )  # fmt: skip


def _read(path: Path) -> tuple[Layer, tuple[Path, ...]]:
    return _read_shipped(path) if _is_shipped(path) else files.read_file(path)


@functools.cache
def _read_shipped(path: Path) -> tuple[Layer, tuple[Path, ...]]:
    return files.read_file(path)


def _shown(path: Path) -> str:
    """A shipped file by its name, another by its path."""
    shipped = files.shipped_folder().resolve()
    resolved = path.resolve()
    if shipped in resolved.parents:
        return f"{files.FOLDER}/{resolved.relative_to(shipped).as_posix()}"
    return str(path)


def _validated(layer: Layer, paths: Sequence[Path], jetpack: str = "") -> Target:
    found = settled(layer, jetpack)
    document = {**found.values}
    document.pop("extends", None)
    document.setdefault("sources", dict(found.sources))
    document.setdefault("unverified", sorted(found.unverified))
    said = [f"{table}: {text}" for table, text in _sources_of_nothing(found)]
    try:
        target = Target.model_validate(document)
    except ValidationError as error:
        said += documents.faults(error, Target)
        raise _faulty(said, paths) from error
    if said:
        raise _faulty(said, paths)
    return target


def _sources_of_nothing(layer: Layer) -> Iterator[tuple[str, str]]:
    """What is said of sources and marks whose figure is not there; a mistyped place is one."""
    known = list(figures(layer.values))
    for table, places in (("sources", layer.sources), ("unverified", layer.unverified)):
        for place in sorted(set(places) - set(known)):
            inside = [name for name in known if name.startswith(f"{place}.")]
            near = inside or difflib.get_close_matches(place, known, 1, 0.5)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            said = "only inherits those figures" if inside else "has no such figure"
            yield table, f'"{place}": this file {said}{hint}'


def _faulty(faults: Sequence[str], paths: Sequence[Path]) -> InputError:
    return InputError(
        "this target file has faults",
        where=", which extends ".join(map(str, paths)), got="\n".join(faults),
    )  # fmt: skip
