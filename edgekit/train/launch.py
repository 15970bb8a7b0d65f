"""Which of how many processes this one is, as whoever launched them together says."""

from __future__ import annotations

import os


def launched() -> tuple[int, int]:
    """This process's index and their number; (0, 1) where it was launched alone.

    `accelerate launch` and `torchrun` say so by the variables RANK and WORLD_SIZE.
    """
    processes = _whole("WORLD_SIZE", 1)
    return (_whole("RANK", 0), processes) if processes > 1 else (0, 1)


def _whole(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default
