"""The only user of rich. People's output goes to stderr, so that stdout is free for JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from edgekit.errors import EdgekitError
from edgekit.pipeline.blame import Stage, blamed
from edgekit.pipeline.result import BuildResult, OnEvent, StepEvent, TargetResult
from edgekit.report import rows

if TYPE_CHECKING:  # a verb loads what it needs; drawing an error needs none of these
    from edgekit.compress.channels.sensitivity import Sensitivity
    from edgekit.doctor import Examination, Finding
    from edgekit.engines.fit import Fit
    from edgekit.pipeline.build import BuildPlan
    from edgekit.pipeline.gating import Ruling
    from edgekit.pipeline.linting import LintResult
    from edgekit.report.comparison import Comparison
    from edgekit.report.history import Told
    from edgekit.report.inspection import Inspection
    from edgekit.report.profiles import Listing, ProfileView
from edgekit.values import Check, Verdict

_COLOURS = {"pass": "green", "fail": "red", "invalid": "red", "inconclusive": "yellow",
            "pending": "yellow"}  # fmt: skip

_MOST_DRAWN = 6  # targets, each in full

err = Console(stderr=True, highlight=False)


def print_json(document: Mapping[str, object]) -> None:
    """Writes the one JSON document of a verb to stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def say(text: str) -> None:
    """Writes a plain line to stderr."""
    err.print(text, markup=False, soft_wrap=True)


def show_error(error: EdgekitError) -> None:
    """Draws the one panel of an error: what, where, got, wanted, what to do."""
    body: list[RenderableType] = [Text(error.what, style="bold")]
    labelled = [("where", error.where), ("got", error.got), ("wanted", error.wanted)]
    if any(text for _, text in labelled):
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text in labelled:
            if text:
                grid.add_row(label, Text(text))
        body.append(grid)
    if error.hint:
        body.append(Text(error.hint, style="cyan"))
    err.print(Panel(Group(*body), title="edgekit", title_align="left", border_style="red"))


def show_table(
    columns: Iterable[str], lines: Iterable[Iterable[str]], *, title: str = "", prose: str = ""
) -> None:
    """Draws a table; the first column is on the left, the others on the right.

    No cell of the first column is broken, and where one is called `prose`, none but its own.
    """
    table = _table(title)
    for index, column in enumerate(columns):
        is_prose = column == prose
        table.add_column(
            column,
            justify="left" if index == 0 or is_prose else "right",
            overflow="fold",
            no_wrap=index == 0 or (bool(prose) and not is_prose),
        )
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    err.print(table)


def show_target(result: TargetResult) -> None:
    """Draws a target's before and after, the candidates, the verdict and the notes."""
    show_table(
        (f"{result.title}", "before", "after", "change"),
        rows.comparison(result),
        title=f"{result.target}: {result.precision}",
    )
    if len(result.arms) > 1:
        show_table(
            ("side by side", result.metric_name, "size", "FPS", "p50", "p99", "memory"),
            (rows.arm_row(arm, result.metric_name) for arm in result.arms),
        )
    show_blame(result.blame.get(result.precision, ()), result.metric_name)
    for note in result.notes:
        err.print(Text(f"  {note}", style="dim"), soft_wrap=True)
    show_checks(result.checks)
    show_verdict(result.verdict, result.because)
    say(f"  {result.folder}: {', '.join(result.files)}")


def show_blame(stages: Sequence[Stage], metric: str) -> None:
    """Draws what each step of a build lost, beside the one before and the original."""
    if stages:
        show_table(rows.BLAME_COLUMNS, rows.blame_rows(stages, metric))
        err.print(Text(f"  {blamed(stages, metric)}", style="dim"), soft_wrap=True)


def show_checks(checks: Iterable[Check]) -> None:
    """Draws a verdict's lines, and under them the reason of each and where its value is from."""
    lines, reasons = [], []
    for check in checks:
        *cells, because, source = rows.check_row(check)
        lines.append(cells)
        said = f"  {check.name}: {because}" + (f"; {source}" if source else "")
        reasons.append(Text(said, style="dim"))
    if lines:
        columns = ("check", "limit", "value", "95% interval", "margin", "verdict")
        show_table(columns, lines)
    for reason in reasons:
        err.print(reason, soft_wrap=True)


