"""What models ask of tools, and what tools give back: a value, or a problem in words for the model."""

import dataclasses
import math
from collections.abc import Callable
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from perdure import Agent, tool
from perdure.activities.content.blobs import FileBlobs
from perdure.activities.content.reply import check_reply
from perdure.activities.content.results import to_content
from perdure.messages import Image, Message, ReplyMeta, Text, ToolCall, ToolResult
from perdure.model import Reply, ToolDefinition
from perdure.planning import plan_of
from perdure.providers import parse_tool_call
from perdure.schema import problem_with
from perdure.wire.effects import ModelOutcome, tail_digest
from perdure.wire.names import FINAL_ANSWER

from . import junk
from .depth import examples


class Colour(Enum):
    RED = "red"


class Tree(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str = Field(max_length=9)
    born: date | None = None
    weight: float = Field(default=1.0, multiple_of=0.5)
    inner: "list[Tree]" = []


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


@tool
def plant(
    tree: Tree, at: Point, colour: Colour, when: datetime, how: Literal["fast", "slow"] = "fast"
) -> str:
    """Plant a tree."""
    return "planted"


@tool
def count(n: int, names: set[str], weights: dict[str, float], anything: Any = None) -> str:
    """Count."""
    return "counted"


TOOLS = (plant, count)
VALID: dict[str, dict[str, Any]] = {
    "plant": {
        "tree": {"name": "oak", "born": "2020-01-01", "weight": 1.5, "inner": [{"name": "twig"}]},
        "at": {"x": 1, "y": 2.5},
        "colour": "red",
        "when": "2026-01-01T00:00:00Z",
    },
    "count": {"n": 3, "names": ["a", "b"], "weights": {"a": 1.5}, "anything": [1]},
}
SCHEMAS = [
    *(one.input_schema for one in TOOLS),
    {"type": "number", "multipleOf": 0.1, "maximum": 9.5},
    {"type": "string", "pattern": "^a", "format": "date"},
    {"type": "array", "uniqueItems": True, "contains": {"type": "integer"}},
    {
        "$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n"}}, "items": {"$ref": "#/$defs/n"}}},
        "$ref": "#/$defs/n",
    },
    {"enum": [1, "a", None]},
    {"not": {"const": 7}},
]


def arguments_for(name: str) -> st.SearchStrategy[Any]:
    near = st.builds(junk.mutated, st.just(VALID[name]), st.integers(0, 99), junk.news)
    return near | near | st.just(VALID[name]) | junk.anything


asked = st.sampled_from(TOOLS).flatmap(lambda one: st.tuples(st.just(one), arguments_for(one.name)))


@examples(300)
@given(asked)
def test_arguments_fit_or_are_explained(case: Any) -> None:
    """Arguments fit the function, or the model gets an explanation."""
    wanted, arguments = case
    if not isinstance(arguments, dict):
        return
    try:
        bound = wanted.signature.bind(arguments)
    except ValueError as error:
        str(error).encode("utf-8", "surrogatepass")
    else:
        assert set(bound) == set(wanted.input_schema["properties"])


@examples(300)
@given(junk.anything, st.sampled_from(SCHEMAS))
def test_any_value_meets_any_schema(value: Any, schema: Any) -> None:
    """Any value can be checked against any schema."""
    problem = problem_with(value, schema)
    assert problem is None or isinstance(problem, str)


def read_again(outcome: ModelOutcome) -> ModelOutcome:
    return ModelOutcome.model_validate_json(outcome.model_dump_json())


class City(BaseModel):
    name: str
    size: float = 0.0


