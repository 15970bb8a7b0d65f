"""tegrastats' lines of JetPack 4 to 7, as devices printed them; their fields were read by eye."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekit.bench.tegrastats import Line, Pool, Unit, parse_line, total_power
from edgekit.values import Figure, Unknown

MB = 1024**2
OFF = "off"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A line, and what it says: megabytes, percent and megahertz, degrees, milliwatts."""

    text: str
    at: str = ""
    ram: tuple[int, int] | None = None
    lfb: tuple[int, float] | None = None  # blocks, megabytes
    swap: tuple[int, int, int] | None = None  # used, total, cached
    iram_kb: tuple[int, int] | None = None
    cpus: list[object] = field(default_factory=list)
    emc: object = None
    gpu: object = None
    others: dict[str, object] = field(default_factory=dict)
    temperatures: dict[str, object] = field(default_factory=dict)
    rails: dict[str, tuple[int, ...]] = field(default_factory=dict)
    total: tuple[int, str] | None = None


SEEN = {
    "JetPack 4, Nano": Seen(
        text="RAM 1655/3956MB (lfb 311x4MB) SWAP 0/1978MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
        "CPU [12%@102,10%@102,11%@102,12%@102] EMC_FREQ 3%@1600 GR3D_FREQ 0%@76 APE 25 PLL@36.5C "
        "CPU@39C iwlwifi@44C PMIC@50C GPU@37C AO@47.5C thermal@38C POM_5V_IN 2132/2132 "
        "POM_5V_GPU 78/78 POM_5V_CPU 275/275",
        ram=(1655, 3956), lfb=(311, 4), swap=(0, 1978, 0), iram_kb=(0, 252),
        cpus=[(12, 102), (10, 102), (11, 102), (12, 102)], emc=(3, 1600), gpu=(0, 76),
        others={"APE": (None, 25)},
        temperatures={
            "PLL": 36.5, "CPU": 39, "iwlwifi": 44, "PMIC": 50, "GPU": 37, "AO": 47.5, "thermal": 38,
        },
        rails={"POM_5V_IN": (2132, 2132), "POM_5V_GPU": (78, 78), "POM_5V_CPU": (275, 275)},
        total=(2132, "POM_5V_IN"),
    ),
    "JetPack 4, Nano, not as root": Seen(
        text="EMC_FREQ 0% GR3D_FREQ 99% PLL@42C POM_5V_GPU 8633/8742 POM_5V_IN 2956/3086 "
        "POM_5V_CPU 3148/3134",
        emc=(0,), gpu=(99,), temperatures={"PLL": 42},
        rails={
            "POM_5V_GPU": (8633, 8742), "POM_5V_IN": (2956, 3086), "POM_5V_CPU": (3148, 3134),
        },
        total=(2956, "POM_5V_IN"),
    ),
    "JetPack 4, AGX Xavier": Seen(
        text="RAM 1903/15692MB (lfb 3251x4MB) CPU [1%@1190,off,off] EMC_FREQ 0%@665 "
        "GR3D_FREQ 0%@318 APE 150 MTS fg 0% bg 0% AO@37.5C PMIC@100C GPU 0/16 CPU 310/432 "
        "SOC 931/953 CV 0/0 VDDRQ 466/488 SYS5V 1522/1559",
        ram=(1903, 15692), lfb=(3251, 4), cpus=[(1, 1190), OFF, OFF], emc=(0, 665), gpu=(0, 318),
        others={"APE": (None, 150), "fg": (0,), "bg": (0,)},
        temperatures={"AO": 37.5, "PMIC": 100},
        rails={
            "GPU": (0, 16), "CPU": (310, 432), "SOC": (931, 953), "CV": (0, 0),
            "VDDRQ": (466, 488), "SYS5V": (1522, 1559),
        },
        total=(3229, "GPU + CPU + SOC + CV + VDDRQ + SYS5V"),
    ),
    "JetPack 5.1.2, Xavier NX": Seen(
        text="07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) "
        "CPU [23%@1397] EMC_FREQ 2%@204 GR3D_FREQ 0%@[114] VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C "
        "thermal@45.6C AO@45C GPU@45.5C PMIC@50C VDD_IN 2763mW/2846mW "
        "VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 650mW/711mW",
        at="07-09-2024 13:31:31", ram=(3168, 6851), lfb=(2, 4), swap=(161, 3426, 0),
        cpus=[(23, 1397)], emc=(2, 204), gpu=(0, 114),
        others={"VIC_FREQ": (None, 115), "APE": (None, 150)},
        temperatures={
            "AUX": 45, "CPU": 46.5, "thermal": 45.6, "AO": 45, "GPU": 45.5, "PMIC": 50,
        },
        rails={"VDD_IN": (2763, 2846), "VDD_CPU_GPU_CV": (650, 670), "VDD_SOC": (650, 711)},
        total=(2763, "VDD_IN"),
    ),
    "JetPack 5, AGX Orin": Seen(
        text="04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) "
        "CPU [0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C "
        "CPU@44.562C Tboard@32C SOC2@40.093C Tdiode@33C GPU@-256C tj@44.343C "
        "VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW "
        "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW",
        at="04-11-2025 10:36:27", ram=(4321, 62801), lfb=(1759, 4), swap=(19, 31400, 0),
        cpus=[(0, 729)], emc=(0, 2133), gpu=(0, 0, 0),
        others={"VIC_FREQ": (None, 729), "APE": (None, 174)},
        temperatures={
            "CV0": OFF, "CPU": 44.562, "Tboard": 32, "SOC2": 40.093, "Tdiode": 33, "GPU": OFF,
            "tj": 44.343,
        },
        rails={
            "VDD_GPU_SOC": (2340, 2340), "VDD_CPU_CV": (390, 390), "VIN_SYS_5V0": (4025, 4025),
            "NC": (0, 0), "VDDQ_VDD2_1V8AO": (301, 301), "NC 2": (0, 0),
        },
        total=(6755, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),
    ),
    "JetPack 6.2.1, AGX Orin": Seen(
        text="05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) "
        "CPU [14%@2188] EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] NVENC 79%@166 NVDEC off NVJPG off "
        "NVJPG1 off VIC 36%@115 OFA off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.562C "
        "soc2@48.437C soc0@49.093C tj@52.562C soc1@49.656C VDD_GPU_SOC 2412mW/2412mW "
        "VDD_CPU_CV 1607mW/1607mW VIN_SYS_5V0 4707mW/4707mW",
        at="05-09-2026 18:42:06", ram=(18207, 62841), lfb=(466, 4), swap=(86, 31420, 0),
        cpus=[(14, 2188)], emc=(3, 2133), gpu=(0, 0, 0),
        others={
            "NVENC": (79, 166), "NVDEC": OFF, "NVJPG": OFF, "NVJPG1": OFF, "VIC": (36, 115),
            "OFA": OFF, "NVDLA0": OFF, "NVDLA1": OFF, "PVA0_FREQ": OFF, "APE": (None, 174),
        },
        temperatures={
            "cpu": 52.562, "soc2": 48.437, "soc0": 49.093, "tj": 52.562, "soc1": 49.656,
        },
        rails={
            "VDD_GPU_SOC": (2412, 2412), "VDD_CPU_CV": (1607, 1607), "VIN_SYS_5V0": (4707, 4707),
        },
        total=(8726, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),
    ),
    "JetPack 6.2, Orin Nano Super": Seen(
        text="10-08-2026 04:35:02 RAM 6712/7620MB (lfb 12x4MB) SWAP 369/3810MB (cached 8MB) "
        "CPU [38%@1497,2%@729] EMC_FREQ 61%@2133 GR3D_FREQ 99%@[612] NVDEC off NVJPG off VIC off "
        "OFA off APE 200 cpu@57.125C soc2@55.093C soc0@56.625C gpu@58.625C tj@58.312C "
        "soc1@55.937C VDD_IN 16321mW/11204mW VDD_CPU_GPU_CV 7104mW/4944mW VDD_SOC 3120mW/3659mW",
        at="10-08-2026 04:35:02", ram=(6712, 7620), lfb=(12, 4), swap=(369, 3810, 8),
        cpus=[(38, 1497), (2, 729)], emc=(61, 2133), gpu=(99, 612),
        others={"NVDEC": OFF, "NVJPG": OFF, "VIC": OFF, "OFA": OFF, "APE": (None, 200)},
        temperatures={
            "cpu": 57.125, "soc2": 55.093, "soc0": 56.625, "gpu": 58.625, "tj": 58.312,
            "soc1": 55.937,
        },
        rails={
            "VDD_IN": (16321, 11204), "VDD_CPU_GPU_CV": (7104, 4944), "VDD_SOC": (3120, 3659),
        },
        total=(16321, "VDD_IN"),
    ),
    "JetPack 7.2, AGX Orin": Seen(
        text="07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201] EMC_FREQ 3%@3199 "
        "GR3D_FREQ 12%@[1300,1300] NVENC0 off NVDEC0 off NVJPG0 off NVJPG1 off VIC off OFA off "
        "NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.968C/52.968C soc2@48.406C/48.406C "
        "soc0@49.531C/49.531C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW "
        "VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW",
        at="07-25-2026 09:08:28", ram=(20642, 62817), lfb=(1, 2), cpus=[(23, 2201)],
        emc=(3, 3199), gpu=(12, 1300, 1300),
        others={
            "NVENC0": OFF, "NVDEC0": OFF, "NVJPG0": OFF, "NVJPG1": OFF, "VIC": OFF, "OFA": OFF,
            "NVDLA0": OFF, "NVDLA1": OFF, "PVA0_FREQ": OFF, "APE": (None, 174),
        },
        temperatures={
            "cpu": (52.968, 52.968), "soc2": (48.406, 48.406), "soc0": (49.531, 49.531),
            "gpu": (47.625, 47.625),
        },
        rails={
            "VDD_GPU_SOC": (5139, 5139, 5139), "VDD_CPU_CV": (3268, 3268, 3268),
            "VIN_SYS_5V0": (5500, 5500, 5500),
        },
        total=(13907, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),
    ),
    "JetPack 7, Thor": Seen(
        text="08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,75%@2601,off,"
        "7%@2601] EMC_FREQ 34%@4266 GR3D_FREQ 87%@[1574,1574,1574] NVENC0_FREQ @1691 VIC off "
        "cpu@58.25C/61.75C tj@66.625C/66.625C gpu@56.937C/66.625C soc012@55.375C/58.781C "
        "soc345@55.812C/60.031C VDD_GPU 37939mW/8660mW/37939mW "
        "VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW VIN_SYS_5V0 15486mW/7424mW/15486mW "
        "VIN 124486mW/36487mW/124486mW",
        at="08-08-2026 21:00:39", ram=(8353, 125749), lfb=(31, 4),
        cpus=[(90, 2601), (75, 2601), OFF, (7, 2601)], emc=(34, 4266),
        gpu=(87, 1574, 1574, 1574), others={"NVENC0_FREQ": (None, 1691), "VIC": OFF},
        temperatures={
            "cpu": (58.25, 61.75), "tj": (66.625, 66.625), "gpu": (56.937, 66.625),
            "soc012": (55.375, 58.781), "soc345": (55.812, 60.031),
        },
        rails={
            "VDD_GPU": (37939, 8660, 37939), "VDD_CPU_SOC_MSS": (30059, 12281, 30059),
            "VIN_SYS_5V0": (15486, 7424, 15486), "VIN": (124486, 36487, 124486),
        },
        total=(124486, "VIN"),
    ),
    "JetPack 7, Thor, idle": Seen(
        text="CPU [0%,5%,off]@2601 EMC_FREQ @4266 GR3D_FREQ @[1574,1574,1574] "
        "VIN 28906mW/14453mW/28906mW",
        cpus=[(0, 2601), (5, 2601), OFF], emc=(None, 4266), gpu=(None, 1574, 1574, 1574),
        rails={"VIN": (28906, 14453, 28906)}, total=(28906, "VIN"),
    ),
    "blocks in kilobytes": Seen(
        text="RAM 1/2MB (lfb 1x512kB)", ram=(1, 2), lfb=(1, 0.5),
    ),
    "a cluster of the GPU is off": Seen(text="GR3D_FREQ 99%@[off,1300]", gpu=(99, OFF, 1300)),
}  # fmt: skip

