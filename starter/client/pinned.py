"""Open runs that are pinned to a version of their workers: finding, counting, moving and waking them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from google.protobuf.field_mask_pb2 import FieldMask
from temporalio.api.common.v1 import WorkflowExecution as ExecutionId
from temporalio.api.deployment.v1 import WorkerDeploymentVersion
from temporalio.api.workflow.v1 import VersioningOverride, WorkflowExecutionOptions
from temporalio.api.workflowservice.v1 import UpdateWorkflowExecutionOptionsRequest
from temporalio.client import Client, WorkflowExecution
from temporalio.service import RPCError, RPCStatusCode

from perdure.wire.names import SESSION_WORKFLOW, WAKE, WORKFLOWS

from . import visibility
from .errors import rpc_error

# Runs moved or woken at once.
_AT_ONCE: Final = 8

Kind = Literal["run", "session"]


@dataclass(frozen=True, kw_only=True)
class MovedRun:
    """Outcome for one run that was to be moved or woken."""

    id: str
    kind: Kind
    problem: str | None = None
    """Reason why it was not; None if it was."""


def _pinned_to(version: WorkerDeploymentVersion, types: Sequence[str], query: str | None) -> str:
    name = f"{version.deployment_name}:{version.build_id}"
    return visibility.join(
        visibility.is_of_type(types),
        visibility.OPEN,
        visibility.equals("TemporalWorkerDeploymentVersion", name),
        f"({query})" if query else None,
    )


async def list_pinned(
    temporal: Client,
    version: WorkerDeploymentVersion,
    *,
    types: Sequence[str] = WORKFLOWS,
    query: str | None = None,
) -> AsyncIterator[WorkflowExecution]:
    """Yield the open runs and sessions that are pinned to the version, the newest first."""
    try:
        async for execution in temporal.list_workflows(_pinned_to(version, types, query)):
            yield execution
    except RPCError as error:
        raise rpc_error(error) from error


async def count_pinned(temporal: Client, version: WorkerDeploymentVersion, workflow_type: str) -> int:
    """Return the number of open workflows of that type that are pinned to the version."""
    try:
        return (await temporal.count_workflows(_pinned_to(version, (workflow_type,), None))).count
    except RPCError as error:
        raise rpc_error(error) from error


async def move_runs(
    temporal: Client, version: WorkerDeploymentVersion, executions: Sequence[WorkflowExecution]
) -> list[MovedRun]:
    """Pin the runs to the version; each continues from where it is, as its history is replayed there."""
    # One-time: a later upgrade of the version applies to a moved run as to any run.
    once = VersioningOverride.OneTimeOverride(target_deployment_version=version)
    options = WorkflowExecutionOptions(versioning_override=VersioningOverride(one_time=once))

    async def move(execution: WorkflowExecution) -> None:
        await temporal.workflow_service.update_workflow_execution_options(
            UpdateWorkflowExecutionOptionsRequest(
                namespace=temporal.namespace,
                workflow_execution=ExecutionId(workflow_id=execution.id, run_id=execution.run_id),
                workflow_execution_options=options,
                update_mask=FieldMask(paths=["versioning_override"]),
                identity=temporal.identity,
            )
        )
        # The override counts from the next workflow task on. Without this signal, that may be days away.
        await _wake(temporal, execution)

    return await _apply(executions, move)


async def wake_runs(temporal: Client, executions: Sequence[WorkflowExecution]) -> list[MovedRun]:
    """Give each run a workflow task: idle sessions then move to the version of new sessions."""
    return await _apply(executions, lambda execution: _wake(temporal, execution))


async def _wake(temporal: Client, execution: WorkflowExecution) -> None:
    await temporal.get_workflow_handle(execution.id).signal(WAKE)


async def _apply(
    executions: Sequence[WorkflowExecution], action: Callable[[WorkflowExecution], Awaitable[None]]
) -> list[MovedRun]:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def apply(execution: WorkflowExecution) -> MovedRun:
        problem: str | None = None
        async with slots:
            try:
                await action(execution)
            except RPCError as error:
                # A run that ends between listing and moving is no failure of the move.
                problem = "it is over" if error.status == RPCStatusCode.NOT_FOUND else error.message
        kind: Kind = "session" if execution.workflow_type == SESSION_WORKFLOW else "run"
        return MovedRun(id=execution.id, kind=kind, problem=problem)

    return list(await asyncio.gather(*(apply(execution) for execution in executions)))
