"""The command `extend`: a run that a limit has ended is given more, and goes on."""

from typing import Annotated

import typer

from .control import By, Reason
from .options import DONE, EARLY, FAILED, Common, Id, command, out, refuse, say_error


@command("extend")
async def extend(
    common: Common,
    *,
    id: Id,  # noqa: A002
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="steps=100, cost_usd=5 ... in all.")
    ] = None,
    by: By = None,
    reason: Reason = "",
    user: Annotated[str | None, typer.Option(help="The user on whose behalf the run must act.")] = None,
) -> int:
    """Let a run go on that a limit has ended, or the last turn of an open session, with larger limits."""
    from temporalio.client import WorkflowExecutionStatus

    from perdure.wire.names import SESSION_WORKFLOW

    from . import tables
    from .arguments import granted_of
    from .conversation import reply_output
    from .person import user_name

    granted = granted_of(limit or [])
    if granted is None:
        refuse("say what is granted: --limit steps=100, as the total of the run")
    client = await common.connect()
    person = user_name() if by is None else by
    run = client.get(id)
    described = await run.describe()
    is_open = described.status == WorkflowExecutionStatus.RUNNING
    if is_open and described.workflow_type == SESSION_WORKFLOW:
        if user is not None:
            refuse("--user: an open session acts for the user that it was opened for; leave it out")
        session = await client.session(id)
        reply = await session.extend(limits=granted, by=person, reason=reason)
        out(common, reply.model_dump(mode="json"), tables.output(reply_output(reply)))
        if reply.error is not None:
            say_error(tables.failure_line(reply.error))
            return FAILED
        return DONE if reply.stop_reason == "end_turn" else EARLY
    await run.extend(limits=granted, by=person, reason=reason, user=user)
    plain = {"id": id, "limits": granted.model_dump(mode="json", exclude_unset=True), "by": person}
    out(common, plain, f"{id}: extended, and goes on")
    return DONE
