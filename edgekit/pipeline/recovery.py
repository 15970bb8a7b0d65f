"""Recovery alone, on files that a user names: what the verb `recover` calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgekit import files
from edgekit.compress.recover import recover
from edgekit.data.batches import load_batches
from edgekit.models.model import save
from edgekit.models.simplify import clean
from edgekit.pipeline.origin import Origin, open_origin
from edgekit.pipeline.result import OnEvent, StepEvent
from edgekit.pipeline.steps import recover_options
from edgekit.recipe import load_recipe
from edgekit.recipe_sections import RecoverSection, read_section
from edgekit.train.launch import launched

_BATCH = 100
_STEP = "recover"


@dataclass(frozen=True, kw_only=True)
class RecoveryRequest:
    """Who learns from whom, on what, and how.

    `settings` are keys of `[compress.recover]`; they go before those of the recipe, whose
    preprocessing is used too. Without a `checkpoint` the state lies beside `out` until that is
    there.
    """

    student: Origin
    teacher: Origin
    data: str
    out: Path
    recipe: Path | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    checkpoint: Path | None = None


def recover_file(
    request: RecoveryRequest, *, on_event: OnEvent = lambda event: None
) -> dict[str, Any]:
    """Writes the student, taught by the teacher; says what came of it.

    Of several processes that were launched together, the first one writes and says; the others
    give an empty document. Raises InputError for everything that does not fit, as `recover` does.
    """
    recipe = load_recipe(request.recipe) if request.recipe is not None else None
    given = recipe.compress.recover if recipe is not None else None
    keys = {**(given.model_dump(exclude_unset=True) if given else {}), **request.settings}
    # A function that the recipe names is beside the recipe, one of the command line is from here.
    folder = recipe.folder if recipe is not None and "augment" not in request.settings else Path()
    options = recover_options(read_section(RecoverSection, keys, "the settings of recover"), folder)
    preprocessing = recipe.preprocessing if recipe is not None else None
    student, teacher = (
        clean(open_origin(origin, preprocessing=preprocessing).model)
        for origin in (request.student, request.teacher)
    )
    batches = load_batches(
        request.data, folder=Path(), inputs=student.inputs, preprocessing=teacher.preprocessing,
        batch_size=_BATCH, role="training",
    )  # fmt: skip
    checkpoint = request.checkpoint or request.out.with_suffix(".checkpoint.pt")
    is_first = launched()[0] == 0

    def tell(done: int, total: int, said: str) -> None:
        if is_first:
            on_event(
                StepEvent(step=_STEP, target="", state="progress", fraction=done / total, said=said)
            )

    if is_first:
        files.remove_partials(checkpoint)  # of a run that was killed just there
        on_event(StepEvent(step=_STEP, target="", state="started"))
    model, report = recover(
        student, teacher, batches, options, checkpoint=checkpoint, on_progress=tell
    )
    if not is_first:
        return {}
    save(model, request.out)
    on_event(StepEvent(step=_STEP, target="", state="done", said=str(report)))
    if request.checkpoint is None:
        checkpoint.unlink(missing_ok=True)
    return {**asdict(report), "model": str(request.out)}
