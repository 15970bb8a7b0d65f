"""The sidecar manifest, and what a request may ask of an input's shape."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import files
from edgekit.engines.base import Engine, EngineRequest, input_extents, runtime_module, runtime_names
from edgekit.engines.manifest import MANIFEST_FILE, load_engine, write_manifest
from edgekit.engines.processes import child
from edgekit.engines.trt.inspector import EngineLayer
from edgekit.errors import InputError
from edgekit.targets import load_target
from edgekit.values import TensorSpec, Unknown

IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 3, 8, 8))


def written_engine(folder: Path) -> Engine:
    place = folder / "model.engine"
    folder.mkdir(exist_ok=True)
    place.write_bytes(b"an engine, nothing before it")
    engine = Engine(
        path=place,
        name="net",
        target="rtx-3060",
        runtime="tensorrt_rtx",
        runtime_version="1.7",
        precision="int8",
        sha256=files.digest_file(place),
        file_bytes=place.stat().st_size,
        model_sha256="0" * 64,
        inputs=(IMAGE,),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 5)),),
        extents={"image": ((1, 3, 8, 8), (1, 3, 8, 8), (4, 3, 8, 8))},
        built_for={"compute_capability": "8.6"},
        settings={"workspace_bytes": 1 << 20},
        figures={"weight_bytes": 12.0, "activation_bytes": Unknown("the log is silent")},
        flags=("STRONGLY_TYPED",),
        layers=(EngineLayer(name="conv", kind="CaskConvolution", precision="int8"),),
        log_sha256="1" * 64,
        notes=("a note",),
    )
    write_manifest(engine)
    return engine


def request(**options: object) -> EngineRequest:
    return EngineRequest(
        model_path=Path("net.onnx"), name="net", target=load_target("cpu"), precision="fp32",
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("name", ["", "model.engine", MANIFEST_FILE])
def test_an_engine_is_loaded_by_its_folder_or_a_file_of_it(tmp_path: Path, name: str) -> None:
    engine = written_engine(tmp_path)
    assert load_engine(tmp_path / name) == engine


def test_an_unknown_figure_keeps_its_reason_in_the_manifest(tmp_path: Path) -> None:
    written_engine(tmp_path)
    stored = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert stored["figures"] == {
        "weight_bytes": 12.0, "activation_bytes": {"unknown": "the log is silent"},
    }  # fmt: skip


def test_the_engine_file_holds_nothing_but_the_engine(tmp_path: Path) -> None:
    engine = written_engine(tmp_path)
    assert engine.path.read_bytes() == b"an engine, nothing before it"


def test_one_flipped_bit_is_refused_by_the_files_name(tmp_path: Path) -> None:
    engine = written_engine(tmp_path)
    content = bytearray(engine.path.read_bytes())
    content[5] ^= 1
    engine.path.write_bytes(content)
    with pytest.raises(InputError, match="not the one that its manifest describes") as refusal:
        load_engine(tmp_path)
    assert refusal.value.where == str(engine.path)
    assert engine.sha256 in refusal.value.wanted


def changed(tmp_path: Path, **fields: object) -> None:
    written_engine(tmp_path)
    place = tmp_path / MANIFEST_FILE
    place.write_text(json.dumps({**json.loads(place.read_text()), **fields}))


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    changed(tmp_path, format=99)
    with pytest.raises(InputError, match="format 99") as refusal:
        load_engine(tmp_path)
    assert refusal.value.wanted == "format 2"


def test_a_manifest_of_the_first_format_is_still_read(tmp_path: Path) -> None:
    engine = written_engine(tmp_path)
    place = tmp_path / MANIFEST_FILE
    stored = json.loads(place.read_text())
    for field in ("flags", "layers", "log_sha256"):
        del stored[field]
    place.write_text(json.dumps({**stored, "format": 1}))
    found = load_engine(tmp_path)
    assert isinstance(found.layers, Unknown)
    assert (found.flags, found.log_sha256) == ((), "")
    assert replace(found, flags=engine.flags, layers=engine.layers, log_sha256="1" * 64) == engine


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": [{"name": "conv"}]},
        {"file": "../elsewhere.engine"},
        {"inputs": [{}]},
        {"extents": {"image": [[1]]}},
        {"runtime": "tensorrt"},
        {"figures": {"weight_bytes": None}},
    ],
)
def test_a_manifest_with_a_broken_field_is_refused(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    changed(tmp_path, **fields)
    with pytest.raises(InputError, match="cannot be read"):
        load_engine(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"'])
def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    written_engine(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text(text)
    with pytest.raises(InputError):
        load_engine(tmp_path)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no manifest"):
        load_engine(tmp_path)
    written_engine(tmp_path).path.unlink()
    with pytest.raises(InputError, match="engine file cannot be read"):
        load_engine(tmp_path)


def test_another_file_beside_the_manifest_is_no_engine(tmp_path: Path) -> None:
    written_engine(tmp_path)
    other = tmp_path / "other.engine"
    other.write_bytes(b"other")
    with pytest.raises(InputError, match="another file's"):
        load_engine(other)


def test_runtimes_are_found_by_their_file_names() -> None:
    assert {"onnxruntime", "tensorrt_rtx"} <= set(runtime_names())
    assert runtime_module("onnxruntime").PACKAGE == "onnxruntime"
    for name in ("base", "preflight", "nothing"):
        with pytest.raises(InputError, match="no runtime called"):
            runtime_module(name)


@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt", "tensorrt_rtx"])
def test_a_runtime_is_looked_up_without_what_only_a_build_needs(name: str) -> None:
    code = (
        "import sys\nfrom edgekit.engines.base import runtime_module\n"
        f"runtime_module({name!r})\n"
        "print(*({'onnx', 'onnx_ir', 'pydantic', 'torch', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=child.environment(),
    )  # fmt: skip
    assert done.stdout.strip() == ""


def test_a_dynamic_batch_takes_the_requests_batch() -> None:
    found = input_extents([IMAGE], request(batch=(1, 2, 8)))
    assert found == {"image": ((1, 3, 8, 8), (2, 3, 8, 8), (8, 3, 8, 8))}


def test_shapes_win_over_the_batch() -> None:
    shapes = {"image": ((2, 3, 8, 8), (2, 3, 8, 8), (3, 3, 8, 8))}
    assert input_extents([IMAGE], request(batch=(1, 1, 1), shapes=shapes)) == shapes


def test_a_static_input_keeps_its_shape() -> None:
    static = TensorSpec(name="image", dtype="float32", shape=(2, 3))
    assert input_extents([static], request()) == {"image": ((2, 3), (2, 3), (2, 3))}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": (2, 1, 4)}, "not in order"),
        ({"batch": (0, 1, 1)}, "does not fit"),
        ({"shapes": {"picture": ((1,), (1,), (1,))}}, 'no input "picture"'),
        ({"shapes": {"image": ((1, 3, 8), (1, 3, 8), (1, 3, 8))}}, "does not fit"),
        ({"shapes": {"image": ((1, 4, 8, 8),) * 3}}, "does not fit"),
    ],
)
def test_a_request_that_contradicts_the_model_is_refused(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        input_extents([IMAGE], request(**options))


def test_a_dynamic_height_needs_a_shape_of_its_own() -> None:
    free = TensorSpec(name="image", dtype="float32", shape=("n", 3, "h", 8))
    with pytest.raises(InputError, match='"h"') as refusal:
        input_extents([free], request())
    assert refusal.value.where == "engine.shapes.image"
