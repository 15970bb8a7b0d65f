"""Building and running with each release of TensorRT, by a stand-in that has its names only."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_stand_in
from conftest import residual_graph
from cuda_stand_in import Cudart
from onnx import TensorProto, helper, numpy_helper
from tensorrt_names import ALL_NAMES, RELEASES, VERSION, names_of

from edgekit.engines import tensorrt, tensorrt_rtx
from edgekit.engines.base import BuilderOptions, Engine, EngineRequest, read_model
from edgekit.engines.cuda import Device
from edgekit.engines.cuda_runtime import RuntimeMemory
from edgekit.engines.manifest import load_engine
from edgekit.engines.trt import child as trt_child
from edgekit.engines.trt import engine as trt_engine
from edgekit.engines.trt import session as trt_session
from edgekit.engines.trt.engine import TrtPackage, job_of
from edgekit.errors import InputError, MissingPackageError, ResourceError
from edgekit.models.model import Model
from edgekit.targets import load_target
from edgekit.values import Array, Unknown, run

PLAIN = tuple(release for release in RELEASES if release != "rtx")
WITH_FLAGS = ("8.5", "8.6", "10.3", "10.13", "10.16")
TYPED = ("10.3", "10.13", "10.16", "11")


@pytest.mark.rtx
@pytest.mark.skipif(not tensorrt_rtx.is_installed(), reason="needs the rtx extra")
def test_the_table_of_names_is_that_of_the_real_package() -> None:
    import tensorrt_rtx as real

    there = names_of("rtx")
    for name in sorted(ALL_NAMES):
        kind, _, member = name.partition(".")
        found = hasattr(real, kind) and (not member or hasattr(getattr(real, kind), member))
        assert found == (name in there), name


@pytest.mark.parametrize("release", RELEASES)
def test_the_stand_in_knows_no_name_that_is_not_in_the_table(release: str) -> None:
    module = tensorrt_stand_in.package(release)
    for kind in module.classes:
        for name in vars(kind):
            assert name.startswith("_") or f"{kind._kind}.{name}" in ALL_NAMES, name


def test_the_stand_in_refuses_what_8_5_lacks() -> None:
    module = tensorrt_stand_in.package("8.5")
    config = module.Builder(module.ILogger()).create_builder_config()
    with pytest.raises(AttributeError, match="builder_optimization_level"):
        config.builder_optimization_level = 5
    with pytest.raises(AttributeError, match="progress_monitor"):
        _ = config.progress_monitor
    assert not hasattr(module, "IProgressMonitor")
    assert not hasattr(module.BuilderFlag, "STRIP_PLAN")


class Site:
    """A folder on the path of this process and of its children, with a `tensorrt` in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.record_file = folder / "record.json"
        self._monkeypatch = monkeypatch
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    def install(self, release: str, **knobs: object) -> None:
        (self.folder / "tensorrt.py").write_text(
            f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "import tensorrt_stand_in\n"
            f"sys.modules[__name__] = tensorrt_stand_in.package({release!r})\n"
        )
        # Set, so that what is imported now is taken out again when the test ends.
        self._monkeypatch.setitem(sys.modules, "tensorrt", None)
        del sys.modules["tensorrt"]
        said = json.dumps({"record": str(self.record_file), **knobs})
        self._monkeypatch.setenv(tensorrt_stand_in.KNOBS, said)

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.record_file.read_text())
        return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    return Site(folder, monkeypatch)


def request_for(path: Path, precision: str = "fp32", **options: Any) -> EngineRequest:
    return EngineRequest(
        model_path=path, name="net", target=load_target("jetson-orin-nano-8gb"),
        precision=precision, **options,
    )  # fmt: skip


def conv_path(folder: Path, *, quantized: bool = False, half: bool = False) -> Path:
    """x -> (Q/DQ) -> Conv -> y, (1, 8, 4, 4), in float32 or float16."""
    rng = np.random.default_rng(3)
    dtype = np.float16 if half else np.float32
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    constants = {"w": rng.normal(size=(8, 8, 3, 3)).astype(dtype)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4)]
    if quantized:
        constants |= {"s": np.asarray(0.05, dtype), "z": np.asarray(0, np.int8)}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
            helper.make_node("Conv", ["d", "w"], ["y"], name="conv", pads=[1] * 4),
        ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", kind, [1, 8, 4, 4])],
        [helper.make_tensor_value_info("y", kind, [1, 8, 4, 4])],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )  # fmt: skip
    path = folder / "conv.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path
    )
    return path


