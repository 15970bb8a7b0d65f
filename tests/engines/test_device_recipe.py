"""What a build host hands to a device: written whole, read whole, and refused where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import device_recipes
import numpy as np
import onnx
import pytest
from conftest import residual_graph
from onnx import TensorProto, helper

from edgekit import files
from edgekit.engines.base import EngineRequest
from edgekit.engines.device_recipe.document import (
    BenchPlan,
    GoldenBatch,
    load_device_recipe,
    refuse_other_version,
)
from edgekit.engines.device_recipe.writing import runtimes_of, write_device_recipe
from edgekit.errors import InputError
from edgekit.targets import load_target

IMAGES = device_recipes.two_batches()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recipe")
    onnx.save(residual_graph(), place / "net.onnx")
    device_recipes.write(place / "net.onnx", place / "device", {"image": IMAGES})
    return place / "device"


def test_it_holds_everything_and_its_hashes(written: Path, residual_path: Path) -> None:
    recipe = load_device_recipe(written)
    found = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    assert found == set(recipe.files)
    for name, digest in recipe.sha256.items():
        assert files.digest_file(written / name) == digest
    assert (written / "model.onnx").read_bytes() == residual_path.read_bytes()
    assert recipe.batch == 2
    assert recipe.samples == 4
    raw = np.fromfile(written / "golden" / "batch-1-input-0.bin", np.float32)
    np.testing.assert_array_equal(raw.reshape(2, 3, 8, 8), IMAGES[2:])
    np.testing.assert_array_equal(recipe.golden[1].inputs["image"], IMAGES[2:])


def test_each_build_says_it_for_trtexec_and_for_python(written: Path) -> None:
    builds = load_device_recipe(written).builds
    assert {build["jetpack"] for build in builds} >= {"6.2", "7.2"}
    for build in builds:
        assert build["trtexec"][0] == "--onnx=model.onnx"
        python = build["python"]
        assert python["profiles"] == {"image": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]}
        assert python["builder_flags"] == ["FP16"]
        assert ("--fp16" in build["trtexec"]) is not python["strongly_typed"]


def test_equal_requests_leave_equal_bytes(residual_path: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = device_recipes.write(residual_path, tmp_path / name, {"image": IMAGES})
    for file in made.files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    "name", ["model.onnx", "golden.npz", "golden/batch-0-input-0.bin", "build.sh"]
)
@pytest.mark.parametrize("place", [0, 0.37, 1])
def test_one_flipped_bit_is_refused_and_the_file_is_named(
    written: Path, tmp_path: Path, name: str, place: float
) -> None:
    shutil.copytree(written, tmp_path / "device")
    path = tmp_path / "device" / name
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match="not the one that was written") as caught:
        load_device_recipe(tmp_path / "device")
    assert caught.value.where == str(path)


def test_no_flipped_bit_of_its_document_changes_what_it_says(written: Path, tmp_path: Path) -> None:
    whole = load_device_recipe(written)
    shutil.copytree(written, tmp_path / "device")
    path = tmp_path / "device" / "device.json"
    text = path.read_bytes()
    for place in range(0, len(text), max(1, len(text) // 150)):
        content = bytearray(text)
        content[place] ^= 1
        path.write_bytes(content)
        try:
            found = load_device_recipe(tmp_path / "device")
        except InputError:
            continue
        # White space between JSON's words says nothing.
        assert chr(text[place]).isspace()
        assert (found.stamp, found.judging) == (whole.stamp, whole.judging)


@pytest.mark.parametrize("name", ["model.onnx", "golden/batch-1-input-0.bin", "device.json"])
def test_a_part_of_one_is_refused(written: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(written, tmp_path / "device")
    (tmp_path / "device" / name).unlink()
    with pytest.raises(InputError) as caught:
        load_device_recipe(tmp_path / "device")
    assert caught.value.where == str(tmp_path / "device" / name)


def test_one_of_another_format_is_refused(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "device")
    path = tmp_path / "device" / "device.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"format": 1}))
    with pytest.raises(InputError, match="another format"):
        load_device_recipe(tmp_path / "device")


def write_with(residual_path: Path, tmp_path: Path, golden: list[GoldenBatch]) -> None:
    request = EngineRequest(
        model_path=residual_path, name="net", target=device_recipes.ORIN, precision="fp16",
        batch=(1, 2, 4),
    )  # fmt: skip
    write_device_recipe(
        request, tmp_path / "device", golden=golden, samples=2, judging={},
        bench=BenchPlan(seconds=1, rounds=2, warmup_seconds=0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ({"picture": IMAGES[:2]}, {"logits": IMAGES[:2]}, "golden inputs are not the model's"),
        ({"image": IMAGES[:2]}, {"scores": IMAGES[:2]}, "golden outputs are not the model's"),
        ({"image": np.zeros((5, 3, 8, 8), np.float32)}, {"logits": IMAGES}, "does not fit"),
        ({"image": np.zeros((2, 3, 8, 8), np.float64)}, {"logits": IMAGES}, "does not fit"),
    ],
    ids=["input", "output", "batch", "type"],
)
def test_golden_arrays_of_another_model_are_refused(
    residual_path: Path, tmp_path: Path, inputs: dict, outputs: dict, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        write_with(residual_path, tmp_path, [GoldenBatch(inputs=inputs, outputs=outputs)])


def test_a_model_in_several_files_is_refused(residual_path: Path, tmp_path: Path) -> None:
    model = onnx.load(residual_path)
    onnx.save(
        model, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data",
        size_threshold=0,
    )  # fmt: skip
    with pytest.raises(InputError, match="holds one ONNX file"):
        device_recipes.write(tmp_path / "apart.onnx", tmp_path / "device", {"image": IMAGES})


def test_without_golden_inputs_there_is_no_recipe(residual_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs golden inputs"):
        write_with(residual_path, tmp_path, [])


def test_only_jetpacks_that_read_the_same_model_are_in_it() -> None:
    target = load_target("jetson-orin-nano-8gb")
    found = {runtime.jetpack: runtime for runtime in runtimes_of(target, 17)}
    assert target.runtime.jetpack in found
    assert len({runtime.dialect for runtime in found.values()}) == 1
    assert all(runtime.opset >= 17 for runtime in found.values())
    majors = {int(runtime.version.partition(".")[0]) for runtime in found.values()}
    assert min(majors) == int(target.runtime.version.partition(".")[0])
    assert [r.jetpack for r in runtimes_of(target, 99)] == [target.runtime.jetpack]


@pytest.mark.parametrize(
    ("target", "dtype"), [("jetson-xavier-nx-8gb", np.int32), ("jetson-orin-nano-8gb", np.int64)]
)
def test_tensorrt_8_gets_its_int64_inputs_as_int32(
    tmp_path: Path, target: str, dtype: type[np.generic]
) -> None:
    nodes = [
        helper.make_node("Cast", ["n"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["c", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("n", TensorProto.INT64, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    onnx.save(model, tmp_path / "n.onnx")
    values = np.arange(6, dtype=np.int64).reshape(2, 3)
    recipe = device_recipes.write(
        tmp_path / "n.onnx", tmp_path / "device", {"n": values}, target=load_target(target)
    )
    raw = np.fromfile(tmp_path / "device" / "golden" / "batch-0-input-0.bin", dtype)
    assert raw.tolist() == [0, 1, 2, 3, 4, 5]
    assert recipe.golden[0].inputs["n"].dtype == np.int64
    sides = {int(build["runtime"]["version"].partition(".")[0]) >= 9 for build in recipe.builds}
    assert sides == {dtype is np.int64}


def test_a_tensorrt_of_another_generation_is_refused(written: Path) -> None:
    recipe = load_device_recipe(written)
    refuse_other_version(recipe, "10.3.0")
    for version in ("8.5.2", "11.1.0", "8.2.1"):
        with pytest.raises(InputError, match="no settings for"):
            refuse_other_version(recipe, version)


def test_the_script_says_what_it_is_and_names_no_place_of_its_maker(written: Path) -> None:
    text = (written / "build.sh").read_text()
    assert text.startswith("#!/bin/sh\n# net for Jetson Orin Nano 8 GB\n")
    assert str(written.parent) not in text
