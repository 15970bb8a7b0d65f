"""What quantizing cost, as rows and as JSON."""

from __future__ import annotations

import json

from edgekit.quantize.judging.layers import LayerError, LayerTensor, layer_error_from_json
from edgekit.quantize.judging.outputs import IDENTICAL, PartError
from edgekit.quantize.judging.parts import Part
from edgekit.quantize.precision.report import PrecisionOptions, PrecisionReport, Tried
from edgekit.report import quantization
from edgekit.values import Figure, Unknown

NOT_ASKED = Unknown("not asked for")


def layer(node: str, alone: Figure, output: Figure = NOT_ASKED, reason: str = "") -> LayerError:
    tensors = (
        LayerTensor(name="x", role="input", dtype="int8", bits=8, scale=0.1, zero_point=0,
                    channels=1, clipped=0.015),
        LayerTensor(name="y", role="output", dtype="int8", bits=8, scale=0.1, zero_point=0,
                    channels=1, clipped=0.002),
        LayerTensor(name="w", role="weight", dtype="int8", bits=4, scale=0.2, zero_point=0,
                    channels=16, clipped=Unknown("of a weight")),
    )  # fmt: skip
    return LayerError(
        node=node, op="Conv", alone_db=alone, output_db=output, accumulated_db=20.0,
        tensors=() if reason else tensors, reason=reason,
    )  # fmt: skip


LAYERS = (
    layer("fine", 40.0, 50.0), layer("bad", 35.0, 12.0), layer("odd", 10.0, 30.0),
    layer("tail", Unknown("tail"), Unknown("tail"), reason="behind the last layer"),
)  # fmt: skip


def test_the_worst_at_the_output_comes_first() -> None:
    assert [one.node for one in quantization.ranked(LAYERS)] == ["bad", "odd", "fine"]
    assert [row[0] for row in quantization.layer_rows(LAYERS)] == ["bad", "odd", "fine"]


def test_without_a_figure_at_the_output_the_worst_alone_comes_first() -> None:
    found = quantization.ranked([layer("fine", 40.0), layer("bad", 9.0), layer("same", IDENTICAL)])
    assert [one.node for one in found] == ["bad", "fine", "same"]


def test_a_layers_row_has_its_largest_clipped_share_and_its_types() -> None:
    row = next(iter(quantization.layer_rows(LAYERS)))
    assert len(row) == len(quantization.LAYER_COLUMNS)
    assert row == (
        "bad", "Conv", "35.0 dB", "12.0 dB", "20.0 dB", "1.50%",
        "s8 x s8/4 -> s8",
    )  # fmt: skip


def test_the_worst_layers_say_what_was_tried() -> None:
    rows = list(quantization.worst_rows(LAYERS, {"bad": ["bias corrected: +1.2 dB"]}, count=2))
    assert rows == [
        ("bad", "35.0 dB", "12.0 dB", "bias corrected: +1.2 dB"),
        ("odd", "10.0 dB", "30.0 dB", "nothing"),
    ]


def part(name: str, sqnr: Figure) -> PartError:
    ranges = ((1, 0, 4),) if name != "y" else ()
    return PartError(
        part=Part(output="y", name=name, ranges=ranges), samples=4, sqnr_db=sqnr, cosine=0.99,
        largest=0.5, relative=0.01,
    )  # fmt: skip


def test_parts_have_a_line_each_with_the_kernels_beside() -> None:
    rows = list(quantization.part_rows([part("boxes", 29.2), part("y", IDENTICAL)],
                                       [part("boxes", 7.25)]))  # fmt: skip
    assert rows == [
        ("y: boxes", "29.2 dB", "0.99000", "0.5", "0.0100", "7.2 dB"),
        ("y", "identical", "0.99000", "0.5", "0.0100", "-"),
    ]
    assert all(len(row) == len(quantization.PART_COLUMNS) for row in rows)


def test_nodes_in_float_are_counted_by_their_reason() -> None:
    assert list(quantization.left_rows([*LAYERS, LAYERS[-1]])) == [
        ("2 Conv", "behind the last layer")
    ]


def report(*, met: bool = True) -> PrecisionReport:
    tried = (
        Tried(excluded=(), drop=0.05, ms=4.0, int8_share=1.0),
        Tried(excluded=("bad", "odd", "fine"), drop=0.005, ms=6.0, int8_share=0.95),
        Tried(excluded=("odd", "fine"), drop=0.06, ms=5.5, int8_share=0.97),
        Tried(excluded=("bad",), drop=0.008, ms=4.5, int8_share=0.98),
    )
    return PrecisionReport(
        best=tried[3], met=met, worth_it=True, ended="done", tried=tried,
        options=PrecisionOptions(), precision="fp16", source="measured", saved_ms=3.0,
    )  # fmt: skip


def test_the_front_is_listed_from_fast_to_accurate_and_the_choice_is_marked() -> None:
    assert list(quantization.front_rows(report())) == [
        ("nothing", "0.05", "4 ms", "100.0%"),
        ("bad (chosen)", "0.008", "4.5 ms", "98.0%"),
        ("bad, odd and 1 more", "0.005", "6 ms", "95.0%"),
    ]
    assert "chosen" not in str(list(quantization.front_rows(report(met=False))))


def test_the_search_says_what_it_did_with_a_node() -> None:
    assert quantization.tries_of(report()) == {
        "bad": ["left in FP16"],
        "odd": ["in FP16 in 2 candidates, put back"],
        "fine": ["in FP16 in 2 candidates, put back"],
    }


def test_what_was_stored_as_json_is_drawn_as_tables() -> None:
    stored = json.loads(json.dumps({
        "parts": [part("boxes", 29.2).to_json()], "kernel_parts": [],
        "layers": [one.to_json() for one in LAYERS], "refined": None,
        "search": report().to_json(),
    }, allow_nan=False))  # fmt: skip
    tables = {one.title: one.lines for one in quantization.tables(stored)}
    assert tables["Outputs"][0][1] == "29.2 dB"
    assert [row[0] for row in tables["Layers on integers, the worst first"]] == [
        "bad", "odd", "fine",
    ]  # fmt: skip
    assert tables["The five worst"][0][3] == "left in FP16"
    assert tables["Left in floating point"] == (("1 Conv", "behind the last layer"),)
    assert len(tables["What may be had for how much"]) == 3


def test_a_layer_survives_json() -> None:
    for one in LAYERS:
        assert layer_error_from_json(json.loads(json.dumps(one.to_json()))) == one
