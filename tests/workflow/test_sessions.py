"""Sessions: turns, messages that come again, limits, idleness, and continue-as-new in mid-turn."""

from typing import Any

from perdure import (
    Agent,
    ask_person,
    tool,
)
from perdure.messages import Text
from perdure.model import ModelRequest
from perdure.testing import Line, ScriptedModel, calls, says
from tests.conftest import Serve, texts


@tool
async def work(n: int) -> str:
    """Work."""
    return "x" * 200


@tool(approval=True, effect="write")
async def pay(n: int) -> str:
    """Pay."""
    return f"paid {n}"


def chatty(**changed: Any) -> Agent:
    settings: dict[str, Any] = {"name": "chatty", "model": "scripted:x", "tools": [work, pay, ask_person]}
    return Agent(**{**settings, **changed})


def newest(request: ModelRequest) -> str:
    """What the person said last."""
    return next(m.text for m in reversed(request.messages) if m.role == "user")


def echo(request: ModelRequest) -> Line:
    """Says what was said; "work n" calls a tool first, n times."""
    said = newest(request)
    if said.startswith("work "):
        done = 0
        for message in reversed(request.messages):
            if message.role == "user":
                break
            done += message.role == "tool"
        if done < int(said.removeprefix("work ")):
            return calls("work", n=done)
    return says(f"you said: {said}")


def models(script: Any = echo) -> dict[str, Any]:
    return {"scripted": ScriptedModel(script)}


async def test_a_session_remembers_from_turn_to_turn(serve: Serve) -> None:
    seen: list[list[str]] = []

    def script(request: ModelRequest) -> Line:
        seen.append(texts(request.messages))
        return echo(request)

    async with serve(chatty(), models=models(script)) as client:
        session = await client.session("ticket-77", agent="chatty", user="ann")
        first = await session.say("I am Ann")
        second = await session.say([Text(text="who am I?")])
        status = await session.status()
        described = await session.run.described()
    assert (first.turn, first.text, first.output, first.stop_reason, first.done) == (
        1,
        "you said: I am Ann",
        "you said: I am Ann",
        "end_turn",
        True,
    )
    assert (second.turn, second.text, second.steps) == (2, "you said: who am I?", 1)
    assert seen[1] == ["I am Ann", "you said: I am Ann", "who am I?"]
    assert (status.status, status.kind, status.turn, status.messages) == ("idle", "session", 2, 4)
    assert first.usage + second.usage == status.usage
    assert first.cost_microusd is not None
    assert second.cost_microusd is not None
    assert first.cost_microusd + second.cost_microusd == status.cost_microusd
    assert described.workflow_type == "SessionWorkflow"
