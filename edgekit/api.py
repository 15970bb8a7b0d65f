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
    "quantize", "recover", "run", "save", "sensitivity", "torch_module", "verify", "write_back",
]  # fmt: skip

if TYPE_CHECKING:
    from edgekit.compress.channels.cut import ChannelReport
    from edgekit.compress.channels.plan import Plan
    from edgekit.compress.channels.sensitivity import Sensitivity
    from edgekit.compress.recover import RecoverReport
    from edgekit.engines.base import Engine
    from edgekit.gate import Decision, Evidence
    from edgekit.pipeline.quantization import Quantized
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


def channels(  # noqa: PLR0913  the whole step in one call
    model: Model, *, macs: float | str | None = None, params: float | str | None = None,
    latency_ms: float | str | None = None, table: str | Path | None = None,
    data: Batches | None = None, criterion: str = "auto", budget: str = "auto", multiple: int = 8,
    samples: int = 512, repair: bool = True, seed: int = 0,
) -> tuple[Model, ChannelReport]:  # fmt: skip
    """The Model with whole channels removed down to its limits; `report.plan` says which.

    A limit is a share up to 1 ("50%" of milliseconds), or a number. `latency_ms` needs a `table`, a
    file of `edgekit table`. With `data`, labels never read, what is left is repaired. The other
    options are those of `compress.channels.cut.CutOptions`. Raises InputError for a limit out of
    range or out of reach.
    """
    from edgekit.compress.channels.budgeting.limits import Limits, parse_limit
    from edgekit.compress.channels.cut import CutOptions, cut_channels
    from edgekit.pipeline.channels import budget_named, guidance_of, latency_by
    from edgekit.pipeline.table import load_table

    given = {"macs": macs, "parameters": params, "latency_ms": latency_ms}
    limits = Limits(
        **{name: parse_limit(str(limit)) for name, limit in given.items() if limit is not None}
    )
    latency_of = None if table is None else latency_by(load_table(Path(table)))
    guidance = guidance_of(data, latency_of, lambda share, said: None)
    options = CutOptions(
        limits=limits, criterion=criterion, budget=budget_named(budget), multiple=multiple,
        samples=samples, repair=repair, seed=seed,
    )  # fmt: skip
    return cut_channels(model, options, guidance)


def sensitivity(
    model: Model, data: Batches, *, criterion: str = "l2", samples: int = 256
) -> Sensitivity:
    """What the outputs lose as each channel group alone loses 25, 50 and 75% of its units.

    Raises InputError for a Model in which nothing can be cut, and for data that do not fit.
    """
    from edgekit.compress.channels.criteria import score_groups
    from edgekit.compress.channels.groups import groups_to_cut
    from edgekit.compress.channels.sensitivity import measure_sensitivity
    from edgekit.engines import onnxruntime

    groups = groups_to_cut(model)
    scores = score_groups(criterion, model, groups.groups, batches=data)
    return measure_sensitivity(
        model, groups.groups, scores, data, open_model=onnxruntime.open_model, samples=samples
    )


def apply_plan(
    module: TorchModule, plan: Plan | str | Path, *, model: Model | str | Path | None = None
) -> TorchModule:
    """The user's own module, cut as a plan (a `plan.json`) says; the one given stays whole.

    With `model`, the cut graph, the new module takes the graph's weights, which may have been
    repaired since, and it is checked that both compute the same on random inputs (relative error
    at most 1e-4). Raises InputError for a plan of another network; and with `model` where code has
    a width written into it, with the line.
    """
    from edgekit.compress.channels.plan import Plan, load_plan

    try:
        from edgekit.compress.channels.own.check import verify_module
        from edgekit.compress.channels.own.module import cut_module
    except ImportError as error:
        raise MissingPackageError(
            "a module needs torch", got=str(error), hint="pip install 'edgekit[compress]'"
        ) from error
    from edgekit.pipeline.steps import outputs_of_model

    if not isinstance(plan, Plan):
        plan = load_plan(Path(plan))
    cut = cut_module(module, plan)
    if model is not None:
        graph = model if isinstance(model, Model) else load(model)
        verify_module(cut, module, graph, outputs_of_model)
    return cut


