"""Memory by named source: this system's own counting, and stand-ins of other systems."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from device_stand_in import Device, NvmlLibrary, stand_in

from edgekit.bench import memory
from edgekit.bench.telemetry import Watch
from edgekit.bench.telemetry_report import Part
from edgekit.values import Figure, Unknown

MB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

HOLDER = """
import mmap, sys
held = mmap.mmap(-1, 64 << 20)
for page in range(0, 64 << 20, 4096):
    held[page] = 1
print(flush=True)
input()
"""


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return stand_in(tmp_path, monkeypatch)


def known(figure: Figure) -> float:
    assert not isinstance(figure, Unknown), figure
    return figure


@linux
def test_a_process_that_touches_64_megabytes_has_them() -> None:
    bare = HOLDER.replace("64 << 20", "1 << 20")
    found = []
    for code in (bare, HOLDER):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            found.append(memory.process_memory(child.pid))
            child.communicate(b"\n")
    for name in ("resident_bytes", "unique_bytes"):
        grown = known(getattr(found[1], name)) - known(getattr(found[0], name))
        assert grown == pytest.approx(63 * MB, rel=0.02), name


@linux
def test_this_process_is_counted_as_psutil_does() -> None:
    import psutil

    ours, theirs = memory.process_memory(), psutil.Process().memory_full_info()
    assert known(ours.resident_bytes) == pytest.approx(theirs.rss, rel=0.02)
    assert known(ours.unique_bytes) == pytest.approx(theirs.uss, rel=0.02)
    assert known(ours.unique_bytes) <= known(ours.resident_bytes)
    assert known(memory.peak_bytes()) >= 0.98 * known(memory.resident_bytes())


@linux
def test_a_peak_that_is_forgotten_does_not_come_back() -> None:
    code = (
        "from edgekit.bench import memory\n"
        "held = bytearray(64 << 20); held[::4096] = b'1' * (len(held) // 4096)\n"
        "del held\nhigh = memory.peak_bytes(); memory.forget_peak()\n"
        "print(high, memory.peak_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    high, low = map(float, done.stdout.split())
    assert high - low > 60 * MB


def test_what_the_kernel_does_not_say_is_unknown(device: Device) -> None:
    missing = memory.process_memory(root=device.root)
    assert isinstance(missing.unique_bytes, Unknown)
    assert known(missing.resident_bytes) > MB  # by psutil
    pid = os.getpid()
    device.write(f"proc/{pid}/smaps_rollup", "Rss:   2048 kB\nPrivate_Clean:  8 kB\n")
    half = memory.process_memory(pid, device.root)
    assert half.resident_bytes == 2 * MB
    assert isinstance(half.unique_bytes, Unknown)
    assert isinstance(half.swapped_bytes, Unknown)


def test_a_process_that_is_gone_is_unknown() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert isinstance(memory.process_memory(child.pid).resident_bytes, Unknown)


NVMAP = """CLIENT                        PROCESS      PID        SIZE
user                           python3     {pid}     204800K
user                      gnome shell        900      4096K
user                           python3     {pid}      1024K
total                                            209920K
"""


def test_nvmap_counts_our_processes_only(device: Device) -> None:
    pid = os.getpid()
    assert isinstance(memory.nvmap_bytes([pid], device.root), Unknown)
    device.write("sys/kernel/debug/nvmap/iovmm/clients", NVMAP.format(pid=pid))
    assert memory.nvmap_bytes([pid, 1], device.root) == {pid: 205_824 * 1024}
    assert memory.nvmap_bytes([900], device.root) == {900: 4 * MB}
    assert memory.nvmap_bytes([1], device.root) == Unknown("nvmap lists no process of ours")
    with Watch(root=device.root, interval_s=0.02, gpu_library=NvmlLibrary()) as watch:
        pass
    report = watch.finished()
    part = Part(windows=[], pids=[pid])
    assert report.figures(1.0, part)["nvmap_bytes"] == 205_824 * 1024
    beside = replace(part, pids=[900], alone=False)
    figures = report.figures(1.0, beside)
    assert isinstance(figures["nvmap_bytes"], Unknown)  # another's
    assert "several engines" in str(figures["available_drop_bytes"])


def test_every_figure_of_memory_says_what_it_is_of() -> None:
    assert set(memory.RUNTIMES_OWN) < set(memory.SOURCES)
    for name, said in memory.SOURCES.items():
        assert name.endswith("_bytes")
        assert not re.search(r"\btotal\b|\bsum\b", said)
