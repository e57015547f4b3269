"""What a provider garbles is `malformed_reply`, which another attempt may mend, and never a bug of ours."""

import json

import pytest

from perdure.messages import ToolCall, Usage

from .conftest import Wire
from .dialects import Asked, Said, chunk, delta, frame, openai_open, sse
from .server import Answer


async def test_a_character_that_comes_in_two_halves_is_one_again(wire: Wire) -> None:
    pieces = ('{"query": "\ud83d', '\ude42"}')
    reply = await wire.reply(Said(calls=(Asked(id="a", pieces=pieces),)))
    assert reply.parts == (ToolCall(id="a", name="search", arguments={"query": "\N{SLIGHTLY SMILING FACE}"}),)


@pytest.mark.parametrize("arguments", ['{"n": NaN}', '{"n": -Infinity}', '{"n": "\ud83d"}x'])
async def test_arguments_that_are_no_json_are_a_problem_for_the_model(wire: Wire, arguments: str) -> None:
    reply = await wire.reply(Said(calls=(Asked(id="a", pieces=(arguments,)),)))
    (made,) = (part for part in reply.parts if isinstance(part, ToolCall))
    assert made.problem is not None
    assert "not valid JSON" in made.problem


async def test_a_count_that_cannot_be_is_not_carried_on(wire: Wire) -> None:
    error = await wire.error(Said(text=("hi",), usage=Usage(input_tokens=10**300, output_tokens=1)))
    assert error.kind == "malformed_reply"
    assert error.usage is None or error.usage.total_tokens < 1000


async def test_a_chunk_of_another_shape_is_malformed_and_says_how(openai_wire: Wire) -> None:
    odd = chunk(choices=[{"index": 0, "delta": {"tool_calls": [["not", "a", "dict"]]}}])
    error = await openai_wire.error(openai_wire.dialect.unfinished(Said(text=("x",)), odd))
    assert error.kind == "malformed_reply"
    assert "AttributeError" in str(error)
    assert error.usage is not None


async def test_a_piece_of_text_that_is_none_is_malformed(openai_wire: Wire) -> None:
    frames = (*openai_open(Said()), delta(content=["a", "list"]))
    error = await openai_wire.error(openai_wire.dialect.unfinished(Said(), *frames))
    assert error.kind == "malformed_reply"


async def test_a_block_that_never_began_is_malformed(anthropic_wire: Wire) -> None:
    lost = sse({"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "x"}})
    error = await anthropic_wire.error(anthropic_wire.dialect.unfinished(Said(), lost))
    assert error.kind == "malformed_reply"


async def test_an_event_without_its_fields_is_malformed(bedrock_wire: Wire) -> None:
    odd = frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x"}})
    odd_usage = frame("metadata", {"usage": {"inputTokens": -5}})
    error = await bedrock_wire.error(bedrock_wire.dialect.unfinished(Said(), odd, odd_usage))
    assert error.kind == "malformed_reply"


@pytest.mark.parametrize(
    "body", [json.dumps(["bad", "gateway"]).encode(), "Fehler: zu groß".encode("latin-1")]
)
async def test_a_refusal_that_the_library_cannot_read_is_malformed(bedrock_wire: Wire, body: bytes) -> None:
    answer = Answer(status=502, headers={"content-type": "application/json"}, chunks=(body,))
    assert (await bedrock_wire.error(answer)).kind == "malformed_reply"
