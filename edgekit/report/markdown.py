"""Verdicts as Markdown for a pull request, and for the summary of a step of GitHub's actions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgekit import files
from edgekit.pipeline.gating import Ruling
from edgekit.report import rows

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
"""The variable that names the file to which a step of GitHub's actions adds its summary."""

_COLUMNS = ("check", "limit", "value", "95% interval", "margin", "verdict", "because", "source")
_RIGHT = frozenset({"limit", "value", "95% interval", "margin"})
_SPECIAL = "\\`*_{}[]<>()#+!|~"


def markdown(rulings: Sequence[Ruling]) -> str:
    """A heading and a table for each target; the worst come first in the line above them all."""
    said = ", ".join(f"{ruling.target} {ruling.verdict.value}" for ruling in rulings)
    lines = [f"## edgekit: {_cell(said) or 'nothing was gated'}", ""]
    for ruling in rulings:
        sentence = rows.verdict_sentence(ruling.verdict, ruling.because)
        lines += [f"### {_cell(ruling.model)} on {_cell(ruling.target)}", ""]
        lines += [f"**{_cell(sentence)}**. Measured: {_cell(rows.age(ruling.age_s))}.", ""]
        if ruling.refused:
            lines += [f"> {_cell(line)}" for line in ruling.refused.splitlines()] + [""]
        if ruling.checks:
            lines += [_row(_COLUMNS), _row(["---:" if c in _RIGHT else "---" for c in _COLUMNS])]
            lines += [_row([_cell(text) for text in rows.check_row(c)]) for c in ruling.checks]
            lines.append("")
        if ruling.notes:
            lines += [f"- {_cell(note)}" for note in ruling.notes] + [""]
    return "\n".join(lines)


def save_markdown(rulings: Sequence[Ruling], path: Path) -> None:
    """Writes the report at once. Raises as `files.write_text` does."""
    files.write_text(path, markdown(rulings))


def add_to_step_summary(rulings: Sequence[Ruling]) -> bool:
    """Adds the report to the summary of the step, where there is one, and says whether there is.

    Raises as `files.write_text` does where the named file cannot be written.
    """
    named = os.environ.get(STEP_SUMMARY, "")
    if not named:
        return False
    path = Path(named)
    with files.translated_errors(path), path.open("a", encoding="utf-8") as stream:
        stream.write(markdown(rulings) + "\n")
    return True


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """The text on one line, its letters as they are: none of them is Markdown, or HTML."""
    line = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in _SPECIAL else letter for letter in line)
