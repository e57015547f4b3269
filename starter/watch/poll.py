"""SharedPolls at a run, shared: whoever watches it over one connection, the server is asked once for all."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar
from weakref import WeakValueDictionary

from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus

from perdure.wire.effects import Progress

from .changes import PendingActivity
from .watched import WatchedRun

_T = TypeVar("_T")

QUICK: Final = timedelta(milliseconds=100)
"""From one poll at a run that works to the next."""
_REPORTED: Final = timedelta(milliseconds=140)
"""The same after one that showed a new report of a call. Where text flows, a worker reports every
150 ms (`progress_interval`), so this keeps polls just behind the reports: as many as one every 100 ms,
and each report is seen when it is a few milliseconds old, not fifty.
"""
_MISSED: Final = timedelta(milliseconds=30)
"""The same after one that came just too early for the next report; twice that after another."""


class _Shared(Generic[_T]):
    """Something on its way to all who wait for it, or its error; given up once nobody waits."""

    def __init__(self, coming: Coroutine[Any, Any, _T]) -> None:
        self.began = asyncio.get_running_loop().time()
        self.given_up = False
        self._task = asyncio.create_task(coming)
        self._waiting = 0

    @property
    def under_way(self) -> bool:
        return not self.given_up and not self._task.done()

    async def get(self) -> _T:
        """Who is cancelled here leaves the others undisturbed."""
        self._waiting += 1
        try:
            return await asyncio.shield(self._task)
        finally:
            self._waiting -= 1
            if not self._waiting and not self._task.done():
                self.given_up = True
                self._task.cancel()

    async def settled(self) -> None:
        """Wait until it is there, failed or given up, whichever; does not count as waiting for it."""
        await asyncio.wait({self._task})


@dataclass(frozen=True, kw_only=True, eq=False)
class Poll:
    """What the server knew of a run at one moment."""

    began: float
    """On the loop's clock, as `ended`: whatever had happened by then is in it."""
    ended: float
    described: WorkflowExecutionDescription
    pending: list[PendingActivity]
    haste: timedelta
    """When the next is worth it, while the run works."""
    _asked: dict[Hashable, "_Shared[Any]"] = field(default_factory=dict[Hashable, "_Shared[Any]"])

    @property
    def at(self) -> tuple[str, int]:
        """How far the run was: what a worker answers about it can change only when this does."""
        return self.described.run_id, self.described.history_length

    @property
    def closed(self) -> bool:
        """Whether the run was over."""
        return self.described.status != WorkflowExecutionStatus.RUNNING

    def left_of(self, pause: timedelta) -> float:
        """Seconds until so much time has passed since. Reckoned from the poll, not from when somebody
        was done with it: so all who share it come for the next one at the same moment.
        """
        return max(0.0, self.ended + pause.total_seconds() - asyncio.get_running_loop().time())

    async def once(self, what: Hashable, ask: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """The answer, or the error, of a question that this poll raises: the first to come asks it
        for all. It is kept no longer than the poll, for it may be as long as a transcript.
        """
        asked = self._asked.get(what)
        if asked is None or asked.given_up:
            asked = self._asked[what] = _Shared(ask())
        answer: _T = await asked.get()
        return answer


class SharedPolls:
    """Those at one run. There while somebody watches it: nobody else holds on to them."""

    def __init__(self, run: WatchedRun) -> None:
        self._run = run
        self._last: Poll | None = None
        self._coming: _Shared[Poll] | None = None

    @classmethod
    def for_run(cls, run: WatchedRun) -> "SharedPolls":
        """The same for all who watch that run over the same connection, in the same event loop."""
        key = (run.client, asyncio.get_running_loop(), run.id)
        return _WATCHED.get(key) or _WATCHED.setdefault(key, cls(run))

    async def next(self, after: float) -> Poll:
        """A poll that began later than that: the last, the one under way, or a new one.

        Raises:
            PerdureError: whatever `Run.describe` raises, to all who waited for it.

        """
        while self._last is None or self._last.began <= after:
            coming = self._coming
            if coming is None or not coming.under_way:
                self._coming = _Shared(self._poll())
                return await self._coming.get()
            if coming.began > after:
                return await coming.get()
            # It may miss what they know who have come since; one more will do for all of them.
            await coming.settled()
        return self._last

    async def _poll(self) -> Poll:
        clock = asyncio.get_running_loop().time
        began, described = clock(), await self._run.describe()
        pending = await _pending_activities(self._run.client, described)
        haste = _haste(self._last, pending)
        self._last = Poll(began=began, ended=clock(), described=described, pending=pending, haste=haste)
        return self._last


_WATCHED: Final = WeakValueDictionary[tuple[Client, asyncio.AbstractEventLoop, str], SharedPolls]()


def _haste(before: Poll | None, pending: list[PendingActivity]) -> timedelta:
    if _reports(pending) - _reports(before.pending if before else []):
        return _REPORTED
    if before is None or before.haste == QUICK:
        return QUICK
    return _MISSED if before.haste == _REPORTED else min(QUICK, before.haste * 2)


def _reports(pending: list[PendingActivity]) -> set[tuple[str, int, int]]:
    reports = (activity.progress for activity in pending if activity.progress)
    return {(report.call, report.attempt, report.seq) for report in reports}


async def _pending_activities(
    client: Client, described: WorkflowExecutionDescription
) -> list[PendingActivity]:
    infos: list[PendingActivityInfo] = list(described.raw_description.pending_activities)
    return [await _pending(client, info) for info in infos]


async def _pending(client: Client, info: PendingActivityInfo) -> PendingActivity:
    error = info.last_failure.message if info.attempt > 1 and info.HasField("last_failure") else None
    return PendingActivity(progress=await _progress(client, info), attempt=info.attempt, error=error)


async def _progress(client: Client, info: PendingActivityInfo) -> Progress | None:
    if not info.heartbeat_details.payloads:
        return None
    try:
        details: list[Any] = await client.data_converter.decode(list(info.heartbeat_details.payloads))
        return Progress.model_validate(details[0])
    except Exception:
        return None  # a remote tool heartbeats as it likes, in any encoding
