"""Memory, disk, and whether we may write where a build writes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import psutil

from edgekit.doctor.finding import Finding, State

_GIB = 1 << 30
_LEAST_MEMORY = 1 * _GIB
_LEAST_DISK = 1 * _GIB


def findings() -> tuple[Finding, ...]:
    """Free memory, then the current folder, where builds go, and the one for temporary files."""
    return (
        _memory(),
        folder_finding("current folder", Path.cwd(), "builds and their cache",
                       "edgekit build -o FOLDER"),
        folder_finding("temporary folder", Path(tempfile.gettempdir()), "graphs between two steps",
                       "export TMPDIR=FOLDER"),
    )  # fmt: skip


def folder_finding(name: str, folder: Path, purpose: str, remedy: str) -> Finding:
    """Whether a folder takes files, and how much space is left in it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"edgekit")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(
            name=name, state=State.WRONG, purpose=purpose,
            found=f"{folder}: {error.strerror or error}",
            remedy=f"one that may be written and has space: {remedy}",
        )  # fmt: skip
    enough = free >= _LEAST_DISK
    return Finding(
        name=name, state=State.GOOD if enough else State.WRONG, purpose=purpose,
        found=f"{folder}: {free / _GIB:.1f} GiB free",
        remedy="" if enough else f"free some space, or use another disk: {remedy}",
    )  # fmt: skip


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    enough = memory.available >= _LEAST_MEMORY
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB are free"
    return Finding(
        name="memory", state=State.GOOD if enough else State.WRONG, found=found,
        purpose="building engines",
        remedy="" if enough else "end other programs; on a Jetson the desktop: "
        "sudo systemctl isolate multi-user.target",
    )  # fmt: skip
