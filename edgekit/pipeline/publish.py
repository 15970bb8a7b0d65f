"""What a target's folder holds in the end, and the facts and evidence in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from edgekit import files, gate
from edgekit.engines.base import Engine
from edgekit.models.cost import Cost
from edgekit.pipeline import steps
from edgekit.pipeline.blame import Stage
from edgekit.pipeline.cache import write_json
from edgekit.pipeline.candidates import Chain, Project
from edgekit.pipeline.gating import EVIDENCE_FILE, evidence_document
from edgekit.pipeline.result import Facts, TargetResult
from edgekit.recipe import Recipe
from edgekit.targets import Precision, Target
from edgekit.values import Figure, Unknown
from edgekit.verify import VerifyReport

NOT_HERE = Unknown("not measured here")
REPORT_FILE = "report.json"

MIN_INT8_SHARE = 0.95
"""Of the MACs of weighted layers: an INT8 engine with less in INT8 is not what was asked for."""


def limits_of(recipe: Recipe, precision: Precision) -> dict[str, float]:
    """The limits that a recipe sets on an engine of this precision.

    An INT8 engine that is gated at all must work in INT8 for `MIN_INT8_SHARE` of its MACs unless
    the recipe says otherwise; of another one nobody asks.
    """
    limits = recipe.gate.limits()
    if precision != "int8":
        limits.pop("min_int8_share", None)
    elif limits:
        limits.setdefault("min_int8_share", MIN_INT8_SHARE)
    return limits


def accuracy_evidence(report: VerifyReport, recipe: Recipe, int8_share: Figure) -> gate.Evidence:
    """What verification says, before anything is measured."""
    unmeasured = {
        rule.figure: gate.Estimate(value=NOT_HERE) for rule in gate.RULES.values() if rule.measured
    }
    return gate.Evidence(
        estimates={
            **unmeasured,
            **accuracy_estimates(report),
            "int8_share": gate.Estimate(value=int8_share, source="the graph's weighted MACs"),
        },
        on_device=False,
        age_s=NOT_HERE,
        max_age_s=recipe.bench.max_age,
    )


def accuracy_estimates(report: VerifyReport) -> dict[str, gate.Estimate]:
    """The figures that a gate may ask of accuracy."""
    other = Unknown(f'the metric is "{report.metric}": min_metric is its limit')
    # A metric of the user's own is a mean average precision if its function says so.
    is_map = "map" in report.metric.rpartition(":")[2].lower()
    found: dict[str, Figure] = {
        "metric": report.after,
        "drop": report.drop,
        "agreement": report.agreement,
        "sqnr_db": report.sqnr_db,
        "top1": report.after if report.metric == "top1" else other,
        "map": report.after if is_map else other,
    }
    source = f"{report.samples:,} evaluation samples"
    return {name: gate.Estimate(value=value, source=source) for name, value in found.items()}


def engine_estimates(engine: Engine) -> dict[str, gate.Estimate]:
    """What an engine's manifest says: its size, and how many layers fell back from its DLA."""
    fallen = engine.settings.get("dla_fallbacks")
    fallbacks: Figure = Unknown("no DLA was asked for")
    if isinstance(fallen, (int, float)):
        fallbacks = float(fallen)
    source = "the engine's manifest"
    return {
        "size_mb": gate.Estimate(value=engine.file_bytes / 1e6, source=source),
        "dla_fallbacks": gate.Estimate(value=fallbacks, source=source),
    }


def graph_facts(what: str, file_bytes: int, metric: float, costs: Cost) -> Facts:
    """The facts of an ONNX file that only a device can run: nothing is measured."""
    return Facts(
        what=what,
        metric=metric,
        macs=costs.macs,
        parameters=costs.parameters,
        file_bytes=file_bytes,
        fps=NOT_HERE,
        p50_ms=NOT_HERE,
        p99_ms=NOT_HERE,
        memory_bytes=NOT_HERE,
        memory_is="on the device",
    )


def result_of(  # noqa: PLR0913  every part is somebody else's
    project: Project, target: Target, decision: gate.Decision, notes: Iterable[str], *,
    precision: Precision, before: Facts, after: Facts, blame: Mapping[str, tuple[Stage, ...]],
    arms: tuple[Facts, ...] = (), measured_age_s: Figure = NOT_HERE,
) -> TargetResult:  # fmt: skip
    """What a build made for a target, as its gate decided; `publish` fills in the files."""
    return TargetResult(
        target=target.name,
        title=target.title,
        metric_name=project.metric.name,
        precision=precision,
        before=before,
        after=after,
        arms=arms,
        verdict=decision.verdict,
        checks=decision.checks,
        because=decision.because,
        notes=tuple(note for note in notes if note),
        folder=str(project.place / target.name),
        files=(),
        measured_age_s=measured_age_s,
        blame=blame,
    )


def publish(  # noqa: PLR0913, PLR0917
    project: Project, chain: Chain, result: TargetResult, contents: Mapping[str, Path],
    evidence: gate.Evidence, limits: Mapping[str, float], taken_at: float,
) -> TargetResult:  # fmt: skip
    """Puts a target's files into its folder, all at once, and names them in the result."""
    if chain.channel_plan is not None:
        contents = {
            **contents,
            steps.PLAN_FILE: project.cache.entry(chain.channel_plan) / steps.PLAN_FILE,
        }
    names = (*contents, EVIDENCE_FILE, REPORT_FILE)
    result = replace(result, files=tuple(sorted(names)))
    place = project.place / result.target
    files.remove_partials(place)
    with files.replacing_folder(place) as folder:
        for name, source in contents.items():
            if source.is_dir():
                shutil.copytree(source, folder / name)
            else:
                shutil.copyfile(source, folder / name)
        document = evidence_document(
            result, evidence, limits, model=chain.recipe.name, taken_at=taken_at
        )
        write_json(folder / EVIDENCE_FILE, document)
        write_json(folder / REPORT_FILE, result.to_json())
    return result
