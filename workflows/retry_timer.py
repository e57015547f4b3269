"""The clock of a parked run: wakes it when what was wrong may have passed."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime

from temporalio import workflow

from .engine.state import Event, NapOver, State
from .engine.team import Team


class Alarm:
    """At most one timer, set for the time at which the run tries again. Durable: it is in history."""

    def __init__(self, report: Callable[[Event], None]) -> None:
        self._report = report
        self._due: datetime | None = None
        self._ringing: asyncio.Task[None] | None = None
        self._held = 0

    @property
    def is_held(self) -> bool:
        """Whether somebody is changing the run."""
        return self._held > 0

    @contextmanager
    def held(self) -> Generator[None]:
        """While people are changing the parked run, it must not wake in between."""
        self._held += 1
        self.unset()
        try:
            yield
        finally:
            self._held -= 1

    def set_for(self, state: State | Team) -> None:
        """Set it as the state wants it; what was set for another time is taken back."""
        if self._held:
            return
        parked = state.parked if isinstance(state, State) else None
        due = parked.resumes_at if parked else None
        if due == self._due:
            return
        self.unset()
        if parked is not None and due is not None:
            self._due = due
            self._ringing = asyncio.create_task(self._ring(due, f"try again after {parked.kind}"))
        return

    def unset(self) -> None:
        """Take it back."""
        if self._ringing is not None:
            self._ringing.cancel()
        self._ringing, self._due = None, None

    async def _ring(self, due: datetime, why: str) -> None:
        left = due - workflow.now()
        if left.total_seconds() > 0:
            await workflow.sleep(left, summary=why)
        # The server's clock is kept in milliseconds: what rings has come due.
        self._report(NapOver(at=max(due, workflow.now())))
