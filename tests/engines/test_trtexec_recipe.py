"""What a device gets to build its own engine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit import files
from edgekit.engines import trtexec
from edgekit.engines.base import EngineRequest
from edgekit.errors import InputError
from edgekit.targets import Target, load_target
from edgekit.values import Array

ORIN = load_target("jetson-orin-nano-8gb")


def target_with(version: str) -> Target:
    runtime = ORIN.runtime.model_copy(update={"version": version})
    return ORIN.model_copy(update={"runtime": runtime})


def request_for(path: Path, version: str = "10.3", **options: object) -> EngineRequest:
    return EngineRequest(
        **{  # type: ignore[arg-type]
            "model_path": path, "name": "net", "target": target_with(version),
            "precision": "int8", "workspace_bytes": 512 << 20, "batch": (1, 2, 4), **options,
        }
    )  # fmt: skip


EXTENTS = {"image": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
SHAPES = {"--minShapes=image:1x3x8x8", "--optShapes=image:2x3x8x8", "--maxShapes=image:4x3x8x8"}
ALWAYS = {
    "--onnx=model.onnx", "--saveEngine=model.engine", "--timingCacheFile=timing.cache",
    "--profilingVerbosity=detailed",
} | SHAPES  # fmt: skip


@pytest.mark.parametrize(
    ("version", "own"),
    [
        ("8.2.1", {"--workspace=512", "--int8", "--fp16", "--buildOnly"}),
        ("8.5.2", {"--memPoolSize=workspace:512", "--int8", "--fp16", "--buildOnly"}),
        ("8.6.2.3", {"--memPoolSize=workspace:512", "--int8", "--fp16", "--skipInference"}),
        ("10.3", {"--memPoolSize=workspace:512", "--int8", "--fp16", "--skipInference"}),
        ("10.16", {"--memPoolSize=workspace:512", "--int8", "--fp16", "--skipInference"}),
        ("11.1", {"--memPoolSize=workspace:512", "--skipInference"}),
    ],
)
def test_each_version_gets_the_flags_that_it_knows(version: str, own: set[str]) -> None:
    found = trtexec.trtexec_arguments(request_for(Path("net.onnx"), version), EXTENTS)
    assert set(found) == ALWAYS | own
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("precision", "flags"), [("fp32", set()), ("fp16", {"--fp16"}), ("int8", {"--fp16", "--int8"})]
)
def test_a_weakly_typed_version_is_asked_for_the_precision(precision: str, flags: set[str]) -> None:
    found = trtexec.trtexec_arguments(request_for(Path("n.onnx"), precision=precision), EXTENTS)
    assert set(found) & {"--fp16", "--int8"} == flags


def test_the_targets_own_workspace_is_used_where_the_request_has_none() -> None:
    found = trtexec.trtexec_arguments(request_for(Path("n.onnx"), workspace_bytes=None), {})
    assert "--memPoolSize=workspace:1024" in found


def test_a_static_model_has_no_shapes() -> None:
    found = trtexec.trtexec_arguments(request_for(Path("n.onnx")), {})
    assert not [argument for argument in found if "Shapes" in argument]


def test_the_dla_is_asked_for_where_the_version_has_one() -> None:
    found = trtexec.trtexec_arguments(request_for(Path("n.onnx"), dla_core=1), EXTENTS)
    assert {"--useDLACore=1", "--allowGPUFallback"} <= set(found)
    with pytest.raises(InputError, match="has no DLA"):
        trtexec.trtexec_arguments(request_for(Path("n.onnx"), "10.13", dla_core=1), EXTENTS)


@pytest.mark.parametrize("version", ["7.1", "8.1.9", "ten", ""])
def test_an_unknown_version_is_refused(version: str) -> None:
    with pytest.raises(InputError):
        trtexec.generation_of(version)


@pytest.fixture
def expected(images: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    return {"image": images[:2]}, {"logits": np.arange(10, dtype=np.float32).reshape(2, 5)}


def test_the_recipe_holds_everything_and_its_hashes(
    residual_path: Path, tmp_path: Path, expected: tuple[dict[str, Array], dict[str, Array]]
) -> None:
    inputs, outputs = expected
    folder = tmp_path / "device"
    made = trtexec.device_recipe(request_for(residual_path), folder, inputs=inputs, outputs=outputs)
    stored = json.loads((folder / "device.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == sorted(made.files)
    assert stored["argv"] == ["/usr/src/tensorrt/bin/trtexec", *made.arguments]
    assert stored["runtime"] == {"name": "tensorrt", "version": "10.3"}
    for name, digest in stored["sha256"].items():
        assert files.digest_file(folder / name) == digest
    assert (folder / "model.onnx").read_bytes() == residual_path.read_bytes()
    with np.load(folder / "expected.npz") as arrays:
        np.testing.assert_array_equal(arrays["input.image"], inputs["image"])
        np.testing.assert_array_equal(arrays["output.logits"], outputs["logits"])


def test_equal_requests_leave_equal_recipes(
    residual_path: Path, tmp_path: Path, expected: tuple[dict[str, Array], dict[str, Array]]
) -> None:
    inputs, outputs = expected
    for name in ("a", "b"):
        made = trtexec.device_recipe(
            request_for(residual_path), tmp_path / name, inputs=inputs, outputs=outputs
        )
    for file in made.files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_expected_arrays_of_another_model_are_refused(
    residual_path: Path, tmp_path: Path, expected: tuple[dict[str, Array], dict[str, Array]]
) -> None:
    inputs, outputs = expected
    with pytest.raises(InputError, match="expected outputs"):
        trtexec.device_recipe(request_for(residual_path), tmp_path, inputs=inputs, outputs=inputs)
    with pytest.raises(InputError, match="expected inputs"):
        trtexec.device_recipe(request_for(residual_path), tmp_path, inputs=outputs, outputs=outputs)


def scripted(tmp_path: Path, model: Path, inputs: dict[str, Array], fake: str) -> tuple[
    subprocess.CompletedProcess[str], Path
]:  # fmt: skip
    """The recipe's script, run with a trtexec that is a shell script."""
    folder = tmp_path / "a folder; with $signs"
    trtexec.device_recipe(
        request_for(model), folder, inputs=inputs, outputs={"logits": np.zeros((2, 5), np.float32)}
    )
    program = tmp_path / "fake trtexec"
    program.write_text(fake)
    program.chmod(0o755)
    done = subprocess.run(
        [str(folder / "build.sh")], env={**os.environ, "TRTEXEC": str(program)}, cwd="/",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done, folder


@pytest.fixture
def quoted_path(residual_path: Path, tmp_path: Path) -> Path:
    """The residual model with an input name that a shell would take apart."""
    proto = onnx.load(residual_path)
    for node in proto.graph.node:
        node.input[:] = ["in put;$x:0" if name == "image" else name for name in node.input]
    proto.graph.input[0].name = "in put;$x:0"
    path = tmp_path / "quoted.onnx"
    onnx.save(proto, path)
    return path


def test_the_script_hands_every_argument_over_whole(
    quoted_path: Path, tmp_path: Path, images: Array
) -> None:
    fake = '#!/bin/sh\nfor a; do echo "<$a>"; done >arguments\necho plan >model.engine.partial\n'
    done, folder = scripted(tmp_path, quoted_path, {"in put;$x:0": images[:2]}, fake)
    assert done.returncode == 0, done.stderr
    got = (folder / "arguments").read_text().splitlines()
    assert "<--minShapes='in put;$x:0':1x3x8x8>" in got
    assert "<--saveEngine=model.engine.partial>" in got
    wanted = json.loads((folder / "device.json").read_text())["argv"][1:]
    assert len(got) == len(wanted)
    assert (folder / "model.engine").read_text() == "plan\n"


def test_a_failed_build_leaves_no_engine(
    residual_path: Path, tmp_path: Path, images: Array
) -> None:
    fake = "#!/bin/sh\necho half >model.engine.partial\nexit 7\n"
    done, folder = scripted(tmp_path, residual_path, {"image": images[:2]}, fake)
    assert done.returncode == 7
    assert not (folder / "model.engine").exists()


def test_the_script_builds_only_the_model_that_it_came_with(
    residual_path: Path, tmp_path: Path, images: Array
) -> None:
    _, folder = scripted(tmp_path, residual_path, {"image": images[:2]}, "#!/bin/sh\nexit 1\n")
    (folder / "model.onnx").write_bytes(b"another")
    done = subprocess.run(
        [str(folder / "build.sh")], env={**os.environ, "TRTEXEC": "true"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "model.onnx: FAILED" in done.stderr + done.stdout


def test_a_device_without_trtexec_is_told_what_to_set(
    residual_path: Path, tmp_path: Path, images: Array
) -> None:
    _, folder = scripted(tmp_path, residual_path, {"image": images[:2]}, "#!/bin/sh\nexit 1\n")
    done = subprocess.run(
        [str(folder / "build.sh")], env={**os.environ, "TRTEXEC": "/nowhere/trtexec"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert "set TRTEXEC" in done.stderr
