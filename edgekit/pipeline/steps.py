"""The steps of a build as cache entries: each names what it is made from and makes its folder.

A step's folder holds `model.onnx` where it makes a Model, `report.json`, and what else it names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit import files
from edgekit.compress.channels.budgeting.limits import Limits, parse_limit
from edgekit.compress.channels.cut import CutOptions, cut_channels
from edgekit.compress.recover import RecoverOptions, recover
from edgekit.data.batches import Batches
from edgekit.engines import onnxruntime as reference_runtime
from edgekit.errors import InputError
from edgekit.models.model import Model, save
from edgekit.models.opset import lowered
from edgekit.models.simplify import simplify
from edgekit.models.source import reopen
from edgekit.pipeline.cache import Cache, Step, key_of, read_json, versions, write_json
from edgekit.pipeline.channels import channels_line, guidance_of, latency_by
from edgekit.pipeline.floor import FloorAsked
from edgekit.pipeline.quantization import Job, every_dialect, observe_for, quantize
from edgekit.pipeline.table import load_table
from edgekit.pipeline.workshop import OnFraction
from edgekit.quantize.calibration_cache import calibration_cache
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import load_ranges, save_ranges
from edgekit.recipe import ChannelsSection, QuantizeSection, RecoverSection
from edgekit.train.augment import load_own_function
from edgekit.train.launch import launched
from edgekit.train.schedules import Schedule
from edgekit.values import Array, Feeds, run

MODEL_FILE, REPORT_FILE, PLAN_FILE = "model.onnx", "report.json", "plan.json"
RANGES_FILE, CACHE_FILE = "ranges.npz", "calibration.cache"

_COMPARED_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Source:
    """Something that a later step reads a Model from, and the key of all that made it.

    `path` is its ONNX file, there once the step that makes it is done.
    """

    key: str
    path: Path
    load: Callable[[], Model]


def made_model(cache: Cache, step: Step, name: str) -> Source:
    """The Model that the step leaves behind, loaded when somebody wants it."""
    path = cache.entry(step) / MODEL_FILE
    return Source(key=step.key, path=path, load=lambda: reopen(path, name=name))


def outputs_of_model(model: Model, feeds: Feeds) -> dict[str, Array]:
    """What ONNX Runtime, the reference, gives for these inputs."""
    with reference_runtime.open_model(model) as session:
        return run(session, feeds)


def channels_step(
    source: Source, batches: Batches, options: ChannelsSection, multiple: int, folder: Path,
    on_fraction: OnFraction,
) -> Step:  # fmt: skip
    """Removes whole channels down to the budget; `plan.json` says which were kept.

    `folder` is the recipe's. Raises InputError for a table that cannot be read.
    """
    given = {"macs": options.macs, "parameters": options.params, "latency_ms": options.latency_ms}
    limits = Limits(**{name: parse_limit(text) for name, text in given.items() if text})
    wanted = CutOptions(
        limits=limits, criterion=options.criterion, budget=options.budget, multiple=multiple,
        samples=options.samples, repair=options.repair, seed=options.seed,
    )  # fmt: skip
    table = None if options.table is None else folder / options.table
    latency_of = None if table is None else latency_by(load_table(table))

    def make(folder: Path, partial: Path) -> None:
        del partial
        guidance = guidance_of(batches, latency_of, on_fraction)
        model, report = cut_channels(source.load(), wanted, guidance, on_fraction=on_fraction)
        save(model, folder / MODEL_FILE)
        (folder / PLAN_FILE).write_text(report.plan.to_json())
        write_json(folder / REPORT_FILE, report.to_json())

    key = key_of(
        "channels", source=source.key, options=options.model_dump(), multiple=multiple,
        data=batches.digest, table="" if table is None else files.digest_file(table),
        versions=versions(["torch", "onnxruntime"]),
    )  # fmt: skip
    return Step(name="channels", key=key, make=make)


def recover_step(
    student: Source, teacher: Source, batches: Batches, options: RecoverOptions,
    on_fraction: OnFraction,
) -> Step:  # fmt: skip
    """The original teaches the cut network on unlabelled samples; taken up again after a kill.

    Raises InputError where several processes were launched: they would wait for one another.
    """
    if launched()[1] > 1:
        raise InputError(
            "a build is one process", got=f"{launched()[1]} that were launched together",
            hint="Launch `edgekit recover` so, and build from the model that it writes.",
        )  # fmt: skip

    def make(folder: Path, partial: Path) -> None:
        model, report = recover(
            student.load(), teacher.load(), batches, options,
            checkpoint=partial / "checkpoint.pt",
            on_progress=lambda done, total, said: on_fraction(done / total, said),
        )  # fmt: skip
        save(model, folder / MODEL_FILE)
        write_json(folder / REPORT_FILE, {**asdict(report), "said": str(report)})

    key = key_of(
        "recover", student=student.key, teacher=teacher.key, data=batches.digest,
        options=repr(options), versions=versions(["torch"]),
    )  # fmt: skip
    return Step(name="recover", key=key, make=make)


def recover_options(section: RecoverSection, folder: Path) -> RecoverOptions:
    """The table of a recipe as options; the user's function is looked for from the folder.

    Raises InputError where there is no such function.
    """
    given = section.model_dump(exclude={"augment"})
    schedule = Schedule(
        kind=given.pop("schedule"), warm_up_epochs=given.pop("warm_up_epochs"),
        step_epochs=given.pop("step_epochs"), step_factor=given.pop("step_factor"),
    )  # fmt: skip
    own = load_own_function(section.augment, folder) if section.augment else None
    return RecoverOptions(own=own, schedule=schedule, **given)


def simplify_step(source: Source, batches: Batches, on_fraction: OnFraction) -> Step:
    """Folds BatchNormalization and runs onnxsim, comparing outputs on a few real samples."""

    def make(folder: Path, partial: Path) -> None:
        del partial
        on_fraction(0.0, "")
        feeds = next(iter(batches.take(_COMPARED_SAMPLES))).inputs

        model, report = simplify(source.load(), run=lambda model: outputs_of_model(model, feeds))
        save(model, folder / MODEL_FILE)
        write_json(folder / REPORT_FILE, asdict(report))

    key = key_of(
        "simplify", source=source.key, data=batches.digest,
        versions=versions(["onnxsim", "onnxruntime"]),
    )  # fmt: skip
    return Step(name="simplify", key=key, make=make)


def observe_step(
    cache: Cache, source: Source, batches: Batches, options: QuantizeSection,
    on_fraction: OnFraction,
) -> Step:  # fmt: skip
    """Learns the range of every activation that any dialect quantizes, from unlabelled samples.

    What the choice "best" needs beside serves the other choices too, where it is in the cache.
    """
    with_rows = _observe_step(source, batches, options, on_fraction, rows=True)
    if options.ranges == "best" or cache.has(with_rows):
        return with_rows
    return _observe_step(source, batches, options, on_fraction, rows=False)


def _observe_step(
    source: Source, batches: Batches, options: QuantizeSection, on_fraction: OnFraction, *,
    rows: bool,
) -> Step:  # fmt: skip
    def make(folder: Path, partial: Path) -> None:
        del partial
        model = prepared(source.load())
        ranges = observe_for(
            model, every_dialect(), batches, on_fraction, samples=options.samples, rows=rows
        )
        save_ranges(ranges, folder / RANGES_FILE)
        write_json(
            folder / REPORT_FILE,
            {"samples": ranges.samples, "tensors": len(ranges.tensors), "said": str(ranges),
             "doubts": list(ranges.doubts)},
        )  # fmt: skip

    key = key_of(
        "observe", source=source.key, data=batches.digest, samples=options.samples,
        rows=rows, versions=versions(["onnxruntime"]),
    )  # fmt: skip
    return Step(name="observe", key=key, make=make)


def quantize_step(
    source: Source, ranges: tuple[Cache, Step], job: Job, floor: FloorAsked | None,
    on_fraction: OnFraction,
) -> Step:  # fmt: skip
    """Quantizes in a dialect, from ranges that were observed once; a search is taken up again."""
    cache, observed = ranges

    def make(folder: Path, partial: Path) -> None:
        model = prepared(source.load())
        seen = load_ranges(cache.entry(observed) / RANGES_FILE)
        limit = None if floor is None else floor.of(model, partial / "search.json")
        found = quantize(model, seen, job, floor=limit, on_fraction=on_fraction)
        if job.dialect.written == "cache":
            save(model, folder / MODEL_FILE)
            (folder / CACHE_FILE).write_text(calibration_cache(found.scheme, job.version))
        else:
            save(found.model, folder / MODEL_FILE)
        write_json(folder / REPORT_FILE, found.to_json())

    # Only a calibration cache names its TensorRT; Q/DQ of one dialect serve every version.
    runtime = job.version if job.dialect.written == "cache" else ""
    key = key_of(
        "quantize", source=source.key, ranges=observed.key, dialect=job.dialect.as_json(),
        data=job.batches.digest, options=job.options.model_dump(mode="json"),
        floor="" if floor is None else floor.digest, runtime=runtime,
        versions=versions(["onnxruntime", "torch"]),
    )  # fmt: skip
    return Step(name="quantize", key=key, make=make)


def opset_step(source: Source, opset: int) -> Step:
    """Lowers the graph to the operators that a target's runtime reads."""

    def make(folder: Path, partial: Path) -> None:
        del partial
        before = source.load()
        model = lowered(before, opset)
        save(model, folder / MODEL_FILE)
        counts = before.graph.num_nodes(), model.graph.num_nodes()
        said = f"opset {before.opset} -> {opset}, {counts[0]} -> {counts[1]} nodes"
        write_json(folder / REPORT_FILE, {"said": said})

    return Step(name="opset", key=key_of("opset", source=source.key, opset=opset), make=make)


def describe_channels(folder: Path) -> str:
    """What the cut came to, in a line."""
    return channels_line(_report(folder))


def describe_simplify(folder: Path) -> str:
    """What was folded, in a line."""
    report = _report(folder)
    left = f"; {report['left_alone']}" if report["left_alone"] else ""
    return (
        f"{report['nodes_before']} -> {report['nodes_after']} nodes, "
        f"{report['batchnorms_folded']} BatchNormalization folded{left}"
    )


def describe_said(folder: Path) -> str:
    """The line that the step itself left."""
    return str(_report(folder)["said"])


def _report(folder: Path) -> dict[str, Any]:
    return read_json(folder / REPORT_FILE)
