"""What a line of NVIDIA's tegrastats says, of JetPack 4 to 7.

Read from lines that devices printed. What a line does not have, or has in a form that nobody has
seen, is unknown or kept by name as it stands: no line raises, and none becomes a number by default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgekit.values import Figure, Unknown

_MISSING = Unknown("the line does not have it")
_OFF = Unknown("it is off")
_SENSOR_OFF_C = -256.0
_BYTES = {"kB": 1024, "KB": 1024, "MB": 1024**2, "GB": 1024**3, "B": 1}

# Of a longer row of digits nobody knows what it is.
_N = r"([0-9]{1,15})"
_C = r"(-?[0-9]{1,6}(?:\.[0-9]{1,9})?)"
_SIZE = rf"{_N}(kB|KB|MB|GB|B)"
_DATE = re.compile(r"\d\d-\d\d-\d{4} \d\d:\d\d:\d\d(?!\S)")
_POOL = re.compile(rf"(RAM|SWAP|IRAM) {_N}/{_SIZE}\s*(?:\(([^()]*)\))?")
_LFB = re.compile(rf"lfb (?:{_N}x)?{_SIZE}")
_CACHED = re.compile(rf"cached {_SIZE}")
_CPUS = re.compile(rf"CPU \[([^\[\]]*)\](?:@{_N})?(?!\S)")
_CPU = re.compile(rf"(?:{_N}%)?(?:@{_N})?")
_TEMPERATURE = re.compile(rf"([A-Za-z][\w.-]*)@{_C}(?:C?/{_C})?C(?!\S)")
_RAIL = re.compile(rf"([A-Za-z]\w*) {_N}(?:mW)?/{_N}(?:mW)?(?:/{_N}(?:mW)?)?(?!\S)")
_OFF_UNIT = re.compile(r"([A-Za-z]\w*) off(?!\S)")
_CLUSTERS = re.compile(rf"([A-Za-z]\w*) (?:{_N}%)?@\[([^\[\]]*)\](?!\S)")
_LOADED = re.compile(rf"([A-Za-z]\w*) {_N}%(?:@{_N})?(?!\S)")
_CLOCKED = re.compile(rf"([A-Za-z]\w*) @?{_N}(?!\S)")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A memory in bytes; `largest_free_bytes` and `free_blocks` are tegrastats' lfb."""

    used_bytes: Figure = _MISSING
    total_bytes: Figure = _MISSING
    cached_bytes: Figure = _MISSING
    largest_free_bytes: Figure = _MISSING
    free_blocks: Figure = _MISSING


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A processor, memory controller or engine: its load from 0 to 1, and its clocks.

    A GPU has a clock for each of its clusters. `on` is false for what is printed as "off".
    """

    on: bool = True
    load: Figure = _MISSING
    hz: tuple[Figure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """In degrees Celsius: now, and the most since tegrastats was started (JetPack 7)."""

    now_c: Figure
    most_c: Figure = _MISSING


@dataclass(frozen=True, kw_only=True)
class Rail:
    """A power rail in watts: now, and average and peak since tegrastats was started."""

    now_w: float
    average_w: float
    peak_w: Figure = _MISSING


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line's fields, by the names that it prints (upper case on JetPack 5, lower on 6 and 7).

    `cpus` in their order. `units` are EMC_FREQ, GR3D_FREQ (the GPU) and the other engines.
    `unread` is every word that no rule takes, as it stands.
    """

    at: str = ""
    ram: Pool = Pool()
    swap: Pool = Pool()
    iram: Pool = Pool()
    cpus: tuple[Unit, ...] = ()
    units: Mapping[str, Unit] = field(default_factory=dict)
    temperatures: Mapping[str, Temperature] = field(default_factory=dict)
    rails: Mapping[str, Rail] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def gpu(self) -> Unit:
        """GR3D_FREQ."""
        return self.units.get("GR3D_FREQ", Unit())

    @property
    def memory_controller(self) -> Unit:
        """EMC_FREQ."""
        return self.units.get("EMC_FREQ", Unit())


def parse_line(text: str) -> Line:
    """The line's fields. A rule takes what it knows from anywhere in the line, once."""
    rest = _Rest(text)
    at = next((match[0] for match in rest.take(_DATE)), "")
    pools = {match[1]: _pool(match) for match in rest.take(_POOL)}
    cpus = next((_cpus(match) for match in rest.take(_CPUS)), ())
    temperatures = {
        match[1]: Temperature(now_c=_celsius(match[2]), most_c=_celsius(match[3]))
        for match in rest.take(_TEMPERATURE)
    }
    rails = _rails(rest.take(_RAIL))
    units = {match[1]: Unit(on=False, load=_OFF) for match in rest.take(_OFF_UNIT)}
    units |= {match[1]: _clusters(match) for match in rest.take(_CLUSTERS)}
    units |= {match[1]: _processor(match[2], match[3]) for match in rest.take(_LOADED)}
    units |= {match[1]: _processor(None, match[2]) for match in rest.take(_CLOCKED)}
    return Line(
        at=at,
        ram=pools.get("RAM", Pool()),
        swap=pools.get("SWAP", Pool()),
        iram=pools.get("IRAM", Pool()),
        cpus=cpus,
        units=units,
        temperatures=temperatures,
        rails=rails,
        unread=tuple(match[0] for match in rest.take(_WORD)),
    )


