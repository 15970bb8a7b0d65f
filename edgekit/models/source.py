"""From a file on disk to a Model."""

from __future__ import annotations

from pathlib import Path

from edgekit.models.model import Model
from edgekit.models.onnx_file import read as onnx_file
from edgekit.values import Preprocessing


def load(path: Path, *, name: str = "", preprocessing: Preprocessing | None = None) -> Model:
    """The Model of an `.onnx` file, as it is in the file. Raises as `onnx_file.read.load` does."""
    return onnx_file.load(path, name=name, preprocessing=preprocessing)


def reopen(path: Path, *, name: str) -> Model:
    """The Model of a file that edgekit itself wrote (`models.model.save`), mapped, unchecked."""
    return onnx_file.reopen(path, name=name)


def from_bytes(content: bytes, *, name: str) -> Model:
    """The Model of a file that edgekit itself wrote (`models.model.to_bytes`), unchecked."""
    return onnx_file.from_bytes(content, name=name)
