"""Real engine files, compiled without a GPU, and what a compiler that dies leaves."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engines import tensorrt_rtx
from edgekit.engines.base import EngineRequest
from edgekit.engines.manifest import load_engine
from edgekit.engines.processes import child
from edgekit.engines.trt import common as trt_common
from edgekit.engines.trt.job import CompileJob
from edgekit.errors import InputError, MissingPackageError, ResourceError
from edgekit.targets import load_target
from edgekit.values import Unknown

rtx = pytest.mark.rtx
needs_rtx = pytest.mark.skipif(not tensorrt_rtx.is_installed(), reason="needs the rtx extra")


def request_for(path: Path, **options: object) -> EngineRequest:
    return EngineRequest(
        model_path=path, name="net", target=load_target("rtx-3060"), precision="fp32",
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


@rtx
@needs_rtx
def test_an_engine_is_built_without_a_gpu(residual_path: Path, tmp_path: Path) -> None:
    engine = tensorrt_rtx.build(request_for(residual_path, batch=(1, 1, 4)), tmp_path / "engine")
    assert load_engine(tmp_path / "engine") == engine
    assert engine.file_bytes > 10_000
    assert engine.built_for == {
        "compute_capability": "8.6", "machine": platform.machine(), "system": platform.system(),
    }  # fmt: skip
    assert [spec.name for spec in engine.outputs] == ["logits"]
    weights, activations = engine.figures["weight_bytes"], engine.figures["activation_bytes"]
    # At least the convolutions' weights in FP32: 16*3*9 + 3 * 16*16*9 + 16*16.
    assert not isinstance(weights, Unknown)
    assert weights >= 4 * (16 * 3 * 9 + 3 * 16 * 16 * 9 + 16 * 16)
    assert not isinstance(activations, Unknown)
    assert activations > 0


@rtx
@needs_rtx
def test_two_builds_of_one_model_are_equal(residual_path: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tensorrt_rtx.build(request_for(residual_path), tmp_path / name)
    for file in ("model.engine", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@rtx
@needs_rtx
def test_every_refused_operator_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unique", ["x"], ["u"], name="first"),
        helper.make_node("BitwiseNot", ["b"], ["c"], name="second"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8]),
         helper.make_tensor_value_info("b", TensorProto.INT32, [8])],
        [helper.make_tensor_value_info("u", TensorProto.FLOAT, [None]),
         helper.make_tensor_value_info("c", TensorProto.INT32, [8])],
    )  # fmt: skip
    path = tmp_path / "bad.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    with pytest.raises(InputError, match="refuses the model") as refusal:
        tensorrt_rtx.build(request_for(path), tmp_path / "engine")
    assert '"first" (Unique)' in refusal.value.got
    assert '"second" (BitwiseNot)' in refusal.value.got
    assert list((tmp_path / "engine").iterdir()) == []


@rtx
@needs_rtx
def test_without_a_driver_an_engine_is_not_opened(residual_path: Path, tmp_path: Path) -> None:
    engine = tensorrt_rtx.build(request_for(residual_path), tmp_path)
    with pytest.raises(MissingPackageError, match="cannot be run here") as refusal:
        tensorrt_rtx.open(engine)
    assert "8.6" in refusal.value.wanted


def test_a_target_that_it_does_not_compile_for_is_refused(
    residual_path: Path, tmp_path: Path
) -> None:
    request = EngineRequest(
        model_path=residual_path, name="net", target=load_target("jetson-orin-nano-8gb"),
        precision="fp32",
    )  # fmt: skip
    with pytest.raises(InputError, match="does not compile for this target") as refusal:
        tensorrt_rtx.build(request, tmp_path)
    assert refusal.value.got == "compute capability 8.7"


def fake_package(folder: Path, body: str) -> CompileJob:
    """A job for a package that does nothing but what a dying compiler does."""
    (folder / "dying_compiler.py").write_text(body)
    return CompileJob(
        package="dying_compiler", extra="rtx", model="net.onnx", engine=str(folder / "engine")
    )


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_compiler_that_segfaults_is_an_error_of_this_model(on_path: Path) -> None:
    job = fake_package(
        on_path, "import os, signal, sys\nsys.stderr.write('deep inside\\n')\nsys.stderr.flush()\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )  # fmt: skip
    with pytest.raises(InputError, match="was killed by SIGSEGV") as death:
        trt_common.compile_apart(job)
    assert death.value.where == "net.onnx"
    assert "deep inside" in death.value.got


def test_nobody_is_blamed_for_a_kill_without_proof(on_path: Path) -> None:
    job = fake_package(on_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(ResourceError, match="by SIGKILL, by whom is not known") as death:
        trt_common.compile_apart(job)
    assert death.value.exit_code == 6


def test_a_missing_package_comes_with_its_pip_command(on_path: Path) -> None:
    job = fake_package(on_path, "raise ImportError('libcuda is not here')\n")
    with pytest.raises(MissingPackageError) as refusal:
        trt_common.compile_apart(job)
    assert refusal.value.hint == "pip install 'edgekit[rtx]'"
    assert refusal.value.got == "libcuda is not here"


def test_a_file_in_the_current_folder_does_not_stand_in_for_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 always looks in the current folder first")
    monkeypatch.chdir(tmp_path)
    job = fake_package(tmp_path, "import os\nos._exit(3)\n")
    with pytest.raises(MissingPackageError, match="dying_compiler"):
        trt_common.compile_apart(job)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_compiler_ends_with_the_process_that_asked_for_it(on_path: Path) -> None:
    (on_path / "dying_compiler.py").write_text(
        "import os, sys, time\n"
        f"open({str(on_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable, "-c",
            "from edgekit.engines.trt.common import *\n"
            "from edgekit.engines.trt.job import CompileJob\n"
            "compile_apart(CompileJob(package='dying_compiler', extra='', model='', engine=''))",
        ],
        env={**child.environment(), "TMPDIR": str(on_path),
             "PYTHONPATH": os.pathsep.join([*sys.path, str(on_path)])},
    )  # fmt: skip
    while not (on_path / "pid").exists() or not (on_path / "pid").read_text():
        assert parent.poll() is None
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    pid = int((on_path / "pid").read_text())
    for _ in range(1000):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text():
            return
        signal.sigtimedwait([], 0.01)
    pytest.fail("the compiler is still there")


def test_the_last_word_of_the_builders_log_counts() -> None:
    found = trt_common.memory_figures(
        ["Total Weights Memory: 1 bytes", "said 2", "Total Weights Memory: 32832 bytes"]
    )
    assert found["weight_bytes"] == 32832.0
    assert isinstance(found["activation_bytes"], Unknown)


@rtx
@needs_rtx
def test_int8_weights_make_a_smaller_plan(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(64, 64, 3, 3)).astype(np.float32)
    sizes = {}
    for name in ("fp32", "int8"):
        constants = {"w": kernel}
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4)]
        if name == "int8":
            constants = {
                "wq": np.clip(np.rint(kernel / 0.04), -127, 127).astype(np.int8),
                "s": np.full(64, 0.04, np.float32), "z": np.zeros(64, np.int8),
                "xs": np.float32(0.05), "xz": np.int8(0),
            }  # fmt: skip
            nodes = [
                helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="q"),
                helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], name="d"),
                helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["w"], name="dw", axis=0),
                helper.make_node("Conv", ["xd", "w"], ["y"], name="conv", pads=[1] * 4),
            ]
        graph = helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64, 8, 8])],
            [numpy_helper.from_array(np.asarray(a), key) for key, a in constants.items()],
        )  # fmt: skip
        path = tmp_path / f"{name}.onnx"
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
            path,
        )
        sizes[name] = tensorrt_rtx.build(request_for(path), tmp_path / name).figures["weight_bytes"]
    assert sizes["fp32"] >= 4 * kernel.size  # type: ignore[operator]
    assert kernel.size <= sizes["int8"] < 2 * kernel.size  # type: ignore[operator]
