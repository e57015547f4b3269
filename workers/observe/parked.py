"""Parked runs, counted: how many, why, and for how long the oldest has stood still."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from opentelemetry import metrics
from temporalio.client import Client
from temporalio.service import RPCError

from perdure.wire.attributes import AGENT_PARKED_AT, AGENT_PARKED_FOR
from perdure.wire.names import WORKFLOWS

from .telemetry import SERVICE

INTERVAL_SECONDS: Final = 60.0
"""Seconds between two looks."""
MAX_RUNS: Final = 5000
"""Runs that are looked at; with more, the count stops there."""
_TYPES: Final = ", ".join(f'"{kind}"' for kind in WORKFLOWS)
_QUERY: Final = (
    f'WorkflowType IN ({_TYPES}) AND ExecutionStatus = "Running" AND {AGENT_PARKED_FOR.name} IS NOT NULL'
)
_log = logging.getLogger("perdure.parked")


@dataclass
class ParkedRuns:
    """The runs parked for one kind of error."""

    runs: int = 0
    since: datetime | None = None
    """Since when the oldest is."""

    def age(self, now: datetime) -> float:
        """Seconds."""
        return 0.0 if self.since is None else max((now - self.since).total_seconds(), 0.0)


async def count_by_cause(client: Client) -> dict[str, ParkedRuns]:
    """The parked runs of the namespace, by kind of error."""
    found: dict[str, ParkedRuns] = {}
    seen = 0
    async for run in client.list_workflows(_QUERY, page_size=1000, limit=MAX_RUNS):
        seen += 1
        cause = found.setdefault(run.typed_search_attributes.get(AGENT_PARKED_FOR) or "unknown", ParkedRuns())
        since = run.typed_search_attributes.get(AGENT_PARKED_AT)
        cause.runs += 1
        if since is not None and (cause.since is None or since < cause.since):
            cause.since = since
    return found


@dataclass
class Gauges:
    """What was seen at the last look, as metrics. Every worker reports the same: take the maximum."""

    seen: dict[str, ParkedRuns] = field(default_factory=dict[str, ParkedRuns])

    def __post_init__(self) -> None:
        meter = metrics.get_meter(SERVICE)
        meter.create_observable_gauge(
            "perdure.parked.runs", [self._runs], unit="{run}", description="Parked runs, by cause."
        )
        meter.create_observable_gauge(
            "perdure.parked.age", [self._ages], unit="s", description="Since when the oldest is parked."
        )

    def _runs(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        return [metrics.Observation(one.runs, {"error.type": kind}) for kind, one in self.seen.items()]

    def _ages(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        now = datetime.now(UTC)
        return [metrics.Observation(one.age(now), {"error.type": kind}) for kind, one in self.seen.items()]

    async def look(self, client: Client) -> None:
        """Look once. A cause that is gone is told once more, with 0, so that no alarm hangs."""
        found = await count_by_cause(client)
        gone = {kind: ParkedRuns() for kind, one in self.seen.items() if kind not in found and one.runs}
        self.seen = found | gone


@contextlib.asynccontextmanager
async def report_parked_runs(
    client: Client, *, enabled: bool, every: float = INTERVAL_SECONDS
) -> AsyncGenerator[None]:
    """Keep the gauges up to date while the block runs, if enabled."""
    if not enabled:
        yield
        return
    gauges = Gauges()

    async def keep_looking() -> None:
        while True:
            try:
                await gauges.look(client)
            except RPCError as error:
                _log.warning("parked runs could not be counted: %s", error.message)
            await asyncio.sleep(every)

    looking = asyncio.create_task(keep_looking())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
