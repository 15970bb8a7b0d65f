"""The command line: parse, call one function, render, exit. No logic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.pipeline.origin import Origin
    from edgekit.pipeline.result import BuildResult

app = typer.Typer(
    name="edgekit",
    help="From a trained vision model to a measured, gated engine for one device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 gate failed, 2 bad input, 3 inconclusive or not measured, "
    "4 invalid conditions, 5 package missing, 6 out of disk, memory or time, 130 interrupted.",
)

Verb = TypeVar("Verb", bound=Callable[..., int])

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RecipePath = Annotated[Path, typer.Argument(metavar="[RECIPE]", help="The recipe.")]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", "-t", help="A target's name or file; may be given several times."),
]
Weights = Annotated[str, typer.Option(help="A factory's weights: .safetensors or a state dict.")]
ModulePlan = Annotated[str, typer.Option("--plan", help="A plan.json, to cut a factory's module.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--input", help="An input's shape where the model does not tell: x=1,3,224,224."),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Open pickled modules: that runs code in them.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.")]
Junit = Annotated[Path | None, typer.Option("--junit", help="The verdict as JUnit XML, for a CI.")]
Markdown = Annotated[
    Path | None, typer.Option("--markdown", help="The verdict as Markdown, for a pull request.")
]


@app.callback()
def _edgekit() -> None:
    pass


def verb(function: Verb) -> Callable[..., None]:
    """The verb as typer wants it: its number is the exit code, its errors are one panel."""

    @functools.wraps(function)
    def guarded(**options: Any) -> None:
        try:
            code = function(**options)
        except KeyboardInterrupt:
            _leave_interrupted(as_json=bool(options.get("as_json")))
        except EdgekitError as error:
            if options.get("debug"):
                raise
            _leave_with(error, as_json=bool(options.get("as_json")))
        except MemoryError as error:
            if options.get("debug"):
                raise
            _leave_with(_out_of_memory(error), as_json=bool(options.get("as_json")))
        except Exception as error:  # the one place: a bug of ours becomes a panel, not a traceback
            if options.get("debug"):
                raise
            _leave_with(_bug(error), as_json=bool(options.get("as_json")))
        raise typer.Exit(code)

    return app.command()(guarded)


def _origin(
    place: str, shapes: list[str] | None, *, trust_pickle: bool, weights: str = "", plan: str = ""
) -> Origin:
    """Where a model comes from, as the options of a verb say it."""
    from edgekit.pipeline.origin import Origin, parse_inputs

    return Origin(
        place=place, weights=weights, plan=plan, inputs=parse_inputs(shapes or ()),
        trust_pickle=trust_pickle,
    )  # fmt: skip


def _side(place: str, shapes: list[str] | None, *, trust_pickle: bool) -> Origin:
    """One of two models that share `--input`: an ONNX file tells its shapes itself."""
    origin = _origin(place, shapes, trust_pickle=trust_pickle)
    return replace(origin, inputs={}) if place.endswith(".onnx") else origin


def _leave_with(error: EdgekitError, *, as_json: bool) -> None:
    from edgekit import console

    if as_json:
        console.print_json(
            {
                "error": {
                    "what": error.what, "where": error.where, "got": error.got,
                    "wanted": error.wanted, "hint": error.hint,
                },
                "exit_code": error.exit_code,
            }
        )  # fmt: skip
    else:
        console.show_error(error)
    raise typer.Exit(error.exit_code)


def _leave_interrupted(*, as_json: bool) -> None:
    from edgekit import console

    if as_json:
        console.print_json({"error": {"what": "interrupted"}, "exit_code": 130})
    else:
        console.say("interrupted; what was finished is kept, the same command goes on from there")
    raise typer.Exit(130)


def _bug(error: Exception) -> EdgekitError:
    from edgekit.errors import InternalError

    return InternalError(
        "this is a bug of edgekit",
        got=f"{type(error).__name__}: {error}",
        hint="Run the same command with --debug and report what it prints.",
    )


def _out_of_memory(error: MemoryError) -> EdgekitError:
    from edgekit.errors import ResourceError

    return ResourceError(
        "the memory of this machine is not enough", got=str(error),
        hint="Use fewer samples, a smaller batch, or a machine with more memory.",
    )  # fmt: skip


@verb
def build(
    recipe: RecipePath = Path("edgekit.toml"),
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="A target's name or file; may be given several times. all: every one there is.",
        ),
    ] = None,
    out: Out = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A target that nobody has measured fails it (3).")
    ] = False,
    rebench: Annotated[
        bool, typer.Option("--rebench", help="Measure again, whatever is known.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe and the steps; make nothing.")
    ] = False,
    recipe_only: Annotated[
        bool,
        typer.Option("--recipe-only", help="Write a recipe for the device, build no engine here."),
    ] = False,
    from_recipe: Annotated[
        Path | None,
        typer.Option("--from", help="A device recipe: build, verify, measure and gate its engine."),
    ] = None,
    via: Annotated[
        str, typer.Option(help="With --from: where its trtexec is, such as 'ssh user@device'.")
    ] = "",
    results: Annotated[
        Path | None, typer.Option(help="With --from: what its build.sh left on the device.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=1, help="With --from: seconds, at most.")
    ] = 7200.0,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, fp16 or int8, whatever the recipe says.")
    ] = None,
    dla: Annotated[
        bool, typer.Option("--dla", help="On the first DLA core; the recipe names another.")
    ] = False,
    junit: Junit = None,
    markdown: Markdown = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Take a recipe's model the whole way, for one target or several."""
    from edgekit import console

    if from_recipe is not None or via or results is not None:
        from edgekit.pipeline import from_recipe as device

        wanted = device.FromRequest(
            folder=from_recipe, out=out, via=via, results=results, rebench=rebench, strict=strict,
            time_limit_s=time_limit, unused=device.given({
                "--target": target, "--dry-run": dry_run, "--recipe-only": recipe_only,
                "--precision": precision, "--dla": dla,
            }),
        )  # fmt: skip
        with console.build_progress() as on_event:
            result = device.build_from(wanted, on_event=on_event)
        console.print_json(result.to_json()) if as_json else console.show_build(result)
        _write_reports(result, junit, markdown)
        return result.exit_code
    from edgekit.pipeline import build as pipeline

    asked: dict[str, object] = {} if precision is None else {"precision": precision}
    request = pipeline.BuildRequest(
        recipe=recipe, targets=tuple(target or ()), out=out, rebench=rebench, strict=strict,
        trust_pickle=trust_pickle, recipe_only=recipe_only,
        engine=asked | ({"dla": 0} if dla else {}),
    )  # fmt: skip
    if dry_run:
        plan = pipeline.plan(request)
        if as_json:
            console.print_json(plan.to_json())
        else:
            console.show_plan(plan)
        return 0
    with console.build_progress() as on_event:
        result = pipeline.build(request, on_event=on_event)
    if as_json:
        console.print_json(result.to_json())
    else:
        console.show_build(result)
    _write_reports(result, junit, markdown)
    return result.exit_code


