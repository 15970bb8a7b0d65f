"""What is missing on this machine, what for, and the command that mends it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that edgekit can use: whether it is here, what for, and how to get it."""

    name: str
    present: bool
    version: str
    purpose: str
    remedy: str


# The module, its distribution, what it is for, and the extra that brings it.
_PACKAGES = (
    ("onnxruntime", "onnxruntime", "running, calibrating and measuring on the CPU", "edgekit"),
    ("torch", "torch", "recover: training what was cut", "edgekit[compress]"),
    ("accelerate", "accelerate", "recover: mixed precision, several GPUs", "edgekit[accelerate]"),
    ("onnxscript", "onnxscript", "exporting PyTorch modules", "edgekit[compress]"),
    ("onnxsim", "onnxsim", "simplifying graphs", "edgekit[compress]"),
    ("tensorrt_rtx", "tensorrt_rtx_cu12", "engines for RTX GPUs, preflight for others",
     "edgekit[rtx]"),
)  # fmt: skip

_RTX_ELSEWHERE = "its wheels exist for Linux on x86-64 only; build on such a machine"
_TENSORRT_REMEDY = (
    "on a Jetson, JetPack brings it: make the environment with --system-site-packages; "
    "elsewhere: pip install 'edgekit[tensorrt]'"
)


def examine() -> tuple[Finding, ...]:
    """Python and every optional part, found or not. Nothing heavy is imported to learn it."""
    python = Finding(
        name="python",
        present=True,
        version=platform.python_version(),
        purpose="everything",
        remedy="",
    )
    found = [_finding(*package) for package in _PACKAGES]
    tensorrt = _finding("tensorrt", "tensorrt", "engines on a Jetson or another NVIDIA GPU", "")
    return (python, *found, tensorrt)


def _finding(module: str, distribution: str, purpose: str, extra: str) -> Finding:
    present = importlib.util.find_spec(module) is not None
    remedy = ""
    if not present and module == "tensorrt":
        remedy = _TENSORRT_REMEDY
    elif not present:
        elsewhere = module == "tensorrt_rtx" and not _on_x86_linux()
        remedy = _RTX_ELSEWHERE if elsewhere else f"pip install '{extra}'"
    return Finding(
        name=module,
        present=present,
        version=_version(distribution) if present else "",
        purpose=purpose,
        remedy=remedy,
    )


def _on_x86_linux() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown version"
