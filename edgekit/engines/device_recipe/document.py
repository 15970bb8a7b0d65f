"""What a build host hands to a device: the model, how to build it there, and how it is judged.

A folder with `device.json`, the ONNX file, golden inputs and what the model answers to them; and
for a target with trtexec a script that needs nothing of ours (`trtexec_script.py`).
`device_recipe_writing.py` makes it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import files
from edgekit.engines.base import EngineRequest, Extent
from edgekit.engines.trtexec.flags import MODEL_FILE, generation_of
from edgekit.errors import InputError
from edgekit.targets import Target
from edgekit.values import Array, Feeds, TensorSpec

FORMAT = 2
DEVICE_FILE = "device.json"
GOLDEN_FILE = "golden.npz"
ORIGINAL_FILE = "original.onnx"

_AGAIN = "Make the recipe again on the build host, and copy all of its folder."


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an engine's answers may be from the golden ones.

    `max_relative_error` is max|a - b| / max|b| of any output, `min_cosine` of each output as one
    vector, `min_top1` the share of samples whose largest class is the same.
    """

    max_relative_error: float
    min_cosine: float
    min_top1: float


TOLERANCES: Mapping[str, Tolerance] = {
    # A GPU from Ampere on multiplies FP32 as TF32, with 10 bits of mantissa.
    "fp32": Tolerance(max_relative_error=1e-2, min_cosine=0.9999, min_top1=0.99),
    "fp16": Tolerance(max_relative_error=5e-2, min_cosine=0.999, min_top1=0.95),
    # A sum that lies between two levels goes to either: steps of 1/127, some layers of them.
    "int8": Tolerance(max_relative_error=2e-1, min_cosine=0.99, min_top1=0.9),
}
"""By precision. Our choice: wide enough for another order of summation, and for no more."""


@dataclass(frozen=True, kw_only=True)
class GoldenBatch:
    """Inputs of one batch and what the model answers, run operator by operator on the host."""

    inputs: Feeds
    outputs: Feeds


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """How long a device measures, in how many rounds."""

    seconds: float
    rounds: int
    warmup_seconds: float


@dataclass(frozen=True, kw_only=True)
class DeviceRecipe:
    """A folder that a device can build from, read and whole.

    `stamp` names the model, its golden batches and the settings: results carry it. `judging` is
    what the gate needs of the host's knowledge, as the pipeline wrote it.
    """

    folder: Path
    name: str
    target: Target
    precision: str
    builds: tuple[Mapping[str, Any], ...]
    extents: Mapping[str, Extent]
    golden: tuple[GoldenBatch, ...]
    samples: int
    batch: int
    bench: BenchPlan
    tolerance: Tolerance
    judging: Mapping[str, Any]
    outputs: tuple[TensorSpec, ...]
    files: tuple[str, ...]
    sha256: Mapping[str, str]
    stamp: str
    dla_core: int | None
    workspace_bytes: int | None
    threads: int

    @property
    def has_original(self) -> bool:
        """Whether the original is built and measured beside it: a limit compares the two."""
        return ORIGINAL_FILE in self.sha256

    def original_request(self) -> EngineRequest:
        """What a runtime is asked for to have the original beside it, in FP32."""
        place = self.folder / ORIGINAL_FILE
        return replace(self.request(), model_path=place, precision="fp32", dla_core=None)

    def request(self) -> EngineRequest:
        """What a runtime on the device is asked for."""
        return EngineRequest(
            model_path=self.folder / MODEL_FILE, name=self.name, target=self.target,
            precision=self.precision, shapes=self.extents, workspace_bytes=self.workspace_bytes,
            dla_core=self.dla_core, threads=self.threads, sample=self.golden[0].inputs,
        )  # fmt: skip


def has_trtexec(target: Target) -> bool:
    """Whether an engine for the target can be built by trtexec, on the device."""
    return target.runtime.name == "tensorrt"


def digest_of(content: object) -> str:
    """The SHA-256 of what JSON makes of it, keys sorted."""
    return files.digest_bytes(json.dumps(content, sort_keys=True).encode())


