"""The watch beside a run, on this machine and on stand-ins of devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from device_stand_in import FREE, MODES, PINNED, Device, NvmlLibrary, stand_in
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgekit import board
from edgekit.bench import memory, sensors
from edgekit.bench.device_state import lasting_state, read_state, state_to_json
from edgekit.bench.jetson_clocks import parse_clocks, read_clocks
from edgekit.bench.load import OtherLoad, own_cpu_s
from edgekit.bench.nvml import GpuReading, nvml
from edgekit.bench.telemetry import Watch
from edgekit.bench.telemetry_report import Part, Series, TelemetryReport
from edgekit.values import Unknown

WHOLE = Part(windows=[(0.0, float("inf"))])


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return stand_in(tmp_path, monkeypatch)


def test_a_machine_that_tells_nothing_has_nothing_invented(device: Device) -> None:
    with Watch(root=device.root, interval_s=0.05, gpu_library=NvmlLibrary()) as watch:
        time.sleep(0.12)
    report = watch.finished()
    assert report.series == {}
    assert isinstance(report.slowed, Unknown)
    figures = report.figures(100.0, WHOLE)
    known = {name for name, value in figures.items() if not isinstance(value, Unknown)}
    assert known == {"other_load_share", "telemetry_cost_share"}
    for name in ("mean_power_w", "joules_per_sample", "start_temperature_c", "gpu_memory_bytes"):
        assert str(figures[name]).startswith("unknown ("), name
    assert isinstance(read_state(device.root).power_mode, Unknown)
    assert lasting_state(device.root) == {}


def test_this_machine_is_watched_and_the_watch_costs_little() -> None:
    with Watch(interval_s=0.05) as watch:
        time.sleep(0.5)
    report = watch.finished()
    assert report is watch.finished()
    assert 0.4 < report.ended_s - report.began_s < 5
    readings = report.series["available_bytes"]
    assert len(readings.values) >= 3
    assert min(readings.values) > 2**24
    assert list(readings.at_s) == sorted(readings.at_s)
    assert 0 < report.cost_share < 0.5
    assert not isinstance(report.other_load, Unknown)
    assert 0 <= report.other_load <= 1


def test_what_was_seen_is_json_with_every_reading(device: Device) -> None:
    device.zone(0, "cpu-thermal", "41500")
    with Watch(root=device.root, interval_s=0.02, gpu_library=NvmlLibrary()) as watch:
        time.sleep(0.1)
    told: Any = json.loads(json.dumps(watch.finished().to_json()))
    heat = told["series"]["temperature_c.cpu-thermal"]
    assert heat["unit"] == "C"
    assert set(heat["values"]) == {41.5}
    assert len(heat["at_s"]) == len(heat["values"]) >= 3
    assert told["before"]["power_mode"] == {
        "unknown": "neither nvpmodel nor its files name a power mode"
    }


def test_a_watch_ends_with_its_block_even_when_that_fails(device: Device) -> None:
    device.tool("tegrastats", "exec sleep 60")
    begun = time.monotonic()
    watch = Watch(root=device.root, interval_s=0.05, gpu_library=NvmlLibrary())
    with pytest.raises(KeyboardInterrupt), watch:
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 10
    assert watch.finished().series == {}
    assert watch.finished().unread["tegrastats"] == "it printed no line that can be read"


# tegrastats, as a child.

LOOP = """echo $$ > '{pid}'
while true; do
  echo "RAM 6712/7620MB GR3D_FREQ 99%@[612] EMC_FREQ 61%@2133 tj@58.312C VDD_IN 16000mW/11204mW"
  sleep 0.03
