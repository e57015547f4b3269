"""Timers of a run: its deadline, the retry of a parked run, and the clocks of a session. All are durable."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

from temporalio import workflow

from .engine.clocks import run_due, session_due, turn_due
from .engine.events import EndRequested, Event, IdleChecked, RetryDue, TurnInterrupted
from .engine.session import idle_at
from .engine.state import RunState


class _Alarm:
    """At most one timer, set for the time at which something is due."""

    def __init__(self, summary: str, fire: Callable[[datetime], None]) -> None:
        self._summary = summary
        self._fire = fire
        self._due: datetime | None = None
        self._task: asyncio.Task[None] | None = None

    def set_for(self, due: datetime | None, summary: str = "") -> None:
        """Set the timer for this time, or cancel it; a timer that is set for it already, or has fired, stays."""
        # The loop asks after each event. A timer that is set anew each time would cost two events.
        if due == self._due:
            return
        self.cancel()
        if due is not None:
            self._due = due
            self._task = asyncio.create_task(self._fire_at(due, summary or self._summary))

    def cancel(self) -> None:
        """Cancel the timer."""
        if self._task is not None:
            self._task.cancel()
        self._task, self._due = None, None

    async def _fire_at(self, due: datetime, summary: str) -> None:
        await sleep_until(due, summary)
        self._fire(due)


_LATE: Final = timedelta(hours=1)
"""Time after which a retry that is due does not wait for its timer: histories hold timers of years."""


class RetryTimer:
    """At most one timer, set for the time at which a parked run tries again."""

    def __init__(self, report: Callable[[Event], None]) -> None:
        self._report = report
        self._alarm = _Alarm("try again", self._fire)
        self._holds = 0

    @property
    def is_on_hold(self) -> bool:
        """True while a person is changing the run."""
        return self._holds > 0

    @contextmanager
    def hold(self) -> Generator[None]:
        """Keep the timer unset while people change the parked run: it must not go on in between."""
        self._holds += 1
        self.cancel()
        try:
            yield
        finally:
            self._holds -= 1

    def set_for(self, state: RunState) -> None:
        """Set the timer as the state asks for; a timer for another time is cancelled."""
        if self._holds:
            return
        parked = state.parking.parked
        if parked is None:
            self.cancel()
        else:
            due = parked.resumes_at
            self._alarm.set_for(due, f"try again after {parked.kind}")
            if due is not None and workflow.now() - due > _LATE:
                self.cancel()
                self._fire(due)

    def cancel(self) -> None:
        """Cancel the timer."""
        self._alarm.cancel()

    def _fire(self, due: datetime) -> None:
        # The server's clock counts milliseconds: a timer that fires is due.
        self._report(RetryDue(at=max(due, workflow.now())))


class RunClocks:
    """Deadline of a run; of a session also its turn's deadline and its idle time. See `engine.clocks`."""

    def __init__(self, report: Callable[[Event], None], current: Callable[[], RunState]) -> None:
        self._report = report
        self._current = current
        self._idle: asyncio.Task[None] | None = None
        self._run = _Alarm("deadline of the run", self._end_run)
        self._turn = _Alarm("deadline of the turn", self._end_turn)
        self._session = _Alarm("deadline of the session", self._end_session)

    def start(self) -> None:
        """Set the timers. A session that has continued as new in the middle of a turn gets that turn's again."""
        self.set_for(self._current())
        if self._current().session is not None:
            self._idle = asyncio.create_task(self._idle_clock())

    def set_for(self, state: RunState) -> None:
        """Set the timers as the state asks for: a clock that stands still has none."""
        session = state.session
        if session is None:
            due = run_due(state)
            self._run.set_for(due[0] if due else None)
            return
        self._turn.set_for(turn_due(state), f"deadline of turn {session.turn}")
        self._session.set_for(session_due(state))

    def cancel(self) -> None:
        """Cancel all timers."""
        if self._idle is not None:
            self._idle.cancel()
        for alarm in (self._run, self._turn, self._session):
            alarm.cancel()

    # What is due may have changed in the same moment: then the timer is set anew at the next wait.

    def _end_run(self, at: datetime) -> None:
        due = run_due(self._current())
        if due is not None and due[0] <= at:
            self._report(EndRequested(reason=due[1]))

    def _end_turn(self, at: datetime) -> None:
        session, due = self._current().session, turn_due(self._current())
        if session is not None and due is not None and due <= at:
            self._report(TurnInterrupted(turn=session.turn, reason="deadline"))

    def _end_session(self, at: datetime) -> None:
        due = session_due(self._current())
        if due is not None and due <= at:
            self._report(EndRequested(reason="deadline"))

    async def _idle_clock(self) -> None:
        """Run one timer, not one a turn: when it fires too early, it is set for the rest."""
        session = self._current().session
        longest = session.max_idle if session else None
        while longest is not None:
            now = workflow.now()
            due = idle_at(self._current())
            await sleep_until(due if due is not None and due > now else now + longest, "idle")
            self._report(IdleChecked(at=workflow.now()))


async def sleep_until(due: datetime, summary: str) -> None:
    """Sleep until the time; at once when it has passed."""
    left = due - workflow.now()
    if left > timedelta():
        await workflow.sleep(left, summary=summary)
