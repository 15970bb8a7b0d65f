"""The engine inspector's JSON, in the layouts of 8.x/10.x and of 11.x."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.engines.trt.inspector import EngineLayer, read_layers, report_of
from edgekit.errors import InputError
from edgekit.values import Unknown

MACS = {"/conv1/Conv": 600.0, "/conv2/Conv": 300.0, "/fc/Gemm": 100.0}

TEN = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to /conv1/Conv + /relu/Relu",
            "LayerType": "Reformat",
            "Inputs": [
                {
                    "Name": "input", "Location": "Device", "Dimensions": [1, 3, 8, 8],
                    "Format/Datatype": "Row major linear FP32",
                }
            ],
            "Outputs": [
                {
                    "Name": "Reformatted Input", "Dimensions": [1, 3, 8, 8],
                    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
                }
            ],
            "ParameterType": "Reformat", "TacticValue": "0x0", "StreamId": 0, "Metadata": "",
        },
        {
            "Name": "/conv1/Conv + /relu/Relu",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {
                    "Name": "Reformatted Input", "Dimensions": [1, 3, 8, 8],
                    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
                }
            ],
            "Outputs": [
                {
                    "Name": "a", "Dimensions": [1, 8, 8, 8],
                    "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
                }
            ],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Int8", "Count": 216}, "Bias": {"Type": "Float", "Count": 8},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8f16", "StreamId": 0,
            "Metadata": "[ONNX Layer: /conv1/Conv]\u001e[ONNX Layer: /relu/Relu]",
        },
        {
            "Name": "/conv2/Conv",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "a", "Format/Datatype": "Channel major FP16 format"}],
            "Outputs": [{"Name": "b", "Format/Datatype": "Channel major FP16 format"}],
            "Weights": {"Type": "Half", "Count": 64},
        },
        {
            "Name": "{ForeignNode[/fc/Flatten.../fc/Softmax]}",
            "LayerType": "Myelin",
            "Inputs": [{"Name": "b", "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "c", "Format/Datatype": "Row major linear FP32"}],
        },
    ],
    "Bindings": ["input", "c"],
}  # fmt: skip


def eleven() -> dict[str, object]:
    """The same engine as 11.x prints it."""
    document = json.loads(json.dumps(TEN))
    for layer in document["Layers"]:
        for tensor in (*layer["Inputs"], *layer["Outputs"]):
            said = tensor.pop("Format/Datatype")
            for word, kind in (("FP32", "Float"), ("Int8", "Int8"), ("FP16", "Half")):
                if word in said:
                    tensor["Datatype"] = kind
                    tensor["Format"] = said.replace(word, "").strip()
    del document["Bindings"]
    document["I/O Tensors"] = [
        {
            "Name": "input", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 8, 8],
            "Location": "Device", "IsShapeInferenceIO": "false", "ProfileInfo": [],
        }
    ]  # fmt: skip
    return document  # type: ignore[no-any-return]


@pytest.mark.parametrize("document", [TEN, eleven()], ids=["10", "11"])
def test_both_layouts_give_one_report(document: dict[str, object]) -> None:
    report = read_layers(json.dumps(document), MACS)
    assert [layer.precision for layer in report.layers] == ["fp32", "int8", "fp16", "fp16"]
    assert [layer.kind for layer in report.layers] == [
        "Reformat", "CaskConvolution", "CaskConvolution", "Myelin",
    ]  # fmt: skip
    assert report.reformats == 1
    assert report.int8_layers == 1 / 3
    assert report.int8_macs == pytest.approx(0.6)
    # /fc/Gemm lies between the ends of the foreign node, which names only these.
    assert report.unmatched_macs == pytest.approx(0.1)
    assert report.layers[1].nodes == ("/conv1/Conv", "/relu/Relu")


def test_names_alone_say_nothing_of_precision() -> None:
    text = json.dumps({"Layers": ["/conv1/Conv + /relu/Relu", "/conv2/Conv"], "Bindings": []})
    report = read_layers(text, MACS)
    assert [layer.name for layer in report.layers] == ["/conv1/Conv + /relu/Relu", "/conv2/Conv"]
    for figure in (report.reformats, report.int8_layers, report.int8_macs, report.unmatched_macs):
        assert isinstance(figure, Unknown)
        assert "detailed verbosity" in figure.reason


@pytest.mark.parametrize(
    "name",
    [
        "/conv1/Conv",
        "conv1.weight + /conv1/q/QuantizeLinear + /conv1/Conv + PWN(/act/Sigmoid, /act/Mul)",
        "/conv0/Conv || /conv1/Conv",
        "PWN(/conv1/Conv)",
    ],
)
def test_a_node_is_found_in_a_fused_layers_name(name: str) -> None:
    layer = {"Name": name, "LayerType": "x", "Inputs": [], "Weights": {"Type": "Int8", "Count": 1}}
    report = read_layers(json.dumps({"Layers": [layer]}), MACS)
    assert report.int8_macs == pytest.approx(0.6)


def test_a_name_that_only_contains_anothers_is_not_that_node() -> None:
    layer = {"Name": "/conv1/Conv_1", "LayerType": "x", "Weights": {"Type": "Int8", "Count": 1}}
    report = read_layers(json.dumps({"Layers": [layer]}), MACS)
    assert (report.int8_macs, report.unmatched_macs) == (0.0, 1.0)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Layers": 3}', '{"Layers": [{"x": 1}]}', "null"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no layer information"):
        read_layers(text, MACS)


def test_a_model_whose_work_is_unknown_has_no_share_of_it() -> None:
    report = read_layers(json.dumps(TEN), {})
    assert isinstance(report.int8_macs, Unknown)
    assert report.int8_layers == 1 / 3


NODES = ("a", "b", "c", "d")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            EngineLayer,
            name=st.text(max_size=3),
            kind=st.sampled_from(["Reformat", "Conv"]),
            precision=st.sampled_from(["int8", "fp16"]),
            nodes=st.lists(st.sampled_from(NODES), max_size=3).map(tuple),
        ),
        max_size=6,
    ),
    st.dictionaries(st.sampled_from(NODES), st.floats(1, 1e9), min_size=1),
)
def test_shares_are_shares(layers: list[EngineLayer], macs: dict[str, float]) -> None:
    report = report_of(layers, macs)
    assert not isinstance(report.int8_macs, Unknown)
    assert not isinstance(report.unmatched_macs, Unknown)
    assert -1e-9 <= report.int8_macs <= 1 + 1e-9
    assert -1e-9 <= report.unmatched_macs <= 1 + 1e-9
    assert report.int8_macs + report.unmatched_macs <= 1 + 1e-9
    only_int8 = [layer for layer in layers if layer.precision == "int8" or layer.kind == "Reformat"]
    if len(only_int8) == len(layers):
        assert math.isclose(report.int8_macs + report.unmatched_macs, 1, abs_tol=1e-9)
