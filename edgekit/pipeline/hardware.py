"""What a target has no hardware for, and what to ask for instead."""

from __future__ import annotations

from edgekit.errors import InputError
from edgekit.targets import Precision, Target, targets_with_dla

_FASTEST_FIRST: tuple[Precision, ...] = ("int8", "fp16", "fp32")


def no_hardware(target: Target, precision: str) -> InputError:
    """The refusal of a precision that the target does not have; it offers the fastest that is."""
    best = next(known for known in _FASTEST_FIRST if known in target.precisions)
    return InputError(
        f"{target.title} has no {precision.upper()} hardware",
        where=f"engine.precision for {target.name}",
        got=precision, wanted=", ".join(("auto", *target.precisions)),
        hint=f"{best.upper()} is the fastest that it has: --precision {best}, or in the recipe "
        f'[target.{target.profile}.engine] precision = "{best}".',
    )  # fmt: skip


def refuse_missing_dla(target: Target, core: int) -> None:
    """Raises InputError where the target has no such DLA core, or its TensorRT drives none."""
    cores = target.dla.cores
    if cores == 0:
        raise InputError(
            f"{target.title} has no DLA", where=f"engine.dla for {target.name}",
            got=f"DLA core {core}", wanted=f"one of {', '.join(targets_with_dla())}",
            hint="Leave --dla (engine.dla in the recipe) out: its GPU does all the work. No module "
            "has a DLA under TensorRT 10.8 to 10.16, which JetPack 7 brings.",
        )  # fmt: skip
    if core >= cores:
        raise InputError(
            f"{target.title} has no DLA core {core}", where=f"engine.dla for {target.name}",
            got=str(core), wanted=" or ".join(map(str, range(cores))),
        )  # fmt: skip
    runtime = target.runtime
    if not runtime.drives_dla:
        others = [name for name, pack in target.jetpacks.items() if pack.drives_dla]
        brought = f" of JetPack {runtime.jetpack}" if runtime.jetpack else ""
        raise InputError(
            f"TensorRT {runtime.version}{brought} drives no DLA",
            where=f"engine.dla for {target.name}", got=f"DLA core {core}",
            wanted=", ".join(f"{target.profile}@{name}" for name in others)
            or "a runtime whose target file says drives_dla = true",
            hint="TensorRT 10.7 was the last 10.x that drives it. Leave --dla (engine.dla in the "
            "recipe) out, or name a JetPack that has an older one.",
        )  # fmt: skip


def dla_precision(target: Target, asked: str) -> Precision:
    """The precision of an engine on a DLA core, which is FP16: "auto" means it.

    Raises InputError for another one. A DLA has no FP32. It works in INT8 too, by a calibration
    cache beside a float graph: TensorRT up to 10.7 does not take Q/DQ for it
    (Deep-Learning-Accelerator-SW, operators/README.md), and a build writes Q/DQ.
    """
    if asked in ("auto", "fp16"):
        return "fp16"
    is_int8 = asked == "int8"
    raise InputError(
        "INT8 on a DLA wants a calibration cache, not Q/DQ" if is_int8 else "a DLA has no FP32",
        where=f"engine.precision for {target.name}", got=asked, wanted="auto, fp16",
        hint="Ask for --precision fp16"
        + (
            f", or make the cache: edgekit quantize MODEL --target {target.name} --dialect dla, "
            "and build by hand with trtexec --int8 --calib."
            if is_int8
            else "."
        ),
    )  # fmt: skip
