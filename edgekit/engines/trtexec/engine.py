"""The engine that a device's trtexec built, with a manifest like any other's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from edgekit import files
from edgekit.engines.base import Engine, read_model
from edgekit.engines.device_recipe.document import DeviceRecipe
from edgekit.engines.manifest import LOG_FILE, write_manifest
from edgekit.engines.trt.engine import layers_of
from edgekit.engines.trtexec.flags import MODEL_FILE, generation_of
from edgekit.engines.trtexec.results import AGAIN, DeviceRun, read_run
from edgekit.engines.trtexec.script_parts import ENGINE_FILE
from edgekit.errors import InputError
from edgekit.values import Unknown

_FIGURES = (
    "weight_bytes", "activation_bytes", "scratch_bytes", "host_persistent_bytes",
    "device_persistent_bytes",
)  # fmt: skip
_TIMED = "the builder timed its kernels on the device: another build may differ in its bytes"


def device_engine(recipe: DeviceRecipe, results: Path, run: DeviceRun, folder: Path) -> Engine:
    """The engine of the results with its manifest, written into the folder.

    Raises InputError where the engine is not there, or not the one that was built.
    """
    source = results / ENGINE_FILE
    try:
        wanted = (results / f"{ENGINE_FILE}.sha256").read_text().strip()
        found = files.digest_file(source)
    except OSError as error:
        raise InputError(
            "the engine is not in the results", where=str(source),
            got=error.strerror or str(error), hint=AGAIN,
        ) from error  # fmt: skip
    if found != wanted:
        raise InputError(
            "the engine is not the one that was built", where=str(source),
            got=f"SHA-256 {found}", wanted=f"SHA-256 {wanted}", hint=AGAIN,
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / ENGINE_FILE)
    shutil.copyfile(results / "build.log", folder / LOG_FILE)
    build = next(
        b for b in recipe.builds
        if generation_of(b["runtime"]["version"]) == generation_of(run.version)
    )  # fmt: skip
    log = read_run(results / "build.log")
    model = read_model(recipe.folder / MODEL_FILE)
    layer_figures, layers, layer_notes = layers_of(model, recipe.batch, _layers_told(results))
    engine = Engine(
        path=folder / ENGINE_FILE,
        name=recipe.name,
        target=recipe.target.name,
        runtime="tensorrt",
        runtime_version=run.version,
        precision=recipe.precision,
        sha256=found,
        file_bytes=source.stat().st_size,
        model_sha256=recipe.sha256[MODEL_FILE],
        inputs=model.inputs,
        outputs=model.outputs,
        extents=recipe.extents,
        built_for={
            "compute_capability": recipe.target.compute_capability,
            **_platform(run.facts),
        },
        settings={"trtexec": " ".join(build["trtexec"])},
        figures={**{name: log.figure(name) for name in _FIGURES}, **layer_figures},
        layers=layers,
        log_sha256=files.digest_file(folder / LOG_FILE),
        notes=(_TIMED, *layer_notes, *run.notes),
    )  # fmt: skip
    write_manifest(engine)
    return engine


def _layers_told(results: Path) -> str | Unknown:
    try:
        return (results / "layers.json").read_text(errors="replace")
    except OSError:
        return Unknown("trtexec exported no layers")


def _platform(facts: Mapping[str, str]) -> dict[str, str]:
    """What an engine holds for, by the names of `here.facts_here`."""
    found = {
        "machine": facts.get("machine", ""), "system": facts.get("system", "").partition(" ")[0],
        "device": facts.get("model", ""), "l4t": facts.get("l4t", ""),
        "jetpack": facts.get("jetpack", ""), "power_mode": facts.get("power_mode", ""),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value}
