"""placeholder"""
from __future__ import annotations
from edgekit.engines.base import Engine
from edgekit.engines.trt_child import collecting_logger
from edgekit.engines.base import missing_package
from edgekit.errors import MissingPackageError
from edgekit.values import Session
import importlib


def open_plan(engine: Engine, package: str, extra: str) -> Session:
    try:
        trt = importlib.import_module(package)
    except ImportError as error:
        raise missing_package(package, extra=extra, got=error) from error
    logger = collecting_logger(trt)
    loaded = trt.Runtime(logger).deserialize_cuda_engine(engine.path.read_bytes())
    said = " ".join(message for severity, message in logger.lines if "ERROR" in severity)
    raise MissingPackageError(
        "this engine cannot be run here",
        where=str(engine.path),
        got=said or ("it loads" if loaded is not None else "it does not load"),
        wanted=f"a GPU of compute capability {engine.built_for.get('compute_capability', '?')}, "
        "its driver and pycuda",
        hint="Copy the engine's folder to that machine.",
    )
