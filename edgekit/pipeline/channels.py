"""Channel removal with all that it may go by: samples, a device's table of layers, sensitivity."""

from __future__ import annotations

import difflib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgekit import files
from edgekit.compress.channels.budget import How
from edgekit.compress.channels.budgeting.latency import (
    Latency,
    LayerTable,
    measured_latency,
    roofline_latency,
)
from edgekit.compress.channels.budgeting.limits import Limits, parse_limit
from edgekit.compress.channels.cut import (
    AUTO,
    SCORED,
    CutOptions,
    Guidance,
    LatencyOf,
    cut_channels,
)
from edgekit.compress.channels.groups import ChannelGroup
from edgekit.compress.channels.sensitivity import measure_sensitivity
from edgekit.data.batches import Batches, load_batches
from edgekit.data.metrics import fidelity
from edgekit.engines import onnxruntime as reference_runtime
from edgekit.engines.device_rates import rates_of
from edgekit.errors import InputError
from edgekit.models.model import Model, save
from edgekit.models.simplify import clean
from edgekit.pipeline.origin import Origin, open_origin
from edgekit.pipeline.result import OnEvent, StepEvent
from edgekit.pipeline.table import TableRequest, load_table, make_table
from edgekit.pipeline.workshop import OnFraction
from edgekit.recipe import load_recipe
from edgekit.targets import Precision, Target, preferred_multiple, resolve_target
from edgekit.values import Array
from edgekit.verify import outputs_of

DEFAULT_MULTIPLE = 8
_BATCH = 32
_STEP = "channels"
_SHOWN = 8  # lines of each kind
_JUDGED = 1000  # samples on which ways to share out a budget are compared


@dataclass(frozen=True, kw_only=True)
class ChannelsRequest:
    """A model, limits as texts ("0.5", "50%", "3e8"), and what to go by.

    `table` is a file that `edgekit table` wrote; without it a limit on the latency is by a table
    that is measured here, or by the roofline where the target is another machine.
    """

    origin: Origin
    out: Path
    limits: dict[str, str]
    targets: tuple[str, ...] = ()
    precision: Precision = "fp32"
    batch: int = 1
    criterion: str = AUTO
    budget: How | Literal["auto"] = AUTO
    multiple: int | None = None
    data: str = ""
    recipe: Path | None = None
    table: Path | None = None
    repair: bool = True


def cut_file(request: ChannelsRequest, *, on_event: OnEvent) -> dict[str, Any]:
    """Cuts a model and writes it, its plan beside it as `NAME.plan.json`; both or none."""
    limits = Limits(**{name: parse_limit(text) for name, text in request.limits.items()})
    limits.given()
    recipe = load_recipe(request.recipe) if request.recipe is not None else None
    preprocessing = recipe.preprocessing if recipe is not None else None
    model = clean(open_origin(request.origin, preprocessing=preprocessing).model)
    targets = [resolve_target(name).target for name in request.targets]
    multiples = [max(preferred_multiple(t, p) for p in t.precisions) for t in targets]
    options = CutOptions(
        limits=limits, criterion=request.criterion, budget=request.budget, repair=request.repair,
        multiple=request.multiple or max(multiples, default=DEFAULT_MULTIPLE),
    )  # fmt: skip
    batches = None
    if request.data:
        batches = load_batches(
            request.data, folder=Path(), inputs=model.inputs, preprocessing=model.preprocessing,
            batch_size=_BATCH, role="calibration",
        )  # fmt: skip

    def on_fraction(fraction: float, said: str) -> None:
        on_event(StepEvent(step=_STEP, target="", state="progress", fraction=fraction, said=said))

    on_event(StepEvent(step=_STEP, target="", state="started"))
    latency = _latency_of(request, targets, on_event) if limits.latency_ms is not None else None
    cut, report = cut_channels(
        model, options, guidance_of(batches, latency, on_fraction), on_fraction=on_fraction
    )
    on_event(StepEvent(step=_STEP, target="", state="done"))
    plan = request.out.with_suffix(".plan.json")
    _write_both(cut, request.out, report.plan.to_json(), plan)
    found = report.to_json()
    return {**found, "said": channels_line(found), "model": str(request.out), "plan": str(plan)}


def _write_both(model: Model, path: Path, plan: str, plan_path: Path) -> None:
    """The model and its plan; where the model cannot be written, no new plan stays behind."""
    was_there = plan_path.exists()
    files.write_text(plan_path, plan)
    try:
        save(model, path)
    except BaseException:
        if not was_there:
            plan_path.unlink(missing_ok=True)
        raise


