"""A function that holds a worker's event loop is named in the log, while it does and when it has ended."""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from perdure import Agent, Graph, Hook, tool
from perdure.activities import loop_watch
from perdure.activities.loop_watch import Holder, find_holder, watch_loop
from perdure.activities.threads import FunctionThreads, call_function
from perdure.graph import NodeInput
from perdure.members import Member
from perdure.model import ModelRequest
from perdure.testing import ScriptedModel, calls, says
from tests.conftest import HANGS, Serve, until

HOLDING = "has held the event loop"
freed = threading.Event()


def hold() -> None:
    """Hold the thread until the log has said so, below the function that is called."""
    freed.wait(HANGS)


@tool
async def bake() -> str:
    """Bake."""
    hold()
    return "baked"


class Guard(Hook):
    """Holds the loop before a call."""

    async def before_tool(self, call: Any) -> None:
        hold()


async def node(given: NodeInput) -> str:
    """Hold the loop as a node."""
    hold()
    return "done"


@tool
async def nothing() -> str:
    """Do nothing."""
    return ""


class Frees(logging.Handler):
    """Lets the function go on once the log has said that it holds the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if HOLDING in record.getMessage():
            freed.set()


AGENTS: dict[str, Member] = {
    "tool `bake`": Agent(name="tool", model="scripted:x", tools=[bake]),
    "hook `Guard.before_tool`": Agent(name="hook", model="scripted:x", tools=[nothing], hooks=[Guard()]),
    "function of graph `graph.only`": Graph(name="graph", nodes={"only": node}, entry="only"),
    "function `_script`": Agent(name="model", model="scripted:held"),
}


def _script(request: ModelRequest) -> Any:
    if request.config.model == "held":
        hold()
        return says("answered")
    return calls(request.tools[0].name) if request.step == 1 else says("Done.")


async def test_holder_of_the_loop_is_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tool, hook, function of a graph and model are told apart, with the place at which they stand."""
    monkeypatch.setattr(loop_watch, "HELD_AFTER", 0.5)
    frees, log = Frees(), logging.getLogger("perdure.worker")
    log.addHandler(frees)
    try:
        async with (
            asyncio.timeout(HANGS),
            serve(*AGENTS.values(), models={"scripted": ScriptedModel(_script)}) as client,
        ):
            for holder, member in AGENTS.items():
                freed.clear()
                frees.lines.clear()
                await client.run(member.name, "Go.")
                await until(partial(_has_line, frees.lines, f"{holder} held the event loop for "))
                [line] = [line for line in frees.lines if HOLDING in line]
                assert line.startswith(f"{holder} {HOLDING}")
                assert "test_held_loop.py:" in line
                assert "in hold:" in line
    finally:
        log.removeHandler(frees)


async def _has_line(lines: list[str], start: str) -> bool:
    return any(line.startswith(start) for line in lines)


async def test_calls_that_stood_still_are_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last record says which calls of other runs could not go on, so that nobody looks for a fault in them."""
    monkeypatch.setattr(loop_watch, "HELD_AFTER", 0.5)
    frees, log, waits = Frees(), logging.getLogger("perdure.worker"), asyncio.Event()
    freed.clear()

    @tool
    async def rest() -> str:
        """Rest until the other run has held the loop."""
        waits.set()
        await asyncio.to_thread(freed.wait, HANGS)
        return "rested"

    agents = [Agent(name=each.name, model="scripted:x", tools=[each]) for each in (bake, rest)]
    log.addHandler(frees)
    try:
        async with (
            asyncio.timeout(HANGS),
            serve(*agents, models={"scripted": ScriptedModel(_script)}) as client,
        ):
            resting = await client.start("rest", "Go.", id="resting")
            await waits.wait()
            await client.run("bake", "Go.", id="baking")
            await resting.result()
            await until(partial(_has_line, frees.lines, "tool `bake` held the event loop for "))
        [first, last] = frees.lines
        assert "for run baking, at " in first
        assert last.endswith("a timeout of theirs is no fault of their own: call_tool of resting")
    finally:
        log.removeHandler(frees)


async def test_library_that_holds_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no function of a user's runs, it is the callback that still runs a second later."""
    monkeypatch.setattr(loop_watch, "HELD_AFTER", 0.2)
    counted: list[tuple[str, float]] = []
    frees, log = Frees(), logging.getLogger("perdure.worker")
    freed.clear()
    log.addHandler(frees)
    try:
        async with asyncio.timeout(HANGS), watch_loop(lambda name, seconds: counted.append((name, seconds))):
            loop = asyncio.get_running_loop()
            while not counted:
                # A callback of the standard library's alone.
                loop.call_soon(freed.wait, HANGS)
                await asyncio.sleep(0)
                await asyncio.sleep(0.05)
    finally:
        log.removeHandler(frees)
    assert counted[0][0].endswith("of threading")


async def test_loop_that_waits_is_held_by_nobody() -> None:
    """Nor is one that the machine gives no time: neither runs a function."""
    seen: list[Holder | None] = []
    loop_thread = threading.get_ident()

    def look(ended: Callable[[], None]) -> None:
        frame: FrameType | None = None
        while frame is None or frame.f_code.co_name != "select":
            frame = sys._current_frames().get(loop_thread)
        seen.append(find_holder(frame))
        ended()

    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    threading.Thread(target=look, args=(lambda: loop.call_soon_threadsafe(done.set),)).start()
    await asyncio.wait_for(done.wait(), HANGS)
    assert seen == [None]


async def test_seconds_are_counted_by_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_watch, "HELD_AFTER", 0.2)
    counted: list[tuple[str, float]] = []
    began = time.monotonic()

    async def held() -> None:
        while not counted and time.monotonic() - began < HANGS:
            await call_function(threads, "tool:slow", block, is_async=True)
            await asyncio.sleep(0)  # the loop runs again

    async def block() -> None:
        freed.wait(1.5)

    freed.clear()
    threads = FunctionThreads(1, lambda: None)
    async with watch_loop(lambda name, seconds: counted.append((name, seconds))):
        await held()
    [(name, seconds)] = counted[:1]
    assert name == "tool `slow`"
    assert seconds >= 0.2
