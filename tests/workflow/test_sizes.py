"""Oversize: it ends in success or in one typed error, at once, and nothing is paid for twice."""

import asyncio
from typing import Any

import pytest

from perdure import Agent, InvalidRequest, RunFailed, tool
from perdure.model import ModelRequest
from perdure.testing import Line, ScriptedModel, calls, says
from tests.conftest import HANGS, Serve

BIG = "0123456789abcdef" * 196_608  # 3 MiB


@tool
async def big() -> str:
    """Give much."""
    return BIG


class Counting:
    def __init__(self, *lines: Line) -> None:
        self.lines = lines
        self.requests: list[ModelRequest] = []

    def __call__(self, request: ModelRequest) -> Line:
        self.requests.append(request)
        return self.lines[request.step - 1]


AGENT = Agent(name="a", model="scripted:x", tools=[big])


async def test_large_prompt_is_read_complete(serve: Serve) -> None:
    """A prompt of 3 MB is read in full."""
    model = Counting(says("read it"))
    async with serve(AGENT, models={"scripted": ScriptedModel(model)}) as client, asyncio.timeout(HANGS):
        run = await client.start("a", BIG)
        assert (await run.result()).output == "read it"
        assert (await run.transcript())[0].text == BIG
    assert [request.messages[0].text == BIG for request in model.requests] == [True]


async def test_large_result_is_stored_complete(serve: Serve) -> None:
    """A tool result of 3 MB is shown in part and stored in full."""
    model = Counting(calls("big"), says("seen"))
    async with serve(AGENT, models={"scripted": ScriptedModel(model)}) as client, asyncio.timeout(HANGS):
        result = await client.run("a", "go")
    assert (result.output, len(model.requests)) == ("seen", 2)
    shown = model.requests[1].messages[-1].text
    assert shown.startswith(BIG[:16_000])
    assert "3145728 bytes in all" in shown


async def test_large_reply_is_paid_once(serve: Serve) -> None:
    """A reply of 3 MB arrives in full and is paid for once."""
    model = Counting(says(BIG))
    scripted = ScriptedModel(model, chunk=65_536)
    async with serve(AGENT, models={"scripted": scripted}) as client, asyncio.timeout(HANGS):
        assert (await client.run("a", "go")).output == BIG
    assert len(model.requests) == 1


@pytest.mark.parametrize("what", ["reply", "prompt"])
async def test_missing_blob_store_is_typed_error(serve: Serve, what: str) -> None:
    """The threshold is beyond what Temporal takes, as if nothing were ever spilled."""
    model = Counting(says(BIG))
    scripted = ScriptedModel(model, chunk=65_536)
    settings: dict[str, Any] = {"blob_threshold_bytes": 10**9}
    async with serve(AGENT, models={"scripted": scripted}, **settings) as client, asyncio.timeout(HANGS):
        if what == "prompt":
            with pytest.raises(InvalidRequest, match=r"(?i)exceeds|larger|limit"):
                await client.start("a", BIG)
        else:
            with pytest.raises(RunFailed) as failed:
                await client.run("a", "go")
            assert failed.value.kind == "too_large"
    assert len(model.requests) == (1 if what == "reply" else 0)


async def test_many_big_calls_in_step(serve: Serve) -> None:
    @tool
    async def take(text: str) -> str:
        """Take much."""
        return str(len(text))

    def script(request: ModelRequest) -> Any:
        if request.step == 1:
            return [calls("take", text=BIG[:1_500_000]) for _ in range(4)]
        return says(request.messages[-1].text)

    agent = Agent(name="a", model="scripted:x", tools=[take])
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client, asyncio.timeout(HANGS):
        assert (await client.run("a", "go")).output == "1500000" * 4