TYPED = Agent(name="typed", model="scripted:x", output_type=City, tools=[*TOOLS])
UNTYPED = Agent(name="untyped", model="scripted:x", tools=[*TOOLS])
DEFINITIONS = tuple(
    ToolDefinition(name=one.name, description="x", input_schema=one.input_schema) for one in TOOLS
)
raw_arguments = st.one_of(
    junk.texts,
    st.sampled_from([100, 300, 100_000]).map(lambda n: "[" * n),
    st.sampled_from(
        [
            '{"a": NaN}',
            '{"a": 1e999}',
            '{"n": ' + "9" * 5000 + "}",
            '{"n": "\\ud800"}',
            '{"name": "Bonn", "size": Infinity}',
            '{"name": "Bonn"}',
            '{"c":' * 150 + "1" + "}" * 150,
            '{"c":' * 199 + "1" + "}" * 199,
        ]
    ),
)
calls = st.builds(
    parse_tool_call, junk.texts, st.sampled_from([*VALID, FINAL_ANSWER, "nobody", junk.HALF]), raw_arguments
) | st.builds(
    ToolCall,
    id=st.just(""),
    name=st.sampled_from([*VALID, FINAL_ANSWER]),
    arguments=st.dictionaries(junk.texts, junk.anything, max_size=3)
    | arguments_for("count").filter(lambda one: isinstance(one, dict)),
)
STOPS: Any = ["end_turn", "tool_calls", "max_tokens", "stop_sequence", "refusal", "cancelled"]


@examples(400)
@given(
    st.sampled_from([TYPED, UNTYPED]),
    st.lists(calls, max_size=3),
    junk.texts | raw_arguments,
    st.sampled_from(STOPS),
)
def test_any_reply_survives_storage(agent: Agent, asked: list[ToolCall], text: str, stop: Any) -> None:
    """Any reply is read as messages that can be stored and read again."""
    reply = Reply(parts=(Text(text=text), *asked), stop=stop, usage=ReplyMeta(step=1, model="m").usage)
    read = check_reply(reply, 1, agent.spec(), DEFINITIONS, agent)
    message = Message(role="assistant", parts=read.parts, meta=ReplyMeta(step=1, model="m"))
    outcome = ModelOutcome(message=message, stop=stop, output=read.output, output_problem=read.problem)
    again = read_again(outcome)
    assert read_again(again) == again
    assert tail_digest([again.message]) == tail_digest([message]), "history and a worker's memory agree"
    if again.output is not None:
        City.model_validate(again.output)
    for one in again.message.tool_calls:
        assert one.problem is None or len(one.problem) < 5000


@examples(100)
@given(
    st.dictionaries(junk.texts, junk.anything, max_size=2) | junk.anything.map(lambda value: {"items": value})
)
def test_plan_is_valid_or_explained(arguments: dict[str, Any]) -> None:
    """A plan is valid, or the model gets an explanation."""
    try:
        items = plan_of(arguments)
    except ValueError as error:
        assert len(str(error)) < 6000
    else:
        assert all(item.text.strip() == item.text != "" for item in items)


# -- what tools give back


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def _loop() -> Any:
    made: list[Any] = []
    made.append(made)
    return made


def _generator() -> Any:
    yield 1


ODD: list[Callable[[], Any]] = [
    Mute,
    _loop,
    _generator,
    object,
    lambda: b"\xff\xfe",
    lambda: {1, "a", (2, 3)},
    lambda: {(1, 2): "a"},
    lambda: Point(1, math.nan),
    lambda: [Text(text=junk.HALF), Image(data="not base64 at all" * 1000)],
    lambda: (Image(data="QQ=="), Mute()),
    lambda: Path("x"),
    lambda: Exception("no"),
    lambda: type,
]


@examples(150)
@given(value=junk.anything | st.sampled_from(ODD).map(lambda make: make()), most=st.integers(1, 300))
async def test_any_tool_result_survives_storage(value: Any, most: int, tmp_path_factory: Any) -> None:
    """Whatever a tool returns is stored so that it can be read again."""
    blobs = FileBlobs(tmp_path_factory.getbasetemp() / "kept")
    kept = await to_content(value, blobs, most)
    result = ToolResult(call_id="c", name="n", content=kept.parts, spilled=kept.spilled)
    assert ToolResult.model_validate_json(result.model_dump_json()) == result
    assert kept.parts
    if kept.spilled is not None:
        assert await blobs.get(kept.spilled)
