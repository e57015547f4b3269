"""A run as far as it can be known: by the server's record of its end, and by a worker's answers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus

from perdure.errors import InvalidRequest, NotReachable, RunFailed
from perdure.wire.results import ENDED, NodeStatus, RunResult, RunStatus, Status

from ..watch.changes import nodes_in_result
from ..watch.children import ChildRuns
from ..watch.watched import WatchedRun
from .steps import Step, steps_of

_OPEN: Final = (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW)
# Status of a run by the state of its workflow; every other end is a failure.
_ENDED_AS: Final[dict[WorkflowExecutionStatus, Status]] = {
    WorkflowExecutionStatus.COMPLETED: "completed",
    WorkflowExecutionStatus.CANCELED: "cancelled",
}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that could be learnt of a run. Without a worker, only what the server keeps."""

    id: str
    state: str
    """State of the workflow, as the server names it in lower case."""
    status: RunStatus | None = None
    nodes: tuple[NodeStatus, ...] = ()
    """All runs that it has started, ended ones included; an agent's status lists the open ones only."""
    steps: tuple[Step, ...] = ()
    result: RunResult | None = None
    error: str | None = None
    """Error that ended the run, with its kind."""
    problem: str | None = None
    """Reason why status and steps are missing."""

    def plain(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "id": self.id,
            "state": self.state,
            "status": self.status.model_dump(mode="json") if self.status else None,
            "nodes": [node.model_dump(mode="json") for node in self.nodes],
            "steps": [step.model_dump(mode="json") for step in self.steps],
            "result": self.result.model_dump(mode="json") if self.result else None,
            "error": self.error,
            "problem": self.problem,
        }


@dataclass(frozen=True, kw_only=True)
class StatusPoll:
    """The newest known status of a run, and the error of a poll that brought no newer one."""

    status: RunStatus
    problem: NotReachable | None = None


async def inspect_run(run: WatchedRun) -> Inspection:
    """Inspect the run: status, steps, runs below, result.

    Raises:
        RunNotFound: there is no such run.

    """
    described = await run.describe()
    state = described.status.name.lower() if described.status else "unknown"
    result, error = await _read_end(run) if state != "running" else (None, None)
    try:
        status = await run.status()
        # A run that cannot begin yet says why in its status, and has no transcript to read.
        messages = await run.transcript() if status.messages else []
        nodes = await ChildRuns(run).nodes(status, messages, described)
    except (NotReachable, InvalidRequest) as reason:
        # A run whose agent was never resolved has no status and never will: its error says it all.
        problem = None if error else str(reason)
        return Inspection(id=run.id, state=state, result=result, error=error, problem=problem)
    recorded = nodes_in_result(result) if result and result.nodes else nodes
    return Inspection(
        id=run.id,
        state=state,
        status=status,
        nodes=tuple(recorded),
        steps=tuple(steps_of(messages)),
        result=result,
        error=error,
    )


async def _read_end(run: WatchedRun) -> tuple[RunResult | None, str | None]:
    try:
        return await run.result(), None
    except RunFailed as error:
        return error.result, f"{error.kind}: {error}"


async def read_reconciled_status(run: WatchedRun) -> RunStatus:
    """Read the status of a run, corrected by the server's record of its end.

    Raises:
        NotReachable: no worker answers.

    """
    described = await run.describe()
    return reconcile(await run.status(), described)


def reconcile(status: RunStatus, described: WorkflowExecutionDescription) -> RunStatus:
    """Return the status as the server's record corrects it.

    A run that is terminated runs no more code: a worker that is asked replays it to its last event and
    answers that it goes on.
    """
    if described.status is None or described.status in _OPEN or status.status in ENDED:
        return status
    nodes = [
        node.model_copy(update={"state": "cancelled"}) if node.state == "running" else node
        for node in status.nodes
    ]
    ended = _ENDED_AS.get(described.status, "failed")
    return status.model_copy(update={"status": ended, "nodes": nodes, "waiting": []})


async def poll_until_ended(run: WatchedRun, *, interval: timedelta) -> AsyncIterator[StatusPoll]:
    """Yield the reconciled status again and again; the last one is that of a run that is over.

    A worker that does not answer for a while is waited for, once a first status is known.

    Raises:
        NotReachable: no worker answers the first poll.

    """
    poll = StatusPoll(status=await read_reconciled_status(run))
    yield poll
    while poll.status.status not in ENDED:
        await asyncio.sleep(interval.total_seconds())
        try:
            poll = StatusPoll(status=await read_reconciled_status(run))
        except NotReachable as error:
            poll = replace(poll, problem=error)
        yield poll
