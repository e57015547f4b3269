"""Heartbeats: how a stop arrives within a second, and a dead worker is noticed in a few."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from pydantic import ValidationError
from temporalio import activity

from perdure.wire.effects import PROGRESS_WINDOW, Progress

_QUIET = timedelta(milliseconds=500)
"""How often an unchanged state is repeated: the server answers heartbeats with stop requests."""


class Heartbeats:
    """Beats while the body runs: soon what is new, and now and then what is not. A short call has no beat
    at all: each is a write to the server's database.

    `progress` is given the beat's number and the size of the window, and says what to report.
    """

    def __init__(self, progress: Callable[[int, int], Progress], interval: timedelta) -> None:
        self._progress = progress
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Heartbeats":
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _beat(self) -> None:
        seq, last, quiet = 0, None, timedelta()
        while True:
            await asyncio.sleep(self._interval.total_seconds())
            quiet += self._interval
            now = self._progress(seq + 1, PROGRESS_WINDOW)
            what = (now.offset, now.text, now.note)
            if what != last or quiet >= _QUIET:
                seq, last, quiet = seq + 1, what, timedelta()
                with contextlib.suppress(Exception):  # a word that cannot be sent must not fail the call
                    activity.heartbeat(now)


def worker_is_ending() -> bool:
    """Whether the call was cancelled because its worker is to end: another is to make it."""
    details = activity.cancellation_details()
    return details is not None and details.worker_shutdown


def last_progress() -> Progress | None:
    """What the attempt before this one reported last."""
    for detail in activity.info().heartbeat_details:
        with contextlib.suppress(ValidationError):
            return Progress.model_validate(detail)
    return None
