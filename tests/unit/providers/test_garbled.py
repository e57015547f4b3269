"""Garbled answers of a provider: they are `malformed_reply`, which is tried again, and never a bug."""

import json

import pytest

from perdure.messages import ToolCall, Usage

from .conftest import Wire
from .dialects import StubCall, StubReply, chunk, delta, frame, openai_open, sse
from .server import Answer


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


async def test_impossible_usage_is_malformed(wire: Wire) -> None:
    error = await wire.error(StubReply(text=("hi",), usage=Usage(input_tokens=10**300, output_tokens=1)))
    assert error.kind == "malformed_reply"
    assert error.usage is None or error.usage.total_tokens < 1000


async def test_chunk_of_wrong_shape_is_malformed(openai_wire: Wire) -> None:
    """The message says how."""
    odd = chunk(choices=[{"index": 0, "delta": {"tool_calls": [["not", "a", "dict"]]}}])
    error = await openai_wire.error(openai_wire.dialect.unfinished(StubReply(text=("x",)), odd))
    assert error.kind == "malformed_reply"
    assert "AttributeError" in str(error)
    assert error.usage is not None


async def test_piece_without_text_is_malformed(openai_wire: Wire) -> None:
    frames = (*openai_open(StubReply()), delta(content=["a", "list"]))
    error = await openai_wire.error(openai_wire.dialect.unfinished(StubReply(), *frames))
    assert error.kind == "malformed_reply"


async def test_block_without_start_is_malformed(anthropic_wire: Wire) -> None:
    lost = sse({"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "x"}})
    error = await anthropic_wire.error(anthropic_wire.dialect.unfinished(StubReply(), lost))
    assert error.kind == "malformed_reply"


async def test_event_without_fields_is_malformed(bedrock_wire: Wire) -> None:
    odd = frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x"}})
    odd_usage = frame("metadata", {"usage": {"inputTokens": -5}})
    error = await bedrock_wire.error(bedrock_wire.dialect.unfinished(StubReply(), odd, odd_usage))
    assert error.kind == "malformed_reply"


@pytest.mark.parametrize(
    "body", [json.dumps(["bad", "gateway"]).encode(), "Fehler: zu groß".encode("latin-1")]
)
async def test_unreadable_refusal_is_malformed(bedrock_wire: Wire, body: bytes) -> None:
    answer = Answer(status=502, headers={"content-type": "application/json"}, chunks=(body,))
    assert (await bedrock_wire.error(answer)).kind == "malformed_reply"
