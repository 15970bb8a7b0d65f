"""ONNX Runtime's engine and session, on the real runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import machine
from edgekit.engines import onnxruntime as runtime
from edgekit.engines.base import Engine, EngineRequest
from edgekit.engines.manifest import load_engine
from edgekit.errors import InputError
from edgekit.models.model import Model, to_bytes
from edgekit.targets import load_target
from edgekit.values import Array, run


def request_for(path: Path, **options: object) -> EngineRequest:
    return EngineRequest(
        model_path=path, name="net", target=load_target("cpu"), precision="fp32",
        threads=1, **options,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def engine(residual_path: Path, tmp_path: Path) -> Engine:
    return runtime.build(request_for(residual_path, batch=(1, 2, 8)), tmp_path / "engine")


def plain_outputs(path: Path, images: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"image": images})[0]
    return found


def test_the_engine_answers_as_its_source(
    engine: Engine, residual_path: Path, images: Array
) -> None:
    wanted = plain_outputs(residual_path, images)
    with runtime.open(engine) as session:
        found = run(session, {"image": images})["logits"]
    assert np.abs(found - wanted).max() / np.abs(wanted).max() < 1e-5


def test_the_stored_graph_is_fused(engine: Engine) -> None:
    kinds = {node.op_type for node in onnx.load(engine.path).graph.node}
    assert "BatchNormalization" not in kinds
    assert "FusedConv" in kinds
    assert engine.notes == ()


def test_equal_builds_leave_equal_files(residual_path: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        runtime.build(request_for(residual_path), tmp_path / name)
    for file in ("model.onnx", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_manifest_says_what_was_built(engine: Engine, residual_path: Path) -> None:
    assert load_engine(engine.path.parent) == engine
    assert engine.runtime_version == onnxruntime.__version__
    assert engine.extents["image"] == ((1, 3, 8, 8), (2, 3, 8, 8), (8, 3, 8, 8))
    assert engine.settings["threads"] == 1
    assert engine.file_bytes == engine.path.stat().st_size


def int8_graph(weights: int) -> onnx.ModelProto:
    """One Gemm of `weights` int8 weights, in Q/DQ that ONNX Runtime fuses."""
    rng = np.random.default_rng(3)
    inner = weights // 64
    constants = {
        "w": rng.integers(-127, 128, (64, inner)).astype(np.int8),
        "w.scale": np.float32(0.01), "w.zero": np.int8(0),
        "x.scale": np.float32(0.02), "x.zero": np.uint8(128),
        "y.scale": np.float32(0.5), "y.zero": np.uint8(128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x.scale", "x.zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x.scale", "x.zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["wd"]),
        helper.make_node("Gemm", ["xd", "wd"], ["g"], transB=1),
        helper.make_node("QuantizeLinear", ["g", "y.scale", "y.zero"], ["gq"]),
        helper.make_node("DequantizeLinear", ["gq", "y.scale", "y.zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_int8_weights_stay_one_byte_each(tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    onnx.save(int8_graph(64 * 1024), path)
    built = runtime.build(request_for(path), tmp_path / "engine")
    assert 64 * 1024 < built.file_bytes < 64 * 1024 + 4096
    assert "QGemm" in {node.op_type for node in onnx.load(built.path).graph.node}


def test_a_sample_smaller_than_the_batch_is_enough_to_compare_on(
    residual_path: Path, tmp_path: Path, images: Array
) -> None:
    request = request_for(residual_path, batch=(1, 8, 8), sample={"image": images[:3]})
    assert runtime.build(request, tmp_path / "engine").notes == ()


def test_a_fused_graph_that_answers_otherwise_is_not_kept(
    residual_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_TOLERANCE", -1.0)
    built = runtime.build(request_for(residual_path), tmp_path / "engine")
    assert built.path.read_bytes() == residual_path.read_bytes()
    (note,) = built.notes
    assert "stored as it was given" in note


def test_optimisation_off_leaves_the_graph_as_it_is(residual: Model, images: Array) -> None:
    wanted = runtime.open_bytes(to_bytes(residual), threads=1, optimise=False)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    plain = onnxruntime.InferenceSession(to_bytes(residual), options)
    with wanted as session:
        found = run(session, {"image": images})["logits"]
    np.testing.assert_array_equal(found, plain.run(None, {"image": images})[0])


def test_a_model_is_opened_from_memory(residual: Model, images: Array) -> None:
    with runtime.open_model(residual, threads=1) as session:
        assert [str(spec) for spec in session.inputs] == ["image float32 (batch, 3, 8, 8)"]
        assert [spec.name for spec in session.outputs] == ["logits"]
        assert run(session, {"image": images})["logits"].shape == (32, 5)


def test_a_session_runs_one_batch_size_after_another(engine: Engine, images: Array) -> None:
    with runtime.open(engine) as session:
        whole = run(session, {"image": images})["logits"]
        one = run(session, {"image": images[:1]})["logits"]
        again = run(session, {"image": images})["logits"]
    np.testing.assert_allclose(one, whole[:1], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(whole, again)


def test_an_array_in_another_order_gives_the_same_answer(engine: Engine, images: Array) -> None:
    with runtime.open(engine) as session:
        wanted = run(session, {"image": images})["logits"]
        found = run(session, {"image": np.asfortranarray(images)})["logits"]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "not the model's inputs"),
        ({"picture": np.zeros((1, 3, 8, 8), np.float32)}, "not the model's inputs"),
        ({"image": np.zeros((1, 3, 8, 8), np.float64)}, "wrong type"),
        ({"image": np.zeros((1, 3, 9, 8), np.float32)}, "cannot run"),
        ({"image": np.zeros((3, 8, 8), np.float32)}, "cannot run"),
    ],
)
def test_wrong_inputs_are_refused(engine: Engine, feeds: dict[str, Array], said: str) -> None:
    with runtime.open(engine) as session, pytest.raises(InputError, match=said):
        run(session, feeds)


def test_what_is_no_model_is_refused() -> None:
    for content in (b"", b"no model"):
        with pytest.raises(InputError, match="cannot load"):
            runtime.open_bytes(content)


def test_an_operator_that_the_runtime_has_not_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Nonsense", ["x"], ["y"], name="n", domain="nobody")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "n.onnx")
    with pytest.raises(InputError, match="cannot load") as refusal:
        runtime.build(request_for(tmp_path / "n.onnx"), tmp_path / "engine")
    assert "Nonsense" in refusal.value.got
    assert not (tmp_path / "engine" / "manifest.json").exists()


def test_nothing_is_logged_beside_the_error(engine: Engine, capfd: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    with runtime.open(engine) as session, pytest.raises(InputError):
        run(session, {"image": np.zeros((1, 3, 9, 8), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_cores_are_counted_once_for_all_their_threads(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "core_cpus_list").write_text(f"{siblings}\n")
    assert machine.physical_cores(frozenset({0, 1, 2, 3}), tmp_path) == 2
    assert machine.physical_cores(frozenset({0, 2}), tmp_path) == 1
    assert machine.physical_cores(frozenset({7, 8, 9}), tmp_path) == 3


def test_processor_flags_are_read_from_either_family(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("model name\t: Fast One\nflags\t\t: sse avx2 avx512_vnni\n\nflags\t: sse\n")
    arm.write_text("Features\t: fp asimd asimddp\nModel\t\t: Board 5\n")
    assert machine.cpu_flags(x86) == {"avx2", "avx512_vnni"}
    assert machine.cpu_model(x86) == "Fast One"
    assert machine.cpu_flags(arm) == {"asimd", "asimddp"}
    assert machine.cpu_model(arm) == "Board 5"
    assert machine.cpu_flags(tmp_path / "missing") == frozenset()


def test_an_output_that_is_an_input_comes_back(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Shape", ["x"], ["n"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
         helper.make_tensor_value_info("n", TensorProto.INT64, [2])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    with runtime.open_bytes(content, threads=1) as session:
        found = run(session, {"x": x})
    np.testing.assert_array_equal(found["y"], x)
    assert found["n"].tolist() == [3, 2]


def test_what_was_fetched_is_not_written_over_by_the_next_run(
    engine: Engine, images: Array
) -> None:
    with runtime.open(engine) as session:
        first = run(session, {"image": images[:1]})
        kept = {name: array.copy() for name, array in first.items()}
        second = run(session, {"image": images[1:2]})
        assert all((first[name] == kept[name]).all() for name in kept)
        assert any((first[name] != second[name]).any() for name in kept)


def test_outputs_whose_size_hangs_on_the_values_come_back_whole() -> None:
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"])], "places",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, "found"])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with runtime.open_bytes(proto.SerializeToString()) as session:
        for values in ([1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]):
            found = run(session, {"x": np.array(values, np.float32)})["y"]
            assert found.tolist() == [list(np.flatnonzero(values))]
