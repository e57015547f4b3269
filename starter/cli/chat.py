"""The command `chat`: talk with an agent in a session."""

from typing import Annotated, Any

import typer

from .options import Common, command, refuse, say


@command("chat")
async def chat(
    common: Common,
    *,
    agent: Annotated[str | None, typer.Argument(metavar="AGENT", help="The agent's name.")] = None,
    session: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The session's id; an old session goes on (default: a new id)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Choose one of your open sessions.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Open a session anew that is over.")] = False,
    user: Annotated[str | None, typer.Option(help="The user who speaks (default: of this machine).")] = None,
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
    # Each session has a user: by that name `--resume` finds it.
    user = user or user_name() or None
    if resume:
        session = await choose_session(client, agent, user)
    if session is None and agent is None:
        refuse("name an agent or a session: perdure chat AGENT, or --session ID, or --resume")
    # Only for a new session: an old one keeps the request that it was opened with.
    request: dict[str, Any] = {
        "user": user,
        "roles": role or [],
        "limits": limits_of(limit or []),
        "context": context_of(context or []),
    }
    if agent is not None and session is None:
        await client.check_agent(agent)  # before the first message, which a person writes in vain
    session_id = session or new_session_id(str(agent), user)
    opened = await client.continue_session(session_id, agent=agent, reopen=new, **request)
    say(f"session {opened.id}")
    return await converse(client, opened, common)