def _write_reports(result: BuildResult, junit: Path | None, markdown: Path | None) -> None:
    from edgekit.pipeline.gating import rulings_of
    from edgekit.report.verdicts import write_reports

    write_reports(rulings_of(result), junit=junit, markdown=markdown)


@verb
def init(
    model: Annotated[
        str, typer.Argument(help="An .onnx, .pt2 or TorchScript file, or file.py:factory.")
    ],
    calibration: Annotated[str, typer.Option(help="Samples without labels.")] = "",
    evaluation: Annotated[str, typer.Option(help="Samples with labels.")] = "",
    target: Targets = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe.")] = Path("edgekit.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a recipe.")] = False,
    weights: Weights = "",
    plan: ModulePlan = "",
    shapes: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Write a first recipe from what a model shows of itself."""
    from edgekit import console
    from edgekit.pipeline import alone
    from edgekit.pipeline.draft import Wishes

    origin = _origin(model, shapes, trust_pickle=trust_pickle, weights=weights, plan=plan)
    wishes = Wishes(calibration=calibration, evaluation=evaluation, targets=tuple(target or ()))
    report = alone.draft_file(origin, wishes, out=out, force=force)
    console.print_json(report) if as_json else console.show_document(report)
    return 0


@verb
def targets(
    name: Annotated[
        str | None, typer.Argument(help="One, in full; NAME@6.0: with that JetPack.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """List the device profiles, and those that this machine is; or explain one."""
    from edgekit import console
    from edgekit.report import profiles

    if name is None:
        listing = profiles.listing()
        console.print_json(listing.to_json()) if as_json else console.show_targets(listing)
    else:
        view = profiles.profile(name)
        console.print_json(view.to_json()) if as_json else console.show_profile(view)
    return 0


@verb
def inspect(
    model: Annotated[
        str, typer.Argument(help="An .onnx, .pt2 or TorchScript file, or file.py:factory.")
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Would it refuse? How fast, by an estimate?"),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="The size of a dynamic first axis.")] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shape", help="An input's shape, where sizes are dynamic: x=1,3,640,640."),
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the costliest layers to list.")] = 8,
    weights: Weights = "",
    plan: ModulePlan = "",
    inputs: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Show what a model is: inputs, operators, costs, memory, what cannot be cut or trained."""
    from edgekit import console
    from edgekit.report import inspection

    origin = _origin(model, inputs, trust_pickle=trust_pickle, weights=weights, plan=plan)
    found = inspection.inspect_origin(
        origin, target, batch=batch, shapes=tuple(shapes or ()), top=top
    )
    console.print_json(found.to_json()) if as_json else console.show_inspection(found)
    return 0


@verb
def lint(
    model: Annotated[str, typer.Argument(help="A model with Q/DQ, of any tool.")],
    target: Annotated[
        str,
        typer.Option("--target", "-t", help="A target, or a dialect such as tensorrt-8, ort-avx2."),
    ],
    shapes: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Say where a quantized model breaks a runtime's rules, or will not fuse (1: an error)."""
    from edgekit import console
    from edgekit.pipeline import linting

    origin = _origin(model, shapes, trust_pickle=trust_pickle)
    found = linting.lint_origin(origin, target)
    console.print_json(found.to_json()) if as_json else console.show_lint(found)
    return found.exit_code


@verb
def verify(
    reference: Annotated[str, typer.Argument(metavar="A", help="The reference, a model.")],
    candidate: Annotated[str, typer.Argument(metavar="B", help="The candidate, a model.")],
    data: Annotated[
        str, typer.Option("--data", help="data.npz, a folder of pictures, a .csv, or a function.")
    ],
    recipe: Annotated[
        Path | None, typer.Option(help="Its preprocessing and metric are used.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="top1, fidelity or package.module:function")
    ] = None,
    shapes: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Compare one model with another on the same inputs: metric, agreement, error."""
    from edgekit import console
    from edgekit.pipeline import alone

    first, second = (
        _side(place, shapes, trust_pickle=trust_pickle) for place in (reference, candidate)
    )
    report = alone.verify_files(first, second, data=data, recipe=recipe, metric=metric)
    console.print_json(report) if as_json else console.show_document(report)
    return 0


@verb
def channels(
    model: Annotated[str, typer.Argument(help="A model, BatchNormalization unfolded.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The smaller .onnx file.")],
    macs: Annotated[str, typer.Option(help="At most so many: 0.5, 50% or 3e8.")] = "",
    params: Annotated[str, typer.Option(help="At most so many parameters: 0.5, 50% or 1e6.")] = "",
    latency_ms: Annotated[str, typer.Option(help="At most so long on the target: 5 or 50%.")] = "",
    target: Targets = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="Which units matter: l1, l2, bn_scale, fpgm, random; with --data taylor, "
            "activation, entropy, thinet."
        ),
    ] = "auto",
    budget: Annotated[
        str, typer.Option(help="How much from where: uniform, global, sensitivity or latency.")
    ] = "auto",
    data: Annotated[
        str, typer.Option("--data", help="Samples; with them what is left is repaired.")
    ] = "",
    recipe: Annotated[Path | None, typer.Option(help="Its preprocessing is used.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Layer times that edgekit table wrote; else measured here.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Of the latency.")] = 1,
    precision: Annotated[str, typer.Option(help="Of the latency: fp32 or int8.")] = "fp32",
    multiple: Annotated[
        int | None,
        typer.Option(min=1, help="Keep multiples of it; else what the targets prefer, or 8."),
    ] = None,
    repair: Annotated[
        bool, typer.Option(help="Fit the weights that are left, on the data.")
    ] = True,
    weights: Weights = "",
    plan: ModulePlan = "",
    shapes: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Remove whole channels, down to MACs, parameters or milliseconds; a plan says which."""
    from edgekit import console
    from edgekit.pipeline import channels as cutting
    from edgekit.pipeline.table import precision_named

    origin = _origin(model, shapes, trust_pickle=trust_pickle, weights=weights, plan=plan)
    limits = {"macs": macs, "parameters": params, "latency_ms": latency_ms}
    request = cutting.ChannelsRequest(
        origin=origin, out=out, limits={name: text for name, text in limits.items() if text},
        targets=tuple(target or ()), precision=precision_named(precision), batch=batch,
        criterion=criterion, budget=cutting.budget_named(budget), multiple=multiple, data=data,
        recipe=recipe, table=table, repair=repair,
    )  # fmt: skip
    with console.build_progress() as on_event:
        report = cutting.cut_file(request, on_event=on_event)
    if as_json:
        console.print_json(report)
    else:
        console.show_document(cutting.summary(report))
    return 0


@verb
def recover(
    student: Annotated[str, typer.Argument(help="The model that learns: cut, or quantized.")],
    teacher: Annotated[str, typer.Option(help="The original, which it learns to imitate.")],
    data: Annotated[
        str, typer.Option("--data", help="Samples; their labels are never read, as for verify.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The taught .onnx file.")],
    recipe: Annotated[
        Path | None,
        typer.Option(help="Its preprocessing, and its table compress.recover, are used."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How often each sample is shown.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="cosine, linear, step or constant, after a warm-up.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, or sgd with momentum.")] = None,
    shift: Annotated[
        int | None, typer.Option(help="Move images by up to so many pixels, at random.")
    ] = None,
    hint: Annotated[
        float | None, typer.Option(help="Weight of the last shared feature map, such as 20.")
    ] = None,
    augment: Annotated[
        str | None, typer.Option(help="Your package.module:function (batch, generator) -> batch.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="End after so many epochs without progress; keep the best.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Keep the state here, to go on to more epochs later.")
    ] = None,
    shapes: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Train what was cut to imitate the original; the same command goes on after an interruption.

    Several GPUs: accelerate launch --multi_gpu -m edgekit.cli recover ...
    """
    from edgekit import console
    from edgekit.pipeline import recovery

    learner, original = (
        _side(place, shapes, trust_pickle=trust_pickle) for place in (student, teacher)
    )
    settings = {
        "epochs": epochs, "learning_rate": learning_rate, "batch": batch, "schedule": schedule,
        "optimizer": optimizer, "hint": hint, "shift": shift, "augment": augment,
        "patience": patience, "precision": precision, "seed": seed,
    }  # fmt: skip
    request = recovery.RecoveryRequest(
        student=learner, teacher=original, data=data, out=out, recipe=recipe, checkpoint=checkpoint,
        settings={key: value for key, value in settings.items() if value is not None},
    )  # fmt: skip
    with console.build_progress() as on_event:
        report = recovery.recover_file(request, on_event=on_event)
    if report:
        console.print_json(report) if as_json else console.show_document(report)
    return 0


@verb
def quantize(
    model: Annotated[str, typer.Argument(help="A trained model, in floating point.")],
    data: Annotated[
        str, typer.Option("--data", help="Unlabelled samples of what the device will see.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The quantized .onnx file.")],
    target: Annotated[
        str, typer.Option("--target", "-t", help="Whose dialect the file is in.")
    ] = "cpu",
    dialect: Annotated[
        str, typer.Option(help="Another than the target's: tensorrt-8, ort-vnni, dla, ...")
    ] = "",
    precision: Annotated[str, typer.Option(help="int8 or fp16.")] = "int8",
    method: Annotated[
        str | None, typer.Option(help="Ranges: minmax, percentile, entropy, mse or best.")
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(help="auto, none, or steps: equalise, absorb, bias, round, adaround, distil."),
    ] = None,
    samples: Annotated[
        str | None, typer.Option(help="At most so many; auto: until the ranges stand still.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="What INT8 may lose of the metric; else nodes stay float.")
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="Expected on the target; the least loss under it.")
    ] = None,
    evaluation: Annotated[
        str, typer.Option("--eval", help="Samples with labels for --max-drop.")
    ] = "",
    metric: Annotated[
        str, typer.Option(help="top1, fidelity or package.module:function, for --max-drop.")
    ] = "",
    min_int8_share: Annotated[
        float | None, typer.Option(help="Of the MACs of weighted layers, in INT8; 0.95.")
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option("--table", help="Two of `edgekit table`, FP32 and INT8: what INT8 saves."),
    ] = None,
    spare: Annotated[
        float | None, typer.Option(help="Of the MACs, left in float where it helps most; 0.")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Of the weights; fewer than 8 are simulated.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Its preprocessing and [quantize] are used.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write all that was found here.")] = None,
    weights: Weights = "",
    plan: ModulePlan = "",
    shapes: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Quantize a model for one target: observe, choose ranges, mend the rounding, judge."""
    from edgekit import console
    from edgekit.pipeline import quantized_file as quantizing

    settings = {
        "ranges": method, "refine": quantizing.refinements(refine), "max_drop": max_drop,
        "samples": quantizing.sample_count(samples), "min_int8_share": min_int8_share,
        "weight_bits": bits, "max_ms": max_ms, "spare": spare,
        "tables": tuple(tables) if tables else None,
    }  # fmt: skip
    request = quantizing.QuantizeRequest(
        origin=_origin(model, shapes, trust_pickle=trust_pickle, weights=weights, plan=plan),
        data=data, out=out, target=target, dialect=dialect,
        precision=quantizing.precision_named(precision),
        recipe=recipe, evaluation=evaluation, metric=metric, report=report,
        settings={key: value for key, value in settings.items() if value is not None},
    )  # fmt: skip
    with console.build_progress() as on_event:
        found = quantizing.quantize_file(request, on_event=on_event)
    if as_json:
        console.print_json(found.document)
    else:
        console.show_quantization(found.document)
    return found.exit_code


@verb
def bench(
    engine: Annotated[
        list[Path], typer.Argument(help="An engine's folder; several are measured in turns.")
    ],
    data: Annotated[str | None, typer.Option(help="Real inputs; zeros are never used.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Its preprocessing is used.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure each.")] = 5.0,
    processes: Annotated[
        int, typer.Option(min=0, help="For each engine, one after another; 0: 3, of --aa 5.")
    ] = 0,
    rounds: Annotated[int, typer.Option(min=0, help="Turns A B, B A, ...; 0: as needed.")] = 0,
    calls: Annotated[int, typer.Option(min=0, help="At least so many, if it takes longer.")] = 0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds at least, until steady.")] = 0.5,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a call.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Of a CPU; 0: as built.")] = 0,
    scenario: Annotated[
        str, typer.Option(help="single_stream, multi_stream, offline or server.")
    ] = "single_stream",
    samples_per_query: Annotated[int, typer.Option(min=0, help="Of multi_stream.")] = 0,
    rate: Annotated[float, typer.Option(min=0, help="Queries a second of a server.")] = 0.0,
    latency_limit_ms: Annotated[
        float, typer.Option(min=0, help="What 99% of a server's queries may take; else 1.")
    ] = 0.0,
    target: Annotated[
        str, typer.Option("--target", "-t", help="Whose conditions count; else its own.")
    ] = "",
    aa: Annotated[
        bool, typer.Option("--aa", help="Against itself: this machine's noise floor, stored.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="The time of each layer, by the runtime's profiler.")
    ] = False,
    profile: Annotated[
        Path | None, typer.Option(help="With --layers: what trtexec --exportProfile wrote.")
    ] = None,
    history_place: Annotated[
        str, typer.Option("--history", help="Its file, instead of the user's; none: no history.")
    ] = "",
    out: Out = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Measure engines on this machine: FPS, percentiles, parts of a call, memory, ratios."""
    from edgekit import console
    from edgekit.pipeline import benching

    request = benching.BenchRequest(
        engines=tuple(engine), data=data, recipe=recipe, batch=batch, threads=threads,
        profile=profile, target=target, out=out, history=history_place,
        plan=benching.plan_of(
            seconds=seconds, processes=processes or (5 if aa else 3), least_calls=calls,
            rounds=rounds, warmup_seconds=warmup, scenario=scenario,
            samples_per_query=samples_per_query, rate=rate, latency_limit_ms=latency_limit_ms,
        ),
    )  # fmt: skip
    with console.build_progress() as on_event:
        found = benching.bench_verb(request, aa=aa, layers=layers, on_event=on_event)
    console.print_json(found.document) if as_json else console.show_bench(found.document)
    return found.exit_code


@verb
def check(
    engine: Annotated[Path, typer.Argument(help="An engine's folder, as build leaves it.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Say whether an engine fits this machine: 0 it does, 2 build it again, 3 nobody can say."""
    from edgekit import console
    from edgekit.engines.fit import check_engine
    from edgekit.engines.manifest import load_engine

    found = check_engine(load_engine(engine))
    console.print_json(found.to_json()) if as_json else console.show_fit(found)
    return found.exit_code


@verb
def gate(
    evidence: Annotated[
        Path, typer.Argument(help="A target's folder of a build, or its evidence.json.")
    ],
    replay: Annotated[
        bool, typer.Option("--replay", help="As on the day it was decided: no clock, no device.")
    ] = False,
    junit: Junit = None,
    markdown: Markdown = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Decide on stored evidence: 0 pass, 1 fail, 3 inconclusive or not measured, 4 invalid."""
    from edgekit import console
    from edgekit.pipeline import gating
    from edgekit.report.verdicts import write_reports

    ruling = gating.gate_file(evidence, replay=replay)
    console.print_json(ruling.to_json()) if as_json else console.show_ruling(ruling)
    write_reports([ruling], junit=junit, markdown=markdown)
    return ruling.exit_code


@verb
def compare(
    old: Annotated[Path, typer.Argument(help="Measurements, as bench -o and build leave them.")],
    new: Annotated[Path, typer.Argument(help="The same of another time or release.")],
    noise_floor: Annotated[
        float | None,
        typer.Option(min=0, help="By how much runs of one engine differ; else the stored one."),
    ] = None,
    target: Annotated[
        str, typer.Option("--target", "-t", help="Whose stored noise floor is taken.")
    ] = "",
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Compare stored measurements; refuse what is of another device, mode, batch or quantity."""
    from edgekit import console
    from edgekit.report import comparison

    found = comparison.compare_files(old, new, noise_floor=noise_floor, target=target)
    console.print_json(found.to_json()) if as_json else console.show_comparison(found)
    return found.exit_code


@verb
def history(
    model: Annotated[str, typer.Argument(help="A model's name, its file, or its recipe.")],
    target: Annotated[str, typer.Option("--target", "-t", help="On this target only.")] = "",
    most: Annotated[int, typer.Option("--last", min=1, help="So many measurements.")] = 40,
    accept: Annotated[
        int | None, typer.Option(help="Take the measurement of this number for a baseline.")
    ] = None,
    place: Annotated[str, typer.Option("--history", help="Another file than the user's.")] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A plot, as SVG.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """List and plot what was measured of a model, with its verdicts."""
    from edgekit import console
    from edgekit.report import history as past

    asked = past.HistoryAsked(
        model=model, target=target, place=place, most=most, accept=accept
    )  # fmt: skip
    told = past.look_up(asked)
    if out is not None:
        past.save_chart(told, out)
    console.print_json(told.to_json()) if as_json else console.show_history(told)
    return 0


@verb
def doctor(
    target: Annotated[
        str, typer.Option("--target", "-t", help="Could its engine be built here? (5: it cannot)")
    ] = "",
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Say what this machine has, lacks or has wrong, and the command that mends it."""
    from edgekit import console
    from edgekit import doctor as examination

    found = examination.examine(target)
    console.print_json(found.to_json()) if as_json else console.show_examination(found)
    return found.exit_code


@verb
def table(
    model: Annotated[str, typer.Argument(help="A model, BatchNormalization unfolded.")],
    target: Annotated[str, typer.Option("--target", "-t", help="Where its layers are measured.")],
    precision: Annotated[str, typer.Option(help="fp32 or int8.")] = "fp32",
    batch: Annotated[int, typer.Option(help="The size of the first axis.")] = 1,
    threads: Annotated[int, typer.Option(help="For a CPU; 0 is every core.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Where measured layers are kept, for other models too.")
    ] = None,
    out: Out = None,
    weights: Weights = "",
    shapes: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Measure every layer of a model at several widths: what a budget by latency goes by."""
    from edgekit import console
    from edgekit.pipeline import table as tables

    origin = _origin(model, shapes, trust_pickle=trust_pickle, weights=weights)
    request = tables.TableRequest(
        origin=origin, target=target, precision=tables.precision_named(precision), batch=batch,
        threads=threads, cache=cache, out=out,
    )  # fmt: skip
    with console.build_progress() as on_event:
        report = tables.make_table(request, on_event=on_event)
    if as_json:
        console.print_json(report.document)
    else:
        console.show_document(report.summary())
    return report.exit_code


@verb
def sensitivity(
    model: Annotated[str, typer.Argument(help="A model, BatchNormalization unfolded.")],
    data: Annotated[
        str, typer.Option("--data", help="Samples; labels are needed by a metric only.")
    ],
    recipe: Annotated[Path | None, typer.Option(help="Its preprocessing is used.")] = None,
    criterion: Annotated[str, typer.Option(help="Which units go first.")] = "l2",
    samples: Annotated[int, typer.Option(min=2, help="At most so many are run.")] = 256,
    metric: Annotated[
        str, typer.Option(help="Measure it too: top1, or your package.module:function.")
    ] = "",
    cache: Annotated[Path | None, typer.Option(help="Where results are kept.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A plot, as SVG.")] = None,
    weights: Weights = "",
    plan: ModulePlan = "",
    shapes: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Show what each channel group is worth: the damage where it alone loses 25, 50, 75%."""
    from edgekit import console
    from edgekit.pipeline import sensitivity as measuring
    from edgekit.report.sensitivity import save_chart

    origin = _origin(model, shapes, trust_pickle=trust_pickle, weights=weights, plan=plan)
    options = measuring.SensitivityOptions(criterion=criterion, samples=samples)
    request = measuring.SensitivityRequest(
        origin=origin, data=data, recipe=recipe, metric=metric, cache=cache, options=options
    )
    with console.build_progress() as on_event:
        found = measuring.sensitivity_of(request, on_event=on_event)
    if out is not None:
        save_chart(found, origin.name, out)
    console.print_json(found.to_json()) if as_json else console.show_sensitivity(found)
    return 0


def main() -> None:
    """The entry point of the `edgekit` command."""
    app()


if __name__ == "__main__":
    main()
