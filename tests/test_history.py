"""The history: what was written is found again, by several processes, whatever happens to it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from measurements import made

from edgekit.errors import InputError, ResourceError
from edgekit.history import LAST_PASSED, History, Revision, history_file, open_history
from edgekit.values import Measurement, Unknown, Verdict

HERE = Path(__file__).resolve().parent
COMMITS = ("1" * 40, "2" * 40, "3" * 40)


def recorded(
    history: History, *measurements: Measurement, verdict: Verdict | None = Verdict.PASS,
    revision: Revision | None = None,
) -> str:  # fmt: skip
    run = history.record(measurements, model="net", target="cpu", revision=revision or Revision())
    if verdict is not None:
        history.judge(run, measurements[-1].arm, verdict, f"{verdict.value}: why")
    return run


def test_a_measurement_comes_back_with_every_sample_and_condition(tmp_path: Path) -> None:
    original = made(0.004, arm="original", engine="b" * 64)
    wanted = made(0.002, doubts=("busy",), broken=("wrong mode",))
    revision = Revision(commit=COMMITS[0], changed=True, tags=("v1.0", "release"))
    with open_history(tmp_path / "history.sqlite") as history:
        recorded(history, original, wanted, revision=revision)
    with open_history(tmp_path / "history.sqlite", make=False) as history:
        first, second = history.entries("net", "cpu")
        assert [history.measurement(e.id) for e in (first, second)] == [original, wanted]
    assert (first.arm, first.verdict, second.verdict) == ("original", None, Verdict.PASS)
    assert second.revision == revision
    assert second.fps == pytest.approx(500, rel=0.01)
    assert second.p99_ms == pytest.approx(2.047, rel=0.01)
    assert second.because == "pass: why"
    assert first.run == second.run


def test_rounds_that_join_a_run_take_its_place(tmp_path: Path) -> None:
    with open_history(tmp_path / "h.sqlite") as history:
        recorded(history, made(calls=120), verdict=None)
        recorded(history, made(calls=1200))
        (entry,) = history.entries("net")
        assert len(history.measurement(entry.id).samples) == 1200
        assert entry.verdict is Verdict.PASS


def test_too_few_calls_have_no_p99(tmp_path: Path) -> None:
    with open_history(tmp_path / "h.sqlite") as history:
        recorded(history, made(calls=120))
        (entry,) = history.entries("net")
    assert entry.p99_ms == Unknown("120 calls are too few")


def test_entries_are_in_the_order_of_writing_whatever_the_clock_said(tmp_path: Path) -> None:
    with open_history(tmp_path / "h.sqlite") as history:
        for index, clock in enumerate((2e9, 1e9, 1.5e9)):
            recorded(history, made(seed=index, taken_at=clock))
        assert [e.taken_at for e in history.entries("net", "cpu")] == [2e9, 1e9, 1.5e9]
        assert [e.taken_at for e in history.entries("net", most=2)] == [1e9, 1.5e9]
        found = history.baseline(LAST_PASSED, made(), model="net", target="cpu")
    assert not isinstance(found, Unknown)
    assert found.measurement.taken_at == 1.5e9


def test_baselines_are_picked_by_commit_tag_or_the_last_that_passed(tmp_path: Path) -> None:
    with open_history(tmp_path / "h.sqlite") as history:
        rows = (
            (Verdict.PASS, Revision(commit=COMMITS[0], tags=("v1",))),
            (Verdict.PASS, Revision(commit=COMMITS[1])),
            (Verdict.FAIL, Revision(commit=COMMITS[2])),
            (Verdict.INCONCLUSIVE, Revision(commit=COMMITS[2])),
        )
        for index, (verdict, revision) in enumerate(rows):
            recorded(history, made(taken_at=float(index)), verdict=verdict, revision=revision)

        def picked(pick: str) -> object:
            found = history.baseline(pick, made(), model="net", target="cpu")
            return found.reason if isinstance(found, Unknown) else found.measurement.taken_at

        assert picked("v1") == 0.0
        assert picked(COMMITS[0]) == picked(COMMITS[0][:7]) == 0.0
        assert picked(LAST_PASSED) == 1.0
        assert str(picked(COMMITS[2])).startswith("none of the 2 measurements of net on cpu at")
        assert str(picked("v9")).startswith('the history has no measurement of net on cpu at "v9"')
        assert "no measurement of net" in str(picked("111"))  # too short to name a commit
        # Somebody takes the third for a baseline by hand.
        history.accept(3, model="net")
        assert picked(LAST_PASSED) == 2.0


def test_nothing_passed_is_no_baseline(tmp_path: Path) -> None:
    with open_history(tmp_path / "h.sqlite") as history:
        recorded(history, made(), verdict=None)
        recorded(history, made(taken_at=1.0), verdict=Verdict.FAIL)
        found = history.baseline(LAST_PASSED, made(), model="net", target="cpu")
    assert isinstance(found, Unknown)
    assert found.reason.startswith("no measurement of net on cpu has passed yet")
    assert "--accept" in found.reason


def test_a_baseline_of_another_device_is_passed_over_and_said(tmp_path: Path) -> None:
    with open_history(tmp_path / "h.sqlite") as history:
        recorded(history, made(taken_at=1.0))
        recorded(history, made(taken_at=2.0, conditions={"host": "other"}))
        found = history.baseline(LAST_PASSED, made(), model="net", target="cpu")
        assert not isinstance(found, Unknown)
        assert found.measurement.taken_at == 1.0
        slow = made(conditions={"governor": "powersave"})
        refused = history.baseline(LAST_PASSED, slow, model="net", target="cpu")
    assert isinstance(refused, Unknown)
    assert "governor: performance and powersave" in refused.reason


def test_a_baseline_brings_the_original_that_took_turns_with_it(tmp_path: Path) -> None:
    original = made(0.004, arm="original", engine="b" * 64)
    with open_history(tmp_path / "h.sqlite") as history:
        recorded(history, original, made())
        found = history.baseline(LAST_PASSED, made(), model="net", target="cpu")
    assert not isinstance(found, Unknown)
    assert found.original == original


WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
from measurements import made
from edgekit.history import Revision, open_history
from pathlib import Path
for index in range(int(sys.argv[2])):
    with open_history(Path(sys.argv[1])) as history:
        clock = float(sys.argv[4]) + index
        history.record([made(taken_at=clock)], model="net", target="cpu", revision=Revision())
        print(clock, flush=True)
"""


