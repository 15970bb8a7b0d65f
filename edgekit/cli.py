"""The command line: parse, call one function, render, exit. No logic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from edgekit.errors import EdgekitError

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
Shapes = Annotated[
    list[str] | None,
    typer.Option("--input", help="An input's shape where the model does not tell: x=1,3,224,224."),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Open pickled modules: that runs code in them.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.")]


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
    target: Targets = None,
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
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Take a recipe's model the whole way, for one target or several."""
    from edgekit import console
    from edgekit.pipeline import build as pipeline

    request = pipeline.BuildRequest(
        recipe=recipe, targets=tuple(target or ()), out=out, rebench=rebench, strict=strict,
        trust_pickle=trust_pickle,
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
    return result.exit_code


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
    shapes: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Write a first recipe from what a model shows of itself."""
    from edgekit import console
    from edgekit.pipeline import alone
    from edgekit.pipeline.draft import Wishes
    from edgekit.pipeline.origin import Origin, parse_inputs

    origin = Origin(
        place=model, weights=weights, inputs=parse_inputs(shapes or ()), trust_pickle=trust_pickle
    )
    wishes = Wishes(calibration=calibration, evaluation=evaluation, targets=tuple(target or ()))
    report = alone.draft_file(origin, wishes, out=out, force=force)
    console.print_json(report) if as_json else console.show_document(report)
    return 0


@verb
def targets(
    name: Annotated[str | None, typer.Argument(help="One profile, in full.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """List the device profiles, and the one that this machine is."""
    from edgekit import console
    from edgekit.report import profiles

    if name is None:
        listing = profiles.listing()
        console.print_json(listing.to_json()) if as_json else console.show_targets(listing)
    else:
        profile = profiles.profile(name)
        console.print_json(profile) if as_json else console.show_document(profile)
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
    inputs: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Show what a model is: inputs, operators, costs, memory, what cannot be cut or trained."""
    from edgekit import console
    from edgekit.pipeline.origin import Origin, parse_inputs
    from edgekit.report import inspection

    origin = Origin(
        place=model, weights=weights, inputs=parse_inputs(inputs or ()), trust_pickle=trust_pickle
    )
    found = inspection.inspect_origin(
        origin, target, batch=batch, shapes=tuple(shapes or ()), top=top
    )
    console.print_json(found.to_json()) if as_json else console.show_inspection(found)
    return 0


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
    from edgekit.pipeline.origin import Origin, parse_inputs

    inputs = parse_inputs(shapes or ())
    first, second = (
        Origin(place=place, inputs=inputs if not place.endswith(".onnx") else {},
               trust_pickle=trust_pickle)
        for place in (reference, candidate)
    )  # fmt: skip
    report = alone.verify_files(first, second, data=data, recipe=recipe, metric=metric)
    console.print_json(report) if as_json else console.show_document(report)
    return 0


@verb
def channels(
    model: Annotated[str, typer.Argument(help="A model, BatchNormalization unfolded.")],
    macs: Annotated[float, typer.Option(help="The share of the MACs to keep, in (0, 1].")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The smaller .onnx file.")],
    target: Targets = None,
    weights: Weights = "",
    shapes: Shapes = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Remove whole channels, one step alone; the plan is written beside the model."""
    from edgekit import console
    from edgekit.pipeline import alone
    from edgekit.pipeline.origin import Origin, parse_inputs

    origin = Origin(
        place=model, weights=weights, inputs=parse_inputs(shapes or ()), trust_pickle=trust_pickle
    )
    report = alone.cut_file(origin, macs=macs, targets=tuple(target or ()), out=out)
    console.print_json(report) if as_json else console.show_document(report)
    return 0


@verb
def bench(
    engine: Annotated[Path, typer.Argument(help="An engine's folder, as build leaves it.")],
    data: Annotated[str | None, typer.Option(help="Real inputs; zeros are never used.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 5.0,
    out: Out = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Measure an engine on this machine: FPS, percentiles, peak memory."""
    from edgekit import console
    from edgekit.pipeline import alone

    found = alone.bench_engine(engine, data=data, seconds=seconds, out=out)
    console.print_json(found) if as_json else console.show_document(found)
    return 0


@verb
def gate(
    evidence: Annotated[
        Path, typer.Argument(help="A target's folder of a build, or its evidence.json.")
    ],
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Decide on stored evidence: 0 pass, 1 fail, 3 inconclusive or not measured, 4 invalid."""
    from edgekit import console
    from edgekit.pipeline import alone

    decided = alone.gate_file(evidence)
    console.print_json(decided.to_json()) if as_json else console.show_decision(decided)
    code: int = decided.verdict.exit_code
    return code


@verb
def doctor(as_json: AsJson = False, debug: Debug = False) -> int:
    """Say what is missing on this machine, and the command that mends it."""
    from edgekit import console
    from edgekit import doctor as examination

    findings = examination.examine()
    if as_json:
        console.print_json({"findings": [vars(finding) for finding in findings]})
    else:
        console.show_findings(findings)
    return 0


def main() -> None:
    """The entry point of the `edgekit` command."""
    app()


if __name__ == "__main__":
    main()
