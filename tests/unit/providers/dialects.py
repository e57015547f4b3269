"""Replies of the stub server, in the wire format of each provider."""

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from perdure.activities.providers.anthropic import AnthropicModel
from perdure.activities.providers.bedrock import BedrockModel
from perdure.activities.providers.openai import OpenAIModel
from perdure.errors import ErrorKind
from perdure.messages import Usage
from perdure.model import Model, ModelConfig

from .server import Answer

COUNTED = Usage(input_tokens=11, cache_read_tokens=5, cache_write_tokens=3, output_tokens=7)


@dataclass(frozen=True, kw_only=True)
class StubCall:
    """Tool call of a reply; `pieces` are the JSON of its arguments as it arrives."""

    id: str
    name: str = "search"
    pieces: tuple[str, ...] = ('{"query": ', '"x"}')


@dataclass(frozen=True, kw_only=True)
class StubReply:
    """Reply in no provider's format. `stop` is the provider's stop reason, when not the usual one."""

    thinking: str = ""
    signature: str = "sig=="
    redacted: str = ""
    text: tuple[str, ...] = ()
    calls: tuple[StubCall, ...] = ()
    stop: str | None = None
    usage: Usage = COUNTED


class Closable(Model, Protocol):
    async def aclose(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """Wire format of a provider."""

    name: str
    model_name: str
    make: Callable[[str], Closable]
    open: Callable[[StubReply], list[bytes]]
    """Builds the frames of a reply, up to the last delta."""
    close: Callable[[StubReply], list[bytes]]
    """Builds the frames with the stop reason, the usage and the terminal mark."""
    content_type: str
    id_header: str
    error_event: bytes
    error_event_kind: ErrorKind
    refusal: Callable[..., Answer]
    """Builds the provider's error answer from (status, code, message, **headers)."""
    counted: Usage = COUNTED
    """Usage of a reply whose stub counts `COUNTED`."""
    signature: str | None = "sig=="
    """Signature of a thought of that signature in the stub's reply."""
    cut_stop: str = "max_tokens"
    """Stop reason of a reply that its bound has cut."""
    no_arguments: str = ""
    """Arguments of a call without any, as the draft has them."""
    last_piece: int = -2
    """Place of the last piece of text in an open reply."""

    def config(self, **settings: Any) -> ModelConfig:
        return ModelConfig(name=self.model_name, **settings)

    def answer(self, reply: StubReply, **how: Any) -> Answer:
        return self._stream((*self.open(reply), *self.close(reply)), **how)

    def unfinished(self, reply: StubReply, *more: bytes, **how: Any) -> Answer:
        return self._stream((*self.open(reply), *more), **how)

    def _stream(self, chunks: tuple[bytes, ...], **how: Any) -> Answer:
        headers = {"content-type": self.content_type, self.id_header: "req-1"}
        return Answer(headers=headers, chunks=chunks, **how)


# -- Anthropic


def sse(data: dict[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def anthropic_block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    return [
        sse({"type": "content_block_start", "index": index, "content_block": start}),
        *(sse({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas),
        sse({"type": "content_block_stop", "index": index}),
    ]


def anthropic_open(reply: StubReply) -> list[bytes]:
    usage = {
        "input_tokens": reply.usage.input_tokens,
        "cache_read_input_tokens": reply.usage.cache_read_tokens,
        "cache_creation_input_tokens": reply.usage.cache_write_tokens,
        "output_tokens": 1,
    }
    message: dict[str, Any] = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "claude-test-1",
    }
    frames = [
        sse({"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}}),
        sse({"type": "ping"}),
    ]
    at = count()
    if reply.thinking:
        frames += anthropic_block(
            next(at),
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": reply.thinking},
            {"type": "signature_delta", "signature": reply.signature},
        )
    if reply.redacted:
        frames += anthropic_block(next(at), {"type": "redacted_thinking", "data": reply.redacted})
    if reply.text:
        deltas = [{"type": "text_delta", "text": piece} for piece in reply.text]
        frames += anthropic_block(next(at), {"type": "text", "text": ""}, *deltas)
    for call in reply.calls:
        pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in call.pieces]
        frames += anthropic_block(
            next(at), {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}, *pieces
        )
    return frames


def anthropic_close(reply: StubReply) -> list[bytes]:
    stop = reply.stop or ("tool_use" if reply.calls else "end_turn")
    usage = {"output_tokens": reply.usage.output_tokens}
    return [
        sse({"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage}),
        sse({"type": "message_stop"}),
    ]


def anthropic_refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    """Build an error answer; `code` is "type" or "type/error_code"."""
    type_, _, error_code = code.partition("/")
    details = {"details": {"error_code": error_code}} if error_code else {}
    body = {"type": "error", "error": {"type": type_, "message": message, **details}}
    return json_answer(status, body, {"request-id": "req-1", **headers})


ANTHROPIC = Dialect(
    name="anthropic",
    model_name="anthropic:claude-test-1",
    make=lambda url: AnthropicModel(api_key="k", base_url=url),
    open=anthropic_open,
    close=anthropic_close,
    content_type="text/event-stream",
    id_header="request-id",
    error_event=sse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    error_event_kind="overloaded",
    refusal=anthropic_refusal,
)


# -- Bedrock


def _header(name: str, value: str) -> bytes:
    n, v = name.encode(), value.encode()
    return bytes([len(n)]) + n + b"\x07" + struct.pack(">H", len(v)) + v


def frame(kind: str, payload: object, message_type: str = "event") -> bytes:
    body = json.dumps(payload).encode()
    head = _header(":message-type", message_type) + _header(f":{message_type}-type", kind)
    head += _header(":content-type", "application/json")
    prelude = struct.pack(">II", 16 + len(head) + len(body), len(head))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + body
    return message + struct.pack(">I", zlib.crc32(message))


def bedrock_block(index: int, start: dict[str, Any] | None, *deltas: dict[str, Any]) -> list[bytes]:
    at = {"contentBlockIndex": index}
    started = [] if start is None else [frame("contentBlockStart", {**at, "start": start})]
    reply = [frame("contentBlockDelta", {**at, "delta": delta}) for delta in deltas]
    return [*started, *reply, frame("contentBlockStop", at)]


def bedrock_open(reply: StubReply) -> list[bytes]:
    frames = [frame("messageStart", {"role": "assistant"})]
    at = count()
    if reply.thinking:
        thoughts = [{"text": reply.thinking}, {"signature": reply.signature}]
        frames += bedrock_block(next(at), None, *({"reasoningContent": thought} for thought in thoughts))
    if reply.redacted:
        frames += bedrock_block(next(at), None, {"reasoningContent": {"redactedContent": reply.redacted}})
    if reply.text:
        frames += bedrock_block(next(at), None, *({"text": piece} for piece in reply.text))
    for call in reply.calls:
        start = {"toolUse": {"toolUseId": call.id, "name": call.name}}
        frames += bedrock_block(next(at), start, *({"toolUse": {"input": piece}} for piece in call.pieces))
    return frames


def bedrock_close(reply: StubReply) -> list[bytes]:
    usage = {
        "inputTokens": reply.usage.input_tokens,
        "outputTokens": reply.usage.output_tokens,
        "totalTokens": reply.usage.total_tokens,
        "cacheReadInputTokens": reply.usage.cache_read_tokens,
        "cacheWriteInputTokens": reply.usage.cache_write_tokens,
    }
    return [
        frame("messageStop", {"stopReason": reply.stop or ("tool_use" if reply.calls else "end_turn")}),
        frame("metadata", {"usage": usage, "metrics": {"latencyMs": 1}}),
    ]


def bedrock_refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    named = {"x-amzn-errortype": code, "x-amzn-requestid": "req-1"}
    return json_answer(status, {"message": message}, {**named, **headers})


BEDROCK = Dialect(
    name="bedrock",
    model_name="bedrock:anthropic.claude-test-1:0",
    make=lambda url: BedrockModel(region="eu-central-1", endpoint_url=url),
    open=bedrock_open,
    close=bedrock_close,
    content_type="application/vnd.amazon.eventstream",
    id_header="x-amzn-requestid",
    error_event=frame("throttlingException", {"message": "slow down"}, "exception"),
    error_event_kind="rate_limited",
    refusal=bedrock_refusal,
)


# -- OpenAI


def chunk(**fields: Any) -> bytes:
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-test-1", **fields}
    return f"data: {json.dumps(body)}\n\n".encode()


def delta(**reply: Any) -> bytes:
    return chunk(choices=[{"index": 0, "delta": reply, "finish_reason": None}])


def openai_open(reply: StubReply) -> list[bytes]:
    frames = [delta(role="assistant", content="")]
    if reply.thinking:
        frames.append(delta(reasoning_content=reply.thinking))
    frames += [delta(content=piece) for piece in reply.text]
    for index, call in enumerate(reply.calls):
        function = {"name": call.name, "arguments": ""}
        frames.append(
            delta(tool_calls=[{"index": index, "id": call.id, "type": "function", "function": function}])
        )
        for piece in call.pieces:
            frames.append(delta(tool_calls=[{"index": index, "function": {"arguments": piece}}]))
    return frames


def openai_finish(reply: StubReply) -> bytes:
    stop = reply.stop or ("tool_calls" if reply.calls else "stop")
    return chunk(choices=[{"index": 0, "delta": {}, "finish_reason": stop}])


def openai_close(reply: StubReply) -> list[bytes]:
    usage = {
        "prompt_tokens": reply.usage.all_input_tokens,
        "completion_tokens": reply.usage.output_tokens,
        "total_tokens": reply.usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": reply.usage.cache_read_tokens,
            "cache_write_tokens": reply.usage.cache_write_tokens,
        },
    }
    return [openai_finish(reply), chunk(choices=[], usage=usage), b"data: [DONE]\n\n"]


def openai_refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    error = {"message": message, "type": "some_error", "code": code or None}
    return json_answer(status, {"error": error}, {"x-request-id": "req-1", **headers})


OPENAI = Dialect(
    name="openai",
    model_name="openai:gpt-test-1",
    make=lambda url: OpenAIModel(api_key="k", base_url=f"{url}/v1"),
    open=openai_open,
    close=openai_close,
    content_type="text/event-stream",
    id_header="x-request-id",
    error_event=b'data: {"error": {"message": "boom", "type": "server_error", "code": null}}\n\n',
    error_event_kind="overloaded",
    refusal=openai_refusal,
    signature=None,
    cut_stop="length",
    last_piece=-1,
)

DIALECTS = (ANTHROPIC, BEDROCK, OPENAI)


def json_answer(status: int, body: dict[str, Any], headers: dict[str, str]) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(
        status=status,
        headers={"content-type": "application/json", **named},
        chunks=(json.dumps(body).encode(),),
    )
