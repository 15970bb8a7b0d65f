"""Whether the conditions that a target declares held before, during and after a run. Pure.

A broken one makes the run invalid. One that cannot be read is neither kept nor broken: it is a
doubt, and says what would make it readable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from edgekit import board
from edgekit.bench import sensors
from edgekit.bench.device_state import DeviceState
from edgekit.bench.telemetry_report import TelemetryReport
from edgekit.values import Unknown

if TYPE_CHECKING:  # pydantic would come along
    from edgekit.targets import Target

When: TypeAlias = Literal["before", "during", "after"]

# Pinned clocks are printed in whole megahertz.
_SAME_CLOCK = 0.97
_PIN = "sudo jetson_clocks"


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A condition that did not hold; `mend` is the command that makes it hold, where one can."""

    when: When
    what: str
    got: str
    wanted: str
    mend: str

    def __str__(self) -> str:
        said = f"{self.what} {self.when} the run: {self.got}, wanted {self.wanted}"
        return f"{said}; {self.mend}" if self.mend else said


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A condition that nobody could check, and why."""

    when: When
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} {self.when} the run is not known: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What did not hold, and what could not be read; a thing is named once, by when it began."""

    broken: tuple[Broken, ...] = ()
    unread: tuple[Unread, ...] = ()


@dataclass
class _Found:
    broken: list[Broken] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)

    def judged(self) -> Judged:
        """The first of each thing."""
        broken = {each.what: each for each in reversed(self.broken)}
        unread = {each.what: each for each in reversed(self.unread) if each.what not in broken}
        return Judged(
            broken=tuple(each for each in self.broken if broken.get(each.what) is each),
            unread=tuple(each for each in self.unread if unread.get(each.what) is each),
        )


def check_conditions(target: Target, report: TelemetryReport) -> Judged:
    """What the target declares against what a watch saw of the whole run."""
    found = _Found()
    _check_state(target, report.before, "before", found)
    _check_start(target, report.before, found)
    _check_run(target, report, found)
    _check_state(target, report.after, "after", found)
    return found.judged()


def check_start(target: Target, state: DeviceState) -> Judged:
    """The same before anything has run: what is broken now need not be measured first."""
    found = _Found()
    _check_state(target, state, "before", found)
    _check_start(target, state, found)
    return found.judged()


def _check_state(target: Target, state: DeviceState, when: When, found: _Found) -> None:
    declared, mode = target.conditions, target.demanded_power_mode
    if mode:
        _check_mode(mode, state, when, found)
    if declared.clocks_pinned:
        clocks = state.clocks
        pinned = clocks if isinstance(clocks, Unknown) else clocks.pinned
        if isinstance(pinned, Unknown):
            found.unread.append(Unread(when=when, what="whether the clocks are pinned",
                                       reason=pinned.reason))  # fmt: skip
        elif not pinned:
            found.broken.append(Broken(
                when=when, what="the clocks", got="not pinned", wanted="pinned by jetson_clocks",
                mend=_PIN,
            ))  # fmt: skip
    if declared.governor:
        _check_governor(declared.governor, state, when, found)


def _check_mode(wanted: str, state: DeviceState, when: When, found: _Found) -> None:
    what, got = "the power mode", state.power_mode
    if isinstance(got, Unknown):
        found.unread.append(Unread(when=when, what=what, reason=got.reason))
    elif not board.same_power_mode(got, wanted):
        mend = mode_command(wanted, state.power_modes)
        found.broken.append(Broken(when=when, what=what, got=got, wanted=wanted, mend=mend))


def mode_command(wanted: str, modes: Mapping[str, int]) -> str:
    """The command that sets a power mode: by its id, which differs from module to module."""
    for name, number in modes.items():
        if board.same_power_mode(name, wanted):
            return f"sudo nvpmodel -m {number}"
    if modes:
        return f"this device knows {', '.join(modes)} only: name one of them in the target's file"
    return "sudo nvpmodel -m ID, with the mode's ID from /etc/nvpmodel.conf"


def _check_governor(wanted: str, state: DeviceState, when: When, found: _Found) -> None:
    others = {name: got for name, got in state.governors.items() if got != wanted}
    what = "the CPUs' governor"
    if not state.governors:
        reason = "this machine has no cpufreq"
        found.unread.append(Unread(when=when, what=what, reason=reason))
    elif others:
        got = ", ".join(sorted({said or "not readable" for said in others.values()}))
        mend = f"echo {wanted} | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        found.broken.append(Broken(when=when, what=what, got=got, wanted=wanted, mend=mend))


def _check_start(target: Target, state: DeviceState, found: _Found) -> None:
    limit = target.conditions.max_start_temperature_c
    if limit is None:
        return
    hottest = sensors.hottest_c(state.temperatures_c)
    what = "the temperature"
    if isinstance(hottest, Unknown):
        found.unread.append(Unread(when="before", what=what, reason=hottest.reason))
    elif hottest > limit:
        found.broken.append(Broken(
            when="before", what=what, got=f"{hottest:.1f} C", wanted=f"at most {limit:g} C",
            mend="let it cool down, or turn its fan up",
        ))  # fmt: skip


def _check_run(target: Target, report: TelemetryReport, found: _Found) -> None:
    declared = target.conditions
    if declared.not_throttled:
        what = "whether the device was slowed down"
        if isinstance(report.slowed, Unknown):
            reason = report.slowed.reason
            found.unread.append(Unread(when="during", what=what, reason=reason))
        for said in report.slowed if not isinstance(report.slowed, Unknown) else ():
            found.broken.append(Broken(
                when="during", what=said, got="it was slowed down", wanted="its full clocks",
                mend="cool it better, or give it a stronger supply",
            ))  # fmt: skip
    if declared.clocks_pinned:
        found.broken += _fallen_clock(report)
    if declared.max_other_load is not None:
        load, what = report.other_load, "the load of other programs"
        if isinstance(load, Unknown):
            found.unread.append(Unread(when="during", what=what, reason=load.reason))
        elif load > declared.max_other_load:
            found.broken.append(Broken(
                when="during", what=what, got=f"{100 * load:.0f}% of the processors",
                wanted=f"at most {100 * declared.max_other_load:g}%", mend="end what else runs",
            ))  # fmt: skip


def _fallen_clock(report: TelemetryReport) -> Iterator[Broken]:
    """A pinned GPU whose clock falls is slowed down; at 0 it is switched off between two runs."""
    series, clocks = report.series.get("gpu_hz"), report.before.clocks
    if series is None or isinstance(clocks, Unknown) or isinstance(clocks.gpu_most_hz, Unknown):
        return
    most = clocks.gpu_most_hz
    least = min((hz for hz in series.values if hz > 0), default=most)
    if least < _SAME_CLOCK * most:
        yield Broken(
            when="during", what="the GPU's clock", got=f"{least / 1e6:.0f} MHz at its lowest",
            wanted=f"{most / 1e6:.0f} MHz", mend=f"cool the device better; {_PIN}",
        )  # fmt: skip