@dataclass(frozen=True, kw_only=True)
class TotalPower:
    """The board's input power in watts, and the rails that it is from."""

    watts: Figure
    source: str


# jetson_stats' rule: Jetson Nano; Xavier NX, Orin NX and Orin Nano; Thor.
_INPUTS = ("POM_5V_IN", "VDD_IN", "VIN")
# Boards without a rail for all: every rail of the sum must be there, for part of it is no total.
_SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


def total_power(rails: Mapping[str, Rail]) -> TotalPower:
    """The input power now: of the one rail that all comes through, else of a board's known sum."""
    for name in _INPUTS:
        if name in rails:
            return TotalPower(watts=rails[name].now_w, source=name)
    for names in _SUMS:
        if all(name in rails for name in names):
            watts = sum(rails[name].now_w for name in names)
            return TotalPower(watts=watts, source=" + ".join(names))
    known = ", ".join(rails) or "none"
    reason = f"no rail is the board's input, nor are its parts all there: {known}"
    return TotalPower(watts=Unknown(reason), source="")


class _Rest:
    """What is left of a line once a rule has taken its fields."""

    def __init__(self, text: str) -> None:
        self._text = text

    def take(self, rule: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """Every field of the rule that begins at a word; blanked before the next rule looks."""
        found = [
            match
            for match in rule.finditer(self._text)
            if match.start() == 0 or self._text[match.start() - 1].isspace()
        ]
        for match in found:
            blank = " " * (match.end() - match.start())
            self._text = self._text[: match.start()] + blank + self._text[match.end() :]
        return iter(found)


def _pool(match: re.Match[str]) -> Pool:
    unit = _BYTES[match[4]]
    inside = match[5] or ""
    lfb, cached = _LFB.search(inside), _CACHED.search(inside)
    return Pool(
        used_bytes=float(int(match[2]) * unit),
        total_bytes=float(int(match[3]) * unit),
        cached_bytes=float(int(cached[1]) * _BYTES[cached[2]]) if cached else _MISSING,
        largest_free_bytes=float(int(lfb[2]) * _BYTES[lfb[3]]) if lfb else _MISSING,
        free_blocks=float(lfb[1]) if lfb and lfb[1] else _MISSING,
    )


def _cpus(match: re.Match[str]) -> tuple[Unit, ...]:
    """JetPack 7 may print one clock for all, after the bracket."""
    return tuple(_cpu(word.strip(), match[2]) for word in match[1].split(",") if word.strip())


def _cpu(word: str, shared_mhz: str | None) -> Unit:
    if word == "off":
        return Unit(on=False, load=_OFF)
    found = _CPU.fullmatch(word)
    if found is None:
        unread = Unknown(f"it is printed as {word!r:.40}")
        return Unit(load=unread, hz=(unread,))
    return _processor(found[1], found[2] or shared_mhz)


def _processor(percent: str | None, mhz: str | None) -> Unit:
    return Unit(load=_share(percent), hz=(_megahertz(mhz),) if mhz else ())


def _clusters(match: re.Match[str]) -> Unit:
    words = [word.strip() for word in match[3].split(",") if word.strip()]
    return Unit(load=_share(match[2]), hz=tuple(_megahertz(word) for word in words))


def _rails(found: Iterator[re.Match[str]]) -> dict[str, Rail]:
    """By name; of several that have one name (NC: not connected) the later ones are numbered."""
    rails: dict[str, Rail] = {}
    for match in found:
        name, number = match[1], 1
        while (key := name if number == 1 else f"{name} {number}") in rails:
            number += 1
        rails[key] = Rail(
            now_w=int(match[2]) / 1e3,
            average_w=int(match[3]) / 1e3,
            peak_w=int(match[4]) / 1e3 if match[4] else _MISSING,
        )
    return rails


def _share(percent: str | None) -> Figure:
    return int(percent) / 100 if percent else _MISSING


def _megahertz(printed: str) -> Figure:
    if printed == "off":
        return _OFF
    return (
        int(printed) * 1e6
        if re.fullmatch(_N, printed)
        else Unknown(f"it is printed as {printed:.40}")
    )


def _celsius(printed: str | None) -> Figure:
    if printed is None:
        return _MISSING
    return Unknown("the sensor is off") if float(printed) == _SENSOR_OFF_C else float(printed)
