"""Child processes that end with their parent, and what their exit codes mean."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[3]


def environment() -> dict[str, str]:
    """The environment of a child: it finds this edgekit, and nothing in the current folder.

    A `numpy.py` that happens to lie there would be imported (Python 3.10 cannot be told not to).
    """
    found = {**os.environ, "PYTHONSAFEPATH": "1"}
    if _ROOT.name not in ("site-packages", "dist-packages"):  # a checkout
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return found


def lines_from_parent() -> queue.Queue[str]:
    """The lines that the parent writes to this process's stdin, as they come.

    When the parent ends, however it ends, its side of the pipe closes and this process ends at
    once, whatever it is doing, with its process group where it leads one. Ctrl-C is the parent's
    to handle. A waiting thread costs nothing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(0)

    threading.Thread(target=read, daemon=True, name="parent").start()
    return lines


def own_stdout() -> int:
    """A descriptor of the real stdout; what native libraries print goes to stderr from now on."""
    kept = os.dup(1)
    os.dup2(2, 1)
    return kept


def ending(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


def was_killed(returncode: int) -> bool:
    """Whether it got SIGKILL, which on a machine without memory comes from the kernel."""
    return returncode == -signal.SIGKILL
