"""Commands by which people act on runs."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .options import DONE, Common, Id, code_of, command, out, refuse, say_error

if TYPE_CHECKING:
    from perdure.wire.results import Approval

    from ..client.run import Run

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="The runs' ids.")]
By = Annotated[str | None, typer.Option(help="Who decides. [the user of this machine]")]
Why = Annotated[str, typer.Option(help="Told to the agent.")]
CallId = Annotated[
    str | None,
    typer.Argument(metavar="CALL", help="Needed when several calls wait; of a run below: RUN_ID/CALL."),
]
Below = Annotated[str | None, typer.Option("--run-id", help="The run below that waits.")]


@command("send")
async def send(
    common: Common,
    *,
    id: Id,  # noqa: A002
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say, or the answer to its question.")],
    run_id: Below = None,
) -> None:
    """Say something to a run; to one below it with --run-id, or by its own id."""
    client = await common.connect()
    queued = await client.get(id).send(text, run_id=run_id)
    out(common, {"id": id, "unread": queued}, "sent")


@command("approve")
async def approve(
    common: Common,
    *,
    id: Id,  # noqa: A002
    call: CallId = None,
    by: By = None,
    reason: Why = "",
    run_id: Below = None,
    arguments: Annotated[
        str | None, typer.Option(metavar="JSON", help="Call it with these arguments instead.")
    ] = None,
) -> None:
    """Let a tool call that waits, of the run or of one below it, happen."""
    from .arguments import arguments_of

    decision = {"by": by, "reason": reason, "arguments": arguments_of(arguments)}
    await _decide(common, id, (run_id, call), allow=True, **decision)


@command("deny")
async def deny(
    common: Common,
    *,
    id: Id,  # noqa: A002
    call: CallId = None,
    by: By = None,
    reason: Why = "",
    run_id: Below = None,
) -> None:
    """Refuse a tool call that waits, of the run or of one below it."""
    await _decide(common, id, (run_id, call), allow=False, by=by, reason=reason)


_Meant = tuple[str | None, str | None]
"""Which call is meant: its run below, and its id; either may be left out."""


async def _decide(common: Common, run_id: str, meant: _Meant, **decision: Any) -> None:
    from . import tables
    from .follow import person

    client = await common.connect()
    run = client.get(run_id)
    want = await _held(run, meant)
    decision["by"] = person() if decision["by"] is None else decision["by"]
    below = want.run_id if want.path else None
    await run.resolve_approval(want.call_id, digest=want.digest, run_id=below, **decision)
    done = "approved" if decision["allow"] else "denied"
    plain = {"id": run_id, "call_id": want.call_id, "allow": decision["allow"], "by": decision["by"]}
    plain |= {"run_id": below} if below else {}
    out(common, plain, f"{done}: {want.call_id} {tables.wanted(want)}")


async def _held(run: "Run", meant: _Meant) -> "Approval":
    """The call meant: the one named, or the only one that waits."""
    status = await run.status()
    held = [want for want in status.waiting if want.kind == "approval"]
    chosen = [want for want in held if _is_meant(want, meant)]
    # Its own call, before those of the same id below it.
    chosen = [want for want in chosen if not want.path and want.call_id == meant[1]] or chosen
    if len(chosen) == 1:
        return chosen[0]
    if not held:
        refuse(f"nothing of run {run.id!r} waits for approval: it is {status.doing}")
    listed = "; ".join(_listed(want) for want in chosen or held)
    if chosen:
        refuse(f"{len(chosen)} calls wait: say which, as CALL or RUN_ID/CALL; waiting are {listed}")
    named = "/".join(word for word in meant if word)
    return refuse(f"no call {named!r} waits; waiting are {listed}")


def _is_meant(want: "Approval", meant: _Meant) -> bool:
    run_id, call = meant
    names = (want.call_id, f"{want.run_id}/{want.call_id}", "/".join([*want.path, want.call_id]))
    runs = (want.run_id, "/".join(want.path))
    return call in (None, *names) and run_id in (None, *runs)


def _listed(want: "Approval") -> str:
    from . import tables

    name = f"{want.run_id}/{want.call_id}" if want.path else want.call_id
    return f"{name}: {tables.wanted(want)}"


_AT_ONCE: Final = 20
Act = Callable[["Run"], Coroutine[Any, Any, None]]


async def each(common: Common, ids: list[str], done: str, act: Act) -> int:
    """Do it to every run, some at a time, whatever becomes of the others; told in the order of the ids.

    The exit code is the first failure's.
    """
    from perdure.errors import PerdureError

    client = await common.connect()
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(run_id: str) -> "PerdureError | None":
        async with slots:
            try:
                await act(client.get(run_id))
            except PerdureError as error:
                return error
            return None

    code = DONE
    acted = [(run_id, asyncio.create_task(one(run_id))) for run_id in ids]
    try:
        for run_id, task in acted:
            error = await task
            if error is None:
                out(common, {"id": run_id, "done": done}, f"{run_id}: {done}")
                continue
            said = str(error)
            say_error(said if run_id in said else f"{run_id}: {said}")
            code = code or code_of(error)
    finally:  # nobody who reads no further keeps the others from being done
        await asyncio.gather(*(task for _, task in acted), return_exceptions=True)
    return code


@command("pause")
async def pause(common: Common, ids: Ids) -> int:
    """Let what is in flight finish and start nothing new."""
    return await each(common, ids, "paused", lambda run: run.pause())


@command("resume")
async def resume(common: Common, ids: Ids) -> int:
    """Go on after a pause, or from the step at which a run was parked."""
    return await each(common, ids, "resumed", lambda run: run.resume())


@command("stop")
async def stop(common: Common, ids: Ids) -> int:
    """Finish now, gracefully, with what there is."""
    return await each(common, ids, "told to stop", lambda run: run.stop())


@command("cancel")
async def cancel(common: Common, ids: Ids) -> int:
    """End now, as cancelled."""
    return await each(common, ids, "cancelled", lambda run: run.cancel())