def load_device_recipe(folder: Path) -> DeviceRecipe:
    """The recipe of a folder, every file of it checked.

    Raises InputError where there is none, where it is of another format, and where a file is not
    the one that was written: the first that differs is named.
    """
    place = folder / DEVICE_FILE
    try:
        document = json.loads(place.read_text())
        if document["format"] != FORMAT:
            raise InputError(
                "this device recipe is of another format", where=str(place),
                got=f"format {document['format']!r}", wanted=f"format {FORMAT}", hint=_AGAIN,
            )  # fmt: skip
        digest = document.pop("digest")
        if digest != digest_of(document):
            raise InputError(
                "this device recipe was changed after it was written", where=str(place),
                got=f"SHA-256 {digest_of(document)}", wanted=f"SHA-256 {digest}", hint=_AGAIN,
            )  # fmt: skip
        _check_files(folder, document["sha256"])
        return _from_json(folder, document)
    except FileNotFoundError as error:
        raise InputError(
            "this is no device recipe", where=str(place),
            hint="Name the folder device/ of a target that edgekit build made.",
        ) from error  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            "this device recipe cannot be read",
            where=str(place), got=f"{type(error).__name__}: {error}", hint=_AGAIN,
        ) from error  # fmt: skip


def _check_files(folder: Path, sha256: Mapping[str, str]) -> None:
    for name, wanted in sha256.items():
        try:
            found = files.digest_file(folder / name)
        except OSError as error:
            raise InputError(
                "a file of this device recipe cannot be read",
                where=str(folder / name), got=error.strerror or str(error), hint=_AGAIN,
            ) from error  # fmt: skip
        if found != wanted:
            raise InputError(
                "a file of this device recipe is not the one that was written",
                where=str(folder / name), got=f"SHA-256 {found}", wanted=f"SHA-256 {wanted}",
                hint=f"It was changed, or copied in part. {_AGAIN}",
            )  # fmt: skip


def _from_json(folder: Path, stored: Mapping[str, Any]) -> DeviceRecipe:
    return DeviceRecipe(
        folder=folder,
        name=stored["name"],
        target=Target.model_validate_json(json.dumps(stored["target"])),
        precision=stored["precision"],
        builds=tuple(stored["builds"]),
        extents={name: _extent(shapes) for name, shapes in stored["extents"].items()},
        golden=_golden(folder / GOLDEN_FILE),
        samples=stored["samples"],
        batch=stored["batch"],
        bench=BenchPlan(**stored["bench"]),
        tolerance=Tolerance(**stored["tolerance"]),
        judging=stored["judging"],
        outputs=tuple(
            TensorSpec(name=s["name"], dtype=s["dtype"], shape=tuple(s["shape"]))
            for s in stored["outputs"]
        ),
        files=(*stored["sha256"], DEVICE_FILE),
        sha256=stored["sha256"],
        stamp=stored["stamp"],
        dla_core=stored["dla_core"],
        workspace_bytes=stored["workspace_bytes"],
        threads=stored["threads"],
    )


def _extent(shapes: Sequence[Sequence[int]]) -> Extent:
    smallest, best, largest = (tuple(shape) for shape in shapes)
    return smallest, best, largest


def _golden(path: Path) -> tuple[GoldenBatch, ...]:
    found: dict[int, dict[str, dict[str, Array]]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored.files:
            side, batch, name = key.split(".", 2)
            found.setdefault(int(batch), {"input": {}, "output": {}})[side][name] = stored[key]
    return tuple(
        GoldenBatch(inputs=found[k]["input"], outputs=found[k]["output"]) for k in sorted(found)
    )


def refuse_other_version(recipe: DeviceRecipe, version: str) -> None:
    """Raises InputError where a TensorRT is of no generation that the recipe has settings for."""
    known = [build["runtime"]["version"] for build in recipe.builds]
    if generation_of(version) not in [generation_of(v) for v in known]:
        raise InputError(
            "this device has a TensorRT that the recipe has no settings for",
            where=recipe.target.name, got=f"TensorRT {version}",
            wanted=", ".join(f"TensorRT {v}" for v in known),
            hint="Make the recipe for this JetPack on the build host.",
        )  # fmt: skip
