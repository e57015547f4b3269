"""Commands that start runs and look at them: run, watch, list, show, transcript."""

from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from .options import CODES, DONE, Common, Id, command, out, pretty, refuse, say

if TYPE_CHECKING:
    from ..client.connect import Client


@command("run", epilog=CODES)
async def run_(
    common: Common,
    *,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.")],
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help='Its task; "-" reads stdin.')] = None,
    file: Annotated[str | None, typer.Option(help="Read the prompt from this file.")] = None,
    id: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="The run's id: the same id and prompt again give the same run.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="The user on whose behalf it runs.")] = None,
    role: Annotated[list[str] | None, typer.Option(help="A role for policies; may be repeated.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="steps=3, cost_usd=0.5, timeout=2m, per_tool.refund=1 ..."),
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For tools: key=text, or key:=json.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it and print its id.")] = False,
    rerun: Annotated[bool, typer.Option("--rerun", help="Start again an id whose run is over.")] = False,
) -> int:
    """Start a run and follow it to its end."""
    from .arguments import context_of, limits_of, read_prompt
    from .follow import follow

    request: dict[str, Any] = {
        "id": id,
        "user": user,
        "roles": role or [],
        "limits": limits_of(limit or []),
        "context": context_of(context or []),
        "rerun": rerun,
    }
    text = read_prompt(prompt, file)
    client = await common.connect()
    await _check_worker(client, required=not detach)
    started = await client.start(agent, text, **request)
    if detach:
        out(common, {"id": started.id}, started.id)
        return DONE
    say(f"run {started.id}")
    return await follow(client, started, common, leaves_unserved=True)


async def _check_worker(client: "Client", *, required: bool) -> None:
    """Check that a worker would take the run; without one warn, or refuse where it is required.

    Raises:
        NotReachable: no worker polls, and one is required.

    """
    from perdure.errors import NotReachable

    from .follow import no_worker_message

    if await client.wait_for_worker():
        return
    if required:
        message = no_worker_message(client.task_queue)
        raise NotReachable(f"{message}; to start the run all the same, add --detach")
    say(no_worker_message(client.task_queue))


@command("watch")
async def watch(common: Common, id: Id) -> int:  # noqa: A002 - the argument's name
    """Follow a run and those below it, from its beginning to its end."""
    from .follow import follow

    client = await common.connect()
    run = client.get(id)
    # A mistyped id is refused before the screen is taken.
    await run.describe()
    return await follow(client, run, common)


@command("list")
async def list_(
    common: Common,
    *,
    status: Annotated[str | None, typer.Option(help="Only runs of this status.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only runs of this agent.")] = None,
    user: Annotated[str | None, typer.Option(help="Only runs on behalf of this user.")] = None,
    query: Annotated[str | None, typer.Option(help="A Temporal visibility query.")] = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only runs that wait for a person.")] = False,
    most: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 50,
    all: Annotated[  # noqa: A002 - the option's name
        bool, typer.Option("--all", help="Also runs that another run started.")
    ] = False,
) -> None:
    """List runs that people and programs started; with --all, the runs below them too."""
    from . import tables

    client = await common.connect()
    # Lists come from the server's index: no worker is asked, so they work without one.
    find = client.waiting if waiting else client.list
    found = find(
        status=_check_status(status),
        agent=agent,
        user=user,
        query=query,
        task_queue=common.task_queue,
        most=most,
        roots=not all,
    )
    infos = await client.explain_unbegun([info async for info in found])
    if common.json:
        return out(common, [info.model_dump(mode="json") for info in infos])
    if not infos:
        return say("no such run")
    return pretty(tables.runs(infos), *tables.unbegun_lines(infos))


def _check_status(status: str | None) -> Any:
    """Return the status if lists know it.

    Raises:
        InvalidRequest: they do not.

    """
    from perdure.wire.results import ListedStatus

    known = get_args(ListedStatus)
    if status is not None and status not in known:
        refuse(f"--status {status!r}: no such status; choose one of {', '.join(known)}")
    return status


@command("show")
async def show_(common: Common, id: Id) -> None:  # noqa: A002
    """Show a run: its status, runs below, steps, cost, and what it waits for."""
    from .inspect import inspection_parts

    client = await common.connect()
    inspection = await client.get(id).inspect()
    if common.json:
        return out(common, inspection.plain())
    return pretty(*inspection_parts(inspection))


@command("transcript")
async def transcript(common: Common, id: Id) -> None:  # noqa: A002
    """Print the messages of a run."""
    from rich.text import Text

    from . import tables

    client = await common.connect()
    messages = await client.get(id).transcript()
    if common.json:
        return out(common, [message.model_dump(mode="json") for message in messages])
    parts = [part for message in messages for part in tables.message_parts(message)]
    return pretty(*(Text.assemble((f"{head}\n", "bold"), f"{text}\n") for head, text in parts))
