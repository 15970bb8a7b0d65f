"""Numbers as a person reads them, and the rows of each table: strings only, no drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.pipeline.blame import Apart, Stage
from edgekit.pipeline.result import BuildResult, Facts, TargetResult
from edgekit.values import Check, Figure, Unknown, Verdict

Row = tuple[str, str, str, str]

_PERCENT_METRICS = frozenset({"top1"})
_LIMIT_UNITS = {
    "min_fps": "FPS", "max_p99_ms": "ms", "max_memory_mb": "MB", "max_size_mb": "MB",
    "min_speedup": "times", "min_sqnr_db": "dB", "max_joules": "J",
}  # fmt: skip


def quantity(value: Figure, scale: float = 1.0, digits: int = 1, unit: str = "") -> str:
    """The number over `scale` with its unit; for an unknown one the reason."""
    if isinstance(value, Unknown):
        return value.reason
    return f"{value / scale:,.{digits}f}{' ' + unit if unit else ''}"


def rate(value: Figure) -> str:
    """Frames a second, a digit behind the point where there are few."""
    if isinstance(value, Unknown):
        return value.reason
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def count(value: Figure) -> str:
    """A number of things, with M or G where it is large."""
    if isinstance(value, Unknown):
        return value.reason
    for scale, letter in ((1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.2f} {letter}"
    return f"{value:,.0f}"


def size(value: Figure) -> str:
    """Bytes, in kB or MB of a thousand."""
    if isinstance(value, Unknown):
        return value.reason
    return f"{value / 1e6:,.2f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"


def metric(value: Figure, name: str) -> str:
    """An accuracy as a percentage, another metric as it is."""
    if isinstance(value, Unknown):
        return value.reason
    return f"{100 * value:.2f}%" if name in _PERCENT_METRICS else f"{value:.4g}"


def ratio(before: Figure, after: Figure, *, more_is_better: bool = False) -> str:
    """How many times smaller, or faster, `after` is; empty where one of them is unknown."""
    if isinstance(before, Unknown) or isinstance(after, Unknown) or not before or not after:
        return ""
    if more_is_better:
        return f"{after / before:.2f}x"
    return f"{after / before:.3f} of it"


def difference(before: Figure, after: Figure, name: str) -> str:
    """The metric's change: in points for an accuracy."""
    if isinstance(before, Unknown) or isinstance(after, Unknown):
        return ""
    change = after - before
    return f"{100 * change:+.2f} points" if name in _PERCENT_METRICS else f"{change:+.4g}"


def comparison(result: TargetResult) -> list[Row]:
    """What, before, after, change: one row a figure."""
    before, after, name = result.before, result.after, result.metric_name
    label = "accuracy (top-1)" if name == "top1" else name
    memory = f"memory, {after.memory_is}"
    return [
        (
            label, metric(before.metric, name), metric(after.metric, name),
            difference(before.metric, after.metric, name),
        ),
        ("MACs", count(before.macs), count(after.macs), ratio(before.macs, after.macs)),
        (
            "parameters", count(before.parameters), count(after.parameters),
            ratio(before.parameters, after.parameters),
        ),
        (
            "file size", size(before.file_bytes), size(after.file_bytes),
            ratio(before.file_bytes, after.file_bytes),
        ),
        (
            "FPS", rate(before.fps), rate(after.fps),
            ratio(before.fps, after.fps, more_is_better=True),
        ),
        (
            "p99 latency", quantity(before.p99_ms, digits=3, unit="ms"),
            quantity(after.p99_ms, digits=3, unit="ms"), ratio(before.p99_ms, after.p99_ms),
        ),
        (
            memory, size(before.memory_bytes), size(after.memory_bytes),
            ratio(before.memory_bytes, after.memory_bytes),
        ),
    ]  # fmt: skip


def arm_row(arm: Facts, name: str) -> tuple[str, ...]:
    """One measured candidate: what, metric, size, FPS, p50, p99, memory."""
    return (
        arm.what, metric(arm.metric, name), size(arm.file_bytes), rate(arm.fps),
        quantity(arm.p50_ms, digits=3, unit="ms"), quantity(arm.p99_ms, digits=3, unit="ms"),
        size(arm.memory_bytes),
    )  # fmt: skip


SUMMARY_COLUMNS = ("target", "made", "precision", "metric", "size", "FPS", "verdict", "because")


