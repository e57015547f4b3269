"""Answers as servers really send them: each is read, and no tool gets what was not meant for it."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from perdure.messages import Part, Text, Thinking, ToolCall
from perdure.providers import read_pieces

from .conftest import Wire
from .dialects import (
    StubReply,
    anthropic_block,
    anthropic_close,
    anthropic_open,
    bedrock_block,
    bedrock_close,
    bedrock_open,
    chunk,
    delta,
    frame,
    openai_close,
    openai_open,
    sse,
)
from .server import Answer

TEA, RICE = {"item": "tea"}, {"item": "rice"}
CALLED = StubReply(stop=None)
TOOL_STOP = {"anthropic": "tool_use", "bedrock": "tool_use", "openai": "tool_calls"}


def _piece(index: int, piece: Any) -> bytes:
    return sse(
        {
            "type": "content_block_delta",
            "index": index,
            "delta": {"type": "input_json_delta", "partial_json": piece},
        }
    )


def _text(index: int, text: str) -> bytes:
    return sse({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}})


def _start(index: int, id_: Any, **more: Any) -> bytes:
    block: dict[str, Any] = {"type": "tool_use", "id": id_, "name": "shelf", "input": {}, **more}
    return sse({"type": "content_block_start", "index": index, "content_block": block})


def _stop(index: int) -> bytes:
    return sse({"type": "content_block_stop", "index": index})


def _whole(index: int, id_: Any, value: Any) -> list[bytes]:
    return [_start(index, id_), _piece(index, json.dumps(value)), _stop(index)]


SAYS = anthropic_block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "I look."})


def _call(index: Any, id_: Any, name: Any, arguments: Any) -> bytes:
    function = {"name": name, "arguments": arguments}
    return delta(tool_calls=[{"index": index, "id": id_, "type": "function", "function": function}])


def _rest(index: int, piece: Any) -> bytes:
    return delta(tool_calls=[{"index": index, "function": {"arguments": piece}}])


def _tool(index: int, id_: str, *inputs: str) -> list[bytes]:
    start = {"toolUse": {"toolUseId": id_, "name": "shelf"}}
    return bedrock_block(index, start, *({"toolUse": {"input": piece}} for piece in inputs))


CALLS: dict[str, dict[str, tuple[Sequence[bytes], list[dict[str, str]]]]] = {
    "anthropic": {
        "one index for all blocks": ([*SAYS, *_whole(0, "a", TEA), *_whole(0, "b", RICE)], [TEA, RICE]),
        "one index, and no stops": (
            [SAYS[0], SAYS[1], _start(0, "a"), _piece(0, '{"item": '), _piece(0, '"tea"}')],
            [TEA],
        ),
        "no ids": ([*_whole(0, None, TEA), *_whole(1, "", TEA)], [TEA, TEA]),
        "one id for two calls": ([*_whole(0, "a", TEA), *_whole(1, "a", RICE)], [TEA, RICE]),
        "a call that comes twice": ([*_whole(0, "a", TEA), *_whole(1, "a", TEA)], [TEA]),
        "a start that comes twice": ([_start(0, "a"), *_whole(0, "a", TEA)], [TEA]),
        "arguments as an object": ([_start(0, "a"), _piece(0, TEA), _stop(0)], [TEA]),
        "arguments with the start": ([_start(0, "a", input=TEA), _stop(0)], [TEA]),
        "a start with arguments that comes twice": (
            [_start(0, "a", input=TEA), _start(0, "a", input=TEA), _stop(0)],
            [TEA],
        ),
        "a piece behind the stop": (
            [_start(0, "a"), _piece(0, '{"item": '), _stop(0), _piece(0, '"tea"}')],
            [TEA],
        ),
        "blocks in turns": (
            [
                _start(0, "a"),
                _start(1, "b"),
                _piece(1, '{"item": "r'),
                *_whole(0, "a", TEA)[1:],
                _piece(1, 'ice"}'),
            ],
            [TEA, RICE],
        ),
        "indexes that are no numbers": ([*_whole("x", "a", TEA), *_whole([1], "b", RICE)], [TEA, RICE]),  # type: ignore[arg-type]
        "an id that is a number": (_whole(0, 17, TEA), [TEA]),
        "pieces of null": ([_start(0, "a"), _piece(0, None), *_whole(0, "a", TEA)[1:]], [TEA]),
    },
    "bedrock": {
        "one index for all blocks": (
            [
                *bedrock_block(0, None, {"text": "I look."}),
                *_tool(0, "a", '{"item": "tea"}'),
                *_tool(0, "b", *[json.dumps(RICE)]),
            ],
            [TEA, RICE],
        ),
        "one id for two calls": (
            [*_tool(0, "a", json.dumps(TEA)), *_tool(1, "a", json.dumps(RICE))],
            [TEA, RICE],
        ),
        "a call that comes twice": (
            [*_tool(0, "a", json.dumps(TEA)), *_tool(1, "a", json.dumps(TEA))],
            [TEA],
        ),
        "a start that comes twice": ([_tool(0, "a")[0], *_tool(0, "a", json.dumps(TEA))], [TEA]),
        "a piece behind the stop": (
            [
                *_tool(0, "a", '{"item": '),
                frame(
                    "contentBlockDelta", {"contentBlockIndex": 0, "delta": {"toolUse": {"input": '"tea"}'}}}
                ),
            ],
            [TEA],
        ),
        "an empty id": ([*_tool(0, "", json.dumps(TEA)), *_tool(1, "", json.dumps(TEA))], [TEA, TEA]),
    },
    "openai": {
        "whole calls without ids": (
            [_call(0, "", "shelf", json.dumps(TEA)), _call(0, "", "shelf", json.dumps(RICE))],
            [TEA, RICE],
        ),
        "equal calls without ids": (
            [_call(0, None, "shelf", json.dumps(TEA)), _call(0, None, "shelf", json.dumps(TEA))],
            [TEA, TEA],
        ),
        "calls without ids in pieces": (
            [
                _call(0, "", "shelf", '{"item": '),
                _rest(0, '"tea"}'),
                _call(0, "", "shelf", '{"item": '),
                _rest(0, '"rice"}'),
            ],
            [TEA, RICE],
        ),
        "no index": (
            [
                delta(
                    tool_calls=[
                        {"id": "a", "function": {"name": "shelf", "arguments": json.dumps(TEA)}},
                        {"id": "b", "function": {"name": "shelf", "arguments": json.dumps(RICE)}},
                    ]
                )
            ],
            [TEA, RICE],
        ),
        "arguments as an object": ([_call(0, "a", "shelf", TEA), _call(1, "b", "shelf", RICE)], [TEA, RICE]),
        "objects without ids": ([_call(0, "", "shelf", TEA), _call(0, "", "shelf", RICE)], [TEA, RICE]),
        "id and name with each piece": (
            [
                _call(0, "a", "shelf", '{"item"'),
                _call(0, "a", "shelf", ': "tea"}'),
                _call(0, "a", "shelf", ""),
            ],
            [TEA],
        ),
        "the whole call once more": (
            [_call(0, "a", "shelf", ""), _rest(0, json.dumps(TEA)), _call(0, "a", "shelf", json.dumps(TEA))],
            [TEA],
        ),
        "one id for two calls": (
            [_call(0, "a", "shelf", json.dumps(TEA)), _call(0, "a", "shelf", json.dumps(RICE))],
            [TEA, RICE],
        ),
        "empty arguments that stand for later ones": (
            [_call(0, "a", "shelf", "{}"), _rest(0, json.dumps(TEA))],
            [TEA],
        ),
        "the id with a later piece": (
            [_call(0, None, "shelf", '{"item": '), _call(0, "a", None, '"tea"}')],
            [TEA],
        ),
        "calls in turns": (
            [
                _call(0, "a", "shelf", '{"item": '),
                _call(1, "b", "shelf", '{"item": '),
                _rest(0, '"tea"}'),
                _rest(1, '"rice"}'),
            ],
            [TEA, RICE],
        ),
        "ids in turns, under one index": (
            [
                _call(0, "a", "shelf", '{"item": '),
                _call(0, "b", "shelf", '{"item": '),
                _call(0, "a", None, '"tea"}'),
                _call(0, "b", None, '"rice"}'),
            ],
            [TEA, RICE],
        ),
        "the call of the older API": (
            [
                delta(function_call={"name": "shelf", "arguments": '{"item": '}),
                delta(function_call={"arguments": '"tea"}'}),
            ],
            [TEA],
        ),
    },
}
OPEN = {"anthropic": anthropic_open, "bedrock": bedrock_open, "openai": openai_open}
CLOSE = {"anthropic": anthropic_close, "bedrock": bedrock_close, "openai": openai_close}


def _stream(wire: Wire, frames: Sequence[bytes], stop: str | None = None) -> Answer:
    name, reply = wire.dialect.name, StubReply(stop=stop)
    chunks = (*OPEN[name](StubReply()), *frames, *CLOSE[name](reply))
    return Answer(
        headers={"content-type": wire.dialect.content_type, wire.dialect.id_header: "req-1"}, chunks=chunks
    )


async def test_calls_are_told_apart(wire: Wire) -> None:
    """Whatever ids, indexes and forms a server gives its calls, each is made once with its own arguments."""
    for what, (frames, arguments) in CALLS[wire.dialect.name].items():
        reply = await wire.reply(_stream(wire, frames, TOOL_STOP[wire.dialect.name]))
        calls = [part for part in reply.parts if isinstance(part, ToolCall)]
        assert [call.problem for call in calls] == [None] * len(arguments), what
        assert [(call.name, call.arguments) for call in calls] == [("shelf", each) for each in arguments], (
            what
        )


LOST: dict[str, dict[str, Sequence[bytes]]] = {
    "anthropic": {
        "no start": [_piece(0, json.dumps(TEA)), _stop(0)],
        "a start of text": [SAYS[0], _piece(0, json.dumps(TEA)), _stop(0)],
    },
    "bedrock": {"no start": _tool(0, "a", json.dumps(TEA))[1:]},
    "openai": {"no name": [_rest(0, json.dumps(TEA))]},
}


async def test_arguments_without_a_call_reach_no_tool(wire: Wire) -> None:
    """Nor do they become text: the answer is asked for again."""
    for what, frames in LOST[wire.dialect.name].items():
        assert (await wire.error(_stream(wire, frames))).kind == "malformed_reply", what


TEXTS: dict[str, dict[str, tuple[Sequence[bytes], tuple[Part, ...]]]] = {
    "anthropic": {
        "a delta without a start": ([_text(7, "Aisle 4.")], (Text(text="Aisle 4."),)),
        "a delta behind the stop": ([*SAYS, _text(0, " So.")], (Text(text="I look. So."),)),
        "deltas and events that nobody knows": (
            [
                sse({"type": "content_block_delta", "index": 0, "delta": {"type": "odd"}}),
                sse({"type": "odd"}),
                _text(0, "x"),
            ],
            (Text(text="x"),),
        ),
    },
    "bedrock": {
        "one index for two texts": (
            [*bedrock_block(0, None, {"text": "a"}), *bedrock_block(0, None, {"text": "b"})],
            (Text(text="ab"),),
        ),
        "deltas that nobody knows": (
            [frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x"}})],
            (Text(text="x"),),
        ),
    },
    "openai": {
        "content as a list": (
            [
                delta(
                    content=[
                        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                        {"type": "text", "text": "x"},
                    ]
                )
            ],
            (Thinking(text="hm"), Text(text="x")),
        ),
        "a second choice": (
            [
                chunk(
                    choices=[{"index": 0, "delta": {"content": "x"}}, {"index": 1, "delta": {"content": "y"}}]
                )
            ],
            (Text(text="x"),),
        ),
    },
}


async def test_text_is_read_in_any_form(wire: Wire) -> None:
    for what, (frames, parts) in TEXTS[wire.dialect.name].items():
        assert (await wire.reply(_stream(wire, frames))).parts == parts, what


# -- bookkeeping

ODD_COUNTS: list[Any] = [None, -5, 7.5, "12", "many", 1e300, 10**40, True, [], {}, float("nan")]


def _counted(wire: Wire, count: Any) -> list[bytes]:
    match wire.dialect.name:
        case "anthropic":
            usage = {"input_tokens": count, "output_tokens": count, "cache_creation": count}
            ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
            return [sse(ended), sse({"type": "message_stop"})]
        case "bedrock":
            usage = {"inputTokens": count, "outputTokens": count, "totalTokens": count, "cacheDetails": None}
            return [frame("messageStop", {"stopReason": "end_turn"}), frame("metadata", {"usage": usage})]
        case _:
            usage = {"prompt_tokens": count, "completion_tokens": count, "prompt_tokens_details": count}
            stopped = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
            return [stopped, chunk(choices=[], usage=usage)]


async def test_odd_counts_cost_no_answer(wire: Wire) -> None:
    """Usage that is null, negative, fractional, text or endless is estimated where it makes no sense."""
    for count in ODD_COUNTS:
        if wire.dialect.name == "bedrock" and isinstance(count, list | dict):
            continue  # botocore itself refuses them
        said = StubReply(text=("Aisle 4.",))
        frames = (*OPEN[wire.dialect.name](said), *_counted(wire, count))
        headers = {"content-type": wire.dialect.content_type}
        reply = await wire.reply(Answer(headers=headers, chunks=frames))
        assert reply.parts == (Text(text="Aisle 4."),), count
        readable = {"7.5": 8, "12": 12}.get(str(count))
        assert reply.usage.estimated == (readable is None), count
        assert 0 < reply.usage.total_tokens < 10_000, count
        assert readable is None or reply.usage.output_tokens == readable


# -- bodies that are no stream

MESSAGE = {"role": "assistant", "content": "Aisle 4."}
WHOLE: dict[str, dict[str, Any]] = {
    "anthropic": {
        "type": "message",
        "model": "claude-test-1",
        "content": [
            {"type": "text", "text": "Aisle 4."},
            {"type": "tool_use", "id": "a", "name": "shelf", "input": TEA},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 10, "output_tokens": 5},
    },
    "bedrock": {
        "output": {
            "message": {
                "role": "assistant",
                "content": [
                    {"text": "Aisle 4."},
                    {"toolUse": {"toolUseId": "a", "name": "shelf", "input": TEA}},
                ],
            }
        },
        "stopReason": "tool_use",
        "usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15},
    },
    "openai": {
        "object": "chat.completion",
        "model": "gpt-test-1",
        "choices": [
            {
                "index": 0,
                "message": {
                    **MESSAGE,
                    "tool_calls": [{"id": "a", "function": {"name": "shelf", "arguments": json.dumps(TEA)}}],
                },
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    },
}


@pytest.mark.parametrize("indent", [None, 2])
async def test_whole_answer_is_an_answer(wire: Wire, indent: int | None) -> None:
    """Some gateways do not stream: to `"stream": true` they answer with the whole body."""
    body = json.dumps(WHOLE[wire.dialect.name], indent=indent).encode()
    kinds = (
        ("application/json",)
        if wire.dialect.name == "bedrock"
        else ("application/json", "text/event-stream", "")
    )
    for kind in kinds:
        reply = await wire.reply(Answer(headers={"content-type": kind}, chunks=(body[:20], body[20:])))
        assert reply.parts == (Text(text="Aisle 4."), ToolCall(id="a", name="shelf", arguments=TEA))
        assert (reply.stop, reply.usage.input_tokens, reply.usage.output_tokens) == ("tool_calls", 10, 5)


async def test_error_in_a_whole_body_is_an_error(wire: Wire) -> None:
    """A gateway that reports trouble with status 200 reports it all the same."""
    for body in (
        {"error": {"message": "why", "type": "overloaded_error"}},
        {"detail": "why"},
        {"message": "why"},
    ):
        answer = Answer(headers={"content-type": "application/json"}, chunks=(json.dumps(body).encode(),))
        error = await wire.error(answer)
        assert "why" in str(error)
        assert error.kind in ("overloaded", "stream_cut")


async def test_page_in_place_of_a_stream_is_told(wire: Wire) -> None:
    if wire.dialect.name == "bedrock":
        return  # botocore reads frames, and says that there are none
    answer = Answer(headers={"content-type": "text/html"}, chunks=(b"<html>Please log in</html>",))
    error = await wire.error(answer)
    assert (error.kind, "Please log in" in str(error)) == ("malformed_reply", True)


@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
async def test_wrong_content_type_is_no_matter(wire: Wire, dialect: str) -> None:
    if wire.dialect.name != dialect:
        return
    for kind in ("application/json", "text/plain", "application/octet-stream"):
        said = wire.dialect.answer(StubReply(text=("Aisle", " 4.")))
        reply = await wire.reply(Answer(headers={"content-type": kind}, chunks=said.chunks))
        assert reply.parts == (Text(text="Aisle 4."),)


# -- pieces of a body

BODIES: list[tuple[bytes, list[dict[str, Any]]]] = [
    (b'event: a\r\ndata: {"x": 1}\r\n\r\ndata: {"y":\r\ndata: 2}\r\n\r\n', [{"type": "a", "x": 1}, {"y": 2}]),
    (b'data: {"x": 1}\ndata: {"y": 2}\n', [{"x": 1}, {"y": 2}]),
    (b'\xef\xbb\xbfdata: {"x": "\xe2\x80\xa8"}\r\r', [{"x": "\u2028"}]),
    (b': hello\nid: 3\nretry: 5\n\ndata: {"x": 1}\n\ndata: [DONE]\n\n', [{"x": 1}]),
    (b'{"x": 1}\n\n{"y": 2}\n', [{"x": 1}, {"y": 2}]),
    (b'[{"x": 1},\n {"y": 2}]', [{"x": 1}, {"y": 2}]),
    (b'{\n "x": {\n "y": 1}}\n', [{"x": {"y": 1}}]),
    (b"", []),
]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_pieces_do_not_depend_on_packets(size: int) -> None:
    async def packets(body: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    for body, pieces in BODIES:
        assert [piece async for piece in read_pieces(packets(body))] == pieces, body
