"""Small charts as SVG text: no dependency, one file, readable on a light page and on a dark one.

A point without a value is not drawn, and no line goes through its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from edgekit.errors import InputError

Points = Sequence[tuple[float, float | None]]

# Told apart without colour vision too (Okabe and Ito, "Color Universal Design", 2008), and darkened
# or lightened where the page needs it; the marks differ as well.
_LIGHT = ("#0072b2", "#d55e00", "#007f5f", "#b5548c", "#946c00", "#2a8fc4", "#5b5b5b", "#7a4fbf")
_DARK = ("#4aa8e0", "#f08a3c", "#2fc59a", "#dd8fbd", "#e0b23a", "#8fd0f2", "#b0b0b0", "#b79af0")
_MARKS = ("circle", "square", "diamond", "triangle")

_LETTER = 6.7  # the mean width of a letter at 12 px
_LINE = 16.0  # the height of a row of labels
_TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Style:
    """How large a chart is, in px, and how its numbers are written.

    A share is written in per cent. A range that is None is that of the data, out to the next tick.
    """

    width: int = 720
    height: int = 420
    x_is_share: bool = False
    y_is_share: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Axis:
    """A straight scale: `low` lies at `begin` px, `high` at `end` px."""

    low: float
    high: float
    begin: float
    end: float
    ticks: tuple[float, ...]
    is_share: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in px."""
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def said(self, tick: float) -> str:
        """A tick as it is written: with as many digits as its neighbours need."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        scale = 100 if self.is_share else 1
        digits = max(0, -math.floor(math.log10(step * scale) + 1e-9))
        if not self.is_share and (max(abs(t) for t in self.ticks) >= 1e6 or digits > 5):
            return f"{tick:.3g}"
        text = f"{tick * scale + 0.0:.{digits}f}"
        if digits and all(_is_whole(t * scale * 10 ** (digits - 1)) for t in self.ticks):
            text = f"{tick * scale + 0.0:.{digits - 1}f}"
        return f"{text}%" if self.is_share else text


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    style: Style | None = None,
) -> str:
    """An SVG of lines with a mark at each point, each named at its right end.

    `series` has (x, y) by name, in the order in which they are told apart; a y of None is a point
    without a value. Raises InputError where no point has one.
    """
    style = style or Style()
    lines = {name: sorted(points, key=lambda p: p[0]) for name, points in series.items()}
    known = [(x, y) for points in lines.values() for x, y in points if _is_number(y)]
    if not known:
        raise InputError("there is nothing to draw", where=title, got="no point with a value")
    names = [name for name, points in lines.items() if any(_is_number(y) for _, y in points)]
    right = style.width - 34 - min(180.0, max(len(name) for name in names) * _LETTER)
    xs, ys = zip(*known, strict=True)
    x_axis = axis_of(xs, 68, right, style.x_range, is_share=style.x_is_share)
    y_axis = axis_of(ys, style.height - 56, 64, style.y_range, is_share=style.y_is_share)
    body = [*_grid(x_axis, y_axis), *_titles(title, x_label, y_label, x_axis, y_axis)]
    ends: dict[str, float] = {}
    for index, name in enumerate(names):
        places = [
            (x_axis.at(x), y_axis.at(y)) if _is_number(y) and y is not None else None
            for x, y in lines[name]
        ]
        body += _line(places, index, [p for p in lines[name] if _is_number(p[1])], name)
        ends[name] = next(place[1] for place in reversed(places) if place is not None)
    body += _labels(ends, names, right + 14, (y_axis.end, y_axis.begin))
    return _document(body, style.width, style.height, title)


def dot_chart(
    rows: Mapping[str, Mapping[str, float | None]],
    *,
    title: str,
    x_label: str,
    is_share: bool = False,
) -> str:
    """An SVG with a row for each name and on it a dot for each of its numbers, all on one scale.

    The dots of a row are joined from the least to the largest; which is which stands above. Raises
    InputError where there is no number.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    known = [value for row in rows.values() for value in row.values() if _is_number(value)]
    if not known:
        raise InputError("there is nothing to draw", where=title, got="no row with a number")
    longest = max(len(name) for name in rows)
    left = 24 + min(330.0, longest * _LETTER)
    top, width = 78.0, 720
    height = round(top + 19 * len(rows) + 58)
    x_axis = axis_of([0.0, *(v for v in known if v is not None)], left, width - 28, None,
                     is_share=is_share)  # fmt: skip
    y_axis = Axis(0, len(rows), top, height - 58, ())
    body = [*_grid(x_axis, y_axis), *_titles(title, x_label, "", x_axis, y_axis)]
    across = left
    for index, column in enumerate(columns):
        body += [_mark(across + 5, 60, index), _text(across + 15, 64, column, "label")]
        across += 34 + len(column) * _LETTER
    for place, (name, row) in enumerate(rows.items()):
        y = y_axis.at(place + 0.5)
        body.append(_text(left - 10, y + 4, _shortened(name, 48), "label", anchor="end"))
        dots = [
            (x_axis.at(value), columns.index(column), f"{name}, {column}: {value:.4g}")
            for column, value in row.items()
            if _is_number(value) and value is not None
        ]
        if len(dots) > 1:
            begin, end = min(dots)[0], max(dots)[0]
            body.append(f'<path class="join" d="M{_px(begin)} {_px(y)}H{_px(end)}"/>')
        body += [_mark(x, y, column, said) for x, column, said in dots]
    return _document(body, width, height, title)


