"""From the original to what a target's engine is built from: cut, recovered, folded, quantized."""

from __future__ import annotations

from edgekit.pipeline import steps
from edgekit.pipeline.blame import ORIGINAL
from edgekit.pipeline.cache import Step
from edgekit.pipeline.candidates import Chain, Link, Project, wanted_precisions
from edgekit.pipeline.floor import FloorAsked
from edgekit.pipeline.half import half_step
from edgekit.pipeline.quantization import Job, dialect_of
from edgekit.pipeline.steps import Source
from edgekit.pipeline.workshop import Workshop
from edgekit.recipe import Recipe, for_target
from edgekit.targets import Target, preferred_multiple

DEFAULT_MULTIPLE = 8


def multiple_of(targets: list[Target], recipe: Recipe, wanted: Recipe) -> int:
    """The largest multiple that any target preferes whose [compress] is this one."""
    preferred = [
        preferred_multiple(target, precision)
        for target in targets
        if (own := for_target(recipe, target)).compress == wanted.compress
        for precision in wanted_precisions(target, own)
    ]
    return max(preferred, default=DEFAULT_MULTIPLE)


def make_chain(
    workshop: Workshop, project: Project, target: Target, wanted: Recipe, multiple: int
) -> Chain:
    """Every model of a target, made: what several targets have in common is made once."""
    cache, name = project.cache, project.model.name
    source = project.original
    plan_from = None
    links = [Link(steps=ORIGINAL, source=source)]
    if wanted.compress.channels is not None:
        step = steps.channels_step(
            source, project.calibration, wanted.compress.channels, multiple, wanted.folder,
            workshop.progress_of("channels"),
        )  # fmt: skip
        workshop.do(step, describe=steps.describe_channels)
        source, plan_from = steps.made_model(cache, step, name), step
        links.append(Link(steps=step.name, source=source))
    if wanted.compress.recover is not None:
        options = steps.recover_options(wanted.compress.recover, wanted.folder)
        step = steps.recover_step(
            source, project.original, project.calibration, options, workshop.progress_of("recover")
        )
        workshop.do(step, describe=steps.describe_said)
        source = steps.made_model(cache, step, name)
        links.append(Link(steps=step.name, source=source))
    compressed = source
    step = steps.simplify_step(source, project.calibration, workshop.progress_of("simplify"))
    workshop.do(step, describe=steps.describe_simplify)
    floating = steps.made_model(cache, step, name)
    # The last of the compression is judged folded: that is one run of the data fewer.
    said = step.name if len(links) == 1 else f"{links.pop().steps} + {step.name}"
    links.append(Link(steps=said, source=floating))
    quantized = quantizing = None
    if "int8" in wanted_precisions(target, wanted):
        quantizing = _quantizing(workshop, project, target, wanted, floating)
        quantized = steps.made_model(cache, quantizing, name)
    lowered = project.model.opset > target.runtime.opset
    if lowered:
        floating = _lowered(workshop, target, floating, name)
        quantized = None if quantized is None else _lowered(workshop, target, quantized, name)
    half = None
    if target.runtime.name == "tensorrt_rtx" and "fp16" in wanted_precisions(target, wanted):
        step = half_step(floating, project.calibration, workshop.progress_of("fp16", target.name))
        workshop.do(step, target=target.name, describe=steps.describe_said)
        half = steps.made_model(cache, step, name)
    return Chain(
        recipe=wanted, compressed=compressed, floating=floating, quantized=quantized,
        channel_plan=plan_from, half=half, quantizing=quantizing,
        links=tuple(links), lowered=lowered,
    )  # fmt: skip


def _quantizing(
    workshop: Workshop, project: Project, target: Target, wanted: Recipe, floating: Source
) -> Step:
    """The step that quantizes in the target's dialect, done."""
    options, cache = wanted.quantize, project.cache
    observed = steps.observe_step(
        cache, floating, project.calibration, options, workshop.progress_of("observe")
    )
    workshop.do(observed, describe=steps.describe_said)
    job = Job(
        dialect=dialect_of(target), batches=project.calibration, options=options,
        version=target.runtime.version,
    )  # fmt: skip
    floor = None
    if options.max_drop is not None or options.max_ms is not None:
        floor = FloorAsked(
            max_drop=options.max_drop, max_ms=options.max_ms, batches=project.evaluation,
            metric=project.metric, dialect=job.dialect, target=target,
            tables=tuple(wanted.folder / table for table in options.tables),
        )  # fmt: skip
    step = steps.quantize_step(
        floating, (cache, observed), job, floor, workshop.progress_of("quantize", target.name)
    )
    workshop.do(step, target=target.name, describe=steps.describe_said)
    return step


def _lowered(workshop: Workshop, target: Target, source: Source, name: str) -> Source:
    """The source at the newest opset that the target's runtime reads."""
    step = steps.opset_step(source, target.runtime.opset)
    workshop.do(step, target=target.name, describe=steps.describe_said)
    return steps.made_model(workshop.cache, step, name)
