"""The manifest beside an engine file: what the engine is, written and read as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit import files
from edgekit.engines.base import NOT_ASKED, Engine, Extent
from edgekit.engines.trt.inspector import EngineLayer
from edgekit.errors import InputError
from edgekit.values import TensorSpec, Unknown, figure_from_json, figure_to_json

FORMAT = 2
_READ = (1, FORMAT)  # 1 had no flags, no layers and no log
MANIFEST_FILE = "manifest.json"
LOG_FILE = "build.log"
"""What a builder said while it built, beside the engine too."""

_REBUILD = "Build the engine again: edgekit build."


def write_manifest(engine: Engine) -> None:
    """Puts the manifest beside the engine file. Raises as `files.write_text` does."""
    document = {
        "format": FORMAT,
        "file": engine.path.name,
        "name": engine.name,
        "target": engine.target,
        "runtime": {"name": engine.runtime, "version": engine.runtime_version},
        "precision": engine.precision,
        "sha256": engine.sha256,
        "bytes": engine.file_bytes,
        "model_sha256": engine.model_sha256,
        "inputs": [_spec_to_json(spec) for spec in engine.inputs],
        "outputs": [_spec_to_json(spec) for spec in engine.outputs],
        "extents": {name: [list(s) for s in extent] for name, extent in engine.extents.items()},
        "built_for": dict(engine.built_for),
        "settings": dict(engine.settings),
        "figures": {name: figure_to_json(figure) for name, figure in engine.figures.items()},
        "flags": list(engine.flags),
        "layers": _layers_to_json(engine.layers),
        "log_sha256": engine.log_sha256,
        "notes": list(engine.notes),
    }
    files.write_text(engine.path.parent / MANIFEST_FILE, json.dumps(document, indent=2) + "\n")


def load_engine(path: Path) -> Engine:
    """The engine of a folder, or of an engine file with its manifest beside it.

    Raises InputError where one of the two is missing, where the manifest is not one that this
    version reads, and where the engine file is not the one that the manifest was written for.
    """
    folder = path if path.is_dir() else path.parent
    manifest = folder / MANIFEST_FILE
    try:
        engine = _engine_from_json(folder, json.loads(manifest.read_text()))
    except FileNotFoundError as error:
        raise InputError(
            "this is no engine: it has no manifest",
            where=str(manifest), hint="Give the folder that edgekit build left.",
        ) from error  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "the engine's manifest cannot be read",
            where=str(manifest), got=f"{type(error).__name__}: {error}", hint=_REBUILD,
        ) from error  # fmt: skip
    if path.is_file() and path.name not in (engine.path.name, MANIFEST_FILE):
        raise InputError(
            "the manifest beside this file is another file's",
            where=str(path), got=path.name, wanted=engine.path.name,
        )  # fmt: skip
    _check_digest(engine)
    return engine


def _check_digest(engine: Engine) -> None:
    try:
        found = files.digest_file(engine.path)
    except OSError as error:
        raise InputError(
            "the engine file cannot be read",
            where=str(engine.path), got=error.strerror or str(error), hint=_REBUILD,
        ) from error  # fmt: skip
    if found != engine.sha256:
        raise InputError(
            "the engine file is not the one that its manifest describes",
            where=str(engine.path),
            got=f"SHA-256 {found}",
            wanted=f"SHA-256 {engine.sha256}",
            hint=f"It was changed, or copied in part. {_REBUILD}",
        )


def _engine_from_json(folder: Path, stored: Mapping[str, Any]) -> Engine:
    if stored.get("format") not in _READ:
        raise InputError(
            "this manifest has a format that this version of edgekit does not read",
            where=str(folder / MANIFEST_FILE),
            got=f"format {stored.get('format')!r}", wanted=f"format {FORMAT}", hint=_REBUILD,
        )  # fmt: skip
    file = str(stored["file"])
    if Path(file).name != file:
        raise ValueError(f"the engine file {file!r} lies outside the folder")
    return Engine(
        path=folder / file,
        name=stored["name"],
        target=stored["target"],
        runtime=stored["runtime"]["name"],
        runtime_version=stored["runtime"]["version"],
        precision=stored["precision"],
        sha256=stored["sha256"],
        file_bytes=int(stored["bytes"]),
        model_sha256=stored["model_sha256"],
        inputs=tuple(_spec_from_json(spec) for spec in stored["inputs"]),
        outputs=tuple(_spec_from_json(spec) for spec in stored["outputs"]),
        extents={name: _extent_from_json(extent) for name, extent in stored["extents"].items()},
        built_for=dict(stored["built_for"]),
        settings=dict(stored["settings"]),
        figures={name: figure_from_json(f) for name, f in stored["figures"].items()},
        flags=tuple(stored.get("flags", ())),
        layers=_layers_from_json(stored["layers"]) if "layers" in stored else NOT_ASKED,
        log_sha256=stored.get("log_sha256", ""),
        notes=tuple(stored["notes"]),
    )


def _layers_to_json(layers: tuple[EngineLayer, ...] | Unknown) -> object:
    if isinstance(layers, Unknown):
        return figure_to_json(layers)
    return [{"name": a.name, "kind": a.kind, "precision": a.precision} for a in layers]


def _layers_from_json(stored: Any) -> tuple[EngineLayer, ...] | Unknown:
    if isinstance(stored, Mapping):
        return Unknown(str(stored["unknown"]))
    return tuple(
        EngineLayer(name=a["name"], kind=a["kind"], precision=a["precision"]) for a in stored
    )


def _spec_to_json(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _spec_from_json(stored: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=stored["name"], dtype=stored["dtype"], shape=tuple(stored["shape"]))


def _extent_from_json(stored: Sequence[Sequence[int]]) -> Extent:
    smallest, best, largest = (tuple(shape) for shape in stored)
    return smallest, best, largest
