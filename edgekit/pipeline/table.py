"""The per-layer table of a network on one target: measured layer by layer, kept for other networks.

Each layer at each width is one file under the hash of its shape and of all that its time depends
on, written as soon as it is measured: a table that was interrupted goes on where it was, and a
network that has layers of another one takes them from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from edgekit import files
from edgekit.bench.layers import (
    LayerPlan,
    LayerTime,
    measure_bytes_per_s,
    measure_layers,
)
from edgekit.compress.channels.budgeting.latency import LayerTable
from edgekit.compress.channels.budgeting.layers import Layer, Network, layer_from_json, network_of
from edgekit.compress.channels.groups import find_groups
from edgekit.errors import InputError
from edgekit.models.cost.fusion import Runtime
from edgekit.models.simplify import clean
from edgekit.pipeline.layer_device import Device, device_of, whole_latency
from edgekit.pipeline.layer_store import LayerStore, positive
from edgekit.pipeline.origin import Origin, open_origin
from edgekit.pipeline.result import OnEvent, StepEvent
from edgekit.targets import Precision, Target, preferred_multiple, resolve_target

FORMAT = 1

# Above these a table says that it doubts itself.
_SPREAD, _SCALE = 0.3, 1.25


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """A network whose layers to measure, and on what. `cache` None is the user's cache folder."""

    origin: Origin
    target: str
    precision: Precision = "fp32"
    batch: int = 1
    threads: int = 0
    cache: Path | None = None
    out: Path | None = None
    plan: LayerPlan = field(default_factory=LayerPlan)


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """The table as a document, and the exit code: 3 where nothing could be measured."""

    document: Mapping[str, Any]
    exit_code: int = 0

    def summary(self) -> dict[str, object]:
        """What a person wants to see of it: all but the widths, and the slowest layers."""
        shown = {k: v for k, v in self.document.items() if k not in ("layers", "network")}
        for row in self.document.get("network", ())[:8]:
            shown[row["layer"]] = f"{row['count']} x {row['ms']:.4f} ms"
        return shown


def make_table(
    request: TableRequest, *, on_event: OnEvent = lambda event: None
) -> TableReport:  # fmt: skip
    """Measures what the cache lacks of a network's layers, and the network itself, on its target.

    The sum of the layers is held against the whole network: `scale` is measured / sum, and a
    latency that is read from the table is multiplied with it. Raises InputError as the model's
    reader and the runtime do. A target that is not this machine has nothing measured, exit code 3.
    """
    if request.threads < 0:
        raise InputError(
            "threads are counted from 1", got=str(request.threads), hint="0: all cores."
        )
    target = resolve_target(request.target).target
    if target.runtime.build != "here":
        return _not_here(target)
    model = clean(open_origin(request.origin).model)
    groups = find_groups(model).groups
    multiple = preferred_multiple(target, request.precision)
    network = network_of(
        model, groups, runtime=target.runtime.name, batch=request.batch, precision=request.precision
    )
    if not network.layers:
        raise InputError(
            "no layer of this model can be measured", where=model.name,
            wanted="a convolution or a product of matrices with stored weights",
        )  # fmt: skip
    store = LayerStore(target, request.threads, request.cache)
    device = device_of(target, request.precision, replace(request.plan, threads=store.threads))
    times = _measured(network, multiple, device, store, on_event)
    bytes_per_s = _bytes_per_s(network, device, store)
    on_event(StepEvent(step="whole network", target=target.name, state="started"))
    whole_s, doubts = whole_latency(model, device, request.batch, on_event)
    layers_s = sum(times[placed.layer].seconds for placed in network.layers)
    other_s = network.other_bytes / bytes_per_s
    scale = whole_s / (layers_s + other_s)
    said = f"{1e3 * whole_s:.3f} ms, the sum of its parts times {scale:.3f}"
    on_event(StepEvent(step="whole network", target=target.name, state="done", said=said))
    document = {
        "format": FORMAT,
        "source": "measured",
        "model": model.name,
        **store.conditions,
        "precision": request.precision,
        "batch": request.batch,
        "multiple": multiple,
        "whole_ms": 1e3 * whole_s,
        "layers_ms": 1e3 * layers_s,
        "other_ms": 1e3 * other_s,
        "scale": scale,
        "bytes_per_s": bytes_per_s,
        "oldest_s": time.time() - min((t.taken_at for t in times.values()), default=time.time()),
        "measured_now": store.new,
        "from_cache": len(times) - store.new,
        "doubts": [*doubts, *_doubts(times, scale)],
        "network": _rows(network, times),
        "layers": [
            {"layer": layer.to_json(), **asdict(found)} for layer, found in times.items()
        ],
    }  # fmt: skip
    if request.out is not None:
        files.write_text(request.out, json.dumps(document, indent=1) + "\n")
        document = {**document, "table": str(request.out)}
    return TableReport(document=document)


def precision_named(name: str) -> Precision:
    """The precision of that name. Raises InputError for an unknown one."""
    for precision in get_args(Precision):
        if precision == name:
            found: Precision = precision
            return found
    raise InputError(
        f'there is no precision called "{name}"', wanted=", ".join(get_args(Precision))
    )  # fmt: skip