done"""


def test_power_and_heat_come_from_a_tegrastats_of_our_own(device: Device, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    device.tool("tegrastats", LOOP.format(pid=pid))
    with Watch(root=device.root, interval_s=0.1, gpu_library=NvmlLibrary()) as watch:
        time.sleep(0.5)
    report = watch.finished()
    assert report.mean_power_w() == pytest.approx(16.0)
    assert report.power_source == "tegrastats VDD_IN"
    # 16 W at 200 inferences a second
    assert report.joules_per_sample(200.0) == pytest.approx(0.08)
    assert report.figures(200.0, WHOLE)["peak_temperature_c"] == pytest.approx(58.312)
    assert set(report.series["gpu_hz"].values) == {612e6}
    assert set(report.series["emc_hz"].values) == {2133e6}
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)  # nothing of ours outlives the watch


def test_garbage_of_tegrastats_is_no_power(device: Device) -> None:
    device.tool(
        "tegrastats", "while true; do printf 'VDD_IN \\377\\000 what?\\n'; sleep 0.02; done"
    )
    with Watch(root=device.root, interval_s=0.1, gpu_library=NvmlLibrary()) as watch:
        time.sleep(0.2)
    power = watch.finished().mean_power_w()
    assert isinstance(power, Unknown)
    assert "no rail is the board's input" in power.reason


# Energy.


def report_of(**series: Series) -> TelemetryReport:
    empty = read_state(Path("/nowhere"))
    return TelemetryReport(
        began_s=0.0, ended_s=10.0, interval_s=0.5, before=empty, after=empty, series=series,
        unread={}, slowed=(), other_load=0.0, cost_share=0.0,
    )  # fmt: skip


def test_energy_is_of_the_arms_own_turns() -> None:
    power = Series(
        unit="W", source="tegrastats VDD_IN", at_s=tuple(map(float, range(10))),
        values=(5.0, 9.0, 9.0, 9.0, 5.0, 5.0, 21.0, 21.0, 21.0, 5.0),
    )  # fmt: skip
    report = report_of(power_w=power)
    assert report.mean_power_w() == pytest.approx(11.0)
    assert report.joules_per_sample(90.0, [(1.0, 3.0)]) == pytest.approx(0.1)
    assert report.joules_per_sample(90.0, [(1.0, 3.5), (5.5, 8.9)]) == pytest.approx(15 / 90)
    few = report.joules_per_sample(90.0, [(1.0, 2.0)])
    assert few == Unknown("only 2 readings of the power fell into the run")
    assert isinstance(report.joules_per_sample(0.0), Unknown)
    assert report.joules_per_sample(Unknown("no sample")) == Unknown("no sample")


def test_a_counter_of_energy_gives_power_as_it_grows(device: Device) -> None:
    counter = device.write("sys/class/powercap/intel-rapl:0/energy_uj", "0")
    with Watch(root=device.root, interval_s=0.02, gpu_library=NvmlLibrary()) as watch:
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < 0.6:
            partial = counter.with_suffix(".new")
            partial.write_text(str(round(7e6 * passed)))  # 7 W
            partial.replace(counter)
            time.sleep(0.002)
    power = watch.finished().series["power_w"].values
    assert len(power) > 5
    assert sorted(power)[len(power) // 2] == pytest.approx(7.0, rel=0.3)  # another may hold us up
    assert watch.finished().power_source == "RAPL, the processor's packages"


# The kernel's files.


def test_thermal_zones_are_read_and_one_that_is_off_is_unknown(device: Device) -> None:
    device.zone(0, "cpu-thermal", "57125")
    device.zone(1, "cpu-thermal", "58250")
    device.zone(2, "PMIC-Die", "100000")
    device.zone(10, "gpu-thermal", "huh")
    (device.root / "sys/class/thermal/thermal_zone3").mkdir()
    (device.root / "sys/class/thermal/thermal_zone3/temp").mkdir()  # cannot be read
    found = sensors.temperatures_c(device.root)
    assert list(found)[:3] == ["cpu-thermal", "cpu-thermal 2", "PMIC-Die"]
    assert found["cpu-thermal 2"] == 58.25
    assert isinstance(found["gpu-thermal"], Unknown)
    assert isinstance(found["thermal_zone3"], Unknown)
    assert sensors.hottest_c(found) == 58.25  # the PMIC's is a constant


def test_clocks_governors_and_memory_are_read_in_si(device: Device) -> None:
    device.cpu(0, "schedutil")
    device.cpu(10, "performance", now_khz=1_500_000)
    device.write("sys/devices/system/cpu/cpufreq/boost", "1")
    device.gpu(now=612_000_000, least=306_000_000, most=1_020_000_000)
    device.write("proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable:    1024 kB\n")
    clocks = sensors.cpu_clocks(device.root)
    assert list(clocks) == ["cpu0", "cpu10"]
    assert (clocks["cpu0"].governor, clocks["cpu0"].now_hz) == ("schedutil", 1.4e9)
    assert clocks["cpu10"].least_hz == 0.6e9
    assert sensors.mean_cpu_hz(device.root) == pytest.approx(1.45e9)
    assert sensors.gpu_clock(device.root).now_hz == 612e6
    assert sensors.available_bytes(device.root) == 2**20
    with Watch(root=device.root, interval_s=0.05, gpu_library=NvmlLibrary()) as watch:
        device.write("proc/meminfo", "MemAvailable: 512 kB\n")
        time.sleep(0.12)
    report = watch.finished()
    assert report.available_drop_bytes == 2**19
    assert report.series["cpu_hz"].mean == pytest.approx(1.45e9)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0x0, 0x0, ()),
        (0x50000, 0x50000, ()),  # long ago
        (0x0, 0x4, ("the CPU is throttled",)),
        (0x0, 0x10000, ("under-voltage",)),  # between two looks
        (0x80000, 0x80008, ("the soft limit of temperature is reached",)),
    ],
)
@pytest.mark.parametrize("bus", ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"])
def test_a_raspberry_pi_says_what_slows_it_down(
    device: Device, bus: str, before: int, after: int, said: tuple[str, ...]
) -> None:
    assert sensors.pi_flags(device.root) is None
    place = f"sys/devices/platform/{bus}/get_throttled"
    device.write(place, f"{before:x}\n")
    with Watch(root=device.root, interval_s=0.02, gpu_library=NvmlLibrary()) as watch:
        device.write(place, f"{after:x}\n")
    assert watch.finished().slowed == said
    assert watch.finished().doubts() == said


def test_a_counter_of_heat_that_grows_is_a_slow_down(device: Device) -> None:
    place = "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count"
    device.write(place, "7")
    assert sensors.throttle_counts(device.root) == {"cpu1/core_throttle_count": 7}
    with Watch(root=device.root, interval_s=0.02, gpu_library=NvmlLibrary()) as watch:
        pass
    assert watch.finished().slowed == ()
    with Watch(root=device.root, interval_s=0.02, gpu_library=NvmlLibrary()) as watch:
        device.write(place, "9")
    assert watch.finished().slowed == ("the CPU was slowed down for its heat",)


def test_of_many_cpus_only_some_are_asked_for_their_clock(device: Device) -> None:
    for number in range(20):
        device.cpu(number, "schedutil", now_khz=1_000_000 if number % 3 == 0 else 9_000_000)
    assert sensors.mean_cpu_hz(device.root) == pytest.approx(1e9)  # 0, 3, 6, ... 18


# The power mode and the clocks of a Jetson.


def test_the_power_mode_is_read_without_root_by_its_name(device: Device) -> None:
    device.write("etc/nvpmodel.conf", MODES)
    device.write("var/lib/nvpmodel/status", "pmode:0002 fmode:quiet\n")
    assert board.power_modes(device.root) == {"MAXN": 0, "MODE_15W": 1, "MODE_30W": 2}
    assert read_state(device.root).power_mode == "MODE_30W"
    device.tool("nvpmodel", "echo 'NVPM ERROR: permission denied' >&2; exit 1")
    assert read_state(device.root).power_mode == "MODE_30W"
    device.says("nvpmodel", "NV Power Mode: MODE_15W\n1\n")
    assert read_state(device.root).power_mode == "MODE_15W"
    assert lasting_state(device.root) == {"power_mode": "MODE_15W"}


@pytest.mark.parametrize("status", ["pmode:0009", "pmode:", "", "garbage"])
def test_a_mode_that_the_list_does_not_have_is_unknown(device: Device, status: str) -> None:
    device.write("etc/nvpmodel.conf", MODES)
    device.write("var/lib/nvpmodel/status", status)
    assert isinstance(read_state(device.root).power_mode, Unknown)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("15W", "MODE_15W", True), ("MODE 30W", "30W", True), ("MAXN", "maxn", True),
        ("MAXN", "MAXN_SUPER", False), ("15W", "150W", False), ("", "MAXN", False),
    ],
)  # fmt: skip
def test_a_mode_has_more_than_one_spelling(one: str, other: str, same: bool) -> None:
    assert board.same_power_mode(one, other) is same


@pytest.mark.parametrize(
    ("said", "pinned"),
    [
        (PINNED, True),
        (FREE, False),
        (PINNED.replace("FreqOverride=1", "FreqOverride=0"), False),
        (PINNED.replace("MinFreq=1300500000", "MinFreq=306000000"), False),
        (PINNED.replace(" FreqOverride=1", ""), None),
        (PINNED.replace("EMC", "emc"), None),
        ("SOC family:tegra264\n", None),
        (FREE.replace("FreqOverride=0", ""), False),  # the GPU's alone disprove it
    ],
)
def test_pinned_clocks_are_proved_disproved_or_unknown(said: str, pinned: bool | None) -> None:
    found = parse_clocks(said).pinned
    assert (None if isinstance(found, Unknown) else found) is pinned


def test_without_root_the_kernels_files_can_disprove_pinned_clocks(device: Device) -> None:
    device.tool("jetson_clocks", "echo 'Error: Run this script as a root user' >&2; exit 1")
    device.gpu(now=306_000_000, least=306_000_000, most=1_020_000_000)
    assert read_clocks(device.root).pinned is False
    device.gpu(now=1_020_000_000, least=1_020_000_000, most=1_020_000_000)
    found = read_clocks(device.root).pinned
    assert found == Unknown("jetson_clocks --show said nothing: it wants root")
    assert lasting_state(device.root) == {"clocks": "not readable"}
    told: Any = state_to_json(read_state(device.root))
    assert told["clocks_pinned"] == {"unknown": "jetson_clocks --show said nothing: it wants root"}
    device.says("jetson_clocks", PINNED)
    assert lasting_state(device.root) == {"clocks": "pinned"}


# NVML.

GPU: dict[str, Any] = {
    "ClockInfo": {1: 1530, 2: 5001}, "MaxClockInfo": {1: 2040, 2: 6251}, "PowerUsage": 61250,
    "Temperature": 66, "CurrentClocksThrottleReasons": 0x0, "used": 3 << 30,
    "processes": {4711: 700 << 20, 4712: 300 << 20},
}  # fmt: skip


def test_a_gpu_is_read_in_si() -> None:
    library = NvmlLibrary(gpus=[GPU])
    with nvml(library) as gpu:
        assert not isinstance(gpu, Unknown)
        found = gpu.read({4711, 1})
    assert isinstance(found, GpuReading)
    assert (found.sm_hz, found.most_sm_hz, found.memory_hz) == (1530e6, 2040e6, 5001e6)
    assert found.power_w == pytest.approx(61.25)
    assert found.temperature_c == 66
    assert found.used_bytes == 3 << 30
    assert found.own_bytes == {4711: 700 << 20}
    assert found.slowed == ()
    assert library.ended


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (0x1, ()), (0x4, ()),
        (0x24, ("the driver slows it down for its heat",)),
        (0x88, ("the hardware slows it down (heat, or its supply)",
                "the power supply asks for less (power brake)")),
    ],
)  # fmt: skip
def test_what_slows_a_gpu_down_is_named_and_a_power_cap_is_not(
    bits: int, said: tuple[str, ...]
) -> None:
    with nvml(NvmlLibrary(gpus=[{**GPU, "CurrentClocksThrottleReasons": bits}])) as gpu:
        assert not isinstance(gpu, Unknown)
        found = gpu.read({4711})
    assert isinstance(found, GpuReading)
    assert found.slowed == said
    assert found.power_capped is bool(bits & 4)


def test_of_several_gpus_the_one_with_our_process_is_meant() -> None:
    other = {**GPU, "Temperature": 30, "processes": {99: 1 << 20}}
    with nvml(NvmlLibrary(gpus=[other, GPU, other])) as gpu:
        assert not isinstance(gpu, Unknown)
        found = gpu.read({4711, 4712})
        assert isinstance(found, GpuReading)
        assert (found.temperature_c, found.own_bytes) == (66, {4711: 700 << 20, 4712: 300 << 20})
        nobody = gpu.read({1})
    assert nobody == Unknown("there are 3 GPUs, and 0 of them run ours")


def test_what_a_driver_does_not_answer_is_unknown() -> None:
    codes = {"nvmlDeviceGetPowerUsage": 3, "nvmlDeviceGetCurrentClocksThrottleReasons": -1,
             "nvmlDeviceGetComputeRunningProcesses_v3": 4}  # fmt: skip
    with nvml(NvmlLibrary(gpus=[GPU], codes=codes)) as gpu:
        assert not isinstance(gpu, Unknown)
        found = gpu.read({4711})
    assert isinstance(found, GpuReading)
    assert found.power_w == Unknown("nvmlDeviceGetPowerUsage answers 3")
    assert isinstance(found.slowed, Unknown)
    assert isinstance(found.own_bytes, Unknown)
    assert found.sm_hz == 1530e6


def test_a_process_whose_memory_is_not_available_is_not_18_exabytes() -> None:
    hidden = {**GPU, "processes": {4711: 2**64 - 1}}
    with nvml(NvmlLibrary(gpus=[hidden])) as gpu:
        assert not isinstance(gpu, Unknown)
        found = gpu.read({4711})
    assert isinstance(found, GpuReading)
    assert not isinstance(found.own_bytes, Unknown)
    assert isinstance(found.own_bytes[4711], Unknown)


@pytest.mark.parametrize("codes", [{"nvmlInit_v2": 9}, {"nvmlInit_v2": -1}])
def test_a_library_that_does_not_begin_is_a_reason(codes: dict[str, int]) -> None:
    with nvml(NvmlLibrary(codes=codes)) as gpu:
        assert isinstance(gpu, Unknown)


def test_a_watch_reads_the_gpu_that_our_children_are_on() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        row = {**GPU, "processes": {child.pid: 5 << 20}, "CurrentClocksThrottleReasons": 0x40}
        with Watch(interval_s=0.05, gpu_library=NvmlLibrary(gpus=[row])) as watch:
            time.sleep(0.3)
        report = watch.finished()
        child.communicate(b"\n")
    figures = report.figures(10.0, Part(windows=WHOLE.windows, pids=[child.pid]))
    nobody = report.figures(10.0, Part(windows=WHOLE.windows, pids=[1]))["gpu_memory_bytes"]
    assert isinstance(nobody, Unknown)
    assert figures["gpu_memory_bytes"] == 5 << 20
    if "RAPL" not in report.power_source:
        assert figures["mean_power_w"] == pytest.approx(61.25)
        assert figures["joules_per_sample"] == pytest.approx(6.125)
        assert report.power_source == "NVML, the card alone"
    assert "the GPU: the hardware slows it down for its heat" in report.doubts()


# The load of others.

BURN = "import time\nend = time.process_time() + {s}\nwhile time.process_time() < end: pass\n"


def test_the_work_of_our_children_is_ours_while_they_live_and_after() -> None:
    before = own_cpu_s()
    subprocess.run([sys.executable, "-c", BURN.format(s=0.3)], check=True)
    assert 0.28 < own_cpu_s() - before < 1.5
    with subprocess.Popen(
        [sys.executable, "-c", BURN.format(s=0.3) + "print(flush=True)\ninput()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        assert own_cpu_s() - before > 0.56
        child.communicate(b"\n")
    assert own_cpu_s() - before > 0.56


def test_our_own_work_is_no_load_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that we keep busy ourselves is taken out; the machine's own load stays in."""
    import psutil

    idle, whole = OtherLoad(), psutil.cpu_count() or 1
    end = time.process_time() + 0.4
    while time.process_time() < end:
        pass
    share = idle.share()
    assert not isinstance(share, Unknown)
    monkeypatch.setattr("edgekit.bench.load.own_cpu_s", lambda: 0.0)
    idle._own = 0.0
    counted = idle.share()
    assert not isinstance(counted, Unknown)
    assert counted == 1.0 or counted - share > 0.1 / whole


