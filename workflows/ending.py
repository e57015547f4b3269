"""Race against the end: what a run awaits beside its loop is given up once the run is to end.

Rules
1. Handlers, the beginning and the tasks of children await an activity or a timer only through `Ending.race`. The loop
   itself waits for events, and a stop, a cancel and a deadline are events.
2. What is given up is cancelled, and its answer is not awaited: it may need a worker's slot that nobody frees.
3. A run that ends before it begins has no agent, no transcript and no cost. Its result names what it was sent.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from temporalio import workflow

from perdure.wire.results import RunResult, StopReason
from perdure.wire.tree import ChildInput

from .engine.events import EndRequested, Event, MessageSent
from .engine.report import shorten

_T = TypeVar("_T")


class RunIsEndingError(Exception):
    """The run is to end, and the work that raced against the end was given up."""


class EndedBeforeBeginningError(Exception):
    """The run ended before it had its agent."""

    def __init__(self, reason: StopReason, child: ChildInput | None = None) -> None:
        super().__init__(reason)
        self.reason: StopReason = reason
        self.child = child


class Ending:
    """The end of one run, as its handlers see it."""

    def __init__(self, is_requested: Callable[[], bool]) -> None:
        self._is_requested = is_requested

    async def race(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return the value of the work, or give the work up when the run is to end first.

        Raises:
            RunIsEndingError: the work was given up; it may have had its effect.

        """
        task = asyncio.create_task(work)
        try:
            await workflow.wait_condition(lambda: task.done() or self._is_requested())
            # Finished work counts, even where the end was requested in the same moment.
            if task.done():
                return task.result()
        finally:
            # Also when the caller itself is cancelled: the primary task of a run is, handlers are not.
            if not task.done():
                task.add_done_callback(_ignore_outcome)
                task.cancel()
        raise RunIsEndingError


def _ignore_outcome(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()  # retrieved, or the event loop would log it


def requested_end(events: Iterable[Event]) -> StopReason | None:
    """Return the first end that these events ask for, or None."""
    return next((event.reason for event in events if isinstance(event, EndRequested)), None)


def result_before_beginning(agent: str, reason: StopReason, events: Iterable[Event]) -> RunResult:
    """Return the result of a run that ended before it had its agent, with the messages that nobody read."""
    unread = [
        f"message not read: {shorten(event.message.text, 200)}"
        for event in events
        if isinstance(event, MessageSent)
    ]
    missing = ["the task: the run ended before it began", *unread]
    return RunResult(agent=agent, stop_reason=reason, cost_microusd=0, missing=missing)