@pytest.mark.parametrize("release", PLAIN)
def test_an_engine_is_built_by_every_release(
    site: Site, residual_path: Path, tmp_path: Path, release: str
) -> None:
    site.install(release)
    told: list[tuple[float, str]] = []
    engine = tensorrt.build(
        request_for(
            residual_path,
            batch=(1, 2, 4),
            on_progress=lambda fraction, said: told.append((fraction, said)),
        ),
        tmp_path / "engine",
    )
    assert load_engine(tmp_path / "engine") == engine
    assert engine.runtime_version == VERSION[release]
    assert engine.figures["weight_bytes"] == 4096.0
    assert engine.figures["context_bytes"] == 12345.0
    assert site.record["profiles"] == {"image": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]}
    assert site.record["workspace"] == 1 << 30
    assert site.record["verbosity"] == "DETAILED"
    assert ("EXPLICIT_BATCH" in site.record["network"]) == (release in WITH_FLAGS)
    assert any("two builds of the same model may differ" in note for note in engine.notes)
    log = (tmp_path / "engine" / "build.log").read_text()
    assert log.startswith("[INFO] Total Weights Memory: 4096 bytes\n")
    assert "nobody wants to know" not in log
    layers = engine.layers
    assert not isinstance(layers, Unknown)
    assert {layer.precision for layer in layers} == {"fp16"}
    fractions = [fraction for fraction, said in told if said == "Building engine"]
    has_monitor = release not in ("8.5", "8.6")
    assert fractions == ([0.0, 0.25, 0.5, 0.75, 0.999] if has_monitor else [])


@pytest.mark.parametrize("release", PLAIN)
@pytest.mark.parametrize(
    ("precision", "quantized", "half", "flags"),
    [
        ("fp32", False, False, []),
        ("fp16", False, False, ["FP16"]),
        ("fp16", False, True, ["FP16"]),
        ("int8", True, False, ["INT8", "FP16"]),
        ("int8", True, True, ["INT8", "FP16"]),
    ],
)
def test_types_come_from_the_graph_or_from_flags_and_never_from_both(
    tmp_path: Path, release: str, precision: str, quantized: bool, half: bool, flags: list[str]
) -> None:
    request = request_for(conv_path(tmp_path, quantized=quantized, half=half), precision)
    record, answer = built_in_this_process(release, request, tmp_path)
    typed = release in TYPED and (half or precision == "fp32" or release == "11")
    assert ("STRONGLY_TYPED" in record["network"]) == typed
    assert record["flags"] == ([] if typed else flags)
    assert ("STRONGLY_TYPED" in answer["flags"]) == typed
    warned = any("it holds no float16" in note for note in answer["notes"])
    assert warned == (release == "11" and not half and precision != "fp32")


