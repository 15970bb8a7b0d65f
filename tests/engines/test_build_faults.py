"""Builds that go wrong: the right words, the right exit code, and nothing left of them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.engines import tensorrt_rtx
from edgekit.engines.base import BuilderOptions, EngineRequest
from edgekit.engines.here import facts_here
from edgekit.engines.manifest import load_engine
from edgekit.engines.processes import child
from edgekit.engines.processes.watched import Limits
from edgekit.engines.trt import common as trt_common
from edgekit.engines.trt.job import CompileJob
from edgekit.errors import InputError, ResourceError
from edgekit.targets import Target, load_target
from edgekit.values import Unknown

MIB = 1 << 20
rtx = pytest.mark.rtx
needs_rtx = pytest.mark.skipif(not tensorrt_rtx.is_installed(), reason="needs the rtx extra")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

Fake = Callable[[str], CompileJob]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A job for a package that does nothing but what its body does when it is imported."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def job(body: str) -> CompileJob:
        (tmp_path / "failing_compiler.py").write_text(body)
        return CompileJob(
            package="failing_compiler", extra="rtx", model="net.onnx",
            engine=str(tmp_path / "engine"),
        )  # fmt: skip

    return job


@linux
def test_a_compiler_over_the_memory_cap_is_stopped_tried_smaller_and_told(fake: Fake) -> None:
    job = fake("import time\nkept = b'x' * (400 << 20)\ntime.sleep(60)\n")
    told: list[str] = []
    with pytest.raises(ResourceError, match="stopped for its memory") as error:
        trt_common.compile_apart(
            job,
            limits=Limits(memory_bytes=250 * MIB, seconds=60),
            on_progress=lambda fraction, said: told.append(said),
        )
    assert error.value.wanted == "at most 250 MiB"
    assert "resident after" in error.value.got
    assert "Lower the workspace to 256 MiB" in error.value.hint
    assert "512 MiB was tried too" in error.value.hint
    assert "out of memory: once more with a workspace of 512 MiB" in told
    assert error.value.exit_code == 6


def test_a_compiler_that_takes_too_long_is_stopped(fake: Fake) -> None:
    job = fake("import time\ntime.sleep(600)\n")
    begun = time.monotonic()
    with pytest.raises(ResourceError, match="longer than it may") as error:
        trt_common.compile_apart(job, limits=Limits(seconds=0.7))
    assert time.monotonic() - begun < 10
    assert error.value.wanted == "at most 1 s"
    assert error.value.exit_code == 6


def test_a_silent_compiler_is_told_of_with_its_time_and_memory(fake: Fake) -> None:
    told: list[str] = []
    with pytest.raises(InputError, match="exit code 3"):
        trt_common.compile_apart(
            fake("import os, time\ntime.sleep(1.3)\nos._exit(3)\n"),
            on_progress=lambda fraction, said: told.append(said),
        )
    assert any(said.startswith("1 s, ") and said.endswith(" MB") for said in told), told


def test_limits_are_the_requests_then_the_targets_then_ours() -> None:
    target = load_target("jetson-orin-nano-8gb")
    own = BuilderOptions(memory_cap_bytes=5, time_limit_s=6.0)
    builder = target.builder.model_copy(update={"memory_cap_bytes": 7, "time_limit_s": 8.0})
    careful = target.model_copy(update={"builder": builder})

    def found(target: Target, options: BuilderOptions) -> Limits:
        return trt_common.limits_of(
            EngineRequest(
                model_path=Path("m"), name="m", target=target, precision="fp16", builder=options
            )
        )

    assert (found(careful, own).memory_bytes, found(careful, own).seconds) == (5, 6.0)
    plain = BuilderOptions()
    assert (found(careful, plain).memory_bytes, found(careful, plain).seconds) == (7, 8.0)
    assert found(target, plain).seconds == trt_common.DEFAULT_TIME_LIMIT_S
    assert (found(target, plain).memory_bytes or 0) > 0
    # The GPU takes from the CPU's memory there, and nowhere else.
    assert found(target, plain).least_available_bytes == 256 * MIB
    assert found(load_target("rtx-3060"), plain).least_available_bytes is None


@linux
def test_ctrl_c_ends_the_build_and_its_process_group_within_a_second(
    fake: Fake, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    fake(
        "import os, subprocess, sys, time\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids) + '.new'!r}, 'w').write(f'{{os.getpid()}} {{inner.pid}}')\n"
        f"os.rename({str(pids) + '.new'!r}, {str(pids)!r})\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable, "-c",
            "from edgekit.engines.trt.common import *\n"
            "from edgekit.engines.trt.job import CompileJob\n"
            "try: compile_apart(CompileJob(package='failing_compiler', extra='', model='',"
            " engine=''))\n"
            "except KeyboardInterrupt: raise SystemExit(130)",
        ],
        env={**child.environment(), "PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])},
    )  # fmt: skip
    while not pids.exists():
        assert parent.poll() is None
        time.sleep(0.01)
    begun = time.monotonic()
    parent.send_signal(signal.SIGINT)
    assert parent.wait(10) == 130
    assert time.monotonic() - begun < 2  # one second, and what a busy machine adds
    for pid in map(int, pids.read_text().split()):
        assert not alive(pid)


def alive(pid: int) -> bool:
    for _ in range(200):
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return False
        except OSError:
            return False
        time.sleep(0.01)
    return True


def request_for(path: Path, **options: object) -> EngineRequest:
    return EngineRequest(
        model_path=path, name="net", target=load_target("rtx-3060"), precision="fp32",
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


BUILD = """
import resource, sys
from pathlib import Path
from edgekit.engines import tensorrt_rtx
from edgekit.engines.base import EngineRequest
from edgekit.errors import EdgekitError
from edgekit.targets import Target, load_target
model, folder, limit = sys.argv[1:]
request = EngineRequest(
    model_path=Path(model), name="net", target=load_target("rtx-3060"), precision="fp32"
)
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    tensorrt_rtx.build(request, Path(folder))
except EdgekitError as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


