"""A gate held to what was measured before: which baseline, how it is compared, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import device_recipes
import numpy as np
import pytest
from conftest import RESIDUAL_RECIPE
from junitparser import JUnitXml
from measurements import CONDITIONS, made
from typer.testing import CliRunner

from edgekit.bench.measurement import load_measurements
from edgekit.bench.noise_floor import NoiseFloor, store
from edgekit.cli import app
from edgekit.engines import onnxruntime
from edgekit.engines.base import Engine, EngineRequest
from edgekit.engines.manifest import load_engine
from edgekit.errors import InputError
from edgekit.history import LAST_PASSED, Revision, history_file, open_history
from edgekit.pipeline.from_recipe import FromRequest, build_from
from edgekit.pipeline.past import Past, past_of, remember
from edgekit.pipeline.result import TargetResult
from edgekit.pipeline.revision import revision_of
from edgekit.recipe import load_recipe
from edgekit.targets import load_target
from edgekit.values import Check, Unknown, Verdict


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def past(tmp_path: Path) -> Past:
    return Past(path=tmp_path / "h.sqlite", model="net", target="cpu", pick=LAST_PASSED)


def floor(share: float) -> None:
    machine = {name: CONDITIONS[name] for name in ("host", "cpu", "governor")}
    store(NoiseFloor(
        target="cpu", share=share, taken_at=time.time(), plan="5 runs", engine="a" * 64,
        machine=machine,
    ))  # fmt: skip


def engine_in(folder: Path, model: Path) -> Engine:
    folder.mkdir()
    request = EngineRequest(
        model_path=model, name="net", target=load_target("cpu"), precision="fp32"
    )
    onnxruntime.build(request, folder)
    return load_engine(folder)


def passed(past: Past, *arms: object, engines: dict[str, Engine] | None = None) -> None:
    assert past.path is not None
    with open_history(past.path) as history:
        places = {arm: str(engine.path) for arm, engine in (engines or {}).items()}
        run = history.record(
            arms, model="net", target="cpu", revision=past.revision, places=places,  # type: ignore[arg-type]
        )  # fmt: skip
        history.judge(run, "int8", Verdict.PASS, "all limits are kept")


def test_a_limit_under_the_machines_own_floor_is_refused_before_anything_runs(past: Past) -> None:
    past.check({"max_regression": 0.01}, CONDITIONS)  # no floor is stored
    floor(0.031)
    with pytest.raises(InputError) as refusal:
        past.check({"max_regression": 0.03}, CONDITIONS)
    assert "at least 0.031" in refusal.value.wanted
    past.check({"max_regression": 0.031}, CONDITIONS)
    # The floor of another mode says nothing of this one.
    past.check({"max_regression": 0.03}, {**CONDITIONS, "governor": "powersave"})


def test_a_damaged_history_and_none_are_errors_before_anything_runs(past: Past) -> None:
    assert past.path is not None
    past.path.write_bytes(b"no database" * 500)
    with pytest.raises(InputError, match="damaged"):
        past.check({}, CONDITIONS)
    without = replace(past, path=None)
    without.check({"min_fps": 1}, CONDITIONS)
    with pytest.raises(InputError, match="none is kept"):
        without.check({"max_regression": 0.1}, CONDITIONS)


def test_a_first_release_has_no_baseline_and_does_not_pass(past: Past) -> None:
    past.check({"max_regression": 0.1}, CONDITIONS)
    found = past.regression([made()], "int8", 0.95)
    assert isinstance(found.value, Unknown)
    assert "has passed yet" in found.value.reason


def test_nothing_is_its_own_baseline(past: Past) -> None:
    passed(past, made(taken_at=1.0))
    found = past.regression([made(taken_at=1.0)], "int8", 0.95)
    assert isinstance(found.value, Unknown)


def test_a_stored_baseline_is_compared_beside_the_original_or_with_the_floor(past: Past) -> None:
    original = made(0.004, arm="original", engine="b" * 64)
    passed(past, original, made(0.002))
    now = [made(0.0084, arm="original", engine="b" * 64, taken_at=5e9, seed=3),
           made(0.0042, taken_at=5e9, seed=4)]  # fmt: skip
    beside = past.regression(now, "int8", 0.95)
    assert beside.value == pytest.approx(0, abs=0.01)  # the machine is slower, the engine is not
    assert "against 2 of the history" in beside.source
    alone = past.regression(now[1:], "int8", 0.95)
    assert isinstance(alone.value, Unknown)
    floor(0.02)
    alone = past.regression(now[1:], "int8", 0.95)
    assert alone.value == pytest.approx(1.1, abs=0.02)
    # A new runtime is a part of what a release costs: nothing may cancel it.
    newer = [replace(m, conditions={**m.conditions, "runtime": "onnxruntime 9"}) for m in now]
    assert past.regression(newer, "int8", 0.95).value == pytest.approx(1.1, abs=0.02)


def test_the_baselines_engine_takes_turns_where_it_can_run_again(
    past: Past, tmp_path: Path, residual_path: Path
) -> None:
    engine = engine_in(tmp_path / "old", residual_path)
    runtime = f"onnxruntime {onnxruntime.installed_version()}"
    run = made(engine=engine.sha256, conditions={"runtime": runtime})
    passed(past, run, engines={"int8": engine})
    other = replace(engine, sha256="c" * 64)
    rival = past.rival({"original": other, "int8": other})
    assert rival is not None
    assert (rival.arm, rival.engine) == ("baseline", engine)
    pair = [made(0.0022, engine="c" * 64, seed=8), made(0.002, arm="baseline", seed=9)]
    found = past.regression(pair, "int8", 0.95, rival)
    assert found.value == pytest.approx(0.1, abs=0.01)
    assert found.source.startswith("in turn with baseline, against 1 of the history")
    # An engine that has not changed is its own baseline: no arm more, no regression.
    same = past.rival({"original": engine, "int8": engine})
    assert same is not None
    assert (same.arm, same.engine) == ("int8", None)
    assert past.regression([run], "int8", 0.95, same).value == 0.0
    # Gone from its place, or under another runtime: what is stored must do.
    passed(past, made(engine="d" * 64, taken_at=2.0, conditions={"runtime": "onnxruntime 1"}))
    assert past.rival({"int8": replace(engine, sha256="d" * 64)}) is None
    (tmp_path / "old" / "manifest.json").unlink()
    assert replace(past, pick="1234567").rival({"int8": other}) is None
    assert past.rival({"int8": other}) is None


def test_a_measurement_of_no_build_is_remembered_under_its_engines_model(
    tmp_path: Path, residual_path: Path
) -> None:
    engine = engine_in(tmp_path / "engine", residual_path)
    measured = made(engine=engine.sha256)
    remember([measured], [engine], "none")
    assert not history_file().exists()
    remember([measured], [engine])
    with open_history(history_file()) as history:
        (entry,) = history.entries("net", "cpu")
        assert entry.verdict is None
        assert Path(entry.place).parent == (tmp_path / "engine").resolve()
        assert history.measurement(entry.id) == measured
        # What no gate was asked about is no baseline, unless somebody says so.
        assert isinstance(history.picked(LAST_PASSED, model="net", target="cpu"), Unknown)
        history.accept(entry.id, model="net")
        assert history.picked(LAST_PASSED, model="net", target="cpu") != ()


def git(folder: Path, *arguments: str) -> None:
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@x", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_the_revision_is_what_git_says(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    assert revision_of(folder) == Revision()  # no commit yet
    (folder / "a").write_text("1")
    git(folder, "add", "a")
    git(folder, "commit", "-qm", "one")
    git(folder, "tag", "v1")
    found = revision_of(folder)
    assert len(found.commit) == 40
    assert (found.changed, found.tags) == (False, ("v1",))
    (folder / "a").write_text("2")
    assert revision_of(folder).changed


RECIPE = (
    RESIDUAL_RECIPE
    + """
