"""Heartbeats of activities: progress for watchers, stop requests, and the detection of dead workers.

The server answers a heartbeat with a stop request if there is one. It gives an attempt up when no heartbeat
came within the heartbeat timeout, and hands the last heartbeat's details to the next attempt.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from pydantic import ValidationError
from temporalio import activity

from perdure.wire.effects import PROGRESS_WINDOW, Progress

_LONGEST_SILENCE = timedelta(milliseconds=500)
"""Time after which an unchanged state is repeated, because only a heartbeat brings a stop request."""


class Heartbeats:
    """Context manager that sends heartbeats while its body runs.

    `progress` returns the state to report, from the heartbeat's number and the window for its text. A
    change is sent at the next interval. A call shorter than the interval sends none, because each
    heartbeat is a write to the server's database.
    """

    def __init__(self, progress: Callable[[int, int], Progress], interval: timedelta) -> None:
        self._progress = progress
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Heartbeats":
        self._task = asyncio.create_task(self._send())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _send(self) -> None:
        seq, last, silence = 0, None, timedelta()
        while True:
            await asyncio.sleep(self._interval.total_seconds())
            silence += self._interval
            progress = self._progress(seq + 1, PROGRESS_WINDOW)
            visible = (progress.offset, progress.text, progress.note)
            if visible != last or silence >= _LONGEST_SILENCE:
                seq, last, silence = seq + 1, visible, timedelta()
                # A heartbeat that cannot be sent must not fail the call.
                with contextlib.suppress(Exception):
                    activity.heartbeat(progress)


def worker_is_ending() -> bool:
    """Check whether the call was cancelled because its worker shuts down; another worker is to make it."""
    details = activity.cancellation_details()
    return details is not None and details.worker_shutdown


def was_cancelled(error: BaseException) -> bool:
    """Check whether the error is the end of this attempt, by the server or by its worker.

    Code of users raises the same class when a task within it was cancelled. That is its failure, as any other error.
    """
    return isinstance(error, asyncio.CancelledError) and activity.is_cancelled()


def last_progress() -> Progress | None:
    """Return the last heartbeat of the earlier attempts, or None if there was none."""
    for detail in activity.info().heartbeat_details:
        # A worker of another version may have written details of another form.
        with contextlib.suppress(ValidationError):
            return Progress.model_validate(detail)
    return None
