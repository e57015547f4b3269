"""Agents for tests that kill their worker: everything they do is written into a ledger on disk."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from perdure import Agent, Hook, Limits, ToolContext, tool
from perdure.hooks import HookedCall
from perdure.model import ModelEvent, ModelRequest, Reply
from perdure.testing import Line, ScriptedModel, calls, says

LEDGER = Path(os.environ.get("CREW_LEDGER", "/nonexistent/ledger.db"))
"""An SQLite file that outlives the worker: `happened` in order, `effects` once a key."""

ANSWER = "".join(f"word{n} " for n in range(4_000))
"""About 9,000 tokens."""

BRIEF = " ".join(f"word{n}" for n in range(100))

_SCHEMA = """
create table if not exists happened (what text, run text, detail text);
create table if not exists effects (key text primary key, run text, tool text);
"""


def prepare(ledger: Path) -> None:
    """Make an empty ledger."""
    with closing(sqlite3.connect(ledger)) as db:
        db.executescript("pragma journal_mode=wal;" + _SCHEMA)


def note(what: str, run: str, detail: str = "") -> None:
    """Write down that something happened; durable at once, whoever is killed next."""
    with closing(sqlite3.connect(LEDGER, timeout=30)) as db, db:
        db.execute("insert into happened values (?, ?, ?)", (what, run, detail))


def take_effect(context: ToolContext, name: str) -> str:
    """Do the effect, unless its key shows that it has been done."""
    note(name, context.run_id, context.idempotency_key)
    with closing(sqlite3.connect(LEDGER, timeout=30)) as db, db:
        done = db.execute(
            "insert into effects values (?, ?, ?) on conflict do nothing",
            (context.idempotency_key, context.run_id, name),
        )
        return "done" if done.rowcount else "had been done already"


@tool(effect="write")
async def charge(context: ToolContext) -> str:
    """Charge: the effect, then some more work, so that a kill falls between effect and answer."""
    said = take_effect(context, "charge")
    await asyncio.sleep(0.3)
    return said


@tool(effect="write", approval=True)
def refund(context: ToolContext) -> str:
    """Refund, in a thread."""
    return take_effect(context, "refund")


@tool
async def look(n: int) -> str:
    """Look."""
    await asyncio.sleep(0.05)
    return f"seen {n}"


async def _work(request: ModelRequest) -> Any:
    note("model", request.user or "", str(request.step))
    await asyncio.sleep(0.3)
    match request.step:
        case 1:
            return [calls("look", n=1), calls("charge")]
        case 2:
            return calls("refund")
        case 3:
            return [calls("look", n=2), calls("charge")]
        case _:
            return says("all done")


async def _talk(request: ModelRequest) -> Any:
    """Each turn looks, charges, and says what was asked."""
    note("model", request.user or "", str(request.step))
    await asyncio.sleep(0.2)
    if request.messages[-1].role == "tool":
        said = [message.text for message in request.messages if message.role == "user"]
        return says(f"done: {said[-1]}")
    return [calls("look", n=1), calls("charge")]


async def _hang(request: ModelRequest) -> Line:
    """A model that takes five minutes the first time, as far as anyone can tell."""
    attempt_file = LEDGER.with_suffix(".hung")
    note("model", request.user or "", str(request.step))
    if not attempt_file.exists():
        attempt_file.touch()
        await asyncio.sleep(300)
    return says("back again")


def _long(request: ModelRequest) -> Line:
    note("model", request.user or "", str(request.step))
    return says(ANSWER)


async def _brief(request: ModelRequest) -> Any:
    if request.tools and request.messages[-1].role != "tool":
        return [calls("look", n=1), calls("charge")]
    return says(BRIEF)


class Mortal(ScriptedModel):
    """Model whose first call ends its process, after the last word and before the end of the answer."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        async for event in super().stream(request):
            has_died = LEDGER.with_suffix(".died")
            if isinstance(event, Reply) and not has_died.exists():
                has_died.touch()
                await asyncio.sleep(0.5)  # the heartbeat with the words is on its way
                os.kill(os.getpid(), signal.SIGKILL)
            yield event


class Noting(Hook):
    """Hook that writes down each question."""

    async def before_tool(self, call: HookedCall) -> None:
        note("hook", call.run.run_id, call.call_id)


@tool(effect="write")
async def charge_slowly(context: ToolContext) -> str:
    """Charge; the first attempt takes five minutes."""
    said = take_effect(context, "charge_slowly")
    if context.attempt == 1:
        await asyncio.sleep(300)
    return said


async def _outlive(context: ToolContext) -> str:
    """Look; each of the first three attempts takes five minutes."""
    note("outlive", context.run_id, context.idempotency_key)
    if context.attempt <= 3:
        await asyncio.sleep(300)
    return f"seen at attempt {context.attempt}"


def _outlive_once(request: ModelRequest) -> Line:
    last = request.messages[-1]
    return says(last.text) if last.role == "tool" else calls(request.tools[0].name)


outlive = tool(name="outlive")(_outlive)
outlive_quickly = tool(name="outlive_quickly", heartbeat=timedelta(seconds=1))(_outlive)


def _charge_once(request: ModelRequest) -> Line:
    return calls("charge_slowly") if request.step == 1 else says(request.messages[-1].text)


guarded = Agent(name="guarded", model="charge:x", tools=[charge_slowly], hooks=[Noting()])
worker_of_many = Agent(name="many", model="scripted:work", tools=[charge, refund, look])
patient = Agent(name="patient", model="outlive:x", tools=[outlive])
impatient = Agent(name="impatient", model="outlive:x", tools=[outlive_quickly])
hanging = Agent(name="hanging", model="hang:x", limits=Limits(timeout=timedelta(minutes=10)))
clerk = Agent(name="clerk", model="talk:x", tools=[charge, look])
talker = Agent(name="talker", model="long:x")
teller = Agent(name="teller", model="brief:x")
counter = Agent(name="counter", model="brief:x", tools=[charge, look])
mortal = Agent(name="mortal", model="mortal:x")

models = {
    "scripted": ScriptedModel(_work),
    "charge": ScriptedModel(_charge_once),
    "hang": ScriptedModel(_hang),
    "outlive": ScriptedModel(_outlive_once),
    "talk": ScriptedModel(_talk),
    "long": ScriptedModel(_long, delay=timedelta(milliseconds=100), chunk=300),
    "brief": ScriptedModel(_brief, delay=timedelta(milliseconds=20), chunk=40),
    "mortal": Mortal([says(BRIEF)], delay=timedelta(milliseconds=20), chunk=40),
}
