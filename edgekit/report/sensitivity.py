"""A model's sensitivity for people: the rows of a table, the most sensitive group first; a plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgekit import files
from edgekit.compress.channels.sensitivity import GroupSensitivity, Sensitivity
from edgekit.report.plot import dot_chart

_MOST_DRAWN = 60  # a longer chart nobody reads; the table and the JSON have all


def ranked(found: Sensitivity) -> list[GroupSensitivity]:
    """The groups, the one that is the most damaged at its worst share first."""
    return sorted(found.groups, key=lambda group: -max(group.damage))


def columns(found: Sensitivity) -> tuple[str, ...]:
    """The heads of the table."""
    what = found.metric or ("agreement" if any(group.agreement for group in found.groups) else "")
    return ("group", "units", *(f"{s:.0%}" for s in found.shares), *([what] if what else []))


def table(found: Sensitivity) -> Iterator[tuple[str, ...]]:
    """A line for each group: its units, the damage at each share; then the metric or agreement."""
    for group in ranked(found):
        extra = "  ".join(f"{value:.2f}" for value in group.metric or group.agreement)
        yield (
            group.group, str(group.units), *(f"{damage:.4f}" for damage in group.damage),
            *([extra] if extra else []),
        )  # fmt: skip


def caption(found: Sensitivity) -> str:
    """What the numbers of the table are, in a sentence."""
    said = (
        f"damage is 1 - fidelity to the original's outputs where the group alone loses that share "
        f"of its units; {found.samples} samples at most"
    )
    if found.metric_before is not None:
        said += f"; {found.metric} of the original {found.metric_before:.4f}"
    return said


def chart(found: Sensitivity, model: str) -> str:
    """The SVG: a row for each group, a dot for each share of its units that is gone."""
    shown = ranked(found)[:_MOST_DRAWN]
    left = len(found.groups) - len(shown)
    rows: dict[str, dict[str, float | None]] = {
        group.group: {
            _gone(share): damage for share, damage in zip(found.shares, group.damage, strict=True)
        }
        for group in shown
    }
    more = f" (and {left} that lose less)" if left else ""
    return dot_chart(
        rows, title=f"{model}: what each channel group is worth{more}",
        x_label="damage: 1 - fidelity to the original's outputs",
    )  # fmt: skip


def save_chart(found: Sensitivity, model: str, out: Path) -> None:
    """Writes the SVG at once. Raises as `files.write_text` does."""
    files.write_text(out, chart(found, model))


def _gone(share: float) -> str:
    return f"{share:.0%} gone"
