"""Commands that start runs and look at them."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import typer

from .options import CODES, DONE, Common, Id, command, out, pretty, refuse, say

if TYPE_CHECKING:
    from ..client.connect import Client

_WAITING: Final = 'AgentStatus IN ("waiting_approval", "waiting_person", "parked")'


@command("run", epilog=CODES)
async def run_(
    common: Common,
    *,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.")],
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help='What it is to do; "-" reads stdin.')
    ] = None,
    file: Annotated[str | None, typer.Option(help="Read the prompt from this file.")] = None,
    id: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="The run's id: the same id and prompt again give the same run.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="On whose behalf.")] = None,
    role: Annotated[list[str] | None, typer.Option(help="A role for policies; may be repeated.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="steps=3, cost_usd=0.5, timeout=2m, per_tool.refund=1 ..."),
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For tools: key=text, or key:=json.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it and print its id.")] = False,
    rerun: Annotated[bool, typer.Option("--rerun", help="Start anew an id that is over.")] = False,
) -> int:
    """Start a run and follow it to its end."""
    from .arguments import context_of, limits_of, prompt_of
    from .follow import follow

    request: dict[str, Any] = {
        "id": id,
        "user": user,
        "roles": role or [],
        "limits": limits_of(limit or []),
        "context": context_of(context or []),
        "rerun": rerun,
    }
    words = prompt_of(prompt, file)
    client = await common.connect()
    await _look_for_worker(client, refuses=not detach)
    started = await client.start(agent, words, **request)
    if detach:
        out(common, {"id": started.id}, started.id)
        return DONE
    say(f"run {started.id}")
    return await follow(client, started, common)


async def _look_for_worker(client: "Client", *, refuses: bool) -> None:
    """Refuse, or warn of, a run that nobody would begin with.

    Asked a few times: a server that has just started hears of its workers within a second.

    Raises:
        NotReachable: nobody works, and that is to be refused.

    """
    from perdure.errors import NotReachable

    from .follow import no_worker

    for _ in range(10):
        if await client.has_worker():
            return
        await asyncio.sleep(0.2)
    if refuses:
        raise NotReachable(f"{no_worker(client.task_queue)}, or let the run wait for one: --detach")
    say(no_worker(client.task_queue))


@command("watch")
async def watch(common: Common, id: Id) -> int:  # noqa: A002 - the argument's name
    """Follow a run that goes on, and those below it, from its beginning to its end."""
    from .follow import follow

    client = await common.connect()
    run = client.get(id)
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
    """List runs that people and programs started; with --all, those below them too."""
    from . import tables

    if waiting:
        query = " AND ".join(
            [f'{_WAITING} AND ExecutionStatus = "Running"', *([f"({query})"] if query else [])]
        )
    client = await common.connect()
    found = client.list(status=_status(status), agent=agent, user=user, query=query, most=most, roots=not all)
    infos = [info async for info in found]
    if common.json:
        return out(common, [info.model_dump(mode="json") for info in infos])
    if not infos:
        return say("no such run")
    return pretty(tables.runs(infos))


def _status(word: str | None) -> Any:
    from perdure.wire.results import ListedStatus

    known = get_args(ListedStatus)
    if word is not None and word not in known:
        refuse(f"--status {word!r}: there are {', '.join(known)}")
    return word


@command("show")
async def show_(common: Common, id: Id) -> None:  # noqa: A002
    """Show a run: where it is, what it runs, its steps, what it cost, what it waits for."""
    from .inspect import look_at

    client = await common.connect()
    looked = await look_at(client.get(id))
    if common.json:
        return out(common, looked.plain())
    return pretty(*looked.pretty())


@command("transcript")
async def transcript(common: Common, id: Id) -> None:  # noqa: A002
    """Print the messages of a run."""
    from rich.text import Text

    from . import tables

    client = await common.connect()
    messages = await client.get(id).transcript()
    if common.json:
        return out(common, [message.model_dump(mode="json") for message in messages])
    parts = [part for message in messages for part in tables.message(message)]
    return pretty(*(Text.assemble((f"{head}\n", "bold"), f"{text}\n") for head, text in parts))
