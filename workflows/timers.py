"""Timers of a run: its deadline, the retry of a parked run, and the clocks of a session. All are durable."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime, timedelta

from temporalio import workflow

from .engine.events import EndRequested, Event, IdleChecked, RetryDue, TurnInterrupted
from .engine.session import idle_at
from .engine.state import RunState


class RetryTimer:
    """At most one timer, set for the time at which a parked run tries again."""

    def __init__(self, report: Callable[[Event], None]) -> None:
        self._report = report
        self._due: datetime | None = None
        self._task: asyncio.Task[None] | None = None
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
        due = parked.resumes_at if parked else None
        # The loop asks after each event. A timer that is set anew each time would cost two events.
        if due == self._due:
            return
        self.cancel()
        if parked is not None and due is not None:
            self._due = due
            self._task = asyncio.create_task(self._fire_at(due, f"try again after {parked.kind}"))

    def cancel(self) -> None:
        """Cancel the timer."""
        if self._task is not None:
            self._task.cancel()
        self._task, self._due = None, None

    async def _fire_at(self, due: datetime, why: str) -> None:
        await sleep_until(due, why)
        # The server's clock counts milliseconds: a timer that fires is due.
        self._report(RetryDue(at=max(due, workflow.now())))


class RunClocks:
    """Deadline of a run; of a session also its turn's deadline and its idle time."""

    def __init__(self, report: Callable[[Event], None], current: Callable[[], RunState]) -> None:
        self._report = report
        self._current = current
        self._tasks: list[asyncio.Task[None]] = []
        self._turn: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Set the timers that last as long as the run."""
        session = self._current().session
        if session is None:
            self._tasks = [asyncio.create_task(self._run_deadline())]
            return
        # A session that has continued as new in the middle of a turn needs that turn's timer again.
        self.start_turn()
        self._tasks = [asyncio.create_task(self._session_deadline()), asyncio.create_task(self._idle_clock())]

    def cancel(self) -> None:
        """Cancel all timers."""
        for task in self._tasks:
            task.cancel()
        self.cancel_turn()

    def start_turn(self) -> None:
        """Set the deadline of the turn that is open, if it has one."""
        session = self._current().session
        if session is None or not session.turn_is_open or session.turn_limits.timeout is None:
            return
        due = session.start.at + session.turn_limits.timeout
        self._turn = asyncio.create_task(self._turn_deadline(session.turn, due))

    def cancel_turn(self) -> None:
        """Cancel the deadline of the turn."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    async def _run_deadline(self) -> None:
        state = self._current()
        if state.deadline_at is None:
            return
        await sleep_until(state.deadline_at, "deadline of the run")
        # The reason of the level that set the time: a node's timeout is no deadline of the run.
        from_above = state.tree.deadline_at == state.deadline_at
        reason = state.tree.deadline_reason if from_above else "deadline"
        self._report(EndRequested(reason=reason))

    async def _session_deadline(self) -> None:
        session = self._current().session
        if session is not None and session.deadline_at is not None:
            await sleep_until(session.deadline_at, "deadline of the session")
            self._report(EndRequested(reason="deadline"))

    async def _turn_deadline(self, turn: int, due: datetime) -> None:
        await sleep_until(due, f"deadline of turn {turn}")
        self._report(TurnInterrupted(turn=turn, reason="deadline"))

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
