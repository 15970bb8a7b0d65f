"""Files that are either the old ones or the new ones, never half of one.

Everything is written beside its place and moved into it. A build that is killed leaves at most a
hidden `.partial-*` neighbour, which the next one removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekit.errors import InputError, ResourceError

PARTIAL = ".partial-"


def digest_bytes(content: bytes) -> str:
    """The SHA-256 of the content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: Path) -> str:
    """The SHA-256 of the file, in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Puts the content at the path at once; the folder is made.

    Raises ResourceError on a full disk, InputError where the place cannot be written.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Puts the text, as UTF-8, at the path at once. Raises as `write_bytes` does."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lends a path beside `path`; what stands there at the end is moved into place."""
    with translated_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f"{PARTIAL}{path.name}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            partial.chmod(0o666 & ~_umask())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Lends an empty folder beside `path`; it takes the place of `path` at the end."""
    with translated_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(path)
        try:
            yield partial
            partial.chmod(0o777 & ~_umask())
            if path.exists():
                old = _beside(path)
                path.replace(old)
                partial.replace(path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                partial.replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _beside(path: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{path.name}-", dir=path.parent))


def remove_partials(path: Path) -> int:
    """How many left-overs of killed writers of `path` were removed.

    Call it only while nobody else can be writing there.
    """
    found = list(path.parent.glob(f"{PARTIAL}{path.name}-*"))
    for partial in found:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
    return len(found)


@contextlib.contextmanager
def locked(path: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds the lock file alone; `on_wait` is called once if another process has it.

    The lock falls with the process that holds it, however it ends.
    """
    import fcntl

    with translated_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turns what the system says about a place on disk into an EdgekitError about it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                "the disk is full",
                where=str(path),
                hint="Free some space, or name another folder with --out; nothing was changed.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST,
                           errno.EISDIR, errno.ENAMETOOLONG):  # fmt: skip
            raise InputError(
                "this place cannot be written",
                where=str(path),
                got=error.strerror or str(error),
                hint="Name a folder that you may write to with --out.",
            ) from error
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
