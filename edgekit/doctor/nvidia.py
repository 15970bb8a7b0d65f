"""NVIDIA's parts: GPU, driver, CUDA, TensorRT's libraries, trtexec, JetPack, power mode.

Written from captured files and output; no part of it has run on a Jetson or beside a GPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from edgekit import board
from edgekit.doctor.finding import Finding, State
from edgekit.engines.here import facts_here

_GPU = "running engines on an NVIDIA GPU"


def findings(root: Path = Path("/")) -> tuple[Finding, ...]:
    """The GPU and what belongs to it; a Jetson's own lines only on one."""
    facts = facts_here(root)
    tegra = board.is_tegra(root)
    gpu = _tegra(facts["device"], facts.get("compute_capability", "")) if tegra else _discrete()
    has_gpu = gpu.state is not State.MISSING
    lines = [gpu, _cuda(facts.get("cuda", ""), wanted=has_gpu)]
    lines += [_trtexec(root), *(_jetson(root) if tegra else ())]
    return tuple(lines)


def _tegra(model: str, capability: str) -> Finding:
    known = f"{model}, compute capability {capability}" if capability else model
    return Finding(
        name="GPU", state=State.GOOD if capability else State.WRONG, found=known, purpose=_GPU,
        remedy="" if capability else "a Tegra that this edgekit does not know: update edgekit",
    )  # fmt: skip


def _discrete() -> Finding:
    found = board.gpus()
    if found:
        said = "; ".join(
            f"{gpu.name}, compute capability {gpu.compute_capability}, driver {gpu.driver}"
            for gpu in found
        )
        return Finding(name="GPU", state=State.GOOD, found=said, purpose=_GPU)
    if shutil.which("nvidia-smi"):
        return Finding(
            name="GPU", state=State.WRONG, found="nvidia-smi is here and lists no GPU",
            purpose=_GPU,
            remedy="run nvidia-smi to see why; after an update of the driver: sudo reboot; "
            "a container needs --gpus all",
        )  # fmt: skip
    return Finding(
        name="GPU", state=State.MISSING, found="", purpose=_GPU,
        remedy="with a GPU: install NVIDIA's driver; without one nothing is needed",
    )  # fmt: skip


def _cuda(version: str, *, wanted: bool) -> Finding:
    if version:
        return Finding(name="CUDA", state=State.GOOD, found=version, purpose=_GPU)
    remedy = "sudo apt-get install cuda-toolkit, or on a Jetson nvidia-jetpack"
    return Finding(
        name="CUDA", state=State.MISSING, found="", purpose=_GPU,
        remedy=remedy if wanted else f"only beside a GPU: {remedy}",
    )  # fmt: skip


def _trtexec(root: Path) -> Finding:
    place = board.trtexec_place(root)
    return Finding(
        name="trtexec", state=State.GOOD if place else State.MISSING,
        found=str(place) if place else "",
        purpose="engines where TensorRT's Python is out of reach",
        remedy="" if place else "on a Jetson: sudo apt-get install libnvinfer-bin",
    )  # fmt: skip


def _jetson(root: Path) -> Iterator[Finding]:
    l4t, jetpack = board.l4t_version(root), board.jetpack_version(root)
    yield Finding(
        name="JetPack", state=State.GOOD if jetpack else State.WRONG,
        found=f"{jetpack} (L4T {l4t})" if jetpack else f"L4T {l4t}" if l4t else "no L4T is named",
        purpose="which TensorRT a graph is written for",
        remedy="" if jetpack else "a release that this edgekit does not know: update edgekit, or "
        "name the JetPack with the target",
    )  # fmt: skip
    libraries = board.libnvinfer_version(root)
    yield Finding(
        name="TensorRT libraries", state=State.GOOD if libraries else State.MISSING,
        found=libraries, purpose="building and running engines",
        remedy="" if libraries else "sudo apt-get install nvidia-jetpack",
    )  # fmt: skip
    mode = board.power_mode(root)
    yield Finding(
        name="power mode", state=State.GOOD if mode else State.WRONG,
        found=mode or "nvpmodel -q does not tell",
        purpose="figures that mean something", remedy="" if mode else "sudo nvpmodel -q",
    )  # fmt: skip
