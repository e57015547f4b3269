"""Swarms: what is refused when one is made, and what its spec says."""

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from perdure.agent import Agent
from perdure.errors import DefinitionError
from perdure.limits import Limits, SwarmLimits
from perdure.prices import Price, PriceTable
from perdure.schema import check_schema, problem_with
from perdure.swarm import HANDOFF_TOOL, Swarm
from perdure.tools import RemoteTool, tool
from perdure.wire.names import HANDOFF
from perdure.wire.spec import AnySpec


@tool
def work(n: int) -> str:
    """Work."""
    return str(n)


class Answer(BaseModel):
    city: str


def agent(name: str, **changed: Any) -> Agent:
    settings: dict[str, Any] = {"name": name, "model": "scripted:x"}
    return Agent(**{**settings, **changed})


WRITER, EDITOR = agent("writer", tools=[work]), agent("editor")


def swarm(**changed: Any) -> Swarm:
    settings: dict[str, Any] = {"name": "desk", "agents": [WRITER, EDITOR]}
    return Swarm(**{**settings, **changed})


def looking_back(window: int, unique: int) -> SwarmLimits:
    return SwarmLimits(
        repetitive_handoff_detection_window=window, repetitive_handoff_min_unique_agents=unique
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"name": "a b"}, "swarm name 'a b'"),
        ({"name": ""}, "starting with a letter"),
        ({"agents": []}, "swarm 'desk': it has no agents"),
        ({"agents": WRITER}, "agents must be a list"),
        ({"agents": [WRITER, "editor"]}, "'editor' is not an Agent"),
        ({"agents": [WRITER, agent("writer")]}, "two agents are called 'writer'"),
        ({"agents": [WRITER, WRITER]}, "two agents are called 'writer'"),
        ({"agents": [agent("desk")]}, "two different agents, swarms, graphs or patterns are called 'desk'"),
        ({"entry": "boss"}, r"entry 'boss' is not one of its agents \(writer, editor\)"),
        ({"entry": agent("boss")}, "entry 'boss' is not one of its agents"),
        ({"entry": agent("writer", instructions="Another.")}, "entry 'writer' is not one of its agents"),
        ({"entry": 1}, "entry must be Agent or text or None, not 1"),
        ({"limits": Limits()}, "limits must be SwarmLimits"),
        ({"limits": looking_back(3, 4)}, "is 4, which 3 runs"),
        ({"limits": looking_back(0, 1)}, "is 1, which 0 runs"),
        ({"limits": SwarmLimits(per_tool={"wrok": 1})}, "names 'wrok', which is not a tool of its agents"),
    ],
)
def test_invalid_swarm_is_rejected_at_construction(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(DefinitionError, match=why):
        swarm(**changed)


def test_no_tool_is_named_like_handoff() -> None:
    mine = RemoteTool(name=HANDOFF, description="x", input_schema={"type": "object"}, task_queue="q")
    with pytest.raises(DefinitionError, match=f"the tool name '{HANDOFF}' is reserved"):
        swarm(agents=[agent("writer", tools=[mine])])


def test_first_agent_gets_task_by_default() -> None:
    assert swarm().entry_name == "writer"
    assert swarm(entry="editor").entry_name == "editor"
    assert swarm(entry=EDITOR).entry_name == "editor"


@pytest.mark.parametrize("limits", [looking_back(0, 0), looking_back(4, 0), looking_back(3, 3)])
def test_repetition_window_may_be_long(limits: SwarmLimits) -> None:
    assert swarm(limits=limits).limits == limits


def test_agents_may_have_output_types() -> None:
    """Agents may answer in a type, and count their tools together."""
    typed = agent("editor", output_type=Answer)
    made = swarm(agents=[WRITER, typed], limits=SwarmLimits(per_tool={"work": 3}))
    assert list(made.members.items()) == [("writer", WRITER), ("editor", typed)]


def test_changed_list_does_not_change_swarm() -> None:
    agents = [WRITER]
    made = swarm(agents=agents)
    agents.append(EDITOR)
    assert list(made.members) == ["writer"]


def test_spec_lists_members_in_order() -> None:
    spec = swarm(entry=EDITOR, description="Writes.").spec()
    assert (spec.name, spec.entry, spec.description) == ("desk", "editor", "Writes.")
    assert spec.agents == ("writer", "editor")
    assert spec.member_hashes == (WRITER.spec().hash, EDITOR.spec().hash)
    assert spec.kind == Swarm.member_kind


def test_a_spec_survives_being_written_down() -> None:
    spec = swarm(limits=SwarmLimits(node_timeout=timedelta(seconds=9))).spec()
    adapter: TypeAdapter[AnySpec] = TypeAdapter(AnySpec)
    again = adapter.validate_json(spec.model_dump_json())
    assert again == spec
    assert again.hash == spec.hash


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"description": "Writes."},
        {"entry": "editor"},
        {"agents": [EDITOR, WRITER], "entry": "writer"},
        {"agents": [agent("writer", tools=[work], instructions="Be kind."), EDITOR]},
        {"limits": SwarmLimits(max_handoffs=1)},
    ],
)
def test_hash_covers_all_behaviour(changed: dict[str, Any]) -> None:
    assert swarm(**changed).spec().hash != swarm().spec().hash
    assert swarm(**changed).spec().hash == swarm(**changed).spec().hash


def test_cost_limit_needs_every_price() -> None:
    agents = [WRITER, agent("editor", model="nobody:knows")]
    assert swarm(agents=agents).spec().member_hashes
    with pytest.raises(DefinitionError, match=r"agent 'editor'.*the price of nobody:knows is not known"):
        swarm(agents=agents, limits=SwarmLimits(cost_usd=1)).spec()
    with pytest.raises(DefinitionError, match="not known"):
        swarm(agents=agents).spec(cost_limited=True)


def test_prices_do_not_change_hash() -> None:
    price = Price(input=1, output=1, cache_read=1, cache_write=1)
    entry = {"model": "*", "effective": "2026-01-01", "price": price.model_dump()}
    table = PriceTable.model_validate({"version": "x", "entries": [entry]})
    agents = [WRITER, agent("editor", model="nobody:knows")]
    priced = swarm(agents=agents).spec(prices=table, cost_limited=True)
    assert priced.hash == swarm(agents=agents).spec().hash


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ({"agent_name": "editor", "message": "go"}, True),
        ({"agent_name": "editor", "message": "go", "context": {"a": [1]}}, True),
        ({"agent_name": "editor"}, False),
        ({"message": "go"}, False),
        ({"agent_name": "editor", "message": "go", "context": "a"}, False),
        ({"agent_name": "editor", "message": "go", "more": 1}, False),
    ],
)
def test_handoff_needs_agent_and_message(arguments: dict[str, Any], fits: bool) -> None:
    check_schema(HANDOFF_TOOL.input_schema, "handoff")
    assert (problem_with(arguments, HANDOFF_TOOL.input_schema) is None) == fits


def test_model_knows_handoff_ends_turn() -> None:
    assert HANDOFF_TOOL.name == "handoff_to_agent"
    assert "turn ends at once" in HANDOFF_TOOL.description
