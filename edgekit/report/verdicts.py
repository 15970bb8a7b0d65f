"""The reports of a gate that were asked for: JUnit XML, Markdown, a step's summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekit.pipeline.gating import Ruling
from edgekit.report.junit import save_junit
from edgekit.report.markdown import add_to_step_summary, save_markdown


def write_reports(
    rulings: Sequence[Ruling], *, junit: Path | None = None, markdown: Path | None = None
) -> None:
    """Writes each report that has a place, and adds to a step's summary where there is one.

    Raises as `files.write_text` does: a verdict that a CI cannot read is no verdict.
    """
    if junit is not None:
        save_junit(rulings, junit)
    if markdown is not None:
        save_markdown(rulings, markdown)
    add_to_step_summary(rulings)