def writer(path: Path, count: int, clock: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(count), str(HERE), str(clock)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_write_into_one_history(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    processes = [writer(path, 15, 1000.0 * n) for n in (1, 2)]
    said = [float(line) for p in processes for line in p.communicate(timeout=60)[0].split()]
    assert [p.returncode for p in processes] == [0, 0]
    with open_history(path) as history:
        assert sorted(e.taken_at for e in history.entries("net")) == sorted(said)
    assert len(said) == 30


def test_a_killed_writer_leaves_all_that_it_had_finished(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    process = writer(path, 10_000, 0.0)
    assert process.stdout is not None
    said = [float(process.stdout.readline()) for _ in range(5)]
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    said += [float(line) for line in process.communicate()[0].split()]
    with open_history(path) as history:
        entries = history.entries("net")
        clocks = [e.taken_at for e in entries]
        assert clocks[: len(said)] == said
        assert len(clocks) <= len(said) + 1  # one may be written and not yet told
        for entry in entries:
            assert len(history.measurement(entry.id).samples) == 1200


def test_a_full_disk_loses_nothing_and_invents_nothing(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    with open_history(path) as history:
        recorded(history, made(taken_at=1.0))
        (pages,) = history._connection.execute("PRAGMA page_count").fetchone()
        history._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        arms = [made(arm=name, taken_at=2.0, calls=12_000) for name in ("original", "int8")]
        with pytest.raises(ResourceError, match="the disk is full"):
            recorded(history, *arms)
        assert [e.taken_at for e in history.entries("net")] == [1.0]
        history._connection.execute("PRAGMA max_page_count = 1000000")
        recorded(history, *arms)
    with open_history(path) as history:
        assert [e.taken_at for e in history.entries("net")] == [1.0, 2.0, 2.0]


def test_an_interrupted_write_is_taken_back_whole(tmp_path: Path) -> None:
    def arms() -> list[Measurement]:
        class Interrupting(Measurement):
            @property
            def arm(self) -> str:  # type: ignore[override]
                raise KeyboardInterrupt

        second = made(arm="int8")
        object.__setattr__(second, "__class__", Interrupting)
        return [made(arm="original"), second]

    with open_history(tmp_path / "h.sqlite") as history:
        with pytest.raises(KeyboardInterrupt):
            history.record(arms(), model="net", target="cpu", revision=Revision())
        assert history.entries("net") == ()
        recorded(history, made())
        assert len(history.entries("net")) == 1


@pytest.mark.parametrize("content", [b"this is no database, but long enough" * 100, None])
def test_a_damaged_file_is_an_error_and_stays_as_it_is(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "h.sqlite"
    if content is None:  # whole at its head, broken behind
        with open_history(path) as history:
            for index in range(5):
                recorded(history, made(taken_at=float(index)))
        whole = bytearray(path.read_bytes())
        whole[4096 : len(whole)] = b"\xa5" * (len(whole) - 4096)
        content = bytes(whole)
    path.write_bytes(content)
    with (
        pytest.raises(InputError, match="the history is damaged") as refusal,
        open_history(path) as history,
    ):
        history.entries("net")
    assert refusal.value.where == str(path)
    assert "Move it away" in refusal.value.hint
    assert path.read_bytes() == content


def test_damaged_samples_are_no_measurement(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    with open_history(path) as history:
        recorded(history, made())
        history._connection.execute("UPDATE measurement SET digest = 'x'")
        with pytest.raises(InputError, match="measurement 1 of the history is damaged"):
            history.measurement(1)
        with pytest.raises(InputError, match="there is no such measurement"):
            history.measurement(7)
        with pytest.raises(InputError, match="there is no such measurement"):
            history.accept(7, model="net")


def test_a_newer_file_and_another_programs_are_refused(tmp_path: Path) -> None:
    newer, other = tmp_path / "newer.sqlite", tmp_path / "other.sqlite"
    with open_history(newer) as history:
        recorded(history, made())
    for path, statement in ((newer, "PRAGMA user_version = 2"), (other, "CREATE TABLE a (b)")):
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()
        before = path.read_bytes()
        with pytest.raises(InputError) as refusal, open_history(path):
            pass
        assert refusal.value.exit_code == 2
        assert path.read_bytes() == before


def test_no_history_is_made_by_looking(tmp_path: Path) -> None:
    missing = tmp_path / "h.sqlite"
    with (
        pytest.raises(InputError, match="there is no history yet"),
        open_history(missing, make=False),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_the_file_is_where_the_user_says_or_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert history_file() == tmp_path / "edgekit" / "history.sqlite"
    assert history_file("mine.sqlite") == Path("mine.sqlite")
    monkeypatch.setenv("HOME", "/home/somebody")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", ignored)
        assert history_file() == Path("/home/somebody/.local/share/edgekit/history.sqlite")
