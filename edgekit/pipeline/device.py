"""One target's end of a build: by what can be done with it on this machine."""

from __future__ import annotations

from dataclasses import replace

from edgekit.errors import InputError
from edgekit.pipeline import steps
from edgekit.pipeline.cache import Step
from edgekit.pipeline.candidates import (
    Chain,
    Project,
    candidate_of,
    engine_step,
    wanted_precisions,
)
from edgekit.pipeline.half import half_step
from edgekit.pipeline.handed_over import finish_device
from edgekit.pipeline.measured import finish_here
from edgekit.pipeline.result import TargetResult
from edgekit.pipeline.steps import Source
from edgekit.pipeline.unmeasured import finish_elsewhere
from edgekit.pipeline.workshop import Workshop
from edgekit.targets import Precision, ResolvedTarget, Target


def finish_target(
    workshop: Workshop, project: Project, chain: Chain, resolved: ResolvedTarget, *, rebench: bool,
    recipe_only: bool = False,
) -> TargetResult | None:  # fmt: skip
    """The target's engines, numbers and verdict, published in its folder; None while listing.

    With `recipe_only`, a recipe for the device instead, also where it could be built here.
    """
    target = resolved.target
    if target.runtime.build == "device" or recipe_only:
        return finish_device(workshop, project, chain, resolved)
    candidates = [
        candidate_of(workshop, project, chain, target, precision)
        for precision in wanted_precisions(target, chain.recipe)
    ]
    baseline, note = _original_engine(workshop, project, chain, target)
    if note:
        resolved = replace(resolved, note="; ".join(filter(None, (resolved.note, note))))
    if target.runtime.build == "here":
        return finish_here(workshop, project, chain, resolved, candidates, baseline, rebench)
    if workshop.listing:
        return None
    return finish_elsewhere(project, chain, resolved, candidates[0], baseline)


def _original_engine(
    workshop: Workshop, project: Project, chain: Chain, target: Target
) -> tuple[Step, str]:
    """The original's engine, to compare with, and what is to be said of it, else empty.

    It is one in FP32; in float16 where the target's runtime takes its types from the graph and
    refuses the FP32 one, as TensorRT-RTX does for Turing's matrix products.
    """

    def engine(precision: Precision, source: Source) -> Step:
        step = engine_step(workshop, chain.recipe, target, precision, project, source)
        workshop.do(step, target=target.name, describe=lambda folder: "the original, to compare")
        return step

    try:
        return engine("fp32", project.original), ""
    except InputError as error:
        if target.runtime.name != "tensorrt_rtx" or "fp16" not in target.precisions:
            raise
        said = f"the original's engine is FP16: {error.what} in FP32: {error.got}"
    half = half_step(
        project.original, project.calibration, workshop.progress_of("fp16", target.name)
    )
    workshop.do(half, target=target.name, describe=steps.describe_said)
    return engine("fp16", steps.made_model(project.cache, half, project.model.name)), said
