"""A target that is this machine: candidates beside the original, measured, chosen, gated."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from edgekit.bench import statistics
from edgekit.bench.attended import Site
from edgekit.bench.measurement import (
    age_s,
    continued,
    load_measurements,
    same_conditions,
    save_measurements,
)
from edgekit.bench.runner import measure
from edgekit.bench.workload import Arm, Plan, lasting_conditions
from edgekit.engines.base import Engine
from edgekit.engines.manifest import load_engine
from edgekit.models.cost import Cost, total_cost
from edgekit.pipeline import steps
from edgekit.pipeline.blaming import stages_of
from edgekit.pipeline.cache import Cache, Step, key_of
from edgekit.pipeline.candidates import (
    Candidate,
    Chain,
    Project,
    int8_share_of,
    report_of,
    samples_of,
)
from edgekit.pipeline.chosen import MOST_RUNS, Grounds, judge, undecided
from edgekit.pipeline.past import Past, past_of
from edgekit.pipeline.publish import limits_of, publish, result_of
from edgekit.pipeline.result import Facts, StepEvent, TargetResult
from edgekit.pipeline.workshop import Workshop
from edgekit.recipe import Recipe
from edgekit.targets import Precision, ResolvedTarget, Target
from edgekit.values import Figure, Measurement, Unknown
from edgekit.verify import VerifyReport

ENGINE_FOLDER, MEASUREMENT_FILE = "engine", "measurement.json"

_BENCH_SAMPLES = 64
_REGRESSION_PROCESSES = 5


def finish_here(  # noqa: PLR0913, PLR0917
    workshop: Workshop, project: Project, chain: Chain, resolved: ResolvedTarget,
    candidates: Sequence[Candidate], baseline: Step, rebench: bool,
) -> TargetResult | None:  # fmt: skip
    """Measures the candidates beside the original, takes the fastest that is good enough."""
    target, cache = resolved.target, project.cache
    if workshop.listing:
        workshop.note("bench", target.name, cached=False, seconds=0.0, said="")
        return None
    engines = {"original": load_engine(cache.entry(baseline))}
    engines |= {c.precision: load_engine(cache.entry(c.engine)) for c in candidates}
    reports = {c.precision: report_of(cache, c.verified) for c in candidates}
    past = past_of(chain.recipe, target.name)
    rival = past.rival(engines)
    if rival is not None and rival.engine is not None:
        engines[rival.arm] = rival.engine
    bench = _Bench(workshop, project, chain.recipe, target, engines, past)
    past.check(chain.recipe.gate.limits(), bench.conditions)
    reused = bench.reuse() if not rebench else False
    if not reused:
        bench.measure()
    shares = {c.precision: int8_share_of(cache, chain, c.precision) for c in candidates}
    grounds = Grounds(
        recipe=chain.recipe, candidates=candidates, reports=reports, shares=shares,
        engines=engines, past=past, rival=rival,
    )  # fmt: skip
    judged = judge(grounds, bench.measured)
    while undecided(judged) and bench.runs < MOST_RUNS:
        bench.measure()
        judged = judge(grounds, bench.measured)
    past.judge(bench.measured, judged.chosen.precision, judged.decision)
    by_arm = {m.arm: m for m in bench.measured}
    original_costs, costs = total_cost(project.model), total_cost(chain.compressed.load())
    before = _measured_facts(
        "original", by_arm["original"], reports[candidates[0].precision].before, original_costs,
        project.original.path.stat().st_size,
    )  # fmt: skip
    arms = {
        c.precision: _measured_facts(
            c.precision, by_arm[c.precision], reports[c.precision].after, costs,
            engines[c.precision].file_bytes,
        )
        for c in candidates
    }  # fmt: skip
    chosen, decision, age = judged.chosen, judged.decision, judged.age_s
    notes = [resolved.note, judged.why, *_emulation_notes(cache, candidates, reports)]
    notes += [f"measured {'earlier, ' if reused else ''}{_ago(age)}"]
    notes += _doubts(bench.measured)
    result = result_of(
        project, target, decision, notes, precision=chosen.precision, before=before,
        after=arms[chosen.precision], arms=(before, *arms.values()), measured_age_s=age,
        blame={c.precision: stages_of(cache, c.blame) for c in candidates},
    )  # fmt: skip
    contents = {
        ENGINE_FOLDER: cache.entry(chosen.engine),
        steps.MODEL_FILE: chosen.source.path,
        MEASUREMENT_FILE: bench.path,
    }
    taken_at = by_arm["original"].taken_at
    limits = limits_of(chain.recipe, chosen.precision)
    return publish(project, chain, result, contents, judged.evidence, limits, taken_at)


class _Bench:
    """The measurement of all engines side by side: an earlier one that still stands, or new runs.

    One stands for the same engines under the same conditions until it is older than `max_age`.
    """

    def __init__(
        self, workshop: Workshop, project: Project, recipe: Recipe, target: Target,
        engines: Mapping[str, Engine], past: Past,
    ) -> None:  # fmt: skip
        self._past, self._engines = past, engines
        self.measured: tuple[Measurement, ...] = ()
        self.runs = 0
        self._workshop, self._target, self._options = workshop, target.name, recipe.bench
        self._site = Site(target=target)
        inputs = samples_of(project.evaluation, _BENCH_SAMPLES)
        self._arms = [
            Arm(
                name=name, engine=engine, inputs=inputs, batch=recipe.bench.batch,
                threads=recipe.engine.threads,
            )
            for name, engine in engines.items()
        ]  # fmt: skip
        options = recipe.bench
        # What a process was dealt (memory, caches) lasts as long as it does: a comparison as close
        # as a regression's needs several, each with turns of its own.
        usual = 1 if recipe.gate.max_regression is None else _REGRESSION_PROCESSES
        self._plan = Plan(
            seconds=options.seconds, rounds=options.rounds, warmup_seconds=options.warmup_seconds,
            processes=min(options.processes or usual, options.rounds),
        )  # fmt: skip
        key = key_of(
            "measurement",
            engines={name: engine.sha256 for name, engine in engines.items()},
            plan=[str(self._plan), options.batch],
            data=project.evaluation.digest,
            conditions=target.conditions.model_dump(mode="json"),
        )
        self.path = project.cache.folder / "measurements" / f"{key}.json"

    @property
    def conditions(self) -> Mapping[str, str]:
        """What holds for every arm before anything is measured."""
        return lasting_conditions(self._arms[0], self._arms, self._plan)

    def reuse(self) -> bool:
        """Takes the stored measurement if it still stands, and says how old it is."""
        if not self.path.is_file():
            return False
        stored = load_measurements(self.path)
        ages = [age_s(m, time.time()) for m in stored]
        same = len(stored) == len(self._arms) and all(
            same_conditions(m.conditions, lasting_conditions(arm, self._arms, self._plan))
            for m, arm in zip(stored, self._arms, strict=True)
        )
        if not same or not all(0 <= age <= self._options.max_age for age in ages):
            return False
        if any(m.broken or m.unchecked for m in stored):
            return False  # whoever has mended that wants to see it
        self.measured, self.runs = stored, MOST_RUNS
        self._past.record(stored, self._engines)
        self._tell("cached", f"taken {_ago(ages[0])}")
        self._workshop.note(
            "bench", self._target, cached=True, seconds=0.0, said=f"taken {_ago(ages[0])}"
        )
        return True

    def measure(self) -> None:
        """One more run; its rounds join those of the runs before."""
        begun = time.monotonic()
        self._tell("started")
        run = measure(
            self._arms, self._plan, on_progress=self._workshop.progress_of("bench", self._target),
            on_stopped=self._keep, site=self._site,
        )  # fmt: skip
        earlier = self.measured
        self.measured = tuple(map(continued, earlier, run)) if earlier else run
        self.runs += 1
        save_measurements(self.measured, self.path)
        self._past.record(self.measured, self._engines)
        said = ", ".join(f"{m.arm} {statistics.fps(m).value:,.0f} FPS" for m in self.measured)
        if self.runs > 1:
            said += f" (run {self.runs}: the gate was undecided)"
        self._tell("done", said)
        self._workshop.note(
            "bench", self._target, cached=False, seconds=time.monotonic() - begun, said=said
        )

    def _keep(self, taken: Sequence[Measurement]) -> None:
        """What was taken of a run that ends early; no verdict rests on it."""
        save_measurements(taken, self.path.with_suffix(".broken-off.json"))

    def _tell(self, state: str, said: str = "") -> None:
        self._workshop.on_event(
            StepEvent(step="bench", target=self._target, state=state, said=said)
        )


def _doubts(measured: Sequence[Measurement]) -> list[str]:
    """What each arm doubts, and once what all of them do: that is of the machine."""
    shared = [doubt for doubt in measured[0].doubts if all(doubt in m.doubts for m in measured)]
    own = [f"{m.arm}: {doubt}" for m in measured for doubt in m.doubts if doubt not in shared]
    return [*own, *shared]


def _measured_facts(
    what: str, measurement: Measurement, metric: float, costs: Cost, file_bytes: int
) -> Facts:
    return Facts(
        what=what,
        metric=metric,
        macs=costs.macs,
        parameters=costs.parameters,
        file_bytes=file_bytes,
        fps=statistics.fps(measurement).value,
        p50_ms=1e3 * statistics.percentile(measurement.samples, 50),
        p99_ms=1e3 * statistics.percentile(measurement.samples, 99),
        memory_bytes=measurement.figures.get("peak_memory_bytes", Unknown("not measured")),
        memory_is="process peak",
    )


def _emulation_notes(
    cache: Cache, candidates: Sequence[Candidate], reports: Mapping[Precision, VerifyReport]
) -> list[str]:
    """INT8's quality through the kernels beside the quantization's own."""
    notes = []
    for candidate in candidates:
        if candidate.emulated is None:
            continue
        own, through = report_of(cache, candidate.emulated), reports[candidate.precision]
        notes.append(
            f"int8: SQNR {_decibels(own.sqnr_db)} emulated, {_decibels(through.sqnr_db)} through "
            f"the kernels; agreement with the original {_share(own.agreement)} and "
            f"{_share(through.agreement)}"
        )
    return notes


def _decibels(value: Figure) -> str:
    return value.reason if isinstance(value, Unknown) else f"{value:.1f} dB"


def _share(value: Figure) -> str:
    return value.reason if isinstance(value, Unknown) else f"{100 * value:.2f}%"


def _ago(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 3600 else f"{seconds / 3600:.1f} h ago"
