"""The roofline by hand: what binds, what fuses, what a precision changes, what is unknown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engines.device_rates import CPU_EFFICIENCY, rates_of
from edgekit.engines.peak import copy_bandwidth, cpu_rates, product_rate
from edgekit.models.cost.fusion import Runtime, kernels
from edgekit.models.cost.roofline import AT_BEST, Efficiency, Estimate, Rates, estimate, kind_of
from edgekit.models.cost.sizes import forms
from edgekit.models.model import Model
from edgekit.targets import Precision, load_target
from edgekit.values import Unknown

RATES = Rates(
    peak={"fp32": 1e9, "int8": 4e9},
    bandwidth_bytes_per_s=1e6,
    runtime="onnxruntime",
    efficiency=AT_BEST,
    said=(),
    efficiency_said="",
)


def model_of(
    nodes: list[onnx.NodeProto], shape: list[int], constants: dict[str, np.ndarray],
    outputs: tuple[str, ...] = ("y",),
) -> Model:  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return Model(name="g", program=ir.from_proto(proto))


def estimated(model: Model, rates: Rates = RATES, precision: Precision = "fp32") -> Estimate:
    return estimate(model, forms(model), rates, precision=precision)


def convolution(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def relu_behind_conv() -> Model:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    return model_of(nodes, [1, 4, 10, 10], {"w": convolution(8, 4, 3, 3)})


def test_a_kernel_takes_the_longer_of_arithmetic_and_bytes() -> None:
    macs = 100 * 8 * 36
    moved = 4 * (400 + 8 * 36 + 800)
    (kernel,) = estimated(relu_behind_conv()).kernels
    assert (kernel.macs, kernel.moved_bytes) == (macs, moved)
    assert kernel.arithmetic_s == pytest.approx(2 * macs / 1e9)
    assert kernel.bytes_s == pytest.approx(moved / 1e6)
    assert (kernel.bound, kernel.seconds) == ("bytes", kernel.bytes_s)
    fast = replace(RATES, bandwidth_bytes_per_s=1e12)
    (kernel,) = estimated(relu_behind_conv(), fast).kernels
    assert (kernel.bound, kernel.seconds) == ("arithmetic", kernel.arithmetic_s)


def test_efficiency_divides_the_rates_and_a_start_is_added() -> None:
    slow = replace(RATES, efficiency=Efficiency(dense=0.5, memory=0.25, start_s=1e-3))
    plain, found = estimated(relu_behind_conv()), estimated(relu_behind_conv(), slow)
    (kernel,) = found.kernels
    assert kernel.seconds == pytest.approx(kernel.bytes_s / 0.25 + 1e-3)
    assert found.at_least_s == plain.latency_s
    assert found.fps == pytest.approx(1 / kernel.seconds)


def test_int8_moves_a_quarter_and_computes_at_its_own_rate() -> None:
    fp32, int8 = estimated(relu_behind_conv()), estimated(relu_behind_conv(), precision="int8")
    assert int8.kernels[0].moved_bytes * 4 == fp32.kernels[0].moved_bytes
    assert int8.kernels[0].arithmetic_s * 4 == pytest.approx(fp32.kernels[0].arithmetic_s)
    assert int8.weight_bytes == 8 * 36
    # x and the convolution's output, then its output and that of Relu, with x.
    assert int8.memory_bytes == 8 * 36 + 400 + 800 + 800


def test_memory_is_weights_and_the_peak_of_the_activations() -> None:
    found = estimated(relu_behind_conv())
    assert found.memory_bytes == 4 * (8 * 36 + 400 + 800 + 800)


def heads(model: Model, runtime: Runtime = "onnxruntime") -> list[list[str]]:
    return [[node.op_type for node in kernel.nodes] for kernel in kernels(model, runtime)]


def test_what_follows_a_convolution_is_charged_once(residual: Model) -> None:
    found = heads(residual)
    assert found == [
        ["Conv", "BatchNormalization", "Relu"],
        ["Conv", "BatchNormalization", "Relu"],
        ["Conv", "BatchNormalization", "Add", "Relu"],
        ["Conv", "BatchNormalization", "Relu"],
        ["Conv", "BatchNormalization", "Relu"],
        ["Concat"],
        ["GlobalAveragePool"],
        ["Gemm"],
    ]


def test_a_sum_that_is_fused_reads_its_other_side(residual: Model) -> None:
    found = estimate(residual, forms(residual), RATES, precision="fp32")
    second = next(kernel for kernel in found.kernels if kernel.node == "second")
    space, norm = 16 * 64, 4 * 16
    assert second.moved_bytes == 4 * (space + space + space + 16 * 16 * 9 + norm)
    assert second.fused == ("second.bn", "sum", "sum.relu")


def test_a_value_that_others_read_ends_its_kernel() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["a"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Concat", ["b", "c"], ["y"], axis=1),
    ]
    model = model_of(nodes, [1, 4, 10, 10], {"w": convolution(8, 4, 3, 3)})
    assert heads(model) == [["Conv"], ["Relu"], ["MaxPool"], ["Concat"]]


def test_an_output_of_the_graph_ends_its_kernel() -> None:
    model = relu_behind_conv()
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    both = model_of(nodes, [1, 4, 10, 10], {"w": convolution(8, 4, 3, 3)}, ("a", "y"))
    assert heads(model) == [["Conv", "Relu"]]
    assert heads(both) == [["Conv"], ["Relu"]]


def test_x_times_sigmoid_of_x_is_one_pass() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["y"]),
    ]
    model = model_of(nodes, [1, 4, 10, 10], {"w": convolution(8, 4, 3, 3)})
    assert heads(model, "tensorrt") == [["Conv", "Sigmoid", "Mul"]]
    assert heads(model, "onnxruntime") == [["Conv"], ["Sigmoid", "Mul"]]


def test_views_and_what_follows_from_weights_are_no_kernels() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"]),
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "wt"], ["y"], name="product"),
    ]
    found = estimated(model_of(nodes, [2, 3, 4], {"w": convolution(5, 12)}))
    (kernel,) = found.kernels
    assert kernel.moved_bytes == 4 * (24 + 60 + 10)


def test_quantizing_is_a_part_of_the_kernels_beside_it() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"]),
        helper.make_node("Conv", ["xf", "wf"], ["a"], name="conv"),
        helper.make_node("QuantizeLinear", ["a", "s"], ["aq"]),
        helper.make_node("DequantizeLinear", ["aq", "s"], ["y"]),
    ]
    constants = {"s": np.float32(1), "w": np.ones((8, 4, 1, 1), np.uint8)}
    found = estimated(model_of(nodes, [1, 4, 10, 10], constants), precision="int8")
    (kernel,) = found.kernels
    # A byte for each element; the scale of the weight is stored too.
    assert kernel.moved_bytes == 400 + 800 + 32 + 1


@pytest.mark.parametrize(
    ("kernel", "group", "kind"),
    [
        ((8, 4, 3, 3), 1, "dense"),
        ((8, 4, 1, 1), 1, "pointwise"),
        ((8, 2, 3, 3), 2, "grouped"),
        ((4, 1, 3, 3), 4, "depthwise"),
        ((8, 1, 3, 3), 4, "depthwise"),
    ],
)
def test_convolutions_are_told_apart(kernel: tuple[int, ...], group: int, kind: str) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group)
    model = model_of([node], [1, 4, 9, 9], {"w": convolution(*kernel)})
    assert kind_of(next(iter(model.graph)), forms(model)) == kind


def test_a_rate_that_nobody_knows_is_said(residual: Model) -> None:
    known = forms(residual)
    found = estimate(residual, known, RATES, precision="fp16")
    assert str(found.latency_s) == "unknown (the peak rate of FP16 is not known)"
    assert isinstance(found.fps, Unknown)
    assert found.activation_bytes == (768 + 4096 + 4096 + 8192) / 2  # memory needs no rate
    blind = replace(RATES, bandwidth_bytes_per_s=Unknown("no file says"))
    found = estimate(residual, known, blind, precision="fp32")
    assert "no file says" in str(found.latency_s)


def test_a_node_that_cannot_be_counted_is_named_and_no_total_is_given() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"], name="search"),
        helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT),
    ]
    found = estimated(model_of(nodes, [3, 4], {}))
    assert isinstance(found.latency_s, Unknown)
    assert "search" in found.unknown


def test_a_target_may_say_its_own_shares(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(
        'name = "board"\ntitle = "b"\nfamily = "cpu"\nprecisions = ["fp32", "int8"]\n'
        "multiple = { fp32 = 8 }\npeak = { fp32 = 1e9 }\n"
        '[runtime]\nname = "onnxruntime"\nversion = "1.20"\ndialect = "onnxruntime"\n'
        'build = "device"\nopset = 17\n'
        "[memory]\nbytes = 1000\nbandwidth_bytes_per_s = 2e9\nshared_with_cpu = true\n"
        "[efficiency]\ndepthwise = 0.125\n"
    )
    found = rates_of(load_target(str(path)))
    assert found.efficiency == replace(CPU_EFFICIENCY, depthwise=0.125)
    assert found.peak == {"fp32": 1e9}  # INT8's is nowhere, and is not made up
    assert found.bandwidth_bytes_per_s == 2e9


def test_a_gpu_without_shares_is_estimated_at_its_best() -> None:
    found = rates_of(load_target("jetson-orin-nano-8gb"))
    assert found.efficiency == AT_BEST
    assert "best case" in found.efficiency_said
    assert found.peak["int8"] == pytest.approx(33e12, rel=0.02)


def test_rates_that_nobody_has_confirmed_are_said() -> None:
    assert not [line for line in rates_of(load_target("t4")).said if "unverified" in line]
    said = "\n".join(rates_of(load_target("rtx-4060")).said)
    assert "unverified in it: peak.fp16, peak.fp32, peak.int8" in said
    slow = rates_of(load_target("jetson-orin-nano-8gb@6.0")).said
    assert slow[0].endswith("jetson-orin-nano-8gb.toml, in the power mode 15W")
    assert "memory.bandwidth_bytes_per_s" in slow[1]


INTEL = "processor : 0\ncpu MHz : 2000.000\nflags : fpu avx2 fma {more}\n"


@pytest.mark.parametrize(
    ("more", "derived", "int8"),
    [
        # 3 cores at 2 GHz, 8 or 16 lanes, two multiply-adds of two operations.
        ("", 3 * 2 * 8 * 4, 4 / 3),
        ("avx_vnni", 3 * 2 * 8 * 4, 4),
        ("avx512f avx512_vnni", 3 * 2 * 16 * 4, 4),
    ],
)
def test_a_processors_peak_is_measured_and_what_its_features_promise_stands_beside(
    tmp_path: Path, more: str, derived: int, int8: float
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(INTEL.format(more=more))
    found = cpu_rates(threads=3, product=lambda n: n * 1e9, cpuinfo=cpuinfo, root=tmp_path)
    assert found.fp32_ops_per_s == 3e9
    assert found.int8_ops_per_s == pytest.approx(3e9 * int8)
    assert f"derived: {derived} = 3 cores x 2.00 GHz" in found.said[0]


def test_the_highest_clock_wins_over_the_current_one(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(INTEL.format(more=""))
    (tmp_path / "cpu0" / "cpufreq").mkdir(parents=True)
    (tmp_path / "cpu0" / "cpufreq" / "cpuinfo_max_freq").write_text("3000000\n")
    found = cpu_rates(threads=1, product=lambda _: 1e9, cpuinfo=cpuinfo, root=tmp_path)
    assert "derived: 96 = 1 cores x 3.00 GHz" in found.said[0]


def test_a_processor_that_does_not_tell_its_clock_is_measured_all_the_same(
    tmp_path: Path,
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("Features : fp asimd\n")
    found = cpu_rates(threads=1, product=lambda _: 1e9, cpuinfo=cpuinfo, root=tmp_path)
    assert found.fp32_ops_per_s == 1e9
    assert "none can be derived: unknown (the system does not tell its clock)" in found.said[0]


def test_rates_that_are_measured_are_no_faster_than_a_thousand_cores() -> None:
    assert 1e8 < product_rate(1) < 1e14
    assert 1e8 < copy_bandwidth(nbytes=1 << 20, copies=1) < 1e13