def built_in_this_process(
    release: str, request: EngineRequest, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the builder was told, and the answer to the parent, without a child between."""
    module = tensorrt_stand_in.package(release)
    named = TrtPackage(name="tensorrt", extra="tensorrt")
    job = job_of(request, folder / "plan", named, read_model(request.model_path))
    logger = trt_child.collecting_logger(module)
    answer: dict[str, Any] = trt_child.build_plan(
        module, job, trt_child.Teller(io.StringIO()), logger
    )
    assert (folder / "plan").stat().st_size > 0
    return module.record, answer


def test_the_flags_can_be_asked_for_where_the_graph_is_typed(tmp_path: Path) -> None:
    path = conv_path(tmp_path, quantized=True, half=True)
    request = request_for(path, "int8", builder=BuilderOptions(typing="flags"))
    record, _ = built_in_this_process("10.3", request, tmp_path)
    assert record["network"] == ["EXPLICIT_BATCH"]
    assert record["flags"] == ["INT8", "FP16"]


@pytest.mark.parametrize(
    ("release", "options", "said"),
    [
        ("8.5", BuilderOptions(optimization_level=5), "no optimization level"),
        ("8.6", BuilderOptions(strip=True), "no builder flag STRIP_PLAN"),
        ("8.6", BuilderOptions(typing="strong"), "no strongly typed networks"),
    ],
)
def test_what_a_release_cannot_do_is_refused_and_not_left_out(
    site: Site, residual_path: Path, tmp_path: Path, release: str, options: BuilderOptions,
    said: str,
) -> None:  # fmt: skip
    site.install(release)
    with pytest.raises(InputError, match="cannot build this engine") as refusal:
        tensorrt.build(request_for(residual_path, builder=options), tmp_path / "engine")
    assert said in refusal.value.got
    assert list((tmp_path / "engine").iterdir()) == []


def test_options_reach_a_builder_that_has_them(
    site: Site, residual_path: Path, tmp_path: Path
) -> None:
    site.install("10.3")
    options = BuilderOptions(optimization_level=5, refit=True, strip=True)
    engine = tensorrt.build(request_for(residual_path, builder=options), tmp_path / "engine")
    assert site.record["builder_optimization_level"] == 5
    assert site.record["flags"] == ["REFIT", "STRIP_PLAN", "REFIT_IDENTICAL"]
    assert engine.settings["optimization_level"] == 5
    with pytest.raises(InputError, match="stripped: it has no weights"):
        tensorrt.open(engine)


def test_weights_that_are_two_of_four_allow_sparse_kernels(tmp_path: Path) -> None:
    path = conv_path(tmp_path, quantized=True)
    proto = onnx.load(path)
    weights = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weights[:, [1, 2, 4, 7]] = 0
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    onnx.save(proto, path)
    record, answer = built_in_this_process("8.5", request_for(path, "int8"), tmp_path)
    assert record["flags"] == ["INT8", "FP16", "SPARSE_WEIGHTS"]
    assert any("1 layers are 2:4" in note for note in answer["notes"])


@pytest.mark.parametrize("release", ["8.5", "10.3"])
def test_what_the_dla_does_not_take_is_counted_and_named(
    site: Site, residual_path: Path, tmp_path: Path, release: str
) -> None:
    site.install(release, dla_cores=2, dla_takes=["CONV", "RELU", "ADD", "CONCAT"])
    request = request_for(residual_path, "fp16", dla_core=1)
    engine = tensorrt.build(request, tmp_path / "engine")
    assert (site.record["DLA_core"], site.record["default_device_type"]) == (1, "DLA")
    assert "GPU_FALLBACK" in site.record["flags"]
    assert "STRONGLY_TYPED" not in site.record["network"]
    nodes = [node.op_type for node in residual_graph().graph.node]
    taken = sum(kind in ("Conv", "Relu", "Add", "Concat") for kind in nodes)
    assert engine.settings["dla_layers"] == taken
    assert engine.settings["dla_fallbacks"] == len(nodes) - taken
    assert any(
        f"{taken} layers on DLA core 1, {len(nodes) - taken} on the GPU" in note
        and "(GEMM)" in note
        for note in engine.notes
    )
    few = replace(request, builder=BuilderOptions(max_dla_fallbacks=2))
    with pytest.raises(InputError, match="cannot build this engine") as refusal:
        tensorrt.build(few, tmp_path / "few")
    assert "at most 2 may fall back" in refusal.value.got


@pytest.mark.parametrize(
    ("knobs", "batch", "said"),
    [
        ({"dla_cores": 0}, (1, 1, 1), "sees 0 here"),
        ({"dla_cores": 2}, (1, 1, 1), "no layer of this model"),
        ({"dla_cores": 2, "dla_takes": ["CONV"]}, (1, 1, 4), "no dynamic shapes: image"),
    ],
)
def test_a_dla_that_cannot_be_used_is_refused(
    site: Site, residual_path: Path, tmp_path: Path, knobs: dict[str, Any],
    batch: tuple[int, int, int], said: str,
) -> None:  # fmt: skip
    site.install("8.5", **knobs)
    with pytest.raises(InputError) as refusal:
        tensorrt.build(
            request_for(residual_path, "fp16", dla_core=0, batch=batch), tmp_path / "engine"
        )
    assert said in refusal.value.got


@pytest.mark.parametrize("release", ["8.5", "11"])
def test_a_refused_operator_is_named_as_well_as_the_release_can(
    site: Site, residual_path: Path, tmp_path: Path, release: str
) -> None:
    site.install(release)
    proto = onnx.load(residual_path)
    proto.graph.node.append(helper.make_node("Unique", ["flat"], ["u"], name="second"))
    onnx.save(proto, residual_path)
    with pytest.raises(InputError, match="refuses the model") as refusal:
        tensorrt.build(request_for(residual_path), tmp_path / "engine")
    node = "node 1" if release == "8.5" else 'node "second" (Unique)'
    assert refusal.value.got == f"{node}: no importer [UNSUPPORTED_NODE]"


def test_a_build_without_memory_is_tried_once_more_with_half_the_workspace(
    site: Site, residual_path: Path, tmp_path: Path
) -> None:
    site.install("10.3", memory=600 << 20)
    engine = tensorrt.build(request_for(residual_path), tmp_path / "engine")
    assert engine.settings["workspace_bytes"] == 512 << 20
    assert "workspace of 1,024 MiB: this engine was built with half" in engine.notes[0]
    site.install("10.3", memory=100 << 20)
    with pytest.raises(ResourceError, match="ran out of memory") as error:
        tensorrt.build(request_for(residual_path), tmp_path / "other")
    assert "512 MiB was tried too" in error.value.hint
    assert "OutOfMemory" in error.value.got
    assert list((tmp_path / "other").iterdir()) == []


def test_an_engine_is_not_lost_when_asking_it_for_its_layers_kills_the_process(
    site: Site, residual_path: Path, tmp_path: Path
) -> None:
    site.install("10.3", dies_of_loading=True)
    engine = tensorrt.build(request_for(residual_path), tmp_path / "engine")
    assert load_engine(tmp_path / "engine") == engine
    assert isinstance(engine.layers, Unknown)
    assert engine.layers.reason == "asking the engine for its layers was killed by SIGSEGV"
    assert "context_bytes" not in engine.figures


def test_a_plan_says_what_machine_it_was_built_on(
    site: Site, residual_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {
        "machine": "aarch64", "system": "Linux", "device": "Orin Nano", "cuda": "12.6",
        "compute_capability": "8.7", "jetpack": "6.2", "l4t": "36.4.3", "onnxruntime": "1.23",
    }  # fmt: skip
    monkeypatch.setattr(tensorrt, "facts_here", lambda: here)
    monkeypatch.setattr(trt_engine, "facts_here", lambda: here)
    site.install("10.3")
    options = BuilderOptions(timing_cache=tmp_path / "timing")
    engine = tensorrt.build(request_for(residual_path, builder=options), tmp_path / "engine")
    assert engine.built_for == {k: v for k, v in here.items() if k != "onnxruntime"}
    (cache,) = (tmp_path / "timing").iterdir()
    assert cache.name == "jetson_orin_nano_8gb-Orin_Nano-trt10.3.0-cuda12.6.cache"
    here["compute_capability"] = "8.6"
    with pytest.raises(InputError, match="not the target's") as refusal:
        tensorrt.build(request_for(residual_path), tmp_path / "engine")
    assert (refusal.value.got, refusal.value.wanted) == (
        "compute capability 8.6", "8.7",
    )  # fmt: skip


def test_the_timing_cache_is_kept_for_each_version_and_a_bad_one_is_put_aside(
    site: Site, residual_path: Path, tmp_path: Path
) -> None:
    caches = tmp_path / "timing"
    request = request_for(residual_path, builder=BuilderOptions(timing_cache=caches))

    def built(release: str, **knobs: object) -> Engine:
        site.install(release, **knobs)
        return tensorrt.build(request, tmp_path / "engine")

    def aside(engine: Engine) -> list[str]:
        return [note for note in engine.notes if "put aside" in note]

    assert aside(built("10.3")) == []
    assert site.record["timing_cache"] == 0
    assert aside(built("10.3")) == []
    assert site.record["timing_cache"] == len(b"timed;")
    assert aside(built("10.13")) == []
    assert site.record["timing_cache"] == 0
    first, second = sorted(caches.glob("*.cache"))
    assert "trt10.13.3.9" in first.name
    assert "trt10.3.0" in second.name
    second.write_bytes(second.read_bytes()[:-1] + b"!")  # its last byte changed
    (note,) = aside(built("10.3"))
    assert "is damaged" in note
    assert site.record["timing_cache"] == 0
    (note,) = aside(built("10.3", refuse_cache=True))
    assert "refused by TensorRT" in note
    head, _, content = second.read_bytes().partition(b"\n")
    account = json.loads(head)
    account["of"]["cuda"] = "1.0"
    second.write_bytes(json.dumps(account).encode() + b"\n" + content)
    (note,) = aside(built("10.3"))
    assert "of another version" in note


Opened = Callable[..., Any]


def opened(engine: Engine, library: Cudart) -> Any:
    device = Device(library=library, memory=RuntimeMemory(library))
    return trt_session.open_plan(engine, "tensorrt", "tensorrt", device=device)


def feeds(batch: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(batch, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("release", PLAIN)
def test_a_session_computes_what_the_model_does_and_captures_it_once(
    site: Site, residual: Model, residual_path: Path, tmp_path: Path, release: str,
    reference: Callable[..., list[Array]],
) -> None:  # fmt: skip
    site.install(release)
    engine = tensorrt.build(request_for(residual_path, batch=(1, 2, 4)), tmp_path / "engine")
    library = Cudart()
    with opened(engine, library) as session:
        assert [str(spec) for spec in session.inputs] == ["image float32 (?, 3, 8, 8)"]
        for batch, seed in ((2, 0), (2, 1), (2, 2), (4, 3), (4, 4), (1, 5)):
            given = feeds(batch, seed)
            found = run(session, given)["logits"]
            wanted = reference(residual, given)[0]
            assert found.shape == (batch, 5)
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        assert session.notes == ()
    # Two of batch 2 and one of batch 4 were launched as a graph; each first run was not.
    assert library.calls.count("cudaGraphLaunch") == 3
    assert library.calls.count("cudaStreamBeginCapture") == 2
    assert library.left() == (0, 0, 0)


@pytest.mark.parametrize(
    "failing",
    [{"cudaStreamBeginCapture": 900}, {"EndCapture": 901}, {"cudaGraphInstantiateWithFlags": 1}],
)
def test_without_a_graph_it_runs_on_and_says_so(
    site: Site, residual_path: Path, tmp_path: Path, failing: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    site.install("10.3")
    engine = tensorrt.build(request_for(residual_path), tmp_path / "engine")
    library = Cudart(**failing)
    with opened(engine, library) as session:
        first, second, third = (run(session, feeds(1))["logits"] for _ in range(3))
        (note,) = session.notes
    assert "without a CUDA graph" in note
    assert "without a CUDA graph" in caplog.text
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    assert library.calls.count("cudaStreamBeginCapture") == 1
    assert library.left() == (0, 0, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"picture": np.zeros((1, 3, 8, 8), np.float32)}, "not the engine's inputs"),
        ({"image": np.zeros((1, 3, 8, 8), np.float64)}, "wrong type"),
        ({"image": np.zeros((1, 3, 8), np.float32)}, "not built for this shape"),
        ({"image": np.zeros((1, 4, 8, 8), np.float32)}, "not built for this shape"),
        ({"image": np.zeros((65, 3, 8, 8), np.float32)}, "not built for this shape"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(
    site: Site, residual_path: Path, tmp_path: Path, given: dict[str, Array], said: str
) -> None:
    site.install("8.5")
    engine = tensorrt.build(request_for(residual_path, batch=(1, 1, 4)), tmp_path / "engine")
    with opened(engine, Cudart()) as session:
        with pytest.raises(InputError, match=said):
            session.stage(given)
        assert run(session, feeds(3))["logits"].shape == (3, 5)


def test_a_plan_of_another_release_is_refused_and_nothing_is_left(
    site: Site, residual_path: Path, tmp_path: Path
) -> None:
    site.install("10.3")
    engine = tensorrt.build(request_for(residual_path), tmp_path / "engine")
    site.install("10.13")
    library = Cudart()
    with pytest.raises(InputError, match="does not take this engine") as refusal:
        opened(engine, library)
    assert refusal.value.got == "Version tag does not match"
    assert library.left() == (0, 0, 0)


def test_shapes_that_come_and_go_take_no_more_memory_than_the_largest(
    site: Site, residual_path: Path, tmp_path: Path
) -> None:
    site.install("10.3")
    engine = tensorrt.build(request_for(residual_path, batch=(1, 2, 4)), tmp_path / "engine")
    library = Cudart()
    with opened(engine, library) as session:
        for batch in (1, 4, 2, 3, 4, 1):
            assert run(session, feeds(batch))["logits"].shape == (batch, 5)
        # On the device and on the host, for the input and for the output.
        assert len(library.memory) == 4
        sizes = sorted(len(block) for block in library.memory.values())
    assert sizes == [4 * 4 * 5] * 2 + [4 * 4 * 3 * 8 * 8] * 2
    assert library.left() == (0, 0, 0)


def test_a_run_that_fails_is_an_error(site: Site, residual_path: Path, tmp_path: Path) -> None:
    site.install("10.3", cannot_run=True)
    engine = tensorrt.build(request_for(residual_path), tmp_path / "engine")
    with opened(engine, Cudart()) as session:
        session.stage(feeds(1))
        with pytest.raises(InputError, match="could not run"):
            session.execute()


@pytest.mark.parametrize(
    ("failing", "error", "said"),
    [
        ({"cudaMalloc": 2}, ResourceError, "memory ran out"),
        ({"cudaMemcpyAsync": 700}, InputError, "CUDA reports"),
    ],
)
def test_errors_of_cuda_are_translated(
    site: Site, residual_path: Path, tmp_path: Path, failing: dict[str, int],
    error: type[Exception], said: str,
) -> None:  # fmt: skip
    site.install("10.3")
    engine = tensorrt.build(request_for(residual_path), tmp_path / "engine")
    library = Cudart(**failing)
    with opened(engine, library) as session, pytest.raises(error, match=said):
        session.stage(feeds(1))
    assert library.left() == (0, 0, 0)


def test_an_engine_is_not_opened_without_a_gpu(
    site: Site, residual_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("10.3")
    engine = tensorrt.build(request_for(residual_path), tmp_path / "engine")
    library = Cudart(cudaGetDeviceCount=35)
    monkeypatch.setattr("edgekit.engines.cuda.find_library", lambda: library)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(MissingPackageError, match="cannot be run here") as refusal:
        tensorrt.open(engine)
    assert "error 35" in refusal.value.got


def test_kernels_that_rtx_compiled_are_kept_for_the_next_time(
    site: Site, residual_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    site.install("10.13")
    engine = tensorrt.build(request_for(residual_path), tmp_path / "engine")
    plan = engine.path.read_bytes().replace(b"PLAN of 10.13", b"PLAN of rtx", 1)
    engine.path.write_bytes(plan)
    kept = tmp_path / "home" / "edgekit" / "runtime" / f"{engine.sha256[:40]}.cache"
    site.install("rtx")
    for _ in range(2):
        with opened(engine, Cudart()) as session:
            run(session, feeds(1))
        assert kept.read_bytes() == b"kernels"
    kept.write_bytes(b"damaged")
    with opened(engine, Cudart()) as session:
        run(session, feeds(1))


def test_without_the_package_the_pip_command_is_named(
    residual_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "is_installed", lambda: False)
    assert tensorrt.installed_version() == "absent"
    with pytest.raises(MissingPackageError) as refusal:
        tensorrt.build(request_for(residual_path), tmp_path / "engine")
    assert refusal.value.hint == "pip install 'edgekit[tensorrt]'"
