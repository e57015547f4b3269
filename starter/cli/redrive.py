"""The command `redrive`: list parked runs by cause, and let many of them go on at once."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .control import report_outcomes
from .options import DONE, Common, command, out, pretty, refuse, say

if TYPE_CHECKING:
    from ..client.listing import RunInfo


@command("redrive")
async def redrive(
    common: Common,
    *,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="The runs' ids.")] = None,
    cause: Annotated[
        str | None, typer.Option(help="Runs parked for this kind of error, or its beginning: auth.")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Runs of this agent.")] = None,
    user: Annotated[str | None, typer.Option(help="Runs on behalf of this user.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Runs parked for longer: 30m, 2h.")] = None,
    query: Annotated[str | None, typer.Option(help="Runs of a Temporal visibility query.")] = None,
    all: Annotated[bool, typer.Option("--all", help="All parked runs.")] = False,  # noqa: A002
    model: Annotated[str | None, typer.Option(help="Ask this model first: provider:model.")] = None,
    newest: Annotated[bool, typer.Option("--newest", help="With the agent's present version.")] = False,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="steps=100, cost_usd=5 ...")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="How many runs at most, the newest first.")] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs.")] = False,
) -> int:
    """Let parked runs go on from the step at which they stand, changed if you wish."""
    from .arguments import duration_of, limits_of

    filters: dict[str, Any] = {"cause": cause, "agent": agent, "user": user, "query": query}
    filters = {name: value for name, value in filters.items() if value is not None}
    if older_than is not None:
        filters["older_than"] = duration_of(older_than, "--older-than ")
    if bool(ids) == bool(filters or all):
        refuse(
            "name the runs one way: by their ids, or by --cause, --agent, --user, --older-than and --query, "
            "or by --all"
        )
    # Parsed before the first redrive: a wrong limit must change no run.
    limits = limits_of(limit or [])
    client = await common.connect()
    if ids and dry_run:
        checks = client.act_on(ids, lambda run: run.check_parked())
        return await report_outcomes(common, checks, "would go on")
    if not ids:
        # Of this task queue only: the runs of another team are not ours to redrive.
        parked = client.parked_runs(**filters, task_queue=client.task_queue, most=most)
        infos = [info async for info in parked]
        if dry_run or not infos:
            return _print_parked(common, infos)
        ids = [info.id for info in infos]
    outcomes = client.redrive(ids, model=model, newest=newest, limits=limits)
    return await report_outcomes(common, outcomes, "redriven")


def _print_parked(common: Common, infos: "list[RunInfo]") -> int:
    from .. import display
    from . import tables

    if common.json:
        out(common, [info.model_dump(mode="json") for info in infos])
        return DONE
    if not infos:
        say("no such run is parked")
        return DONE
    table = tables.new_table("ID", "AGENT", "PARKED FOR", "SINCE", "STEPS")
    for info in infos:
        since = display.age(info.parked_at) if info.parked_at else ""
        table.add_row(info.id, info.agent or "", info.parked_for or "", since, str(info.steps))
    pretty(table)
    causes = Counter(info.parked_for or "?" for info in infos)
    say(", ".join(f"{count} for {cause}" for cause, count in causes.most_common()))
    return DONE
