"""Perdure as the conductor sees it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from perdure import Client, NotReachable, PerdureError, connect
from perdure.settings import load_settings
from perdure.starter.client.session import Session
from perdure.wire.results import TurnReply

from ...catalogue import Task, agent_name
from ...processes import own_python
from ...script import closing
from .. import QUEUE, TaskOutcome, Where, base_environment

_T = TypeVar("_T")


class Perdure:
    """Perdure, through its public client."""

    name = "perdure"

    def python(self) -> Path:
        """See `Subject`."""
        return Path(own_python())

    def command(self) -> Sequence[str]:
        """See `Subject`."""
        return ["-m", "perdure.workers", "proofs.chaos.subjects.perdure.agents"]

    def environment(self, where: Where, worker: str) -> Mapping[str, str]:
        """See `Subject`."""
        return {
            **base_environment(where, worker),
            "CHAOS_KIND": where.kind,
            "PERDURE_ADDRESS": where.temporal,
            "PERDURE_TASK_QUEUE": QUEUE,
            "PERDURE_HOME": str(where.folder),
            "PERDURE_OPENAI_BASE_URL": where.provider,
        }

    async def connect(self, address: str, where: Where) -> Client:
        """See `Subject`."""
        return await connect(settings=load_settings(address=address, task_queue=QUEUE, home=where.folder))

    async def play(self, client: Client, task: Task) -> TaskOutcome:
        """Play the task as a session; repeat each message under its id until a worker takes it."""
        try:
            session = await _retry_until_reached(lambda: _open_session(client, task))
            for turn in range(len(task.turns)):
                reply = await _retry_until_reached(partial(_say, session, task, turn))
                if reply.text != closing(task.id, turn):
                    why = f"{reply.stop_reason} {reply.error}"
                    return TaskOutcome(task=task.id, error=f"turn {turn + 1} ended in {reply.text!r}: {why}")
            await _retry_until_reached(session.close)
            result = await _retry_until_reached(session.run.result)
        except PerdureError as error:
            return TaskOutcome(task=task.id, error=f"{type(error).__name__}: {error}")
        ended = str(result.stop_reason)
        return TaskOutcome(task=task.id, error="" if ended == "stopped" else f"the session ended: {ended}")

    async def resume_parked(self, client: Client) -> int:
        """Resume the parked runs that have no retry timer."""
        resumed = 0
        with suppress(PerdureError):  # the server does not answer: try at the next round
            parked = [client.get(run.id) async for run in client.parked_runs()]
            for run in parked:
                with suppress(PerdureError):  # it went on by itself, or there is no worker
                    failure = (await run.status()).failure
                    if failure is not None and failure.resumes_at is None:
                        await run.resume()
                        resumed += 1
        return resumed


async def _open_session(client: Client, task: Task) -> Session:
    return await client.session(task.id, agent=agent_name(task.classes), context={"task": task.id})


async def _say(session: Session, task: Task, turn: int) -> TurnReply:
    return await session.say(task.message(turn), id=f"turn-{turn + 1}")


async def _retry_until_reached(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Call `ask` until the server is reached, as a caller would."""
    while True:
        try:
            return await ask()
        except NotReachable:
            await asyncio.sleep(0.3)
