"""An ONNX file through edgekit and back: nothing is lost, nothing is copied that need not be."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import InputError
from edgekit.models.model import Model, digest, editable, parameters, save, set_parameter, to_bytes
from edgekit.models.onnx_file import wire, write
from edgekit.models.onnx_file.read import from_bytes, load, reopen
from edgekit.models.simplify import clean
from edgekit.values import Array, Preprocessing
from tests.models.everything import everything, graph_node, tensor
from tests.models.same_model import assert_same_model

Reference = Callable[..., list[Array]]
Change = Callable[[onnx.ModelProto], object]


def written(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def conv(opset: int, *, ir_version: int = 8, name: str = "x") -> onnx.ModelProto:
    """One convolution, 3 to 4 channels; in IR version 3 the kernel is among the inputs."""
    weight = tensor(np.random.default_rng(0).normal(size=(4, 3, 3, 3)), "w")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8])]
    if ir_version < 4:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]))
    graph = helper.make_graph(
        [helper.make_node("Conv", [name, "w"], ["y"], name="conv")], "conv", inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6])], [weight],
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


class TestLossless:
    def test_every_field_of_the_format_survives(self, tmp_path: Path) -> None:
        proto = everything()
        onnx.checker.check_model(proto)
        model = load(written(tmp_path / "all.onnx", proto))
        save(model, tmp_path / "again.onnx")
        assert_same_model(proto, onnx.load(tmp_path / "again.onnx"))
        twice = from_bytes(to_bytes(load(tmp_path / "again.onnx")), name="all")
        assert_same_model(proto, onnx.load_model_from_string(to_bytes(twice)))

    def test_the_same_model_gives_the_same_bytes(self, tmp_path: Path) -> None:
        path = written(tmp_path / "all.onnx", everything())
        content = to_bytes(load(path))
        assert content == to_bytes(load(path)) == to_bytes(from_bytes(content, name="all"))

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.graph.node.pop(),
            lambda m: m.graph.node[0].metadata_props.pop(),
            lambda m: setattr(m.graph.node[0], "doc_string", "other"),
            lambda m: setattr(graph_node(m, "custom").attribute[1], "i", 5),
            lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(8 * 6 * 4)),
            lambda m: setattr(m.graph.sparse_initializer[0].values, "raw_data", bytes(20)),
            lambda m: m.graph.value_info.pop(),
            lambda m: m.graph.quantization_annotation.pop(),
            lambda m: m.graph.output[0].type.tensor_type.shape.dim[1].MergeFromString(b"\x08\x05"),
            lambda m: m.functions[0].attribute_proto.pop(),
            lambda m: m.training_info.pop(),
            lambda m: setattr(m.opset_import[1], "version", 4),
            lambda m: m.metadata_props.pop(),
        ],
    )  # fmt: skip
    def test_the_comparison_of_these_tests_sees_a_change(self, change: Change) -> None:
        changed = everything()
        change(changed)
        with pytest.raises((AssertionError, KeyError)):
            assert_same_model(everything(), changed)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda m: m.graph.node[0].metadata_props.add(key="a node", value="2"), "node[0]"),
            (lambda m: m.opset_import.append(m.opset_import[0]), "opset_import"),
            (lambda m: m.MergeFromString(b"\xf2\x3f\x01x"), "does not know"),
        ],
    )
    def test_what_would_be_lost_is_refused(
        self, tmp_path: Path, change: Change, named: str
    ) -> None:
        proto = everything()
        change(proto)
        with pytest.raises(InputError, match="would be lost") as caught:
            load(written(tmp_path / "all.onnx", proto))
        assert named in caught.value.got

    def test_a_declared_shape_is_kept_and_an_inferred_one_used(self, tmp_path: Path) -> None:
        proto = conv(17)
        proto.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "channels"
        model = load(written(tmp_path / "net.onnx", proto))
        assert model.outputs[0].shape == ("n", 4, 6, 6)
        again = onnx.load_model_from_string(to_bytes(model))
        assert again.graph.output[0] == proto.graph.output[0]

    def test_the_shape_that_a_step_gave_is_written(self, tmp_path: Path) -> None:
        proto = conv(17)
        proto.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "channels"
        program = editable(load(written(tmp_path / "net.onnx", proto)))
        program.graph.outputs[0].shape = None
        changed = onnx.load_model_from_string(to_bytes(Model(name="net", program=program)))
        assert not changed.graph.output[0].type.tensor_type.HasField("shape")

    def test_history_and_every_field_of_the_preprocessing_are_kept(self, tmp_path: Path) -> None:
        chosen = Preprocessing(
            mean=(0.5,), size=(7, 9), resize="letterbox", order="bgr", layout="nchw", fill=3
        )
        model = load(written(tmp_path / "net.onnx", conv(17)), preprocessing=chosen)
        save(Model(name="n", program=model.program, preprocessing=chosen, history=("a", "b")),
             tmp_path / "again.onnx")  # fmt: skip
        again = load(tmp_path / "again.onnx")
        assert (again.preprocessing, again.history) == (chosen, ("a", "b"))

    @pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21, onnx.defs.onnx_opset_version()])
    def test_operator_sets_old_and_new(self, tmp_path: Path, opset: int) -> None:
        proto = conv(opset, ir_version=3 if opset < 9 else 10)
        model = load(written(tmp_path / "net.onnx", proto))
        assert model.opset == opset
        assert [spec.name for spec in model.inputs] == ["x"]
        assert_same_model(proto, onnx.load_model_from_string(to_bytes(model)))

    def test_a_cleaned_file_of_ir_version_3_can_be_loaded_again(
        self, tmp_path: Path, images: Array, reference: Reference
    ) -> None:
        model = load(written(tmp_path / "net.onnx", conv(7, ir_version=3)))
        save(clean(model), tmp_path / "clean.onnx")
        again = load(tmp_path / "clean.onnx")
        expected, found = (reference(m, {"x": images})[0] for m in (model, again))
        assert np.array_equal(expected, found)


class TestMapped:
    def test_weights_are_views_into_the_file(self, tmp_path: Path) -> None:
        model = load(written(tmp_path / "all.onnx", everything()))
        array = dict(parameters(model))["large"]
        assert mapped(array)
        assert not array.flags.writeable
        assert np.array_equal(
            array, numpy_helper.to_array(everything().graph.initializer[1])
        )  # fmt: skip

    def test_a_model_outlives_the_file_that_is_replaced(self, tmp_path: Path) -> None:
        path = written(tmp_path / "all.onnx", everything())
        model = load(path)
        expected = to_bytes(model)
        save(model, path)
        save(model, path)
        assert to_bytes(model) == expected == path.read_bytes()

    def test_own_files_are_reopened_mapped(self, tmp_path: Path) -> None:
        model = load(written(tmp_path / "all.onnx", everything()))
        save(model, tmp_path / "own.onnx")
        again = reopen(tmp_path / "own.onnx", name="own")
        assert mapped(dict(parameters(again))["large"])
        assert to_bytes(again) == to_bytes(model)

    def test_the_digest_is_that_of_the_bytes(self, residual: Model) -> None:
        import hashlib

        assert digest(residual) == hashlib.sha256(to_bytes(residual)).hexdigest()


def mapped(array: Array) -> bool:
    """Whether the array's memory is a file's, through however many views."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap)


