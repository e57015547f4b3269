"""Lists of runs: what the server's search attributes say of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Final, Literal

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from perdure.messages import Value
from perdure.wire.attributes import (
    AGENT_COST_USD,
    AGENT_NAME,
    AGENT_PARKED_AT,
    AGENT_PARKED_FOR,
    AGENT_STATUS,
    AGENT_STEPS,
    AGENT_STOP_REASON,
    AGENT_USER,
)
from perdure.wire.ids import is_child_of
from perdure.wire.names import RESOLVE_AGENT, SESSION_WORKFLOW
from perdure.wire.results import ListedStatus

from .errors import rpc_error
from .outages import ride_out

# Ends at which the run's own code may not have set its status.
_ENDED_BY_SERVER: Final = {
    WorkflowExecutionStatus.TERMINATED: "terminated",
    WorkflowExecutionStatus.TIMED_OUT: "timed_out",
    WorkflowExecutionStatus.FAILED: "failed",
    WorkflowExecutionStatus.CANCELED: "cancelled",
}
_SMALLEST_PAGE: Final = 100
_LARGEST_PAGE: Final = 1000
_MOST_EXPLAINED: Final = 20
"""Runs of a list of which the server is asked why they have not begun."""


class RunInfo(Value):
    """A run or session in a list."""

    id: str
    kind: Literal["run", "session"] = "run"
    agent: str | None = None
    status: ListedStatus | str = ""
    stop_reason: str | None = None
    user: str | None = None
    steps: int | None = None
    """None: not known."""
    cost_usd: float | None = None
    has_gone_on: bool = False
    """True while the run works: it may have made more steps since the server was told. `Run.status` knows them."""
    started_at: datetime
    ended_at: datetime | None = None
    parked_for: str | None = None
    """Kind of the error for which it is parked, see `docs/errors.md`."""
    parked_at: datetime | None = None
    cannot_begin: str = ""
    """Cause for which a running run has not begun yet, in words; filled in by `explain_unbegun`."""


async def list_runs(temporal: Client, query: str, *, most: int, roots: bool) -> AsyncIterator[RunInfo]:
    """Yield the runs that a visibility query finds, the newest first, `most` of them.

    With `roots`, runs started by another run are left out.
    """
    pages = temporal.list_workflows(query, page_size=min(_LARGEST_PAGE, max(_SMALLEST_PAGE, most)))
    while True:
        try:
            await ride_out(pages.fetch_next_page)
        except RPCError as error:
            raise rpc_error(error) from error
        for execution in pages.current_page or ():
            # Not part of the query: visibility cannot compare an id with that of its parent.
            if roots and _is_child(execution):
                continue
            yield _run_info(execution)
            most -= 1
            if most <= 0:
                return
        if pages.next_page_token is None:
            return


async def explain_unbegun(temporal: Client, infos: Sequence[RunInfo]) -> Sequence[RunInfo]:
    """Return the runs; those that have not begun with the cause, as far as the server knows it. No worker is asked."""
    unbegun = [info.id for info in infos if info.agent is None and info.ended_at is None][:_MOST_EXPLAINED]
    causes = dict(
        zip(unbegun, await asyncio.gather(*(_cause(temporal, id_) for id_ in unbegun)), strict=True)
    )
    return [info.model_copy(update={"cannot_begin": causes.get(info.id, "")}) for info in infos]


async def _cause(temporal: Client, run_id: str) -> str:
    """Return the words of the worker that could not fetch the run's agent, or an empty text."""
    try:
        description = await temporal.get_workflow_handle(run_id).describe()
    except RPCError:
        return ""  # the list is of use without it
    for pending in description.raw_description.pending_activities:
        if pending.activity_type.name == RESOLVE_AGENT and pending.HasField("last_failure"):
            failure = await temporal.data_converter.decode_failure(pending.last_failure)
            return failure.message if isinstance(failure, ApplicationError) else str(failure)
    return ""


def _is_child(execution: WorkflowExecution) -> bool:
    # Visibility does not say of which type a parent is. The ids that we give child runs do.
    return execution.parent_id is not None and is_child_of(execution.parent_id, execution.id)


def _run_info(execution: WorkflowExecution) -> RunInfo:
    attributes = execution.typed_search_attributes
    state = execution.status
    written = attributes.get(AGENT_STATUS)
    status = written or (state.name.lower() if state else "")
    # A run writes its counts when its status changes, and in between now and then.
    has_gone_on = written == "working"
    is_unknown = has_gone_on or written is None
    steps = attributes.get(AGENT_STEPS, None if is_unknown else 0)
    return RunInfo(
        id=execution.id,
        kind="session" if execution.workflow_type == SESSION_WORKFLOW else "run",
        agent=attributes.get(AGENT_NAME),
        status=_ENDED_BY_SERVER.get(state, status) if state else status,
        stop_reason=attributes.get(AGENT_STOP_REASON),
        user=attributes.get(AGENT_USER),
        steps=steps,
        # The cost that is written as a run begins is 0, and says nothing of one that has gone on.
        cost_usd=None if steps is None else attributes.get(AGENT_COST_USD),
        has_gone_on=has_gone_on,
        started_at=execution.start_time,
        ended_at=execution.close_time,
        parked_for=attributes.get(AGENT_PARKED_FOR),
        parked_at=attributes.get(AGENT_PARKED_AT),
    )
