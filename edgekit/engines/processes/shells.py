"""A shell on this machine, or where a command such as `ssh user@device` leads.

The command takes one more word, a command line for the shell at the other end: `ssh user@device`,
`docker exec -i NAME sh -c`. Nothing else is needed there but a POSIX shell, tar and sha256sum.
Copying is in `shell_copies.py`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgekit.engines.processes.child import environment
from edgekit.errors import EdgekitError, InputError, MissingPackageError, ResourceError

OnLine = Callable[[str], None]

ENDED = "edgekit-ended "
_LAST_LINES = 12
_TURN_S = 0.1
TERM_S = 5.0
# ssh asks for nothing, and notices a dead line; what the user says of these wins.
_SSH_OPTIONS = {
    "BatchMode": "yes", "ConnectTimeout": "15", "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shell:
    """Where commands run. `command` is complete but for the command line at the other end."""

    command: tuple[str, ...] = ("sh", "-c")
    name: str = "this machine"

    @property
    def is_here(self) -> bool:
        """Whether it is this machine's own."""
        return self.command == ("sh", "-c")


HERE = Shell()


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command at the other end ended, and the last that it said."""

    code: int
    said: str


def shell_of(via: str) -> Shell:
    """The shell that a command prefix leads to; this machine's for an empty one.

    Raises InputError where the prefix is no command line, MissingPackageError where its program is
    not on this machine.
    """
    try:
        words = shlex.split(via)
    except ValueError as error:
        raise InputError("this is no command line", where="--via", got=via) from error
    if not words:
        return HERE
    if shutil.which(words[0]) is None:
        raise MissingPackageError(
            f"there is no {words[0]} on this machine", where="--via", got=via,
            hint="Debian and Ubuntu: apt-get install openssh-client" if words[0] == "ssh" else "",
        )  # fmt: skip
    if Path(words[0]).name == "ssh":
        given = " ".join(words).lower()
        for name, value in _SSH_OPTIONS.items():
            if name.lower() not in given:
                words[1:1] = ["-o", f"{name}={value}"]
    return Shell(command=tuple(words), name=via)


def run(
    shell: Shell, script: str, *, limit_s: float, on_line: OnLine = lambda line: None,
    what: str = "the command",
) -> Ended:  # fmt: skip
    """Runs a shell script there, and waits for its end.

    It ends with this process, however this one ends: its stdin is a pipe that closes then, and a
    watcher at the other end waits for that. Raises ResourceError where `limit_s` is over or the
    connection is lost, InputError where there is none.
    """
    # `exec` in the script's last command hands the signal on to it.
    line = (
        "exec 3<&0; "
        f"({script}) </dev/null 3<&- & child=$!; "
        "{ cat; kill -TERM $child; } <&3 >/dev/null 2>&1 & watcher=$!; exec 3<&-; "
        "code=0; wait $child || code=$?; kill $watcher 2>/dev/null; "
        f'echo "{ENDED}$code" >&2; exit $code'
    )
    with started(shell, line, stdout=subprocess.DEVNULL) as talk:
        code = talk.wait(limit_s, on_line, what)
        return judged(shell, code, talk.lines)


def full_or(said: str, error: EdgekitError, shell: Shell) -> EdgekitError:
    """That the disk there is full, where that was said; else the error."""
    if "no space left" not in said.lower() and "disk is full" not in said.lower():
        return error
    return ResourceError(
        "the disk of the device is full" if not shell.is_here else "the disk is full",
        where=shell.name, got=said, hint="Free some space there; the same command goes on from "
        "where it was.",
    )  # fmt: skip


@dataclass
class Talk:
    """A running command; a thread keeps its last words as they come."""

    process: subprocess.Popen[bytes]
    lines: list[str]
    reader: threading.Thread

    def wait(self, limit_s: float, on_line: OnLine, what: str) -> int:
        """Its exit code. Raises ResourceError where the limit is over; it is ended then."""
        deadline, told = time.monotonic() + limit_s, 0
        while True:
            done = self.process.poll() is not None
            if done:
                self.reader.join(TERM_S)
            for line in self.lines[told:]:
                told += 1
                if not line.startswith(ENDED):
                    on_line(line)
            if done:
                return int(self.process.returncode)
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"{what} took longer than its time limit",
                    got="\n".join(self.lines[-3:]), wanted=f"at most {limit_s:g} s",
                    hint="Give it more with --time-limit, in seconds.",
                )  # fmt: skip
            time.sleep(_TURN_S)


@contextlib.contextmanager
def started(shell: Shell, line: str, *, stdout: int) -> Iterator[Talk]:
    """Lends a running command line; it and all that it started here are ended at the end."""
    # A login shell there may be none of POSIX's.
    word = line if shell.is_here else f"exec sh -c {shlex.quote(line)}"
    with subprocess.Popen(
        [*shell.command, word], stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE,
        start_new_session=True, env=environment(),
    ) as process:  # fmt: skip
        lines: list[str] = []
        reader = threading.Thread(target=_read, args=(process.stderr, lines), daemon=True)
        reader.start()
        try:
            yield Talk(process=process, lines=lines, reader=reader)
        finally:
            _end(process)


def _read(stream: IO[bytes], lines: list[str]) -> None:
    with contextlib.suppress(ValueError, OSError):  # closed at the end
        for line in stream:
            lines.append(line.decode(errors="replace").rstrip())


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # the watcher at the other end sees this
            process.stdin.close()
    if process.poll() is not None:
        return
    for number, seconds in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, TERM_S)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def judged(shell: Shell, code: int, lines: Sequence[str]) -> Ended:
    """How it ended. Raises where it did not: the connection failed, or was lost."""
    ends = [line for line in lines if line.startswith(ENDED)]
    said = "\n".join([line for line in lines if not line.startswith(ENDED)][-_LAST_LINES:])
    if ends:
        return Ended(code=int(ends[-1].removeprefix(ENDED)), said=said)
    if shell.is_here:
        return Ended(code=code, said=said)
    if _never_connected(said):
        raise InputError(
            "the device cannot be reached", where=shell.name, got=said,
            hint="Try the same by hand: it must work without a question. "
            f"{shlex.join([*shell.command, 'true'])}",
        )  # fmt: skip
    raise ResourceError(
        "the connection to the device was lost", where=shell.name,
        got=said or f"{shell.command[0]} ended with exit code {code}",
        hint="The same command goes on from where it was.",
    )  # fmt: skip


def _never_connected(said: str) -> bool:
    words = (
        "permission denied", "could not resolve", "connection refused", "host key verification",
        "no route to host", "connection timed out", "network is unreachable", "no such host",
        "no such identity", "no such container", "bad port", "usage: ssh",
    )  # fmt: skip
    return any(word in said.lower() for word in words)
