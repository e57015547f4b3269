"""The command `chat`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Common, command, refuse, say

if TYPE_CHECKING:
    from ..client.connect import Client
    from ..client.session import Session


@command("chat")
async def chat(
    common: Common,
    *,
    agent: Annotated[str | None, typer.Argument(metavar="AGENT", help="The agent's name.")] = None,
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="The session's id: an old one goes on. [a new one]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Choose one of your open sessions.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Open an id anew whose session is over.")] = False,
    user: Annotated[str | None, typer.Option(help="Who speaks. [the user of this machine]")] = None,
    role: Annotated[list[str] | None, typer.Option(help="A role for policies; may be repeated.")] = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of each turn: steps=3, cost_usd=0.5 ...")
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For tools: key=text, or key:=json.")
    ] = None,
) -> int:
    """Talk with an agent: at a terminal, or a line of stdin a turn."""
    from .arguments import context_of, limits_of
    from .conversation import choose, new_id, talk
    from .person import user_name

    client = await common.connect()
    user = user or user_name() or None
    if resume:
        session = await choose(client, agent, user)
    if session is None and agent is None:
        refuse("say with whom: perdure chat AGENT, or --session ID, or --resume")
    request: dict[str, Any] = {
        "user": user,
        "roles": role or [],
        "limits": limits_of(limit or []),
        "context": context_of(context or []),
    }
    opened = await _opened(client, session or new_id(str(agent), user), agent, request, new=new)
    say(f"session {opened.id}")
    return await talk(client, opened, common)


async def _opened(
    client: "Client", session_id: str, agent: str | None, request: dict[str, Any], *, new: bool
) -> "Session":
    """An open session as it is, or a new one by this request."""
    from temporalio.client import WorkflowExecutionStatus

    from perdure.errors import RunNotFound

    from ..client.errors import session_ended_error

    try:
        session = await client.session(session_id)
    except RunNotFound:
        if agent is None:
            raise
        return await client.session(session_id, agent=agent, **request)
    described = await session.run.describe()
    if described.status == WorkflowExecutionStatus.RUNNING:
        await _check_agent(session, agent)
        return session
    if not new:
        raise session_ended_error(session_id)
    if agent is None:
        refuse("to open a session anew, say with whom: perdure chat AGENT --session ID --new")
    return await client.session(session_id, agent=agent, reopen=True, **request)


async def _check_agent(session: "Session", agent: str | None) -> None:
    status = await session.status()
    if agent not in (None, status.agent):
        refuse(f"session {session.id!r} is held with {status.agent!r}, not with {agent!r}")