class TestExternalData:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        proto = everything()
        path = tmp_path / "outside.onnx"
        onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=100,
                  convert_attribute=True)  # fmt: skip
        return path

    def test_it_comes_back_with_the_same_values(self, path: Path, tmp_path: Path) -> None:
        model = load(path)
        assert mapped(dict(parameters(model))["large"])
        save(model, tmp_path / "again.onnx")
        path.unlink()
        assert_same_model(everything(), onnx.load(tmp_path / "again.onnx"))

    def test_saving_onto_the_same_place(self, path: Path) -> None:
        expected = onnx.load(path)
        save(load(path), path)
        assert_same_model(expected, onnx.load(path))

    def test_a_model_that_is_too_large_for_one_file_is_two(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = onnx.load(path)
        monkeypatch.setattr(write, "ONE_FILE_BYTES", 1000)
        for _ in range(2):
            save(load(path), path)
            data = path.with_name("outside.onnx.data")
            assert data.stat().st_size >= 6 * 4096 * 4
            assert path.stat().st_size < data.stat().st_size + 150_000
            assert_same_model(expected, onnx.load(path))
            onnx.checker.check_model(str(path))
        assert to_bytes(reopen(path, name="x")) == to_bytes(load(path))

    def test_a_model_over_two_gigabytes(self, tmp_path: Path) -> None:
        """Of holes: a data file of 2.2 GB that takes no place on the disk."""
        size = 550_000_000
        proto = conv(17)
        big = TensorProto(name="big", dims=[size], data_type=TensorProto.FLOAT)
        big.data_location = TensorProto.EXTERNAL
        big.external_data.add(key="location", value="holes.bin")
        proto.graph.initializer.append(big)
        proto.graph.node.append(helper.make_node("Identity", ["big"], ["unused"], name="huge"))
        with (tmp_path / "holes.bin").open("wb") as stream:
            os.truncate(stream.fileno(), size * 4)
        model = load(written(tmp_path / "net.onnx", proto))
        assert dict(parameters(model))["big"].nbytes == 4 * size
        with pytest.raises(InputError, match="too large for one file"):
            to_bytes(model)
        changed = editable(model)
        set_parameter(changed.graph, "big", np.ones(3, np.float32))
        small = onnx.load_model_from_string(to_bytes(Model(name="s", program=changed)))
        assert numpy_helper.to_array(small.graph.initializer[1]).tolist() == [1, 1, 1]


class TestWire:
    @given(seed=st.integers(0, 2**16), limit=st.sampled_from([1, 16, 300, 1 << 16]))
    @settings(max_examples=25, deadline=None)
    def test_taking_weights_out_and_putting_them_back_changes_nothing(
        self, seed: int, limit: int
    ) -> None:
        content = everything(seed).SerializeToString(deterministic=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wire, "LARGE_BYTES", limit)
            hollow, payloads = wire.split(content, "a token")
        assert len(hollow) < len(content)
        assert sum(map(len, payloads)) > 90_000
        again = b"".join(wire.join(hollow, payloads, "a token"))
        assert onnx.ModelProto.FromString(again) == everything(seed)

    @pytest.mark.parametrize("content", [b"\xff", b"\x3a\x05abc", b"\x3b", b"\x00", b"\x80" * 30])
    def test_what_is_no_message_is_refused(self, content: bytes) -> None:
        with pytest.raises(ValueError, match="byte"):
            wire.split(content, "token")
