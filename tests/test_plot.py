"""Charts: what is drawn lies where the numbers say, and nothing else is drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.report.plot import Style, axis_of, dot_chart, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [one for one in root.iter() if name in one.get("class", "").split()]


def texts(root: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in root.iter(f"{SVG}text")]


def chart(series: dict[str, list[tuple[float, float | None]]], **style: object) -> str:
    return line_chart(
        series, title="t", x_label="x", y_label="y", style=Style(**style) if style else None
    )


def test_points_lie_where_hand_arithmetic_puts_them() -> None:
    root = drawn(chart({"one": [(0, 0), (5, 25), (10, 100)]}, x_range=(0, 10), y_range=(0, 100)))
    # The plot goes from x = 68 to 720 - 34 - 3 letters of 6.7, from y = 420 - 56 = 364 up to 64.
    right = 720 - 34 - 3 * 6.7
    (line,) = of_class(root, "line")
    places = [tuple(map(float, p.split())) for p in (line.get("d") or "")[1:].split("L")]
    wanted = [(68, 364), (68 + (right - 68) / 2, 364 - 300 / 4), (right, 64)]
    np.testing.assert_allclose(places, wanted, atol=0.01)
    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{SVG}circle")]
    np.testing.assert_allclose(circles[:3], wanted, atol=0.01)


def test_a_point_without_a_value_is_a_gap_and_no_zero() -> None:
    root = drawn(chart({"one": [(1, 4.0), (2, None), (3, float("nan")), (4, 5.0), (5, 6.0)]}))
    (line,) = of_class(root, "line")
    path = line.get("d") or ""
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert len([c for c in root.iter(f"{SVG}circle") if c.find(f"{SVG}title") is not None]) == 3
    assert "0" not in texts(root)  # nothing drew the scale down to 0


def test_a_series_without_any_value_is_left_out_by_name_too() -> None:
    root = drawn(chart({"known": [(0, 1.0), (1, 2.0)], "unknown": [(0, None)]}))
    assert "known" in texts(root)
    assert "unknown" not in texts(root)


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        chart({"one": [(0, None)]})
    with pytest.raises(InputError, match="nothing to draw"):
        dot_chart({"row": {"25%": None}}, title="t", x_label="x")


@pytest.mark.parametrize(
    ("values", "ticks", "said"),
    [
        ([0, 10], (0, 2, 4, 6, 8, 10), ["0", "2", "4", "6", "8", "10"]),
        ([0.913, 0.917], (0.913, 0.914, 0.915, 0.916, 0.917), None),
        ([-3, 7], (-4, -2, 0, 2, 4, 6, 8), ["-4", "-2", "0", "2", "4", "6", "8"]),
        ([12_345, 98_765], (0, 20_000, 40_000, 60_000, 80_000, 100_000), None),
    ],
)
def test_ticks_are_round_and_hold_the_data(
    values: list[float], ticks: tuple[float, ...], said: list[str] | None
) -> None:
    axis = axis_of(values, 0, 100, None)
    np.testing.assert_allclose(axis.ticks, ticks)
    assert axis.low <= min(values) < max(values) <= axis.high
    labels = [axis.said(t) for t in axis.ticks]
    assert labels == (said or labels)
    assert len(set(labels)) == len(labels)


def test_shares_are_written_in_per_cent() -> None:
    axis = axis_of([0.25, 1.0], 0, 100, None, is_share=True)
    assert [axis.said(t) for t in axis.ticks] == ["20%", "40%", "60%", "80%", "100%"]


def test_one_value_alone_still_has_a_scale() -> None:
    root = drawn(chart({"one": [(3, 7.0)]}))
    (circle, _) = root.iter(f"{SVG}circle")
    assert 64 < float(circle.get("cy", "")) < 364


def test_names_of_lines_that_end_together_do_not_overlap() -> None:
    series: dict[str, list[tuple[float, float | None]]] = {
        f"line {i}": [(0, 0.0), (1, 1.0)] for i in range(6)
    }
    root = drawn(chart(series))
    heights = sorted(float(t.get("y", "")) for t in root.iter(f"{SVG}text")
                     if (t.text or "").startswith("line "))  # fmt: skip
    assert np.diff(heights).min() >= 15.9
    assert heights[-1] <= 420 - 56 + 4


def test_text_is_escaped() -> None:
    name = 'a<b> & "c"\x07'
    root = drawn(line_chart({name: [(0, 1)]}, title=name, x_label=name, y_label=name))
    assert texts(root).count('a<b> & "c" ') == 4


def test_dots_of_a_row_lie_on_one_line_and_one_scale() -> None:
    root = drawn(
        dot_chart({"a": {"25%": 0.0, "75%": 10.0}, "b": {"25%": 5.0, "75%": None}},
                  title="t", x_label="x")
    )  # fmt: skip
    circles = [c for c in root.iter(f"{SVG}circle") if c.find(f"{SVG}title") is not None]
    left, right = 24 + 6.7, 720 - 28
    assert [float(c.get("cx", "")) for c in circles] == pytest.approx(
        [left, (left + right) / 2], abs=0.01
    )
    assert [float(c.get("cy", "")) for c in circles] == [78 + 9.5, 78 + 19 + 9.5]
    squares = [s for s in root.iter(f"{SVG}path") if s.find(f"{SVG}title") is not None]
    assert len(squares) == 1  # b has no value at 75%
    (join,) = of_class(root, "join")
    assert join.get("d") == f"M{left:g} 87.5H{right}"
