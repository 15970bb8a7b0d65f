"""Engines of OpenVINO: the same Session, the same answers."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit import api, doctor
from edgekit.doctor.finding import State, named
from edgekit.engines import onnxruntime, openvino
from edgekit.engines.base import EngineRequest, runtime_names
from edgekit.engines.fit import check_engine
from edgekit.engines.here import facts_here
from edgekit.engines.manifest import load_engine
from edgekit.engines.preflight.preflight import Answer, preflight
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.source import load
from edgekit.targets import load_target
from edgekit.values import Array, run

INSTALLED = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(
    not INSTALLED, reason="openvino is not installed (pip install 'edgekit[openvino]')"
)


def request_for(path: Path, **options: object) -> EngineRequest:
    return EngineRequest(
        model_path=path, name="net", target=load_target("x86-openvino"), precision="fp32",
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def images() -> Array:
    return np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)


def test_it_is_a_runtime_like_the_others() -> None:
    assert "openvino" in runtime_names()
    assert load_target("x86-openvino").runtime.name == "openvino"


@pytest.mark.skipif(INSTALLED, reason="openvino is installed")
def test_without_the_package_it_says_what_brings_it(residual_path: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError) as refusal:
        openvino.build(request_for(residual_path), tmp_path)
    assert refusal.value.hint == "pip install 'edgekit[openvino]'"
    report = preflight(request_for(residual_path))
    assert {line.check: line.answer for line in report.lines}["load"] is Answer.SKIPPED
    found = doctor.examine("x86-openvino")
    assert named(found.needed, "openvino").state is State.MISSING
    assert found.exit_code == 5


@needs_openvino
class TestOpenVino:
    def test_it_answers_as_onnxruntime(
        self, residual_path: Path, tmp_path: Path, images: Array
    ) -> None:
        engine = openvino.build(request_for(residual_path, threads=1), tmp_path)
        assert load_engine(tmp_path) == engine
        with onnxruntime.open_bytes(residual_path.read_bytes()) as reference:
            wanted = run(reference, {"image": images})["logits"]
        with openvino.open(engine) as session:
            assert session.inputs == engine.inputs
            for count in (4, 1, 3):  # the batch is dynamic
                found = run(session, {"image": images[:count]})["logits"]
                assert np.abs(found - wanted[:count]).max() / np.abs(wanted).max() < 1e-4

    def test_equal_builds_leave_equal_files(self, residual_path: Path, tmp_path: Path) -> None:
        for name in ("a", "b"):
            openvino.build(request_for(residual_path), tmp_path / name)
        for file in ("model.onnx", "manifest.json"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    def test_an_array_that_may_not_be_written_is_read(
        self, residual_path: Path, tmp_path: Path, images: Array
    ) -> None:
        engine = openvino.build(request_for(residual_path), tmp_path)
        with openvino.open(engine) as session:
            wanted = run(session, {"image": images})["logits"]
            images.setflags(write=False)
            assert np.array_equal(run(session, {"image": images})["logits"], wanted)

    def test_what_was_fetched_is_not_overwritten(
        self, residual_path: Path, tmp_path: Path, images: Array
    ) -> None:
        engine = openvino.build(request_for(residual_path), tmp_path)
        with openvino.open(engine) as session:
            first = run(session, {"image": images[:1]})["logits"]
            kept = first.copy()
            second = run(session, {"image": images[1:2]})["logits"]
            assert np.array_equal(first, kept)
            assert not np.array_equal(first, second)

    def test_wrong_inputs_are_refused(
        self, residual_path: Path, tmp_path: Path, images: Array
    ) -> None:
        engine = openvino.build(request_for(residual_path), tmp_path)
        with openvino.open(engine) as session:
            for feeds in (
                {"picture": images}, {"image": images.astype(np.float64)},
                {"image": images[:, :2]}, {"image": images[0]},
            ):  # fmt: skip
                with pytest.raises(InputError):
                    run(session, feeds)
            assert run(session, {"image": images})["logits"].shape[0] == 4

    def test_what_it_cannot_read_is_refused(self, tmp_path: Path) -> None:
        from onnx import TensorProto, helper, save

        graph = helper.make_graph(
            [helper.make_node("Nonsense", ["x"], ["y"], domain="mine")], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
        path = tmp_path / "mine.onnx"
        save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
        report = preflight(request_for(path))
        assert report.verdict is Answer.REFUSED
        with pytest.raises(InputError, match="OpenVINO cannot read"):
            openvino.read(path)

    def test_the_engine_is_checked_and_opened_as_any_other(
        self, residual_path: Path, tmp_path: Path, images: Array
    ) -> None:
        engine = api.build(load(residual_path), tmp_path / "engine", target="x86-openvino")
        assert engine.runtime == "openvino"
        assert check_engine(engine).exit_code == 0
        older = {**facts_here(), "openvino": "2023.1.0"}
        assert check_engine(engine, older).exit_code == 3
        with api.open(engine.path.parent) as session:
            assert run(session, {"image": images})["logits"].shape == (4, 5)
        assert doctor.examine("x86-openvino").exit_code == 0

    def test_int8_says_how_far_it_is_from_onnxruntime(
        self, residual_path: Path, tmp_path: Path
    ) -> None:
        request = replace(request_for(residual_path), precision="int8")
        engine = openvino.build(request, tmp_path)
        assert "differ from ONNX Runtime's by" in engine.notes[0]
