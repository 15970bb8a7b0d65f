"""Layers that were measured, one file each, under all that their time depends on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekit import files, machine
from edgekit.bench.layers import LayerTime
from edgekit.engines.base import runtime_module
from edgekit.targets import Target

METHOD = 1  # of measuring a layer: what another one left is not this one's


class LayerStore:
    """The files of measured layers, for one target, machine, runtime and number of threads."""

    def __init__(self, target: Target, threads: int, folder: Path | None) -> None:
        runtime = runtime_module(target.runtime.name)
        self.threads = threads or machine.physical_cores(machine.usable_cpus())
        self.conditions: dict[str, Any] = {
            "target": target.name,
            "runtime": target.runtime.name,
            "runtime_version": runtime.installed_version(),
            "cpu": machine.cpu_model(),
            "cpu_flags": " ".join(sorted(machine.cpu_flags())),
            "threads": self.threads,
        }
        self.new = 0
        self._folder = folder or cache_folder()

    def find(self, what: Mapping[str, object]) -> LayerTime | None:
        """What was measured of it under these conditions; a damaged file counts as nothing."""
        try:
            stored = json.loads(self._place(what).read_text())["time"]
            found = LayerTime(**stored)
            positive(found.seconds)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found

    def keep(self, what: Mapping[str, object], found: LayerTime) -> None:
        """Writes down what was measured."""
        document = {"what": what, "conditions": self.conditions, "time": asdict(found)}
        files.write_text(self._place(what), json.dumps(document, indent=1) + "\n")
        self.new += 1

    def _place(self, what: Mapping[str, object]) -> Path:
        key = json.dumps([METHOD, self.conditions, what], sort_keys=True)
        return self._folder / f"{files.digest_bytes(key.encode())[:40]}.json"


def cache_folder() -> Path:
    """Where measured layers of all networks lie: `edgekit/layers` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "edgekit" / "layers"


def positive(value: object) -> float:
    """The number. Raises ValueError or TypeError for what is no positive one."""
    number = float(value)  # type: ignore[arg-type]
    if not 0 < number < float("inf"):
        raise ValueError(f"{value!r} is no positive number")
    return number
