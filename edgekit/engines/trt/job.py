"""What the process that builds is asked for, as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from edgekit.engines.base import Extent, Typing


@dataclass(frozen=True, kw_only=True)
class CompileJob:
    """One network to compile.

    `package` is imported in the child and `extra` brings it. `compute_capability` is a name of
    its enumeration, such as SM86; empty is the device at hand. Only dynamic inputs have an extent.
    `typed_graph`: every tensor of the graph has the type that it should run in. `half_allowed`:
    layers without Q/DQ may run in FP16. `timing_cache` is a folder, "" for none; `target`, `device`
    and `cuda` are parts of its file's name.
    """

    package: str
    extra: str
    model: str
    engine: str
    target: str = ""
    device: str = "unknown"
    cuda: str = "unknown"
    compute_capability: str = ""
    workspace_bytes: int = 1 << 30
    extents: Mapping[str, Extent] = field(default_factory=dict)
    precision: str = "fp32"
    typing: Typing = "auto"
    typed_graph: bool = True
    half_allowed: bool = True
    sparse_layers: int = 0
    refit: bool = False
    strip: bool = False
    optimization_level: int | None = None
    dla_core: int | None = None
    max_dla_fallbacks: int | None = None
    timing_cache: str = ""


def job_to_line(job: CompileJob) -> str:
    """The job as one line."""
    return json.dumps(asdict(job))


def job_from_line(line: str) -> CompileJob:
    """What `job_to_line` made."""
    stored = json.loads(line)
    stored["extents"] = {
        name: tuple(tuple(shape) for shape in extent) for name, extent in stored["extents"].items()
    }
    return CompileJob(**stored)
