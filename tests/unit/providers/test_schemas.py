"""Schemas of tools: sent as the provider takes them, or refused when the agent is defined."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import pytest
from pydantic import BaseModel, Field

from perdure import Agent, DefinitionError, ModelConfig, RemoteTool, tool
from perdure.model import ModelRequest, ToolDefinition
from perdure.providers import capabilities_of
from perdure.providers.capability_table import capability_table
from perdure.providers.schemas import sendable_schema

from .bodies import taken_body

Schema = dict[str, Any]


def remote(properties: Schema, name: str = "find", **more: Any) -> RemoteTool:
    schema = {"type": "object", "properties": properties, **more}
    return RemoteTool(name=name, description="Finds.", task_queue="shop", input_schema=schema)


@tool
def umlaut(größe: int) -> str:  # noqa: PLC2401 - the name is what providers refuse
    """Find by size."""
    return str(größe)


class Found(BaseModel):
    total: int = Field(alias="$total")


CLAUDE = "anthropic:claude-x"
GPT = "openai:gpt-5"


def gpt(**capabilities: Any) -> ModelConfig:
    return ModelConfig(name=GPT, options={"capabilities": capabilities})


@pytest.mark.parametrize(
    ("agent", "named"),
    [
        ({"model": CLAUDE, "tools": [remote({"filter[id]": {}})]}, r"'find'.*'filter\[id\]'"),
        ({"model": "bedrock:eu.anthropic.claude-x", "tools": [remote({"a b": {}})]}, "'a b'"),
        ({"model": CLAUDE, "tools": [umlaut]}, "'umlaut'.*'größe'"),
        ({"model": CLAUDE, "tools": [remote({"a" * 65: {}})]}, "a" * 65),
        ({"model": CLAUDE, "output_type": Found}, r"output_type.*'\$total'"),
        ({"model": GPT, "fallbacks": [CLAUDE], "tools": [umlaut]}, "anthropic:claude-x.*'größe'"),
        ({"model": GPT, "tools": [remote({}, name=f"t{n}") for n in range(129)]}, "at most 128 tools"),
        ({"model": "bedrock:deepseek.r1-v1:0", "tools": [remote({})]}, "takes no tools, and find"),
        ({"model": gpt(tool_name="[a-c]+"), "tools": [umlaut]}, "'umlaut'"),
        ({"model": gpt(most_depth=2), "tools": [remote({"a": {"items": {}}})]}, "3 levels"),
        ({"model": gpt(wings=2)}, "'wings'"),
        ({"model": gpt(images=2)}, "'images'"),
    ],
)
def test_refused_schemas_are_found_at_definition(agent: Schema, named: str) -> None:
    """The message names the model, the tool and the property."""
    with pytest.raises(DefinitionError, match=f"agent 'clerk': .*{named}"):
        Agent(name="clerk", **agent)


NESTED = {"properties": {"filter[id]": {"type": "string"}}, "type": "object"}


@pytest.mark.parametrize(
    "agent",
    [
        {"model": GPT, "tools": [umlaut, remote({"filter[id]": {}})]},
        {"model": "own:claude", "tools": [umlaut]},
        {"model": "vllm:qwen3", "tools": [remote({}, name=f"t{n}") for n in range(200)]},
        # Anthropic checks the names at the top alone.
        {"model": CLAUDE, "tools": [remote({"where": NESTED})]},
        {
            "model": ModelConfig(name=CLAUDE, options={"capabilities": {"property_name": None}}),
            "tools": [umlaut],
        },
    ],
)
def test_schemas_that_are_taken_are_not_refused(agent: Schema) -> None:
    Agent(name="clerk", **agent)


class Branch(BaseModel):
    name: str
    inner: "list[Branch]" = []


class Choice(BaseModel):
    kind: Literal["a"] = "a"
    size: Annotated[int, Field(gt=0)] | None = None
    when: dict[str, Branch] = {}


@dataclass
class Output:
    tree: Branch
    choice: Choice | Branch | None
    number: Literal[1, 2] = 1
    pair: tuple[int, str] = (1, "")


def schema_of(model: str, schema: Schema) -> Schema:
    return sendable_schema(schema, capabilities_of(ModelConfig(name=model)))


def keywords_of(schema: Any) -> set[str]:
    found: set[str] = set()
    stack: list[Any] = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(node, dict):
            named = cast("Schema", node)
            found |= named.keys()
            stack += [value for key, value in named.items() if key != "properties"]
            stack += named.get("properties", {}).values()
    return found


def test_references_are_written_out() -> None:
    """Where the provider takes none; one within itself allows anything, for the reply is checked by the whole."""
    agent = Agent(name="clerk", model=GPT, output_type=Output)
    whole = agent.output_schema()
    assert whole is not None
    for model in ("gemini:gemini-x", "openai:gemini-pro", "bedrock:amazon.nova-pro-v1:0"):
        sent = schema_of(model, whole)
        assert "$ref" not in json.dumps(sent)
        assert sent["properties"]["tree"]["properties"]["name"]["type"] == "string"
    assert schema_of(GPT, whole)["$defs"].keys() == whole["$defs"].keys()


def test_keywords_of_the_list_alone_are_sent() -> None:
    agent = Agent(name="clerk", model=GPT, output_type=Output)
    for model in ("gemini:gemini-x", "openai:gemini-x"):
        sent = schema_of(model, agent.output_schema() or {})
        allowed = capabilities_of(ModelConfig(name=model)).keywords or ()
        assert keywords_of(sent) <= set(allowed)
    assert sent["properties"]["number"]["description"] == "One of: 1, 2."
    assert sent["properties"]["choice"]["nullable"] is True


@pytest.mark.parametrize("key", ["anyOf", "oneOf", "allOf"])
@pytest.mark.parametrize("model", [CLAUDE, GPT, "bedrock:amazon.nova-lite-v1:0", "azure:mine"])
def test_choices_at_the_top_become_parameters(key: str, model: str) -> None:
    """Providers refuse a choice at the top; the reply is checked by the whole schema."""
    whole = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        key: [{"required": ["a"]}, {"properties": {"b": {"type": "integer"}}, "required": ["b"]}],
    }
    sent = schema_of(model, whole)
    assert key not in sent
    assert sent["properties"] == {"a": {"type": "string"}, "b": {"type": "integer"}}
    assert sent.get("required", []) == (["a", "b"] if key == "allOf" else [])


def test_arrays_name_their_items() -> None:
    """OpenAI refuses an array without them, and an object without properties at the top."""
    assert (
        schema_of(GPT, {"type": "object", "properties": {"a": {"type": "array"}}})["properties"]["a"]["items"]
        == {}
    )
    assert schema_of(GPT, {"type": "object"}) == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    "model", [CLAUDE, GPT, "bedrock:amazon.nova-lite-v1:0", "openai:gemini-pro", "vllm:x"]
)
def test_schema_that_is_taken_stays(model: str) -> None:
    plain = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert schema_of(model, plain) is plain or schema_of(model, plain) == plain
    definition = ToolDefinition(name="t", description="", input_schema=plain)
    taken_body(ModelRequest(config=ModelConfig(name=model), tools=(definition,)))


def test_page_shows_the_table() -> None:
    """`python -m perdure.providers.capability_table` writes it."""
    page = Path(__file__).parents[3] / "docs" / "providers.md"
    assert capability_table() in page.read_text()
