"""Commands for deploys: routing new runs to builds of the workers, and moving open ones between them."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from .options import DONE, FAILED, Common, app, command, out, pretty, refuse, say, say_error

if TYPE_CHECKING:
    from temporalio.client import WorkflowExecution

    from ..client.deployment import Build, Deployment, DeploymentStatus
    from ..client.pinned import MovedRun

_DRAIN_WITHIN: Final = 10.0
"""Seconds for woken sessions to move."""
_SHOWN: Final = 20
"""Ids that a dry run prints; with --json it prints all."""
_BATCH: Final = 500
"""Runs that are held in memory at a time."""

deploys = typer.Typer(name="deploy", help="Send runs to builds of the workers.", no_args_is_help=True)
app.add_typer(deploys)

Name = Annotated[
    str | None,
    typer.Option("--deployment", help="The worker deployment [PERDURE_DEPLOYMENT_NAME, or the only one]."),
]
Force = Annotated[bool, typer.Option("--force", help="Even if no worker of the build polls.")]
Query = Annotated[str | None, typer.Option(help="Only runs that this visibility query finds.")]
BuildId = Annotated[str, typer.Argument(metavar="BUILD", help="A build id.")]


@command("status", under=deploys)
async def status(common: Common, *, deployment: Name = None) -> None:
    """Show the builds: which is current, which ramps or drains, and what is pinned to each."""
    found = await (await _deployment(common, deployment)).status()
    if common.json:
        return out(common, found.model_dump(mode="json"))
    return _print_status(found)


@command("promote", under=deploys)
async def promote(
    common: Common,
    *,
    build: Annotated[str | None, typer.Argument(metavar="BUILD", help="A build id.")] = None,
    deployment: Name = None,
    unversioned: Annotated[
        bool, typer.Option("--unversioned", help="In place of a BUILD: workers without a version.")
    ] = False,
    force: Force = False,
) -> None:
    """Send all new runs to BUILD. Runs that are open stay where they are."""
    if (build is None) is not unversioned:
        refuse("name the build: perdure deploy promote BUILD, or --unversioned for workers without a version")
    found = await _deployment(common, deployment)
    before = await found.promote(build, force=force)
    text = f"all new runs go to {_name_build(build)} (before: {_name_build(before)})"
    out(common, {"deployment": found.name, "current": build, "before": before}, text)


@command("ramp", under=deploys)
async def ramp(
    common: Common,
    *,
    build: BuildId,
    percent: Annotated[float, typer.Argument(metavar="PERCENT", help="Share of new runs: 0 to 100.")],
    deployment: Name = None,
    force: Force = False,
) -> None:
    """Send PERCENT of new runs to BUILD, the rest to the current build."""
    found = await _deployment(common, deployment)
    await found.ramp(build, percent, force=force)
    plain = {"deployment": found.name, "ramping": build, "percent": percent}
    out(common, plain, f"{percent:g} % of new runs go to {_name_build(build)}")


@command("rollback", under=deploys)
async def rollback(common: Common, *, deployment: Name = None, force: Force = False) -> None:
    """End the ramp; if nothing ramps, promote the build that was current before."""
    found = await _deployment(common, deployment)
    undone, build, current = await found.rollback(force=force)
    stopped = f"no more new runs for {_name_build(build)}"
    ended = f"the ramp of {build!r} has ended" if undone == "ramp" else stopped
    plain = {"deployment": found.name, "undone": undone, "build": build, "current": current}
    out(common, plain, f"{ended}: all new runs go to {_name_build(current)}")


@command("drain", under=deploys)
async def drain(common: Common, *, build: BuildId, deployment: Name = None, query: Query = None) -> None:
    """Wake the sessions of BUILD, so that idle ones move to where new sessions go."""
    from perdure.wire.names import SESSION_WORKFLOW

    found = await _deployment(common, deployment)
    before = _find_build(await found.status(), build)
    if before is not None and before.status == "current":
        refuse(f"build {build!r} is current: new sessions go to it; promote another build first")
    woken = 0
    async for batch in _batches(found.pinned_runs(build, kinds=(SESSION_WORKFLOW,), query=query)):
        woken += sum(session.problem is None for session in await found.wake(batch))
    left = await _wait_until_drained(found, build)
    stay = f"; {left.runs} runs stay until they end" if left.runs else ""
    if left.sessions:
        stay += f"; {left.sessions} sessions are in a turn, or have not moved yet, and move when it ends"
    advice = f"; see perdure deploy move --from {build}" if stay else ""
    plain = {"build": build, "woken": woken, "sessions": left.sessions, "runs": left.runs}
    out(common, plain, f"woken: {woken} sessions of {build!r}{stay}{advice}")


@command("move", under=deploys)
async def move(
    common: Common,
    *,
    source: Annotated[str, typer.Option("--from", metavar="BUILD", help="The build that they leave.")],
    target: Annotated[str, typer.Option("--to", metavar="BUILD", help="The build that they go on at.")],
    deployment: Name = None,
    query: Query = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    force: Force = False,
) -> int:
    """Move open runs and sessions to another build. Check it first: perdure replay-check."""
    if source == target:
        refuse(f"--from and --to are both {source!r}; name two builds")
    found = await _deployment(common, deployment)
    if dry_run:
        return await _print_pinned(common, found, source, query)
    if not force:
        await found.check_served(target)
    moved: list[MovedRun] = []
    async for batch in _batches(found.pinned_runs(source, query=query)):
        moved += await found.move(target, batch)
    failed = [run for run in moved if run.problem is not None]
    plain = {"from": source, "to": target, "moved": len(moved) - len(failed)}
    problems = [{"id": run.id, "problem": run.problem} for run in failed]
    counts = _count_kinds([run for run in moved if run.problem is None])
    out(common, {**plain, "failed": problems}, f"moved from {source!r} to {target!r}: {counts}")
    for run in failed:
        say_error(f"{run.id} stays: {run.problem}")
    return FAILED if failed else DONE


async def _print_pinned(common: Common, found: "Deployment", source: str, query: str | None) -> int:
    ids: list[str] = []
    count = 0
    async for execution in found.pinned_runs(source, query=query):
        count += 1
        if common.json or len(ids) < _SHOWN:
            ids.append(execution.id)
    out(common, {"from": source, "would_move": ids}, "\n".join(ids))
    say(f"{count} would move; the newest are listed" if count > len(ids) else f"{count} would move")
    return DONE


# -- shared by the commands


async def _deployment(common: Common, name: str | None) -> "Deployment":
    """Return the deployment of that name, or of the settings, or the only one on the server.

    Raises:
        InvalidRequest: there is none, or none is named and there are several.

    """
    from perdure.settings import load_settings

    from ..client.deployment import Deployment, deployments

    client = await common.connect()
    name = name or load_settings().deployment_name
    if name is None:
        names = await deployments(client.temporal)
        if not names:
            refuse(
                "there is no worker deployment here: no worker with a version has polled; start one: "
                "perdure worker FILE --deployment NAME --build BUILD"
            )
        if len(names) > 1:
            refuse(f"there are several worker deployments: {', '.join(names)}; choose one: --deployment NAME")
        [name] = names
    return Deployment(client.temporal, name, task_queue=client.task_queue)


async def _batches(
    executions: "AsyncIterator[WorkflowExecution]",
) -> "AsyncIterator[list[WorkflowExecution]]":
    """Yield the executions in lists of bounded length."""
    batch: list[WorkflowExecution] = []
    async for execution in executions:
        batch.append(execution)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _wait_until_drained(found: "Deployment", build: str) -> "Build":
    """Wait until no session is pinned to the build, or they have had time to move; return the build."""
    deadline = time.monotonic() + _DRAIN_WITHIN
    while True:
        left = _find_build(await found.status(), build)
        assert left is not None, "its sessions have just been listed"
        if not left.sessions or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.5)


def _find_build(found: "DeploymentStatus", build: str) -> "Build | None":
    return next((known for known in found.builds if known.build == build), None)


def _name_build(build: str | None) -> str:
    return "workers without a version" if build is None else f"build {build!r}"


def _count_kinds(moved: "Sequence[MovedRun]") -> str:
    from .. import display

    sessions = sum(run.kind == "session" for run in moved)
    return f"{display.plural(len(moved) - sessions, 'run')}, {display.plural(sessions, 'session')}"


def _print_status(found: "DeploymentStatus") -> None:
    from .. import display
    from . import tables

    table = tables.new_table(
        *("BUILD", "STATUS", "NEW RUNS", "OPEN RUNS", "SESSIONS", "WORKERS", "LAST CURRENT"),
        right=("NEW RUNS", "OPEN RUNS", "SESSIONS", "WORKERS"),
    )
    for build in found.builds:
        since = display.age(build.current_until) if build.current_until else ""
        counts = (f"{build.percent:g} %", str(build.runs), str(build.sessions), str(build.workers))
        table.add_row(build.build, build.status, *counts, since)
    say(f"deployment {found.name}, task queue {found.task_queue}")
    pretty(table)
    for remark in remarks(found):
        say(remark)


def remarks(found: "DeploymentStatus") -> list[str]:
    """Return warnings about runs that wait for no worker, with what to do."""
    lines: list[str] = []
    if found.current is None:
        newest = found.builds[0].build if found.builds else "BUILD"
        lines.append(
            "no build is current: new runs go to workers without a version, and builds of this deployment "
            f"get only what ramps; perdure deploy promote {newest}"
        )
    for build in found.builds:
        if not build.workers and (build.percent > 0 or build.runs or build.sessions):
            effect = "new runs wait" if build.percent > 0 else "runs that are pinned to it wait"
            lines.append(
                f"no worker of build {build.build!r} polls task queue {found.task_queue!r}: {effect}"
            )
    return lines
