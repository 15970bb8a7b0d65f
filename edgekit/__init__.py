"""edgekit: from a trained vision model to a measured, gated engine for one device."""

from __future__ import annotations

__version__ = "0.1.0"
