"""OpenVINO's CPU plug-in: another runtime for x86, behind the same Session as ONNX Runtime's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import files
from edgekit.engines import onnxruntime
from edgekit.engines.base import (
    Engine,
    EngineRequest,
    input_extents,
    missing_package,
    package_version,
    read_model,
)
from edgekit.engines.comparison import comparison_feeds, relative_error
from edgekit.engines.here import processor_here
from edgekit.engines.inputs import other_inputs, wrong_type
from edgekit.engines.manifest import write_manifest
from edgekit.errors import InputError
from edgekit.values import Array, Feeds, TensorSpec, run

PACKAGE = "openvino"
EXTRA = "openvino"
ENGINE_FILE = "model.onnx"

_DEVICE = "CPU"
# Without the hint a processor that has BF16 computes in it, and the accuracy is another's.
_PROPERTIES: dict[str, str] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
_TOLERANCE = 1e-3


def installed_version() -> str:
    """The package's version, "absent" where there is none."""
    return package_version(PACKAGE)


def build(request: EngineRequest, folder: Path) -> Engine:
    """The engine: the ONNX file itself, which OpenVINO was seen to compile and to compute.

    OpenVINO compiles it again when it is opened: what it can export differs from one export to the
    next, and belongs to one version. In floating point its outputs must be ONNX Runtime's (relative
    error at most 1e-3) on the request's sample, or on seeded noise where it has none; INT8 is
    rounded by other kernels, and a note says by how much it differs. Raises InputError where
    OpenVINO refuses the model or computes something else, MissingPackageError without the package.
    """
    package()
    model = read_model(request.model_path)
    extents = input_extents(model.inputs, request)
    feeds = comparison_feeds(model.inputs, extents, request.sample)
    place = folder / ENGINE_FILE
    with files.replacing(place) as partial:
        shutil.copyfile(request.model_path, partial)
    engine = Engine(
        path=place,
        name=request.name,
        target=request.target.name,
        runtime=PACKAGE,
        runtime_version=installed_version(),
        precision=request.precision,
        sha256=files.digest_file(place),
        file_bytes=place.stat().st_size,
        model_sha256=files.digest_file(request.model_path),
        inputs=model.inputs,
        outputs=model.outputs,
        extents=extents,
        built_for=processor_here(),
        settings={"threads": request.threads, **_PROPERTIES},
        notes=_compared(request, place, feeds, model.outputs),
    )
    write_manifest(engine)
    return engine


def open(engine: Engine, *, threads: int = 0) -> OpenVinoSession:
    """The engine, compiled. `threads` 0 takes the engine's setting, and that at 0 OpenVINO's own.

    Raises InputError where this OpenVINO does not take the file.
    """
    chosen = threads or int(engine.settings.get("threads", 0))
    return _opened(engine.path, engine.inputs, engine.outputs, threads=chosen)


def read(path: Path) -> None:
    """Raises InputError where OpenVINO cannot read the ONNX file; nothing is compiled."""
    try:
        package().Core().read_model(str(path))
    except RuntimeError as error:
        raise _translated(error, where=str(path), doing="read") from error


class OpenVinoSession:
    """A model in OpenVINO on the CPU. `stage` copies nothing: the arrays must not change."""

    def __init__(
        self, compiled: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...],
        *, where: str,
    ) -> None:  # fmt: skip
        self._tensor = package().Tensor
        self._request = compiled.create_infer_request()
        self._inputs, self._outputs, self._where = inputs, outputs, where
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in inputs}
        self._ports = dict(zip(self._dtypes, _in_order(compiled.inputs, inputs), strict=True))
        self._results = _in_order(compiled.outputs, outputs)
        self._staged: dict[str, Array] = {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `stage` wants."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `fetch` gives."""
        return self._outputs

    def stage(self, feeds: Feeds) -> None:
        """Binds the inputs. Raises InputError for a missing one, a wrong dtype or shape."""
        if feeds.keys() != self._dtypes.keys():
            raise other_inputs(feeds, self._dtypes, self._where)
        for name, dtype in self._dtypes.items():
            array = np.ascontiguousarray(feeds[name])
            if array.dtype != dtype:
                raise wrong_type(name, array, dtype, self._where)
            self._staged[name] = array  # OpenVINO reads it where it lies
            shared = bool(array.flags.writeable)  # it shares no array that may not be written
            try:
                self._request.set_tensor(
                    self._ports[name], self._tensor(array, shared_memory=shared)
                )
            except RuntimeError as error:
                raise _translated(error, where=self._where, doing="take this input of") from error

    def execute(self) -> None:
        """Runs once. Raises InputError where the inputs' shapes do not fit the model."""
        try:
            self._request.infer()
        except RuntimeError as error:
            raise _translated(error, where=self._where, doing="run") from error

    def fetch(self) -> dict[str, Array]:
        """The outputs by name, copied out."""
        found = (self._request.get_tensor(port).data for port in self._results)
        return {
            spec.name: np.array(array, dtype=spec.dtype)
            for spec, array in zip(self._outputs, found, strict=True)
        }

    def __enter__(self) -> OpenVinoSession:
        return self

    def __exit__(self, *raised: object) -> None:
        del self._request, self._ports, self._results
        self._staged.clear()


def package() -> Any:
    """The package. Raises MissingPackageError where it is not here."""
    try:
        import openvino
    except ImportError as error:
        raise missing_package(PACKAGE, extra=EXTRA, got=error) from error
    return openvino


def _opened(
    path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, threads: int
) -> OpenVinoSession:
    core = package().Core()
    properties: dict[str, object] = dict(_PROPERTIES)
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = core.compile_model(core.read_model(str(path)), _DEVICE, properties)
    except RuntimeError as error:
        raise _translated(error, where=str(path), doing="load") from error
    return OpenVinoSession(compiled, inputs, outputs, where=str(path))


def _in_order(ports: list[Any], specs: tuple[TensorSpec, ...]) -> list[Any]:
    """The port of each tensor: by its name, of which a port may have several."""
    found = []
    for spec in specs:
        port = next((port for port in ports if spec.name in port.get_names()), None)
        if port is None:
            raise InputError(
                f'OpenVINO has no tensor called "{spec.name}"',
                got=", ".join(name for port in ports for name in sorted(port.get_names())),
                wanted=spec.name,
            )
        found.append(port)
    return found


def _compared(
    request: EngineRequest, place: Path, feeds: Feeds, outputs: tuple[TensorSpec, ...]
) -> tuple[str, ...]:
    with onnxruntime.open_bytes(place.read_bytes(), threads=request.threads) as reference:
        wanted = run(reference, feeds)
        inputs = reference.inputs
    with _opened(place, inputs, outputs, threads=request.threads) as session:
        error = relative_error(run(session, feeds), wanted)
    if request.precision == "int8":
        return (f"its outputs differ from ONNX Runtime's by {error:.0e} of the largest",)
    if error > _TOLERANCE:
        raise InputError(
            "OpenVINO gives other outputs than ONNX Runtime",
            where=str(request.model_path), got=f"relative error {error:.1e}",
            wanted=f"at most {_TOLERANCE:.0e}",
            hint="Build for a target of ONNX Runtime, or try another version of OpenVINO.",
        )  # fmt: skip
    return ()


def _translated(error: Exception, *, where: str, doing: str) -> InputError:
    said = [line for line in str(error).splitlines() if line.strip()]
    return InputError(
        f"OpenVINO cannot {doing} the model", where=where, got="\n".join(said[-3:])
    )  # fmt: skip
