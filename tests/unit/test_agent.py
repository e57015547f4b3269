"""Agents: what is refused when one is made, and what its spec hash tells apart."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from perdure.agent import Agent
from perdure.context import SlidingWindow
from perdure.errors import DefinitionError
from perdure.limits import Limits
from perdure.model import ModelConfig
from perdure.policy import Policy, Rule
from perdure.prices import Price, PriceTable, shipped_prices
from perdure.tools import RemoteTool, ask_person, tool
from perdure.wire.spec import AgentSpec

ROOT = Path(__file__).parents[2]


@tool
def work(n: int) -> str:
    """Work."""
    return str(n)


FAR = RemoteTool(name="final_answer", description="x", input_schema={"type": "object"}, task_queue="q")


class Answer(BaseModel):
    city: str


class Tree(BaseModel):
    children: "list[Tree]" = []


class Callback(BaseModel):
    f: Callable[[int], int]


class Lost(BaseModel):
    f: "Nowhere"  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


def agent(**changed: Any) -> Agent:
    settings: dict[str, Any] = {"name": "a", "model": "scripted:x"}
    return Agent(**{**settings, **changed})


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"name": "a b"}, "agent name 'a b'"),
        ({"name": ""}, "agent name ''"),
        ({"name": "a\n"}, "starting with a letter"),
        ({"name": "x" * 65}, "use letters"),
        ({"model": "claude"}, 'write it as "provider:model"'),
        ({"model": ":x"}, 'write it as "provider:model"'),
        ({"model": None}, "model must be text or ModelConfig, not None"),
        ({"model": ModelConfig(name="p:x", timeout=timedelta())}, "timeout must be positive"),
        ({"fallbacks": ["x"]}, "model 'x'"),
        ({"tools": [len]}, "is not a tool; put @tool above the function"),
        ({"tools": ask_person}, "tools must be a list"),
        ({"tools": [work, work]}, "two tools are called 'work'"),
        (
            {
                "tools": [
                    RemoteTool(
                        name="final_answer", description="x", input_schema={"type": "object"}, task_queue="q"
                    )
                ]
            },
            "'final_answer' is reserved",
        ),
        ({"limits": Limits(per_tool={"wrok": 1})}, "names 'wrok', which is not one of its tools"),
        ({"output_repairs": -1}, "output_repairs must be 0 or more"),
        ({"tool_concurrency": 0}, "tool_concurrency must be 1 or more"),
        ({"result_preview_bytes": 10}, "result_preview_bytes must be 256 or more"),
        ({"output_type": object()}, "output_type:"),
        ({"output_type": Callback}, "output_type:"),
        ({"output_type": Lost}, "output_type:"),
    ],
)
def test_invalid_agent_is_rejected_at_construction(changed: dict[str, Any], why: str) -> None:
    """An agent that could not run is rejected when it is constructed."""
    with pytest.raises(DefinitionError, match=why):
        agent(**changed)


def test_cost_limit_needs_every_price() -> None:
    """A cost limit needs the price of every model of the chain."""
    bounded = agent(limits=Limits(cost_usd=1), fallbacks=["nobody:knows"])
    with pytest.raises(DefinitionError, match="the price of nobody:knows is not known"):
        bounded.spec()
    with pytest.raises(DefinitionError, match="not known"):
        agent(model="nobody:knows").spec(cost_limited=True)
    assert agent(model="nobody:knows").spec().models[0].price is None


def test_an_output_type_may_contain_itself() -> None:
    schema = agent(output_type=Tree).output_schema()
    assert schema is not None
    assert schema["type"] == "object"
    assert schema["$defs"]["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}


def test_a_spec_survives_being_written_down() -> None:
    spec = agent(tools=[work, ask_person], output_type=Answer, policy=Policy()).spec()
    again = AgentSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.hash == spec.hash


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "b"},
        {"instructions": "Be kind."},
        {"model": "scripted:y"},
        {"model": ModelConfig(name="scripted:x", temperature=0.5)},
        {"model": ModelConfig(name="scripted:x", max_tokens=5)},
        {"fallbacks": ["scripted:y"]},
        {"tools": [work]},
        {"tools": [ask_person]},
        {"limits": Limits(steps=3)},
        {"policy": Policy()},
        {"policy": Policy(rules=(Rule(verdict="allow"),))},
        {"context": SlidingWindow(messages=9)},
        {"output_type": Answer},
        {"output_repairs": 0},
        {"tool_concurrency": 1},
        {"result_preview_bytes": 1000},
        {"on_failure": "fail"},
    ],
)
def test_hash_covers_all_behaviour(changed: dict[str, Any]) -> None:
    """The hash differs for whatever shapes behaviour."""
    assert agent(**changed).spec().hash != agent().spec().hash
    assert agent(**changed).spec().hash == agent(**changed).spec().hash


@pytest.mark.parametrize(
    "changed",
    [
        {"description": "Other."},
        {"effect": "write"},
        {"approval": True},
        {"timeout": timedelta(seconds=3)},
        {"concurrency": 2},
        {"resource": "n"},
        {"task_queue": "q"},
    ],
)
def test_hash_covers_tool_settings(changed: dict[str, Any]) -> None:
    """The hash differs for tools with other settings."""
    other = tool(name="work", **changed)(work.function)
    assert agent(tools=[other]).spec().hash != agent(tools=[work]).spec().hash


def test_hash_ignores_prices() -> None:
    """The hash does not depend on prices."""
    price = Price(input=1, output=1, cache_read=1, cache_write=1)
    dear = PriceTable.model_validate(
        {"version": "x", "entries": [{"model": "*", "effective": "2026-01-01", "price": price.model_dump()}]}
    )
    one, two = agent().spec(prices=dear.over(shipped_prices())), agent().spec(today=date(2026, 11, 20))
    assert one.models[0].price != two.models[0].price
    assert one.hash == two.hash


_ELSEWHERE = """
from typing import Literal
from perdure import Agent, Limits, tool

@tool
def work(tags: frozenset[str] = frozenset({"a", "b", "c", "d", "e"}), how: Literal["x", "y"] = "x") -> str:
    "Work."
    return ""

print(Agent(name="a", model="scripted:x", tools=[work], limits=Limits(per_tool={"work": 3})).spec().hash)
"""


def test_hash_is_same_in_every_process() -> None:
    hashes = {
        subprocess.run(
            [sys.executable, "-c", _ELSEWHERE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(hashes) == 1