# Nothing that a device says is trusted to be well formed.

SAID = st.one_of(
    st.text(),
    st.lists(
        st.one_of(
            st.text(max_size=8),
            st.sampled_from([*PINNED.split(), *MODES.split(), "GPU", "EMC", "pmode:0002", "\n"]),
            st.integers().map(str),
        ),
        max_size=30,
    ).map(" ".join),
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(said=SAID)
@example(said="< POWER_MODEL ID=" + "9" * 5000 + " NAME=MAXN >\npmode:" + "9" * 5000)
@example(said="GPU MinFreq=" + "9" * 5000)
def test_whatever_the_files_say_nothing_raises(device: Device, said: str) -> None:
    for place in (
        "etc/nvpmodel.conf", "var/lib/nvpmodel/status", "proc/meminfo",
        "sys/class/thermal/thermal_zone0/temp", "sys/class/thermal/thermal_zone0/type",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
        "sys/class/powercap/intel-rapl:0/energy_uj", "sys/kernel/debug/nvmap/iovmm/clients",
        "sys/devices/platform/soc/soc:firmware/get_throttled",
    ):  # fmt: skip
        path = device.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(said.encode(errors="replace"))
    state = read_state(device.root)
    json.dumps(state_to_json(state))
    sensors.hottest_c(state.temperatures_c)
    sensors.mean_cpu_hz(device.root)
    sensors.packages_joules(device.root)
    memory.nvmap_bytes([1], device.root)
    pinned = parse_clocks(said).pinned
    assert pinned in (True, False) or isinstance(pinned, Unknown)