def load_table(path: Path) -> LayerTable:
    """The table that `make_table` left in a file. Raises InputError for anything else."""
    try:
        stored = json.loads(path.read_text())
        if stored["format"] != FORMAT:
            raise InputError(
                "this table is of another version", where=str(path),
                got=str(stored["format"]), wanted=str(FORMAT), hint="Measure it again.",
            )  # fmt: skip
        return LayerTable(
            runtime=_runtime_named(stored["runtime"]),
            batch=int(stored["batch"]),
            precision=precision_named(stored["precision"]),
            multiple=int(stored["multiple"]),
            seconds={
                layer_from_json(row["layer"]): positive(row["seconds"]) for row in stored["layers"]
            },
            bytes_per_s=positive(stored["bytes_per_s"]),
            scale=positive(stored["scale"]),
        )
    except FileNotFoundError as error:
        raise InputError(
            "there is no such table",
            where=str(path),
            hint="`edgekit table MODEL -o FILE` makes it.",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "this is no table of layers that can be read", where=str(path),
            got=f"{type(error).__name__}: {error}",
        ) from error  # fmt: skip


def _runtime_named(name: str) -> Runtime:
    runtime: Runtime = get_args(Runtime)[get_args(Runtime).index(name)]
    return runtime


def _not_here(target: Target) -> TableReport:
    return TableReport(
        exit_code=3,
        document={
            "target": target.name,
            "verdict": f"not measured here: {target.title} is not this machine",
            "instead": f"the roofline: `edgekit inspect MODEL --target {target.name}` estimates "
            "from the target's peak rates, and a budget by latency without a table does the same",
        },
    )


def _measured(
    network: Network, multiple: int, device: Device, store: LayerStore, on_event: OnEvent
) -> dict[Layer, LayerTime]:  # fmt: skip
    """The time of every layer at every width of its grid: from the store, or measured now."""
    wanted: dict[Layer, None] = {}
    grids: list[list[Layer]] = []
    for placed in network.layers:
        points = [layer for row in placed.points(multiple) for layer in row]
        grids.append([layer for layer in points if layer not in wanted])
        wanted.update(dict.fromkeys(points))
    found = {layer: time for layer in wanted if (time := store.find(layer.to_json())) is not None}
    lacking = [[layer for layer in grid if layer not in found] for grid in grids]
    left = [grid for grid in lacking if grid]
    event = StepEvent(step="layers", target=device.target.name, state="started")
    on_event(event)
    done, all_of = 0, sum(map(len, left))
    for grid in left:

        def on_progress(fraction: float, begun: int = done, grid: Sequence[Layer] = grid) -> None:
            share = (begun + fraction * len(grid)) / all_of
            on_event(
                StepEvent(
                    step="layers", target=device.target.name, state="progress", fraction=share,
                    said=f"{begun} of {all_of}, {grid[-1]}",
                )
            )  # fmt: skip

        times = measure_layers(
            grid, device.target, device.plan, prepare=device.prepare, on_progress=on_progress
        )
        for layer, one in zip(grid, times, strict=True):
            store.keep(layer.to_json(), one)
            found[layer] = one
        done += len(grid)
    said = f"{all_of} measured, {len(wanted) - all_of} known"
    state = "done" if all_of else "cached"
    on_event(StepEvent(step="layers", target=device.target.name, state=state, said=said))
    return {layer: found[layer] for layer in wanted}


def _bytes_per_s(
    network: Network, device: Device, store: LayerStore
) -> float:  # fmt: skip
    """How fast all that is no layer moves its bytes: as a sum of tensors of the median size does.

    The size is rounded to a power of two, so that networks share what was measured.
    """
    median = float(np.median(network.other_sizes or (12.0 * 4096,)))
    elements = 1 << int(np.clip(np.round(np.log2(max(median, 12.0) / 12)), 8, 24))
    what = {"op": "Add", "elements": elements}
    known = store.find(what)
    if known is not None:
        return 12.0 * elements / known.seconds
    found = measure_bytes_per_s(elements, device.target, device.plan)
    seconds = 12.0 * elements / found
    store.keep(
        what,
        LayerTime(
            seconds=seconds, spread=0.0, rounds=device.plan.rounds, resolved=True,
            taken_at=time.time(),
        ),
    )  # fmt: skip
    store.new -= 1  # it is no layer
    return found


def _doubts(times: Mapping[Layer, LayerTime], scale: float) -> list[str]:
    """Every reason to measure again, or not to trust the sum of the parts."""
    found = []
    unresolved = [str(layer) for layer, one in times.items() if not one.resolved]
    if unresolved:
        found.append(f"{len(unresolved)} layers are hardly told from nothing: {unresolved[0]}")
    wide = [one.spread for one in times.values() if one.spread > _SPREAD]
    if len(wide) > len(times) / 10:
        found.append(f"{len(wide)} of {len(times)} layers spread by more than {_SPREAD:.0%}")
    if not 1 / _SCALE < scale < _SCALE:
        found.append(f"the whole takes {scale:.2f} times the sum of its parts")
    return found


def _rows(network: Network, times: Mapping[Layer, LayerTime]) -> list[dict[str, object]]:
    """The distinct layers of the network as it is, the longest first, and how many of each."""
    counts: dict[Layer, int] = {}
    for placed in network.layers:
        counts[placed.layer] = counts.get(placed.layer, 0) + 1
    ordered = sorted(counts, key=lambda layer: -counts[layer] * times[layer].seconds)
    return [
        {"layer": str(layer), "count": counts[layer], "ms": 1e3 * times[layer].seconds}
        for layer in ordered
    ]
