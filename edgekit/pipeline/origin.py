"""Where a model comes from: a file of any kind that is known, or a factory and its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import files
from edgekit.compress.channels.plan import load_plan
from edgekit.data.functions import function_digest, load_function, user_code
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.model import Model, save
from edgekit.models.source import load, reopen
from edgekit.pipeline.cache import Step, key_of, read_json, versions, write_json
from edgekit.values import Preprocessing

if TYPE_CHECKING:
    from edgekit.models import torch_source

TORCH_SUFFIXES = (".pt", ".pth", ".pt2", ".ckpt")
_MODEL_FILE, _REPORT_FILE = "model.onnx", "report.json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A model as a user names it.

    `place` is a file, or `package.module:function` or `file.py:function`, a function without
    arguments that returns a `torch.nn.Module`. `weights` (`.safetensors` or a state dict) goes
    with the latter, and so does `plan`, a `plan.json` by which the module is cut before it is
    filled. `inputs` has a shape for each input, where the place does not tell. Relative paths are
    relative to `folder`.
    """

    place: str
    folder: Path = Path()
    weights: str = ""
    plan: str = ""
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    trust_pickle: bool = False

    @property
    def is_factory(self) -> bool:
        """Whether it names a function and not a file."""
        head, _, name = self.place.rpartition(":")
        return bool(head) and name.isidentifier() and not self.path.exists()

    @property
    def is_exported(self) -> bool:
        """Whether torch makes the graph; else it is read as it is."""
        return self.is_factory or self.path.suffix in TORCH_SUFFIXES

    @property
    def path(self) -> Path:
        """The place as a file."""
        return self.folder / self.place

    @property
    def name(self) -> str:
        """What to call the model if nobody says: the file's stem, the factory's name."""
        return self.place.rpartition(":")[2] if self.is_factory else self.path.stem


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A Model, and what a user should hear of how it was made.

    `path` is its file. `difference` is the largest absolute one between the source's outputs and
    the graph's; None where the source is a graph itself.
    """

    model: Model
    path: Path
    difference: float | None = None
    notes: tuple[str, ...] = ()


def open_origin(
    origin: Origin, *, name: str = "", preprocessing: Preprocessing | None = None
) -> Opened:
    """The Model, as it is in its file, from wherever it comes. Nothing is written.

    Raises InputError for everything that is wrong with it, MissingPackageError without torch where
    torch is needed.
    """
    if origin.is_exported:
        return _with(_exported(origin, name or origin.name), preprocessing)
    _refuse_more(origin)
    model = load(origin.path, name=name or origin.name, preprocessing=preprocessing)
    return Opened(model=model, path=origin.path)


def parse_inputs(given: Sequence[str], where: str = "--input") -> dict[str, tuple[int, ...]]:
    """Shapes by input of texts like `images=1,3,224,224`. Raises InputError for anything else."""
    found: dict[str, tuple[int, ...]] = {}
    for text in given:
        name, _, sizes = text.rpartition("=")
        listed = [size.strip() for size in sizes.replace("x", ",").split(",")]
        if not name or not all(size.isdecimal() and int(size) > 0 for size in listed):
            raise InputError(
                "this is no input and its shape", where=where, got=text,
                wanted="images=1,3,224,224",
            )  # fmt: skip
        if name in found:
            raise InputError(f'the input "{name}" is given two shapes', where=where)
        found[name] = tuple(map(int, listed))
    return found


def export_step(origin: Origin) -> Step:
    """The step that keeps the ONNX file of what torch exports."""
    return Step(name="export", key=_key(origin), make=lambda folder, _: _keep(origin, folder))


def open_exported(folder: Path, *, name: str, preprocessing: Preprocessing | None = None) -> Opened:
    """The Model that an export step left."""
    report: Mapping[str, Any] = read_json(folder / _REPORT_FILE)
    path = folder / _MODEL_FILE
    opened = Opened(
        model=reopen(path, name=name), path=path,
        difference=report["difference"], notes=tuple(report["notes"]),
    )  # fmt: skip
    return _with(opened, preprocessing)


def describe_export(folder: Path) -> str:
    """What an export step says of itself."""
    report: Mapping[str, Any] = read_json(folder / _REPORT_FILE)
    said = f"largest difference from the source {report['difference']:.1e}"
    return "; ".join([said, *report["notes"]])


def _with(opened: Opened, preprocessing: Preprocessing | None) -> Opened:
    if preprocessing is None:
        return opened
    return replace(opened, model=replace(opened.model, preprocessing=preprocessing))


def _refuse_more(origin: Origin) -> None:
    for given, what in (
        (origin.weights, "weights"), (origin.plan, "widths"), (origin.inputs, "shapes of inputs")
    ):  # fmt: skip
        if given:
            raise InputError(
                f"an .onnx file has its own {what}", where=origin.place,
                hint=f"Leave the {what} out, or name a factory: file.py:function.",
            )  # fmt: skip


def _key(origin: Origin) -> str:
    source = (
        function_digest(origin.place, origin.folder)
        if origin.is_factory
        else _digest(origin.path, "model")
    )
    weights = _digest(origin.folder / origin.weights, "weights") if origin.weights else ""
    plan = _digest(origin.folder / origin.plan, "plan") if origin.plan else ""
    return key_of(
        "export", source=source, weights=weights, plan=plan,
        versions=versions(["torch", "onnxscript"]),
        place=origin.place.rpartition(":")[2] if origin.is_factory else "",
        inputs=[[name, list(shape)] for name, shape in origin.inputs.items()],
    )  # fmt: skip


def _digest(path: Path, what: str) -> str:
    if not path.is_file():
        raise InputError(f"there is no such file of the {what}", where=str(path))
    return files.digest_file(path)


def _keep(origin: Origin, folder: Path) -> None:
    opened = _exported(origin, origin.name)
    save(opened.model, folder / _MODEL_FILE)
    report = {"difference": opened.difference, "notes": list(opened.notes)}
    write_json(folder / _REPORT_FILE, report)


def _exported(origin: Origin, name: str) -> Opened:
    try:
        from edgekit.models import torch_files, torch_source
    except ImportError as error:
        raise MissingPackageError(
            "this kind of model needs torch to be read", where=origin.place,
            got=str(error), wanted="torch and onnxscript",
            hint="pip install 'edgekit[compress]', or export it to .onnx where it was trained.",
        ) from error  # fmt: skip
    notes: tuple[str, ...] = ()
    if origin.is_factory:
        factory = load_function(origin.place, origin.folder)
        with user_code("the factory failed", origin.place):
            module = factory()
        if not hasattr(module, "state_dict"):
            raise InputError(
                "the factory did not return a module", where=origin.place,
                got=type(module).__name__, wanted="a torch.nn.Module",
            )  # fmt: skip
        if origin.plan:
            module = _cut(module, origin)
        if origin.weights:
            notes = torch_files.load_weights(module, origin.folder / origin.weights)
        exported = torch_source.export_module(module, origin.inputs, name=name)
    else:
        exported = _from_file(origin, name)
    said = f"compared with its source: largest difference {exported.difference:.1e}"
    model = replace(exported.model, history=(*exported.model.history, said))
    return Opened(
        model=model, path=origin.path, difference=exported.difference,
        notes=(*notes, *exported.notes),
    )  # fmt: skip


def _cut(module: Any, origin: Origin) -> Any:
    """The module cut by the origin's plan. Raises InputError where its code does not follow."""
    from edgekit.compress.channels.own.check import run_cut
    from edgekit.compress.channels.own.module import cut_module

    cut = cut_module(module, load_plan(origin.folder / origin.plan))
    rng = np.random.default_rng(0)
    run_cut(cut, module, [rng.normal(size=s).astype(np.float32) for s in origin.inputs.values()])
    return cut


def _from_file(origin: Origin, name: str) -> torch_source.Exported:
    from edgekit.models import torch_files, torch_source

    path = origin.path
    kind = torch_files.kind_of(path)
    if kind == "state_dict":
        raise InputError(
            "this file holds weights without the network that they belong to", where=str(path),
            hint=f'Name the function that makes it: --weights {origin.place} file.py:function, in '
            f'a recipe factory = "file.py:function" and weights = "{origin.place}".',
        )  # fmt: skip
    for given, what in ((origin.weights, "weights go"), (origin.plan, "a plan goes")):
        if given:
            raise InputError(
                f"{what} with a factory", where=str(path), got=given,
                wanted="file.py:function instead of a file",
            )  # fmt: skip
    if kind == "pt2":
        return torch_source.export_pt2(path, name=name)
    if kind == "torchscript":
        return torch_source.export_torchscript(path, origin.inputs, name=name)
    module = torch_files.load_pickle(path, trusted=origin.trust_pickle)
    return torch_source.export_module(module, origin.inputs, name=name)
