"""One target's end of a build: by what can be done with it on this machine."""

from __future__ import annotations

from edgekit.pipeline.candidates import (
    Chain,
    Project,
    candidate_of,
    engine_step,
    wanted_precisions,
)
from edgekit.pipeline.handed_over import finish_device
from edgekit.pipeline.measured import finish_here
from edgekit.pipeline.result import TargetResult
from edgekit.pipeline.unmeasured import finish_elsewhere
from edgekit.pipeline.workshop import Workshop
from edgekit.targets import ResolvedTarget


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
    baseline = engine_step(workshop, chain.recipe, target, "fp32", project, project.original)
    workshop.do(baseline, target=target.name, describe=lambda folder: "the original, to compare")
    if target.runtime.build == "here":
        return finish_here(workshop, project, chain, resolved, candidates, baseline, rebench)
    if workshop.listing:
        return None
    return finish_elsewhere(project, chain, resolved, candidates[0], baseline)
