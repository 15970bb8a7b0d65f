"""Where a model's weights lie outside the file: inside its folder, mapped, never read in whole."""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import onnx

from edgekit.errors import InputError

_COPY_HINT = "Copy the data file beside the model once more: an .onnx with external data is two."


@dataclass
class ExternalFiles:
    """The mapped data files of one model, each opened once. `folder` is the model's, resolved.

    A map stays while an array looks into it, also where the file is replaced by another.
    """

    model: Path
    folder: Path = field(init=False)
    maps: dict[str, memoryview] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.model.parent.resolve()

    def content(self, tensor: onnx.TensorProto, wanted_bytes: int) -> memoryview:
        """The bytes of an external tensor, not copied.

        Raises InputError for a place outside the folder, for anything but a file of data, and for
        one that is missing or does not hold exactly what the tensor's shape and type want.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in self.maps:
            self.maps[location] = map_file(self._place(location, tensor.name))
        whole = self.maps[location]
        offset = self._number(entries, "offset", 0, tensor.name)
        length = self._number(entries, "length", wanted_bytes, tensor.name)
        if length != wanted_bytes:
            raise InputError(
                f'the external weights of "{tensor.name}" are of another size than the tensor',
                where=str(self.model), got=f"{length} bytes", wanted=f"{wanted_bytes} bytes",
                hint="Export the model again.",
            )  # fmt: skip
        if offset + length > len(whole):
            raise InputError(
                f'the external weights of "{tensor.name}" are cut short',
                where=str(self.folder / location), got=f"{len(whole)} bytes",
                wanted=f"at least {offset + length} bytes", hint=_COPY_HINT,
            )  # fmt: skip
        return whole[offset : offset + length]

    def _place(self, location: str, name: str) -> Path:
        outside = InputError(
            f'the weights of "{name}" lie outside the model\'s folder', where=str(self.model),
            got=repr(location) if location else "no location", wanted=f"a file in {self.folder}",
            hint="Move the weights beside the model and save it again; "
            "edgekit does not follow paths out of a model's folder.",
        )  # fmt: skip
        pure = PurePosixPath(location)
        if not location or "\0" in location or "\\" in location or ":" in location[:2]:
            raise outside
        if pure.is_absolute() or ".." in pure.parts:
            raise outside
        place = Path(os.path.realpath(self.folder / location))
        if not place.is_relative_to(self.folder):
            raise outside
        try:
            kind = place.stat()
        except OSError as error:
            raise InputError(
                f'the external weights of "{name}" are missing', where=str(self.model),
                got=error.strerror or str(error), wanted=f"{place}"[:1000], hint=_COPY_HINT,
            ) from error  # fmt: skip
        if not stat.S_ISREG(kind.st_mode) or place == self.model.resolve():
            raise InputError(
                f'what holds the weights of "{name}" is no file of data', where=str(self.model),
                got=location, wanted="a plain file beside the model", hint="Export it again.",
            )  # fmt: skip
        return place

    def _number(self, entries: dict[str, str], key: str, default: int, name: str) -> int:
        text = entries.get(key)
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise InputError(
                f'the place of "{name}" in its data file is no number', where=str(self.model),
                got=f"{key} = {text[:40]!r}", wanted="a number of bytes", hint="Export it again.",
            )  # fmt: skip
        return int(text)


def map_file(path: Path) -> memoryview:
    """The content of a plain file, mapped: its pages are read when they are looked at.

    Raises OSError where it cannot be opened, InputError where it is no plain file.
    """
    # A pipe would block for ever; what was a file a moment ago may be a link now.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise InputError("this is no file", where=str(path), wanted="a plain file")
        if not found.st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(handle)
