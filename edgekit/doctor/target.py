"""What one target needs for its engine to be built on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from edgekit import board
from edgekit.bench.conditions import check_start
from edgekit.bench.device_state import read_state
from edgekit.doctor.finding import Finding, State, named
from edgekit.targets import Target, detect_machine, resolve_target

_GIB = 1 << 30


def resolved(name: str, root: Path = Path("/")) -> Target:
    """The target of that name. Raises InputError as `targets.resolve_target` does."""
    return resolve_target(name, root=root).target


def needed(
    target: Target, findings: Sequence[Finding], root: Path = Path("/")
) -> tuple[Finding, ...]:
    """A line for each thing that the target's engine needs here, out of all that was found."""
    runtime = target.runtime
    lines: list[Finding] = []
    if runtime.build == "device":
        lines.append(_device(target, root))
    if runtime.name == "tensorrt":
        lines.append(_builder(target, findings, root))
    else:
        lines.append(_package(target, findings))
    lines += _memory(target)
    lines += [named(findings, name) for name in ("current folder", "temporary folder")]
    return tuple(lines)


def _package(target: Target, findings: Sequence[Finding]) -> Finding:
    found = named(findings, target.runtime.name)
    wanted = f"{target.runtime.name} builds its engines"
    return Finding(
        name=found.name, state=found.state, found=found.found, purpose=wanted, remedy=found.remedy
    )


def _device(target: Target, root: Path) -> Finding:
    here = detect_machine(root=root)
    same = target.profile in {seen.target for seen in here.seen}
    return Finding(
        name="device", state=State.GOOD if same else State.MISSING, found=here.evidence,
        purpose=f"engines for {target.title} are built on the device",
        remedy="" if same else f"edgekit build --target {target.name} writes its device recipe "
        "here; edgekit build --from FOLDER goes on there",
    )  # fmt: skip


def conditions(target: Target, root: Path = Path("/")) -> Iterator[Finding]:
    """What of the target's demands a measurement that began now would break, where it is here."""
    if target.runtime.build == "device" and _device(target, root).state is not State.GOOD:
        return
    judged = check_start(target, read_state(root))
    for broken in judged.broken:
        yield Finding(
            name="conditions", state=State.WRONG, found=f"{broken.what}: {broken.got}",
            purpose=f"a measurement that decides wants {broken.wanted}", remedy=broken.mend,
        )  # fmt: skip
    for unread in judged.unread:
        yield Finding(
            name="conditions", state=State.MISSING, found=f"{unread.what}: {unread.reason}",
            purpose="a measurement that nobody can check decides nothing",
            remedy="run edgekit as root where it measures",
        )  # fmt: skip


def _builder(target: Target, findings: Sequence[Finding], root: Path) -> Finding:
    """TensorRT by its Python package, else by trtexec, in the version of the target."""
    package, tool = named(findings, "tensorrt"), named(findings, "trtexec")
    used = package if package.state is State.GOOD else tool
    version = package.found if used is package else board.libnvinfer_version(root)
    wanted = target.runtime.version
    state, remedy = used.state, package.remedy or tool.remedy
    if state is State.GOOD and version and not _begins(version, wanted):
        state = State.WRONG
        jetpack = board.jetpack_version(root) or "JETPACK"
        remedy = (
            f"the profile is of TensorRT {wanted}; name this device's JetPack with the target: "
            f"--target {target.profile}@{jetpack}"
        )
    found = f"{used.name} {version}".strip() if used.state is State.GOOD else used.found
    return Finding(
        name="TensorRT", state=state, found=found, purpose="it builds the engine", remedy=remedy
    )


def _begins(version: str, wanted: str) -> bool:
    """Whether the version is of the wanted one's major and minor."""
    return version.split(".")[:2] == wanted.split(".")[:2]


def _memory(target: Target) -> Iterator[Finding]:
    workspace = target.builder.workspace_bytes
    if workspace is None or target.runtime.build == "anywhere":
        return
    free = int(psutil.virtual_memory().available)
    enough = free >= workspace
    yield Finding(
        name="workspace", state=State.GOOD if enough else State.WRONG,
        found=f"{free / _GIB:.1f} GiB are free, {workspace / _GIB:.1f} GiB may be used",
        purpose="the builder's scratch memory",
        remedy="" if enough else "lower engine.workspace in the recipe, or end other programs",
    )  # fmt: skip
