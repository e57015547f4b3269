"""Typed outputs: any type that pydantic can read, as JSON in history and as its own value for who knows the agent."""

import json
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal, assert_type

import pytest
from pydantic import BaseModel, ConfigDict, Field

from perdure import Agent, DefinitionError, OutputMismatch, Swarm
from perdure.model import ModelRequest
from perdure.testing import Line, ScriptedModel, calls, says
from tests.conftest import Serve


class Day(BaseModel):
    """A day with its words."""

    model_config = ConfigDict(strict=True)
    on: date
    note: str | None = None


class Night(BaseModel):
    hours: float


@dataclass
class Pair:
    left: int
    right: int


class Node(BaseModel):
    name: str
    below: list["Node"] = Field(default_factory=list["Node"])


DAY = {"on": "2026-12-01", "note": None}
OUTPUTS: list[tuple[Any, Any, Any]] = [
    (list[int], [1, 2, 3], [1, 2, 3]),
    (list[int], [], []),
    (int, 0, 0),
    (bool, False, False),
    (float, 2.5, 2.5),
    (date, "2026-12-01", date(2026, 12, 1)),
    (Literal["low", "high"], "low", "low"),
    (dict[str, int], {"value": 1}, {"value": 1}),
    (tuple[int, str], [1, "a"], (1, "a")),
    (int | str, "seven", "seven"),
    (Day, DAY, Day(on=date(2026, 12, 1))),
    (Day | Night, {"hours": 7.5}, Night(hours=7.5)),
    (list[Day], [DAY], [Day(on=date(2026, 12, 1))]),
    (Pair, {"left": 1, "right": 2}, Pair(1, 2)),
    (list[Node], [{"name": "a", "below": [{"name": "b", "below": []}]}], None),
]


def script(request: ModelRequest) -> Line:
    """Give the output that the prompt names by its number: by a call, or in a text."""
    number, _, way = request.messages[0].text.partition(" ")
    output = OUTPUTS[int(number)][1]
    [final] = [tool for tool in request.tools if tool.name == "final_answer"]
    is_wrapped = (
        list(final.input_schema["properties"]) == ["value"] if "properties" in final.input_schema else False
    )
    if way == "text":
        return says(json.dumps(output))
    return calls("final_answer", **({"value": output} if is_wrapped else output))


async def test_output_is_of_its_type(serve: Serve) -> None:
    """Whatever the type is: history has its JSON, and who gives the agent gets a value of the type."""
    agents = [
        Agent(name=f"agent-{number}", model="scripted:x", output_type=kind)
        for number, (kind, _, _) in enumerate(OUTPUTS)
    ]
    async with serve(*agents, models={"scripted": ScriptedModel(script)}) as client:
        for number, (kind, plain, value) in enumerate(OUTPUTS):
            for way in ("call", "text"):
                started = await client.start(agents[number], f"{number} {way}")
                assert (await client.get(started.id).result()).output == plain, (kind, way)
                output = (await started.result()).output
                assert value is None or (output, type(output)) == (value, type(value)), (kind, way)
        nodes = (await client.run(agents[-1], f"{len(OUTPUTS) - 1} call")).output
        assert nodes is not None
        assert nodes[0].below[0] == Node(name="b")
        session = await client.session("days", agent=agents[10])
        assert (await session.say("10 call")).output == OUTPUTS[10][2]


async def test_unfit_output_is_repaired(serve: Serve) -> None:
    """A value that is not of the type goes back to the model, with the reason."""
    answers = iter((["one"], [1]))
    agent = Agent(name="a", model="scripted:x", output_type=list[int])
    script = ScriptedModel(lambda request: calls("final_answer", value=next(answers)))
    async with serve(agent, models={"scripted": script}) as client:
        run = await client.start(agent, "go")
        result = await run.result()
        [refused] = (await run.transcript())[2].tool_results
    assert (result.output, result.steps, refused.is_error) == ([1], 2, True)
    assert "value" in refused.text


async def test_output_of_another_type_is_named(serve: Serve) -> None:
    """A program whose agent has another output type than the worker's learns it, and has the output still."""
    agent = Agent(name="a", model="scripted:x", output_type=list[int])
    script = ScriptedModel([calls("final_answer", value=[1])])
    async with serve(agent, models={"scripted": script}) as client:
        run = await client.start(replace(agent, output_type=Pair), "go")
        with pytest.raises(OutputMismatch, match="another version") as unread:
            await run.result()
        assert unread.value.output == [1]
        assert (await client.get(run.id, agent).result()).output == [1]


async def test_teams_and_texts_are_as_they_were(serve: Serve) -> None:
    """A team, and an agent without a type or with `str`, give what their last agent gives."""
    plain = Agent(name="plain", model="scripted:x", output_type=str)
    team = Swarm(name="team", agents=[plain])
    script = ScriptedModel(lambda request: says("hello"))
    async with serve(plain, team, models={"scripted": script}) as client:
        for member in (plain, team):
            assert (await client.run(member, "go")).output == "hello"


@pytest.mark.parametrize("kind", [int | None, Any, Day | None])
def test_none_is_no_output(kind: Any) -> None:
    """A type that takes None is refused: nobody could tell it from a run that ended without an output."""
    with pytest.raises(DefinitionError, match="must not take None"):
        Agent(name="a", model="scripted:x", output_type=kind)


async def reads_types(client: Any) -> None:  # pragma: no cover - read by type checkers alone
    """Types of results, as pyright and mypy see them."""
    from perdure import Client, Run, Session

    assert isinstance(client, Client)
    days: Agent[list[Day]] = Agent(name="days", model="scripted:x", output_type=list[Day])
    assert_type(await client.start(days, "go"), Run[list[Day] | None])
    assert_type((await client.run(days, "go")).output, list[Day] | None)
    assert_type(await client.session("s", agent=days), Session[list[Day] | None])
    assert_type((await client.run("days", "go")).output, Any)