EVERY = [pytest.param(seen, id=name) for name, seen in SEEN.items()]


def known(figure: Figure) -> object:
    return None if isinstance(figure, Unknown) else figure


def unit(told: Unit | None) -> object:
    """(percent, MHz, MHz ...), without what is not there; as the table writes it."""
    if told is None:
        return None
    if not told.on:
        assert isinstance(told.load, Unknown)
        return OFF
    load = None if isinstance(told.load, Unknown) else round(100 * told.load)
    hz = [OFF if isinstance(one, Unknown) else round(one / 1e6) for one in told.hz]
    return (load, *hz)


def pool(told: Pool, scale: int) -> tuple[float, float] | None:
    if isinstance(told.used_bytes, Unknown) or isinstance(told.total_bytes, Unknown):
        return None
    return told.used_bytes / scale, told.total_bytes / scale


@pytest.mark.parametrize("seen", EVERY)
def test_memory_is_in_its_fields(seen: Seen) -> None:
    line = parse_line(seen.text)
    assert line.at == seen.at
    assert pool(line.ram, MB) == seen.ram
    blocks = (known(line.ram.free_blocks), known(line.ram.largest_free_bytes))
    assert blocks == ((seen.lfb[0], seen.lfb[1] * MB) if seen.lfb else (None, None))
    assert pool(line.swap, MB) == (seen.swap[:2] if seen.swap else None)
    assert known(line.swap.cached_bytes) == (seen.swap[2] * MB if seen.swap else None)
    assert pool(line.iram, 1024) == seen.iram_kb