[evaluate]
metric = "fidelity"
[engine]
precision = "fp32"
[gate]
{gate}
[bench]
seconds = 0.3
rounds = 6
warmup_seconds = 0.05
processes = 1
history = "history.sqlite"
[build]
targets = ["cpu"]
"""
)


def test_a_recipe_says_where_the_history_lies_and_what_the_baseline_is(
    residual_path: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "edgekit.toml"
    recipe.write_text(RECIPE.format(gate="max_regression = 0.05"))
    found = past_of(load_recipe(recipe), "cpu")
    assert found.path == tmp_path / "history.sqlite"
    assert (found.model, found.pick) == ("residual", LAST_PASSED)
    recipe.write_text(
        RECIPE.format(gate='max_regression = 0.0\nbaseline = "v1"').replace(
            '"history.sqlite"', '"none"'
        )
    )
    found = past_of(load_recipe(recipe), "cpu")
    assert (found.path, found.pick) == (None, "v1")
    recipe.write_text(RECIPE.format(gate="min_fps = 1"))
    assert past_of(load_recipe(recipe), "cpu").pick == ""
    recipe.write_text(RECIPE.format(gate='baseline = "v1"'))
    with pytest.raises(InputError, match="fault") as refusal:
        load_recipe(recipe)
    assert "baseline is for max_regression" in refusal.value.got


def test_builds_are_remembered_judged_and_held_to_what_passed(
    residual_path: Path, tmp_path: Path
) -> None:
    samples = np.random.default_rng(3).normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", image=samples[:16])
    np.savez(tmp_path / "evaluation.npz", image=samples[16:])
    recipe = tmp_path / "edgekit.toml"
    junit = tmp_path / "gate.xml"

    def built(gate: str, *options: str) -> tuple[int, dict[str, dict[str, object]]]:
        recipe.write_text(RECIPE.format(gate=gate))
        done = CliRunner().invoke(
            app, ["build", str(recipe), "-o", str(tmp_path / "out"), "--json", "--junit",
                  str(junit), *options],
        )  # fmt: skip
        document = json.loads(done.stdout)
        assert "targets" in document, done.stdout
        (target,) = document["targets"]
        return done.exit_code, {check["name"]: check for check in target["checks"]}

    limits = "max_drop = 1.0\nmax_regression = 4.0"
    code, checks = built(limits)
    assert code == 3
    assert checks["max_regression"]["verdict"] == "inconclusive"
    (suite,) = JUnitXml.fromfile(str(junit))
    assert (suite.tests, suite.errors, suite.failures) == (2, 1, 0)
    with open_history(tmp_path / "history.sqlite") as history:
        first = history.entries("residual", "cpu")
        assert [(e.arm, e.verdict) for e in first] == [
            ("original", None), ("fp32", Verdict.INCONCLUSIVE)
        ]  # fmt: skip
        assert Path(first[1].place).is_file()
        assert history.measurement(first[1].id).samples
    # Somebody takes it for a baseline; the same engine has not become slower.
    accepted = CliRunner().invoke(
        app, ["history", str(recipe), "--accept", str(first[1].id), "--json"]
    )
    assert accepted.exit_code == 0, accepted.output
    code, checks = built(limits, "--rebench")
    assert (code, checks["max_regression"]["value"]) == (0, 0.0)
    assert "the engine is the same" in str(checks["max_regression"]["source"])
    assert JUnitXml.fromfile(str(junit)).errors == 0
    # A limit that lies within the interval of what was measured decides nothing.
    _, checks = built("min_fps = 1")
    code, straddled = built(f"min_fps = {checks['min_fps']['value']}")
    assert (code, straddled["min_fps"]["verdict"]) == (3, "inconclusive")
    assert straddled["min_fps"]["because"] == "the limit lies within the interval"
    assert JUnitXml.fromfile(str(junit)).errors == 1
    # An impossible limit fails, and its verdict stands in the history beside what passed.
    code, checks = built("min_fps = 1e9")
    assert code == 1
    assert JUnitXml.fromfile(str(junit)).failures == 1
    with open_history(tmp_path / "history.sqlite") as history:
        assert history.entries("residual")[-1].verdict is Verdict.FAIL
    # The evidence decides the same anywhere, on any day.
    replayed = CliRunner().invoke(app, ["gate", str(tmp_path / "out/residual/cpu"), "--replay"])
    assert replayed.exit_code == 1


def test_a_device_remembers_what_it_measured_of_a_device_recipe(
    residual_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "device"
    device_recipes.write(
        residual_path, folder, {"image": device_recipes.two_batches()}, target=load_target("cpu"),
        precision="fp32", rounds=6, original=residual_path,
        limits={"max_regression": 4.0, "max_drop": 0.01},
    )  # fmt: skip

    def built() -> tuple[TargetResult, Check]:
        request = FromRequest(folder=folder, rebench=True)
        (target,) = build_from(request, on_event=lambda event: None).targets
        return target, next(c for c in target.checks if c.name == "max_regression")

    target, check = built()
    assert target.verdict is Verdict.INCONCLUSIVE
    assert "has passed yet" in check.because
    with open_history(history_file(), make=False) as history:
        entries = history.entries("net", "cpu")
        assert [(e.arm, e.verdict) for e in entries] == [
            ("original", None), ("fp32", Verdict.INCONCLUSIVE)
        ]  # fmt: skip
        history.accept(entries[1].id, model="net")
    target, check = built()
    assert target.verdict is Verdict.PASS
    assert "against 2 of the history" in check.source
    assert "each beside the original" in check.source


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
most = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
from edgekit.cli import main
main()
"""


