"""A watched child: what it says, what it takes, what ends it, and what is left of it: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.engines.processes import watched
from edgekit.engines.processes.oom import OomWitness
from edgekit.engines.processes.watched import Ending, Limits, run_watched
from edgekit.values import Figure, Unknown

MIB = 1 << 20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def run(
    code: str, limits: Limits | None = None, lines: list[str] | None = None,
    ticks: list[tuple[float, Figure]] | None = None,
) -> Ending:  # fmt: skip
    return run_watched(
        [sys.executable, "-c", code],
        first_line="hello",
        limits=limits or Limits(),
        on_line=(lines if lines is not None else []).append,
        on_tick=lambda seconds, used: None if ticks is None else ticks.append((seconds, used)),
    )


def test_a_child_gets_its_line_and_all_that_it_says_comes_back() -> None:
    lines: list[str] = []
    code = "import sys\nprint(input())\nfor i in range(3000): print(i)\nsys.stderr.write('moan')"
    end = run(code, lines=lines)
    assert [line.strip() for line in lines] == ["hello", *map(str, range(3000))]
    assert (end.returncode, end.stderr, end.stopped, end.proof) == (0, "moan", "", "")


def test_a_child_that_dies_before_it_reads_is_no_broken_pipe() -> None:
    end = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert end.returncode == -signal.SIGKILL
    assert end.stopped == ""
    assert end.proof == ""


@linux
def test_a_child_that_takes_more_than_it_may_is_stopped_and_its_peak_is_told() -> None:
    code = "import time\nkept = bytearray(200 << 20)\nkept[::4096] = b'x' * len(kept[::4096])\n"
    end = run(code + "time.sleep(60)", Limits(memory_bytes=100 * MIB, seconds=30))
    assert end.stopped == "memory"
    assert not isinstance(end.peak_bytes, Unknown)
    assert end.peak_bytes > 100 * MIB
    assert end.seconds < 20
    assert end.returncode < 0


@linux
def test_the_memory_of_grandchildren_counts() -> None:
    grandchild = "import time; kept = b'x' * (200 << 20); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    end = run(code, Limits(memory_bytes=150 * MIB, seconds=30))
    assert end.stopped == "memory"


@linux
def test_a_machine_that_runs_out_of_memory_stops_the_child() -> None:
    end = run("import time; time.sleep(60)", Limits(least_available_bytes=1 << 60, seconds=30))
    assert end.stopped == "available"


def test_a_child_that_takes_too_long_is_stopped_though_it_ignores_the_first_signal() -> None:
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(1, flush=True)"
    )
    end = run(code + "\nwhile True: time.sleep(1)", Limits(seconds=0.5))
    assert end.stopped == "time"
    assert 0.5 <= end.seconds < 5
    assert end.returncode == -signal.SIGKILL


def test_a_silent_child_is_told_of_every_second() -> None:
    ticks: list[tuple[float, Figure]] = []
    run("import time; time.sleep(1.5)", ticks=ticks)
    assert len(ticks) >= 2
    seconds, used = ticks[-1]
    assert seconds >= 1
    assert not isinstance(used, Unknown)
    assert used > MIB


@pytest.fixture
def pid_file(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "pids"
    yield place
    for pid in place.read_text().split():
        assert ended(int(pid)), f"process {pid} is still there"


def ended(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


GROUP = """
import os, subprocess, sys, time
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({place!r}, "w").write(f"{{os.getpid()}} {{inner.pid}}")
print("there", flush=True)
time.sleep(600)
"""


def interrupt(line: str) -> None:
    raise KeyboardInterrupt


@linux
def test_an_interrupt_leaves_nothing_of_the_group_within_a_second(pid_file: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_watched(
            [sys.executable, "-c", GROUP.format(place=str(pid_file))], first_line="",
            limits=Limits(seconds=30), on_line=interrupt, on_tick=lambda seconds, used: None,
        )  # fmt: skip
    begun_to_end = time.monotonic() - begun
    assert len(pid_file.read_text().split()) == 2
    assert begun_to_end < 10


@linux
def test_a_grandchild_that_outlives_its_parent_is_ended_too(pid_file: Path) -> None:
    code = GROUP.format(place=str(pid_file)).replace("time.sleep(600)\n", "")
    assert run(code).returncode == 0
    assert len(pid_file.read_text().split()) == 2


def tree(root: Path, *, cgroup: str, counters: dict[str, str]) -> Path:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in counters.items():
        place = root / "sys" / "fs" / "cgroup" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "counter"),
    [
        ("0::/user.slice/build\n", "user.slice/build/memory.events"),
        ("0::/not/seen/from/in/here\n", "memory.events"),
        ("4:memory:/docker/1\n0::/\n", "memory/docker/1/memory.oom_control"),
        ("4:memory:/docker/1\n", "memory/memory.oom_control"),
        ("3:cpuset,memory:/x\n", "memory/x/memory.oom_control"),
    ],
)
def test_a_kill_that_the_control_group_counts_is_proof(
    tmp_path: Path, cgroup: str, counter: str
) -> None:
    root = tree(tmp_path, cgroup=cgroup, counters={counter: "low 0\noom 7\noom_kill 2\n"})
    witness = OomWitness(root)
    assert witness.proof([1]) == ""
    (root / "sys" / "fs" / "cgroup" / counter).write_text("low 0\noom 9\noom_kill 3\n")
    assert "counts 1 more killed for memory" in witness.proof([1])


def test_without_counters_there_is_no_proof(tmp_path: Path) -> None:
    witness = OomWitness(tmp_path)
    assert witness.proof([1]) == ""
    witness.close()


def test_only_a_process_that_the_kernels_log_names_was_killed_for_memory(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    log = tmp_path / "dev" / "kmsg"
    log.write_text("3,1,1,-;Out of memory: Killed process 41 (python) total-vm:1kB\n")
    witness = OomWitness(tmp_path)
    with log.open("a") as stream:
        stream.write("3,2,2,-;Memory cgroup out of memory: Killed process 42 (python)\n")
    assert witness.proof([41, 43]) == ""
    witness = OomWitness(tmp_path)
    with log.open("a") as stream:
        stream.write("3,3,3,-;Out of memory: Killed process 43 (python) total-vm:1kB\n")
    assert "Killed process 43" in witness.proof([41, 43])
    witness.close()


def own_memory_group() -> Path | None:
    """A new control group below ours with a limit of 150 MiB; None where this is not allowed."""
    root = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            place, limit = root / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
        elif not controllers and (root / "cgroup.controllers").exists():
            place, limit = root / path.lstrip("/"), "memory.max"
        else:
            continue
        group = place / f"edgekit-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(150 * MIB))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        return group
    return None


@linux
def test_a_real_kill_for_memory_is_proved() -> None:
    group = own_memory_group()
    if group is None:
        pytest.skip("no control group with a memory limit may be made here")
    code = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from edgekit.engines.processes.watched import *
end = run_watched(
    [sys.executable, "-c", "input()\\nkept = [b'x' * (8 << 20) for _ in range(100)]"],
    first_line="", limits=Limits(seconds=60), on_line=print, on_tick=lambda seconds, used: None,
)
print(end.returncode, end.proof or "no proof", sep="|")
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(group)], capture_output=True, text=True, check=True,
            env={**watched.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=90,
        )  # fmt: skip
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.02)
    returncode, proof = done.stdout.strip().split("|")
    assert int(returncode) == -signal.SIGKILL
    assert "counts 1 more killed for memory" in proof or "Killed process" in proof
