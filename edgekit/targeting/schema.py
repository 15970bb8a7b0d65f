"""What a target's file may say, and the Target that it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["fp32", "fp16", "int8"]
Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
Texts = Annotated[tuple[str, ...], Field(strict=False)]

DialectName = Literal[
    "onnxruntime", "tensorrt", "tensorrt-8", "tensorrt-10", "tensorrt-strong", "ort-avx2",
    "ort-vnni", "ort-arm", "dla",
]  # fmt: skip
"""The dialects of `quantize.dialects`, and the two names that the runtime's version and the
processor decide about."""

# What an engine does not depend on.
_ABOUT = {
    "title", "family_default", "sources", "unverified", "jetpacks", "power_modes", "identity",
    "conditions",
}  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Runtime(_Part):
    """What runs engines there. `build`: on this machine, on any, or on the device only.

    Of a device with JetPacks, `version`, `dialect`, `opset`, `cuda`, `python` and `drives_dla` are
    those of its `jetpack`. `opset` is the newest that models are brought down to.
    """

    name: Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]
    version: Version
    dialect: DialectName
    build: Literal["here", "anywhere", "device"]
    opset: Count
    jetpack: str = ""
    trtexec: str = ""
    cuda: str = ""
    python: str = ""
    drives_dla: bool = False


class JetPack(_Part):
    """What one JetPack brings: TensorRT's `version`, and how its graphs are written."""

    version: Version
    dialect: DialectName
    opset: Count
    cuda: str = ""
    python: str = ""
    drives_dla: bool = False


class PowerMode(_Part):
    """A power mode by the name that nvpmodel has for it; what is not known of it is left out.

    `since` is the first JetPack that has it, empty where all do. `peak` as Target has it.
    """

    watts: Rate | None = None
    gpu_hz: Rate | None = None
    bandwidth_bytes_per_s: Rate | None = None
    peak: dict[Precision, Rate] = Field(default_factory=dict)
    since: str = ""


class Memory(_Part):
    """How much, how fast, and whether the CPU takes from the same pool."""

    bytes: Count | None = None
    bandwidth_bytes_per_s: Rate
    shared_with_cpu: bool


class Gpu(_Part):
    """Multiprocessors, their CUDA cores together, and the highest clock.

    Where the power modes have clocks of their own, theirs are meant.
    """

    sms: Count | None = None
    cores: Count | None = None
    hz: Rate | None = None


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
    """Defaults of the engine builder; a recipe's [engine] wins.

    `memory_cap_bytes` and `time_limit_s` are for the process that builds.
    """

    workspace_bytes: Count | None = None
    memory_cap_bytes: Count | None = None
    time_limit_s: Rate | None = None


class Conditions(_Part):
    """What must hold while the device is measured, else the run is invalid; unsaid is as it likes.

    `power_mode`: true for the target's own, or a name of nvpmodel's. `clocks_pinned`: by
    jetson_clocks. `max_start_temperature_c` is of the hottest zone before the first call;
    `max_other_load` the share of all processors that others took, over the run; `governor` that of
    every CPU. `not_throttled`: nothing slowed the device down for its heat or its supply.
    """

    power_mode: bool | str = False
    clocks_pinned: bool = False
    max_start_temperature_c: Rate | None = None
    max_other_load: Annotated[float, Field(gt=0, le=1)] | None = None
    governor: str = ""
    not_throttled: bool = False


class Identity(_Part):
    """How the device is recognised.

    A Jetson by NVIDIA's `p_numbers` of the module (`soc` is its chip); a GPU by the `gpu_names` of
    nvidia-smi; a CPU by one of `cpu_flags` and none of `missing_flags`, both of `machine.FLAGS`; a
    board by how its `models` begin in the device tree.
    """

    p_numbers: tuple[Annotated[str, Field(pattern=r"^p\d{4}-\d{4}$")], ...] = Field(
        default=(), strict=False
    )
    soc: str = ""
    gpu_names: Texts = ()
    cpu_flags: Texts = ()
    missing_flags: Texts = ()
    models: Texts = ()


class Target(_Part):
    """A device. `multiple` is the preferred channel multiple by precision, `peak` operations/s.

    A precision that is not in `peak` has an unknown rate; without `memory` it is unknown too.
    Where there are `power_modes`, the peak and the bandwidth are those of `power_mode`.
    `efficiency` is for estimates (models/cost/roofline.py).
    `family_default`: the target that the family's name means where no member is at hand.
    `sources` says of each figure, by its place in the file, where it is from; `unverified` are the
    places of the figures that nobody has confirmed.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*(@\d+(\.\d+)*)?$")
    title: str = Field(min_length=1)
    family: Literal["cpu", "rtx", "jetson"]
    family_default: bool = False
    compute_capability: str = Field(default="", pattern=r"^(\d+\.\d+)?$")
    precisions: tuple[Precision, ...] = Field(min_length=1, strict=False)
    multiple: dict[Precision, Count]
    runtime: Runtime
    memory: Memory | None = None
    gpu: Gpu = Gpu()
    peak: dict[Precision, Rate] = Field(default_factory=dict)
    power_mode: str = ""
    power_modes: dict[str, PowerMode] = Field(default_factory=dict)
    jetpacks: dict[Version, JetPack] = Field(default_factory=dict)
    efficiency: Shares = Shares()
    dla: Dla = Dla()
    builder: Builder = Builder()
    conditions: Conditions = Conditions()
    identity: Identity = Identity()
    sources: dict[str, str] = Field(default_factory=dict)
    unverified: Texts = ()

    @property
    def profile(self) -> str:
        """The name of its file: without the JetPack that was asked for."""
        return self.name.partition("@")[0]

    @property
    def demanded_power_mode(self) -> str:
        """The power mode that a measurement must be taken in; empty where any will do."""
        demanded = self.conditions.power_mode
        return demanded if isinstance(demanded, str) else self.power_mode if demanded else ""

    def decides(self) -> dict[str, Any]:
        """All of the target that an engine for it may depend on, JSON-ready."""
        return self.model_dump(mode="json", exclude=_ABOUT)

    @model_validator(mode="after")
    def _knows_its_gpu(self) -> Target:
        if self.runtime.name.startswith("tensorrt") and not self.compute_capability:
            raise ValueError("compute_capability is missing: a GPU's engine is built for one")
        return self

    @model_validator(mode="after")
    def _names_what_it_has(self) -> Target:
        if self.jetpacks and self.runtime.jetpack not in self.jetpacks:
            known = ", ".join(self.jetpacks)
            raise ValueError(f'runtime.jetpack is "{self.runtime.jetpack}", and jetpacks: {known}')
        if self.power_mode and self.power_mode not in self.power_modes:
            known = ", ".join(self.power_modes) or "none"
            raise ValueError(f'power_mode is "{self.power_mode}", and power_modes: {known}')
        if self.conditions.power_mode is True and not self.power_mode:
            raise ValueError("conditions.power_mode is true, and there is no power_mode")
        return self


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A target and the file that it is from. `own`: the user's, not one that edgekit ships.

    `files` are the file and those that it extends, itself first, by name.
    """

    target: Target
    files: tuple[str, ...]
    own: bool
