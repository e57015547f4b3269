"""Writes the recorded answers of the built-in dialects: `python -m tests.unit.providers.record_shapes`.

They are written as the providers and the servers that speak like them send them. A test holds that the files are these.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure.messages import Usage
from perdure.providers import conformance

from . import more_dialects
from .dialects import (
    ANTHROPIC,
    BEDROCK,
    OPENAI,
    Dialect,
    StubCall,
    StubReply,
    bedrock_block,
    chunk,
    delta,
    frame,
    sse,
)
from .more_dialects import GEMINI, RESPONSES, event, gemini_piece, item, response

FOLDER = Path(conformance.__file__).parent
HELLO = StubReply(text=("Hello, ", "world"), usage=Usage(input_tokens=11, output_tokens=7))
TEA = StubCall(id="call-a", pieces=('{"query": ', '"tea"}'))
RICE = StubCall(id="call-b", pieces=('{"query": "rice"}',))
COUNTED = StubReply(text=("ok",), usage=Usage(input_tokens=11, cache_read_tokens=5, output_tokens=7))


def _frames(dialect: Dialect, reply: StubReply) -> list[bytes]:
    return [*dialect.open(reply), *dialect.close(reply)]


def _replies(dialect: Dialect) -> dict[str, Sequence[bytes]]:
    """The answers that each dialect builds from a reply."""
    stopped = {"anthropic": "refusal", "bedrock": "guardrail_intervened", "gemini": "SAFETY"}
    return {
        "text": _frames(dialect, HELLO),
        "usage": _frames(dialect, COUNTED),
        "thinking": _frames(dialect, StubReply(thinking="Let me see.", text=("42",))),
        "call": _frames(dialect, StubReply(text=("On it.",), calls=(TEA,))),
        "calls": _frames(dialect, StubReply(calls=(TEA, RICE))),
        "broken_arguments": _frames(
            dialect, StubReply(calls=(StubCall(id="call-a", pieces=('{"query": ', "tea}")),))
        ),
        "max_tokens": _frames(
            dialect, StubReply(calls=(StubCall(id="call-a", pieces=()),), stop=dialect.cut_stop)
        ),
        "refusal": _frames(dialect, StubReply(text=("I",), stop=stopped.get(dialect.name, "content_filter"))),
        "unknown_stop": _frames(dialect, StubReply(text=("It is in",), stop="tea_break")),
        "cut": dialect.open(HELLO),
    }


ODD = {"null": None, "negative": -5}


def _anthropic() -> dict[str, Sequence[bytes]]:
    def block(index: int, id_: str, piece: Any) -> list[bytes]:
        start: dict[str, Any] = {"type": "tool_use", "id": id_, "name": "search", "input": {}}
        return [
            sse({"type": "content_block_start", "index": index, "content_block": start}),
            sse({"type": "content_block_delta", "index": index,
                 "delta": {"type": "input_json_delta", "partial_json": piece}}),
            sse({"type": "content_block_stop", "index": index}),
        ]  # fmt: skip

    begun = ANTHROPIC.open(StubReply())
    ended = ANTHROPIC.close(StubReply(stop="tool_use"))
    odd = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": None}}
    whole = {
        "type": "message",
        "model": "claude-test-1",
        "content": [{"type": "text", "text": "Hello, world"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 11, "output_tokens": 7},
    }
    broken = {"type": "error", "error": {"type": "upstream_error", "message": "upstream connect error"}}
    return {
        "odd_usage": [*ANTHROPIC.open(HELLO), sse(odd), sse({"type": "message_stop"})],
        "one_index": [*begun, *block(0, "", '{"query": "tea"}'), *block(0, "", '{"query": "rice"}'), *ended],
        "arguments_as_object": [*begun, *block(0, "call-a", {"query": "tea"}), *ended],
        "not_streamed": [json.dumps(whole).encode()],
        "error_in_stream": [*ANTHROPIC.open(HELLO), sse(broken)],
        "garbled": [*begun, b"event: message_delta\ndata: {broken\n\n"],
    }


def _bedrock() -> dict[str, Sequence[bytes]]:
    def block(index: int, id_: str, piece: str) -> list[bytes]:
        start = {"toolUse": {"toolUseId": id_, "name": "search"}}
        return bedrock_block(index, start, {"toolUse": {"input": piece}})

    begun = BEDROCK.open(StubReply())
    ended = BEDROCK.close(StubReply(stop="tool_use"))
    whole: dict[str, Any] = {
        "output": {"message": {"role": "assistant", "content": [{"text": "Hello, world"}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 11, "outputTokens": 7, "totalTokens": 18},
    }
    called = {**whole, "stopReason": "tool_use"}
    content = [{"toolUse": {"toolUseId": "call-a", "name": "search", "input": {"query": "tea"}}}]
    called["output"] = {"message": {"role": "assistant", "content": content}}
    odd = frame("metadata", {"usage": {"inputTokens": -5, "outputTokens": -1, "totalTokens": 0}})
    return {
        "odd_usage": [*BEDROCK.open(HELLO), frame("messageStop", {"stopReason": "end_turn"}), odd],
        "one_index": [*begun, *block(0, "", '{"query": "tea"}'), *block(0, "", '{"query": "rice"}'), *ended],
        "arguments_as_object": [json.dumps(called).encode()],
        "not_streamed": [json.dumps(whole).encode()],
        "error_in_stream": [
            *BEDROCK.open(HELLO),
            frame("upstreamException", {"message": "upstream connect error"}, "exception"),
        ],
        "garbled": [*begun, frame("messageStop", {"stopReason": "end_turn"})[:-4] + b"\0\0\0\0"],
    }


def _openai() -> dict[str, Sequence[bytes]]:
    def call(piece: Any) -> bytes:
        return delta(tool_calls=[{"index": 0, "id": "", "function": {"name": "search", "arguments": piece}}])

    begun = OPENAI.open(StubReply())
    ended = OPENAI.close(StubReply(stop="tool_calls"))
    stop = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    message = {"role": "assistant", "content": "Hello, world"}
    whole = {
        "object": "chat.completion",
        "model": "gpt-test-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7},
    }
    broken = {"error": {"message": "upstream connect error", "type": "upstream_error"}}
    odd = chunk(choices=[], usage={"prompt_tokens": None, "completion_tokens": -5})
    return {
        "odd_usage": [*OPENAI.open(HELLO), stop, odd, b"data: [DONE]\n\n"],
        "one_index": [*begun, call('{"query": "tea"}'), call('{"query": "rice"}'), *ended],
        "arguments_as_object": [*begun, call({"query": "tea"}), *ended],
        "not_streamed": [json.dumps(whole).encode()],
        "error_in_stream": [*OPENAI.open(HELLO), f"data: {json.dumps(broken)}\n\n".encode()],
        "garbled": [*begun, b"data: {broken\n\n"],
    }


def _gemini() -> dict[str, Sequence[bytes]]:
    def call(item: str) -> dict[str, Any]:
        return {"functionCall": {"name": "search", "args": {"query": item}}}

    counts = {"promptTokenCount": None, "candidatesTokenCount": -5}
    hello = [gemini_piece({"text": text}) for text in HELLO.text]
    candidate = {"content": {"parts": [{"text": "Hello, world"}]}, "finishReason": "STOP"}
    whole = {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 7}}
    broken = {"error": {"message": "upstream connect error", "status": "UPSTREAM"}}
    return {
        "odd_usage": [*hello, gemini_piece(finish="STOP", usageMetadata=counts)],
        "one_index": [gemini_piece(call("tea"), call("rice")), *GEMINI.close(StubReply())],
        "arguments_as_object": [gemini_piece(call("tea")), *GEMINI.close(StubReply())],
        "not_streamed": [json.dumps([whole]).encode()],
        "error_in_stream": [*hello, event(broken)],
        "garbled": [*hello, b"data: {broken\n\n"],
    }


def _responses() -> dict[str, Sequence[bytes]]:
    def call(index: int, piece: Any) -> list[bytes]:
        function = {"type": "function_call", "name": "search", "call_id": "", "arguments": piece}
        return item(index, function)

    begun = RESPONSES.open(StubReply())
    ended = RESPONSES.close(StubReply())
    content = [{"type": "output_text", "text": "Hello, world"}]
    whole = response(
        "completed",
        output=[{"type": "message", "role": "assistant", "content": content}],
        usage={"input_tokens": 11, "output_tokens": 7},
    )
    odd = response("completed", usage={"input_tokens": None, "output_tokens": -5})
    return {
        "odd_usage": [*RESPONSES.open(HELLO), more_dialects.sse("response.completed", response=odd)],
        "one_index": [*begun, *call(0, '{"query": "tea"}'), *call(0, '{"query": "rice"}'), *ended],
        "arguments_as_object": [*begun, *call(0, {"query": "tea"}), *ended],
        "not_streamed": [json.dumps(whole).encode()],
        "error_in_stream": [
            *RESPONSES.open(HELLO),
            more_dialects.sse("error", code="upstream_error", message="upstream connect error"),
        ],
        "garbled": [*begun, b"event: response.completed\ndata: {broken\n\n"],
    }


WORDS = {
    "authentication": (401, "the reason: this key is not known"),
    "payment": (400, "Your credit balance is too low, that is the reason"),
    "not_found": (404, "the reason: no such model"),
    "bad_request": (400, "the reason: messages.1.content is empty"),
    "overflow": (400, "the reason: the input token count (9) exceeds the maximum number of tokens allowed (8)"),
    "filtered": (400, "the reason: the prompt triggered our content management policy"),
    "too_large": (413, "the reason: the request exceeds the maximum size"),
    "rate_limited": (429, "the reason: too many requests"),
    "overloaded": (503, "the reason: no capacity"),
    "absurd_delay": (429, "the reason: too many requests"),
}  # fmt: skip
DELAYS = {"rate_limited": "7", "absurd_delay": "Fri, 31 Dec 9999 23:59:59 GMT"}
TYPES = {
    "anthropic": {429: "rate_limit_error", 401: "authentication_error", 404: "not_found_error"},
    "bedrock": {
        400: "ValidationException",
        401: "UnrecognizedClientException",
        404: "ResourceNotFoundException",
        413: "RequestTooLargeException",
        429: "ThrottlingException",
        503: "ServiceUnavailableException",
    },
    "openai": {},
    "responses": {},
    "gemini": {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"},
}


def _refusals(dialect: Dialect) -> dict[str, dict[str, Any]]:
    shapes: dict[str, dict[str, Any]] = {}
    for shape, (status, words) in WORDS.items():
        delay = {"retry-after": DELAYS[shape]} if shape in DELAYS else {}
        answer = dialect.refusal(
            status, TYPES[dialect.name].get(status, "invalid_request_error"), words, **delay
        )
        shapes[shape] = {"status": status, "headers": answer.headers, "chunks": _chunks(answer.chunks)}
    page = b"<html><head><title>503</title></head><body><h1>the reason: the proxy is tired</h1></body></html>"
    shapes["proxy_page"] = {
        "status": 503,
        "headers": {"content-type": "text/html"},
        "chunks": _chunks([page]),
    }
    return shapes


def _chunks(chunks: Sequence[bytes]) -> list[Any]:
    return [_chunk(chunk) for chunk in chunks]


def _chunk(data: bytes) -> Any:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    return (
        text
        if text.isprintable() or ("\n" in text and "\0" not in text)
        else {"base64": base64.b64encode(data).decode()}
    )


OWN = {
    "anthropic": _anthropic,
    "bedrock": _bedrock,
    "gemini": _gemini,
    "openai": _openai,
    "responses": _responses,
}
RECORDED = (ANTHROPIC, BEDROCK, GEMINI, OPENAI, RESPONSES)


def shapes_of(dialect: Dialect) -> dict[str, Any]:
    """Return the file of a dialect."""
    own = OWN[dialect.name]()
    shapes: dict[str, Any] = {
        shape: {"chunks": _chunks(chunks)} for shape, chunks in {**_replies(dialect), **own}.items()
    }
    half = _chunks(dialect.open(HELLO))
    shapes["broken_connection"] = {"chunks": half, "end": "cut"}
    shapes["silence"] = {"chunks": half, "end": "hang"}
    for shape in ("not_streamed", "arguments_as_object"):
        if str(shapes[shape]["chunks"][0]).startswith(("{", "[")):
            shapes[shape]["headers"] = {"content-type": "application/json"}
    return {
        "model": dialect.model_name,
        "headers": {"content-type": dialect.content_type, dialect.id_header: "req-1"},
        "shapes": shapes | _refusals(dialect),
    }


def main() -> None:
    """Write the files."""
    for dialect in RECORDED:
        text = json.dumps(shapes_of(dialect), indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{dialect.name}.json").write_text(text)


if __name__ == "__main__":
    main()