def test_a_disk_that_fills_up_after_the_run_loses_no_measurement(
    residual_path: Path, tmp_path: Path
) -> None:
    """No file may grow beyond the history's size: the run is stored, the history refuses it."""
    samples = np.random.default_rng(3).normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", image=samples[:16])
    np.savez(tmp_path / "evaluation.npz", image=samples[16:])
    (tmp_path / "edgekit.toml").write_text(RECIPE.format(gate="min_fps = 1"))
    path = tmp_path / "history.sqlite"
    with open_history(path) as history:
        history._connection.execute("CREATE TABLE padding AS SELECT zeroblob(8000000) AS bytes")
    whole = path.read_bytes()

    def built(*before: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *before, "build", "--json"], cwd=tmp_path, check=False,
            capture_output=True, text=True,
        )  # fmt: skip

    done = built("-c", FULL_DISK, str(len(whole)))
    assert done.returncode == 6, done.stdout + done.stderr
    assert json.loads(done.stdout)["error"]["what"].startswith("the disk is full")
    assert path.read_bytes() == whole
    (stored,) = (tmp_path / "build").rglob("measurements/*.json")
    kept = load_measurements(stored)
    assert all(m.samples for m in kept)
    # With room again the same run is taken from where it was kept: nothing is measured anew.
    done = built("-m", "edgekit.cli")
    assert done.returncode == 0, done.stdout + done.stderr
    with open_history(path) as history:
        entries = history.entries("residual", "cpu")
        assert [history.measurement(e.id) for e in entries] == list(kept)
        assert entries[-1].verdict is Verdict.PASS
