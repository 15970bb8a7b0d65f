"""How a device stands at one moment, as far as a measurement depends on it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit import board
from edgekit.bench import sensors
from edgekit.bench.jetson_clocks import SILENT, JetsonClocks, parse_clocks, read_clocks
from edgekit.values import Figure, Unknown


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """`governors` by CPU, `temperatures_c` by zone; `clocks` are a Jetson's.

    `power_modes` are those that nvpmodel knows, by name, and their ids.

    `throttle_counts` grow whenever a core was slowed down; `pi_flags` are the Raspberry Pi's.
    """

    power_mode: str | Unknown
    power_modes: Mapping[str, int]
    clocks: JetsonClocks | Unknown
    temperatures_c: Mapping[str, Figure]
    governors: Mapping[str, str]
    available_bytes: Figure
    throttle_counts: Mapping[str, int]
    pi_flags: int | None


def read_state(root: Path = Path("/")) -> DeviceState:
    """The state now, from the files under `root` and from NVIDIA's tools on PATH."""
    mode = board.power_mode(root)
    return DeviceState(
        power_mode=mode or Unknown("neither nvpmodel nor its files name a power mode"),
        power_modes=board.power_modes(root),
        clocks=read_clocks(root) if _has_clocks(root) else Unknown("this is no Jetson"),
        temperatures_c=sensors.temperatures_c(root),
        governors={name: clock.governor for name, clock in sensors.cpu_clocks(root).items()},
        available_bytes=sensors.available_bytes(root),
        throttle_counts=sensors.throttle_counts(root),
        pi_flags=sensors.pi_flags(root),
    )


def stored_state(root: Path, *, power_mode: str, clocks: str) -> DeviceState:
    """The state of a device elsewhere, as far as it left it: its files under `root`, and the words
    of its tools (the mode's name, what jetson_clocks --show printed), empty where they said none.
    """
    mode = power_mode or board.stored_power_mode(root)
    return DeviceState(
        power_mode=mode or Unknown("the device did not say it"),
        power_modes=board.power_modes(root),
        clocks=parse_clocks(clocks) if clocks else SILENT,
        temperatures_c={},
        governors={},
        available_bytes=Unknown("it was not asked"),
        throttle_counts={},
        pi_flags=None,
    )


def lasting_state(root: Path = Path("/")) -> dict[str, str]:
    """What of the state makes two measurements different ones, as text; nothing but on a Jetson."""
    found: dict[str, str] = {}
    if mode := board.power_mode(root):
        found["power_mode"] = mode
    if _has_clocks(root):
        pinned = read_clocks(root).pinned
        words = {True: "pinned", False: "not pinned"}
        found["clocks"] = "not readable" if isinstance(pinned, Unknown) else words[pinned]
    return found


def state_to_json(state: DeviceState) -> dict[str, object]:
    """JSON-ready."""
    clocks, mode = state.clocks, state.power_mode
    pinned = clocks if isinstance(clocks, Unknown) else clocks.pinned
    return {
        "power_mode": {"unknown": mode.reason} if isinstance(mode, Unknown) else mode,
        "clocks_pinned": {"unknown": pinned.reason} if isinstance(pinned, Unknown) else pinned,
        "temperatures_c": {
            name: {"unknown": value.reason} if isinstance(value, Unknown) else value
            for name, value in state.temperatures_c.items()
        },
        "governors": dict(state.governors),
        "throttle_counts": dict(state.throttle_counts),
        "pi_flags": state.pi_flags,
    }


def _has_clocks(root: Path) -> bool:
    return board.is_tegra(root) or shutil.which("jetson_clocks") is not None
