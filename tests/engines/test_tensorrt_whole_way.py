"""`edgekit build --from` where TensorRT and pycuda are packages: stand-ins, and all else real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import device_recipes
import pytest
import tensorrt_stand_in
from tensorrt_names import VERSION

from edgekit.bench.measurement import load_measurements
from edgekit.engines.here import facts_here
from edgekit.engines.manifest import load_engine
from edgekit.values import Unknown


@pytest.fixture
def someone(residual_path: Path, tmp_path: Path) -> Path:
    """A recipe for a Jetson that any machine may be."""
    return device_recipes.write(
        residual_path, tmp_path / "device", {"image": device_recipes.two_batches()},
        target=device_recipes.anonymous(),
    ).folder  # fmt: skip


def site(folder: Path, release: str) -> Path:
    """A folder with packages `tensorrt` and `pycuda`."""
    here = f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
    folder.mkdir()
    (folder / "tensorrt.py").write_text(
        f"{here}import tensorrt_stand_in\n"
        f"sys.modules[__name__] = tensorrt_stand_in.package({release!r})\n"
    )
    (folder / "pycuda.py").write_text(
        f"{here}from pycuda_stand_in import PycudaDriver\ndriver = PycudaDriver()\n"
    )
    described = folder / f"tensorrt-{VERSION[release]}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Name: tensorrt\nVersion: {VERSION[release]}\n")
    return folder


@pytest.mark.skipif("driver" in facts_here(), reason="a real CUDA would be given made-up streams")
def test_a_device_recipe_is_built_verified_and_measured_by_tensorrt(
    someone: Path, tmp_path: Path
) -> None:
    packages = site(tmp_path / "site", "10.3")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(packages), *filter(None, sys.path)]),
        "PATH": "/nowhere",
        tensorrt_stand_in.KNOBS: json.dumps({"record": str(tmp_path / "record.json")}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.cli", "build", "--from", str(someone), "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode in (0, 3, 4), done.stderr  # a busy machine's speed may be undecided
    (target,) = json.loads(done.stdout)["targets"]
    checks = {check["name"]: check for check in target["checks"]}
    assert checks["min_golden_cosine"]["value"] > 0.9999
    assert checks["min_golden_cosine"]["verdict"] == "pass"
    assert target["after"]["fps"] > 1
    assert any("two builds of the same model may differ" in note for note in target["notes"])
    (measured,) = load_measurements(someone / "built" / "measurement.json")
    assert any("it runs without a CUDA graph" in doubt for doubt in measured.doubts)
    engine = load_engine(someone / "built" / "engine")
    assert (engine.runtime, engine.runtime_version) == ("tensorrt", VERSION["10.3"])
    assert not isinstance(engine.layers, Unknown)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["release"] == "10.3"
    assert "INT8" in record["flags"] or engine.precision != "int8"
