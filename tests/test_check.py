"""`edgekit check`: an engine's manifest against a machine, before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import api, files
from edgekit.bench.workload import Plan
from edgekit.engines import tensorrt_rtx
from edgekit.engines.base import Engine
from edgekit.engines.fit import Meaning, check_engine, require_fit
from edgekit.engines.here import facts_here, processor_here
from edgekit.engines.manifest import load_engine, write_manifest
from edgekit.errors import InputError
from edgekit.models.source import load
from edgekit.pipeline.alone import verify_files
from edgekit.pipeline.benching import BenchRequest, bench_engines
from edgekit.pipeline.origin import Origin

ORIN = {
    "machine": "aarch64", "system": "Linux", "compute_capability": "8.7",
    "device": "NVIDIA Jetson Orin Nano Developer Kit", "tensorrt": "10.3.0.30", "cuda": "12.6.68",
    "jetpack": "6.2", "l4t": "36.4.3", "power_mode": "MAXN_SUPER",
}  # fmt: skip
VNNI = {"machine": "x86_64", "system": "Linux", "cpu": "one", "onnxruntime": "1.23.2",
        "cpu_flags": "avx2 avx512_vnni avx512f", "cores": "4"}  # fmt: skip


UNWRITTEN = Engine(
    path=Path("model.engine"), name="net", target="jetson-orin-nano-8gb", runtime="tensorrt",
    runtime_version="10.3.0.30", precision="int8", sha256="0" * 64, file_bytes=6,
    model_sha256="0" * 64, inputs=(), outputs=(),
)  # fmt: skip


def engine(folder: Path, runtime: str, version: str, **fields: object) -> Engine:
    place = folder / "model.engine"
    place.write_bytes(b"a plan")
    made = replace(
        UNWRITTEN, path=place, runtime=runtime, runtime_version=version,
        sha256=files.digest_file(place),
    )  # fmt: skip
    made = replace(made, **fields)  # type: ignore[arg-type]
    write_manifest(made)
    return made


def plan(folder: Path, **fields: object) -> Engine:
    return engine(folder, "tensorrt", "10.3.0.30", **{"built_for": ORIN, **fields})


def meanings(made: Engine, here: Mapping[str, str]) -> dict[str, str]:
    return {row.what: row.meaning.value for row in check_engine(made, here).rows}


def test_a_plan_fits_the_machine_that_built_it(tmp_path: Path) -> None:
    fit = check_engine(plan(tmp_path), ORIN)
    assert {row.meaning for row in fit.rows} == {Meaning.SAME}
    assert (fit.exit_code, fit.advice) == (0, "")


@pytest.mark.parametrize(
    ("what", "key", "value"),
    [
        ("TensorRT", "tensorrt", "10.3.0.26"),
        ("TensorRT", "tensorrt", "8.6.2.3"),
        ("TensorRT", "tensorrt", "10.16.2.10"),
        ("compute capability", "compute_capability", "8.6"),
        ("architecture", "machine", "x86_64"),
        ("operating system", "system", "Windows"),
    ],
)
def test_what_a_plan_belongs_to_must_be_equal(
    tmp_path: Path, what: str, key: str, value: str
) -> None:
    made = plan(tmp_path)
    fit = check_engine(made, {**ORIN, key: value})
    assert [row.what for row in fit.rows if row.meaning is Meaning.REBUILD] == [what]
    assert fit.exit_code == 2
    assert "edgekit build --from" in fit.advice
    row = next(row for row in fit.rows if row.what == what)
    assert row.here == value


@pytest.mark.parametrize("key", ["tensorrt", "compute_capability", "machine", "system"])
def test_what_a_plan_belongs_to_and_nobody_knows_is_unknown(tmp_path: Path, key: str) -> None:
    here = {name: value for name, value in ORIN.items() if name != key}
    fit = check_engine(plan(tmp_path), here)
    assert (fit.verdict, fit.exit_code) == (Meaning.UNKNOWN, 3)
    assert "edgekit check" in fit.advice


@pytest.mark.parametrize("key", ["compute_capability", "machine", "system"])
def test_what_the_manifest_does_not_say_is_unknown(tmp_path: Path, key: str) -> None:
    known = {name: value for name, value in ORIN.items() if name != key}
    assert check_engine(plan(tmp_path, built_for=known), ORIN).exit_code == 3


def test_a_known_contradiction_outweighs_what_is_not_known(tmp_path: Path) -> None:
    here = {"machine": "x86_64", "system": "Linux"}
    assert check_engine(plan(tmp_path), here).exit_code == 2


def test_another_mode_or_module_is_slower_and_another_library_harmless(tmp_path: Path) -> None:
    here = {**ORIN, "power_mode": "15W", "device": "another module", "jetpack": "6.2.1"}
    found = meanings(plan(tmp_path), here)
    assert found["power mode"] == found["device"] == "slower"
    assert found["JetPack"] == "harmless"
    assert check_engine(plan(tmp_path), here).exit_code == 0


@pytest.mark.parametrize(
    ("built", "here", "meaning"),
    [
        ("10.3.0", "10.3.0.30", "same"),  # the module prints three numbers, the package four
        ("10.3.0.30", "10.3.0.30-1+cuda12.5", "same"),
        ("10.3", "10.3.0.30", "must rebuild"),  # two numbers name no one version
        ("10.3.0.30", "10.3.1", "must rebuild"),
    ],
)
def test_versions_are_compared_number_by_number(
    tmp_path: Path, built: str, here: str, meaning: str
) -> None:
    made = plan(tmp_path, runtime_version=built)
    assert meanings(made, {**ORIN, "tensorrt": here})["TensorRT"] == meaning


def cpu_engine(folder: Path, **fields: object) -> Engine:
    return engine(folder, "onnxruntime", "1.23.2", **{"built_for": VNNI, **fields})


def test_int8_for_vnni_is_built_again_where_its_products_would_saturate(tmp_path: Path) -> None:
    here = {**VNNI, "cpu_flags": "avx2"}
    assert check_engine(cpu_engine(tmp_path), here).exit_code == 2
    in_float = check_engine(cpu_engine(tmp_path, precision="fp32"), here)
    assert (in_float.verdict, in_float.exit_code) == (Meaning.SLOWER, 0)
    assert "avx512_vnni, avx512f" in next(row.said for row in in_float.rows if row.said)


def test_a_processor_that_can_more_is_harmless(tmp_path: Path) -> None:
    here = {**VNNI, "cpu_flags": "amx_int8 avx2 avx512_vnni avx512f"}
    assert check_engine(cpu_engine(tmp_path), here).verdict is Meaning.HARMLESS


def test_int8_of_another_architecture_is_built_again(tmp_path: Path) -> None:
    here = {**VNNI, "machine": "aarch64", "cpu_flags": "asimd asimddp"}
    assert check_engine(cpu_engine(tmp_path), here).exit_code == 2
    assert check_engine(cpu_engine(tmp_path, precision="fp32"), here).exit_code == 0


@pytest.mark.parametrize(
    ("here", "code"), [("1.32.0", 0), ("1.23.2", 0), ("1.23.1", 3), ("1.9.0", 3), ("", 3)]
)
def test_an_older_runtime_is_unknown_and_a_newer_one_harmless(
    tmp_path: Path, here: str, code: int
) -> None:
    assert check_engine(cpu_engine(tmp_path), {**VNNI, "onnxruntime": here}).exit_code == code


def test_cores_matter_only_where_settings_were_searched(tmp_path: Path) -> None:
    here = {**VNNI, "cores": "2"}
    assert "cores" not in meanings(cpu_engine(tmp_path), here)
    searched = cpu_engine(tmp_path, settings={"searched": "8 s"})
    assert meanings(searched, here)["cores"] == "slower"


WORDS = st.text("abcdefg.0123456789 ", min_size=1, max_size=12)
SOFT = st.dictionaries(
    st.sampled_from(["device", "power_mode", "cuda", "driver", "jetpack", "l4t", "cpu", "cores"]),
    WORDS,
)


@given(SOFT, WORDS, WORDS, WORDS, st.sampled_from(["tensorrt", "tensorrt_rtx", "onnxruntime"]))
def test_every_engine_fits_where_it_was_built(
    soft: dict[str, str], version: str, system: str, architecture: str, runtime: str
) -> None:
    facts = {**soft, "system": system, "machine": architecture, "compute_capability": "8.7",
             "cpu_flags": "avx2", runtime: version}  # fmt: skip
    made = replace(UNWRITTEN, runtime=runtime, runtime_version=version, built_for=facts)
    fit = check_engine(made, facts)
    assert (fit.verdict, fit.exit_code, fit.advice) == (Meaning.SAME, 0, "")


@given(SOFT, SOFT)
def test_what_is_only_noted_never_refuses_a_plan(
    built: dict[str, str], here: dict[str, str]
) -> None:
    hard = {"system": "Linux", "machine": "aarch64", "compute_capability": "8.7"}
    made = replace(UNWRITTEN, built_for={**built, **hard})
    assert check_engine(made, {**here, **hard, "tensorrt": "10.3.0.30"}).exit_code == 0


def check(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit.cli", "check", str(folder), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_verb_passes_an_engine_that_was_built_here(residual_path: Path, tmp_path: Path) -> None:
    built = api.build(load(residual_path), tmp_path / "engine")
    done = check(built.path.parent, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["verdict"], said["runtime"], said["exit_code"]) == ("same", "onnxruntime", 0)
    assert {row["what"] for row in said["rows"]} >= {"ONNX Runtime", "architecture"}


def test_the_verb_shows_what_differs_and_how_to_rebuild(tmp_path: Path) -> None:
    plan(tmp_path, built_for={**ORIN, "machine": "riscv64"})
    done = check(tmp_path)
    assert done.returncode == 2
    assert "must rebuild" in " ".join(done.stderr.split())
    assert "edgekit build --from" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_verb_refuses_a_file_that_is_not_the_manifests(tmp_path: Path) -> None:
    plan(tmp_path).path.write_bytes(b"a plam")
    done = check(tmp_path, "--json")
    assert done.returncode == 2
    assert "SHA-256" in json.loads(done.stdout)["error"]["got"]


def test_opening_and_measuring_refuse_it_before_the_runtime_sees_it(
    residual_path: Path, tmp_path: Path
) -> None:
    built = api.build(load(residual_path), tmp_path / "engine")
    elsewhere = replace(
        built, precision="int8", built_for={**processor_here(), "machine": "another"}
    )
    write_manifest(elsewhere)
    folder = elsewhere.path.parent
    data = tmp_path / "data.npz"
    np.savez(data, image=np.zeros((2, 3, 8, 8), np.float32))
    model, engine = Origin(place=str(residual_path)), Origin(place=str(folder))
    for refused in (
        lambda: api.open(folder),
        lambda: bench_engines(
            BenchRequest(
                engines=(folder,),
                data=str(data),
                plan=Plan(seconds=1.0, rounds=2, warmup_seconds=0.0),
            )
        ),
        lambda: verify_files(model, engine, data=str(data), recipe=None, metric=None),
        lambda: require_fit(load_engine(elsewhere.path)),
    ):
        with pytest.raises(InputError, match="built for another machine") as refusal:
            refused()
        assert refusal.value.got == f"architecture: {facts_here()['machine']}"
        assert refusal.value.wanted == "architecture: another"


@pytest.mark.rtx
@pytest.mark.skipif(not tensorrt_rtx.is_installed(), reason="needs the rtx extra")
def test_an_engine_for_a_gpu_fits_that_gpu_alone(residual_path: Path, tmp_path: Path) -> None:
    built = api.build(load(residual_path), tmp_path / "engine", target="rtx-3060")
    without = {name: v for name, v in facts_here().items() if name != "compute_capability"}
    assert check_engine(built, without).exit_code == 3
    for capability, code in (("8.6", 0), ("8.9", 2), ("7.5", 2)):
        assert check_engine(built, {**without, "compute_capability": capability}).exit_code == code
    newer = {**without, "compute_capability": "8.6", "tensorrt_rtx": "1.8.0.1"}
    assert check_engine(built, newer).exit_code == 2