def started_build(model: Path, folder: Path, *, largest_file: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(model), str(folder), str(largest_file)],
        stdout=subprocess.PIPE, text=True,
        env={**child.environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


@rtx
@needs_rtx
def test_a_full_disk_leaves_no_half_of_an_engine(residual_path: Path, tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    build = started_build(residual_path, tmp_path / "engine", largest_file=20_000)
    said, _ = build.communicate(timeout=120)
    assert build.returncode == 6
    assert said.startswith("the disk is full")
    assert list((tmp_path / "engine").iterdir()) == []


@rtx
@needs_rtx
def test_two_builds_of_one_engine_at_once_leave_one_that_is_whole(
    residual_path: Path, tmp_path: Path
) -> None:
    builds = [started_build(residual_path, tmp_path / "engine") for _ in range(2)]
    for build in builds:
        build.communicate(timeout=120)
        assert build.returncode == 0
    engine = load_engine(tmp_path / "engine")
    assert engine.path.stat().st_size == engine.file_bytes
    assert {path.name for path in (tmp_path / "engine").iterdir()} == {
        "model.engine", "manifest.json", "build.log",
    }  # fmt: skip


@rtx
@needs_rtx
def test_a_real_build_tells_how_far_it_is(residual_path: Path, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    tensorrt_rtx.build(
        request_for(residual_path, on_progress=lambda f, said: told.append((f, said))), tmp_path
    )
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0
    assert 0.5 < fractions[-1] < 1
    assert len({said for _, said in told}) > 3


@rtx
@needs_rtx
def test_equal_models_at_two_places_leave_equal_engines_manifests_and_logs(
    residual_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / residual_path.name
    other.write_bytes(residual_path.read_bytes())
    for place, path in (("a", residual_path), ("b", other)):
        tensorrt_rtx.build(request_for(path, batch=(2, 2, 2)), tmp_path / place)
    for file in ("model.engine", "manifest.json", "build.log"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@rtx
@needs_rtx
def test_where_two_builds_may_differ_a_note_says_so(residual_path: Path, tmp_path: Path) -> None:
    fixed = tensorrt_rtx.build(request_for(residual_path, batch=(2, 2, 2)), tmp_path / "fixed")
    free = tensorrt_rtx.build(request_for(residual_path, batch=(1, 1, 4)), tmp_path / "free")
    assert not any("two builds" in note for note in fixed.notes)
    assert any("two builds" in note for note in free.notes)
    assert free.file_bytes == free.path.stat().st_size


@rtx
@needs_rtx
def test_an_engine_without_a_gpu_has_layers_that_nobody_knows(
    residual_path: Path, tmp_path: Path
) -> None:
    engine = tensorrt_rtx.build(request_for(residual_path), tmp_path)
    if not isinstance(engine.layers, Unknown):
        pytest.skip("a GPU is here that loads the engine")
    assert "cannot be loaded here" in engine.layers.reason
    assert load_engine(tmp_path).layers == engine.layers
    assert engine.settings["timing_cache"] == "none: this package does not time its kernels"
    assert engine.flags == ("STRONGLY_TYPED",)
    content = bytearray(engine.path.read_bytes())
    content[len(content) // 2] ^= 1
    engine.path.write_bytes(content)
    with pytest.raises(InputError, match="not the one that its manifest describes"):
        load_engine(tmp_path)


@rtx
@needs_rtx
def test_a_plan_with_exchangeable_weights_needs_a_driver_and_says_so(
    residual_path: Path, tmp_path: Path
) -> None:
    if "driver" in facts_here():
        pytest.skip("there is a driver here")
    for options in (BuilderOptions(refit=True), BuilderOptions(strip=True)):
        request = request_for(residual_path, builder=options)
        with pytest.raises(InputError, match="refuses the model") as refusal:
            tensorrt_rtx.build(request, tmp_path / "engine")
        assert "built only where an NVIDIA driver is" in refusal.value.hint
        assert list((tmp_path / "engine").iterdir()) == []


@rtx
@needs_rtx
def test_an_optimization_level_reaches_a_real_build(residual_path: Path, tmp_path: Path) -> None:
    request = request_for(residual_path, builder=BuilderOptions(optimization_level=1))
    engine = tensorrt_rtx.build(request, tmp_path)
    assert engine.settings["optimization_level"] == 1
    with pytest.raises(InputError, match="cannot build this engine"):
        tensorrt_rtx.build(
            request_for(residual_path, builder=BuilderOptions(optimization_level=77)), tmp_path
        )


@rtx
@needs_rtx
def test_a_memory_cap_in_the_request_stops_a_real_build(tmp_path: Path) -> None:
    # One that takes a second: a smaller one can be done between two looks at its memory.
    network = Path(__file__).resolve().parents[2] / "examples" / "fashion" / "fashion.onnx"
    request = request_for(network, builder=BuilderOptions(memory_cap_bytes=60 * MIB))
    with pytest.raises(ResourceError, match="stopped for its memory"):
        tensorrt_rtx.build(request, tmp_path / "engine")
    assert list((tmp_path / "engine").iterdir()) == []


@rtx
@needs_rtx
def test_a_graph_is_tried_without_what_only_the_device_is_asked_for(
    residual_path: Path, tmp_path: Path
) -> None:
    asked = EngineRequest(
        model_path=residual_path, name="net", target=load_target("jetson-orin-nx-16gb"),
        precision="fp16", dla_core=0, builder=BuilderOptions(strip=True, typing="flags"),
    )  # fmt: skip
    compiled = tensorrt_rtx.compile_model(asked, tmp_path / "e", compute_capability="8.6")
    assert [spec.name for spec in compiled.outputs] == ["logits"]
    with pytest.raises(InputError, match="cannot build this engine") as refusal:
        tensorrt_rtx.build(request_for(residual_path, dla_core=0), tmp_path / "engine")
    assert "sees 0 here" in refusal.value.got
