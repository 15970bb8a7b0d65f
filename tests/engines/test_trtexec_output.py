"""trtexec's log and exports, read; the lines are those of its sources and of logs from devices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekit.engines.trtexec import output
from edgekit.errors import InputError
from edgekit.values import TensorSpec, Unknown

BANNER = "TensorRT.trtexec [TensorRT v8502] # /usr/src/tensorrt/bin/trtexec --onnx=a.onnx"
LOG = f"""&&&& RUNNING {BANNER}
[07/09/2024-13:31:31] [I] [TRT] [MemUsageChange] TensorRT-managed allocation in IExecutionContext creation: CPU +1, GPU +73, now: CPU 1, GPU 295 (MiB)
[07/09/2024-13:31:31] [I] [TRT] [MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 18 MiB, GPU 227 MiB
[07/09/2024-13:31:31] [I] [TRT] Loaded engine size: 228 MiB
[07/09/2024-13:31:31] [I] Engine built in 93.4712 sec.
[07/09/2024-13:31:32] [I] Created execution context with device memory size: 4.5 MiB
[07/09/2024-13:31:32] [W] [TRT] Using an engine plan file across different models of devices is not recommended and is likely to affect performance or even cause errors.
[07/09/2024-13:31:35] [I] Capturing CUDA graph for the current execution context
[07/09/2024-13:31:35] [I] Successfully captured CUDA graph for the current execution context
[07/09/2024-13:31:36] [I] === Performance summary ===
[07/09/2024-13:31:36] [I] Throughput: 1834.51 qps
[07/09/2024-13:31:36] [I] Latency: min = 0.55 ms, max = 0.75 ms, mean = 0.57 ms, median = 0.56 ms, percentile(90%) = 0.58 ms, percentile(95%) = 0.59 ms, percentile(99%) = 0.63 ms
[07/09/2024-13:31:36] [I] Enqueue Time: min = 0.01 ms, max = 0.02 ms, mean = 0.01 ms, median = 0.01 ms, percentile(90%) = 0.01 ms, percentile(95%) = 0.02 ms, percentile(99%) = 0.02 ms
[07/09/2024-13:31:36] [I] H2D Latency: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms, percentile(90%) = 0 ms, percentile(95%) = 0 ms, percentile(99%) = 0 ms
[07/09/2024-13:31:36] [I] GPU Compute Time: min = 0.54 ms, max = 0.74 ms, mean = 0.56 ms, median = 0.55 ms, percentile(90%) = 0.57 ms, percentile(95%) = 0.58 ms, percentile(99%) = 0.62 ms
[07/09/2024-13:31:36] [I] D2H Latency: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms, percentile(90%) = 0 ms, percentile(95%) = 0 ms, percentile(99%) = 0 ms
[07/09/2024-13:31:36] [I] Total Host Walltime: 3.0012 s
[07/09/2024-13:31:36] [I] Total GPU Compute Time: 2.99 s
&&&& PASSED {BANNER}
"""  # noqa: E501


def test_a_log_is_read_whole() -> None:
    log = output.read_log(LOG, wants_graph=True)
    assert log.outcome == "PASSED"
    assert log.version == "8.5.2"
    assert log.captured_graph
    assert log.figures["throughput_qps"] == 1834.51
    assert log.figures["host_wall_s"] == 3.0012
    assert log.figures["compute_total_s"] == 2.99
    assert log.figures["build_s"] == 93.4712
    assert log.timings_ms["latency"] == {
        "min": 0.55, "max": 0.75, "mean": 0.57, "median": 0.56, "percentile(90%)": 0.58,
        "percentile(95%)": 0.59, "percentile(99%)": 0.63,
    }  # fmt: skip
    assert log.timings_ms["compute"]["median"] == 0.55
    assert set(log.timings_ms) == {"latency", "enqueue", "h2d", "compute", "d2h"}
    assert log.errors == ()


def test_the_memory_lines_are_bytes_and_an_absent_one_is_unknown() -> None:
    log = output.read_log(LOG)
    assert log.figure("allocator_cpu_peak_bytes") == 18 << 20
    assert log.figure("allocator_gpu_peak_bytes") == 227 << 20
    assert log.figure("loaded_engine_bytes") == 228 << 20
    assert log.figure("context_bytes") == 4.5 * (1 << 20)
    assert isinstance(log.figure("scratch_bytes"), Unknown)


@pytest.mark.parametrize(
    ("line", "doubt"),
    [
        ("* GPU compute time is unstable, with coefficient of variance = 12.3%.", "12.3%"),
        ("* Throughput may be bound by Enqueue Time rather than GPU Compute", "by the CPU"),
        (
            "* Throughput may be bound by host-to-device transfers for the inputs rather than "
            "GPU Compute and the GPU may be under-utilized.",
            "copies to the device",
        ),
    ],
)
def test_a_warning_about_the_numbers_is_a_doubt(line: str, doubt: str) -> None:
    found = output.read_log(LOG + f"[07/09/2024-13:31:36] [W] {line}\n").doubts
    assert len(found) == 2  # the other is that of an engine from another GPU, in LOG itself
    assert doubt in found[-1]


def test_a_graph_that_was_not_captured_is_a_doubt_only_where_one_was_wanted() -> None:
    text = LOG.replace("Successfully captured CUDA graph", "Could not capture")
    assert any("CUDA graph" in doubt for doubt in output.read_log(text, wants_graph=True).doubts)
    assert not any("CUDA graph" in doubt for doubt in output.read_log(text).doubts)


def test_a_failure_tells_what_was_wrong() -> None:
    text = f"&&&& RUNNING {BANNER}\n[07/09/2024-13:31:31] [E] Error Code 4: nothing\n"
    assert output.read_log(text).outcome == ""
    failed = output.read_log(text + f"&&&& FAILED {BANNER}\n")
    assert failed.outcome == "FAILED"
    assert failed.errors == ("Error Code 4: nothing",)


@pytest.mark.parametrize("cut", range(0, LOG.index("&&&& PASSED"), 173))
def test_a_log_cut_anywhere_is_read_and_never_passed(cut: int) -> None:
    log = output.read_log(LOG[:cut])
    assert log.outcome != "PASSED"


def query(ms: float) -> dict[str, float]:
    keys = ("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs",
            "startD2hMs", "endD2hMs")  # fmt: skip
    return {**dict.fromkeys(keys, 1.0), "h2dMs": 0.0, "computeMs": ms, "d2hMs": 0.0,
            "latencyMs": ms}  # fmt: skip


def test_times_are_kept_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps([query(ms) for ms in (3.0, 1.0, 2.0)]))
    assert output.read_times(path) == (3.0, 1.0, 2.0)


@pytest.mark.parametrize("cut", range(0, 600, 41))
def test_times_cut_anywhere_are_refused(tmp_path: Path, cut: int) -> None:
    text = json.dumps([query(ms) for ms in (3.0, 1.0, 2.0)])
    path = tmp_path / "times.json"
    path.write_text(text[:cut])
    with pytest.raises(InputError, match="times that trtexec exported"):
        output.read_times(path)


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", "null", "[1]", '[{"latencyMs": 1}]', '[{"latencyMs": "a", "computeMs": 1}]'],
)
def test_what_is_no_times_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(InputError):
        output.read_times(path)


def test_a_time_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps([query(1.0), query(0.0)]))
    with pytest.raises(InputError):
        output.read_times(path)


def test_a_profile_without_medians_says_so(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    entry = {"name": "conv + relu", "timeMs": 5.0, "averageMs": 0.5, "percentage": 62.5}
    path.write_text(json.dumps([{"count": 10}, entry, {**entry, "medianMs": 0.4}]))
    count, (first, second) = output.read_profile(path)
    assert (count, first.name, first.mean_ms, first.share) == (10, "conv + relu", 0.5, 0.625)
    assert isinstance(first.median_ms, Unknown)
    assert second.median_ms == 0.4
    path.write_text("[]")
    with pytest.raises(InputError, match="profile"):
        output.read_profile(path)


def test_outputs_have_the_models_types_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "outputs.json"
    path.write_text(
        '[{"name": "a", "dimensions": "2x3", "values": [1, 2.5, -3e-05, 4, 5, 6]},\n'
        '{"name": "n", "dimensions": "2", "values": [7, 8]}]'
    )
    specs = (TensorSpec(name="n", dtype="int64", shape=("batch",)),)
    found = output.read_outputs(path, specs)
    assert found["a"].shape == (2, 3)
    assert found["a"].dtype == np.float32
    assert found["a"][0, 2] == np.float32(-3e-5)
    assert found["n"].tolist() == [7, 8]
    assert found["n"].dtype == np.int64


@pytest.mark.parametrize("word", ["nan", "-nan", "inf", "-inf"])
def test_an_output_that_became_nan_is_said_and_not_called_damage(tmp_path: Path, word: str) -> None:
    path = tmp_path / "outputs.json"
    path.write_text(f'[{{"name": "a", "dimensions": "1x2", "values": [{word}, 1]}}]')
    with pytest.raises(InputError, match="becomes NaN or infinite on the device") as caught:
        output.read_outputs(path)
    assert caught.value.got == "1 values of 2"


@pytest.mark.parametrize(
    "text",
    ['[{"name": "a", "dimensions": "2x3", "values": [1]}]', '[{"name": "a"}]', "[", "[3]",
     '[{"name": "a", "dimensions": "axb", "values": [1]}]'],
)  # fmt: skip
def test_outputs_that_do_not_fit_themselves_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "outputs.json"
    path.write_text(text)
    with pytest.raises(InputError, match="outputs that trtexec exported"):
        output.read_outputs(path)
