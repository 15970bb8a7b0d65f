"""A program of its own, not a module: ONNX's checker and shape inference, fed through a pipe.

`child.py` starts it as `python -I -S checker.py EXTENSION`. It loads onnx's C++ part alone,
by its path, and nothing else: 40 ms, 14 MB. A file that brings that code down ends this process.

Every request is eight bytes of length and a serialized ModelProto; every answer a byte that says
how it went, eight bytes of length, and a serialized ModelProto with shapes or a message.
"""

import importlib.machinery
import importlib.util
import os
import resource
import sys
from typing import Any

MEMORY_BYTES = 2 << 30
CPU_SECONDS = 30

INFERRED, BREAKS_A_RULE, CONTRADICTS, OUT_OF_MEMORY = range(4)


def _extension(place: str) -> Any:
    name = "onnx.onnx_cpp2py_export"
    loader = importlib.machinery.ExtensionFileLoader(name, place)
    spec = importlib.util.spec_from_file_location(name, place, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def answer(onnx_cpp: Any, content: bytes) -> tuple[int, bytes]:
    """How it went, and the model with inferred shapes or what is wrong with it."""
    try:
        onnx_cpp.checker.check_model(content, False, False, False)
    except MemoryError:
        return OUT_OF_MEMORY, b""
    except Exception as error:  # the extension's classes are its own
        return BREAKS_A_RULE, str(error).encode()
    try:
        return INFERRED, onnx_cpp.shape_inference.infer_shapes(content, True, True, True)
    except MemoryError:
        return OUT_OF_MEMORY, b""
    except Exception as error:
        said = str(error)
    # Two things are no contradiction, only too little to infer from: what goes wrong in the body of
    # an operator that is defined as a function (onnx 1.23, MeanVarianceNormalization), and numbers
    # in a tensor so large that it is not sent here.
    if said.count("Inference error(s)") < 2 and "data from external tensors" not in said:
        return CONTRADICTS, said.encode()
    try:
        return INFERRED, onnx_cpp.shape_inference.infer_shapes(content, False, False, True)
    except MemoryError:
        return OUT_OF_MEMORY, b""
    except Exception as error:
        return CONTRADICTS, str(error).encode()


def _limit_cpu() -> None:
    """CPU_SECONDS more than this process has used; the kernel keeps it to that."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(kind, (limit, hard))


def main(place: str) -> None:
    """Answers until the other side closes the pipe."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the extension prints does not belong into the answers
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_AS, MEMORY_BYTES)
    onnx_cpp = _extension(place)
    while head := requests.read(8):
        _limit_cpu()
        kind, content = answer(onnx_cpp, requests.read(int.from_bytes(head, "little")))
        answers.write(bytes([kind]) + len(content).to_bytes(8, "little"))
        answers.write(content)
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
