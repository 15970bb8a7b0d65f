"""Results of steps under the hash of everything that made them.

A key is the hash of the step's name, of its options, of the keys of what it reads, of the versions
that matter and of edgekit's own source. So all keys of a build are known before anything runs, and
there is no way to ask for a stale entry.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgekit import files

_PACKAGE = Path(__file__).resolve().parent.parent
# The rooms whose code decides what a step makes.
_MAKING = (
    "values.py", "models", "data", "train", "compress", "quantize", "engines", "verify.py",
    "pipeline",
)  # fmt: skip


@functools.cache
def code_digest() -> str:
    """The hash of edgekit's own source, as far as it decides what a step makes."""
    digest = hashlib.sha256()
    for name in _MAKING:
        place = _PACKAGE / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed version of each package; "absent" where it is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def key_of(step: str, **made_from: object) -> str:
    """The key of a step's result: 40 hexadecimal digits. Everything in it must be JSON-ready."""
    text = json.dumps([step, code_digest(), made_from], sort_keys=True)
    return files.digest_bytes(text.encode())[:40]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something to make: `make` fills the folder that it is given.

    `partial` is a folder that outlives a kill, for a step that can be taken up again; it is empty
    at first and removed once the step is done.
    """

    name: str
    key: str
    make: Callable[[Path, Path], None]


@dataclass(frozen=True)
class Cache:
    """A folder of results. Two processes may use it at once: one makes, the other waits."""

    folder: Path

    def entry(self, step: Step) -> Path:
        """Where the step's result lies once it is made."""
        return self.folder / f"{step.name}-{step.key}"

    def has(self, step: Step) -> bool:
        """Whether the step's result is there. It is there whole or not at all."""
        return self.entry(step).is_dir()

    def fetch(self, step: Step, *, on_wait: Callable[[], None] = lambda: None) -> Path:
        """The folder of the step's result, made now if nobody has made it.

        `on_wait` is called where another build is making it just now.
        """
        entry = self.entry(step)
        if entry.is_dir():
            return entry
        with self._alone(step, on_wait):
            if not entry.is_dir():
                partial = self.folder / "partial" / f"{step.name}-{step.key}"
                with files.translated_errors(partial):
                    partial.mkdir(parents=True, exist_ok=True)
                files.remove_partials(entry)  # of a build that was killed just here
                with files.replacing_folder(entry) as folder:
                    step.make(folder, partial)
                shutil.rmtree(partial, ignore_errors=True)
        return entry

    @contextlib.contextmanager
    def _alone(self, step: Step, on_wait: Callable[[], None]) -> Iterator[None]:
        lock = self.folder / "locks" / f"{step.name}-{step.key}"
        with files.locked(lock, on_wait=on_wait):
            yield


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in a file that edgekit wrote."""
    found: dict[str, object] = json.loads(path.read_text())
    return found


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes the object as JSON that a person can read, at once."""
    files.write_text(path, json.dumps(content, indent=2, sort_keys=False) + "\n")
