"""Deploys step by step: find a deployment, empty a build, warn of runs that wait for no worker."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import temporalio.client
from temporalio.client import WorkflowExecution

from perdure.errors import InvalidRequest
from perdure.wire.names import SESSION_WORKFLOW

from .deployment import Build, Deployment, DeploymentStatus, deployments
from .pinned import MovedRun

# Runs that are held in memory at a time.
_BATCH: Final = 500
_DRAIN_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Drained:
    """Result of a drain: sessions that were woken, and the build with what is left on it."""

    woken: int
    build: Build


async def find_deployment(
    temporal: temporalio.client.Client, name: str | None, *, task_queue: str
) -> Deployment:
    """Return the deployment of that name, or without a name the only one on the server.

    Raises:
        InvalidRequest: no name is given, and there is none or there are several.

    """
    if name is None:
        names = await deployments(temporal)
        if not names:
            raise InvalidRequest(
                "there is no worker deployment here: no worker with a version has polled; start one: "
                "perdure worker FILE --deployment NAME --build BUILD"
            )
        if len(names) > 1:
            raise InvalidRequest(
                f"there are several worker deployments: {', '.join(names)}; choose one: --deployment NAME"
            )
        [name] = names
    return Deployment(temporal, name, task_queue=task_queue)


async def drain(
    deployment: Deployment,
    build: str,
    *,
    query: str | None = None,
    within: timedelta = timedelta(seconds=10),
) -> Drained:
    """Wake the sessions of the build, so that idle ones move, and wait until they have, or for `within`.

    Sessions in a turn move when it ends; runs stay until they end.

    Raises:
        InvalidRequest: there is no such build, or it is current, so that sessions would move to it again.

    """
    before = find_build(await deployment.status(), build)
    if before is not None and before.status == "current":
        raise InvalidRequest(
            f"build {build!r} is current: new sessions go to it; promote another build first"
        )
    woken = 0
    pinned = deployment.pinned_runs(build, kinds=(SESSION_WORKFLOW,), query=query)
    async for batch in _batches(pinned):
        woken += sum(session.problem is None for session in await deployment.wake(batch))
    return Drained(woken=woken, build=await _wait_until_empty(deployment, build, within))


async def _wait_until_empty(deployment: Deployment, build: str, within: timedelta) -> Build:
    deadline = time.monotonic() + within.total_seconds()
    while True:
        left = find_build(await deployment.status(), build)
        assert left is not None, "its sessions have just been listed"
        if not left.sessions or time.monotonic() > deadline:
            return left
        await asyncio.sleep(_DRAIN_POLL_SECONDS)


async def move_all(
    deployment: Deployment, source: str, target: str, *, query: str | None = None, force: bool = False
) -> list[MovedRun]:
    """Move open runs and sessions from one build to another; return one outcome a run.

    Raises:
        InvalidRequest: both builds are the same, one is unknown, or without `force` no worker of the target
            polls.

    """
    if source == target:
        raise InvalidRequest(f"both builds are {source!r}; name two builds")
    if not force:
        await deployment.check_served(target)
    moved: list[MovedRun] = []
    async for batch in _batches(deployment.pinned_runs(source, query=query)):
        moved += await deployment.move(target, batch)
    return moved


async def _batches(executions: AsyncIterator[WorkflowExecution]) -> AsyncIterator[list[WorkflowExecution]]:
    """Yield the executions in lists of bounded length."""
    batch: list[WorkflowExecution] = []
    async for execution in executions:
        batch.append(execution)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def find_build(status: DeploymentStatus, build: str) -> Build | None:
    """Return the build of that id, or None."""
    return next((known for known in status.builds if known.build == build), None)


def warnings(status: DeploymentStatus) -> list[str]:
    """Return warnings about runs that wait for no worker, with what to do."""
    lines: list[str] = []
    if status.current is None:
        newest = status.builds[0].build if status.builds else "BUILD"
        lines.append(
            "no build is current: new runs go to workers without a version, and builds of this deployment "
            f"get only what ramps; perdure deploy promote {newest}"
        )
    for build in status.builds:
        if not build.workers and (build.percent > 0 or build.runs or build.sessions):
            effect = "new runs wait" if build.percent > 0 else "runs that are pinned to it wait"
            lines.append(
                f"no worker of build {build.build!r} polls task queue {status.task_queue!r}: {effect}"
            )
    return lines
