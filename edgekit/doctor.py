"""What is missing on this machine, what for, and the command that mends it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that edgekit can use: whether it is here, what for, and how to get it."""
