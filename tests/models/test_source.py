"""What may be loaded, and what each kind of broken file is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgekit.errors import EdgekitError, InputError
from edgekit.models.model import Model, editable, parameters, save, set_parameter, to_bytes
from edgekit.models.source import from_bytes, load
from edgekit.values import Array, Preprocessing

Reference = Callable[..., list[Array]]


def test_specs_are_read_with_dynamic_dimensions_by_name(residual: Model) -> None:
    assert [str(spec) for spec in residual.inputs] == ["image float32 (batch, 3, 8, 8)"]
    assert [str(spec) for spec in residual.outputs] == ["logits float32 (batch, 5)"]


def test_every_inner_value_has_a_shape(residual: Model) -> None:
    assert all(value.shape is not None for node in residual.graph for value in node.outputs)


def test_parameters_keep_their_names(residual: Model, residual_path: Path) -> None:
    written = {tensor.name for tensor in onnx.load(residual_path).graph.initializer}
    assert {name for name, _ in parameters(residual)} == written
    assert "BatchNormalization" in {node.op_type for node in residual.graph}


def test_saving_and_loading_changes_no_number_and_keeps_history_and_preprocessing(
    residual_path: Path, images: Array, reference: Reference, tmp_path: Path
) -> None:
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model = load(residual_path, preprocessing=preprocessing)
    save(model, tmp_path / "again.onnx")
    again = load(tmp_path / "again.onnx")
    assert again.preprocessing == preprocessing
    assert again.history == model.history
    expected, found = (reference(m, {"image": images})[0] for m in (model, again))
    assert np.array_equal(expected, found)
    assert to_bytes(from_bytes(to_bytes(model), name="residual")) == to_bytes(model)


def test_an_editable_clone_leaves_the_model_as_it_was(residual: Model) -> None:
    before = to_bytes(residual)
    clone = editable(residual)
    set_parameter(clone.graph, "fc.bias", np.ones(5, np.float32))
    clone.graph.remove(list(clone.graph)[-1])
    assert to_bytes(residual) == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model file") as caught:
        load(tmp_path / "none.onnx")
    assert caught.value.where.endswith("none.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"not a model at all" * 50, "not an ONNX model"), (b"\x08", "not an ONNX"),
     (b"PK\x03\x04" + bytes(100), "not an ONNX model")],
)  # fmt: skip
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(path)


@given(cut=st.floats(0.01, 0.99))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_a_truncated_model_is_one_clear_error(residual_path: Path, cut: float) -> None:
    content = residual_path.read_bytes()
    path = residual_path.with_name("cut.onnx")
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(InputError) as caught:
        load(path)
    assert caught.value.where == str(path)


@given(place=st.integers(0, 20_000), byte=st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_a_changed_byte_gives_a_model_or_an_edgekit_error(
    residual_path: Path, place: int, byte: int
) -> None:
    content = bytearray(residual_path.read_bytes())
    content[place % len(content)] = byte
    path = residual_path.with_name("mutated.onnx")
    path.write_bytes(content)
    try:
        outcome: object = load(path)
    except EdgekitError as error:
        outcome = error
    assert isinstance(outcome, (Model, InputError))


def test_a_weight_with_nan_is_named(residual_path: Path) -> None:
    proto = onnx.load(residual_path)
    bad = next(t for t in proto.graph.initializer if t.name == "fc.weight")
    array = numpy_helper.to_array(bad).copy()
    array[0, :3] = np.nan
    bad.CopyFrom(numpy_helper.from_array(array, "fc.weight"))
    onnx.save(proto, residual_path)
    with pytest.raises(InputError, match="holds NaN") as caught:
        load(residual_path)
    assert caught.value.got == "3 of 160 values"


def test_a_kernel_for_other_channels_is_refused(residual_path: Path) -> None:
    proto = onnx.load(residual_path)
    bad = next(t for t in proto.graph.initializer if t.name == "first.weight")
    bad.CopyFrom(numpy_helper.from_array(np.zeros((16, 7, 3, 3), np.float32), "first.weight"))
    onnx.save(proto, residual_path)
    with pytest.raises(InputError, match="reads another number of channels"):
        load(residual_path)


def test_contradicting_shapes_are_refused(residual_path: Path) -> None:
    proto = onnx.load(residual_path)
    bad = next(t for t in proto.graph.initializer if t.name == "fc.weight")
    bad.CopyFrom(numpy_helper.from_array(np.zeros((5, 9), np.float32), "fc.weight"))
    onnx.save(proto, residual_path)
    with pytest.raises(InputError, match="shapes in this graph contradict"):
        load(residual_path)


class TestExternalData:
    @pytest.fixture
    def path(self, residual_path: Path) -> Path:
        path = residual_path.with_name("external.onnx")
        onnx.save(
            onnx.load(residual_path), path, save_as_external_data=True, location="weights.bin",
            size_threshold=100,
        )  # fmt: skip
        return path

    def test_weights_beside_the_model_are_read(self, path: Path, residual: Model) -> None:
        assert {n: a.sum() for n, a in parameters(load(path))} == {
            n: a.sum() for n, a in parameters(residual)
        }

    def test_missing_weights_are_named(self, path: Path) -> None:
        path.with_name("weights.bin").unlink()
        with pytest.raises(InputError, match=r"external weights of .* are missing"):
            load(path)

    def test_short_weights_are_refused(self, path: Path) -> None:
        weights = path.with_name("weights.bin")
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(InputError, match="cut short"):
            load(path)

    @pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../w", ""])
    def test_paths_out_of_the_folder_are_refused(self, path: Path, location: str) -> None:
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(InputError, match="outside the model's folder"):
            load(path)

    def test_a_link_out_of_the_folder_is_refused(self, path: Path, tmp_path: Path) -> None:
        weights = path.with_name("weights.bin")
        elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere.bin"
        weights.replace(elsewhere)
        weights.symlink_to(elsewhere)
        with pytest.raises(InputError, match="outside the model's folder"):
            load(path)