def summary_rows(result: BuildResult) -> list[tuple[str, ...]]:
    """One row for each target of a build: what it got, or why it got nothing."""
    found: list[tuple[str, ...]] = [
        (
            target.target, target.made, target.precision,
            metric(target.after.metric, target.metric_name), size(target.after.file_bytes),
            _or_dash(target.after.fps, rate(target.after.fps)), target.verdict.value,
            target.because.removeprefix(f"{target.verdict.value}: "),
        )
        for target in result.targets
    ]  # fmt: skip
    for refusal in result.refused:
        error = refusal.error
        why = f"{error.what} ({error.got})" if error.got else error.what
        found.append((refusal.target, "refused", "", "", "", "", "", " ".join(why.split())))
    return found


BLAME_COLUMNS = (
    "after", "metric", "change", "same top-1", "SQNR", "largest error", "SQNR, original",
)  # fmt: skip


def blame_rows(stages: Sequence[Stage], name: str) -> list[tuple[str, ...]]:
    """What was there after each step: its metric, and how far it is from the last and the first.

    `same top-1`, the SQNR of the worst part and the largest error are against the last one; the
    last column is against the original.
    """
    found = []
    for before, stage in zip((None, *stages), stages, strict=False):
        emulated = " (emulated)" if "emulated" in stage.through else ""
        row = [f"{stage.step}{emulated}", _or_dash(stage.metric, metric(stage.metric, name))]
        if before is None or stage.last is None:
            found.append((*row, "", "", "", "", ""))
            continue
        last = stage.last
        found.append((
            *row, difference(before.metric, stage.metric, name),
            _or_dash(last.agreement, quantity(last.agreement, 0.01, 2, "%")), _decibels(last),
            _or_dash(last.relative_error, f"{last.relative_error:.2g}"
                     if not isinstance(last.relative_error, Unknown) else ""),
            "-" if stage.first is None else _decibels(stage.first),
        ))  # fmt: skip
    return found


def _decibels(apart: Apart) -> str:
    worst = apart.worst
    if worst is not None:
        return quantity(worst.sqnr_db, unit="dB")
    return "the same" if apart.parts else "-"


def _or_dash(value: Figure, said: str) -> str:
    return "-" if isinstance(value, Unknown) else said


def check_row(check: Check) -> tuple[str, ...]:
    """One line of a verdict: name, limit, value, interval, margin, verdict, because, source."""
    unit = _LIMIT_UNITS.get(check.name, "")
    interval = "" if check.interval is None else "{:,.4g} to {:,.4g}".format(*check.interval)
    value = "unknown" if isinstance(check.value, Unknown) else f"{check.value:,.4g}"
    limit = f"{check.limit:g} {unit}".rstrip()
    margin = "" if isinstance(check.margin, Unknown) else f"{check.margin:+,.3g}"
    return (
        check.name, limit, value, interval, margin, check.verdict.value, check.because, check.source
    )  # fmt: skip


def age(seconds: Figure) -> str:
    """How long ago, in the largest unit that fits."""
    if isinstance(seconds, Unknown):
        return seconds.reason
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            whole = int(seconds // length)
            return f"{whole} {unit}{'s' if whole > 1 else ''} ago"
    return "just now" if seconds < 5 else f"{int(seconds)} seconds ago"


def verdict_sentence(verdict: Verdict, because: str) -> str:
    """The verdict in a line."""
    return because if because.startswith(verdict.value) else f"{verdict.value}: {because}"


def document(content: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """A JSON document as rows of a dotted key and a value; long lists are counted."""
    found: list[tuple[str, str]] = []
    for key, value in content.items():
        place = f"{prefix}{key}"
        if isinstance(value, Mapping) and set(value) == {"unknown"}:
            found.append((place, str(value["unknown"])))
        elif isinstance(value, Mapping):
            found += document(value, f"{place}.")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            for index, one in enumerate(value):
                found += document(one, f"{place}.{index + 1}.")
        elif isinstance(value, list):
            found.append((place, ", ".join(map(str, value))))
        elif isinstance(value, float):
            found.append((place, f"{value:,.6g}"))
        elif isinstance(value, int) and not isinstance(value, bool):
            found.append((place, f"{value:,}"))
        else:
            found.append((place, "" if value is None else str(value)))
    return found


def layer_rows(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The layers of a profile: name, kind, milliseconds, share, and the graph's nodes."""
    return [
        (
            str(layer["name"]), str(layer["kind"]), f"{layer['ms']:.4f}",
            f"{100 * layer['share']:.1f}%", ", ".join(layer["nodes"]) or "none",
        )
        for layer in layers
    ]  # fmt: skip
