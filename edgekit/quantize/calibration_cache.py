"""The scales of a Scheme as the text that TensorRT reads beside a float graph, for a DLA."""

from __future__ import annotations

import re
import struct

from edgekit.errors import InputError
from edgekit.quantize.scheme import Scheme

_LAST = (10, 16)  # TensorRT 11 has no implicit quantization


def calibration_cache(scheme: Scheme, version: str) -> str:
    """The text of a calibration cache for a TensorRT version such as "8.5.2".

    The first line names the version and the kind of calibrator; then each tensor has its scale, the
    real number of one step, as the hexadecimal digits of a big-endian float32. The graph that it
    belongs to is the float one, without Q/DQ. Raises InputError for a Scheme that is not symmetric,
    a tensor whose name the format cannot hold, and a version without such caches.

    The first line's number is that of NvInferVersion.h: major * 1000 + minor * 100 + patch before
    TensorRT 10, major * 10000 + minor * 100 + patch from then on.
    """
    lines = [f"TRT-{_number(version)}-EntropyCalibration2"]
    if not scheme.dialect.symmetric:
        raise InputError(
            "a calibration cache holds scales and no zero points", where="quantize",
            got=f"the dialect {scheme.dialect.name}", wanted="dla",
        )  # fmt: skip
    for name, grid in scheme.activations.items():
        if not name or "\n" in name or ": " in name:
            raise InputError(
                "a calibration cache cannot hold this tensor's name", where="quantize", got=name,
                hint="Rename it in the model.",
            )  # fmt: skip
        lines.append(f"{name}: {struct.pack('>f', float(grid.scale)).hex()}")
    return "\n".join(lines) + "\n"


def _number(version: str) -> int:
    parts = version.split(".")
    if not all(re.fullmatch(r"\d+", part) for part in parts) or len(parts) < 2:
        raise InputError("this is no version of TensorRT", got=version, wanted="8.5.2, say")
    major, minor, patch = (*map(int, parts[:3]), 0)[:3]
    if (major, minor) > _LAST:
        raise InputError(
            f"TensorRT {version} reads no calibration cache", wanted="up to 10.16",
            hint="Use the dialect tensorrt-strong: the types are in the graph.",
        )  # fmt: skip
    return major * (10_000 if major >= 10 else 1000) + minor * 100 + patch
