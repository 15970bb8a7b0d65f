"""The short measurement that chooses how a CPU session is run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import machine
from edgekit.engines import onnxruntime as runtime
from edgekit.engines import session_settings
from edgekit.engines.base import BuilderOptions, EngineRequest
from edgekit.engines.manifest import load_engine
from edgekit.engines.session_settings import (
    Found,
    SessionSettings,
    candidates,
    search,
    settings_from_manifest,
    unless_busy,
)
from edgekit.errors import InputError
from edgekit.targets import load_target
from edgekit.values import Array, Feeds, TensorSpec, run

DEFAULTS = SessionSettings()
QUICK, SAME = replace(DEFAULTS, spinning=False), replace(DEFAULTS, arena=False)


class Pretender:
    """A session that takes a given time, and answers with a given number."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, seconds: float, answer: float) -> None:
        self.seconds, self.answer = seconds, answer

    def stage(self, feeds: Feeds) -> None:
        pass

    def execute(self) -> None:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass

    def fetch(self) -> dict[str, Array]:
        return {"y": np.float32([self.answer])}

    def __enter__(self) -> Pretender:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def searched(
    seconds: Mapping[SessionSettings, float],
    answers: Mapping[SessionSettings, float] | None = None,
    *,
    budget: float = 2.0,
) -> SessionSettings:
    def opened(settings: SessionSettings) -> Pretender:
        if settings not in seconds:
            raise InputError("it does not open")
        return Pretender(seconds[settings], (answers or {}).get(settings, 1.0))

    return search(opened, {}, [QUICK, SAME], DEFAULTS, seconds=budget).settings


def test_what_is_clearly_faster_is_chosen() -> None:
    assert searched({DEFAULTS: 2e-3, QUICK: 1e-3, SAME: 2e-3}) == QUICK


def test_without_a_clear_winner_the_defaults_stay() -> None:
    assert searched({DEFAULTS: 1e-3, QUICK: 1e-3, SAME: 1e-3}) == DEFAULTS
    assert searched({DEFAULTS: 1e-3, QUICK: 2e-3, SAME: 2e-3}) == DEFAULTS


def test_what_changes_an_output_is_not_taken() -> None:
    seconds = {DEFAULTS: 2e-3, QUICK: 5e-4}  # nothing else that a busy machine could make quicker
    nearly = float(np.nextafter(np.float32(1), np.float32(2)))
    assert searched(seconds, {QUICK: nearly}) == DEFAULTS


def test_what_does_not_open_is_left_out() -> None:
    assert searched({DEFAULTS: 2e-3, SAME: 5e-4}) == SAME


def test_too_short_a_time_keeps_the_defaults_and_is_kept_to() -> None:
    begun = time.monotonic()
    assert searched({DEFAULTS: 2e-2, QUICK: 1e-3, SAME: 2e-2}, budget=0.1) == DEFAULTS
    assert time.monotonic() - begun < 1.0


def test_beside_other_programs_the_defaults_stay() -> None:
    found = Found(settings=QUICK, said="quick")
    count = os.cpu_count() or 1
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]

    def find() -> Found:
        time.sleep(0.5)
        return found

    try:
        chosen = unless_busy(find, DEFAULTS)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert chosen.settings == DEFAULTS
    assert "other programs used" in chosen.said


def test_what_this_process_works_is_no_other_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_settings, "_busy_s", time.process_time)

    def find() -> Found:
        end = time.perf_counter() + 0.05
        while time.perf_counter() < end:
            pass
        return Found(settings=QUICK, said="quick")

    assert unless_busy(find, DEFAULTS).settings == QUICK


@given(st.integers(1, 64), st.integers(1, 128), st.integers(0, 64))
def test_candidates_differ_from_the_base_in_one_thing(cores: int, cpus: int, asked: int) -> None:
    base = SessionSettings(threads=asked)
    tried = candidates(base, cores, cpus)
    assert base not in tried
    assert len(set(tried)) == len(tried)
    for one in tried:
        changed = [
            one.threads != base.threads, one.spinning != base.spinning, one.arena != base.arena,
        ]  # fmt: skip
        assert sum(changed) == 1
        assert one.threads in ((asked,) if asked else range(cpus + cores + 1))


@given(st.integers(0, 64), st.booleans(), st.booleans())
def test_a_manifest_keeps_the_settings(threads: int, spinning: bool, arena: bool) -> None:
    settings = SessionSettings(threads=threads, spinning=spinning, arena=arena)
    assert settings_from_manifest(settings.to_manifest()) == settings
    assert settings_from_manifest({}) == DEFAULTS


@pytest.fixture
def request_here(residual_path: Path) -> EngineRequest:
    return EngineRequest(
        model_path=residual_path, name="net", target=load_target("cpu"), precision="fp32",
        builder=BuilderOptions(search_s=3.0),
    )  # fmt: skip


def test_a_searched_engine_says_so_and_answers_as_any_other(
    request_here: EngineRequest, tmp_path: Path
) -> None:
    found = runtime.build(request_here, tmp_path / "searched")
    plain = runtime.build(replace(request_here, builder=BuilderOptions()), tmp_path / "plain")
    assert found.path.read_bytes() == plain.path.read_bytes()
    assert plain.notes == ()
    assert "searched" in found.settings
    assert "another build may find others" in found.notes[0]
    images = {"image": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    with runtime.open(load_engine(found.path)) as one, runtime.open(plain) as other:
        assert run(one, images)["logits"].tobytes() == run(other, images)["logits"].tobytes()


def test_searched_threads_are_held_to_this_machines(
    request_here: EngineRequest, tmp_path: Path
) -> None:
    engine = runtime.build(request_here, tmp_path / "engine")
    many = replace(engine, settings={**engine.settings, "threads": 4096})
    with runtime.open(many) as session:
        options = session._session.get_session_options()
    assert options.intra_op_num_threads == len(machine.usable_cpus())
