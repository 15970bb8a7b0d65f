"""What may be loaded, and what each kind of broken file is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import EdgekitError, InputError, ResourceError
from edgekit.models.model import Model, editable, parameters, save, set_parameter, to_bytes
from edgekit.models.onnx_file import child
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

    @pytest.mark.parametrize(
        ("location", "message"),
        [
            ("../weights.bin", "outside the model's folder"),
            ("/etc/passwd", "outside the model's folder"),
            ("a/../../w", "outside the model's folder"),
            ("..\\weights.bin", "outside the model's folder"),
            ("C:/weights.bin", "outside the model's folder"),
            ("a\0b", "outside the model's folder"),
            ("", "outside the model's folder"),
            (".", "no file of data"),
            ("folder", "no file of data"),
            ("pipe", "no file of data"),
            ("external.onnx", "no file of data"),
            ("itself", "no file of data"),
            ("x" * 5000, "are missing"),
            ("weights.bin/x", "are missing"),
        ],
    )  # fmt: skip
    def test_places_that_weights_cannot_have(self, path: Path, location: str, message: str) -> None:
        path.with_name("folder").mkdir()
        os.mkfifo(path.with_name("pipe"))
        path.with_name("itself").symlink_to(path)
        self.place(path, "location", location)
        with pytest.raises(InputError, match=message):
            load(path)

    @pytest.mark.parametrize("key", ["offset", "length"])
    @pytest.mark.parametrize("value", ["-1", "1e3", "99999999999999999999999", "٣", "", "10000000"])
    def test_places_in_the_file_that_are_none(self, path: Path, key: str, value: str) -> None:
        self.place(path, key, value)
        with pytest.raises(InputError, match=r"no number|of another size|cut short"):
            load(path)

    @staticmethod
    def place(path: Path, key: str, value: str) -> None:
        """Gives every external tensor another location, offset or length."""
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == key:
                    entry.value = value
        path.write_bytes(proto.SerializeToString())

    def test_a_link_within_the_folder_is_followed(self, path: Path, residual: Model) -> None:
        path.with_name("linked.bin").symlink_to(path.with_name("weights.bin"))
        self.place(path, "location", "linked.bin")
        assert len(list(parameters(load(path)))) == len(list(parameters(residual)))

    def test_a_link_out_of_the_folder_is_refused(self, path: Path, tmp_path: Path) -> None:
        weights = path.with_name("weights.bin")
        elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere.bin"
        weights.replace(elsewhere)
        weights.symlink_to(elsewhere)
        with pytest.raises(InputError, match="outside the model's folder"):
            load(path)


def small(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto] | None = None, **options: Any
) -> onnx.ModelProto:
    """A graph from x (n, 4) to y: y is the Relu of x, beside the given nodes."""
    relu = helper.make_node("Relu", ["x"], ["y"], name="relu")
    graph = helper.make_graph(
        [*nodes, relu], "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])], tensors or [],
    )  # fmt: skip
    given = {"": 17, **options.pop("opsets", {})}
    opsets = [helper.make_opsetid(domain, version) for domain, version in given.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **options)


def integers(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def changed_tensor(**changes: Any) -> onnx.ModelProto:
    """With a stored tensor of 2 x 3 floats that says something else of itself."""
    tensor = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    for field, value in changes.items():
        if isinstance(value, list):
            del getattr(tensor, field)[:]
            getattr(tensor, field).extend(value)
        elif value is None:
            tensor.ClearField(field)
        else:
            setattr(tensor, field, value)
    return small([], [tensor])


def doubling(depth: int) -> onnx.ModelProto:
    """Functions that each call the next twice: 2 ** depth operators in a few kilobytes."""
    functions = []
    for level in range(depth):
        last = level == depth - 1
        name, domain = ("Relu", "") if last else (f"F{level + 1}", "f")
        body = [
            helper.make_node(name, ["a"], ["t"], domain=domain),
            helper.make_node(name, ["t"], ["b"], domain=domain),
        ]
        opsets = [helper.make_opsetid("f", 1), helper.make_opsetid("", 17)]
        functions.append(helper.make_function("f", f"F{level}", ["a"], ["b"], body, opsets))
    call = helper.make_node("F0", ["x"], ["z"], domain="f")
    return small([call], functions=functions, opsets={"f": 1})


def calls_itself() -> onnx.ModelProto:
    call = helper.make_node("F", ["a"], ["b"], domain="f")
    function = helper.make_function("f", "F", ["a"], ["b"], [call], [helper.make_opsetid("f", 1)])
    outer = helper.make_node("F", ["x"], ["z"], domain="f")
    return small([outer], functions=[function], opsets={"f": 1})


def node(op: str, inputs: list[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, list(outputs), name=f"a {op}", **attributes)


HOSTILE: dict[str, tuple[onnx.ModelProto, str]] = {
    "10 TB in 24 bytes": (changed_tensor(dims=[10**13]), "does not hold what its shape says"),
    "a negative size": (changed_tensor(dims=[-1, 6]), "does not hold what its shape says"),
    "a product over 64 bits": (changed_tensor(dims=[2**32, 2**32, 6]), "does not hold"),
    "too few bytes": (changed_tensor(raw_data=bytes(20)), "does not hold what its shape says"),
    "two contents": (changed_tensor(float_data=[1.0] * 6), "does not hold what its shape says"),
    "no content": (changed_tensor(raw_data=None), "does not hold what its shape says"),
    "another field": (changed_tensor(raw_data=None, int32_data=[1] * 6), "does not hold"),
    "no such type": (changed_tensor(data_type=99), "a type that ONNX does not have"),
    "a cycle": (small([node("Relu", ["b"], "a"), node("Relu", ["a"], "b")]), "no node before it"),
    "a missing initializer": (small([node("Add", ["x", "w"], "a")]), "no node before it makes"),
    "a name made twice": (
        small([node("Relu", ["x"], "a"), node("Tanh", ["x"], "a")]), "breaks a rule of ONNX"
    ),
    "initializers of one name": (small([], [integers("a", 1), integers("a", 2)]), "rule of ONNX"),
    "a missing input": (small([node("Add", ["x"], "a")]), "breaks a rule of ONNX"),
    "an unknown operator": (small([node("Nonsense", ["x"], "a")]), "operator set does not have"),
    "an unknown attribute": (small([node("Relu", ["x"], "a", alpha=1)]), "rule of ONNX"),
    "an operator set of tomorrow": (small([], opsets={"": 999}), "newer than the ONNX here"),
    "types that do not fit": (
        small([node("Add", ["x", "i"], "a")], [integers("i", 1)]), "contradict each other"
    ),
    "a slice of everything": (
        small([node("Shape", ["x"], "s"), node("Slice", ["s", "b", "e", "a", "d"], "z")],
              [integers("b", 2**62), integers("e", -(2**63)), integers("a", 0),
               integers("d", -(2**63))]), "ran out of memory",
    ),
    "a split into 2 ** 40": (
        small([node("Split", ["x"], "a", "b", axis=1, num_outputs=2**40)], opsets={"": 18}),
        "ran out of memory",
    ),
    "a function that calls itself": (calls_itself(), "breaks a rule of ONNX"),
    "a map of values": (
        small([node("ZipMap", ["x"], "m", domain="ai.onnx.ml", classlabels_int64s=[0, 1])],
              opsets={"ai.onnx.ml": 1}), "something else than tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_graph_is_one_clear_error(tmp_path: Path, kind: str) -> None:
    proto, message = HOSTILE[kind]
    path = tmp_path / "hostile.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises((InputError, ResourceError), match=message) as caught:
        load(path)
    assert caught.value.where == str(path)


def test_a_graph_that_never_ends_to_check_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "doubling.onnx"
    path.write_bytes(doubling(40).SerializeToString())
    monkeypatch.setattr(child, "_WAIT_S", 0.3)
    with pytest.raises(ResourceError, match="did not come to an end"):
        load(path)
    path.write_bytes(doubling(3).SerializeToString())
    assert load(path).graph.num_nodes() == 2  # another child does the next


def test_a_child_that_is_killed_is_an_error_and_replaced(residual_path: Path) -> None:
    load(residual_path)
    running = child._checker.child
    assert running is not None
    running.process.send_signal(signal.SIGSEGV)
    running.process.wait()
    load(residual_path)
    assert child._death(-signal.SIGSEGV, "net.onnx").got == "SIGSEGV"


def test_ten_thousand_nested_graphs_are_one_error(tmp_path: Path) -> None:
    content = b""
    for _ in range(10_000):  # a graph in an attribute of a node in a graph
        for number in (onnx.AttributeProto.G_FIELD_NUMBER, onnx.NodeProto.ATTRIBUTE_FIELD_NUMBER,
                       onnx.GraphProto.NODE_FIELD_NUMBER):  # fmt: skip
            content = bytes([number << 3 | 2]) + varint(len(content)) + content
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x08\x3a" + varint(len(content)) + content)
    with pytest.raises(InputError, match="not an ONNX model"):
        load(path)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_a_name_that_is_not_utf8_is_one_error(tmp_path: Path) -> None:
    content = small([node("Tanh", ["x"], "secret")]).SerializeToString()
    path = tmp_path / "net.onnx"
    path.write_bytes(content.replace(b"secret", b"\xff\xfecret"))
    with pytest.raises(InputError, match="not UTF-8"):
        load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("edgekit.history", "no list"), ("edgekit.history", "[1]"), ("edgekit.history", "[" * 10**5),
     ("edgekit.preprocessing", "{"), ("edgekit.preprocessing", '{"scale": "x"}'),
     ("edgekit.preprocessing", "[" * 10**5)],
)  # fmt: skip
def test_metadata_of_ours_that_is_damaged_is_refused(
    residual_path: Path, key: str, value: str
) -> None:
    proto = onnx.load(residual_path)
    proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, residual_path)
    with pytest.raises(InputError, match="metadata is damaged") as caught:
        load(residual_path)
    assert key in caught.value.where


def test_a_folder_and_a_pipe_are_no_models(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for place in (tmp_path, tmp_path / "pipe.onnx"):
        with pytest.raises(InputError, match=r"no file|cannot be read"):
            load(place)


def test_shapes_that_contradict_beside_an_unknown_operator_are_refused(tmp_path: Path) -> None:
    nodes = [node("Unknown", ["x"], "z", domain="example"), node("Identity", ["x"], "same")]
    proto = small(nodes, opsets={"example": 1})
    proto.graph.value_info.append(
        helper.make_tensor_value_info("same", TensorProto.FLOAT, ["n", 4, 4])
    )
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="contradict each other"):
        load(path)


@pytest.mark.parametrize(
    ("dtype", "special"),
    [(np.float16, np.inf), (np.float32, -np.inf), (np.float64, np.nan),
     (ml_dtypes.bfloat16, np.nan)],
)  # fmt: skip
def test_nan_and_infinity_are_found_in_every_type(
    tmp_path: Path, dtype: Any, special: float
) -> None:
    array = np.full(300_000, np.finfo(np.float16).max, np.float64).astype(dtype)
    path = tmp_path / "net.onnx"
    path.write_bytes(small([], [numpy_helper.from_array(array, "w")]).SerializeToString())
    load(path)
    array[[0, 150_000, 299_999]] = special
    path.write_bytes(small([], [numpy_helper.from_array(array, "w")]).SerializeToString())
    with pytest.raises(InputError, match="holds NaN or infinity") as caught:
        load(path)
    assert caught.value.got == "3 of 300000 values"


def test_a_sparse_weight_with_nan_is_found_without_making_it_dense(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([1, np.nan], np.float32), "thin")
    sparse = helper.make_sparse_tensor(values, integers("at", 0, 5), [1 << 14, 1 << 14])
    proto = small([])
    proto.graph.sparse_initializer.append(sparse)
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="holds NaN or infinity") as caught:
        load(path)
    assert caught.value.got == "1 of 2 values"
    sparse.dims[:] = [1 << 40, 1 << 20]
    proto.graph.sparse_initializer[0].CopyFrom(sparse)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="is too large"):
        load(path)
