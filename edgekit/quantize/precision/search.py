"""Who stays in floating point, so that the accuracy floor holds and the least time is given up.

Every candidate is written and evaluated; the damage of each node alone and the time that it saves
only say which candidate is next. So the best one that is held always satisfies the floor, whenever
the search ends.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from edgekit import files
from edgekit.errors import InputError
from edgekit.models.model import Model, digest
from edgekit.quantize.place import macs_by_layer
from edgekit.quantize.precision.report import (
    Ended,
    PrecisionOptions,
    PrecisionReport,
    SearchEvent,
    Tried,
    price_of,
)
from edgekit.quantize.precision.saved import SavedTime
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.write import write_qdq
from edgekit.values import Figure, Unknown

MakeScheme = Callable[[Mapping[str, str]], Scheme]
"""The Scheme with these nodes, each with its reason, left in floating point."""

REASON = "in integers it costs too much accuracy"
"""Why a node that the search leaves out is in floating point."""

_SLACK = 1e-9
_TRIFLE = 0.01  # of what a node costs in the mean
_PATIENCE = 8  # so many failures among the neighbours, and the search is done


def search(  # noqa: PLR0913  every option has its reason
    model: Model, scheme_maker: MakeScheme, sensitivities: Mapping[str, float],
    saved: SavedTime | None, evaluate: Callable[[Model], float], options: PrecisionOptions, *,
    state_path: Path | None = None, on_event: Callable[[SearchEvent], None] = lambda event: None,
) -> PrecisionReport:  # fmt: skip
    """The PrecisionReport on who stays in floating point.

    `sensitivities` are the damages of the nodes alone (`precision.sensitivity`), `saved` the time
    that each saves; None where nobody knows it: MACs stand for it then. `evaluate` gives the drop
    of a quantized Model in the metric's unit. KeyboardInterrupt ends the search with what it has; a
    `state_path` holds what was evaluated, and the same call goes on from there to the same end.

    First everything is INT8. Where the floor does not hold, nodes leave in the order of damage for
    each millisecond, then of damage for each MAC, then of damage, as many as the share of MACs
    allows; the shortest such prefix that holds is found by bisection. From it those go back whose
    absence costs the most time, one by one, and pairs are exchanged, as long as time is won.

    Raises InputError where there is no limit, and where an evaluation gives no number.
    """
    if options.max_drop is None and options.most_ms is None:
        raise InputError(
            "a search needs a limit", where="quantize", wanted="max_drop or most_ms",
            hint="Give --max-drop, the loss of the metric that you accept.",
        )  # fmt: skip
    if options.most_ms is not None and saved is None:
        raise InputError(
            "a latency limit needs the time that each node takes", where="quantize",
            hint="Give a measured table, or the target's peak rates and bandwidth.",
        )  # fmt: skip
    whole = scheme_maker({})
    nodes = [node for node in whole.placement.integer if node in sensitivities]
    if saved is not None and (total := sum(saved.ms.get(node, 0.0) for node in nodes)) <= 0:
        return PrecisionReport(
            best=None, met=False, worth_it=False, ended="not worth it", tried=(), options=options,
            precision=saved.precision, source=saved.source, saved_ms=total,
            because=f"INT8 saves {total:.3g} ms of {saved.float_ms:.3g} ms ({saved.source})",
        )  # fmt: skip
    prices = _Prices(model, whole, nodes, saved)
    state = _State(state_path, _key(model, whole, sensitivities, saved, options))

    def write(excluded: Mapping[str, str]) -> Model:
        return write_qdq(model, scheme_maker(excluded))[0]

    run = _Search(prices, options, state, write, evaluate, on_event)
    ended: Ended = "done"
    try:
        _look(run, {node: sensitivities[node] for node in nodes})
    except _StopError as stop:
        ended = stop.ended
    except KeyboardInterrupt:
        ended = "interrupted"
    return run.report(ended)


class _StopError(Exception):
    """The search ends here."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended)
        self.ended: Ended = ended


class _Prices:
    """What a set of nodes in floating point costs: milliseconds, and its share of the MACs."""

    def __init__(
        self, model: Model, whole: Scheme, nodes: Sequence[str], saved: SavedTime | None
    ) -> None:
        self.saved = saved
        macs = macs_by_layer(model)
        total = sum(macs.values()) or 1
        placed = {node: macs.get(node, 0) / total for node in whole.placement.integer}
        self.share = {node: placed[node] for node in nodes}
        self.most_share = sum(placed.values())
        self.nodes = list(nodes)
        self.placed = set(whole.placement.integer)

        costs = [max(self._cost(node), 0.0) for node in nodes]
        self.least = max(_TRIFLE * sum(costs) / max(len(costs), 1), 1e-12)

    def price(self, node: str) -> float:
        """What a node costs in floating point, in milliseconds, or its share of MACs.

        A trifle where it is said to cost nothing: each Q/DQ pair less breaks what was fused.
        """
        return max(self._cost(node), self.least)

    def _cost(self, node: str) -> float:
        return self.share[node] if self.saved is None else self.saved.ms.get(node, 0.0)

    def ms(self, excluded: Sequence[str]) -> Figure:
        """The expected milliseconds of the whole network."""
        if self.saved is None:
            return Unknown("nobody knows the time of a node on this target")
        won = sum(self.saved.ms.get(node, 0.0) for node in self.placed)
        return self.saved.float_ms - won + sum(self.saved.ms.get(node, 0.0) for node in excluded)

    def int8_share(self, excluded: Sequence[str]) -> float:
        """The share of the MACs of weighted operators in INT8."""
        return self.most_share - sum(self.share[node] for node in excluded)