def recover(
    student: Model, teacher: Model, data: Batches, *, epochs: int = 6,
    settings: Mapping[str, object] | None = None, checkpoint: str | Path | None = None,
) -> tuple[Model, RecoverReport]:  # fmt: skip
    """The student, taught by the teacher on unlabelled samples; Q/DQ graphs learn as they run.

    `settings` are keys of a recipe's `[compress.recover]`, such as `{"optimizer": "sgd",
    "learning_rate": 0.02, "schedule": "step", "shift": 4}`. With a `checkpoint` an interrupted run
    goes on where it was. Raises InputError for settings that make no sense and for data that does
    not fit, MissingPackageError without torch.
    """
    from edgekit.compress.recover import recover as teach
    from edgekit.pipeline.steps import recover_options
    from edgekit.recipe_sections import RecoverSection, read_section

    keys = {"epochs": epochs, **(settings or {})}
    options = recover_options(read_section(RecoverSection, keys, "settings"), Path())
    place = None if checkpoint is None else Path(checkpoint)
    return teach(student, teacher, data, options, checkpoint=place)


def quantize(
    model: Model, data: Batches, *, target: str = "cpu",
    settings: Mapping[str, object] | None = None,
) -> tuple[Model, Quantized]:  # fmt: skip
    """The Model in INT8, in the target's dialect, and all that is to be said of it.

    `settings` are keys of a recipe's `[quantize]`, such as `{"ranges": "mse", "refine": "none"}`;
    for an accuracy floor (`max_drop`) use `edgekit quantize`, which can be taken up again. Raises
    InputError where a target has no INT8 dialect.
    """
    from edgekit.models.simplify import simplify
    from edgekit.pipeline import quantization
    from edgekit.pipeline.steps import outputs_of_model
    from edgekit.quantize.prepare import prepared
    from edgekit.recipe_sections import QuantizeSection, read_section
    from edgekit.targets import resolve_target

    options = read_section(QuantizeSection, settings or {}, "settings")
    chosen = resolve_target(target).target
    dialect = quantization.dialect_of(chosen)
    feeds = next(iter(data.take(_SAMPLES))).inputs
    floating, _ = simplify(model, run=lambda candidate: outputs_of_model(candidate, feeds))
    ready = prepared(floating)
    job = quantization.Job(
        dialect=dialect, batches=data, options=options, version=chosen.runtime.version
    )  # fmt: skip
    ranges = quantization.observe_for(
        ready, (dialect,), data, lambda share, said: None, samples=options.samples,
        rows=options.ranges == "best",
    )  # fmt: skip
    found = quantization.quantize(ready, ranges, job)
    return found.model, found


def build(
    model: Model, folder: str | Path, *, target: str = "cpu", precision: str = "fp32"
) -> Engine:
    """The engine of a Model for a target, written into a folder with its manifest.

    The Model goes as it is: quantize it for the same target first where INT8 is wanted. Raises
    InputError where the target's runtime refuses it, or builds on the device only.
    """
    import tempfile

    from edgekit import files
    from edgekit.engines.base import EngineRequest, runtime_module
    from edgekit.engines.manifest import load_engine
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

    Use it in a `with` statement; `api.run(session, {name: array})` gives outputs by name. Raises
    InputError for an engine that was built for another machine.
    """
    from edgekit.engines import onnxruntime
    from edgekit.engines.base import runtime_module
    from edgekit.engines.fit import require_fit
    from edgekit.engines.manifest import load_engine

    if isinstance(source, Model):
        return onnxruntime.open_model(source, threads=threads)
    engine = load_engine(Path(source)) if isinstance(source, (str, Path)) else source
    require_fit(engine)
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
    """A Measurement of each engine by name, taken in turns on this machine, on real samples.

    The conditions that the engines' target declares are checked, and kept with what was broken.
    """
    from edgekit.bench.attended import site_of
    from edgekit.bench.runner import measure_side_by_side
    from edgekit.bench.workload import Arm
    from edgekit.engines.manifest import load_engine

    feeds = next(iter(data.take(_BATCH))).inputs
    arms = [
        Arm(name=name, engine=load_engine(Path(e)) if isinstance(e, (str, Path)) else e,
            inputs=feeds)
        for name, e in engines.items()
    ]  # fmt: skip
    site = site_of({arm.engine.target for arm in arms})
    return measure_side_by_side(arms, seconds=seconds, rounds=rounds, site=site)


def gate(evidence: Evidence | str | Path, limits: Mapping[str, float] | None = None) -> Decision:
    """The decision on evidence, or on the folder of a target that `edgekit build` left."""
    from edgekit.gate import decide
    from edgekit.pipeline.gating import gate_file

    if isinstance(evidence, (str, Path)):
        return gate_file(Path(evidence)).decision
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
