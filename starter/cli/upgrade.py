"""The command `upgrade`: an open session takes its agent as the workers have it now."""

from typing import Annotated

import typer

from .control import By
from .options import Common, Id, command, out


@command("upgrade")
async def upgrade(
    common: Common,
    *,
    id: Id,  # noqa: A002
    by: By = None,
    reason: Annotated[str, typer.Option(help="The reason, for the record.")] = "",
    version: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="Only if the newest has this spec hash, or its beginning."),
    ] = None,
) -> None:
    """Let an open session take the newest version of its agent, between two turns."""
    from .person import user_name

    client = await common.connect()
    session = await client.session(id)
    person = user_name() if by is None else by
    answer = await session.upgrade(by=person, reason=reason, agent_version=version)
    when = "after its turn" if answer.after_turn else "now"
    words = (
        f"has version {answer.after[:12]} {when}" if answer.changed else f"keeps version {answer.after[:12]}"
    )
    out(common, {"id": id, **answer.model_dump(mode="json")}, f"{id}: {words}")