def show_verdict(verdict: Verdict, because: str) -> None:
    """Writes the verdict in its colour, and why."""
    sentence = rows.verdict_sentence(verdict, because)
    err.print(Text.assemble("  verdict: ", (sentence, f"bold {_COLOURS[verdict.value]}")))


def show_ruling(ruling: Ruling) -> None:
    """Draws a gate's lines, how old the measurement is, and the verdict."""
    show_checks(ruling.checks)
    for note in (f"measured: {rows.age(ruling.age_s)}", *ruling.notes):
        say(f"  {note}")
    show_verdict(ruling.verdict, ruling.because)


def show_comparison(found: Comparison) -> None:
    """Draws two files of measurements beside each other."""
    from edgekit.report import comparison

    show_table(comparison.COLUMNS, comparison.table(found))
    for note in comparison.notes(found):
        err.print(Text(f"  {note}", style="dim"), soft_wrap=True)


def show_history(told: Told) -> None:
    """Draws a model's measurements, the newest last, and a bar for each that was judged."""
    from edgekit.report import history

    show_table(history.columns(told), history.table(told), title=told.title)
    for bar in history.bars(told):
        say(bar)
    say(f"  {told.path}")


def show_document(content: Mapping[str, object]) -> None:
    """Draws a JSON document as a grid of keys and values."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for key, value in rows.document(content):
        grid.add_row(key, Text(value))
    err.print(grid)


def show_bench(content: Mapping[str, object]) -> None:
    """Draws what `edgekit bench` found; the layers of an engine as a table."""
    show_document({name: value for name, value in content.items() if name != "layers"})
    layers = content.get("layers")
    if isinstance(layers, list):
        columns = ("layer", "kind", "ms", "share", "nodes of the graph")
        show_table(columns, rows.layer_rows(layers), prose="nodes of the graph")


def show_plan(plan: BuildPlan) -> None:
    """Draws what a build would do: the recipe with its defaults, the steps, what is there."""
    show_document(plan.recipe)
    show_table(
        ("step", "target", "in the cache"),
        ((step, target, "yes" if cached else "no") for step, target, cached in plan.steps),
    )
    for note in plan.notes:
        say(note)


def show_targets(listing: Listing) -> None:
    """Draws the profiles; those that this machine is have a star."""
    columns = ("target", "device", "beside FP32", "runtime")
    show_table(columns, listing.rows(), prose="device")
    for note in listing.notes():
        say(f"  {note}")


def show_profile(view: ProfileView) -> None:
    """Draws one target: what it is, its figures and where they are from."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in [*view.heading(), *view.rows()]:
        grid.add_row(key, Text(value))
    err.print(grid)
    for number, source in enumerate(view.sources(), 1):
        err.print(Text(f"  [{number}] {source}", style="dim"), soft_wrap=True)


def show_examination(found: Examination) -> None:
    """Draws what a machine has, lacks or has wrong, with the command that mends it."""
    _show_findings("", found.findings)
    if found.target:
        _show_findings(f"to build for {found.target}", found.needed)
    say(f"  {found.summary}")


def _show_findings(title: str, findings: Sequence[Finding]) -> None:
    """A table, and under it the commands, each whole, so that they can be copied."""
    table = _table(title)
    for column in ("", "state", "found", "for"):
        table.add_column(column, overflow="fold", no_wrap=column in ("", "state"))
    styles = {"good": "green", "missing": "dim", "wrong": "red"}
    for finding in findings:
        name, *rest = map(Text, (finding.name, finding.found, finding.purpose))
        table.add_row(name, Text(finding.state.value, style=styles[finding.state.value]), *rest)
    err.print(table)
    for finding in findings:
        if finding.remedy:
            said = Text.assemble((f"  {finding.name}: ", "bold"), finding.remedy)
            err.print(said, soft_wrap=True)


