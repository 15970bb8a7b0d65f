"""What a TensorRT builder is told, by what its version has: nothing here asks for a number.

Runs in the child that builds. The names that exist in 8.5, 8.6, 10.x, 11 and TensorRT-RTX are
those of NVIDIA/TensorRT's pybind sources at the releases' tags; of all these only TensorRT-RTX has
been run with it so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgekit.engines.trt.job import CompileJob


class RefusalError(Exception):
    """This TensorRT, or this device, cannot be asked for what the job asks for."""


@dataclass
class Account:
    """What was asked of the builder, in its own words, and what is to be said about it."""

    flags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dla_layers: int = 0
    dla_fallbacks: list[str] = field(default_factory=list)


def is_typed(trt: Any, job: CompileJob) -> bool:
    """Whether the network takes its types from the graph.

    TensorRT 11 and TensorRT-RTX know no other way; 10.x does so where asked; 8.x cannot.
    """
    if not hasattr(trt.BuilderFlag, "FP16"):
        return True
    can = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    if job.typing == "strong" and not can:
        raise RefusalError(
            f"TensorRT {trt.__version__} has no strongly typed networks; they came with 10.0"
        )
    if job.typing == "auto":
        # The DLA of 10.7 and before takes its precision from flags.
        return can and job.typed_graph and job.dla_core is None
    return job.typing == "strong"


def network_flags(trt: Any, *, typed: bool, account: Account) -> int:
    """The bits for `create_network`."""
    names = trt.NetworkDefinitionCreationFlag
    bits = 0
    if hasattr(names, "EXPLICIT_BATCH"):  # needed on 8.x, ignored on 10.x, gone on 11
        bits |= 1 << int(names.EXPLICIT_BATCH)
    if typed and hasattr(names, "STRONGLY_TYPED"):
        bits |= 1 << int(names.STRONGLY_TYPED)
        account.flags.append("STRONGLY_TYPED")
    return bits


def configure(trt: Any, builder: Any, network: Any, job: CompileJob, account: Account) -> Any:
    """The builder's configuration for the job; `account` tells what is in it.

    Raises RefusalError.
    """
    config = builder.create_builder_config()
    _limit_workspace(trt, config, job)
    _set_precisions(trt, config, job, account)
    _set_options(trt, config, job, account)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if job.compute_capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, job.compute_capability), 0)
    if job.extents:
        profile = builder.create_optimization_profile()
        for name, (smallest, best, largest) in job.extents.items():
            profile.set_shape(name, smallest, best, largest)
        config.add_optimization_profile(profile)
    if job.dla_core is not None:
        _place_on_dla(trt, builder, network, config, job, account)
    return config


def _limit_workspace(trt: Any, config: Any, job: CompileJob) -> None:
    # Without a limit the builder may take all of the device's memory, which on a Jetson is
    # everybody's.
    if hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    else:
        config.max_workspace_size = job.workspace_bytes


def _set_precisions(trt: Any, config: Any, job: CompileJob, account: Account) -> None:
    if is_typed(trt, job):
        if not job.typed_graph:
            account.notes.append(
                f"types come from the graph, and it holds no float16: what is not quantized runs "
                f"in float32, though {job.precision} was asked for"
            )
        return
    # A layer without Q/DQ takes the fastest type that it may: INT8 alone would leave it in FP32.
    wanted = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}[job.precision]
    for name in wanted:
        if name == "FP16" and not job.half_allowed:
            continue
        _set_flag(trt, config, name, account)


def _set_options(trt: Any, config: Any, job: CompileJob, account: Account) -> None:
    if job.sparse_layers:
        # It allows sparse kernels and forces none; the builder looks at each layer itself.
        _set_flag(trt, config, "SPARSE_WEIGHTS", account)
        account.notes.append(
            f"the weights of {job.sparse_layers} layers are 2:4: sparse kernels are allowed"
        )
    if job.refit:
        _set_flag(trt, config, "REFIT", account)
    if job.strip:
        _set_flag(trt, config, "STRIP_PLAN", account)
        _set_flag(trt, config, "REFIT_IDENTICAL", account)
        account.notes.append("the plan is stripped: its weights come from the ONNX file by refit")
    if job.optimization_level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise RefusalError(
                f"TensorRT {trt.__version__} has no optimization level; it came with 8.6"
            )
        config.builder_optimization_level = job.optimization_level
        if config.builder_optimization_level != job.optimization_level:  # out of its range
            raise RefusalError(
                f"TensorRT {trt.__version__} has no optimization level {job.optimization_level}"
            )


def _set_flag(trt: Any, config: Any, name: str, account: Account) -> None:
    if not hasattr(trt.BuilderFlag, name):
        raise RefusalError(f"TensorRT {trt.__version__} has no builder flag {name}")
    config.set_flag(getattr(trt.BuilderFlag, name))
    account.flags.append(name)


def _place_on_dla(
    trt: Any, builder: Any, network: Any, config: Any, job: CompileJob, account: Account
) -> None:
    """Everything that the DLA takes goes there, the rest to the GPU, counted and named."""
    core = job.dla_core
    cores = int(builder.num_DLA_cores)
    if core is None or not 0 <= core < cores:
        raise RefusalError(
            f"DLA core {core} was asked for, and TensorRT {trt.__version__} sees {cores} here"
        )
    moving = [name for name, (least, _, most) in job.extents.items() if least != most]
    if moving:
        raise RefusalError(f"the DLA takes no dynamic shapes: {', '.join(moving)}")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    _set_flag(trt, config, "GPU_FALLBACK", account)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if config.can_run_on_DLA(layer):
            account.dla_layers += 1
        else:
            account.dla_fallbacks.append(f"{layer.name} ({layer.type.name})")
    if not account.dla_layers:
        raise RefusalError("no layer of this model can run on the DLA")
    most = job.max_dla_fallbacks
    if most is not None and len(account.dla_fallbacks) > most:
        raise RefusalError(
            f"{len(account.dla_fallbacks)} layers cannot run on the DLA, and at most {most} may "
            f"fall back to the GPU: {', '.join(account.dla_fallbacks)}"
        )
