"""What a worker's SDK loses, and the server then refuses by itself, is said again."""

from typing import Any, cast

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from perdure import InvalidRequest, NotReachable
from perdure.starter.client.run import Run
from perdure.starter.client.session import Session
from perdure.wire.results import TurnReply

LOST = WorkflowUpdateFailedError(ApplicationError("not processed by worker", type="UnprocessedUpdate"))
REFUSED = WorkflowUpdateFailedError(ApplicationError("no such call", type="InvalidRequest"))


class Server:
    """Connection, handle and update in one: each update ends as the next of `ends` says."""

    namespace = "default"

    def __init__(self, *ends: Any) -> None:
        self.ends = list(ends)
        self.told: list[Any] = []

    def get_workflow_handle(self, *_: Any, **__: Any) -> "Server":
        return self

    async def execute_update(self, _: str, argument: Any, **__: Any) -> Any:
        await self.start_update("", argument)
        return await self.result()

    async def start_update(self, _: str, argument: Any, **__: Any) -> "Server":
        self.told.append(argument)
        return self

    async def result(self) -> Any:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    async def describe(self) -> Any:
        from types import SimpleNamespace

        from temporalio.client import WorkflowExecutionStatus

        return SimpleNamespace(status=WorkflowExecutionStatus.RUNNING)

    async def query(self, *_: Any, **__: Any) -> TurnReply:
        return TurnReply(done=False, known=False)


def run(server: Server) -> Run:
    return Run(cast("Any", server), "r")


async def test_a_lost_message_is_sent_again() -> None:
    server = Server(LOST, LOST, 3)
    assert (await run(server).send("hello", id="m1")).unread == 3
    assert server.told == ["hello"] * 3


async def test_an_update_lost_repeatedly_is_not_reachable() -> None:
    with pytest.raises(NotReachable, match="nothing was changed"):
        await run(Server(*[LOST] * 9)).resolve_approval("call-1-1", allow=True)


async def test_refused_update_is_tried_twice_only() -> None:
    """One that stays refused is refused: `tests/workflow/test_early_decisions.py` has the one that does not."""
    server = Server(REFUSED, REFUSED, 1)
    with pytest.raises(InvalidRequest, match="no such call"):
        await run(server).resolve_approval("call-1-1", allow=True)
    assert len(server.told) == 2


async def test_a_lost_turn_keeps_its_message_id() -> None:
    """A session's message that got lost is handed over again under the same id."""
    reply = TurnReply(text="hi", known=True, done=True)
    server = Server(LOST, reply)
    assert await Session(run(server)).say("hello") == reply
    assert len(server.told) == 2
    assert server.told[0] == server.told[1]
