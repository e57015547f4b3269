"""Commands by which people act on runs: send, approve, deny, pause, resume, stop, cancel."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DONE, Common, Id, command, exit_code_of, out, say_error

if TYPE_CHECKING:
    from ..client.bulk import Outcome
    from ..client.run import Run

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="The runs' ids.")]
By = Annotated[str | None, typer.Option(help="The person who decides (default: the user of this machine).")]
Reason = Annotated[str, typer.Option(help="The reason, which the agent reads.")]
CallId = Annotated[
    str | None,
    typer.Argument(metavar="CALL", help="Needed when several calls wait; of a run below: RUN_ID/CALL."),
]
ChildId = Annotated[str | None, typer.Option("--run-id", help="The run below that waits.")]


@command("send")
async def send(
    common: Common,
    *,
    id: Id,  # noqa: A002
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The message, or the answer to its question.")],
    call: Annotated[
        str | None,
        typer.Option(
            "--call",
            metavar="CALL",
            help="The question it answers; of a run below: PATH/CALL or RUN_ID/CALL.",
        ),
    ] = None,
    run_id: ChildId = None,
) -> None:
    """Send a message to a run, or answer a question; to a run below it with --run-id, or by that run's own id."""
    from perdure.errors import InvalidRequest
    from perdure.wire.results import Question

    client = await common.connect()
    run = client.get(id)
    question: Question | str | None = call
    # The chat and the status show the path to a question below; a repeated answer names one that waits no more.
    if call is not None:
        with contextlib.suppress(InvalidRequest):
            question = await run.find_question(call, run_id=run_id)
    receipt = await run.send(
        text, call_id=question, run_id=None if isinstance(question, Question) else run_id
    )
    plain: dict[str, Any] = {"id": id, "unread": receipt.unread}
    plain |= {"call_id": receipt.call_id, "run_id": receipt.run_id} if receipt.call_id else {}
    plain |= {"repeated": True} if receipt.repeated else {}
    out(common, plain, receipt.words or "sent")


@command("approve")
async def approve(
    common: Common,
    *,
    id: Id,  # noqa: A002
    call: CallId = None,
    by: By = None,
    reason: Reason = "",
    run_id: ChildId = None,
    arguments: Annotated[
        str | None, typer.Option(metavar="JSON", help="Call it with these arguments instead.")
    ] = None,
) -> None:
    """Allow a tool call that waits, in the run or in one below it."""
    from .arguments import arguments_of

    decision = {"by": by, "reason": reason, "arguments": arguments_of(arguments)}
    await _resolve_approval(common, id, call, run_id, allow=True, **decision)


@command("deny")
async def deny(
    common: Common,
    *,
    id: Id,  # noqa: A002
    call: CallId = None,
    by: By = None,
    reason: Reason = "",
    run_id: ChildId = None,
) -> None:
    """Refuse a tool call that waits, in the run or in one below it."""
    await _resolve_approval(common, id, call, run_id, allow=False, by=by, reason=reason)


async def _resolve_approval(
    common: Common, run_id: str, call: str | None, child_id: str | None, **decision: Any
) -> None:
    from . import tables
    from .person import user_name

    client = await common.connect()
    run = client.get(run_id)
    approval = await run.find_approval(call, run_id=child_id)
    decision["by"] = user_name() if decision["by"] is None else decision["by"]
    # The approval that was found: arguments that change meanwhile are not allowed unseen.
    answer = await run.resolve_approval(approval, **decision)
    verdict = answer.words if answer.repeated else "approved" if answer.allow else "denied"
    plain = {"id": run_id, "call_id": approval.call_id, "allow": answer.allow, "by": answer.by}
    plain |= {"run_id": approval.run_id} if approval.path else {}
    plain |= {"repeated": True} if answer.repeated else {}
    out(common, plain, f"{verdict}: {approval.call_id} {tables.waiting_item(approval)}")


async def report_outcomes(common: Common, outcomes: "AsyncGenerator[Outcome]", done: str) -> int:
    """Print a line for each run and return the exit code of the first failure."""
    code = DONE
    # Closed also when our reader goes away: closing waits until every run has been acted on.
    async with contextlib.aclosing(outcomes):
        async for outcome in outcomes:
            if outcome.error is None:
                out(common, {"id": outcome.id, "done": done}, f"{outcome.id}: {done}")
                continue
            message = str(outcome.error)
            say_error(message if outcome.id in message else f"{outcome.id}: {message}")
            code = code or exit_code_of(outcome.error)
    return code


async def _act_on(
    common: Common, ids: list[str], done: str, action: "Callable[[Run], Awaitable[None]]"
) -> int:
    client = await common.connect()
    return await report_outcomes(common, client.act_on(ids, action), done)


@command("pause")
async def pause(common: Common, ids: Ids) -> int:
    """Let pending calls finish and start nothing new."""
    return await _act_on(common, ids, "paused", lambda run: run.pause())


@command("resume")
async def resume(common: Common, ids: Ids) -> int:
    """Go on after a pause, or from the step at which a run was parked."""
    return await _act_on(common, ids, "resumed", lambda run: run.resume())


@command("stop")
async def stop(common: Common, ids: Ids) -> int:
    """Finish now, gracefully, with the best partial answer."""
    return await _act_on(common, ids, "told to stop", lambda run: run.stop())


@command("cancel")
async def cancel(common: Common, ids: Ids) -> int:
    """End now, as cancelled."""
    return await _act_on(common, ids, "cancelled", lambda run: run.cancel())
