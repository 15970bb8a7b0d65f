"""What each version of trtexec is asked for, against the table of its sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.engines.base import EngineRequest
from edgekit.engines.trtexec import flags
from edgekit.errors import InputError
from edgekit.targets import load_target

ORIN = load_target("jetson-orin-nano-8gb")
EXTENTS = {"image": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
SHAPES = {"--minShapes=image:1x3x8x8", "--optShapes=image:2x3x8x8", "--maxShapes=image:4x3x8x8"}
ALWAYS = {
    "--onnx=model.onnx", "--saveEngine=model.engine", "--timingCacheFile=timing.cache",
    "--profilingVerbosity=detailed",
} | SHAPES  # fmt: skip

# Which options each version has, from its sampleOptions.cpp; None where it has a value of ours.
_OLD = {
    "--onnx", "--saveEngine", "--loadEngine", "--minShapes", "--optShapes", "--maxShapes",
    "--shapes", "--loadInputs", "--iterations", "--duration", "--warmUp", "--exportTimes",
    "--exportProfile", "--exportLayerInfo", "--exportOutput", "--dumpProfile",
    "--profilingVerbosity", "--timingCacheFile", "--useDLACore", "--allowGPUFallback",
    "--useSpinWait", "--useCudaGraph", "--noDataTransfers",
}  # fmt: skip
KNOWN = {
    "8.2": _OLD | {"--workspace", "--fp16", "--int8", "--buildOnly"},
    "8.5": _OLD | {"--workspace", "--memPoolSize", "--fp16", "--int8", "--buildOnly"},
    "8.6": _OLD | {"--workspace", "--memPoolSize", "--fp16", "--int8", "--buildOnly",
                   "--skipInference"},
    "10.3": _OLD | {"--memPoolSize", "--fp16", "--int8", "--skipInference"},
    "10.13": _OLD | {"--memPoolSize", "--fp16", "--int8", "--skipInference"},
    "10.16": _OLD | {"--memPoolSize", "--fp16", "--int8", "--skipInference"},
    "11.1": (_OLD | {"--memPoolSize", "--skipInference", "--includeDataTransfers", "--noCudaGraph",
                     "--noSpinWait"})
    - {"--useSpinWait", "--useCudaGraph", "--noDataTransfers"},  # accepted, and say nothing
}  # fmt: skip


def request_for(version: str = "10.3", **options: object) -> EngineRequest:
    runtime = ORIN.runtime.model_copy(update={"version": version})
    return EngineRequest(
        **{  # type: ignore[arg-type]
            "model_path": Path("net.onnx"), "name": "net",
            "target": ORIN.model_copy(update={"runtime": runtime}),
            "precision": "int8", "workspace_bytes": 512 << 20, "batch": (1, 2, 4), **options,
        }
    )  # fmt: skip


def built(version: str = "10.3", extents: object = EXTENTS, **options: object) -> tuple[str, ...]:
    return flags.build_arguments(
        request_for(version, **options), extents, version=version, engine="model.engine"  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("version", "own"),
    [
        ("8.2.1", {"--workspace=512", "--int8", "--fp16", "--buildOnly"}),
        ("8.5.2", {"--memPoolSize=workspace:512", "--int8", "--fp16", "--buildOnly"}),
        ("8.6.2.3", {"--memPoolSize=workspace:512", "--int8", "--fp16", "--skipInference"}),
        ("10.3", {"--memPoolSize=workspace:512", "--int8", "--fp16", "--skipInference"}),
        ("10.16", {"--memPoolSize=workspace:512", "--int8", "--fp16", "--skipInference"}),
        ("11.1", {"--memPoolSize=workspace:512", "--skipInference"}),
    ],
)
def test_each_version_gets_the_flags_that_it_knows(version: str, own: set[str]) -> None:
    found = built(version)
    assert set(found) == ALWAYS | own
    assert len(found) == len(set(found))


RUN = flags.Run(
    engine="model.engine", shapes={"image": (2, 3, 8, 8)}, inputs={"image": "golden/a.bin"},
    dla_core=None,
)  # fmt: skip


@pytest.mark.parametrize("version", KNOWN)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_no_version_is_asked_for_an_option_that_it_lacks(version: str, precision: str) -> None:
    asked = [
        *built(version, precision=precision),
        *flags.answer_arguments(RUN, version=version, output="o"),
        *flags.measure_arguments(RUN, version=version, seconds=2, warmup_seconds=0.2, times="t"),
        *flags.profile_arguments(RUN, version=version, profile="p", layers="l"),
    ]
    assert {argument.partition("=")[0] for argument in asked} <= KNOWN[version]


@pytest.mark.parametrize("version", ["8.2", "8.5", "8.6", "10.3", "10.13", "10.16"])
def test_to_version_10_copies_are_switched_off_and_spin_and_graph_on(version: str) -> None:
    found = flags.measure_arguments(
        RUN, version=version, seconds=1.2, warmup_seconds=0.5, times="times.json"
    )
    assert {"--noDataTransfers", "--useSpinWait", "--useCudaGraph"} < set(found)
    assert {"--duration=1", "--warmUp=500", "--exportTimes=times.json"} < set(found)
    answers = flags.answer_arguments(RUN, version=version, output="o.json")
    assert not [argument for argument in answers if "Transfers" in argument]


def test_from_version_11_that_is_the_default_and_answers_need_the_copies() -> None:
    found = flags.measure_arguments(
        RUN, version="11.1", seconds=3, warmup_seconds=0.2, times="times.json"
    )
    assert found == (
        "--loadEngine=model.engine", "--shapes=image:2x3x8x8", "--loadInputs=image:golden/a.bin",
        "--duration=3", "--warmUp=200", "--exportTimes=times.json",
    )  # fmt: skip
    assert "--includeDataTransfers" in flags.answer_arguments(RUN, version="11.1", output="o.json")
    assert "--noCudaGraph" in flags.profile_arguments(
        RUN, version="11.1", profile="p", layers="l"
    )  # fmt: skip


def test_a_dla_engine_is_run_on_its_core() -> None:
    run = flags.Run(engine="e", shapes={}, inputs={"x": "x.bin"}, dla_core=1)
    found = flags.answer_arguments(run, version="8.5", output="o")
    assert "--useDLACore=1" in found
    assert not [argument for argument in found if argument.startswith("--shapes")]


@pytest.mark.parametrize(
    ("precision", "own"), [("fp32", set()), ("fp16", {"--fp16"}), ("int8", {"--fp16", "--int8"})]
)
def test_a_weakly_typed_version_is_asked_for_the_precision(precision: str, own: set[str]) -> None:
    assert set(built(precision=precision)) & {"--fp16", "--int8"} == own


def test_the_targets_own_workspace_is_used_where_the_request_has_none() -> None:
    assert "--memPoolSize=workspace:1024" in built(workspace_bytes=None)


def test_a_static_model_has_no_shapes() -> None:
    assert not [argument for argument in built(extents={}) if "Shapes" in argument]


def test_the_dla_is_asked_for_where_the_version_has_one() -> None:
    assert {"--useDLACore=1", "--allowGPUFallback"} <= set(built(dla_core=1))
    with pytest.raises(InputError, match="has no DLA"):
        built("10.13", dla_core=1)


@pytest.mark.parametrize("version", ["7.1", "8.1.9", "ten", ""])
def test_an_unknown_version_is_refused(version: str) -> None:
    with pytest.raises(InputError):
        flags.generation_of(version)


@pytest.mark.parametrize(
    ("number", "version"),
    [("8201", "8.2.1"), ("8502", "8.5.2"), ("8602", "8.6.2"), ("100300", "10.3.0"),
     ("101303", "10.13.3"), ("110100", "11.1.0"), ("", ""), ("v85", ""), ("12345678", "")],
)  # fmt: skip
def test_the_banners_number_is_a_version(number: str, version: str) -> None:
    assert flags.version_from_number(number) == version


def test_a_name_that_trtexec_would_take_apart_is_quoted_and_one_with_a_quote_refused() -> None:
    assert flags.named_shape("in put:0", (1, 3)) == "'in put:0':1x3"
    assert flags.named_shape("images_2", (1, 3)) == "images_2:1x3"
    with pytest.raises(InputError, match="quote"):
        flags.named_shape("it's", (1,))
