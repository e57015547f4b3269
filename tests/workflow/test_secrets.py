"""Secrets of the worker in what its activities let out: none is in history, heartbeats, blobs or logs."""

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pydantic import SecretStr
from temporalio import activity
from temporalio.exceptions import ApplicationError

from perdure import Agent, Edge, Graph, Limits, Node, NodeInput, RunFailed, ToolContext, tool
from perdure.hooks import Deny, Hook, HookedCall
from perdure.testing import ScriptedModel, calls, fails, says
from tests.conftest import HANGS, Serve

ENVIRONMENT = "env-9f8a7b6c5d4e3f2a1b0c"
DOTENV = "dot-1b0c9f8a7b6c5d4e3f2a"
SETTING = "set-5d4e3f2a1b0c9f8a7b6c"
SECRETS = (ENVIRONMENT, DOTENV, SETTING)
ALL = " ".join(SECRETS)
RUNS: list[str] = []


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHOP_TOKEN", ENVIRONMENT)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"OTHER_API_KEY={DOTENV}\nSTAGE=production\n")


def _raise(error: BaseException) -> NoReturn:
    RUNS.append(type(error).__name__)
    raise error


class Unprintable(BaseException):
    """An end of the process that is no Exception."""


ENDS: dict[str, Callable[[], Any]] = {
    "an error": lambda: _raise(ValueError(f"refused: {ALL}")),
    "an error longer than what is kept": lambda: _raise(ValueError(f"{'.' * 13}{ALL} " * 500)),
    "an error with a cause": lambda: _raise(ValueError(ALL)),
    "temporal's error": lambda: _raise(ApplicationError(ALL, ALL, {"deep": [ALL]}, non_retryable=True)),
    "sys.exit with a message": lambda: sys.exit(_raise(SystemExit(ALL))),
    "sys.exit with a number": lambda: _raise(SystemExit(3)),
    "an interrupt": lambda: _raise(KeyboardInterrupt(ALL)),
    "another end": lambda: _raise(Unprintable(ALL)),
    "the end of an iterator": lambda: _raise(StopIteration(ALL)),
    "a value": lambda: ALL,
    "a value longer than what is shown": lambda: f"{'.' * 7}{ALL} " * 1000,
    "a value deep inside": lambda: {"config": [{"key": ALL}]},
}


@tool
def in_thread(way: str) -> Any:
    """End in that way, in a thread."""
    return ENDS[way]()


@tool
async def on_loop(way: str) -> Any:
    """End in that way, on the event loop."""
    return ENDS[way]()


@tool
async def reports(context: ToolContext) -> str:
    """Report progress, until it has been heard."""
    context.report("." * 490 + ALL)
    activity.heartbeat(ALL)
    await asyncio.sleep(0)
    return "done"


class Guard(Hook):
    """A hook that names secrets, in its verdict and in its error."""

    async def before_tool(self, call: HookedCall) -> Deny | None:
        """Refuse one way, fail at another."""
        match call.arguments.get("way"):
            case "refused":
                return Deny(reason=ALL)
            case "broken":
                raise SystemExit(ALL)
            case _:
                return None


async def test_no_secret_leaves_an_activity(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a whole secret nor its beginning is anywhere, however a tool or hook ends; and each ends once."""
    RUNS.clear()
    asked = [(name, way) for name in ("in_thread", "on_loop") for way in (*ENDS, "refused", "broken")]
    script = [
        *(calls(name, way=way) for name, way in asked),
        calls("reports"),
        says(f"The keys are {ALL}."),
    ]
    agent = Agent(
        name="a",
        model="scripted:x",
        tools=[in_thread, on_loop, reports],
        hooks=[Guard()],
        limits=Limits(steps=50),
    )
    caplog.set_level(logging.DEBUG)
    async with (
        serve(agent, models={"scripted": ScriptedModel(script)}, openai_api_key=SecretStr(SETTING)) as client,
        asyncio.timeout(HANGS),
    ):
        run = await client.start("a", "go")
        result = await run.result()
        texts = [message.text for message in await run.transcript() if message.role == "tool"]
        history = b"".join(event.SerializeToString() for event in (await run.handle.fetch_history()).events)
    assert result.output == "The keys are [redacted] [redacted] [redacted]."
    assert len(texts) == len(script) - 1
    # Each way ran once a carrier: no end of a tool is retried, and none ends the worker.
    assert sorted(set(RUNS)) == sorted(
        {"ValueError", "ApplicationError", "SystemExit", "KeyboardInterrupt", "Unprintable", "StopIteration"}
    )
    assert RUNS.count("KeyboardInterrupt") == RUNS.count("Unprintable") == RUNS.count("StopIteration") == 2
    blobs = b"".join(path.read_bytes() for path in (tmp_path / "blobs").rglob("*") if path.is_file())
    for secret in SECRETS:
        for place in (history, blobs, caplog.text.encode(), "\n".join(texts).encode()):
            assert secret[:9].encode() not in place


async def test_no_secret_leaves_a_node_function(serve: Serve) -> None:
    """A function of a graph that ends the process fails its node, once, with the message masked."""
    RUNS.clear()

    def leaves(_node: NodeInput) -> Any:
        return _raise(SystemExit(ALL))

    def tells(_node: NodeInput) -> Any:
        return {"deep": [ALL]}

    graph = Graph(
        name="g",
        nodes={"tells": Node(tells), "leaves": Node(leaves)},
        entry="tells",
        edges=[Edge("tells", "leaves")],
    )
    async with serve(graph, openai_api_key=SecretStr(SETTING)) as client, asyncio.timeout(HANGS):
        run = await client.start("g", "go")
        with pytest.raises(RunFailed, match=r"SystemExit: \[redacted\] \[redacted\] \[redacted\]"):
            await run.result()
        history = b"".join(event.SerializeToString() for event in (await run.handle.fetch_history()).events)
    assert RUNS == ["SystemExit"]  # once
    assert not [secret for secret in SECRETS if secret[:9].encode() in history]


async def test_provider_error_is_masked_before_it_is_cut(serve: Serve) -> None:
    """Whatever length a provider's message has, no piece of a key is left in what people see."""
    for padding in range(0, 30, 7):
        script = ScriptedModel([fails("authentication", "x" * padding + f" {ENVIRONMENT}" * 300)])
        agent = Agent(name="a", model="scripted:x", on_failure="fail")
        async with serve(agent, models={"scripted": script}) as client, asyncio.timeout(HANGS):
            with pytest.raises(RunFailed) as raised:
                await client.run("a", "go")
        assert ENVIRONMENT[:6] not in str(raised.value)