class _Search:
    """Candidates, evaluated once each; the best so far."""

    def __init__(
        self, prices: _Prices, options: PrecisionOptions, state: _State,
        write: Callable[[Mapping[str, str]], Model], evaluate: Callable[[Model], float],
        on_event: Callable[[SearchEvent], None],
    ) -> None:  # fmt: skip
        self.prices = prices
        self.options = options
        self.state = state
        self.write = write
        self.evaluate = evaluate
        self.on_event = on_event
        self.tried: dict[frozenset[str], Tried] = {}
        self.best: Tried | None = None
        self.end = None if options.deadline_s is None else time.monotonic() + options.deadline_s

    def allowed(self, excluded: Sequence[str]) -> bool:
        """Whether these nodes may leave: the share of MACs, and the limit on time."""
        prices, options = self.prices, self.options
        if prices.int8_share(excluded) < options.min_int8_share - _SLACK:
            return False
        ms = prices.ms(excluded)
        return options.most_ms is None or isinstance(ms, Unknown) or ms <= options.most_ms + _SLACK

    def attempt(self, excluded: Sequence[str]) -> Tried:
        """The candidate, evaluated unless it was. Raises _StopError at a limit of the search."""
        key = frozenset(excluded)
        if key in self.tried:
            return self.tried[key]
        names = tuple(node for node in self.prices.nodes if node in key)
        model = None
        drop = self.state.found.get(names)
        resumed = drop is not None
        if drop is None:
            if len(self.tried) >= self.options.most_tries:
                raise _StopError("tries")
            if self.end is not None and time.monotonic() >= self.end:
                raise _StopError("deadline")
            model = self.write(dict.fromkeys(names, REASON))
            drop = float(self.evaluate(model))
            if not math.isfinite(drop):
                raise InputError(
                    "the evaluation of a quantized model gave no number", where="quantize",
                    got=str(drop), hint="Look at the evaluation data and its metric.",
                )  # fmt: skip
            self.state.add(names, drop)
        one = Tried(
            excluded=names, drop=drop, ms=self.prices.ms(names),
            int8_share=self.prices.int8_share(names),
        )  # fmt: skip
        self.tried[key] = one
        is_best = self.best is None or self._rank(one) < self._rank(self.best)
        if is_best:
            self.best = one
        assert self.best is not None
        self.on_event(
            SearchEvent(
                tried=one, best=self.best, is_best=is_best, met=self.holds(self.best), model=model,
                resumed=resumed,
            )
        )  # fmt: skip
        return one

    def holds(self, one: Tried) -> bool:
        """Whether a candidate satisfies every limit."""
        floor = self.options.max_drop
        return self.allowed(one.excluded) and (floor is None or one.drop <= floor + _SLACK)

    def _rank(self, one: Tried) -> tuple[bool, bool, float, float, float]:
        """What the best has least of."""
        holds, price, left = self.holds(one), price_of(one), float(len(one.excluded))
        if holds and self.options.max_drop is not None:
            return False, False, price, left, one.drop
        return not holds, not self.allowed(one.excluded), one.drop, price, left

    def report(self, ended: Ended) -> PrecisionReport:
        """What was found until now."""
        saved, best = self.prices.saved, self.best
        met = best is not None and self.holds(best)
        return PrecisionReport(
            best=best, met=met, worth_it=True, ended=ended, tried=tuple(self.tried.values()),
            options=self.options, precision="fp32" if saved is None else saved.precision,
            source="share of MACs" if saved is None else saved.source,
            saved_ms=Unknown("nobody knows the time of a node on this target")
            if saved is None
            else sum(saved.ms.get(node, 0.0) for node in self.prices.placed),
            because="" if met else self._shortfall(ended),
        )  # fmt: skip

    def _shortfall(self, ended: Ended) -> str:
        options, best = self.options, self.best
        early = "" if ended == "done" else f"; the search ended early: {ended}"
        if best is None:
            return f"no candidate{early}"
        if best.int8_share < options.min_int8_share - _SLACK:
            return (
                f"{best.int8_share:.1%} of the MACs can be in INT8, "
                f"{options.min_int8_share:.1%} are wanted{early}"
            )
        if not self.allowed(best.excluded):
            return f"{best.ms:.3g} ms are expected, {options.most_ms:.3g} are allowed{early}"
        return (
            f"drop {best.drop:.4g} is the least that was found with at least "
            f"{options.min_int8_share:.1%} of the MACs in INT8, {options.max_drop:.4g} is "
            f"allowed{early}"
        )


