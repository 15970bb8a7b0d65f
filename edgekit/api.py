"""The steps as Python functions: what a script or a notebook uses.

    from edgekit import api

    model = api.load("net.onnx")
    data = api.data("photos/", model)
    smaller, report = api.channels(model, macs=0.5)
    taught, _ = api.recover(smaller, model, data)
    quantized, _ = api.quantize(taught, data, target="cpu")
    engine = api.build(quantized, "engine", target="cpu", precision="int8")
    print(api.verify(model, quantized, data))

Each takes values and returns new ones: nothing is changed in place. torch is imported only by what
needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgekit.data.batches import Batches, load_batches
from edgekit.data.metrics import load_metric
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.model import Model, save
from edgekit.pipeline.origin import Origin, open_origin
from edgekit.values import Measurement, Preprocessing, Session, run

__all__ = [
    "apply_plan", "bench", "build", "channels", "data", "free_batch", "gate", "load", "open",
    "quantize", "recover", "run", "save", "torch_module", "verify", "write_back",
]  # fmt: skip

if TYPE_CHECKING:
    from edgekit.compress.channels.cut import ChannelReport
    from edgekit.compress.recover import RecoverReport
    from edgekit.engines.base import Engine
    from edgekit.gate import Decision, Evidence
    from edgekit.quantize.place import QuantizeReport
    from edgekit.verify import VerifyReport

TorchModule: TypeAlias = Any
"""A `torch.nn.Module`; torch is not imported to say so."""

_BATCH = 100
_OBSERVE_BATCH = 32
_SAMPLES = 4


def load(
    source: str | Path | TorchModule, *, inputs: Mapping[str, Sequence[int]] | None = None,
    weights: str | Path = "", preprocessing: Preprocessing | None = None,
    trust_pickle: bool = False,
) -> Model:  # fmt: skip
    """The Model of a file (.onnx, .pt2, TorchScript), of a factory, or of a module in memory.

    `source` may be `file.py:function` or `package.module:function`, `weights` its `.safetensors`
    or state dict; `inputs` has a shape for each argument of forward, where the source does not
    tell. The Model is cleaned: no dead nodes, no Identity, every parameter under its own name.
    Raises InputError, with a sentence, for everything that is wrong with it.
    """
    from edgekit.models.simplify import clean

    shapes = {name: tuple(int(s) for s in shape) for name, shape in (inputs or {}).items()}
    if not isinstance(source, (str, Path)):
        from dataclasses import replace

        from edgekit.models.torch_source import export_module

        name = type(source).__name__.lower()
        model = export_module(source, shapes, name=name).model
        return replace(model, preprocessing=preprocessing)
    origin = Origin(
        place=str(source), weights=str(weights), inputs=shapes, trust_pickle=trust_pickle
    )
    return clean(open_origin(origin, preprocessing=preprocessing).model)


def free_batch(model: Model) -> Model:
    """The Model with a dynamic batch where an export fixed it, checked by running samples.

    Raises InputError where the batch is written into the graph for good.
    """
    from edgekit.models.batch import free_batch as free
    from edgekit.pipeline.steps import outputs_of_model

    return free(model, run=outputs_of_model)


def data(source: str | Path, model: Model, *, batch: int = _BATCH, role: str = "data") -> Batches:
    """The samples of an `.npz`, a folder of pictures, a CSV or a function, for a model's inputs.

    Pixels are preprocessed as the Model says. Raises InputError for anything that does not fit.
    """
    return load_batches(
        str(source), folder=Path(), inputs=model.inputs, preprocessing=model.preprocessing,
        batch_size=batch, role=role,
    )  # fmt: skip


def channels(model: Model, *, macs: float, multiple: int = 8) -> tuple[Model, ChannelReport]:
    """The Model with whole channels removed down to a share of its MACs; `report.plan` says which.

    Raises InputError for a budget outside (0, 1] or one that cannot be met.
    """
    from edgekit.compress.channels.cut import cut_channels

    return cut_channels(model, macs=macs, multiple=multiple)


def apply_plan(module: TorchModule, plan: str | Path) -> TorchModule:
    """The user's own module, cut as a `plan.json` says; the module that is given stays whole.

    Raises InputError for a plan that names tensors which the module does not have.
    """
    from edgekit.compress.channels.own_module import cut_module
    from edgekit.compress.channels.plan import plan_from_json

    return cut_module(module, plan_from_json(Path(plan).read_text()))


def recover(
    student: Model, teacher: Model, data: Batches, *, epochs: int = 6, learning_rate: float = 1e-3,
    checkpoint: str | Path | None = None,
) -> tuple[Model, RecoverReport]:  # fmt: skip
    """The student, taught by the teacher on unlabelled samples; Q/DQ graphs learn as they run.

    With a `checkpoint` an interrupted run goes on where it was. Raises MissingPackageError without
    torch.
    """
    from edgekit.compress.recover import RecoverOptions
    from edgekit.compress.recover import recover as teach

    options = RecoverOptions(epochs=epochs, learning_rate=learning_rate)
    place = None if checkpoint is None else Path(checkpoint)
    return teach(student, teacher, data, options, checkpoint=place)


def quantize(
    model: Model, data: Batches, *, target: str = "cpu", samples: int | None = None,
    ranges: str = "percentile", percentile: float = 99.999,
) -> tuple[Model, QuantizeReport]:  # fmt: skip
    """The Model simplified, with INT8 Q/DQ in the target's dialect; ranges come from the samples.

    `ranges` is minmax or percentile. Raises InputError where a target has no INT8 dialect.
    """
    from edgekit.engines import machine, onnxruntime
    from edgekit.models.simplify import simplify
    from edgekit.pipeline.steps import outputs_of_model
    from edgekit.quantize.dialects import dialect_named
    from edgekit.quantize.observe import float_activations, observe
    from edgekit.quantize.place import insert_qdq
    from edgekit.quantize.ranges import choice
    from edgekit.targets import resolve_target

    runtime = resolve_target(target).target.runtime
    dialect = dialect_named(
        runtime.dialect, version=runtime.version if runtime.name != "tensorrt_rtx" else "11.0",
        cpu_flags=machine.cpu_flags(), arm=machine.is_arm(),
    )  # fmt: skip
    feeds = next(iter(data.take(_SAMPLES))).inputs

    floating, _ = simplify(model, run=lambda candidate: outputs_of_model(candidate, feeds))
    chosen = (data.take(samples) if samples else data).with_batch_size(_OBSERVE_BATCH)
    observed = observe(floating, float_activations(floating), chosen, onnxruntime.open_model)
    return insert_qdq(floating, observed, dialect, choice(ranges, percent=percentile))


def build(
    model: Model, folder: str | Path, *, target: str = "cpu", precision: str = "fp32"
) -> Engine:
    """The engine of a Model for a target, written into a folder with its manifest.

    The Model goes as it is: quantize it for the same target first where INT8 is wanted. Raises
    InputError where the target's runtime refuses it, or builds on the device only.
    """
    import tempfile

    from edgekit import files
    from edgekit.engines.base import EngineRequest, load_engine, runtime_module
    from edgekit.targets import resolve_target

    chosen = resolve_target(target).target
    if chosen.runtime.build == "device":
        raise InputError(
            f"engines for {chosen.title} are built on the device", where=chosen.name,
            hint="`edgekit build` in a folder with a recipe writes what the device needs.",
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        path = Path(scratch, "model.onnx")
        save(model, path)
        request = EngineRequest(
            model_path=path, name=model.name, target=chosen, precision=precision
        )
        with files.replacing_folder(Path(folder)) as place:
            runtime_module(chosen.runtime.name).build(request, place)
    return load_engine(Path(folder))


def open(source: Model | Engine | str | Path, *, threads: int = 0) -> Session:
    """A Session to run a Model (by ONNX Runtime), an engine, or the folder of one.

    Use it in a `with` statement; `api.run(session, {name: array})` gives outputs by name.
    """
    from edgekit.engines import onnxruntime
    from edgekit.engines.base import load_engine, runtime_module

    if isinstance(source, Model):
        return onnxruntime.open_model(source, threads=threads)
    engine = load_engine(Path(source)) if isinstance(source, (str, Path)) else source
    return runtime_module(engine.runtime).open(engine, threads=threads)


def verify(
    reference: Model | Engine | str | Path, candidate: Model | Engine | str | Path, data: Batches,
    *, metric: str = "",
) -> VerifyReport:  # fmt: skip
    """How a candidate does against a reference on the same samples: metric, agreement, SQNR.

    `metric` is a name or `package.module:function`; without one it is top1 where there are labels.
    """
    from edgekit.verify import outputs_of
    from edgekit.verify import verify as compare

    score = load_metric(metric or ("fidelity" if data.labels is None else "top1"), Path())
    found = []
    for one in (reference, candidate):
        with open(one) as session:
            found.append(outputs_of(session, data))
    (expected, labels), (outputs, _) = found
    return compare(expected, outputs, labels, score)


def bench(
    engines: Mapping[str, Engine | str | Path], data: Batches, *, seconds: float = 6.0,
    rounds: int = 12,
) -> tuple[Measurement, ...]:  # fmt: skip
    """A Measurement of each engine by name, taken in turns on this machine, on real samples."""
    from edgekit.bench.runner import measure_side_by_side
    from edgekit.bench.workload import Arm
    from edgekit.engines.base import load_engine

    feeds = next(iter(data.take(_BATCH))).inputs
    arms = [
        Arm(name=name, engine=load_engine(Path(e)) if isinstance(e, (str, Path)) else e,
            inputs=feeds)
        for name, e in engines.items()
    ]  # fmt: skip
    return measure_side_by_side(arms, seconds=seconds, rounds=rounds)


def gate(evidence: Evidence | str | Path, limits: Mapping[str, float] | None = None) -> Decision:
    """The decision on evidence, or on the folder of a target that `edgekit build` left."""
    from edgekit.gate import decide
    from edgekit.pipeline.alone import gate_file

    if isinstance(evidence, (str, Path)):
        return gate_file(Path(evidence))
    return decide(evidence, limits or {})


def torch_module(model: Model) -> TorchModule:
    """The Model as a trainable module; `api.write_back(module, model)` gives a Model again."""
    try:
        from edgekit.models.torch_module import torch_module as executor
    except ImportError as error:
        raise MissingPackageError(
            "training needs torch", got=str(error), hint="pip install 'edgekit[compress]'"
        ) from error
    return executor(model)


def write_back(module: Any, model: Model) -> Model:
    """The Model with the weights of a module that `torch_module` made of it."""
    from edgekit.models.torch_module import write_back as back

    return back(module, model, "trained")