def show_fit(fit: Fit) -> None:
    """Draws what an engine was built for beside what this machine is, and what follows."""
    show_table(
        ("", "built for", "here", "means", "because"),
        (
            (row.what, row.built or "-", row.here or "-", row.meaning.value, row.said)
            for row in fit.rows
        ),
    )
    say(f"  {fit.summary}")
    if fit.advice:
        say(f"  {fit.advice}")


def show_inspection(found: Inspection) -> None:
    """Draws a model: what goes in and out, its costs, what cannot be cut or trained, a target."""
    from edgekit.report import inspection_rows

    _show_grid(inspection_rows.summary(found))
    for table in inspection_rows.tables(found):
        err.print(Text(f"\n{table.title}", style="bold"))
        show_table(table.columns, table.lines, prose=table.prose)
    for note in inspection_rows.notes(found):
        err.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))
    if found.on_target is None:
        return
    for table in inspection_rows.target_tables(found.on_target, found.top):
        err.print(Text(f"\n{table.title}", style="bold"))
        show_table(table.columns, table.lines, prose=table.prose)
    for note in inspection_rows.target_notes(found.on_target):
        err.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))


def show_lint(found: LintResult) -> None:
    """Draws what breaks a rule and what mends it, the gravest first."""
    lines = tuple(found.rows())
    if lines:
        show_table(("", "node", "what", "what mends it"), lines, prose="what")
    say(found.summary)


def show_quantization(document: Mapping[str, object]) -> None:
    """Draws what a quantization cost: part by part, layer by layer, and what stayed in float."""
    from edgekit.report import quantization

    _show_grid(quantization.summary(document))
    for table in quantization.tables(document):
        err.print(Text(f"\n{table.title}", style="bold"))
        show_table(table.columns, table.lines, prose=table.prose)


def show_sensitivity(found: Sensitivity) -> None:
    """Draws what each channel group is worth, the most sensitive first."""
    from edgekit.report import sensitivity

    show_table(sensitivity.columns(found), sensitivity.table(found))
    say(f"  {sensitivity.caption(found)}")


def _show_grid(lines: Iterable[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in lines:
        grid.add_row(key, Text(value))
    err.print(grid)


def show_build(result: BuildResult) -> None:
    """Draws all targets of a build, and where its summary lies.

    Of very many only a line each; the rest is in their folders.
    """
    targets = len(result.targets) + len(result.refused)
    if targets <= _MOST_DRAWN:
        for target in result.targets:
            err.print()
            show_target(target)
        for refusal in result.refused:
            err.print()
            say(f"{refusal.target}: refused")
            show_error(refusal.error)
    if targets > 1:
        err.print()
        show_table(rows.SUMMARY_COLUMNS, rows.summary_rows(result), prose="because")
    done = sum(not step.cached for step in result.steps)
    err.print()
    if result.up_to_date:
        say(f"all {len(result.steps)} steps were up to date; {result.seconds:.1f} s")
    else:
        say(f"{done} of {len(result.steps)} steps done in {result.seconds:.0f} s")
    say(f"summary: {result.summary}")


@contextmanager
def build_progress() -> Iterator[OnEvent]:
    """Lends the function that shows a build's events: a bar while a step runs, then one line."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30),
        TimeElapsedColumn(), console=err, transient=True,
    ) as progress:  # fmt: skip
        tasks: dict[tuple[str, str], TaskID] = {}

        def on_event(event: StepEvent) -> None:
            name = f"{event.target}: {event.step}" if event.target else event.step
            key = (event.step, event.target)
            if event.state == "started":
                tasks[key] = progress.add_task(name, total=1.0)
            elif event.state == "progress" and key in tasks:
                described = f"{name} ({event.said})" if event.said else name
                progress.update(
                    tasks[key],
                    completed=event.fraction,
                    description=described,
                )
            elif event.state == "waiting":
                say(f"… {name}: waiting for another build that is making it")
            elif event.state in ("done", "cached"):
                if key in tasks:
                    progress.remove_task(tasks.pop(key))
                mark, style = ("=", "dim") if event.state == "cached" else ("+", "green")
                said = f"  {event.said}" if event.said else ""
                err.print(Text.assemble((f"{mark} ", style), (name, "bold"), said), soft_wrap=True)

        yield on_event


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
