"""The kernels that TensorRT-RTX compiles when an engine first runs, kept from one run to the next.

The cache is used only on the same compute capability, with the same or a newer package and CUDA
(TensorRT-RTX's page on its runtime cache); the package itself refuses what does not fit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit import files
from edgekit.engines.base import Engine
from edgekit.errors import EdgekitError

_LOG = logging.getLogger(__name__)


def cache_place(engine: Engine) -> Path:
    """The cache's file, in the user's cache folder, named by the engine's content."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgekit" / "runtime" / f"{engine.sha256[:40]}.cache"


def lend(config: Any, engine: Engine) -> Callable[[], None]:
    """Gives the runtime configuration the cache; the function keeps what was added to it.

    A cache that is damaged or cannot be written costs time and nothing else: it is logged.
    """
    place = cache_place(engine)
    cache = config.create_runtime_cache()
    try:
        before = place.read_bytes()
    except OSError:
        before = b""
    if before and not cache.deserialize(before):
        _LOG.warning("%s does not fit this TensorRT-RTX or GPU: it is made anew", place)
        before = b""
    config.set_runtime_cache(cache)

    def keep() -> None:
        content = bytes(cache.serialize())
        if content == before:
            return
        try:
            files.write_bytes(place, content)
        except (EdgekitError, OSError) as error:
            _LOG.warning("the compiled kernels are not kept: %s", error)

    return keep
