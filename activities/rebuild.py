"""Rebuilding: the state of a closed execution, from which a run goes on.

Rules
1. The state comes from the server's history alone: a worker replays it to answer a query. Nobody hands a state in.
2. The closed execution has the workflow id, the type, the task queue and the parent of the run that goes on.
3. No other execution of that id has begun since, but for those that a reset has put this one in the place of. Two
   would do the same work under the same keys.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from temporalio import activity
from temporalio.client import (
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.service import RPCError, RPCStatusCode

from perdure.wire.effects import CarriedPart, Rebuild
from perdure.wire.names import CARRIED, EXTENDABLE, FIND_EXECUTIONS, REBUILD, WORKFLOWS

from .refusal import refusal

_ANSWER_WITHIN: Final = timedelta(seconds=15)
_ENDED: Final = (WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.CANCELED)
"""Ends after which a run's state says where it stood. A run that failed, or that the server ended, begins anew."""


@activity.defn(name=REBUILD)
async def rebuild(request: Rebuild) -> CarriedPart:
    """Return a part of the state that the closed execution had at its end.

    Raises:
        ApplicationError: "InvalidRequest": the run cannot go on from that execution; the message says why.

    """
    workflow_id, execution_id = str(activity.info().workflow_id), request.execution_id
    handle = activity.client().get_workflow_handle(workflow_id, run_id=execution_id)
    try:
        if request.part:
            return await _query(handle, request.part)
        described = await handle.describe()
        await _check_origin(described, request)
        part = await _query(handle, 0)
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise refusal(f"{_name(execution_id)} is gone: the server no longer keeps its history") from None
        raise
    except (WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
        raise refusal(f"{_name(execution_id)}: {error}") from None
    executions = await _executions(part.cut_short, workflow_id)
    return part.model_copy(update={"closed_at": described.close_time, "executions": executions})


@activity.defn(name=FIND_EXECUTIONS)
async def find_executions(workflow_ids: Sequence[str]) -> dict[str, str]:
    """Return the newest execution of each run below from which it can go on, by its workflow id."""
    return await _executions(workflow_ids, str(activity.info().workflow_id))


async def _query(handle: Any, number: int) -> CarriedPart:
    part: CarriedPart = await handle.query(
        CARRIED, number, result_type=CarriedPart, rpc_timeout=_ANSWER_WITHIN
    )
    return part


async def _check_origin(described: WorkflowExecutionDescription, request: Rebuild) -> None:
    info, name = activity.info(), _name(request.execution_id)
    if described.workflow_type != info.workflow_type:
        raise refusal(f"{name} is a {described.workflow_type!r}, and this run a {info.workflow_type!r}")
    # Whoever polls another task queue answers for it: what such a worker says of a state is not ours.
    if described.task_queue != info.task_queue:
        raise refusal(f"{name} ran on task queue {described.task_queue!r}, not on {info.task_queue!r}")
    if described.parent_id != request.parent_id:
        raise refusal(f"{name} was started by {described.parent_id!r}, not by {request.parent_id!r}")
    if described.status not in _ENDED:
        status = described.status.name.lower() if described.status else "unknown"
        raise refusal(f"{name} is {status}: only a run that a limit has ended can be extended")
    # A parent of ours names the newest execution of a run below itself. Any other may name one twice.
    if request.parent_id is None or not await _is_ours(request.parent_id):
        await _check_newest(described)


async def _is_ours(workflow_id: str) -> bool:
    described = await activity.client().get_workflow_handle(workflow_id).describe()
    return described.workflow_type in WORKFLOWS


async def _check_newest(described: WorkflowExecutionDescription) -> None:
    """Check that no other execution of the id has begun since this one was closed."""
    own = str(activity.info().workflow_run_id)
    client, workflow_id = activity.client(), described.id
    quoted = workflow_id.replace("'", "''")
    async for found in client.list_workflows(f"WorkflowId = '{quoted}'"):
        is_later = described.close_time is not None and found.start_time >= described.close_time
        if not is_later or found.run_id in (own, described.run_id):
            continue
        if await _first_of_chain(workflow_id, found.run_id) == await _first_of_chain(workflow_id, own):
            continue
        if not await _never_began(workflow_id, found.run_id):
            raise refusal(
                f"{_name(described.run_id)} is not the newest: {found.run_id} has begun since; "
                "extend that one, if a limit has ended it"
            )


async def _first_of_chain(workflow_id: str, run_id: str) -> str:
    """Return the first execution of the chain that resets and continue-as-new make of one start."""
    described = await activity.client().get_workflow_handle(workflow_id, run_id=run_id).describe()
    return described.raw_description.workflow_execution_info.first_run_id


async def _never_began(workflow_id: str, run_id: str) -> bool:
    """Return whether the execution is an extension that was refused, or ended, before it had its state."""
    handle = activity.client().get_workflow_handle(workflow_id, run_id=run_id)
    try:
        answer: Any = await handle.query(EXTENDABLE, {}, result_type=object, rpc_timeout=_ANSWER_WITHIN)
    except WorkflowQueryFailedError:
        return False
    return bool(answer.get("execution_id") == "")


async def _executions(workflow_ids: Sequence[str], parent_id: str) -> dict[str, str]:
    """Return the newest execution of each run below from which it can go on."""
    found = await asyncio.gather(*(_execution(workflow_id, parent_id) for workflow_id in workflow_ids))
    return {workflow_id: run_id for workflow_id, run_id in zip(workflow_ids, found, strict=True) if run_id}


async def _execution(workflow_id: str, parent_id: str) -> str | None:
    try:
        described = await activity.client().get_workflow_handle(workflow_id).describe()
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            return None
        raise
    is_ours = described.parent_id == parent_id and described.workflow_type in WORKFLOWS
    return described.run_id if is_ours and described.status in _ENDED else None


def _name(execution_id: str) -> str:
    return f"execution {execution_id!r} of this run"
