"""Control flow: a graph within the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgekit.models.operators import Builder, Function, Op


def if_(op: Op) -> Function:
    """ONNX If: one branch or the other; the branches read values of the graph around them."""
    if op.subgraph is None:
        raise op.refuse("it stands where no graph can be run")
    branches = op.subgraph(op.get("else_branch")), op.subgraph(op.get("then_branch"))

    def function(condition: Any, *captured: Tensor) -> tuple[Tensor, ...]:
        flag = condition[0] if isinstance(condition, list) else condition
        found: tuple[Tensor, ...] = branches[bool(flag)](*captured)
        return found

    return function


def loop(op: Op) -> Function:
    """ONNX Loop: a body that is run until its count or its condition ends it."""
    if op.subgraph is None:
        raise op.refuse("it stands where no graph can be run")
    body = op.subgraph(op.get("body"))
    carried_count = len(op.node.inputs) - 2

    def function(most: Tensor | None, condition: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        carried, captured = list(rest[:carried_count]), rest[carried_count:]
        limit = None if most is None else int(most)
        going = condition is None or bool(condition)
        scanned: list[list[Tensor]] = [[] for _ in range(len(op.node.outputs) - carried_count)]
        step = 0
        while going and (limit is None or step < limit):
            count = torch.tensor(step, dtype=torch.int64)
            found = body(count, torch.tensor(going), *carried, *captured)
            going, carried = bool(found[0]), list(found[1 : 1 + carried_count])
            for kept, value in zip(scanned, found[1 + carried_count :], strict=True):
                kept.append(value)
            step += 1
        if step == 0 and scanned:
            raise op.refuse("it did not run once, and its outputs have no shape then")
        return (*carried, *(torch.stack(kept) for kept in scanned))

    return function


BUILDERS: Mapping[str, Builder] = {"If": if_, "Loop": loop}