def axis_of(
    values: Sequence[float], begin: float, end: float, limits: tuple[float, float] | None,
    *, is_share: bool = False,
) -> Axis:  # fmt: skip
    """An Axis for the values with about five round ticks; without limits it ends at ticks."""
    low, high = limits if limits is not None else (min(values), max(values))
    if not low < high:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = _round_step((high - low) / _TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if limits is not None:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        low, high = first * step, last * step
    ticks = tuple(float(f"{number * step:.12g}") for number in range(first, last + 1))
    return Axis(low, high, begin, end, ticks, is_share)


def _round_step(rough: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not much less than `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(nice * power for nice in (1, 2, 5, 10) if nice * power >= rough * 0.75))


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6


def _grid(x_axis: Axis, y_axis: Axis) -> Iterator[str]:
    top, bottom = sorted((y_axis.begin, y_axis.end))
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        yield f'<path class="grid" d="M{_px(x_axis.begin)} {_px(y)}H{_px(x_axis.end)}"/>'
        yield _text(x_axis.begin - 8, y + 4, y_axis.said(tick), "tick", anchor="end")
    for tick in x_axis.ticks:
        x = x_axis.at(tick)
        yield f'<path class="grid" d="M{_px(x)} {_px(top)}V{_px(bottom)}"/>'
        yield _text(x, bottom + 18, x_axis.said(tick), "tick", anchor="middle")
    yield f'<path class="axis" d="M{_px(x_axis.begin)} {_px(bottom)}H{_px(x_axis.end)}"/>'


def _titles(title: str, x_label: str, y_label: str, x_axis: Axis, y_axis: Axis) -> Iterator[str]:
    bottom = max(y_axis.begin, y_axis.end)
    yield _text(16, 26, title, "title")
    yield _text((x_axis.begin + x_axis.end) / 2, bottom + 40, x_label, "label", anchor="middle")
    if y_label:
        yield _text(16, 44, y_label, "label")


def _line(
    places: Sequence[tuple[float, float] | None], index: int, points: Points, name: str
) -> Iterator[str]:
    """One series: a stroke through neighbours that both have a value, a mark on each point."""
    path, pen = [], "M"
    for place in places:
        if place is None:
            pen = "M"
            continue
        path.append(f"{pen}{_px(place[0])} {_px(place[1])}")
        pen = "L"
    yield f'<path class="line c{index % len(_LIGHT)}" d="{"".join(path)}"/>'
    drawn = [place for place in places if place is not None]
    for (x, y), (at, value) in zip(drawn, points, strict=True):
        yield _mark(x, y, index, f"{name}: {at:g}, {value:.6g}")


def _labels(
    ends: Mapping[str, float], names: Sequence[str], x: float, span: tuple[float, float]
) -> Iterator[str]:
    """The names beside the right ends of their lines, moved apart where they would overlap."""
    order = sorted(names, key=lambda name: ends[name])
    heights: list[float] = []
    for name in order:
        heights.append(max(ends[name], heights[-1] + _LINE if heights else span[0]))
    ceiling = span[1]
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], ceiling)
        ceiling = heights[place] - _LINE
    for name, y in zip(order, heights, strict=True):
        index = names.index(name)
        yield _mark(x, y, index)
        yield _text(x + 10, y + 4, _shortened(name, 26), f"label t{index % len(_LIGHT)}")


def _mark(x: float, y: float, index: int, said: str = "") -> str:
    """A mark of a series, about 8 px wide; `said` is what a browser shows when it is pointed at."""
    kind = _MARKS[index % len(_MARKS)]
    told = f"<title>{_escaped(said)}</title>" if said else ""
    style = f'class="mark c{index % len(_LIGHT)}"'
    if kind == "circle":
        return f'<circle {style} cx="{_px(x)}" cy="{_px(y)}" r="4">{told}</circle>'
    corners = {
        "square": ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
        "triangle": ((0, -4.8), (4.6, 3.6), (-4.6, 3.6)),
    }[kind]
    path = "L".join(f"{_px(x + dx)} {_px(y + dy)}" for dx, dy in corners)
    return f'<path {style} d="M{path}Z">{told}</path>'


def _text(x: float, y: float, text: str, style: str, *, anchor: str = "start") -> str:
    return (
        f'<text class="{style}" x="{_px(x)}" y="{_px(y)}" text-anchor="{anchor}">'
        f"{_escaped(text)}</text>"
    )


def _escaped(text: str) -> str:
    """The text as XML may hold it: control characters are no part of it."""
    return escape("".join(letter if letter.isprintable() else " " for letter in text))


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else "…" + text[1 - letters :]


def _px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _document(body: Sequence[str], width: int, height: int, title: str) -> str:
    """The whole file; the colours follow what the reader's system prefers."""

    def colours(palette: Sequence[str]) -> str:
        return "".join(
            f".mark.c{i}{{fill:{colour}}}.line.c{i}{{stroke:{colour}}}.t{i}{{fill:{colour}}}"
            for i, colour in enumerate(palette)
        )

    style = (
        "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#24292f}"
        ".title{font-size:15px;font-weight:600}.tick{fill:#57606a;font-size:11px}"
        ".page{fill:#fff}.grid{stroke:#e6e9ec;fill:none}.axis{stroke:#8c959f;fill:none}"
        ".line{fill:none;stroke-width:2;stroke-linejoin:round}"
        ".mark{stroke:#fff;stroke-width:1}.join{stroke:#afb8c1;stroke-width:2;fill:none}"
        + colours(_LIGHT)
        + "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.tick{fill:#9da7b3}"
        ".page{fill:#0d1117}.grid{stroke:#21262d}.axis{stroke:#6e7681}.mark{stroke:#0d1117}"
        ".join{stroke:#484f58}" + colours(_DARK) + "}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{_escaped(title)}</title>",
            f"<style>{style}</style>",
            f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
            *body,
            "</svg>",
            "",
        ]
    )
