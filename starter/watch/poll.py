"""Polls of a run, shared by all who watch it over one connection.

How it works:

1. A poll is one `describe` call: it shows what the server knows, partial text included, and asks no worker.
2. A watcher asks for a poll that began after a given moment, such as the end of its last poll. So every
   poll that it sees is newer than the one before it, and shows all that had happened by then.
3. Polls of a run are made under a lock. Whoever gets the lock takes the last poll if that began late
   enough, and polls otherwise. However many wait, they share the poll, or its error.
4. The interval between polls is fixed and counted from the end of a poll, not from when a watcher was done
   with it. So watchers that share a poll come back at the same moment, and share the next one too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar, cast
from weakref import WeakValueDictionary

from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus

from perdure.wire.effects import Progress

from .changes import PendingActivity
from .watched import WatchedRun

_T = TypeVar("_T")

POLL_INTERVAL: Final = timedelta(milliseconds=75)
"""Interval between polls of a run that works. Its worker reports text half as often (`progress_interval`,
150 ms), so a report is seen when it is 40 ms old on average.
"""


@dataclass(frozen=True)
class _Outcome(Generic[_T]):
    """Value or error of a call, kept for all who share it."""

    value: _T | None = None
    error: Exception | None = None

    @classmethod
    async def of_call(cls, call: Callable[[], Awaitable[_T]]) -> "_Outcome[_T]":
        """Make the call. A cancelled call has no outcome: the next in line makes it anew."""
        try:
            return cls(value=await call())
        except Exception as error:
            return cls(error=error)

    def get(self) -> _T:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return cast("_T", self.value)


@dataclass
class _SharedCall(Generic[_T]):
    """A call made by the first who awaits it, for all of them."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    outcome: _Outcome[_T] | None = None

    async def get(self, call: Callable[[], Awaitable[_T]], within: float | None) -> _T:
        async def call_within() -> _T:
            # The limit is part of the shared call. Were it each watcher's own, all of them would call in
            # turn.
            async with asyncio.timeout(within):
                return await call()

        async with self.lock:
            if self.outcome is None:
                self.outcome = await _Outcome.of_call(call_within)
        return self.outcome.get()


@dataclass(frozen=True, kw_only=True, eq=False)
class Poll:
    """State of a run as the server knew it at one moment."""

    began: float
    """On the event loop's clock, as `ended`. The poll shows all that had happened by then."""
    ended: float
    description: WorkflowExecutionDescription
    pending: list[PendingActivity]
    _calls: dict[Hashable, _SharedCall[Any]] = field(default_factory=dict[Hashable, _SharedCall[Any]])

    @property
    def position(self) -> tuple[str, int]:
        """Execution and length of its history. A worker's answer can change only when this does."""
        return self.description.run_id, self.description.history_length

    @property
    def is_closed(self) -> bool:
        """True if the run had ended."""
        return self.description.status != WorkflowExecutionStatus.RUNNING

    def remaining(self, interval: timedelta) -> float:
        """Return the seconds left of an interval that began with the end of this poll."""
        return max(0.0, self.ended + interval.total_seconds() - asyncio.get_running_loop().time())

    async def share(
        self, key: Hashable, call: Callable[[], Awaitable[_T]], *, within: float | None = None
    ) -> _T:
        """Return the outcome of a call that this poll gives reason for, made once for all watchers.

        It is kept no longer than the poll, for it may be as long as a transcript.

        Raises:
            TimeoutError: the call took longer than `within` seconds; raised to all who share it.

        """
        shared: _SharedCall[_T] = self._calls.setdefault(key, _SharedCall())
        return await shared.get(call, within)


class SharedPolls:
    """Polls of one run; they exist while somebody watches it."""

    def __init__(self, run: WatchedRun) -> None:
        self._run = run
        self._lock = asyncio.Lock()
        self._began = float("-inf")
        self._last: _Outcome[Poll] = _Outcome()

    @classmethod
    def for_run(cls, run: WatchedRun) -> "SharedPolls":
        """Return the polls shared by all who watch the run over this connection, in this event loop."""
        key = (run.client, asyncio.get_running_loop(), run.id)
        return _SHARED.get(key) or _SHARED.setdefault(key, cls(run))

    async def next(self, after: float) -> Poll:
        """Return a poll that began after that moment: the last one, or a new one.

        Raises:
            PerdureError: whatever `Run.describe` raises, to all who waited for it.

        """
        async with self._lock:
            # Whoever came during the last poll needs a newer one, and shares it with all who came by then.
            if self._began <= after:
                began = asyncio.get_running_loop().time()
                self._last = await _Outcome[Poll].of_call(lambda: self._poll(began))
                self._began = began
            outcome = self._last
        return outcome.get()

    async def _poll(self, began: float) -> Poll:
        description = await self._run.describe()
        pending = await _pending_activities(self._run.client, description)
        ended = asyncio.get_running_loop().time()
        return Poll(began=began, ended=ended, description=description, pending=pending)


# Weak: only watchers hold the polls of a run, so nothing is kept of a run that nobody watches.
_SHARED: Final = WeakValueDictionary[tuple[Client, asyncio.AbstractEventLoop, str], SharedPolls]()


async def _pending_activities(
    client: Client, description: WorkflowExecutionDescription
) -> list[PendingActivity]:
    infos: list[PendingActivityInfo] = list(description.raw_description.pending_activities)
    return [await _pending_activity(client, info) for info in infos]


async def _pending_activity(client: Client, info: PendingActivityInfo) -> PendingActivity:
    error = info.last_failure.message if info.attempt > 1 and info.HasField("last_failure") else None
    return PendingActivity(progress=await _progress(client, info), attempt=info.attempt, error=error)


async def _progress(client: Client, info: PendingActivityInfo) -> Progress | None:
    if not info.heartbeat_details.payloads:
        return None
    try:
        details: list[Any] = await client.data_converter.decode(list(info.heartbeat_details.payloads))
        return Progress.model_validate(details[0])
    except Exception:
        return None  # a remote tool's heartbeats may hold anything, in any encoding
