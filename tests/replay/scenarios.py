"""The runs whose histories are kept: one scenario each, recorded by `make record-histories`."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from perdure import Agent, Limits, SlidingWindow, ask_person, tool
from perdure.errors import ModelError
from perdure.model import ModelRequest
from perdure.starter.client import Client
from perdure.starter.run import Run
from perdure.testing import ScriptedModel, calls, says
from tests.conftest import until_status


class Answer(BaseModel):
    city: str
    days: int


@tool
async def look(n: int) -> str:
    """Look."""
    return f"seen {n}"


@tool(effect="write", approval=True)
async def pay(cents: int) -> str:
    """Pay."""
    return f"paid {cents}"


@tool
async def hang() -> str:
    """Never answer."""
    await asyncio.Event().wait()
    return ""


def _agent(name: str, **changed: Any) -> Agent:
    settings: dict[str, Any] = {"model": "scripted:x", "tools": [look, pay, hang, ask_person]}
    return Agent(name=name, **{**settings, **changed})


AGENTS = [
    _agent("parallel"),
    _agent("approval"),
    _agent("stopped"),
    _agent("cancelled"),
    _agent("deadline", limits=Limits(timeout=timedelta(milliseconds=700))),
    _agent("parked"),
    _agent("typed", output_type=Answer, tools=[look]),
    _agent("limited", limits=Limits(tool_calls=2)),
    _agent("window", context=SlidingWindow(messages=6)),
    _agent("question"),
    _agent("continued", limits=Limits(steps=None)),
    _agent("fallback", model="broken:x", fallbacks=["scripted:x"]),
]

_failures: dict[str, int] = {}


def _script(request: ModelRequest) -> Any:
    task = request.messages[0].text
    step = request.step
    match task:
        case "parallel":
            return [calls("look", n=n) for n in range(3)] + [calls("nothing")] if step == 1 else says("done")
        case "approval":
            return [calls("look", n=1), calls("pay", cents=5)] if step == 1 else says("done")
        case "stopped" | "cancelled" | "deadline":
            return calls("hang")
        case "parked":
            _failures[task] = _failures.get(task, 0) + 1
            if _failures[task] == 1:
                raise ModelError("authentication", "no key")
            return says("done")
        case "typed":
            return calls("final_answer", city="Bonn", days="x" if step == 1 else 3)
        case "limited":
            return says("done") if request.tool_choice == "none" else calls("look", n=step)
        case "question":
            return calls("ask_person", question="Which?") if step == 1 else says("done")
        case _:
            return says("done") if step > 12 else calls("look", n=step)


def _broken(request: ModelRequest) -> Any:
    raise ModelError("not_found", "no such model")


MODELS = {"scripted": ScriptedModel(_script), "broken": ScriptedModel(_broken)}


async def _nothing(client: Client, run: Run) -> None:
    pass


async def _approve(client: Client, run: Run) -> None:
    await until_status(client, run.id, "waiting_approval")
    await run.send("by the way")
    await run.decide("call-1-2", allow=True, by="lee", arguments={"cents": 4})


async def _stop(client: Client, run: Run) -> None:
    await until_status(client, run.id, "acting")
    await run.stop()


async def _cancel(client: Client, run: Run) -> None:
    await until_status(client, run.id, "acting")
    await run.cancel()


async def _resume(client: Client, run: Run) -> None:
    await until_status(client, run.id, "parked")
    await run.resume()


async def _answer(client: Client, run: Run) -> None:
    await until_status(client, run.id, "waiting_person")
    await run.pause()
    await run.resume()
    await run.send("the blue one")


_PEOPLE: dict[str, Callable[[Client, Run], Awaitable[None]]] = {
    "approval": _approve,
    "stopped": _stop,
    "cancelled": _cancel,
    "parked": _resume,
    "question": _answer,
}


async def play(client: Client, name: str) -> Run:
    """Play the scenario to its end."""
    run = await client.start(name, name, id=f"replay-{name}", user="ann")
    await _PEOPLE.get(name, _nothing)(client, run)
    await run.result()
    return run
