"""An error of a user's function leaves a trace in the worker's log: one record for each attempt."""

import asyncio
import logging
import traceback
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from perdure import Agent, Graph, Hook, RunFailed, tool
from perdure.activities.content.redact import register_secret
from perdure.errors import FatalToolError
from perdure.graph import NodeInput
from perdure.members import Member
from perdure.model import ModelRequest
from perdure.retries import ToolRetry
from perdure.testing import ScriptedModel, calls, says
from tests.conftest import HANGS, Serve

SECRET = "sk-own-4711-sesame-open"
SOON = ToolRetry(attempts=2, initial_interval=timedelta(milliseconds=10))


def look_up(sku: str) -> int:
    """Fail below the function that is the tool."""
    return {"lamp": 4}[sku]


@tool(retry=SOON)
def in_thread(sku: str) -> int:
    """Look up in a thread, twice."""
    try:
        return look_up(sku)
    except KeyError as error:
        raise ConnectionError("no prices") from error


@tool
async def on_loop(sku: str) -> int:
    """Look up on the event loop."""
    return look_up(sku)


@tool
async def fatal(sku: str) -> int:
    """Refuse."""
    raise FatalToolError("the shop is closed")


@tool
async def leaking(sku: str) -> int:
    """Fail with a secret in the text."""
    raise ValueError(f"refused: {SECRET}")


@tool
async def unwritable(sku: str) -> Any:
    """Give what is no JSON."""
    return object()


class Guard(Hook):
    """Fails before the call."""

    async def before_tool(self, call: Any) -> None:
        look_up("chair")


def function_of_node(given: NodeInput) -> int:
    """Fail as a node."""
    return look_up("chair")


TOOLS = (in_thread, on_loop, fatal, leaking, unwritable)
AGENTS: list[Member] = [
    *(Agent(name=each.name, model="scripted:x", tools=[each]) for each in TOOLS),
    Agent(name="hooked", model="scripted:x", tools=[on_loop], hooks=[Guard()]),
    Graph(name="graph", nodes={"only": function_of_node}, entry="only"),
]
ROWS: dict[str, tuple[int, Sequence[str]]] = {
    "in_thread": (2, ["tool 'in_thread' of agent 'in_thread'", "ConnectionError", "call-1-1"]),
    "on_loop": (1, ["tool 'on_loop'", "KeyError: 'chair'", "call-1-1"]),
    "fatal": (1, ["FatalToolError: the shop is closed"]),
    "leaking": (1, ["ValueError: refused"]),
    "unwritable": (1, ["the JSON of a tool's result, a object,"]),
    "hooked": (3, ["hook Guard at before_tool failed"]),
    "graph": (1, ["function of node 'only' of graph 'graph' failed"]),
}
"""Records of each agent's run, and words in each."""


def _script(request: ModelRequest) -> Any:
    if request.step == 1:
        return calls(request.tools[0].name, sku="chair")
    return says("I do not know.")


async def test_error_leaves_a_record_an_attempt(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """It names function, run, call and attempt, has the exception and the user's own frames, and no secret."""
    register_secret(SECRET)
    caplog.set_level(logging.WARNING)
    async with asyncio.timeout(HANGS), serve(*AGENTS, models={"scripted": ScriptedModel(_script)}) as client:
        await asyncio.gather(
            *(client.run(name, "Go.", id=f"log-{name}") for name in ROWS), return_exceptions=True
        )
        with pytest.raises(RunFailed):
            await client.get("log-graph").result()
    for name, (count, words) in ROWS.items():
        records = [record for record in caplog.records if f"run log-{name}," in record.getMessage()]
        assert len(records) == count, name
        for attempt, record in enumerate(records, 1):
            assert all(word in record.getMessage() for word in (*words, f"attempt {attempt}")), (
                record.getMessage()
            )
            _check_trace(record, name)
    assert SECRET not in caplog.text


def _check_trace(record: logging.LogRecord, name: str) -> None:
    if name == "leaking":
        assert record.exc_info is None
        assert "in leaking" in record.getMessage()
        return
    assert record.exc_info
    frames = [frame for frame, _ in traceback.walk_tb(record.exc_info[2])]
    assert not [frame for frame in frames if frame.f_globals["__name__"].startswith("perdure.")]
    functions = [frame.f_code.co_name for frame in frames]
    if name in ("on_loop", "hooked", "graph"):
        assert functions[-1] == "look_up"
    assert functions or name == "unwritable"
