"""Python and the packages: there, new enough, alone in their place, and loading."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from edgekit.doctor.finding import Finding, State

_OLDEST_PYTHON = (3, 10)
_IMPORT_SECONDS = 60.0
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:>=\s*(\d+(?:\.\d+)*))?([^;]*)(?:;(.*))?$")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A package that edgekit can use.

    `distributions` bring the module, the usual one first; two of them at once overwrite each
    other's files. `loads`: it has libraries of its own, and is imported to see whether they load.
    """

    module: str
    distributions: tuple[str, ...]
    purpose: str
    extra: str = ""
    loads: bool = False


_ORT = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml",
    "onnxruntime-qnn", "onnxruntime-training",
)  # fmt: skip

PARTS = (
    Part(module="onnxruntime", distributions=_ORT, loads=True,
         purpose="running, calibrating and measuring on the CPU"),
    Part(module="openvino", distributions=("openvino",), extra="openvino", loads=True,
         purpose="engines for x86 by OpenVINO"),
    Part(module="torch", distributions=("torch",), extra="compress",
         purpose="recover: training what was cut"),
    Part(module="accelerate", distributions=("accelerate",), extra="accelerate",
         purpose="recover: mixed precision, several GPUs"),
    Part(module="onnxscript", distributions=("onnxscript",), extra="compress",
         purpose="exporting PyTorch modules"),
    Part(module="onnxsim", distributions=("onnxsim", "onnx-simplifier"), extra="compress",
         purpose="simplifying graphs"),
    Part(module="safetensors", distributions=("safetensors",), extra="compress",
         purpose="reading weights"),
    Part(module="tensorrt_rtx", distributions=("tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
         extra="rtx", loads=True, purpose="engines for RTX GPUs, preflight for others"),
    Part(module="tensorrt", extra="tensorrt", loads=True,
         distributions=("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu11"),
         purpose="engines on a Jetson or another NVIDIA GPU"),
    Part(module="pycuda", distributions=("pycuda",), extra="pycuda", loads=True,
         purpose="device memory for TensorRT; without it, libcudart itself"),
)  # fmt: skip

_RTX_ELSEWHERE = "its wheels exist for Linux on x86-64 only; build on such a machine"
_TENSORRT_REMEDY = (
    "on a Jetson, JetPack brings it: make the environment with --system-site-packages; "
    "elsewhere: pip install 'edgekit[tensorrt]'"
)
_TENSORRT_LIBRARIES = (
    "its libraries do not load: sudo apt-get install libnvinfer-bin python3-libnvinfer on a "
    "Jetson, elsewhere pip install --force-reinstall tensorrt"
)


def findings() -> tuple[Finding, ...]:
    """Python, edgekit's own requirements together, then each package that it can use."""
    said = _import_errors([part.module for part in PARTS if part.loads])
    floors = _floors()
    found = (examined(part, floors=floors, error=said.get(part.module, "")) for part in PARTS)
    return (_python(), *_own_requirements(), *found)


def examined(part: Part, *, floors: Mapping[str, str], error: str) -> Finding:
    """What is found of a package; `error` is what its import said, empty where it went well."""
    installed = [(name, version) for name in part.distributions if (version := _version(name))]
    found = ", ".join(f"{name} {version}" for name, version in installed)
    if len(installed) == 1 and installed[0][0] == part.distributions[0]:
        found = installed[0][1]
    state, remedy = _judged(part, installed, floors, error)
    if state is State.WRONG and error:
        found = f"{found or 'without a version'}; its import fails: {error}"
    return Finding(name=part.module, state=state, found=found, purpose=part.purpose, remedy=remedy)


def _judged(
    part: Part, installed: Sequence[tuple[str, str]], floors: Mapping[str, str], error: str
) -> tuple[State, str]:
    usual = part.distributions[0]
    spec = importlib.util.find_spec(part.module)
    if not installed and spec is None:
        return State.MISSING, _missing_remedy(part)
    if len(installed) > 1 and usual == "onnxruntime":
        both = " ".join(name for name, _ in installed)
        return State.WRONG, f"pip uninstall -y {both}; pip install {usual}"
    if spec is None or spec.origin is None:  # a folder that an uninstallation left
        return State.WRONG, f"pip install --force-reinstall {usual}"
    if error:
        remedy = f"pip install --force-reinstall {usual}"
        return State.WRONG, _TENSORRT_LIBRARIES if part.module == "tensorrt" else remedy
    for name, version in installed:
        floor = floors.get(name, "")
        if floor and _numbers(version) < _numbers(floor):
            return State.WRONG, f"pip install --upgrade '{name}>={floor}'"
    return State.GOOD, ""


def _missing_remedy(part: Part) -> str:
    if part.module == "tensorrt":
        return _TENSORRT_REMEDY
    if part.module == "tensorrt_rtx" and not _on_x86_linux():
        return _RTX_ELSEWHERE
    return f"pip install 'edgekit[{part.extra}]'" if part.extra else "pip install edgekit"


def _python() -> Finding:
    good = sys.version_info[:2] >= _OLDEST_PYTHON
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    return Finding(
        name="python", state=State.GOOD if good else State.WRONG,
        found=f"{platform.python_version()}, {sys.executable}", purpose="everything",
        remedy="" if good else f"make an environment with Python {oldest} or newer",
    )  # fmt: skip


def _own_requirements() -> Iterator[Finding]:
    """One line where all of them are good, else one for each that is not."""
    wanted = [one for one in _requirements() if not one.condition]
    used = {name for part in PARTS for name in part.distributions}
    wanted = [one for one in wanted if one.name not in used]
    bad = 0
    for one in wanted:
        version = _version(one.name)
        if version and _numbers(version) >= _numbers(one.floor):
            continue
        bad += 1
        yield Finding(
            name=one.name, state=State.WRONG if version else State.MISSING, found=version,
            purpose="everything", remedy=f"pip install --upgrade '{one.name}>={one.floor}'",
        )  # fmt: skip
    if not wanted:
        yield Finding(
            name="requirements", state=State.WRONG, found="edgekit itself is not installed",
            purpose="everything", remedy="pip install edgekit",
        )  # fmt: skip
    elif not bad:
        yield Finding(
            name="requirements", state=State.GOOD, found=f"all {len(wanted)} are here",
            purpose="everything",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Requirement:
    name: str
    floor: str
    condition: str


def _requirements() -> list[_Requirement]:
    """What the installed edgekit asks for; nothing where it is not installed."""
    try:
        lines = metadata.requires("edgekit") or []
    except metadata.PackageNotFoundError:
        return []
    found = (match for line in lines if (match := _REQUIREMENT.match(line)))
    return [
        _Requirement(
            name=match[1].lower().replace("_", "-"), floor=match[2] or "0",
            condition=(match[4] or "").strip(),
        )
        for match in found
    ]  # fmt: skip


def _floors() -> dict[str, str]:
    return {one.name: one.floor for one in _requirements() if one.floor != "0"}


def _import_errors(modules: Iterable[str]) -> dict[str, str]:
    """What the import of each module that is there says, each in a process; empty is no fault."""
    started = {
        module: subprocess.Popen(
            [sys.executable, "-c", f"import {module}"], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        for module in modules
        if importlib.util.find_spec(module) is not None
    }  # fmt: skip
    return {module: _end_of(process) for module, process in started.items()}


def _end_of(process: subprocess.Popen[str]) -> str:
    try:
        _, said = process.communicate(timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"it did not end within {_IMPORT_SECONDS:.0f} s"
    if process.returncode == 0:
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with code {process.returncode}"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4])


def _on_x86_linux() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"
