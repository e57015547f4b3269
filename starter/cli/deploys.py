"""Commands for deploys: which build of the workers is given new runs, and who is pinned to which."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from .options import DONE, FAILED, Common, app, command, out, pretty, refuse, say, say_error

if TYPE_CHECKING:
    from temporalio.client import WorkflowExecution

    from ..client.deployment import Build, Deployment, DeploymentStatus, MovedRun

_SETTLED_WITHIN: Final = 10.0
_SHOWN: Final = 20
_BATCH: Final = 500
"""So many runs are held in memory at a time."""

deploys = typer.Typer(name="deploy", help="Send runs to builds of the workers.", no_args_is_help=True)
app.add_typer(deploys)

Name = Annotated[
    str | None,
    typer.Option("--deployment", help="The worker deployment [PERDURE_DEPLOYMENT_NAME, or the only one]."),
]
Force = Annotated[bool, typer.Option("--force", help="Even though no worker of it asks for work.")]
Query = Annotated[str | None, typer.Option(help="Only those that this visibility query finds too.")]
BuildId = Annotated[str, typer.Argument(metavar="BUILD", help="A build id.")]


@command("status", under=deploys)
async def status(common: Common, *, deployment: Name = None) -> None:
    """Show the builds: which is current, which ramps, who drains, and who is pinned to each."""
    found = await (await _deployment(common, deployment)).status()
    if common.json:
        return out(common, found.model_dump(mode="json"))
    return _show(found)


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
        refuse("promote what? Give a BUILD, or --unversioned for workers without a version")
    found = await _deployment(common, deployment)
    before = await found.promote(build, force=force)
    words = f"all new runs go to {_words(build)} (before: {_words(before)})"
    out(common, {"deployment": found.name, "current": build, "before": before}, words)


@command("ramp", under=deploys)
async def ramp(
    common: Common,
    *,
    build: BuildId,
    percent: Annotated[float, typer.Argument(metavar="PERCENT", help="Of new runs: 0 to 100.")],
    deployment: Name = None,
    force: Force = False,
) -> None:
    """Send PERCENT of new runs to BUILD, the others to the current one."""
    found = await _deployment(common, deployment)
    await found.ramp(build, percent, force=force)
    plain = {"deployment": found.name, "ramping": build, "percent": percent}
    out(common, plain, f"{percent:g} % of new runs go to {_words(build)}")


@command("rollback", under=deploys)
async def rollback(common: Common, *, deployment: Name = None, force: Force = False) -> None:
    """End the ramp; where nothing ramps, promote what was current before."""
    found = await _deployment(common, deployment)
    undone, build, current = await found.rollback(force=force)
    ended = (
        f"the ramp of {build!r} has ended" if undone == "ramp" else f"no more new runs for {_words(build)}"
    )
    plain = {"deployment": found.name, "undone": undone, "build": build, "current": current}
    out(common, plain, f"{ended}: all new runs go to {_words(current)}")


@command("drain", under=deploys)
async def drain(common: Common, *, build: BuildId, deployment: Name = None, query: Query = None) -> None:
    """Wake the sessions of BUILD: those between two turns go on where new sessions go."""
    from perdure.wire.names import SESSION_WORKFLOW

    found = await _deployment(common, deployment)
    before = _named(await found.status(), build)
    if before is not None and before.status == "current":
        refuse(f"build {build!r} is current: new sessions go to it; promote another one first")
    woken = 0
    async for batch in _batches(found.pinned_runs(build, kinds=(SESSION_WORKFLOW,), query=query)):
        woken += sum(one.problem is None for one in await found.wake(batch))
    left = await _settled(found, build)
    stay = f"; {left.runs} runs stay until they end" if left.runs else ""
    if left.sessions:
        stay += f"; {left.sessions} sessions are in a turn or not there yet, and move when it ends"
    hint = f"; see perdure deploy move --from {build}" if stay else ""
    plain = {"build": build, "woken": woken, "sessions": left.sessions, "runs": left.runs}
    out(common, plain, f"woken: {woken} sessions of {build!r}{stay}{hint}")


@command("move", under=deploys)
async def move(
    common: Common,
    *,
    source: Annotated[str, typer.Option("--from", metavar="BUILD", help="Where they are.")],
    target: Annotated[str, typer.Option("--to", metavar="BUILD", help="Where they are to go on.")],
    deployment: Name = None,
    query: Query = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which they are.")] = False,
    force: Force = False,
) -> int:
    """Have open runs and sessions of one build go on at another. Check before: perdure replay-check."""
    if source == target:
        refuse(f"--from and --to are both {source!r}")
    found = await _deployment(common, deployment)
    if dry_run:
        return await _dry(common, found, source, query)
    if not force:
        await found.check_served(target)
    moved: list[MovedRun] = []
    async for batch in _batches(found.pinned_runs(source, query=query)):
        moved += await found.move(target, batch)
    failed = [one for one in moved if one.problem is not None]
    plain = {"from": source, "to": target, "moved": len(moved) - len(failed)}
    problems = [{"id": one.id, "problem": one.problem} for one in failed]
    words = f"moved from {source!r} to {target!r}: {_tally([one for one in moved if not one.problem])}"
    out(common, {**plain, "failed": problems}, words)
    for one in failed:
        say_error(f"{one.id} stays: {one.problem}")
    return FAILED if failed else DONE


async def _dry(common: Common, found: "Deployment", source: str, query: str | None) -> int:
    ids: list[str] = []
    count = 0
    async for execution in found.pinned_runs(source, query=query):
        count += 1
        if common.json or len(ids) < _SHOWN:
            ids.append(execution.id)
    out(common, {"from": source, "would_move": ids}, "\n".join(ids))
    say(f"{count} would be moved; those above are the newest" if count > len(ids) else f"{count} would move")
    return DONE


# -- what they share


async def _deployment(common: Common, name: str | None) -> "Deployment":
    """The deployment meant: the one named, that of the settings, or the only one there is."""
    from perdure.settings import load_settings

    from ..client.deployment import Deployment, deployments

    client = await common.connect()
    name = name or load_settings().deployment_name
    if name is None:
        there = await deployments(client.temporal)
        if not there:
            refuse(
                "there is no worker deployment here: no worker with a version has asked for work; start one: "
                "perdure worker FILE --deployment NAME --build BUILD"
            )
        if len(there) > 1:
            refuse(f"which deployment? There are {', '.join(there)}: --deployment NAME")
        [name] = there
    return Deployment(client.temporal, name, task_queue=client.task_queue)


async def _batches(
    executions: "AsyncIterator[WorkflowExecution]",
) -> "AsyncIterator[list[WorkflowExecution]]":
    """What is listed, in lists of bounded length."""
    batch: list[WorkflowExecution] = []
    async for execution in executions:
        batch.append(execution)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _settled(found: "Deployment", build: str) -> "Build":
    """The build, once no session is pinned to it any more, or when they have had time to move."""
    deadline = time.monotonic() + _SETTLED_WITHIN
    while True:
        left = _named(await found.status(), build)
        assert left is not None, "it was there a moment ago"
        if not left.sessions or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.5)


def _named(found: "DeploymentStatus", build: str) -> "Build | None":
    return next((one for one in found.builds if one.build == build), None)


def _words(build: str | None) -> str:
    return "workers without a version" if build is None else f"build {build!r}"


def _tally(moved: "Sequence[MovedRun]") -> str:
    from .. import display

    sessions = sum(one.kind == "session" for one in moved)
    return f"{display.plural(len(moved) - sessions, 'run')}, {display.plural(sessions, 'session')}"


def _show(found: "DeploymentStatus") -> None:
    from .. import display
    from . import tables

    table = tables.new_table(
        *("BUILD", "STATUS", "NEW RUNS", "OPEN RUNS", "SESSIONS", "WORKERS", "LAST CURRENT"),
        right=("NEW RUNS", "OPEN RUNS", "SESSIONS", "WORKERS"),
    )
    for one in found.builds:
        since = display.age(one.current_until) if one.current_until else ""
        counts = (f"{one.percent:g} %", str(one.runs), str(one.sessions), str(one.workers))
        table.add_row(one.build, one.status, *counts, since)
    say(f"deployment {found.name}, task queue {found.task_queue}")
    pretty(table)
    for remark in remarks(found):
        say(remark)


def remarks(found: "DeploymentStatus") -> list[str]:
    """What a person should know of that status."""
    said: list[str] = []
    if found.current is None:
        newest = found.builds[0].build if found.builds else "BUILD"
        said.append(
            "no build is current: new runs go to workers without a version, and nothing is given to those of "
            f"this deployment but what ramps; perdure deploy promote {newest}"
        )
    for one in found.builds:
        if not one.workers and (one.percent > 0 or one.runs or one.sessions):
            waits = "new runs wait" if one.percent > 0 else "who is pinned to it waits"
            said.append(
                f"no worker of build {one.build!r} asks task queue {found.task_queue!r} for work: {waits}"
            )
    return said
