"""Commands for deploys: routing new runs to builds of the workers, and moving open ones between them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from .options import DONE, FAILED, Common, app, command, out, pretty, refuse, say, say_error

if TYPE_CHECKING:
    from ..client.deployment import Deployment, DeploymentStatus
    from ..client.pinned import MovedRun

_SHOWN: Final = 20
"""Ids that a dry run prints; with --json it prints all."""

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
    # Exactly one of the two: no build must not mean "no version" by accident.
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
    from ..client import rollout

    drained = await rollout.drain(await _deployment(common, deployment), build, query=query)
    left = drained.build
    stay = f"; {left.runs} runs stay until they end" if left.runs else ""
    if left.sessions:
        stay += f"; {left.sessions} sessions are in a turn, or have not moved yet, and move when it ends"
    advice = f"; see perdure deploy move --from {build}" if stay else ""
    plain = {"build": build, "woken": drained.woken, "sessions": left.sessions, "runs": left.runs}
    out(common, plain, f"woken: {drained.woken} sessions of {build!r}{stay}{advice}")


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
    from ..client import rollout

    found = await _deployment(common, deployment)
    if dry_run:
        return await _print_pinned(common, found, source, query)
    moved = await rollout.move_all(found, source, target, query=query, force=force)
    failed = [run for run in moved if run.problem is not None]
    plain = {"from": source, "to": target, "moved": len(moved) - len(failed)}
    problems = [{"id": run.id, "problem": run.problem} for run in failed]
    counts = _count_kinds([run for run in moved if run.problem is None])
    out(common, {**plain, "failed": problems}, f"moved from {source!r} to {target!r}: {counts}")
    for run in failed:
        say_error(f"{run.id} stays: {run.problem}")
    return FAILED if failed else DONE


async def _print_pinned(common: Common, found: "Deployment", source: str, query: str | None) -> int:
    # Without --json they are counted, not kept: there may be a hundred thousand of them.
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

    from ..client.rollout import find_deployment

    client = await common.connect()
    name = name or load_settings().deployment_name
    return await find_deployment(client.temporal, name, task_queue=client.task_queue)


def _name_build(build: str | None) -> str:
    return "workers without a version" if build is None else f"build {build!r}"


def _count_kinds(moved: "Sequence[MovedRun]") -> str:
    from .. import display

    sessions = sum(run.kind == "session" for run in moved)
    return f"{display.plural(len(moved) - sessions, 'run')}, {display.plural(sessions, 'session')}"


def _print_status(found: "DeploymentStatus") -> None:
    from .. import display
    from ..client import rollout
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
    for warning in rollout.warnings(found):
        say(warning)