@pytest.mark.parametrize("seen", EVERY)
def test_processors_and_engines_are_in_their_fields(seen: Seen) -> None:
    line = parse_line(seen.text)
    assert [unit(cpu) for cpu in line.cpus] == seen.cpus
    expected = {"EMC_FREQ": seen.emc, "GR3D_FREQ": seen.gpu, **seen.others}
    expected = {name: value for name, value in expected.items() if value is not None}
    assert {name: unit(told) for name, told in line.units.items()} == expected
    assert line.gpu == line.units.get("GR3D_FREQ", Unit())
    assert line.memory_controller == line.units.get("EMC_FREQ", Unit())


@pytest.mark.parametrize("seen", EVERY)
def test_temperatures_and_rails_are_in_their_fields(seen: Seen) -> None:
    line = parse_line(seen.text)
    told = {
        name: (known(t.now_c), known(t.most_c)) for name, t in line.temperatures.items()
    }  # fmt: skip
    wanted = {
        name: value if isinstance(value, tuple) else (None if value == OFF else value, None)
        for name, value in seen.temperatures.items()
    }
    assert told == wanted
    milliwatts = {
        name: tuple(
            round(1e3 * watts)
            for watts in (rail.now_w, rail.average_w, rail.peak_w)
            if not isinstance(watts, Unknown)
        )
        for name, rail in line.rails.items()
    }
    assert milliwatts == seen.rails


