"""The only user of rich. People's output goes to stderr, so that stdout is free for JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from edgekit.errors import EdgekitError
from edgekit.pipeline.result import BuildResult, OnEvent, StepEvent, TargetResult
from edgekit.report import rows
from edgekit.values import Check, Verdict

_COLOURS = {"pass": "green", "fail": "red", "invalid": "red", "inconclusive": "yellow",
            "pending": "yellow"}  # fmt: skip

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


def show_table(columns: Iterable[str], lines: Iterable[Iterable[str]], *, title: str = "") -> None:
    """Draws a table; the first column is on the left, the others on the right."""
    table = _table(title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
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
            ("measured side by side", result.metric_name, "size", "FPS", "p50", "p99", "memory"),
            (rows.arm_row(arm, result.metric_name) for arm in result.arms),
        )
    for note in result.notes:
        err.print(Text(f"  {note}", style="dim"), soft_wrap=True)
    show_checks(result.checks)
    show_verdict(result.verdict, rows.verdict_sentence(result))
    say(f"  {result.folder}: {', '.join(result.files)}")


def show_checks(checks: Iterable[Check]) -> None:
    """Draws a verdict's lines."""
    lines = [rows.check_row(check) for check in checks]
    if lines:
        show_table(("check", "limit", "value", "interval (95%)", "verdict", "because"), lines)


def show_verdict(verdict: Verdict, sentence: str) -> None:
    """Writes the verdict in its colour."""
    err.print(Text.assemble("  verdict: ", (sentence, f"bold {_COLOURS[verdict.value]}")))


def show_build(result: BuildResult) -> None:
    """Draws all targets of a build, and where its summary lies."""
    for target in result.targets:
        err.print()
        show_target(target)
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
        tasks: dict[tuple[str, str], int] = {}

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
                    description=described,  # type: ignore[arg-type]
                )
            elif event.state == "waiting":
                say(f"… {name}: waiting for another build that is making it")
            elif event.state in ("done", "cached"):
                if key in tasks:
                    progress.remove_task(tasks.pop(key))  # type: ignore[arg-type]
                mark, style = ("=", "dim") if event.state == "cached" else ("+", "green")
                said = f"  {event.said}" if event.said else ""
                err.print(Text.assemble((f"{mark} ", style), (name, "bold"), said), soft_wrap=True)

        yield on_event


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
