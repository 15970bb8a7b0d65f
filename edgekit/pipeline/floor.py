"""The accuracy that a quantized model must keep, and what INT8 saves for it on the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit import files
from edgekit.data.batches import Batches
from edgekit.data.metrics import Metric
from edgekit.engines import onnxruntime as reference_runtime
from edgekit.engines.device_rates import rates_of
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.pipeline.quantization import Floor
from edgekit.pipeline.table import load_table
from edgekit.quantize.dialects import Dialect
from edgekit.quantize.precision.saved import SavedTime, saved_by_roofline, saved_by_tables
from edgekit.targets import Precision, Target
from edgekit.values import Array
from edgekit.verify import outputs_of


@dataclass(frozen=True, kw_only=True)
class FloorAsked:
    """How much of the metric INT8 may lose on the evaluation samples, and on which target.

    Under `max_ms`, a limit on the expected latency, the least loss is looked for.
    The loss is against the very model that is quantized, through ONNX Runtime's kernels where they
    are the target's, else by emulation. `tables` are two files of `edgekit table`, of this model in
    floating point and in INT8; without them the roofline says what INT8 saves.
    """

    max_drop: float | None
    max_ms: float | None
    batches: Batches
    metric: Metric
    dialect: Dialect
    target: Target
    tables: tuple[Path, ...] = ()

    @property
    def digest(self) -> str:
        """Changes with the limit, the samples, the metric and the way to run."""
        parts = [
            self.max_drop,
            self.max_ms,
            self.batches.digest,
            self.metric.digest,
            self.dialect.name,
            *map(files.digest_file, self.tables),
        ]
        return files.digest_bytes(repr([*parts, self.target.name]).encode())

    def of(self, model: Model, state: Path) -> Floor:
        """The Floor for a floating Model, whose own metric is taken now."""
        saved = saved_time(model, self.target, self.tables)
        reference = self._outputs(model, kernels=True)
        labels = self.batches.labels
        before = self.metric(reference, labels, reference)

        def drop_of(quantized: Model) -> float:
            found = self._outputs(quantized, kernels=self.dialect.runtime == "onnxruntime")
            return before - self.metric(found, labels, reference)

        return Floor(
            drop_of=drop_of, max_drop=self.max_drop, max_ms=self.max_ms,
            evaluation=self.digest, state=state, saved=saved,
        )  # fmt: skip

    def _outputs(self, model: Model, *, kernels: bool) -> dict[str, Array]:
        with reference_runtime.open_model(model, optimise=kernels) as session:
            return outputs_of(session, self.batches)[0]


def saved_time(model: Model, target: Target, tables: tuple[Path, ...] = ()) -> SavedTime | None:
    """What each node saves in INT8 on the target: by two measured tables, else by its roofline.

    None where neither is known. Raises InputError for tables that are not of this model, one in
    floating point and one in INT8.
    """
    if tables:
        return _by_tables(model, tables)
    beside: Precision = "fp16" if "fp16" in target.precisions else "fp32"
    try:
        return saved_by_roofline(model, rates_of(target), precision=beside)
    except InputError:
        return None


def _by_tables(model: Model, tables: tuple[Path, ...]) -> SavedTime:
    read = sorted(map(load_table, tables), key=lambda table: table.precision == "int8")
    kinds = [table.precision for table in read]
    if len(kinds) != 2 or kinds[0] == "int8" or kinds[1] != "int8":
        raise InputError(
            "what INT8 saves is told by two tables", where="quantize.tables",
            got=", ".join(kinds), wanted="one in fp32 or fp16 and one in int8",
            hint="edgekit table MODEL --precision int8 -o FILE makes one.",
        )  # fmt: skip
    return saved_by_tables(model, *read)
