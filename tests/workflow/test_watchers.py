"""Many watchers of one run in one process: they cost the server about what one costs."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import temporalio.client
from temporalio.client import DescribeWorkflowInput, Interceptor, OutboundInterceptor, QueryWorkflowInput

from perdure import Agent
from perdure.model import ModelEvent, ModelRequest, TextDelta
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import ScriptedModel, says
from perdure.wire.events import Finished, MessageFinished, TextAssembler, TextRestarted
from perdure.wire.events import TextDelta as Told
from tests.conftest import Gate, Serve

WORDS = [f"word{n} " for n in range(60)]


class Slow:
    """Writes a word every 25 ms, once somebody watches."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def check(self, config: object) -> None: ...

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        await self.gate.wait()
        async for event in ScriptedModel([says("".join(WORDS))], chunk=len(WORDS[0])).stream(request):
            if isinstance(event, TextDelta):
                await asyncio.sleep(0.025)
            yield event


class Counting(Interceptor):
    """Counts what a client asks of the server."""

    def __init__(self) -> None:
        self.asked = Counter[str]()

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002
        asked = self.asked

        class Outbound(OutboundInterceptor):
            async def describe_workflow(self, input: DescribeWorkflowInput) -> Any:  # noqa: A002
                asked["describe"] += 1
                return await super().describe_workflow(input)

            async def query_workflow(self, input: QueryWorkflowInput) -> Any:  # noqa: A002
                asked["query"] += 1
                return await super().query_workflow(input)

        return Outbound(next)


def counted(client: Client) -> tuple[temporalio.client.Client, Counter[str]]:
    """Another connection, that counts."""
    counting, config = Counting(), client.temporal.config()
    config["interceptors"] = [*config["interceptors"], counting]
    return temporalio.client.Client(**config), counting.asked


async def heard(run: Run, reader: TextAssembler) -> list[Any]:
    events: list[Any] = []
    async for event in run.events():
        reader.feed(event)
        events.append(event)
    return events


async def _watched(client: Client, gate: Gate, many: int) -> Counter[str]:
    """So many watch one run, each its own handle on it; each hears each word once."""
    temporal, asked = counted(client)
    run = await client.start("a", "go")
    readers = [TextAssembler() for _ in range(many)]
    watchers = [asyncio.create_task(heard(Run(temporal, run.id), reader)) for reader in readers]
    await gate.reached.wait()
    gate.opened.set()
    whole = "".join(WORDS)
    for events, reader in zip(await asyncio.gather(*watchers), readers, strict=True):
        assert reader.text(1) == whole
        pieces = [event for event in events if isinstance(event, Told)]
        assert "".join(piece.text for piece in pieces) == whole, "each word, and none of them twice"
        assert len(pieces) > 2, "while it was written"
        assert not any(isinstance(event, TextRestarted) for event in events)
        assert [type(event) for event in events[-2:]] == [MessageFinished, Finished]
    return asked


async def test_thirty_watchers_cost_what_one_costs(serve: Serve) -> None:
    costs: list[Counter[str]] = []
    for many in (1, 30):
        gate = Gate()
        async with serve(Agent(name="a", model="slow:x"), models={"slow": Slow(gate)}) as client:
            costs.append(await _watched(client, gate, many))
    one, thirty = costs
    assert thirty["describe"] <= 1.5 * one["describe"] + 3
    assert thirty["query"] <= 1.5 * one["query"] + 3


async def test_leaving_and_late_watchers_disturb_nobody(serve: Serve) -> None:
    gate = Gate()
    async with serve(Agent(name="a", model="slow:x"), models={"slow": Slow(gate)}) as client:
        run = await client.start("a", "go")
        staying, late = TextAssembler(), TextAssembler()
        stays = asyncio.create_task(heard(run, staying))
        leaving = [asyncio.create_task(heard(run, TextAssembler())) for _ in range(10)]
        await gate.reached.wait()
        gate.opened.set()
        comes = None
        while not stays.done():
            await asyncio.sleep(0.07)
            if leaving:
                leaving.pop().cancel()
            elif comes is None:
                comes = asyncio.create_task(heard(run, late))
        assert comes is not None
        assert isinstance((await stays)[-1], Finished)
        assert isinstance((await comes)[-1], Finished)
    assert staying.text(1) == late.text(1) == "".join(WORDS)
