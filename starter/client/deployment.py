"""Deployment: the builds of a worker deployment, which of them new runs go to, and the runs pinned to each.

A version is a deployment's name and a build id. A run is pinned to the version that it started on, and a
child run to its parent's. Routing decides about new runs only: the current build gets them all, but for the
share that is ramped to another build. The server holds all of this; the methods are thin over its service
calls.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

import temporalio.client
from temporalio.api.deployment.v1 import WorkerDeploymentVersion
from temporalio.api.enums.v1 import RoutingConfigUpdateState, VersionDrainageStatus
from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    DescribeWorkerDeploymentResponse,
    ListWorkerDeploymentsRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    SetWorkerDeploymentRampingVersionRequest,
)
from temporalio.client import WorkflowExecution
from temporalio.service import RPCError, RPCStatusCode

from perdure.errors import InvalidRequest
from perdure.messages import Value
from perdure.wire.names import SESSION_WORKFLOW, WORKFLOW, WORKFLOWS

from ...workers.connection import describe_task_queue
from .errors import rpc_error
from .pinned import MovedRun, count_pinned, list_pinned, move_runs, wake_runs

_T = TypeVar("_T")

BuildStatus = Literal["current", "ramping", "draining", "drained", "inactive"]

# Build id of workers without a version.
_UNVERSIONED: Final = ""
# Seconds until a worker that has just started polls all its task queues.
_READY_WITHIN: Final = 2.0
# Seconds for a change of routing to reach all partitions of all task queues; it takes some 100 ms.
_PROPAGATED_WITHIN: Final = 10.0
_PROPAGATING: Final = RoutingConfigUpdateState.ROUTING_CONFIG_UPDATE_STATE_IN_PROGRESS
_DRAINAGE: Final[dict[int, BuildStatus]] = {
    VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINING: "draining",
    VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINED: "drained",
}


class Build(Value):
    """Version of a deployment."""

    build: str
    status: BuildStatus
    """`draining`: it gets no new runs and has old ones; `inactive`: it never got any."""
    percent: float
    """Share of new runs that it gets."""
    runs: int
    """Open runs that are pinned to it, child runs included."""
    sessions: int
    """Open sessions that are pinned to it."""
    workers: int
    """Workers of it that polled the task queue within the last minute and a half."""
    current_until: datetime | None = None
    """End of the time when it was current; None if it is, or never was."""


class DeploymentStatus(Value):
    """A deployment at one moment."""

    name: str
    task_queue: str
    current: str | None
    """None: new runs that are not ramped go to workers without a version."""
    ramping: str | None
    percent: float
    """Share of new runs that the ramping build gets."""
    builds: list[Build]
    """The newest first."""


async def deployments(temporal: temporalio.client.Client) -> list[str]:
    """Return the names of all deployments of the namespace."""
    names: list[str] = []
    token = b""
    while True:
        request = ListWorkerDeploymentsRequest(namespace=temporal.namespace, next_page_token=token)
        page = await _call(temporal.workflow_service.list_worker_deployments(request))
        names += [deployment.name for deployment in page.worker_deployments]
        token = page.next_page_token
        if not token:
            return names


class Deployment:
    """Handle on a worker deployment, by its name."""

    def __init__(self, temporal: temporalio.client.Client, name: str, *, task_queue: str) -> None:
        self.name = name
        self._temporal = temporal
        self._service = temporal.workflow_service
        self._task_queue = task_queue

    # -- status

    async def status(self) -> DeploymentStatus:
        """Return its builds, their share of new runs, and the number of runs pinned to each.

        Raises:
            InvalidRequest: there is no such deployment.

        """
        info = (await self._describe()).worker_deployment_info
        routing, workers = info.routing_config, await self._count_workers()
        newest_first = sorted(
            info.version_summaries, key=lambda summary: _seconds(summary.create_time), reverse=True
        )
        builds = await asyncio.gather(*(self._build(summary, routing, workers) for summary in newest_first))
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
        version = self._version(build)
        runs, sessions = await asyncio.gather(
            *(count_pinned(self._temporal, version, kind) for kind in (WORKFLOW, SESSION_WORKFLOW))
        )
        # An unversioned deployment has the empty build id here, which no summary has.
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
            current_until=None if is_current else _time(summary.last_current_time),
        )

    def _version(self, build: str) -> WorkerDeploymentVersion:
        return WorkerDeploymentVersion(deployment_name=self.name, build_id=build)

    async def _count_workers(self) -> dict[str, int]:
        """Return the number of workers of each build that poll the task queue for workflow tasks."""
        queue = await _call(describe_task_queue(self._temporal, self._task_queue))
        identities: dict[str, set[str]] = {}
        # A worker polls with several pollers: they are one worker by their identity.
        for poller in queue.active_pollers(datetime.now(UTC)):
            deployment, _, build = (poller.version or _UNVERSIONED).partition(":")
            if deployment in (self.name, _UNVERSIONED):
                identities.setdefault(build, set()).add(poller.identity)
        return {build: len(workers) for build, workers in identities.items()}

    async def _describe(self) -> DescribeWorkerDeploymentResponse:
        request = DescribeWorkerDeploymentRequest(
            namespace=self._temporal.namespace, deployment_name=self.name
        )
        try:
            return await self._service.describe_worker_deployment(request)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise rpc_error(error) from error
        names = ", ".join(await deployments(self._temporal)) or "none at all"
        raise InvalidRequest(
            f"there is no deployment {self.name!r}: no worker of that name has ever polled in this "
            f"namespace; there is {names}. Start one: "
            f"perdure worker FILE --deployment {self.name} --build BUILD"
        )

    async def _describe_with(self, build: str | None) -> DescribeWorkerDeploymentResponse:
        """Return the description, which has that build; None stands for workers without a version.

        Raises:
            InvalidRequest: there is no such deployment or build.

        """
        description = await self._describe()
        builds = [
            summary.deployment_version.build_id
            for summary in description.worker_deployment_info.version_summaries
        ]
        if build is not None and build not in builds:
            raise InvalidRequest(
                f"deployment {self.name!r} has no build {build!r}: no worker of it has polled yet; "
                f"there are {', '.join(builds)}. Start one: "
                f"perdure worker FILE --deployment {self.name} --build {build}"
            )
        return description

    # -- routing of new runs

    async def promote(self, build: str | None, *, force: bool = False) -> str | None:
        """Send all new runs to a build, and return the build that had them.

        None stands for workers without a version. With `force`, no worker of the build need poll.

        Raises:
            InvalidRequest: there is no such deployment or build, or no worker of it polls.

        """
        description = await self._describe_with(build)
        if not force:
            await self._wait_for_workers(build)
        request = SetWorkerDeploymentCurrentVersionRequest(
            namespace=self._temporal.namespace,
            deployment_name=self.name,
            build_id=build or _UNVERSIONED,
            # The server refuses the change if the routing was changed since the description.
            conflict_token=description.conflict_token,
            identity=self._temporal.identity,
            allow_no_pollers=force,
            ignore_missing_task_queues=force,
        )
        response = await self._change_routing(
            lambda: self._service.set_worker_deployment_current_version(request), build
        )
        return response.previous_deployment_version.build_id or None

    async def ramp(self, build: str | None, percent: float, *, force: bool = False) -> None:
        """Send a share of new runs, in percent, to a build; None and 0 end the ramp.

        Raises:
            InvalidRequest: there is no such deployment or build, no worker of it polls, or it is current.

        """
        if not 0 <= percent <= 100:
            raise InvalidRequest(f"{percent:g} is no share of new runs: give a percentage from 0 to 100")
        description = await self._describe_with(build)
        current = description.worker_deployment_info.routing_config.current_deployment_version.build_id
        if build is not None and build == current:
            raise InvalidRequest(f"build {build!r} is current: it gets all new runs that are not ramped")
        if percent and not force:
            await self._wait_for_workers(build)
        request = SetWorkerDeploymentRampingVersionRequest(
            namespace=self._temporal.namespace,
            deployment_name=self.name,
            build_id=build or _UNVERSIONED,
            percentage=percent,
            conflict_token=description.conflict_token,
            identity=self._temporal.identity,
            allow_no_pollers=force,
            ignore_missing_task_queues=force,
        )
        await self._change_routing(
            lambda: self._service.set_worker_deployment_ramping_version(request), build
        )

    async def rollback(
        self, *, force: bool = False
    ) -> tuple[Literal["ramp", "current"], str | None, str | None]:
        """End the ramp or, if there is none, make the previous build current again.

        Return what was undone, of which build, and the build that gets its new runs (None: workers without
        a version).

        Raises:
            InvalidRequest: nothing ramps, and no other build was current before.

        """
        info = (await self._describe()).worker_deployment_info
        current = info.routing_config.current_deployment_version.build_id or None
        ramping = info.routing_config.ramping_deployment_version.build_id
        if ramping:
            await self.ramp(None, 0, force=force)
            return "ramp", ramping, current
        build = self._previous_build(info.version_summaries, current)
        # A second rollback would find the bad build as the previous one, and send runs to it again.
        if not force and current is not None and _is_newer(build, current, info.version_summaries):
            raise InvalidRequest(
                f"build {build!r} was current before {current!r}, but is the newer one: perhaps it was "
                "rolled back already. Nothing was changed. To make it current all the same: "
                f"perdure deploy promote {build}"
            )
        await self.promote(build, force=force)
        return "current", current, build

    def _previous_build(self, summaries: Iterable[Any], current: str | None) -> str:
        previous = [
            summary
            for summary in summaries
            if summary.deployment_version.build_id != current and summary.HasField("last_current_time")
        ]
        if not previous:
            raise InvalidRequest(
                f"nothing to roll back: no build of {self.name!r} ramps, and none was current before "
                f"{current!r}. To workers without a version: perdure deploy promote --unversioned"
            )
        newest = max(previous, key=lambda summary: _seconds(summary.last_current_time))
        build: str = newest.deployment_version.build_id
        return build

    async def _wait_for_workers(self, build: str | None) -> None:
        """Wait until a worker of the build polls: one may just have started.

        Raises:
            InvalidRequest: none does.

        """
        deadline = time.monotonic() + _READY_WITHIN
        while not (await self._count_workers()).get(build or _UNVERSIONED):
            if time.monotonic() > deadline:
                owner, options = f"of build {build!r}", f" --deployment {self.name} --build {build}"
                if build is None:
                    owner, options = "without a version", ""
                raise InvalidRequest(
                    f"no worker {owner} polls task queue {self._task_queue!r}: new runs would wait. "
                    f"Nothing was changed. Start one: perdure worker FILE{options}; or force it: --force"
                )
            await asyncio.sleep(0.2)

    async def _change_routing(self, call: Callable[[], Any], build: str | None) -> Any:
        """Make the change, and wait until all partitions of the task queues know it."""
        deadline = time.monotonic() + _READY_WITHIN
        while True:
            try:
                response = await call()
                await self._wait_until_propagated()
                return response
            except RPCError as error:
                if error.status != RPCStatusCode.FAILED_PRECONDITION:
                    raise rpc_error(error) from error
                refusal = error
            # The server refuses a build whose workers do not poll all its task queues yet.
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        raise InvalidRequest(
            f"the server does not send runs to build {build!r}: {refusal.message}. Nothing was changed. "
            "Start its workers, and wait until they are ready (perdure deploy status); or force it: --force"
        ) from refusal

    async def _wait_until_propagated(self) -> None:
        deadline = time.monotonic() + _PROPAGATED_WITHIN
        while time.monotonic() < deadline:
            info = (await self._describe()).worker_deployment_info
            if info.routing_config_update_state != _PROPAGATING:
                return
            await asyncio.sleep(0.05)

    # -- pinned runs

    async def pinned_runs(
        self, build: str, *, kinds: Sequence[str] = WORKFLOWS, query: str | None = None
    ) -> AsyncIterator[WorkflowExecution]:
        """Yield the open runs and sessions that are pinned to a build, the newest first.

        Raises:
            InvalidRequest: there is no such deployment or build, or the query is wrong.

        """
        await self._describe_with(build)
        async for execution in list_pinned(self._temporal, self._version(build), types=kinds, query=query):
            yield execution

    async def check_served(self, build: str) -> None:
        """Check that runs which are moved to the build would go on.

        Raises:
            InvalidRequest: there is no such deployment or build, or no worker of it polls.

        """
        await self._describe_with(build)
        if not (await self._count_workers()).get(build):
            raise InvalidRequest(
                f"no worker of build {build!r} polls task queue {self._task_queue!r}: moved runs would wait. "
                f"Start one: perdure worker FILE --deployment {self.name} --build {build}"
            )

    async def move(self, build: str, executions: Sequence[WorkflowExecution]) -> list[MovedRun]:
        """Move the runs to a build; each continues from where it is, as its history is replayed there."""
        return await move_runs(self._temporal, self._version(build), executions)

    async def wake(self, executions: Sequence[WorkflowExecution]) -> list[MovedRun]:
        """Wake the runs: a session between two turns then moves to the build of new sessions."""
        return await wake_runs(self._temporal, executions)


def _drainage(summary: Any) -> BuildStatus:
    return _DRAINAGE.get(summary.drainage_info.status, "inactive")


def _seconds(stamp: Any) -> float:
    return float(stamp.seconds) + float(stamp.nanos) / 1e9


def _time(stamp: Any) -> datetime | None:
    return stamp.ToDatetime(tzinfo=UTC) if _seconds(stamp) > 0 else None


async def _call(call: Awaitable[_T]) -> _T:
    try:
        return await call
    except RPCError as error:
        raise rpc_error(error) from error


def _is_newer(build: str, than: str, summaries: Iterable[Any]) -> bool:
    created = {summary.deployment_version.build_id: _seconds(summary.create_time) for summary in summaries}
    return created[build] > created.get(than, created[build])
