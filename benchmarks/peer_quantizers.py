"""One other tool's INT8 quantization of an ONNX file, in that tool's own virtual environment.

    PYTHON benchmarks/peer_quantizers.py --tool ort|nncf|modelopt [--method NAME]
        [--symmetric | --affine] [--per-tensor] [--threads 1] IN.onnx CALIB.npz OUT.onnx

CALIB has one array for each input, by name, first axis the samples; they are shown one at a time.
OUT is a Q/DQ file with float32 around the pairs. Prints one line of JSON: the tool, the method, its
version, the seconds of the quantization alone (imports and reading CALIB are not counted), the peak
of the process's memory in MB, and a note where something that was asked of the tool failed.

| tool | methods | symmetric (default) | affine |
| --- | --- | --- | --- |
| ort | minmax, percentile, entropy, distribution | int8 activations, zero point 0 | uint8 |
| nncf | minmax, mean_minmax, histogram | preset PERFORMANCE | preset MIXED |
| modelopt | max, entropy | int8, zero point 0 | not offered |

ort: `quantize_static`, weights int8 (per channel unless `--per-tensor`), after `quant_pre_process`
where that works. nncf: `nncf.quantize` with its fast bias correction and all samples; its default
range is the mean of the samples' own, `mean_minmax`. modelopt: `modelopt.onnx.quantization`,
per channel, with high_precision_dtype fp32.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

METHODS = {
    "ort": ("minmax", "percentile", "entropy", "distribution"),
    "nncf": ("mean_minmax", "minmax", "histogram"),
    "modelopt": ("max", "entropy"),
}
PACKAGES = {"ort": "onnxruntime", "nncf": "nncf", "modelopt": "nvidia-modelopt"}
Samples = dict[str, "np.ndarray[Any, Any]"]


def one_by_one(samples: Samples) -> Iterator[Samples]:
    for k in range(len(next(iter(samples.values())))):
        yield {name: array[k : k + 1] for name, array in samples.items()}


def with_onnxruntime(options: argparse.Namespace, samples: Samples, folder: Path) -> str:
    from onnxruntime import quantization as tool
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = one_by_one(samples)

        def get_next(self) -> Samples | None:
            return next(self.left, None)

    given, note = options.source, ""
    try:
        quant_pre_process(str(given), str(folder / "prepared.onnx"))
        given = folder / "prepared.onnx"
    except Exception as error:  # the tool's own failure is part of the measurement
        note = f"quant_pre_process failed ({type(error).__name__} {error})".strip()
        try:
            quant_pre_process(str(given), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
            given = folder / "prepared.onnx"
            note += "; without symbolic shapes it works"
        except Exception as again:
            note += f"; without symbolic shapes too ({type(again).__name__})"
    methods = {
        "minmax": tool.CalibrationMethod.MinMax,
        "percentile": tool.CalibrationMethod.Percentile,
        "entropy": tool.CalibrationMethod.Entropy,
        "distribution": tool.CalibrationMethod.Distribution,
    }
    tool.quantize_static(
        str(given), str(options.out), Reader(), quant_format=tool.QuantFormat.QDQ,
        per_channel=not options.per_tensor, calibrate_method=methods[options.method],
        activation_type=tool.QuantType.QUInt8 if options.affine else tool.QuantType.QInt8,
        weight_type=tool.QuantType.QInt8,
        extra_options={"ActivationSymmetric": not options.affine, "WeightSymmetric": True},
    )  # fmt: skip
    return note


def with_nncf(options: argparse.Namespace, samples: Samples, folder: Path) -> str:
    import nncf
    import onnx
    from nncf.quantization.advanced_parameters import QuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    del folder
    advanced: dict[str, Any] = {}
    if options.method != "mean_minmax":
        chosen = getattr(RangeEstimatorParametersSet, options.method.upper())
        advanced["activations_range_estimator_params"] = chosen
    if options.per_tensor:
        advanced["weights_quantization_params"] = QuantizationParameters(per_channel=False)
    preset = nncf.QuantizationPreset.MIXED if options.affine else None
    found = nncf.quantize(
        onnx.load(options.source), nncf.Dataset(list(one_by_one(samples))),
        preset=preset or nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(next(iter(samples.values()))), fast_bias_correction=True,
        advanced_parameters=nncf.AdvancedQuantizationParameters(**advanced),
    )  # fmt: skip
    onnx.save(found, options.out)
    return ""


def with_modelopt(options: argparse.Namespace, samples: Samples, folder: Path) -> str:
    from modelopt.onnx.quantization import quantize

    # It writes files beside its input.
    given = folder / "given.onnx"
    shutil.copy(options.source, given)
    quantize(
        str(given), quantize_mode="int8", calibration_data=samples,
        calibration_method=options.method, calibration_eps=["cpu"],
        high_precision_dtype="fp32", output_path=str(options.out), log_level="ERROR",
    )  # fmt: skip
    return ""


TOOLS = {"ort": with_onnxruntime, "nncf": with_nncf, "modelopt": with_modelopt}


WARM = {
    "ort": ("onnxruntime.quantization", "onnxruntime.quantization.shape_inference"),
    "nncf": ("nncf", "onnx", "nncf.onnx.engine"),
    "modelopt": ("modelopt.onnx.quantization",),
}
"""What a tool imports, before its time is taken."""


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tool", choices=tuple(TOOLS), required=True)
    parser.add_argument("--method")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--symmetric", dest="affine", action="store_false", default=False)
    kinds.add_argument("--affine", dest="affine", action="store_true")
    parser.add_argument("--per-tensor", action="store_true", help="one scale for each weight")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("source", metavar="IN.onnx", type=Path)
    parser.add_argument("calibration", metavar="CALIB.npz", type=Path)
    parser.add_argument("out", metavar="OUT.onnx", type=Path)
    options = parser.parse_args()
    methods = METHODS[options.tool]
    options.method = options.method or methods[0]
    if options.method not in methods:
        parser.error(f"{options.tool} has {', '.join(methods)}")
    if options.tool == "modelopt" and (options.affine or options.per_tensor):
        parser.error("modelopt quantizes symmetric and per channel only")
    return options


def main() -> None:
    options = parsed()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    logging.disable(logging.WARNING)
    with np.load(options.calibration) as stored:
        samples = {name: stored[name] for name in stored.files if name != "labels"}
    options.out = options.out.absolute()
    options.source = options.source.absolute()
    said = sys.stdout
    sys.stdout = sys.stderr  # what the tool prints
    for module in WARM[options.tool]:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # some tools drop files in the working directory
        begun = time.perf_counter()
        note = TOOLS[options.tool](options, samples, Path(folder))
        seconds = time.perf_counter() - begun
    found = {
        "tool": options.tool,
        "method": options.method,
        "kind": "affine" if options.affine else "symmetric",
        "weights": "per tensor" if options.per_tensor else "per channel",
        "version": version(PACKAGES[options.tool]),
        "samples": len(next(iter(samples.values()))),
        "seconds": round(seconds, 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "note": note,
    }
    print(json.dumps(found), file=said)


if __name__ == "__main__":
    main()
