"""Metrics of parked runs, by kind of error: their number, and the age of the oldest."""

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
"""Seconds between two counts."""
MAX_RUNS: Final = 5000
"""Highest number of runs that are counted, so that an outage does not make counting expensive."""
_TYPES: Final = ", ".join(f'"{kind}"' for kind in WORKFLOWS)
_QUERY: Final = (
    f'WorkflowType IN ({_TYPES}) AND ExecutionStatus = "Running" AND {AGENT_PARKED_FOR.name} IS NOT NULL'
)
_log = logging.getLogger("perdure.parked")


@dataclass
class ParkedRuns:
    """Runs parked for the same kind of error."""

    runs: int = 0
    since: datetime | None = None
    """Time when the oldest was parked, if any."""

    def age(self, now: datetime) -> float:
        """Return the seconds since the oldest was parked."""
        return 0.0 if self.since is None else max((now - self.since).total_seconds(), 0.0)


async def count_by_cause(client: Client) -> dict[str, ParkedRuns]:
    """Count the parked runs of the namespace by kind of error."""
    counts: dict[str, ParkedRuns] = {}
    async for run in client.list_workflows(_QUERY, page_size=1000, limit=MAX_RUNS):
        parked = counts.setdefault(
            run.typed_search_attributes.get(AGENT_PARKED_FOR) or "unknown", ParkedRuns()
        )
        since = run.typed_search_attributes.get(AGENT_PARKED_AT)
        parked.runs += 1
        if since is not None and (parked.since is None or since < parked.since):
            parked.since = since
    return counts


@dataclass
class Gauges:
    """Gauges of the last count. Every worker reports the same numbers: take the maximum, not the sum."""

    by_cause: dict[str, ParkedRuns] = field(default_factory=dict[str, ParkedRuns])

    def __post_init__(self) -> None:
        meter = metrics.get_meter(SERVICE)
        meter.create_observable_gauge(
            "perdure.parked.runs", [self._runs], unit="{run}", description="Parked runs, by cause."
        )
        meter.create_observable_gauge(
            "perdure.parked.age",
            [self._ages],
            unit="s",
            description="Age of the oldest parked run, by cause.",
        )

    def _runs(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        return [
            metrics.Observation(parked.runs, {"error.type": kind}) for kind, parked in self.by_cause.items()
        ]

    def _ages(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        now = datetime.now(UTC)
        return [
            metrics.Observation(parked.age(now), {"error.type": kind})
            for kind, parked in self.by_cause.items()
        ]

    async def update(self, client: Client) -> None:
        """Count again."""
        counts = await count_by_cause(client)
        # A cause without runs is reported once with 0; an alarm on its last value would stay on.
        gone = {
            kind: ParkedRuns() for kind, parked in self.by_cause.items() if kind not in counts and parked.runs
        }
        self.by_cause = counts | gone


@contextlib.asynccontextmanager
async def report_parked_runs(
    client: Client, *, enabled: bool, interval: float = INTERVAL_SECONDS
) -> AsyncGenerator[None]:
    """Keep the gauges up to date while the block runs, if enabled."""
    if not enabled:
        yield
        return
    gauges = Gauges()

    async def keep_updating() -> None:
        while True:
            try:
                await gauges.update(client)
            except RPCError as error:
                # The next count may succeed; the gauges keep their values until then.
                _log.warning("parked runs could not be counted: %s", error.message)
            await asyncio.sleep(interval)

    updates = asyncio.create_task(keep_updating())
    try:
        yield
    finally:
        updates.cancel()
        await asyncio.gather(updates, return_exceptions=True)