def channels_line(report: Mapping[str, Any]) -> str:
    """What a cut came to, in a line, from its report."""
    before, after = report["macs_before"], report["macs_after"]
    said = [
        f"{before / 1e6:.1f} M -> {after / 1e6:.1f} M MACs ({after / before:.3f})",
        f"{report['parameters_before']:,} -> {report['parameters_after']:,} parameters",
        f"multiples of {report['multiple']}",
    ]
    if "latency_ms" in report:
        time = report["latency_ms"]
        said.insert(0, f"{time['before']:.3f} -> {time['after']:.3f} ms by {time['source']}")
    if "repair" in report:
        said.append(f"{len(report['repair']['layers'])} layers refitted")
    return ", ".join(said)


def latency_by(table: LayerTable) -> LatencyOf:
    """How long a Model takes, by a measured table of its layers."""
    return lambda model, groups: measured_latency(model, groups, table)


def guidance_of(
    batches: Batches | None, latency_of: LatencyOf | None, on_fraction: OnFraction
) -> Guidance:
    """What a cut may go by; damage is measured through the reference runtime."""

    def on_share(share: float) -> None:
        on_fraction(SCORED, f"sensitivity, {share:.0%}")

    known: list[tuple[Model, dict[str, Array]]] = []  # the original and its outputs, run once

    def outputs_on_some(model: Model) -> dict[str, Array]:
        assert batches is not None
        with reference_runtime.open_model(model) as session:
            return outputs_of(session, batches.take(_JUDGED))[0]

    def fidelity_of(original: Model, others: Sequence[Model]) -> Sequence[float]:
        if not known or known[0][0] is not original:
            known[:] = [(original, outputs_on_some(original))]
        expected = known[0][1]
        return [fidelity(outputs_on_some(model), None, expected) for model in others]

    def damage_of(
        model: Model, groups: Sequence[ChannelGroup], scores: Sequence[Array]
    ) -> Sequence[Array]:
        assert batches is not None
        return measure_sensitivity(
            model, groups, scores, batches, open_model=reference_runtime.open_model,
            on_fraction=on_share,
        ).damage  # fmt: skip

    if batches is None:
        return Guidance(latency_of=latency_of)
    return Guidance(
        batches=batches, latency_of=latency_of, damage_of=damage_of, fidelity_of=fidelity_of
    )


def _latency_of(
    request: ChannelsRequest, targets: Sequence[Target], on_event: OnEvent
) -> LatencyOf:
    """By the table that is given, a table measured here, or the roofline of the target."""
    if request.table is not None:
        return latency_by(load_table(request.table))
    if len(targets) != 1:
        raise InputError(
            "a limit on the latency is for one target", where="channels",
            got=", ".join(t.name for t in targets) or "no target",
            hint="Name one with --target, or give a --table that was measured on it.",
        )  # fmt: skip
    target = targets[0]
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        place = Path(folder, "table.json")
        made = make_table(
            TableRequest(
                origin=request.origin, target=request.targets[0], precision=request.precision,
                batch=request.batch, out=place,
            ),
            on_event=on_event,
        )  # fmt: skip
        here = load_table(place) if not made.exit_code else None
    if here is not None:
        return latency_by(here)

    def estimated(model: Model, groups: Sequence[ChannelGroup]) -> Latency:
        return roofline_latency(
            model, groups, rates_of(target), precision=request.precision, batch=request.batch
        )

    return estimated


def budget_named(name: str) -> How | Literal["auto"]:
    """The way of that name to share a budget out. Raises InputError for an unknown one."""
    if name == AUTO:
        return AUTO
    known: tuple[How, ...] = get_args(How)
    for one in known:
        if one == name:
            return one
    near = difflib.get_close_matches(name, known, 1)
    raise InputError(
        f'there is no budget called "{name}"', wanted=", ".join([AUTO, *known]),
        hint=f'Did you mean "{near[0]}"?' if near else "",
    )  # fmt: skip


def summary(report: Mapping[str, Any]) -> dict[str, object]:
    """What a person wants to see of a report: the line, the groups that lost most, what stayed."""
    groups = {name: (one["kept"], one["of"]) for name, one in report["groups"].items()}
    most = sorted(groups, key=lambda name: groups[name][0] / groups[name][1])[:_SHOWN]
    found: dict[str, object] = {"cut": report["said"]}
    cut = [name for name in most if groups[name][0] < groups[name][1]]
    if cut:
        found["narrowest"] = "\n".join(
            f"{name}: {groups[name][0]} of {groups[name][1]}" for name in cut
        )
    reasons = Counter(report["frozen"].values())
    if reasons:
        found["stays"] = "\n".join(f"{count} x {why}" for why, count in reasons.most_common(_SHOWN))
    return {**found, "model": report["model"], "plan": report["plan"]}
