"""`edgekit bench` as a whole: several engines, a server's limit, the noise floor, full disks."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import files
from edgekit.bench import noise_floor
from edgekit.bench.measurement import load_measurements
from edgekit.bench.scenarios import Scenario, scenario_named
from edgekit.bench.workload import Plan
from edgekit.engines import onnxruntime as runtime
from edgekit.engines.base import EngineRequest
from edgekit.errors import InputError
from edgekit.pipeline import benching
from edgekit.pipeline.benching import (
    BenchRequest,
    bench_engines,
    broken_off_file,
    measure_noise,
    plan_of,
)
from edgekit.pipeline.past import OFF
from edgekit.targets import load_target
from edgekit.values import Preprocessing, Unknown, preprocessing_to_json

QUICK = Plan(seconds=0.2, rounds=2, warmup_seconds=0)


def engine_folder(folder: Path, channels: int) -> Path:
    """An engine of one convolution of 16x16 pixels, where a build would leave it."""
    weight = np.random.default_rng(0).normal(size=(channels, 1, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", channels, 14, 14])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "engine").mkdir(parents=True)
    onnx.save(proto, folder / "source.onnx")
    request = EngineRequest(
        model_path=folder / "source.onnx", name="conv", target=load_target("cpu"),
        precision="fp32", threads=1,
    )  # fmt: skip
    return runtime.build(request, folder / "engine").path.parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("benching")
    return engine_folder(place / "small", 2), engine_folder(place / "large", 256)


@pytest.fixture
def request_of(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BenchRequest:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(1).normal(size=(6, 1, 16, 16)).astype(np.float32))
    return BenchRequest(
        engines=folders[:1], data=str(data), plan=QUICK, threads=1, history=OFF,
        out=tmp_path / "m.json",
    )  # fmt: skip


def test_several_engines_are_held_against_the_first(
    request_of: BenchRequest, folders: tuple[Path, Path]
) -> None:
    report = bench_engines(replace(request_of, engines=folders))
    assert report.exit_code == 0
    (ratio,) = report.document["ratios"]  # type: ignore[misc]
    assert (ratio["of"], ratio["to"]) == (str(folders[1]), str(folders[0]))
    assert 0 < ratio["speedup"] < 1  # 128 times the work is slower
    assert request_of.out is not None
    stored = load_measurements(request_of.out)
    assert [m.arm for m in stored] == [str(folder) for folder in folders]


def test_the_document_says_what_its_fps_is_and_never_a_number_for_too_few(
    request_of: BenchRequest,
) -> None:
    plan = replace(QUICK, seconds=0.004)
    document = bench_engines(replace(request_of, plan=plan)).document
    assert "pre- and postprocessing are not in it" in document["fps_is"]  # type: ignore[operator]
    assert set(document["early_stopping_ms"]["p99.9"]) == {"unknown"}  # type: ignore[index]
    for name in ("host_to_device", "execute", "device_to_host"):
        assert document["figures"][f"{name}_p50_s"] > 0  # type: ignore[index]


def test_pixels_are_measured_from_their_preprocessing_on(
    request_of: BenchRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (6, 1, 16, 16), np.uint8)
    np.savez(tmp_path / "pixels.npz", x=pixels)
    monkeypatch.setattr(benching, "preprocessing_beside", lambda folder: Preprocessing())
    assert preprocessing_to_json(Preprocessing())["scale"] == 1 / 255
    document = bench_engines(replace(request_of, data=str(tmp_path / "pixels.npz"))).document
    figures: dict[str, float] = document["figures"]  # type: ignore[assignment]
    assert 0 < figures["preprocess_p50_s"] < figures["end_to_end_p50_s"]


@pytest.mark.parametrize(
    ("limit_s", "seconds", "code"), [(30.0, 1.0, 0), (1e-9, 1.0, 1), (30.0, 0.05, 3)]
)
def test_a_server_keeps_its_limit_or_not_or_nobody_can_say(
    request_of: BenchRequest, limit_s: float, seconds: float, code: int
) -> None:
    scenario = Scenario(name="server", rate=1500.0, latency_limit_s=limit_s)
    plan = Plan(seconds=seconds, rounds=1, warmup_seconds=0, scenario=scenario)
    report = bench_engines(replace(request_of, plan=plan))
    assert report.exit_code == code
    assert "fps" not in report.document


def test_the_noise_floor_is_stored_for_the_engines_target(request_of: BenchRequest) -> None:
    report = measure_noise(replace(request_of, plan=Plan(seconds=0.3, rounds=6, warmup_seconds=0)))
    assert report.exit_code == 0
    floor = noise_floor.read("cpu")
    assert not isinstance(floor, Unknown)
    assert floor.share == report.document["noise_floor"]
    assert len(report.document["ratios"]) == 4  # type: ignore[arg-type]
    assert floor.share > 0


def test_a_noise_floor_that_cannot_be_said_is_not_stored(request_of: BenchRequest) -> None:
    report = measure_noise(replace(request_of, plan=Plan(seconds=0.1, rounds=1, warmup_seconds=0)))
    assert report.exit_code == 3
    assert isinstance(noise_floor.read("cpu"), Unknown)


def test_a_full_disk_loses_the_file_and_not_the_numbers(
    request_of: BenchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write_text

    def full(path: Path, text: str) -> None:
        if path == request_of.out:
            with files.translated_errors(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(files, "write_text", full)
    report = bench_engines(request_of)
    assert report.exit_code == 6
    assert report.document["fps"] > 0  # type: ignore[operator]
    assert report.document["not_saved"]["what"] == "the disk is full"  # type: ignore[index]


def test_what_was_taken_before_ctrl_c_lies_beside_the_place_for_the_whole(
    request_of: BenchRequest,
) -> None:
    def interrupt(event: object) -> None:
        if "round 2" in getattr(event, "said", ""):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench_engines(request_of, on_event=interrupt)
    assert request_of.out is not None
    assert not request_of.out.exists()
    (stored,) = load_measurements(broken_off_file(request_of.out))
    assert stored.broken == ("broken off: KeyboardInterrupt",)
    assert len(stored.rounds) == 1


@pytest.mark.parametrize(
    "options",
    [{"name": "burst"}, {"name": "multi_stream"}, {"name": "offline", "samples_per_query": 2},
     {"name": "server"}, {"name": "single_stream", "rate": 5.0},
     {"name": "offline", "latency_limit_ms": 5.0}],
)  # fmt: skip
def test_a_scenario_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        scenario_named(**options)  # type: ignore[arg-type]


def test_a_plan_has_two_rounds_for_each_process() -> None:
    assert plan_of(seconds=1.0, processes=5).rounds == 10
    assert plan_of(seconds=1.0, processes=1, scenario="multi-stream", samples_per_query=4)
