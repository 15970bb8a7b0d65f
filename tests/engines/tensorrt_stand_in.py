"""A package that answers to TensorRT's names of one release, and to no others.

`package(release)` is the module. Its plan is the ONNX file behind a line of its own, and its
contexts compute with ONNX Runtime on whatever lies at the addresses that they are given; so a
build and a Session can be run to their end, on the CPU. What a test wants to know or to go wrong
stands in the environment's EDGEKIT_STAND_IN, a JSON object (the building process has it too).
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import json
import os
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tensorrt_names import ALL_NAMES, VERSION, names_of

KNOBS = "EDGEKIT_STAND_IN"
CAPTURED: list[list[Callable[[], None]]] = []  # what is put into the stream while it is captured


def knobs() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(os.environ.get(KNOBS, "{}"))
    return found


def package(release: str) -> Any:
    """The module as that release has it."""
    names = names_of(release)

    class Named:
        """Refuses every name that the release does not have, to read and to write."""

        _kind = ""

        def __getattribute__(self, name: str) -> Any:
            kind = object.__getattribute__(self, "_kind")
            if not name.startswith("_") and f"{kind}.{name}" not in names:
                raise AttributeError(f"TensorRT {release} has no {kind}.{name}")
            return object.__getattribute__(self, name)

        def __setattr__(self, name: str, value: object) -> None:
            if not name.startswith("_") and f"{self._kind}.{name}" not in names:
                raise AttributeError(f"TensorRT {release} has no {self._kind}.{name}")
            object.__setattr__(self, name, value)

    module = types.ModuleType("tensorrt")
    module.__version__ = VERSION[release]  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    for kind in {name.split(".")[0] for name in ALL_NAMES if _is_enumeration(name)}:
        members = sorted(n.split(".")[1] for n in names if n.startswith(f"{kind}."))
        setattr(module, kind, enum.IntEnum(kind, members, start=0))
    if "ComputeCapability" in names:
        module.ComputeCapability = enum.IntEnum("ComputeCapability", ["SM86"])  # type: ignore[attr-defined]
    _add_classes(module, Named, release, names)
    return module


_ENUMERATIONS = frozenset({
    "NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "ProfilingVerbosity",
    "DataType", "TacticSource", "LayerInformationFormat", "TensorIOMode", "DeviceType",
})  # fmt: skip


def _is_enumeration(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in _ENUMERATIONS


class _Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


def _dtype(module: Any, code: int) -> Any:
    name = {
        onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF",
        onnx.TensorProto.INT8: "INT8", onnx.TensorProto.INT32: "INT32",
        # Before 9.0 an input or output of INT64 is one of INT32.
        onnx.TensorProto.INT64: "INT64" if hasattr(module.DataType, "INT64") else "INT32",
    }[code]  # fmt: skip
    return module.DataType[name]


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)


def _add_classes(module: Any, named: Any, release: str, names: frozenset[str]) -> None:
    record: dict[str, Any] = {"release": release, "flags": [], "profiles": {}, "phases": 0}
    tag = f"PLAN of {release}\n".encode()

    class ILogger:
        Severity = _Severity

        def log(self, severity: Any, message: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        pass

    class Tensor(named):
        _kind = "ITensor"

        def __init__(self, value: onnx.ValueInfoProto) -> None:
            self.name = value.name
            self.dtype = _dtype(module, value.type.tensor_type.elem_type)
            self.shape = _shape(value)

    class Layer(named):
        _kind = "ILayer"

        def __init__(self, node: onnx.NodeProto) -> None:
            self.name = node.name
            self.type = types.SimpleNamespace(name=node.op_type.upper())

    class Network(named):
        _kind = "INetworkDefinition"

        def __init__(self) -> None:
            self._model = onnx.ModelProto()

        @property
        def num_inputs(self) -> int:
            return len(self._model.graph.input)

        @property
        def num_outputs(self) -> int:
            return len(self._model.graph.output)

        @property
        def num_layers(self) -> int:
            return len(self._model.graph.node)

        def get_input(self, index: int) -> Any:
            return Tensor(self._model.graph.input[index])

        def get_output(self, index: int) -> Any:
            return Tensor(self._model.graph.output[index])

        def get_layer(self, index: int) -> Any:
            return Layer(self._model.graph.node[index])

    class Error(named):
        _kind = "ParserError"

        def node_name(self) -> str:
            return "second"

        def node_operator(self) -> str:
            return "Unique"

        def node(self) -> int:
            return 1

        def desc(self) -> str:
            return "no importer"

        def code(self) -> Any:
            return types.SimpleNamespace(name="UNSUPPORTED_NODE")

    class OnnxParser(named):
        _kind = "OnnxParser"

        def __init__(self, network: Any, logger: Any) -> None:
            self._network = network
            self.num_errors = 0

        def parse_from_file(self, path: str) -> bool:
            self._network._model = onnx.load(path)
            self.num_errors = sum(n.op_type == "Unique" for n in self._network._model.graph.node)
            return self.num_errors == 0

        def get_error(self, index: int) -> Any:
            return Error()

    class Profile(named):
        _kind = "IOptimizationProfile"

        def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
            record["profiles"][name] = [list(least), list(best), list(most)]

    class TimingCache(named):
        _kind = "ITimingCache"

        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> bytes:
            return self._content + b"timed;"

    class Config(named):
        _kind = "IBuilderConfig"
        progress_monitor: Any = None
        builder_optimization_level = 3
        max_workspace_size = 0

        def __init__(self) -> None:
            self._pools: dict[str, int] = {}
            self._cache: Any = None

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            record["workspace"] = size

        def set_flag(self, flag: Any) -> None:
            record["flags"].append(flag.name)

        def add_optimization_profile(self, profile: Any) -> int:
            return 0

        def create_timing_cache(self, content: bytes) -> Any:
            record["timing_cache"] = len(content)
            return TimingCache(content)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self._cache = cache
            return not (cache._content and knobs().get("refuse_cache"))

        def get_timing_cache(self) -> Any:
            return self._cache

        def can_run_on_DLA(self, layer: Any) -> bool:  # noqa: N802
            return layer.type.name in knobs().get("dla_takes", [])

        def set_compute_capability(self, capability: Any, index: int) -> None:
            record["capability"] = capability.name

    class Builder(named):
        _kind = "Builder"

        def __init__(self, logger: Any) -> None:
            self._logger = logger
            self.num_DLA_cores = knobs().get("dla_cores", 0)

        def create_network(self, bits: int) -> Any:
            flags = module.NetworkDefinitionCreationFlag
            record["network"] = [flag.name for flag in flags if bits & (1 << int(flag))]
            return Network()

        def create_builder_config(self) -> Any:
            return Config()

        def create_optimization_profile(self) -> Any:
            return Profile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            record["verbosity"] = config.profiling_verbosity.name
            for name in ("DLA_core", "default_device_type", "builder_optimization_level"):
                if f"IBuilderConfig.{name}" in names:
                    value = getattr(config, name, None)
                    record[name] = value.name if isinstance(value, enum.Enum) else value
            if "IBuilderConfig.progress_monitor" in names and config.progress_monitor:
                monitor = config.progress_monitor
                monitor.phase_start("Building engine", None, 4)
                for step in range(4):
                    assert monitor.step_complete("Building engine", step)
                monitor.phase_finish("Building engine")
            log = self._logger.log
            log(_Severity.INFO, "Total Weights Memory: 4096 bytes")
            log(_Severity.VERBOSE, "nobody wants to know")
            record["workspaces"] = [*record.get("workspaces", []), record["workspace"]]
            if "record" in knobs():  # the building process is another one than the test
                Path(knobs()["record"]).write_text(json.dumps(record))
            if record["workspace"] > knobs().get("memory", 1 << 62):
                log(_Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 99 bytes.)")
                return None
            return tag + network._model.SerializeToString()

    class Inspector(named):
        _kind = "EngineInspector"

        def __init__(self, model: onnx.ModelProto) -> None:
            self._model = model

        def get_engine_information(self, wanted: Any) -> str:
            assert wanted.name == "JSON"
            nodes = self._model.graph.node
            return json.dumps({"Layers": [_layer_json(node, release) for node in nodes]})

    class Context(named):
        _kind = "IExecutionContext"

        def __init__(self, model: onnx.ModelProto) -> None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            self._model = model
            self._shapes = {v.name: _shape(v) for v in model.graph.input}
            self._addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: Any) -> bool:
            self._shapes[name] = tuple(shape)
            return all(size <= knobs().get("largest", 64) for size in shape)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self._shapes:
                return self._shapes[name]
            batch = next(iter(self._shapes.values()))[0]
            found = next(v for v in self._model.graph.output if v.name == name)
            return tuple(batch if size < 0 else size for size in _shape(found))

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert stream, "the default stream"
            if CAPTURED:
                CAPTURED[-1].append(self._compute)
            else:
                self._compute()
            return not knobs().get("cannot_run")

        def _compute(self) -> None:
            feeds = {
                v.name: _at(self._addresses[v.name], self._shapes[v.name], v)
                for v in self._model.graph.input
            }
            found = self._session.run(None, feeds)
            for value, array in zip(self._model.graph.output, found, strict=True):
                _at(self._addresses[value.name], array.shape, value)[...] = array

    class RuntimeCache:
        def __init__(self) -> None:
            self.content = b""

        def deserialize(self, content: bytes) -> bool:
            self.content = content
            return content.startswith(b"kernels")

        def serialize(self) -> bytes:
            return self.content or b"kernels"

    class RuntimeConfig(named):
        _kind = "IRuntimeConfig"

        def create_runtime_cache(self) -> Any:
            return RuntimeCache()

        def set_runtime_cache(self, cache: Any) -> None:
            record["runtime_cache"] = cache.content.decode()

    class Engine(named):
        _kind = "ICudaEngine"

        def __init__(self, model: onnx.ModelProto) -> None:
            self._model = model
            graph = model.graph
            self._io = {v.name: v for v in (*graph.input, *graph.output)}
            for name in ("device_memory_size", "device_memory_size_v2"):
                object.__setattr__(self, name, 12345)
            self.num_io_tensors = len(self._io)

        def get_tensor_name(self, index: int) -> str:
            return list(self._io)[index]

        def get_tensor_mode(self, name: str) -> Any:
            is_input = name in {v.name for v in self._model.graph.input}
            return module.TensorIOMode.INPUT if is_input else module.TensorIOMode.OUTPUT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return _shape(self._io[name])

        def get_tensor_dtype(self, name: str) -> Any:
            return _dtype(module, self._io[name].type.tensor_type.elem_type)

        def create_engine_inspector(self) -> Any:
            return Inspector(self._model)

        def create_runtime_config(self) -> Any:
            return RuntimeConfig()

        def create_execution_context(self, config: Any = None) -> Any:
            return Context(self._model)

    class Runtime(named):
        _kind = "Runtime"

        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if knobs().get("dies_of_loading"):
                os.kill(os.getpid(), signal.SIGSEGV)
            if not plan.startswith(tag):
                self._logger.log(_Severity.ERROR, "Version tag does not match")
                return None
            return Engine(onnx.ModelProto.FromString(plan[len(tag) :]))

    for kind in (ILogger, IProgressMonitor, Builder, OnnxParser, Runtime):
        if kind.__name__ in names:
            setattr(module, kind.__name__, kind)
    module.record = record
    module.classes = (
        Tensor, Layer, Network, Error, OnnxParser, Profile, TimingCache, Config, Builder, Inspector,
        Context, RuntimeConfig, Engine, Runtime,
    )  # fmt: skip


def _layer_json(node: onnx.NodeProto, release: str) -> dict[str, object]:
    tensor: dict[str, object] = {"Name": "t", "Format/Datatype": "Row major linear FP16 format"}
    if release == "11":
        tensor = {"Name": "t", "Format": "Row major linear", "Datatype": "Half"}
    return {
        "Name": node.name, "LayerType": node.op_type, "Inputs": [tensor], "Outputs": [tensor],
        "Metadata": f"[ONNX Layer: {node.name}]",
    }  # fmt: skip


def _at(address: int, shape: tuple[int, ...], value: onnx.ValueInfoProto) -> Any:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = (ctypes.c_uint8 * max(size, 1)).from_address(address)
    return np.ctypeslib.as_array(raw)[:size].view(dtype).reshape(shape)
