"""ONNX's checker and shape inference in a child process: they are C++, and a file can kill them.

One child serves every load of this process, one at a time, and is started again when it dies. It
is limited in memory and time (`checker.py` says to what).
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import onnx.onnx_cpp2py_export as onnx_cpp

from edgekit.errors import InputError, ResourceError
from edgekit.models.onnx_file import checker

WEIGHTS = "weights"
"""A file in the child's folder: the location of whatever external data it is told of."""

_PROGRAM = Path(__file__).with_name("checker.py")
_LONGEST_ANSWER_BYTES = 1 << 28
_WAIT_S = 3.0 * checker.CPU_SECONDS  # on a machine with other work


@dataclass
class _Child:
    """The running process and its folder; both are ended by `close`."""

    owner: int = field(default_factory=os.getpid)
    folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="edgekit-")
    )
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        Path(self.folder.name, WEIGHTS).touch()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM), str(onnx_cpp.__file__)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=self.folder.name, bufsize=0, start_new_session=True,
        )  # fmt: skip

    def ask(self, content: bytes) -> tuple[int, bytes] | None:
        """The answer to one model; None where the child died or was too slow."""
        assert self.process.stdin is not None
        try:
            for piece in (len(content).to_bytes(8, "little"), content):
                rest = memoryview(piece)
                while rest:
                    rest = rest[self.process.stdin.write(rest) or 0 :]
        except BrokenPipeError:
            return None
        deadline = time.monotonic() + _WAIT_S
        head = self._read(9, deadline)
        if head is None:
            return None
        length = int.from_bytes(head[1:], "little")
        if length > _LONGEST_ANSWER_BYTES:
            return checker.OUT_OF_MEMORY, b""
        said = self._read(length, deadline)
        return None if said is None else (head[0], said)

    def _read(self, count: int, deadline: float) -> bytes | None:
        assert self.process.stdout is not None
        stream = self.process.stdout.fileno()
        found = bytearray()
        while len(found) < count:
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(stream, min(count - len(found), 1 << 20)) if ready else b""
            if not piece:
                return None
            found += piece
        return bytes(found)

    def close(self) -> int:
        """Ends it, if it still runs, and gives its exit code: -9 where it had to be ended."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        try:
            code = self.process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.folder.cleanup()
        return code


@dataclass
class _Checker:
    """The child that serves this process, if one is running."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    child: _Child | None = None

    def ask(self, content: bytes) -> tuple[int, bytes] | int:
        """What `_Child.ask` gives, or the exit code of a child that did not answer."""
        with self.lock:
            child = self.child
            if child is not None and (
                child.owner != os.getpid() or child.process.poll() is not None
            ):
                self.drop()
            child = self.child = self.child or _Child()
            found = child.ask(content)
            if found is not None and found[0] != checker.OUT_OF_MEMORY:
                return found
            self.child = None
            code = child.close()
            return code if found is None else found

    def drop(self) -> None:
        """Ends the child, if it is this process's own."""
        if self.child is not None and self.child.owner == os.getpid():
            self.child.close()
        self.child = None


_checker = _Checker()
atexit.register(_checker.drop)


def check_and_infer(content: bytes, *, where: str) -> bytes:
    """The serialized model with the shapes that ONNX infers, data propagated through them.

    Raises InputError for a graph that breaks a rule, whose shapes contradict each other, or that
    kills the checker; ResourceError where that takes too much memory or time.
    """
    found = _checker.ask(content)
    if isinstance(found, int):
        raise _death(found, where)
    kind, said = found
    if kind == checker.INFERRED:
        return said
    if kind == checker.OUT_OF_MEMORY:
        raise ResourceError(
            "ONNX's checker ran out of memory over this graph", where=where,
            wanted=f"at most {checker.MEMORY_BYTES >> 30} GiB without the weights",
            hint="No network of ordinary size needs as much: the file may be damaged.",
        )  # fmt: skip
    raise _refusal(kind, first_lines(said.decode(errors="replace")), where)


def _refusal(kind: int, said: str, where: str) -> InputError:
    what = "the shapes in this graph contradict each other"
    hint = "Export the model again."
    if kind == checker.BREAKS_A_RULE:
        what = "the graph breaks a rule of ONNX"
        hint = "Export the model again; `onnx.checker.check_model` says the same."
    if said.startswith("No Op registered for"):
        what = "the graph has an operator that its operator set does not have"
    elif said.startswith("Nodes in a graph must be topologically sorted"):
        what = "a node reads a value that no node before it makes"
        hint = "An initializer is missing, or the graph has a cycle: export the model again."
    return InputError(what, where=where, got=said, hint=hint)


def _death(code: int, where: str) -> InputError | ResourceError:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return ResourceError(
            "ONNX's checker did not come to an end over this graph", where=where,
            wanted=f"at most {checker.CPU_SECONDS} s",
            hint="No network of ordinary size takes as long: the file may be damaged.",
        )  # fmt: skip
    died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return InputError(
        "the graph brings ONNX's checker down", where=where, got=died,
        hint="The file is damaged, or made to do harm: export the model again.",
    )  # fmt: skip


def first_lines(said: str, count: int = 3) -> str:
    """The first lines of a message that are not empty, as one of at most 400 characters."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " ".join(lines[:count])[:400]
