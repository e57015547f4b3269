"""A decision that comes before the run knows again what it waits for: it is tried once more, and once only."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import temporalio.client
from temporalio.client import Interceptor, OutboundInterceptor, StartWorkflowUpdateInput

from perdure import Agent, InvalidRequest, ask_person, tool
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import ScriptedModel, calls, fails, says
from tests.conftest import HANGS, Gate, Serve, until_status

ACT = Callable[[Client, str], Awaitable[Any]]


@tool(approval=True)
async def pay(cents: int) -> str:
    """Pay."""
    return f"paid {cents}"


class _CatchesUp(Interceptor):
    """Interceptor that lets the run come to what a person has seen, once its first answer to an update is there.

    So the first attempt meets a run that does not wait yet, as after a workflow task that was lost.
    """

    def __init__(self, catch_up: Callable[[], Awaitable[None]]) -> None:
        self.updates: list[str] = []
        self._catch_up = catch_up

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002
        catching = self

        class Outbound(OutboundInterceptor):
            async def start_workflow_update(self, input: StartWorkflowUpdateInput) -> Any:  # noqa: A002
                handle = await super().start_workflow_update(input)
                catching.updates.append(input.update)
                if len(catching.updates) == 1:
                    await catching._catch_up()
                return handle

        return Outbound(next)


def _with(client: Client, interceptor: Interceptor) -> Client:
    config = client.temporal.config()
    config["interceptors"] = [*config["interceptors"], interceptor]
    return Client(temporalio.client.Client(**config), task_queue=client.task_queue)


async def _approve(client: Client, run_id: str) -> Any:
    return await client.get(run_id).resolve_approval("call-1-1", allow=True, by="lee")


async def _answer(client: Client, run_id: str) -> Any:
    return await client.get(run_id).send("white", call_id="call-1-1")


async def _redrive(client: Client, run_id: str) -> Any:
    return await client.get(run_id).redrive(model="right:z")


async def _say(client: Client, run_id: str) -> Any:
    session = await client.session(run_id)
    return await session.say("white", call_id="call-1-1")


ROWS: dict[str, tuple[ACT, str, str]] = {
    "approval": (_approve, "waiting_approval", "paid 5"),
    "answer": (_answer, "waiting_person", "white"),
    "redrive": (_redrive, "parked", "right"),
    "session": (_say, "waiting_person", "white"),
}
"""What a person does, the status in which it is right, and the run's answer."""


def _agents(gate: Gate) -> tuple[list[Agent], dict[str, ScriptedModel]]:
    async def script(request: ModelRequest) -> Any:
        kind = request.config.model
        if request.messages[-1].role == "tool":
            return says(request.messages[-1].tool_results[0].text)
        await gate.wait()
        match kind:
            case "approval":
                return calls("pay", cents=5)
            case "redrive":
                return fails("authentication", "no key")
            case _:
                return calls("ask_person", question="Which colour?")

    agents = [Agent(name=kind, model=f"scripted:{kind}", tools=[pay, ask_person]) for kind in ROWS]
    models = {"scripted": ScriptedModel(script), "right": ScriptedModel(lambda _: says("right"))}
    return agents, models


@pytest.mark.parametrize("kind", ROWS)
async def test_decision_before_the_run_knows(serve: Serve, kind: str) -> None:
    """The refusal changes nothing, the second attempt counts, and the run goes on with it."""
    act, status, output = ROWS[kind]
    gate = Gate()
    agents, models = _agents(gate)
    async with asyncio.timeout(HANGS), serve(*agents, models=models) as client:

        async def catch_up() -> None:
            gate.opened.set()
            await until_status(client, run_id, status)

        catching = _CatchesUp(catch_up)
        if kind == "session":
            session = await client.session("early", agent=kind)
            turn = asyncio.create_task(session.say("go"))
            run_id = session.id
            await gate.reached.wait()
            await act(_with(client, catching), run_id)
            assert (await turn).text == output
        else:
            run: Run = await client.start(kind, "go")
            run_id = run.id
            await gate.reached.wait()
            await act(_with(client, catching), run_id)
            assert (await run.result()).output == output
    assert len(catching.updates) == 2


async def test_wrong_decision_is_refused_twice_at_most(serve: Serve) -> None:
    """What stays wrong is refused with the run's words, and the run waits on."""
    gate = Gate()
    agents, models = _agents(gate)

    async def nothing() -> None:
        pass

    async with serve(*agents, models=models) as client:
        run = await client.start("approval", "go")
        gate.opened.set()
        await until_status(client, run.id, "waiting_approval")
        catching = _CatchesUp(nothing)
        with pytest.raises(InvalidRequest, match="call 'call-9-9' does not wait for an approval"):
            await _with(client, catching).get(run.id).resolve_approval("call-9-9", allow=True)
        assert len(catching.updates) == 2
        await _approve(client, run.id)
        assert (await run.result()).output == "paid 5"
