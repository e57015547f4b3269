"""Play of a row of the table, and what lies between the request and the end in the run's history."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.errors import PerdureError
from perdure.wire.names import STOP
from perdure.wire.results import RunResult

from .moments import How, Kind, Moment, Played
from .stage import Stage

HANGS: Final = timedelta(seconds=15)
"""Time after which a run counts as hanging; no measure of anything."""
REASONS: Final[dict[How, str]] = {"stop": "stopped", "cancel": "cancelled", "deadline": "deadline"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table."""

    moment: Moment
    kind: Kind
    agent: str
    how: How

    @property
    def id(self) -> str:
        """Id of the row's run."""
        return "-".join([self.moment.name.replace(" ", "_").replace(",", ""), self.kind, self.how])


@dataclass(frozen=True, kw_only=True)
class End:
    """End of a run: its result, and what lies between the request and the end."""

    row: Row
    result: RunResult
    seconds: float
    """From the request to the end, by the server's clock."""
    tasks: int
    """Workflow tasks of the run that began between them."""
    attempts: int
    """Attempts of activities that began between them, in the run and below it."""
    left_waiting: int
    """Callers whom the end did not answer."""
    read: int
    """Input tokens that the run's calls have read."""

    def faults(self) -> list[str]:
        """Return what is wrong, whatever the machine: the reason, the counts, and callers without an answer."""
        moment, wanted = self.row.moment, REASONS[self.row.how]
        booked = self.result.usage.all_input_tokens
        found = [
            (self.result.stop_reason != wanted, f"ended as {self.result.stop_reason}, not {wanted}"),
            (self.tasks > moment.tasks, f"{self.tasks} workflow tasks, at most {moment.tasks}"),
            (self.attempts > moment.attempts, f"{self.attempts} attempts, at most {moment.attempts}"),
            (self.left_waiting > 0, f"{self.left_waiting} callers were not answered"),
            # A run below that is given up is booked with its whole lease.
            (
                moment.wide and booked != self.read,
                f"{booked} tokens are booked for the {self.read} that were read",
            ),
        ]
        return [f"{self.row.id}: {words}" for is_wrong, words in found if is_wrong]


def rows(moments: Sequence[Moment], ways: Sequence[How]) -> list[Row]:
    """Return the rows of these moments."""
    return [
        Row(moment=moment, kind=kind, agent=agent, how=how)
        for moment in moments
        for kind, agent in moment.kinds
        for how in ways
    ]


def played(stage: Stage, row: Row, timeout: timedelta) -> Played:
    """Return the row's run, which has not begun."""
    bound = timeout if row.how == "deadline" else None
    return Played(stage=stage, id=row.id, kind=row.kind, agent=row.agent, timeout=bound)


async def end(played: Played, row: Row, *, within: timedelta = HANGS) -> End:
    """Request the end of a run that has arrived, and judge it.

    Raises:
        TimeoutError: the run does not end.

    """
    if row.how == "stop":
        await played.run.stop()
    elif row.how == "cancel":
        await played.run.cancel()
    async with asyncio.timeout((within + (played.timeout or timedelta())).total_seconds()):
        result = await played.run.result()
        unanswered = await _answer_all(played)
    events = list((await played.run.handle.fetch_history()).events)
    requested = _requested_at(events, row.how, played.timeout)
    ended = _time(events[-1])
    begun = [e for e in events if e.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED]
    return End(
        row=row,
        result=result,
        seconds=(ended - requested).total_seconds(),
        tasks=sum(_time(event) >= requested for event in begun),
        attempts=sum(at >= requested for at in played.stage.attempts.begun[row.id]),
        left_waiting=unanswered,
        read=played.stage.model.read[row.id],
    )


async def _answer_all(played: Played) -> int:
    """Return the number of callers who wait on although the run has ended."""
    if not played.waiting:
        return 0
    done, pending = await asyncio.wait(played.waiting, timeout=HANGS.total_seconds())
    for task in done:
        with suppress(PerdureError):
            task.result()
    for task in pending:
        task.cancel()
    return len(pending)


def _requested_at(events: Sequence[HistoryEvent], how: How, timeout: timedelta | None) -> datetime:
    if how == "deadline":
        assert timeout is not None, "a deadline has a time"
        # A run's clock starts when a worker takes it up.
        started = (e for e in events if e.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED)
        return _time(next(started)) + timeout
    return max(_time(event) for event in events if _is_request(event, how))


def _time(event: HistoryEvent) -> datetime:
    return event.event_time.ToDatetime(tzinfo=UTC)


def _is_request(event: HistoryEvent, how: How) -> bool:
    if how == "cancel":
        return event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED
    return event.workflow_execution_signaled_event_attributes.signal_name == STOP
