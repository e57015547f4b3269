"""The command for parked runs: which there are, and why; and let them go on, many at once."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from .control import each
from .options import DONE, Common, command, out, pretty, refuse, say

if TYPE_CHECKING:
    from ..client.connect import RunInfo
    from ..client.run import Run


@command("redrive")
async def redrive(
    common: Common,
    *,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="The runs' ids.")] = None,
    cause: Annotated[str | None, typer.Option(help="Those parked for this kind of error.")] = None,
    agent: Annotated[str | None, typer.Option(help="Those of this agent.")] = None,
    user: Annotated[str | None, typer.Option(help="Those on behalf of this user.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Those parked for longer: 30m, 2h.")] = None,
    query: Annotated[str | None, typer.Option(help="Those of a Temporal visibility query.")] = None,
    all: Annotated[bool, typer.Option("--all", help="All that are parked.")] = False,  # noqa: A002
    model: Annotated[str | None, typer.Option(help="Ask this model first: provider:model.")] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="With the agent as its worker has it now.")
    ] = False,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="steps=100, cost_usd=5 ...")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which they are.")] = False,
) -> int:
    """Let parked runs go on, from exactly where they stand; changed, if you wish."""
    from .arguments import duration_of, limits_of

    chosen: dict[str, Any] = {"cause": _cause(cause), "agent": agent, "user": user, "query": query}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if older_than is not None:
        chosen["older_than"] = duration_of(older_than, "--older-than ")
    if bool(ids) == bool(chosen or all):
        refuse(
            "say which runs, one way: their ids, or --cause, --agent, --user, --older-than, --query, or --all"
        )
    limits = limits_of(limit or [])
    if ids and dry_run:
        return await each(common, ids, "would go on", _check_parked)
    if not ids:
        client = await common.connect()
        # Of this task queue only: another team's runs are another team's.
        parked = client.parked_runs(**chosen, task_queue=client.task_queue, most=most)
        found = [info async for info in parked]
        if dry_run or not found:
            return _tell(common, found)
        ids = [info.id for info in found]
    return await each(
        common, ids, "redriven", lambda run: run.redrive(model=model, newest=newest, limits=limits)
    )


async def _check_parked(run: "Run") -> None:
    from perdure.errors import InvalidRequest

    status = await run.status()
    if status.status != "parked":
        raise InvalidRequest(f"run {run.id!r} is not parked: it is {status.doing}")


def _cause(word: str | None) -> str | None:
    from perdure.errors import ErrorKind

    known = [kind for kind in get_args(ErrorKind) if word is not None and kind.startswith(word)]
    if word is None or word in known:
        return word
    if len(known) == 1:  # "auth" is plain enough
        return str(known[0])
    return refuse(f"--cause {word!r}: there are {', '.join(get_args(ErrorKind))}")


def _tell(common: Common, found: "list[RunInfo]") -> int:
    from .. import display
    from . import tables

    if common.json:
        out(common, [info.model_dump(mode="json") for info in found])
        return DONE
    if not found:
        say("no such run is parked")
        return DONE
    table = tables.new_table("ID", "AGENT", "PARKED FOR", "SINCE", "STEPS")
    for info in found:
        since = display.age(info.parked_at) if info.parked_at else ""
        table.add_row(info.id, info.agent or "", info.parked_for or "", since, str(info.steps))
    pretty(table)
    causes = Counter(info.parked_for or "?" for info in found)
    say(", ".join(f"{count} for {cause}" for cause, count in causes.most_common()))
    return DONE
