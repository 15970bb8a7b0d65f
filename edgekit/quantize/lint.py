"""What a runtime would refuse, or could not fuse, in anyone's model with Q/DQ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from edgekit.models.model import Model
from edgekit.quantize.dialects import Dialect
from edgekit.quantize.linting import layers, pairs
from edgekit.quantize.linting.facts import QDQ, Facts, Reader, Rule, Severity, reader_of
from edgekit.targets import Target

__all__ = ["QDQ", "RULES", "Finding", "Reader", "Severity", "lint"]

RULES: tuple[Rule, ...] = (*pairs.RULES, *layers.RULES)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule that one node breaks: how grave it is, whose rule, what is wrong, what mends it.

    An error is refused or gives wrong numbers; a warning costs time or accuracy; a note may.
    """

    node: str
    rule: str
    severity: Severity
    source: str
    said: str
    fix: str

    def __str__(self) -> str:
        return f'"{self.node}": {self.said}'

    def to_json(self) -> dict[str, str]:
        """JSON-ready."""
        return asdict(self)


def lint(model: Model, wanted: Dialect | Target | Reader) -> tuple[Finding, ...]:
    """Every rule that the graph breaks for the runtime of a dialect or target, in graph order.

    What concerns the whole graph comes first, under the model's name.
    """
    facts = Facts(model=model, reader=reader_of(wanted))
    rules = [rule for rule in RULES if facts.reader.runtime in rule.runtimes]
    found = list(_whole_graph(facts))
    for node in model.graph:
        for rule in rules:
            if rule in pairs.RULES and not pairs.applies(node):
                continue
            found += [_finding(node.name or node.op_type, rule, s) for s in rule.check(node, facts)]
    return tuple(found)


def _finding(node: str, rule: Rule, said: str) -> Finding:
    return Finding(
        node=node, rule=rule.name, severity=rule.severity, source=rule.source, said=said,
        fix=rule.fix,
    )  # fmt: skip


def _whole_graph(facts: Facts) -> Iterator[Finding]:
    model, reader = facts.model, facts.reader
    low, high = reader.opsets
    if not low <= model.opset <= high:
        yield Finding(
            node=model.name, rule="opset", severity="error",
            source=f"{reader.name}'s table of operators",
            said=f"it has opset {model.opset}; {reader.name} reads {low} to {high}",
            fix="Convert it: edgekit.models.opset raises and lowers.",
        )  # fmt: skip
    has_pairs = any(pairs.applies(node) for node in model.graph)
    is_single = any(value.dtype == 1 for value in model.graph.inputs) and not any(
        node.op_type == "Cast" for node in model.graph
    )
    if reader.half_precision and has_pairs and is_single:
        yield Finding(
            node=model.name, rule="single-precision", severity="note",
            source="TensorRT 11: networks are strongly typed",
            said="what is not quantized is float32, and runs in float32",
            fix="Convert the rest of the graph to float16.",
        )  # fmt: skip
