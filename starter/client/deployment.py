"""Deployment: the versions of a worker deployment, which is given new runs, and who is pinned to which.

Thin over Temporal's own service calls. A version is a deployment's name and a build id; a run is
pinned to the version that it started on, and a child run to its parent's.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

import temporalio.client
from google.protobuf.field_mask_pb2 import FieldMask
from temporalio.api.common.v1 import WorkflowExecution as Execution
from temporalio.api.deployment.v1 import WorkerDeploymentVersion
from temporalio.api.enums.v1 import RoutingConfigUpdateState, VersionDrainageStatus
from temporalio.api.workflow.v1 import VersioningOverride, WorkflowExecutionOptions
from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    DescribeWorkerDeploymentResponse,
    ListWorkerDeploymentsRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    SetWorkerDeploymentRampingVersionRequest,
    UpdateWorkflowExecutionOptionsRequest,
)
from temporalio.client import WorkflowExecution
from temporalio.service import RPCError, RPCStatusCode

from perdure.errors import InvalidRequest
from perdure.messages import Value
from perdure.wire.names import SESSION_WORKFLOW, WAKE, WORKFLOW, WORKFLOWS

from ...workers.connection import describe_task_queue
from .errors import rpc_error
from .visibility import quote

_Answer = TypeVar("_Answer")
_Act = Callable[[WorkflowExecution], Awaitable[None]]
Kind = Literal["run", "session"]
Routed = Literal["current", "ramping", "draining", "drained", "inactive"]

_AT_A_TIME: Final = 8
_UNVERSIONED: Final = ""
_POLLING_WITHIN: Final = 2.0
"""Seconds that a worker which has just started may need until it asks all its task queues."""
_SPREAD_WITHIN: Final = 10.0
"""Seconds for a change to reach all partitions of all task queues; it takes some 100 ms."""
_SPREADING: Final = RoutingConfigUpdateState.ROUTING_CONFIG_UPDATE_STATE_IN_PROGRESS
_DRAINAGE: Final[dict[int, Routed]] = {
    VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINING: "draining",
    VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINED: "drained",
}


class Build(Value):
    """One version of a deployment."""

    build: str
    status: Routed
    """Who is `draining` is given no new runs and has old ones; `inactive`: has never been given any."""
    percent: float
    """Of new runs."""
    runs: int
    """Open runs that are pinned to it, those below others included."""
    sessions: int
    """Open sessions that are pinned to it."""
    workers: int
    """That have asked the task queue for work within the last minute and a half."""
    current_until: datetime | None = None
    """When it was last current, if it is not any more."""


class DeploymentStatus(Value):
    """A deployment as it stands."""

    name: str
    task_queue: str
    current: str | None
    """None: new runs that are not ramped go to workers without a version."""
    ramping: str | None
    percent: float
    """Of new runs, to the ramping one."""
    builds: list[Build]
    """The newest first."""


@dataclass(frozen=True, kw_only=True)
class MovedRun:
    """What became of one run that was to be moved."""

    id: str
    kind: Kind
    problem: str | None = None
    """Why it stays; None: it has been moved."""


async def deployments(temporal: temporalio.client.Client) -> list[str]:
    """The names of all deployments of the namespace."""
    names: list[str] = []
    token = b""
    while True:
        asked = ListWorkerDeploymentsRequest(namespace=temporal.namespace, next_page_token=token)
        page = await _asked(temporal.workflow_service.list_worker_deployments(asked))
        names += [one.name for one in page.worker_deployments]
        token = page.next_page_token
        if not token:
            return names


class Deployment:
    """One worker deployment, by its name."""

    def __init__(self, temporal: temporalio.client.Client, name: str, *, task_queue: str) -> None:
        self.name = name
        self._temporal = temporal
        self._service = temporal.workflow_service
        self._task_queue = task_queue

    # -- looking

    async def status(self) -> DeploymentStatus:
        """Its versions, and who is pinned to each.

        Raises:
            InvalidRequest: there is no such deployment.

        """
        info = (await self._described()).worker_deployment_info
        routing, workers = info.routing_config, await self._workers()
        ordered = sorted(info.version_summaries, key=lambda one: _seconds(one.create_time), reverse=True)
        builds = await asyncio.gather(*(self._build(one, routing, workers) for one in ordered))
        return DeploymentStatus(
            name=self.name,
            task_queue=self._task_queue,
            current=routing.current_deployment_version.build_id or None,
            ramping=routing.ramping_deployment_version.build_id or None,
            percent=routing.ramping_version_percentage,
            builds=list(builds),
        )

    async def _build(self, summary: Any, routing: Any, workers: dict[str, int]) -> Build:
        build = summary.deployment_version.build_id
        runs, sessions = await asyncio.gather(
            *(self._count(build, kind) for kind in (WORKFLOW, SESSION_WORKFLOW))
        )
        is_current = build == routing.current_deployment_version.build_id
        is_ramping = build == routing.ramping_deployment_version.build_id
        ramped = routing.ramping_version_percentage
        return Build(
            build=build,
            status="current" if is_current else "ramping" if is_ramping else _drainage(summary),
            percent=100 - ramped if is_current else ramped if is_ramping else 0,
            runs=runs,
            sessions=sessions,
            workers=workers.get(build, 0),
            current_until=None if is_current else _when(summary.last_current_time),
        )

    async def _count(self, build: str, kind: str) -> int:
        counted = await _asked(self._temporal.count_workflows(self._pinned(build, (kind,))))
        return counted.count

    async def _workers(self) -> dict[str, int]:
        """How many workers of each build ask the task queue for workflow tasks; "": without a version."""
        queue = await _asked(describe_task_queue(self._temporal, self._task_queue))
        found: dict[str, set[str]] = {}
        for poller in queue.active_pollers(datetime.now(UTC)):
            deployment, _, build = (poller.version or _UNVERSIONED).partition(":")
            if deployment in (self.name, _UNVERSIONED):
                found.setdefault(build, set()).add(poller.identity)
        return {build: len(identities) for build, identities in found.items()}

    async def _described(self) -> DescribeWorkerDeploymentResponse:
        asked = DescribeWorkerDeploymentRequest(namespace=self._temporal.namespace, deployment_name=self.name)
        try:
            return await self._service.describe_worker_deployment(asked)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise rpc_error(error) from error
        there = ", ".join(await deployments(self._temporal)) or "none at all"
        raise InvalidRequest(
            f"there is no deployment {self.name!r}: no worker of that name has ever asked this namespace for "
            f"work; there is {there}. Start one: perdure worker FILE --deployment {self.name} --build BUILD"
        )

    async def _known(self, build: str) -> DescribeWorkerDeploymentResponse:
        """The description, in which that build is."""
        described = await self._described()
        known = [
            one.deployment_version.build_id for one in described.worker_deployment_info.version_summaries
        ]
        if build not in known:
            raise InvalidRequest(
                f"deployment {self.name!r} has no build {build!r}: no worker of it has asked for work yet; "
                f"there are {', '.join(known)}. Start one: "
                f"perdure worker FILE --deployment {self.name} --build {build}"
            )
        return described

    # -- who gets new runs

    async def promote(self, build: str | None, *, force: bool = False) -> str | None:
        """Send all new runs to that build (None: to workers without a version); gives who had them.

        With `force` even though no worker of it asks for work.

        Raises:
            InvalidRequest: no such deployment or build, or nobody of it asks for work.

        """
        described = await (self._described() if build is None else self._known(build))
        if not force:
            await self._asked_for_work(build)
        asked = SetWorkerDeploymentCurrentVersionRequest(
            namespace=self._temporal.namespace,
            deployment_name=self.name,
            build_id=build or "",
            conflict_token=described.conflict_token,
            identity=self._temporal.identity,
            allow_no_pollers=force,
            ignore_missing_task_queues=force,
        )
        done = await self._routed(lambda: self._service.set_worker_deployment_current_version(asked), build)
        return done.previous_deployment_version.build_id or None

    async def ramp(self, build: str | None, percent: float, *, force: bool = False) -> None:
        """Send so many of 100 new runs to that build; None and 0: end the ramp.

        Raises:
            InvalidRequest: no such deployment or build, nobody of it asks for work, or it is current.

        """
        if not 0 <= percent <= 100:
            raise InvalidRequest(f"{percent:g} is no share of new runs: give a percentage from 0 to 100")
        described = await (self._described() if build is None else self._known(build))
        current = described.worker_deployment_info.routing_config.current_deployment_version.build_id
        if build is not None and build == current:
            raise InvalidRequest(f"build {build!r} is current: it gets all new runs that are not ramped")
        if percent and not force:
            await self._asked_for_work(build)
        asked = SetWorkerDeploymentRampingVersionRequest(
            namespace=self._temporal.namespace,
            deployment_name=self.name,
            build_id=build or "",
            percentage=percent,
            conflict_token=described.conflict_token,
            identity=self._temporal.identity,
            allow_no_pollers=force,
            ignore_missing_task_queues=force,
        )
        await self._routed(lambda: self._service.set_worker_deployment_ramping_version(asked), build)

    async def rollback(
        self, *, force: bool = False
    ) -> tuple[Literal["ramp", "current"], str | None, str | None]:
        """End the ramp; where there is none, make current what was so before.

        Gives what was undone, of which build, and who gets its new runs (None: workers without a version).

        Raises:
            InvalidRequest: nothing ramps, and nothing was current before.

        """
        info = (await self._described()).worker_deployment_info
        current = info.routing_config.current_deployment_version.build_id or None
        ramping = info.routing_config.ramping_deployment_version.build_id
        if ramping:
            await self.ramp(None, 0, force=force)
            return "ramp", ramping, current
        before = [
            one
            for one in info.version_summaries
            if one.deployment_version.build_id != current and one.HasField("last_current_time")
        ]
        if not before:
            raise InvalidRequest(
                f"nothing to roll back: no build of {self.name!r} ramps, and none was current before "
                f"{current!r}. To workers without a version: perdure deploy promote --unversioned"
            )
        newest = max(before, key=lambda one: _seconds(one.last_current_time))
        build = newest.deployment_version.build_id
        if not force and current is not None and _newer(build, current, info.version_summaries):
            raise InvalidRequest(
                f"build {build!r} was current before {current!r}, but is the newer one: perhaps it was "
                "rolled back already. Nothing was changed. To make it current all the same: "
                f"perdure deploy promote {build}"
            )
        await self.promote(build, force=force)
        return "current", current, build

    async def _asked_for_work(self, build: str | None) -> None:
        """Make sure that somebody takes what is sent there; one that has just started is waited for."""
        deadline = time.monotonic() + _POLLING_WITHIN
        while not (await self._workers()).get(build or _UNVERSIONED):
            if time.monotonic() > deadline:
                who, start = f"build {build!r}", f" --deployment {self.name} --build {build}"
                if build is None:
                    who, start = "those without a version", ""
                raise InvalidRequest(
                    f"no worker of {who} asks task queue {self._task_queue!r} for work: new runs would wait. "
                    f"Nothing was changed. Start one: perdure worker FILE{start}; or force it: --force"
                )
            await asyncio.sleep(0.2)

    async def _routed(self, call: Callable[[], Any], build: str | None) -> Any:
        """Make the change, and wait until all of the server's task queues know of it."""
        deadline = time.monotonic() + _POLLING_WITHIN
        while True:
            try:
                done = await call()
                await self._spread()
                return done
            except RPCError as error:
                if error.status != RPCStatusCode.FAILED_PRECONDITION:
                    raise rpc_error(error) from error
                refused = error
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        raise InvalidRequest(
            f"the server does not send runs to build {build!r}: {refused.message}. Nothing was changed. "
            "Start its workers, and wait until they are ready (perdure deploy status); or force it: --force"
        ) from refused

    async def _spread(self) -> None:
        deadline = time.monotonic() + _SPREAD_WITHIN
        while time.monotonic() < deadline:
            info = (await self._described()).worker_deployment_info
            if info.routing_config_update_state != _SPREADING:
                return
            await asyncio.sleep(0.05)

    # -- those who are pinned

    def _pinned(self, build: str, kinds: Sequence[str] = WORKFLOWS, query: str | None = None) -> str:
        parts = [
            f"WorkflowType IN ({', '.join(quote(kind) for kind in kinds)})",
            'ExecutionStatus = "Running"',
            f"TemporalWorkerDeploymentVersion = {quote(f'{self.name}:{build}')}",
            *([f"({query})"] if query else []),
        ]
        return " AND ".join(parts)

    async def pinned_runs(
        self, build: str, *, kinds: Sequence[str] = WORKFLOWS, query: str | None = None
    ) -> AsyncIterator[WorkflowExecution]:
        """Open runs and sessions that are pinned to that build, the newest first.

        Raises:
            InvalidRequest: no such deployment or build, or a query that is none.

        """
        await self._known(build)
        try:
            async for execution in self._temporal.list_workflows(self._pinned(build, kinds, query)):
                yield execution
        except RPCError as error:
            raise rpc_error(error) from error

    async def check_served(self, build: str) -> None:
        """Make sure that somebody would go on with what is moved there.

        Raises:
            InvalidRequest: no such deployment or build, or no worker of it asks for work.

        """
        await self._known(build)
        if not (await self._workers()).get(build):
            raise InvalidRequest(
                f"no worker of build {build!r} asks task queue {self._task_queue!r} for work: what is moved "
                f"there would wait. Start one: perdure worker FILE --deployment {self.name} --build {build}"
            )

    async def move(self, build: str, executions: Sequence[WorkflowExecution]) -> list[MovedRun]:
        """Have these go on at that build, each from where it stands: its history is replayed there."""
        return await self._each(executions, lambda one: self._move(one, build))

    async def wake(self, executions: Sequence[WorkflowExecution]) -> list[MovedRun]:
        """Have these look around: a session between two turns then goes on where new sessions go."""
        return await self._each(executions, self._wake)

    async def _each(self, executions: Sequence[WorkflowExecution], act: _Act) -> list[MovedRun]:
        door = asyncio.Semaphore(_AT_A_TIME)

        async def one(execution: WorkflowExecution) -> MovedRun:
            problem: str | None = None
            async with door:
                try:
                    await act(execution)
                except RPCError as error:
                    gone = error.status == RPCStatusCode.NOT_FOUND
                    problem = "it is over" if gone else error.message
            kind: Kind = "session" if execution.workflow_type == SESSION_WORKFLOW else "run"
            return MovedRun(id=execution.id, kind=kind, problem=problem)

        return list(await asyncio.gather(*(one(execution) for execution in executions)))

    async def _move(self, execution: WorkflowExecution, build: str) -> None:
        version = WorkerDeploymentVersion(deployment_name=self.name, build_id=build)
        once = VersioningOverride.OneTimeOverride(target_deployment_version=version)
        await self._service.update_workflow_execution_options(
            UpdateWorkflowExecutionOptionsRequest(
                namespace=self._temporal.namespace,
                workflow_execution=Execution(workflow_id=execution.id, run_id=execution.run_id),
                workflow_execution_options=WorkflowExecutionOptions(
                    versioning_override=VersioningOverride(one_time=once)
                ),
                update_mask=FieldMask(paths=["versioning_override"]),
                identity=self._temporal.identity,
            )
        )
        await self._wake(execution)  # else it would stay where it is until something happens to it

    async def _wake(self, execution: WorkflowExecution) -> None:
        await self._temporal.get_workflow_handle(execution.id).signal(WAKE)


def _drainage(summary: Any) -> Routed:
    return _DRAINAGE.get(summary.drainage_info.status, "inactive")


def _seconds(stamp: Any) -> float:
    return float(stamp.seconds) + float(stamp.nanos) / 1e9


def _when(stamp: Any) -> datetime | None:
    return stamp.ToDatetime(tzinfo=UTC) if _seconds(stamp) > 0 else None


async def _asked(call: Awaitable[_Answer]) -> _Answer:
    try:
        return await call
    except RPCError as error:
        raise rpc_error(error) from error


def _newer(build: str, than: str, summaries: Iterable[Any]) -> bool:
    """Whether workers of that build came after those of the other."""
    created = {one.deployment_version.build_id: _seconds(one.create_time) for one in summaries}
    return created[build] > created.get(than, created[build])
