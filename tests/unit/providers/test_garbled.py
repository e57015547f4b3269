"""Garbled answers of a provider: they are `malformed_reply`, which is tried again, and never a bug."""

import pytest

from perdure.messages import Text, ToolCall, Usage

from .conftest import Wire
from .dialects import StubCall, StubReply, chunk, delta, openai_open


async def test_split_characters_are_joined(wire: Wire) -> None:
    pieces = ('{"query": "\ud83d', '\ude42"}')
    reply = await wire.reply(StubReply(calls=(StubCall(id="a", pieces=pieces),)))
    assert reply.parts == (ToolCall(id="a", name="search", arguments={"query": "\N{SLIGHTLY SMILING FACE}"}),)


@pytest.mark.parametrize("arguments", ['{"n": NaN}', '{"n": -Infinity}', '{"n": "\ud83d"}x'])
async def test_garbled_arguments_become_a_problem(wire: Wire, arguments: str) -> None:
    """The model gets the problem back, and no tool runs."""
    reply = await wire.reply(StubReply(calls=(StubCall(id="a", pieces=(arguments,)),)))
    (made,) = (part for part in reply.parts if isinstance(part, ToolCall))
    assert made.problem is not None
    assert "not valid JSON" in made.problem


async def test_impossible_usage_is_estimated(wire: Wire) -> None:
    """The answer counts, and what is known of its cost."""
    reply = await wire.reply(StubReply(text=("hi",), usage=Usage(input_tokens=10**300, output_tokens=1)))
    assert reply.parts == (Text(text="hi"),)
    assert reply.usage.estimated
    assert 0 < reply.usage.total_tokens < 1000
    assert reply.usage.output_tokens == 1


async def test_chunk_of_wrong_shape_is_malformed(openai_wire: Wire) -> None:
    """The message says how."""
    odd = chunk(choices=[{"index": 0, "delta": {"tool_calls": [["not", "a", "dict"]]}}])
    error = await openai_wire.error(openai_wire.dialect.unfinished(StubReply(text=("x",)), odd))
    assert error.kind == "malformed_reply"
    assert "AttributeError" in str(error)
    assert error.usage is not None


async def test_piece_without_text_is_malformed(openai_wire: Wire) -> None:
    frames = (*openai_open(StubReply()), delta(content=[7, "a list"]))
    error = await openai_wire.error(openai_wire.dialect.unfinished(StubReply(), *frames))
    assert error.kind == "malformed_reply"
