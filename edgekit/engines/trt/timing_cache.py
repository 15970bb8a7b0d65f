"""TensorRT's timing cache: one file for each target, device, TensorRT and CUDA version.

A second build with it need not time the same kernels again. It is worth nothing to another
version, so the file begins with a line of JSON that says what it is of; one that is not what it
should be is put aside, and the build goes on without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit import files
from edgekit.errors import EdgekitError

_ASIDE = ".aside"


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """What a timing cache is good for. An unknown version is "unknown", and a key of its own."""

    target: str
    device: str
    tensorrt: str
    cuda: str

    def file_name(self) -> str:
        """A file name that holds all of it."""
        parts = (self.target, self.device, f"trt{self.tensorrt}", f"cuda{self.cuda}")
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts) + ".cache"

    def to_json(self) -> dict[str, str]:
        """JSON-ready."""
        return {
            "target": self.target, "device": self.device,
            "tensorrt": self.tensorrt, "cuda": self.cuda,
        }  # fmt: skip


def read_cache(folder: Path, key: CacheKey) -> tuple[bytes, str]:
    """The cache's content, empty where there is none; and what is to be said of it.

    One that is damaged, or of other versions, is renamed out of the way and said.
    """
    place = folder / key.file_name()
    try:
        content = place.read_bytes()
    except FileNotFoundError:
        return b"", ""
    except OSError as error:
        return b"", f"the timing cache cannot be read ({error.strerror}): built without it"
    told, content = _parted(content)
    wrong = ""
    if told.get("sha256") != files.digest_bytes(content):
        wrong = "is damaged"
    elif told.get("of") != key.to_json():
        wrong = "is of another version"
    if not wrong:
        return content, ""
    return b"", put_aside(folder, key, wrong)


def put_aside(folder: Path, key: CacheKey, wrong: str) -> str:
    """Renames the cache out of the way and says why; the note is for the manifest."""
    place = folder / key.file_name()
    try:
        place.replace(place.with_name(place.name + _ASIDE))
    except OSError as error:
        return f"the timing cache {wrong} and cannot be moved ({error.strerror})"
    return f"the timing cache {wrong}: put aside as {place.name}{_ASIDE}"


def write_cache(folder: Path, key: CacheKey, content: bytes) -> str:
    """Keeps the cache; "" or why that failed, which must not lose an engine that is built."""
    place = folder / key.file_name()
    account = {"of": key.to_json(), "sha256": files.digest_bytes(content)}
    try:
        files.write_bytes(place, json.dumps(account).encode() + b"\n" + content)
    except (EdgekitError, OSError) as error:
        return f"the timing cache could not be kept: {error}"
    return ""


def _parted(stored: bytes) -> tuple[Mapping[str, object], bytes]:
    head, _, content = stored.partition(b"\n")
    try:
        told = json.loads(head)
    except ValueError:
        told = None
    return (told if isinstance(told, dict) else {}), content
