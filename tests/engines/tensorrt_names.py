"""Which names each release of TensorRT's Python package has, as far as edgekit may use them.

From NVIDIA/TensorRT's pybind sources (python/src/infer, python/src/parsers) at the tags 8.5.3,
8.6.1, 10.3.0, 10.13.3, 10.16 and 11.1, and from the wheel of TensorRT-RTX 1.7.1 by `dir()`.
"""

from __future__ import annotations

RELEASES = ("8.5", "8.6", "10.3", "10.13", "10.16", "11", "rtx")

VERSION = {
    "8.5": "8.5.3.1", "8.6": "8.6.1", "10.3": "10.3.0", "10.13": "10.13.3.9", "10.16": "10.16.1.11",
    "11": "11.4.1.5", "rtx": "1.7.1.116",
}  # fmt: skip

TABLE = """
                                                      8.5 8.6 10.3 10.13 10.16 11 rtx
NetworkDefinitionCreationFlag.EXPLICIT_BATCH           y y y y y - -
NetworkDefinitionCreationFlag.STRONGLY_TYPED           - - y y y y y
NetworkDefinitionCreationFlag.EXPLICIT_PRECISION       y y - - - - -
BuilderFlag.FP16                                       y y y y y - -
BuilderFlag.INT8                                       y y y y y - -
BuilderFlag.BF16                                       - - y y y - -
BuilderFlag.FP8                                        - y y y y - -
BuilderFlag.INT4                                       - - y y y - -
BuilderFlag.FP4                                        - - - y y - -
BuilderFlag.OBEY_PRECISION_CONSTRAINTS                 y y y y y - -
BuilderFlag.PREFER_PRECISION_CONSTRAINTS               y y y y y - -
BuilderFlag.STRICT_TYPES                               y y - - - - -
BuilderFlag.TF32                                       y y y y y y y
BuilderFlag.GPU_FALLBACK                               y y y y y y y
BuilderFlag.REFIT                                      y y y y y y y
BuilderFlag.DEBUG                                      y y y y y y y
BuilderFlag.SPARSE_WEIGHTS                             y y y y y y y
BuilderFlag.DISABLE_TIMING_CACHE                       y y y y y y y
BuilderFlag.DIRECT_IO                                  y y y y y y y
BuilderFlag.REJECT_EMPTY_ALGORITHMS                    y y y y y - -
BuilderFlag.ENABLE_TACTIC_HEURISTIC                    y y - - - - -
BuilderFlag.VERSION_COMPATIBLE                         - y y y y y y
BuilderFlag.EXCLUDE_LEAN_RUNTIME                       - y y y y y y
BuilderFlag.STRIP_PLAN                                 - - y y y y y
BuilderFlag.REFIT_IDENTICAL                            - - y y y y y
BuilderFlag.WEIGHT_STREAMING                           - - y y y y y
BuilderFlag.ERROR_ON_TIMING_CACHE_MISS                 - - y y y y y
BuilderFlag.DISABLE_COMPILATION_CACHE                  - - y y y y y
BuilderFlag.REFIT_INDIVIDUAL                           - - y y y y y
BuilderFlag.STRICT_NANS                                - - - y y y y
BuilderFlag.MONITOR_MEMORY                             - - - y y y y
BuilderFlag.EDITABLE_TIMING_CACHE                      - - - y y y y
BuilderFlag.DISTRIBUTIVE_INDEPENDENCE                  - - - y y y y
BuilderFlag.REQUIRE_USER_ALLOCATION                    - - - - - - y
IBuilderConfig.max_workspace_size                      y y - - - - -
IBuilderConfig.set_memory_pool_limit                   y y y y y y y
MemoryPoolType.WORKSPACE                               y y y y y y y
MemoryPoolType.TACTIC_DRAM                             - y y y y y y
MemoryPoolType.TACTIC_SHARED_MEMORY                    - - y y y y y
IBuilderConfig.builder_optimization_level              - y y y y y y
IBuilderConfig.hardware_compatibility_level            - y y y y y y
IBuilderConfig.max_aux_streams                         - y y y y y y
IBuilderConfig.progress_monitor                        - - y y y y y
IProgressMonitor                                       - - y y y y y
IBuilderConfig.runtime_platform                        - - y y y y y
IBuilderConfig.tiling_optimization_level               - - - y y y y
IBuilderConfig.l2_limit_for_tiling                     - - - y y y y
IBuilderConfig.max_num_tactics                         - - - y y y y
IBuilderConfig.int8_calibrator                         y y y y y - -
IBuilderConfig.set_calibration_profile                 y y y y y - -
IBuilderConfig.quantization_flags                      y y y y y - -
IBuilderConfig.set_timing_cache                        y y y y y y y
IBuilderConfig.get_timing_cache                        y y y y y y y
IBuilderConfig.create_timing_cache                     y y y y y y y
IBuilderConfig.DLA_core                                y y y y y y y
IBuilderConfig.default_device_type                     y y y y y y y
IBuilderConfig.set_device_type                         y y y y y y y
IBuilderConfig.can_run_on_DLA                          y y y y y y y
IBuilderConfig.algorithm_selector                      y y y y y - -
Builder.build_engine                                   y y - - - - -
Builder.build_serialized_network                       y y y y y y y
Builder.build_engine_with_config                       - - - y y y -
Builder.build_serialized_network_to_stream             - - - y y y y
Builder.max_batch_size                                 y y - - - - -
Builder.platform_has_fast_int8                         y y y y y - -
Builder.platform_has_fast_fp16                         y y y y y - -
Builder.platform_has_tf32                              y y y y y - -
OnnxParser.parse                                       y y y y y y y
OnnxParser.parse_from_file                             y y y y y y y
OnnxParser.flags                                       - y y y y y y
OnnxParser.set_flag                                    - y y y y y y
OnnxParser.supports_model                              y y y y y - -
OnnxParser.supports_model_v2                           - - y y y y y
OnnxParser.set_builder_config                          - - - - y y y
ICudaEngine.num_bindings                               y y - - - - -
ICudaEngine.num_io_tensors                             y y y y y y y
ICudaEngine.get_tensor_name                            y y y y y y y
ICudaEngine.get_tensor_mode                            y y y y y y y
ICudaEngine.get_tensor_shape                           y y y y y y y
ICudaEngine.get_tensor_dtype                           y y y y y y y
ICudaEngine.get_tensor_profile_shape                   y y y y y y y
ICudaEngine.device_memory_size                         y y y y y - -
ICudaEngine.device_memory_size_v2                      - - y y y y y
ICudaEngine.create_execution_context_without_device_memory y y y y y - -
ExecutionContextAllocationStrategy                     - - y y y y y
ICudaEngine.create_runtime_config                      - - - y y y y
ICudaEngine.get_engine_stat                            - - - - y y y
ICudaEngine.create_engine_inspector                    y y y y y y y
IBuilderConfig.profiling_verbosity                     y y y y y y y
ProfilingVerbosity.DETAILED                            y y y y y y y
ProfilingVerbosity.LAYER_NAMES_ONLY                    y y y y y y y
ProfilingVerbosity.NONE                                y y y y y y y
ProfilingVerbosity.DEFAULT                             y y - - - - -
ProfilingVerbosity.VERBOSE                             y y - - - - -
IExecutionContext.execute_v2                           y y y y y y y
IExecutionContext.execute_async_v2                     y y - - - - -
IExecutionContext.execute_async_v3                     y y y y y y y
IExecutionContext.set_tensor_address                   y y y y y y y
IExecutionContext.set_input_shape                      y y y y y y y
IExecutionContext.infer_shapes                         y y y y y y y
IExecutionContext.set_binding_shape                    y y - - - - -
IExecutionContext.get_binding_shape                    y y - - - - -
IExecutionContext.set_optimization_profile_async       y y y y y y y
DataType.INT64                                         - - y y y y y
DataType.BF16                                          - - y y y y y
DataType.INT4                                          - - y y y y y
DataType.FP8                                           - y y y y y y
TacticSource.CUBLAS                                    y y y y y - -
Runtime.get_engine_validity                            - - - - - - y
Runtime.engine_header_size                             - - - - - - y
IBuilderConfig.set_compute_capability                  - - - - - - y
IBuilderConfig.num_compute_capabilities                - - - - - - y
ComputeCapability                                      - - - - - - y
IRuntimeConfig.create_runtime_cache                    - - - - - - y
IRuntimeConfig.set_runtime_cache                       - - - - - - y
ParserError.node_name                                  - - y y y y y
ParserError.node_operator                              - - y y y y y
""" + "\n".join(  # In every release that edgekit serves.
    f"{name} y y y y y y y"
    for name in (
        "Builder", "Builder.create_network", "Builder.create_builder_config",
        "Builder.create_optimization_profile", "Builder.num_DLA_cores",
        "IBuilderConfig.set_flag", "IBuilderConfig.add_optimization_profile",
        "IOptimizationProfile.set_shape", "OnnxParser", "OnnxParser.num_errors",
        "OnnxParser.get_error", "ParserError.node", "ParserError.desc", "ParserError.code",
        "INetworkDefinition.num_layers", "INetworkDefinition.get_layer",
        "INetworkDefinition.num_inputs", "INetworkDefinition.get_input",
        "INetworkDefinition.num_outputs", "INetworkDefinition.get_output",
        "ILayer.name", "ILayer.type", "ITensor.name", "ITensor.dtype", "ITensor.shape",
        "ILogger", "Runtime", "Runtime.deserialize_cuda_engine",
        "ICudaEngine.create_execution_context", "IExecutionContext.get_tensor_shape",
        "EngineInspector.get_engine_information", "LayerInformationFormat.JSON",
        "LayerInformationFormat.ONELINE", "TensorIOMode.INPUT", "TensorIOMode.OUTPUT",
        "DeviceType.GPU", "DeviceType.DLA", "ITimingCache.serialize", "DataType.FLOAT",
        "DataType.HALF", "DataType.INT8", "DataType.INT32", "DataType.BOOL",
    )
)  # fmt: skip


def names_of(release: str) -> frozenset[str]:
    """The names that a release has; a member is `Class.member`."""
    column = RELEASES.index(release)
    rows = [line.split() for line in TABLE.strip().splitlines()[1:] if line.strip()]
    return frozenset(row[0] for row in rows if row[1 + column] == "y")


ALL_NAMES = frozenset[str]().union(*(names_of(release) for release in RELEASES))
