"""What is known of the machine that we are on, as far as an engine may depend on it.

Nothing is imported to learn it: files of the system, the versions of installed packages, and
`nvidia-smi` and `nvpmodel` where they are on PATH.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from pathlib import Path

from edgekit import board, machine
from edgekit.engines.base import package_version

DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu11", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt_rtx": ("tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
    "cuda": ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12",
             "nvidia-cuda-runtime-cu11"),
}  # fmt: skip
"""The distributions that bring a package or a library, the usual one first."""

CAPABILITY_OF_SOC: Mapping[str, str] = {
    "tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0",
}  # fmt: skip
"""The compute capability of each Tegra's GPU: jetson_stats' table."""


def facts_here(root: Path = Path("/")) -> Mapping[str, str]:
    """What this machine is, by name; a key that is not there is not known.

    Always `machine` (the architecture), `system` and `cores` (physical ones that this process may
    use); `cpu` and `cpu_flags` (the ones of `machine.FLAGS`, space-separated) where the system
    says; and where present `device` (the Jetson's module or the GPU), `compute_capability`, `soc`,
    `board`, `driver`, `cuda`, `tensorrt`, `tensorrt_rtx`, `onnxruntime`, `openvino`, `l4t`,
    `jetpack`, `power_mode`. Where several GPUs differ, the first one is meant, as CUDA means it.
    """
    return dict(_facts(root))


def processor_here() -> Mapping[str, str]:
    """What of this machine an engine for its CPU is built for."""
    facts = facts_here()
    found = {key: facts.get(key, "") for key in ("machine", "system", "cpu", "cores")}
    flags = set(facts.get("cpu_flags", "").split()) - {"hypervisor"}
    return {**found, "cpu_flags": " ".join(sorted(flags))}


@functools.cache
def _facts(root: Path) -> Mapping[str, str]:
    cpuinfo = root / "proc" / "cpuinfo"
    facts = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": machine.cpu_model(cpuinfo),
        "cpu_flags": " ".join(sorted(machine.cpu_flags(cpuinfo))),
        "cores": str(machine.physical_cores(machine.usable_cpus())),
        "cuda": board.cuda_version(root) or _installed("cuda"),
        "tensorrt": _installed("tensorrt") or board.libnvinfer_version(root),
    }
    facts |= {name: _installed(name) for name in ("tensorrt_rtx", "onnxruntime", "openvino")}
    facts |= _tegra(root) if board.is_tegra(root) else _discrete()
    return {name: value for name, value in facts.items() if value}


def _tegra(root: Path) -> dict[str, str]:
    soc = board.soc_name(root)
    return {
        "device": board.model_name(root),
        "soc": soc,
        "board": " ".join(board.board_numbers(root)),
        "compute_capability": CAPABILITY_OF_SOC.get(soc, ""),
        "l4t": board.l4t_version(root),
        "jetpack": board.jetpack_version(root),
        "power_mode": board.power_mode(root),
    }


def _discrete() -> dict[str, str]:
    found = board.gpus()
    if not found:
        return {}
    first = found[0]
    return {
        "device": first.name,
        "compute_capability": first.compute_capability,
        "driver": first.driver,
    }


def _installed(package: str) -> str:
    """The version of the first distribution that brings the package; empty where none does."""
    versions = (package_version(name) for name in DISTRIBUTIONS[package])
    return next((version for version in versions if version != "absent"), "")
