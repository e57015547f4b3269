"""The command `chat`: talk with an agent in a session."""

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
        str | None, typer.Option(metavar="ID", help="The session's id; an old session goes on. [a new id]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Choose one of your open sessions.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Open a session anew that is over.")] = False,
    user: Annotated[str | None, typer.Option(help="The user who speaks. [the user of this machine]")] = None,
    role: Annotated[list[str] | None, typer.Option(help="A role for policies; may be repeated.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="For each turn: steps=3, cost_usd=0.5 ..."),
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For tools: key=text, or key:=json.")
    ] = None,
) -> int:
    """Talk with an agent, at a terminal or with one turn for each line of stdin."""
    from .arguments import context_of, limits_of
    from .conversation import choose_session, converse, new_session_id
    from .person import user_name

    client = await common.connect()
    user = user or user_name() or None
    if resume:
        session = await choose_session(client, agent, user)
    if session is None and agent is None:
        refuse("name an agent or a session: perdure chat AGENT, or --session ID, or --resume")
    request: dict[str, Any] = {
        "user": user,
        "roles": role or [],
        "limits": limits_of(limit or []),
        "context": context_of(context or []),
    }
    opened = await _open_session(client, session or new_session_id(str(agent), user), agent, request, new=new)
    say(f"session {opened.id}")
    return await converse(client, opened, common)


async def _open_session(
    client: "Client", session_id: str, agent: str | None, request: dict[str, Any], *, new: bool
) -> "Session":
    """Return the open session of that id as it is, or a new one that this request describes.

    Raises:
        RunEnded: the session is over, and `new` does not ask for a new one.
        RunNotFound: there is no such session, and no agent to open one with.
        InvalidRequest: the session is with another agent, or a new one has none.

    """
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
        refuse("a session that is opened anew needs an agent: perdure chat AGENT --session ID --new")
    return await client.session(session_id, agent=agent, reopen=True, **request)


async def _check_agent(session: "Session", agent: str | None) -> None:
    """Check that the session is with that agent, if one is named.

    Raises:
        InvalidRequest: it is with another agent.

    """
    status = await session.status()
    if agent not in (None, status.agent):
        refuse(f"session {session.id!r} is with {status.agent!r}, not with {agent!r}")
