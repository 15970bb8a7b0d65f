"""What a target refuses before anybody builds for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engines import tensorrt_rtx
from edgekit.engines.base import BuilderOptions, EngineRequest, read_model
from edgekit.engines.preflight import dla_rules, operators
from edgekit.engines.preflight.preflight import Answer, PreflightReport, preflight
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.quantize import lint
from edgekit.targets import Target, load_target
from edgekit.values import Array

ORIN = load_target("jetson-orin-nano-8gb")


def orin_with(version: str, **fields: object) -> Target:
    runtime = ORIN.runtime.model_copy(update={"version": version})
    return ORIN.model_copy(update={"runtime": runtime, **fields})


def checked(
    path: Path, target: Target = ORIN, *, compile_here: bool = False, **options: object
) -> PreflightReport:
    request = EngineRequest(
        **{"model_path": path, "name": "net", "target": target, "precision": "fp16", **options}  # type: ignore[arg-type]
    )
    return preflight(request, compile_here=compile_here)


def answers(report: PreflightReport) -> dict[str, str]:
    return {line.check: line.answer.value for line in report.lines}


def said(report: PreflightReport, check: str) -> str:
    return next(line.said for line in report.lines if line.check == check)


def graph_file(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    *,
    shape: Sequence[int | str] = ("n", 4, 8, 8),
    opset: int = 17,
) -> Path:
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_a_plain_model_passes_every_check(residual_path: Path) -> None:
    report = checked(residual_path)
    assert answers(report) == {
        "precision": "passed", "opset": "passed", "operators": "passed", "types": "passed",
        "shapes": "passed", "Q/DQ": "passed",
    }  # fmt: skip
    assert report.verdict is Answer.PASSED
    assert report.nodes == ()


def test_hardware_without_int8_refuses_it_and_says_what_to_use(residual_path: Path) -> None:
    nano = orin_with("8.2", name="nano", precisions=("fp32", "fp16"))
    report = checked(residual_path, nano, precision="int8")
    assert report.verdict is Answer.REFUSED
    assert said(report, "precision") == "nano has no INT8 hardware; use fp16"


def test_a_dla_that_is_not_there_is_refused(residual_path: Path) -> None:
    report = checked(residual_path, dla_core=0)
    assert report.verdict is Answer.REFUSED
    assert "has no DLA" in said(report, "DLA")


def test_a_dla_core_is_counted_from_zero(residual_path: Path) -> None:
    two = orin_with("10.3", dla=type(ORIN.dla)(cores=2))
    assert answers(checked(residual_path, two, dla_core=1))["DLA"] == "unknown"
    assert answers(checked(residual_path, two, dla_core=2))["DLA"] == "refused"
    newer = orin_with("10.13", dla=type(ORIN.dla)(cores=2))
    assert answers(checked(residual_path, newer, dla_core=1))["DLA"] == "refused"


def with_dla() -> Target:
    return orin_with("10.3", name="orin-nx", dla=type(ORIN.dla)(cores=2))


def test_nodes_that_a_dla_does_not_take_are_named(residual_path: Path) -> None:
    report = checked(residual_path, with_dla(), dla_core=0)
    named = {node.operator for node in report.nodes}
    assert {node.check for node in report.nodes} == {"DLA"}
    assert "Gemm" in named
    assert not named & {"Conv", "Relu", "Add", "BatchNormalization"}
    count = len(report.nodes)
    for limit, answer in ((count, "unknown"), (count - 1, "refused")):
        options = BuilderOptions(max_dla_fallbacks=limit)
        limited = checked(residual_path, with_dla(), dla_core=0, builder=options)
        assert answers(limited)["DLA"] == answer


def test_a_dla_takes_one_size(residual_path: Path) -> None:
    report = checked(residual_path, with_dla(), dla_core=0, batch=(1, 1, 4))
    assert answers(report)["DLA"] == "refused"
    assert "no dynamic shapes: image" in said(report, "DLA")


@pytest.mark.parametrize(
    ("node", "falls_back"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"], name="n", kernel_shape=[3, 3]), False),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="n", kernel_shape=[33, 33]), True),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="n", kernel_shape=[3]), True),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="n"), False),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="n", group=2), True),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="n", pads=[1] * 4), True),
        (helper.make_node("Concat", ["x", "w"], ["y"], name="n", axis=1), False),
        (helper.make_node("Concat", ["x", "w"], ["y"], name="n", axis=2), True),
        (helper.make_node("LayerNormalization", ["x", "w"], ["y"], name="n"), True),
        (helper.make_node("LeakyRelu", ["x"], ["y"], name="n"), False),
    ],
)
def test_each_restriction_of_the_dla(node: onnx.NodeProto, falls_back: bool) -> None:
    graph = helper.make_graph([node], "g", [], [])
    program = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model = Model(name="g", program=ir.from_proto(program))
    assert bool(dla_rules.fallbacks(model, {})) is falls_back


def test_an_opset_above_the_targets_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    path = graph_file(tmp_path / "new.onnx", [node], {}, opset=21)
    report = checked(path)
    assert answers(report)["opset"] == "refused"
    assert "opset 21" in said(report, "opset")


@pytest.mark.parametrize(
    ("node", "version", "refused"),
    [
        (helper.make_node("QLinearConv", ["x"] * 8, ["y"]), (11, 0), True),
        (helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"]), (10, 3), True),
        (helper.make_node("LayerNormalization", ["x", "w"], ["y"]), (8, 5), True),
        (helper.make_node("LayerNormalization", ["x", "w"], ["y"]), (8, 6), False),
        (helper.make_node("GridSample", ["x", "g"], ["y"]), (8, 2), True),
        (helper.make_node("GridSample", ["x", "g"], ["y"]), (8, 5), False),
        (helper.make_node("Attention", ["x"] * 3, ["y"]), (10, 13), True),
        (helper.make_node("Attention", ["x"] * 3, ["y"]), (10, 14), False),
        (
            helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2]),
            (10, 3), True,
        ),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2]), (10, 3), True),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2]), (10, 3), False),
        (helper.make_node("Resize", ["x"], ["y"], antialias=1), (10, 3), True),
        (helper.make_node("Nonsense", ["x"], ["y"], domain="mine"), (10, 3), False),
    ],
)  # fmt: skip
def test_operators_are_refused_where_the_version_has_them_not(
    node: onnx.NodeProto, version: tuple[int, int], refused: bool
) -> None:
    graph = helper.make_graph([node], "g", [], [])
    program = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (found,) = ir.from_proto(program).graph
    assert bool(operators.refusal(found, version)) is refused


def test_indices_of_a_max_pool_matter_only_where_they_are_used(tmp_path: Path) -> None:
    pool = helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])
    path = graph_file(tmp_path / "unused.onnx", [pool], {})
    assert answers(checked(path))["operators"] == "passed"
    cast = helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT)
    path = graph_file(tmp_path / "used.onnx", [pool, cast], {})
    assert answers(checked(path))["operators"] == "refused"


def test_a_foreign_operator_is_unknown(tmp_path: Path) -> None:
    node = helper.make_node("Nonsense", ["x"], ["y"], name="n", domain="mine")
    path = graph_file(tmp_path / "mine.onnx", [node], {})
    report = checked(path)
    assert report.verdict is Answer.UNKNOWN
    assert '"mine"' in said(report, "operators")


def contradiction(path: Path) -> Path:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")
    constants = {"shape": np.array([7, 7], np.int64)}
    return graph_file(path, [node], constants, shape=(1, 4, 8, 8))


def suppression(path: Path) -> Path:
    """TensorRT has NonMaxSuppression; TensorRT-RTX does not compile it on a CPU."""
    floats, whole = TensorProto.FLOAT, TensorProto.INT64
    nodes = [
        helper.make_node("Relu", ["boxes"], ["b"], name="my"),
        helper.make_node("NonMaxSuppression", ["b", "scores", "most", "overlap", "least"], ["y"],
                         name="my suppression"),
    ]  # fmt: skip
    constants = {
        "most": np.array([5], np.int64), "overlap": np.array([0.5], np.float32),
        "least": np.array([0.1], np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("boxes", floats, [1, 20, 4]),
         helper.make_tensor_value_info("scores", floats, [1, 2, 20])],
        [helper.make_tensor_value_info("y", whole, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def product(path: Path, kind: type[np.floating]) -> Path:
    weight = numpy_helper.from_array(np.full((16, 8), 0.5, kind), "w")
    form = weight.data_type
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="layer.1"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="layer.1/product"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", form, [4, 16])],
        [helper.make_tensor_value_info("y", form, [4, 8])], [weight],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_a_reshape_to_another_volume_is_refused_by_its_name(tmp_path: Path) -> None:
    report = checked(contradiction(tmp_path / "bad.onnx"))
    (found,) = report.nodes
    assert (found.node, found.check, found.answer) == ("reshape", "shapes", Answer.REFUSED)
    assert "[7, 7] of [1, 4, 8, 8]" in found.reason


def test_a_batch_that_is_written_into_a_reshape_fits_that_batch_only(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], name="flat")
    path = graph_file(tmp_path / "flat.onnx", [node], {"shape": np.array([1, 256], np.int64)})
    assert answers(checked(path))["shapes"] == "passed"
    report = checked(path, batch=(1, 1, 4))
    assert answers(report)["shapes"] == "refused"
    assert "at the largest size" in report.nodes[0].reason


def test_sizes_that_depend_on_what_is_fed_are_unknown(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["i"], name="where"),
        helper.make_node("Cast", ["i"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    report = checked(graph_file(tmp_path / "where.onnx", nodes, {}))
    assert [(node.node, node.check) for node in report.nodes] == [("where", "shapes")]
    assert report.verdict is Answer.UNKNOWN


@pytest.mark.parametrize(
    ("kind", "version", "capability", "answer"),
    [
        (TensorProto.BFLOAT16, "10.3", "8.7", "passed"),
        (TensorProto.BFLOAT16, "8.6", "8.7", "refused"),
        (TensorProto.BFLOAT16, "10.3", "7.5", "refused"),
        (TensorProto.UINT16, "10.3", "8.7", "refused"),
        (TensorProto.UINT8, "10.3", "8.7", "refused"),
        (TensorProto.DOUBLE, "10.3", "8.7", "passed"),
        (TensorProto.FLOAT16, "8.2", "5.3", "passed"),
    ],
)
def test_a_type_needs_a_version_and_a_device_that_have_it(
    tmp_path: Path, kind: int, version: str, capability: str, answer: str
) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["t"], name="to", to=kind),
        helper.make_node("Identity", ["t"], ["u"], name="same"),
        helper.make_node("Cast", ["u"], ["y"], name="back", to=TensorProto.FLOAT),
    ]
    path = graph_file(tmp_path / "typed.onnx", nodes, {}, opset=13)
    typed = onnx.load(path)
    typed.graph.value_info.append(helper.make_tensor_value_info("t", kind, None))
    onnx.save(typed, path)
    report = checked(path, orin_with(version, compute_capability=capability))
    assert answers(report)["types"] == answer
    assert {node.node for node in report.nodes} <= {"t"}


@pytest.mark.parametrize(("version", "answer"), [("8.2", "refused"), ("8.5", "passed")])
def test_bytes_come_in_beside_a_cast(tmp_path: Path, version: str, answer: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], name="cast", to=TensorProto.FLOAT)], "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
    )  # fmt: skip
    path = tmp_path / "bytes.onnx"
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    assert answers(checked(path, orin_with(version)))["types"] == answer


@pytest.mark.parametrize(("version", "answer"), [("8.2", "refused"), ("8.5", "passed")])
def test_before_8_5_a_weight_is_stored(tmp_path: Path, version: str, answer: str) -> None:
    nodes = [
        helper.make_node("Relu", ["w"], ["v"], name="positive"),
        helper.make_node("Conv", ["x", "v"], ["y"], name="conv"),
    ]
    weight = {"w": np.ones((6, 4, 3, 3), np.float32)}
    path = graph_file(tmp_path / "computed.onnx", nodes, weight, opset=13)
    report = checked(path, orin_with(version))
    assert answers(report)["operators"] == answer
    assert [node.node for node in report.nodes] == (["conv"] if answer == "refused" else [])


def test_every_node_that_is_refused_says_what_to_do(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
        helper.make_node("Resize", ["x", "", "scales"], ["y"], name="larger", antialias=1),
        helper.make_node("Nonsense", ["x"], ["n"], name="foreign", domain="mine"),
    ]
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    report = checked(graph_file(tmp_path / "bad.onnx", nodes, scales, opset=18))
    found = {node.node: node for node in report.nodes if node.check == "operators"}
    assert {name: node.answer.value for name, node in found.items()} == {
        "dynamic": "refused", "larger": "refused", "foreign": "unknown",
    }  # fmt: skip
    assert "edgekit quantize" in found["dynamic"].remedy
    assert "without antialias" in found["larger"].remedy
    assert "plug-in" in found["foreign"].remedy
    stored = report.to_json()["nodes"]
    assert all(set(node) == {"node", "operator", "check", "answer", "reason", "remedy"}
               for node in stored)  # type: ignore[attr-defined]  # fmt: skip


def quantized(  # one Conv with Q/DQ, and what a test makes wrong in it
    path: Path,
    *,
    zero: Array | None = None,
    scale: Array | None = None,
    weight_scale: Array | None = None,
    weight_zero: Array | None = None,
    stored: bool = True,
    integer_bias: bool = False,
    opset: int = 17,
) -> Path:
    per_channel = np.full(6, 0.02, np.float32)
    constants: dict[str, Array] = {
        "s": np.array(0.1, np.float32) if scale is None else scale,
        "z": np.array(0, np.int8) if zero is None else zero,
        "ws": per_channel if weight_scale is None else weight_scale,
        "wz": np.zeros(6, np.int8) if weight_zero is None else weight_zero,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="x.q", axis=1),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="x.dq", axis=1),
    ]
    kernel = np.full((6, 4, 3, 3), 0.5, np.float32)
    if stored:
        constants["wq"] = np.full((6, 4, 3, 3), 25, np.int8)
    else:
        constants["w"] = kernel
        nodes.append(helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], name="w.q",
                                      axis=0))  # fmt: skip
    nodes.append(helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], name="w.dq",
                                  axis=0))  # fmt: skip
    inputs = ["xd", "wd"]
    if integer_bias:
        constants |= {"b": np.zeros(6, np.int32), "bs": np.full(6, 0.002, np.float32)}
        nodes.append(helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], name="b.dq", axis=0))
        inputs.append("bd")
    nodes.append(helper.make_node("Conv", inputs, ["y"], name="conv"))
    return graph_file(path, nodes, constants, opset=opset)


def broken(path: Path, version: tuple[int, int] = (10, 3)) -> list[str]:
    reader = lint.Reader(runtime="tensorrt", version=version)
    found = lint.lint(read_model(path), reader)
    return [str(finding) for finding in found if finding.severity == "error"]


def test_symmetric_qdq_breaks_no_rule(tmp_path: Path) -> None:
    path = quantized(tmp_path / "good.onnx")
    assert broken(path) == []
    assert broken(path, (11, 0)) == []


def test_int8_of_a_graph_without_qdq_is_refused(residual_path: Path) -> None:
    report = checked(residual_path, precision="int8")
    assert answers(report)["Q/DQ"] == "refused"
    assert "no Q/DQ" in said(report, "Q/DQ")


def test_qdq_needs_int8_where_flags_decide(tmp_path: Path) -> None:
    path = quantized(tmp_path / "good.onnx")
    assert answers(checked(path, precision="fp16"))["Q/DQ"] == "refused"
    assert answers(checked(path, orin_with("11.1"), precision="fp16"))["Q/DQ"] == "passed"


def test_before_tensorrt_10_weights_are_floats(tmp_path: Path) -> None:
    assert "before TensorRT 10 they must be float32" in "".join(
        broken(quantized(tmp_path / "stored.onnx"), (8, 6))
    )
    assert broken(quantized(tmp_path / "floats.onnx", stored=False), (8, 5)) == []


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"zero": np.array(3, np.int8)}, '"x.q": its zero point is not zero'),
        ({"zero": np.array(0, np.uint8)}, '"x.q": it quantizes to UINT8'),
        ({"scale": np.array(0.0, np.float32)}, "1 of its 1 scales are not above zero"),
        ({"scale": np.array(np.nan, np.float32)}, "1 of its 1 scales are not above zero"),
        (
            {"scale": np.full(4, 0.1, np.float32), "zero": np.zeros(4, np.int8)},
            '"x.q": an activation has one scale for each channel',
        ),
        (
            {"weight_scale": np.array([1, 1, 0, 1, 0, 1], np.float32)},
            '"w.dq": 2 of its 6 scales are not above zero',
        ),
        ({"weight_zero": np.array(0, np.int8)}, '"w.dq": it has 1 zero points for 6 scales'),
        (
            {"weight_scale": np.full(5, 0.1, np.float32), "weight_zero": np.zeros(5, np.int8)},
            '"w.dq": it has 5 scales for 6 channels',
        ),
        ({"integer_bias": True}, '"b.dq": it dequantizes INT32'),
        ({"scale": np.array(0.1, np.float16)}, "which ONNX has from opset 19 on"),
    ],
)
def test_each_rule_names_the_node_that_breaks_it(
    tmp_path: Path, options: dict[str, Array], rule: str
) -> None:
    path = quantized(tmp_path / "bad.onnx", **options)  # type: ignore[arg-type]
    assert any(rule in finding for finding in broken(path)), broken(path)
    report = checked(path, precision="int8")
    assert answers(report)["Q/DQ"] == "refused"
    assert report.verdict is Answer.REFUSED


def test_the_report_is_ready_for_json(residual_path: Path) -> None:
    stored = checked(residual_path).to_json()
    assert stored["verdict"] == "passed"
    assert {line["check"] for line in stored["lines"]} >= {"precision", "opset"}  # type: ignore


def test_the_cpu_target_opens_the_model(residual_path: Path, tmp_path: Path) -> None:
    cpu = load_target("cpu")
    assert answers(checked(residual_path, cpu, precision="fp32")) == {
        "precision": "passed", "load": "passed",
    }  # fmt: skip
    node = helper.make_node("Nonsense", ["x"], ["y"], domain="mine")
    path = graph_file(tmp_path / "mine.onnx", [node], {})
    assert answers(checked(path, cpu, precision="fp32"))["load"] == "refused"


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"\xff\xff")
    for name in ("no.onnx", "missing.onnx"):
        with pytest.raises(InputError, match="no ONNX file"):
            checked(tmp_path / name)


@pytest.mark.rtx
@pytest.mark.skipif(not tensorrt_rtx.is_installed(), reason="needs the rtx extra")
class TestCompile:
    def test_a_graph_for_a_dla_is_compiled_without_one(self, residual_path: Path) -> None:
        two = orin_with("10.3", dla=type(ORIN.dla)(cores=2))
        report = checked(residual_path, two, dla_core=1, compile_here=True)
        assert answers(report)["compile"] == "passed"

    def test_a_jetsons_graph_is_compiled_by_a_stand_in(self, residual_path: Path) -> None:
        report = checked(residual_path, compile_here=True)
        assert answers(report)["compile"] == "passed"
        assert "8.6" in said(report, "compile")

    def test_a_failure_without_a_rule_of_ours_is_unknown_and_names_the_node(
        self, tmp_path: Path
    ) -> None:
        path = suppression(tmp_path / "nms.onnx")
        report = checked(path, compile_here=True)
        assert answers(report)["operators"] == "passed"
        assert answers(report)["compile"] == "unknown"
        assert said(report, "compile").startswith(
            'TensorRT-RTX could not compile "my suppression":'
        )
        (found,) = [node for node in report.nodes if node.check == "compile"]
        assert (found.node, found.operator) == ("my suppression", "NonMaxSuppression")
        assert (found.answer, report.verdict) == (Answer.UNKNOWN, Answer.UNKNOWN)

    def test_a_float_matmul_for_turing_is_unknown_and_in_half_it_passes(
        self, tmp_path: Path
    ) -> None:
        turing = ORIN.model_copy(update={"name": "t4", "compute_capability": "7.5"})
        for kind, answer in ((np.float32, "unknown"), (np.float16, "passed")):
            path = product(tmp_path / "product.onnx", kind)
            report = checked(path, turing, compile_here=True)
            assert answers(report)["compile"] == answer, said(report, "compile")
            named = {node.node for node in report.nodes}
            assert named == ({"layer.1/product"} if answer == "unknown" else set())

    def test_on_a_turing_card_float32_is_refused_and_what_becomes_float16_unknown(
        self, tmp_path: Path
    ) -> None:
        path, card = product(tmp_path / "product.onnx", np.float32), load_target("t4")
        for precision, answer in (("fp32", Answer.REFUSED), ("fp16", Answer.UNKNOWN)):
            report = checked(path, card, compile_here=True, precision=precision)
            (found,) = report.nodes
            assert (found.node, found.answer) == ("layer.1/product", answer)
            assert report.verdict is answer
            assert ("--precision fp16" in found.remedy) == (precision == "fp32")
        half = product(tmp_path / "half.onnx", np.float16)
        assert checked(half, card, compile_here=True).verdict is Answer.PASSED

    def test_a_rule_of_ours_that_agrees_refuses(self, tmp_path: Path) -> None:
        report = checked(contradiction(tmp_path / "bad.onnx"), compile_here=True)
        assert answers(report)["shapes"] == answers(report)["compile"] == "refused"

    def test_a_failure_on_its_own_target_refuses(self, tmp_path: Path) -> None:
        path = suppression(tmp_path / "nms.onnx")
        report = checked(path, load_target("rtx-3060"), compile_here=True)
        assert answers(report)["compile"] == "refused"

    def test_our_lint_agrees_with_the_parser(self, tmp_path: Path) -> None:
        good = quantized(tmp_path / "good.onnx")
        assert answers(checked(good, compile_here=True, precision="int8"))["compile"] == "passed"
        for name, options in {
            "zero": {"zero": np.array(3, np.int8)},
            "scale": {"scale": np.array(0.0, np.float32)},
            "bias": {"integer_bias": True},
            "count": {"weight_zero": np.array(0, np.int8)},
        }.items():
            path = quantized(tmp_path / f"{name}.onnx", **options)  # type: ignore[arg-type]
            found = answers(checked(path, compile_here=True, precision="int8"))
            assert (found["Q/DQ"], found["compile"]) == ("refused", "refused"), name


@pytest.mark.skipif(tensorrt_rtx.is_installed(), reason="tensorrt-rtx is installed")
def test_without_the_package_the_compile_is_not_checked(residual_path: Path) -> None:
    report = checked(residual_path, compile_here=True)
    assert answers(report)["compile"] == "skipped"
    assert report.verdict is Answer.PASSED
