"""The history of a model as rows, as bars on a terminal, and as a chart."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import files
from edgekit.errors import InputError
from edgekit.history import Entry, history_file, open_history
from edgekit.recipe import load_recipe
from edgekit.report import rows
from edgekit.report.plot import line_chart
from edgekit.values import Unknown

_BAR = 40  # letters of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, kw_only=True)
class HistoryAsked:
    """What of the history is wanted. `place` is its file, empty for the user's own.

    `model` is a name, a recipe's file or a model's. `accept`: a measurement to take for a baseline.
    """

    model: str
    target: str = ""
    place: str = ""
    most: int = 40
    accept: int | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """The entries that were asked for, the oldest first."""

    model: str
    path: Path
    entries: tuple[Entry, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets of the entries."""
        return tuple(dict.fromkeys(entry.target for entry in self.entries))

    @property
    def title(self) -> str:
        """The model, and its target where it is one."""
        return f"{self.model} on {self.targets[0]}" if len(self.targets) == 1 else self.model

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "model": self.model, "history": str(self.path),
            "entries": [entry.to_json() for entry in self.entries],
        }  # fmt: skip


def look_up(asked: HistoryAsked) -> Told:
    """The newest entries of a model.

    Raises InputError where there are none, with the models that there are.
    """
    name, path = _named(asked)
    with open_history(path, make=False) as history:
        if asked.accept is not None:
            history.accept(asked.accept, model=name)
        entries = history.entries(name, asked.target, most=asked.most)
        if not entries:
            raise InputError(
                f"nothing was measured of {name}" + (f" on {asked.target}" * bool(asked.target)),
                where=str(path), wanted=", ".join(history.models()) or "any measurement",
                hint="`edgekit build` measures on a target that is this machine.",
            )  # fmt: skip
    return Told(model=name, path=path, entries=entries)


def _named(asked: HistoryAsked) -> tuple[str, Path]:
    """The model's name and the file of its history, as a recipe says them where one is given."""
    if not asked.model.endswith(".toml"):
        name = Path(asked.model).stem if asked.model.endswith(".onnx") else asked.model
        return name, history_file(asked.place)
    recipe = load_recipe(Path(asked.model))
    own = recipe.bench.history
    kept = "" if own in ("", "none") else str(recipe.folder / Path(own).expanduser())
    return recipe.name, history_file(asked.place or kept)


def columns(told: Told) -> tuple[str, ...]:
    """The heads of `table`; the target has a column where there are several."""
    target = ("target",) if len(told.targets) > 1 else ()
    return ("UTC", "number", *target, "arm", "FPS", "verdict", "commit")


def table(told: Told) -> list[tuple[str, ...]]:
    """A row for each entry."""
    return [
        (
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.taken_at)), str(entry.id),
            *((entry.target,) if len(told.targets) > 1 else ()),
            entry.arm, rows.rate(entry.fps),
            _verdict(entry), _commit(entry),
        )
        for entry in told.entries
    ]  # fmt: skip


def _commit(entry: Entry) -> str:
    short = entry.revision.commit[:10] + ("+" if entry.revision.changed else "")
    return " ".join((short, *entry.revision.tags)).strip()


def _verdict(entry: Entry) -> str:
    if entry.accepted:
        return "accepted"
    return "" if entry.verdict is None else entry.verdict.value


def bars(told: Told) -> list[str]:
    """A bar of the FPS of each entry that was judged, on one scale from zero, oldest first."""
    judged = [e for e in told.entries if e.verdict is not None or e.accepted] or told.entries
    known = [entry.fps for entry in judged if not isinstance(entry.fps, Unknown)]
    if not known or max(known) <= 0:
        return []
    return [
        f"{entry.id:>6} {entry.arm:<9.9} {_bar(entry.fps / max(known))} {rows.rate(entry.fps)}"
        for entry in judged
        if not isinstance(entry.fps, Unknown)
    ]


def _bar(share: float) -> str:
    whole, eighth = divmod(round(share * _BAR * 8), 8)
    return ("█" * whole + _EIGHTHS[eighth] * bool(eighth)).ljust(_BAR)


def chart(told: Told) -> str:
    """FPS over the measurements in their order, a line for each target and arm, as SVG.

    The order and not the clock: a clock may have been set.
    """
    order = {run: place for place, run in enumerate(dict.fromkeys(e.run for e in told.entries), 1)}
    series: dict[str, list[tuple[float, float | None]]] = {}
    for entry in told.entries:
        value = None if isinstance(entry.fps, Unknown) else entry.fps
        name = f"{entry.target} {entry.arm}"
        series.setdefault(name, []).append((float(order[entry.run]), value))
    lines: Mapping[str, Sequence[tuple[float, float | None]]] = series
    return line_chart(
        lines, title=f"{told.model}: samples a second", x_label="run, in the order taken",
        y_label="FPS",
    )  # fmt: skip


def save_chart(told: Told, path: Path) -> None:
    """Writes the chart. Raises as `files.write_text` does."""
    files.write_text(path, chart(told))