@pytest.mark.parametrize("seen", EVERY)
def test_the_boards_input_is_its_rail_or_a_known_sum_or_unknown(seen: Seen) -> None:
    total = total_power(parse_line(seen.text).rails)
    if seen.total is None:
        assert isinstance(total.watts, Unknown)
        return
    assert not isinstance(total.watts, Unknown)
    assert (round(1e3 * total.watts), total.source) == seen.total


@pytest.mark.parametrize("seen", EVERY)
def test_every_word_of_a_line_is_taken(seen: Seen) -> None:
    assert set(parse_line(seen.text).unread) <= {"MTS"}


def test_a_missing_part_of_a_sum_leaves_no_total() -> None:
    rails = parse_line("VDD_GPU_SOC 5139mW/5139mW VIN_SYS_5V0 5500mW/5500mW").rails
    total = total_power(rails)
    assert isinstance(total.watts, Unknown)
    assert "VIN_SYS_5V0" in total.watts.reason


def test_a_sensor_that_is_off_says_so() -> None:
    told = parse_line("GPU@-256C").temperatures["GPU"].now_c
    assert told == Unknown("the sensor is off")


def test_what_no_rule_takes_is_kept_as_it_stands() -> None:
    line = parse_line("RAM x/y GR3D_FREQ NEW_THING 3/4/5/6 CPU [12%@102,huh] tj@41C/hotC")
    assert line.unread == ("RAM", "x/y", "GR3D_FREQ", "NEW_THING", "3/4/5/6", "tj@41C/hotC")
    assert line.ram == Pool()
    good, bad = line.cpus
    assert unit(good) == (12, 102)
    assert isinstance(bad.load, Unknown)
    assert "huh" in bad.load.reason


WORDS = sorted({word for seen in SEEN.values() for word in seen.text.split()})
LINES = st.one_of(
    st.text(),
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=30).map(" ".join),
    st.sampled_from(list(SEEN)).flatmap(
        lambda name: st.integers(0, len(SEEN[name].text)).map(lambda end: SEEN[name].text[:end])
    ),
)


def figures_of(value: object) -> list[float]:
    if isinstance(value, Unknown):
        return []
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        parts: list[object] = []
        if is_dataclass(value):
            parts = [getattr(value, each.name) for each in fields(value)]
        elif isinstance(value, dict):
            parts = list(value.values())
        elif isinstance(value, tuple):
            parts = list(value)
        return [number for part in parts for number in figures_of(part)]
    return [float(value)]


@settings(deadline=None)
@given(LINES)
@example("RAM 1/" + "9" * 400 + "MB")
@example("GR3D_FREQ " + "9" * 400 + "%")
@example("tj@" + "9" * 400 + "C")
@example("VIN 1mW/٣mW")
def test_no_line_raises_or_makes_a_number_that_is_none(text: str) -> None:
    line = parse_line(text)
    assert isinstance(line, Line)
    assert all(map(math.isfinite, figures_of(line)))
    total_power(line.rails)


@settings(deadline=None)
@given(LINES)
def test_a_line_without_digits_has_no_numbers(text: str) -> None:
    line = parse_line("".join(" " if letter.isnumeric() else letter for letter in text))
    assert figures_of(line) == []