def _look(run: _Search, damage: Mapping[str, float]) -> None:
    everything = run.attempt(())
    floor = run.options.max_drop
    if floor is not None and run.holds(everything):
        return
    orders = list(_orders(run.prices, damage))
    fills = list(dict.fromkeys(_fill(run, order) for order in orders))
    fills = [fill for fill in fills if fill]
    if floor is None:
        # A latency limit alone: the least drop among what may leave.
        for fill in fills:
            run.attempt(fill)
        return
    for fill in fills:
        if run.holds(run.attempt(fill)):
            _bisect(run, fill)
    if run.best is not None and run.holds(run.best):
        _improve(run, damage)


def _orders(prices: _Prices, damage: Mapping[str, float]) -> Iterator[list[str]]:
    """Who leaves first: the most damage a millisecond, a MAC, and the most damage."""

    def by(worth: Callable[[str], float]) -> list[str]:
        return sorted(damage, key=lambda node: (-worth(node), node))

    yield by(lambda node: damage[node] / prices.price(node))
    yield by(lambda node: damage[node] / max(prices.share[node], _TRIFLE / len(damage)))
    yield by(lambda node: damage[node])


def _fill(run: _Search, order: Sequence[str]) -> tuple[str, ...]:
    """As many as may leave, in this order; one that is too large is passed over."""
    chosen: list[str] = []
    for node in order:
        if run.allowed([*chosen, node]):
            chosen.append(node)
    return tuple(chosen)


def _bisect(run: _Search, fill: Sequence[str]) -> None:
    """Tries prefixes until the shortest that holds is known, were the drop to fall along them."""
    low, high = 0, len(fill)
    while high - low > 1:
        middle = (low + high) // 2
        if run.holds(run.attempt(fill[:middle])):
            high = middle
        else:
            low = middle


def _improve(run: _Search, damage: Mapping[str, float]) -> None:
    """Puts nodes back and exchanges them, as long as that is cheaper and the floor holds."""
    improved = True
    while improved:
        improved = False
        assert run.best is not None
        best = run.best
        for excluded in _neighbours(run, best, damage):
            if run.holds(run.attempt(excluded)) and run.best is not best:
                improved = True
                break


def _neighbours(
    run: _Search, best: Tried, damage: Mapping[str, float]
) -> Iterator[tuple[str, ...]]:
    """Cheaper sets near the best one that were not tried, the least expected damage first.

    One node goes back, or one or two go back and another one leaves for them.
    """
    inside = best.excluded
    outside = [node for node in damage if node not in best.excluded]
    price = {node: run.prices.price(node) for node in damage}
    ways: list[tuple[float, float, tuple[str, ...], str]] = []
    for gone in (*combinations(inside, 1), *combinations(inside, 2)):
        back, won = sum(damage[n] for n in gone), sum(price[n] for n in gone)
        if len(gone) == 1:
            ways.append((back, -won, gone, ""))
        ways += [
            (back - damage[more], price[more] - won, gone, more)
            for more in outside
            if price[more] < won - _SLACK
        ]
    failed = 0
    for _, _, gone, more in sorted(ways):
        way = [n for n in inside if n not in gone] + ([more] if more else [])
        if frozenset(way) in run.tried or not run.allowed(way):
            continue
        yield tuple(way)
        failed += 1
        if failed >= max(len(inside), _PATIENCE):
            return


class _State:
    """What was evaluated, in a file under what it was evaluated with."""

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self._key = key
        self.found: dict[tuple[str, ...], float] = {}
        if path is None or not path.is_file():
            return
        try:
            stored: Any = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == key:
                rows = [(tuple(map(str, one["excluded"])), one["drop"]) for one in stored["tried"]]
                self.found = {names: float(str(drop)) for names, drop in rows}
        except (OSError, ValueError, KeyError, TypeError):
            return  # a damaged file counts as nothing

    def add(self, names: tuple[str, ...], drop: float) -> None:
        """Notes one more, on the disk too."""
        self.found[names] = drop
        if self._path is not None:
            rows = [{"excluded": list(n), "drop": d} for n, d in self.found.items()]
            files.write_text(self._path, json.dumps({"key": self._key, "tried": rows}))


def _key(
    model: Model, whole: Scheme, sensitivities: Mapping[str, float], saved: SavedTime | None,
    options: PrecisionOptions,
) -> str:  # fmt: skip
    """A digest of all that decides which candidates there are and what they lose."""
    parts = [
        digest(model), digest(write_qdq(model, whole)[0]),
        json.dumps(sorted(sensitivities.items())), options.evaluation,
        "" if saved is None else json.dumps([saved.source, saved.precision, saved.float_ms,
                                             sorted(saved.ms.items())]),
        repr(replace(options, deadline_s=None, most_tries=0)),
    ]  # fmt: skip
    return files.digest_bytes("\n".join(parts).encode())
