"""Extension: the start of a run that goes on from a closed one, under the same id."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

from pydantic import ValidationError
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import Priority, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from perdure.definitions import explain
from perdure.errors import InvalidRequest, RunConflict
from perdure.limits import Limits
from perdure.wire.names import EXTENDABLE, WORKFLOWS
from perdure.wire.requests import ExtendRequest
from perdure.wire.results import RunStatus

from .calls import RunCalls
from .errors import rpc_error
from .outages import ride_out

_CUT_OFF = (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.TIMED_OUT)
"""Statuses of an execution that had no time to end itself."""
_MOST_REFUSED = 20
"""Executions in a row that never began, behind which the closed one is looked for."""


class _ClosedRun(Protocol):
    """Part of `Run` that an extension needs; `Run` itself imports this file."""

    @property
    def id(self) -> str: ...
    @property
    def client(self) -> Client: ...
    @property
    def calls(self) -> RunCalls: ...
    async def describe(self) -> WorkflowExecutionDescription: ...
    async def status(self) -> RunStatus: ...


async def extend_run(run: _ClosedRun, *, limits: Limits, by: str, reason: str, user: str | None) -> None:
    """Start the execution that goes on from the newest one of the run.

    Raises:
        InvalidRequest: the run cannot go on so; nothing was changed.

    """
    described = await run.describe()
    request = _request(run.id, described.run_id, limits, by=by, reason=reason, user=user)
    if described.workflow_type not in WORKFLOWS:
        raise RunConflict(f"id {run.id!r} belongs to a workflow of type {described.workflow_type!r}")
    if described.parent_id is not None:
        raise InvalidRequest(
            f"run {run.id!r} was started by run {described.parent_id!r}; extend the root of the tree"
        )
    if described.status == WorkflowExecutionStatus.RUNNING:
        return await _check_repeated(run, request)
    origin = await _execution_to_extend(run, described.run_id, request)
    request = _from(request, origin)
    closed = await run.calls.describe(execution_id=origin)
    try:
        await ride_out(lambda: _start(run, closed, request))
    except WorkflowAlreadyStartedError:
        await _check_repeated(run, request)
    except RPCError as error:
        raise rpc_error(error) from error


def _request(workflow_id: str, execution_id: str, limits: Limits, **words: Any) -> ExtendRequest:
    fields: dict[str, Any] = {name: value for name, value in words.items() if value}
    # Only limits that were set: defaults would replace the run's own.
    fields["limits"] = limits.model_dump(mode="json", exclude_unset=True)
    fields["origin"] = {"workflow_id": workflow_id, "execution_id": execution_id}
    try:
        return ExtendRequest.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(f"extension: {explain(error)}") from None


async def _check_repeated(run: _ClosedRun, request: ExtendRequest) -> None:
    """Check that the run goes on by this extension, which was made before.

    Raises:
        InvalidRequest: it goes on by itself, or by another extension.

    """
    status = await run.status()
    newest = status.extensions[-1] if status.extensions else None
    if newest is not None and newest.is_of(by=request.by, reason=request.reason, limits=request.limits):
        return
    raise InvalidRequest(_why_not(run.id, status))


def _why_not(run_id: str, status: RunStatus) -> str:
    made = ""
    if status.extensions:
        newest = status.extensions[-1]
        made = f", extended by {newest.by or 'a person'} at {newest.at:%Y-%m-%d %H:%M:%S} UTC"
    return (
        f"run {run_id!r} is not over ({status.doing}{made}); only a run that a limit has ended is extended. "
        "Use resume or redrive for one that stands still, and send for one that works"
    )


async def _execution_to_extend(run: _ClosedRun, newest: str, request: ExtendRequest) -> str:
    """Return the execution from which the run goes on: the newest that has begun.

    Raises:
        InvalidRequest: it cannot go on from there; in the words of the closed run.

    """
    async for execution_id in _executions(run, newest):
        request = _from(request, execution_id)
        try:
            answer = await run.calls.query(
                EXTENDABLE, dict[str, str], request.to_json(), execution_id=execution_id
            )
        except InvalidRequest as error:
            described = await run.calls.describe(execution_id=execution_id)
            if described.status is None or described.status not in _CUT_OFF:
                raise
            status = described.status.name.lower().replace("_", " ")
            raise InvalidRequest(
                f"run {run.id!r} was {status}: only a run that a limit has ended is extended; start a new one"
            ) from error
        if answer["execution_id"] == execution_id:
            return execution_id
    raise InvalidRequest(f"run {run.id!r}: its newest {_MOST_REFUSED} executions never began")


async def _executions(run: _ClosedRun, newest: str) -> AsyncIterator[str]:
    """Yield the executions of the run, the newest first. The server's list may lack the newest for a moment."""
    yield newest
    quoted = run.id.replace("'", "''")
    listed = run.client.list_workflows(f"WorkflowId = '{quoted}'", limit=_MOST_REFUSED)
    async with run.calls.translate_errors():
        found = [execution async for execution in listed]
    for execution in sorted(found, key=lambda execution: execution.start_time, reverse=True):
        if execution.run_id != newest:
            yield execution.run_id


def _from(request: ExtendRequest, execution_id: str) -> ExtendRequest:
    origin = request.origin.model_copy(update={"execution_id": execution_id})
    return request.model_copy(update={"origin": origin})


async def _start(run: _ClosedRun, described: WorkflowExecutionDescription, request: ExtendRequest) -> None:
    await run.client.start_workflow(
        described.workflow_type,
        request.to_json(),
        id=run.id,
        task_queue=described.task_queue,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        # A repeated start of the run itself finds it by this memo.
        memo=dict(await described.memo()),
        static_summary=await described.static_summary(),
        priority=_priority_of(described),
    )


def _priority_of(described: WorkflowExecutionDescription) -> Priority:
    priority = described.raw_description.workflow_execution_info.priority
    return Priority(
        priority_key=priority.priority_key or None,
        fairness_key=priority.fairness_key or None,
        fairness_weight=priority.fairness_weight or None,
    )
