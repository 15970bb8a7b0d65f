"""How load arrives: MLPerf's four scenarios, as far as one session that answers in turn has them.

    single_stream  one query of one batch, the next when it is answered: latency
    multi_stream   one query of N samples, the next when all of it is answered: its latency
    offline        everything is there at once: batches back to back, nothing between them left out
    server         queries arrive at random (Poisson) at a rate: latency from arrival to answer

Source: MLPerf Inference rules, "Scenarios"; LoadGen's `test_settings.h`. The queue of the server is
ours: one engine that answers in the order of arrival. Nothing here is an MLPerf result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from edgekit.errors import InputError

Name: TypeAlias = Literal["single_stream", "multi_stream", "offline", "server"]
NAMES: tuple[Name, ...] = get_args(Name)

QUANTITIES: dict[Name, str] = {
    "single_stream": "latency",
    "multi_stream": "query_latency",
    "offline": "offline_interval",
    "server": "server_latency",
}
"""What a sample of each is, in seconds: a call, a query, from answer to answer, arrival to answer.

FPS from the first three are samples a second: back to back, with staging and fetching. Of the
server there is no such thing: its rate is what it was asked for.
"""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`samples_per_query` is multi_stream's; the others are server's.

    `rate` is queries a second, `latency_limit_s` what 99% of them may take; `seed` draws the
    arrivals.
    """

    name: Name = "single_stream"
    samples_per_query: int = 0
    rate: float = 0.0
    latency_limit_s: float = 0.0
    seed: int = 0

    @property
    def quantity(self) -> str:
        """What one sample of it is."""
        return QUANTITIES[self.name]

    @property
    def conditions(self) -> dict[str, str]:
        """What makes two measurements different ones."""
        found = {"multi_stream": {"samples_per_query": str(self.samples_per_query)},
                 "server": {"rate": f"{self.rate:g} a second"}}  # fmt: skip
        return found.get(self.name, {})


SINGLE_STREAM = Scenario()


def scenario_named(
    name: str, *, samples_per_query: int = 0, rate: float = 0.0, latency_limit_ms: float = 0.0
) -> Scenario:
    """The scenario that options describe. Raises InputError for what makes no sense together."""
    plain = name.replace("-", "_")
    if plain not in NAMES:
        raise InputError("there is no such scenario", got=name, wanted=", ".join(NAMES))
    if (plain == "multi_stream") != bool(samples_per_query):
        raise InputError(
            "a query of several samples is what multi_stream asks", where="--samples-per-query",
            got=f"{samples_per_query} in {plain}", hint="--scenario multi_stream "
            "--samples-per-query 8",
        )  # fmt: skip
    is_server = plain == "server"
    if is_server != (rate > 0) or (latency_limit_ms > 0 and not is_server):
        raise InputError(
            "a rate and a limit are what a server has", where="--rate",
            got=f"a rate of {rate:g} in {plain}",
            hint="--scenario server --rate 100 --latency-limit-ms 20",
        )  # fmt: skip
    return Scenario(
        name=plain,
        samples_per_query=samples_per_query, rate=rate, latency_limit_s=latency_limit_ms / 1e3,
    )  # fmt: skip
