"""Files copied to and from where a shell leads, through that shell, by tar."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from edgekit import files
from edgekit.engines.processes.shells import (
    ENDED,
    TERM_S,
    OnLine,
    Shell,
    full_or,
    judged,
    started,
)
from edgekit.errors import InputError

_LIMIT_S = 3600.0


def push(
    shell: Shell, folder: Path, names: Mapping[str, str], place: str, *,
    on_line: OnLine = lambda line: None,
) -> int:  # fmt: skip
    """How many of the folder's files, SHA-256 by name, were copied to `place` there.

    What lies there already with the same digest is not sent again. `place` is a shell word, and may
    have variables in it. Raises as `run` does, and ResourceError where the disk there is full.
    """
    here = {name for name in names if not _lies_there(shell, place, names).get(name)}
    if not here:
        return 0
    on_line(f"copying {len(here)} files to {shell.name}")
    line = f'mkdir -p {place} && tar -xf - -C {place}; code=$?; echo "{ENDED}$code" >&2; exit $code'
    with started(shell, line, stdout=subprocess.DEVNULL) as talk:
        assert talk.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, OSError):
            with tarfile.open(fileobj=talk.process.stdin, mode="w|", dereference=True) as archive:
                for name in sorted(here):
                    archive.add(folder / name, arcname=name, recursive=False)
            talk.process.stdin.close()
        code = talk.wait(_LIMIT_S, lambda line: None, "the copy to the device")
        ended = judged(shell, code, talk.lines)
    if ended.code:
        raise full_or(
            ended.said,
            InputError(
                "the files cannot be written on the device", where=f"{place} on {shell.name}",
                got=ended.said,
            ),
            shell,
        )  # fmt: skip
    return len(here)


def _lies_there(shell: Shell, place: str, names: Mapping[str, str]) -> dict[str, bool]:
    """Which of the files lie there, whole."""
    listed = " ".join(shlex.quote(name) for name in names)
    script = f"cd {place} 2>/dev/null || exit 0; sha256sum -- {listed} 2>/dev/null || true"
    line = f'({script}); echo "{ENDED}$?" >&2'
    with started(shell, line, stdout=subprocess.PIPE) as talk:
        assert talk.process.stdout is not None
        said = talk.process.stdout.read().decode(errors="replace")
        code = talk.wait(60.0, lambda line: None, "the look at the device's files")
        judged(shell, code, talk.lines)
    found = dict(row.split(None, 1)[::-1] for row in said.splitlines() if len(row.split()) > 1)
    there = {name.lstrip("*").strip(): digest for name, digest in found.items()}
    return {name: there.get(name) == digest for name, digest in names.items()}


def pull(shell: Shell, place: str, name: str, folder: Path, *, before: str = "true") -> None:
    """Copies the folder `name` of `place` there to `folder` here, all of it or nothing.

    `before` is run there first, on the same connection.

    Raises as `run` does, and InputError where what comes is no folder of plain files.
    """
    line = (
        f'{before} && cd {place} && tar -cf - {shlex.quote(name)}; code=$?; echo "{ENDED}$code" >&2'
    )
    with (
        files.replacing_folder(folder) as partial,
        started(shell, line, stdout=subprocess.PIPE) as talk,
    ):
        assert talk.process.stdout is not None
        try:
            with tarfile.open(fileobj=talk.process.stdout, mode="r|") as archive:
                for member in archive:
                    _keep(archive, member, name, partial)
        except tarfile.TarError as error:
            code = talk.wait(TERM_S, lambda line: None, "the copy from the device")
            judged(shell, code, talk.lines)
            raise InputError(
                "what the device sent is no archive", where=shell.name, got=str(error)
            ) from error
        code = talk.wait(_LIMIT_S, lambda line: None, "the copy from the device")
        judged(shell, code, talk.lines)


def _keep(
    archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, folder: Path
) -> None:  # fmt: skip
    path = PurePosixPath(member.name)
    if member.isdir():
        return
    if not member.isfile() or path.is_absolute() or ".." in path.parts or path.parts[0] != name:
        raise InputError(
            "what the device sent is no folder of plain files", got=f"{member.name!r:.200}"
        )
    source = archive.extractfile(member)
    assert source is not None
    place = folder.joinpath(*path.parts[1:])
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("wb") as stream:
        shutil.copyfileobj(source, stream)
