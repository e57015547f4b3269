"""Wrong names in definitions, tools that are methods, and tools with a given schema."""

from typing import Any

import pytest

from perdure import (
    Agent,
    DefinitionError,
    Edge,
    Fallback,
    Graph,
    McpServer,
    Node,
    RemoteTool,
    Swarm,
    ToolContext,
    ToolFallback,
    ToolRetry,
    tool,
)
from perdure.tools import Tool

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"sku": {"type": "string"}, "count": {"type": "integer", "default": 1}},
    "required": ["sku"],
}


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        (
            Agent,
            {"name": "a", "model": "scripted:x", "instuctions": "x"},
            "Agent 'a'.*did you mean 'instructions'",
        ),
        (Agent, {"name": "a"}, "Agent 'a': model is missing"),
        (Agent, {"name": "a", "model": "scripted:x", "models": ()}, "no setting 'models'"),
        (Swarm, {"name": "s", "agent": []}, "did you mean 'agents'"),
        (Graph, {"name": "g", "nods": {}}, "did you mean 'nodes'"),
        (Node, {}, "Node: .* is missing"),
        (Edge, {"weight": 1}, "Edge: there is no setting 'weight'"),
        (RemoteTool, {"name": "r", "queue": "q"}, "did you mean 'task_queue'"),
        (McpServer, {"name": "m", "adress": "x"}, "McpServer 'm': there is no setting 'adress'"),
        (ToolRetry, {"attempt": 3}, "did you mean 'attempts'"),
        (Fallback, {"modle": "x"}, "did you mean 'model'"),
        (ToolFallback, {"tol": "x"}, "did you mean 'tool'"),
    ],
)
def test_wrong_name_is_told(kind: Any, settings: dict[str, Any], why: str) -> None:
    """A name that is misspelt, not there or missing is a DefinitionError with what was meant."""
    with pytest.raises(DefinitionError, match=why):
        kind(**settings)


def test_wrong_setting_of_a_tool_is_told() -> None:
    settings: dict[str, Any] = {"aproval": True}
    with pytest.raises(
        DefinitionError, match="tool 'look': there is no setting 'aproval'; did you mean 'approval'"
    ):

        @tool(**settings)
        def look() -> str:
            """Look."""
            return ""


class Desk:
    """An object whose methods are tools."""

    def __init__(self, name: str) -> None:
        self.name = name

    @tool(effect="write")
    async def sell(self, sku: str, context: ToolContext) -> str:
        """Sell an article."""
        return f"{self.name} sells {sku}"

    @tool
    def count(self, sku: str) -> str:
        """Count an article."""
        return f"{self.name} counts {sku}"

    @staticmethod
    @tool
    def close() -> str:
        """Close."""
        return "closed"


async def test_method_is_a_tool_of_its_object() -> None:
    """Each object has its own; `self` is no parameter for the model; unbound, the tool is refused."""
    north, south = Desk("north"), Desk("south")
    agent = Agent(name="a", model="scripted:x", tools=[north.sell, south.count, Desk.close])
    sell, count, close = (each for each in agent.tools if isinstance(each, Tool))
    assert list(sell.input_schema["properties"]) == ["sku"]
    assert (sell.is_async, sell.effect, count.is_async) == (True, "write", False)
    assert await sell(sku="A1", context=None) == "north sells A1"
    assert count(sku="A1") == "south counts A1"
    assert close() == "closed"
    with pytest.raises(DefinitionError, match=r"'sell' is a method; take it from an object"):
        Agent(name="a", model="scripted:x", tools=[Desk.sell])


def test_given_schema_is_used() -> None:
    """The model gets the schema as it was given; arguments are checked by it, and made canonical."""

    @tool(schema=SCHEMA, description="Look for an article.", resource="sku")
    def look(context: ToolContext, **arguments: Any) -> Any:
        return arguments

    assert (look.input_schema, look.description) == (SCHEMA, "Look for an article.")
    assert look.signature.canonical({"sku": "A1", "count": "7"}, "sku") == {"sku": "A1", "count": 7}
    assert look.signature.bind({"sku": "A1"}) == {"sku": "A1"}
    with pytest.raises(ValueError, match="sku"):
        look.signature.bind({"count": 1})


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "array"}, "type must be 'object'"),
        ({"type": "object", "properties": {"context": {}}}, "which is the ToolContext"),
        ({"type": "object", "properties": {"other": {}}}, "no such parameter"),
        ({"type": "object", "properties": {"sku": {}}}, "has no default, and the schema does not require it"),
    ],
)
def test_schema_fits_its_function(schema: dict[str, Any], why: str) -> None:
    """A schema that the function cannot be called by is refused where the tool is made."""

    def look(sku: str, context: ToolContext) -> str:
        """Look."""
        return sku

    with pytest.raises(DefinitionError, match=why):
        tool(schema=schema)(look)
