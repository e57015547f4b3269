"""Replies of the stub server in the wire formats of Gemini, of the Responses API and of Azure."""

import json
from dataclasses import replace
from typing import Any

from perdure.activities.providers.azure import AzureModel
from perdure.activities.providers.gemini import GeminiModel
from perdure.activities.providers.responses import ResponsesModel
from perdure.messages import Usage

from .dialects import OPENAI, Dialect, StubCall, StubReply, json_answer
from .server import Answer


def event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


# -- Gemini

_BEGAN = {"modelVersion": "gemini-test-1", "responseId": "req-1"}


def gemini_piece(*parts: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return event({"candidates": [candidate], **_BEGAN, **more})


def gemini_call(call: StubCall) -> dict[str, Any]:
    """Build a call, whose arguments come whole; text that is no JSON object comes as it is, as from a gateway."""
    text = "".join(call.pieces) or "{}"
    try:
        arguments: object = json.loads(text)
    except ValueError:
        arguments = text
    function: dict[str, Any] = {"name": call.name, "args": arguments if isinstance(arguments, dict) else text}
    return {"functionCall": function | ({"id": call.id} if call.id else {})}


def gemini_open(reply: StubReply) -> list[bytes]:
    pieces = [gemini_piece({"text": reply.thinking, "thought": True})] if reply.thinking else []
    pieces += [gemini_piece({"text": text}) for text in reply.text]
    return [*pieces, *(gemini_piece(gemini_call(call)) for call in reply.calls)]


def gemini_close(reply: StubReply) -> list[bytes]:
    thoughts = min(2, reply.usage.output_tokens)
    usage = {
        "promptTokenCount": reply.usage.all_input_tokens,
        "cachedContentTokenCount": reply.usage.cache_read_tokens,
        "candidatesTokenCount": reply.usage.output_tokens - thoughts,
        "thoughtsTokenCount": thoughts,
        "totalTokenCount": reply.usage.total_tokens,
    }
    return [gemini_piece({"text": ""}, finish=reply.stop or "STOP", usageMetadata=usage)]


def gemini_refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    """Build an error answer; `code` is "STATUS" or "STATUS/REASON"."""
    name, _, reason = code.partition("/")
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}
    error: dict[str, Any] = {"code": status, "message": message, "status": name}
    body = {"error": error | ({"details": [info]} if reason else {})}
    return json_answer(status, body, {"x-request-id": "req-1", **headers})


GEMINI = Dialect(
    name="gemini",
    model_name="gemini:gemini-test-1",
    make=lambda url: GeminiModel(api_key="k", base_url=f"{url}/v1beta"),
    open=gemini_open,
    close=gemini_close,
    content_type="text/event-stream",
    id_header="x-request-id",
    error_event=event(
        {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    ),
    error_event_kind="overloaded",
    refusal=gemini_refusal,
    # It counts no writes to a cache.
    counted=Usage(input_tokens=14, cache_read_tokens=5, output_tokens=7),
    signature=None,
    cut_stop="MAX_TOKENS",
    no_arguments="{}",
    last_piece=-1,
)


# -- the Responses API


def sse(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def response(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "model": "gpt-test-1", "status": status, **fields}


def item(index: int, value: dict[str, Any], *between: bytes) -> list[bytes]:
    """Build the events of an item of the output."""
    return [
        sse("response.output_item.added", output_index=index, item={**value, "status": "in_progress"}),
        *between,
        sse("response.output_item.done", output_index=index, item={**value, "status": "completed"}),
    ]


def responses_open(reply: StubReply) -> list[bytes]:
    frames = [sse("response.created", response=response("in_progress"))]
    index = 0
    if reply.thinking:
        delta = sse(
            "response.reasoning_summary_text.delta", output_index=index, summary_index=0, delta=reply.thinking
        )
        frames += item(index, reasoning_item(reply.thinking, reply.signature), delta)
        index += 1
    if reply.text:
        deltas = [sse("response.output_text.delta", output_index=index, delta=text) for text in reply.text]
        content = [{"type": "output_text", "text": "".join(reply.text)}]
        message = {"type": "message", "id": "msg_1", "role": "assistant", "content": content}
        frames += item(index, message, *deltas)
        index += 1
    for at, call in enumerate(reply.calls, index):
        deltas = [
            sse("response.function_call_arguments.delta", output_index=at, delta=piece)
            for piece in call.pieces
        ]
        function = {"type": "function_call", "id": f"fc_{at}", "call_id": call.id, "name": call.name}
        frames += item(at, {**function, "arguments": "".join(call.pieces)}, *deltas)
    return frames


def reasoning_item(text: str, encrypted: str) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": text}] if text else []
    return {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": encrypted}


def responses_usage(reply: StubReply) -> dict[str, Any]:
    details = {
        "cached_tokens": reply.usage.cache_read_tokens,
        "cache_write_tokens": reply.usage.cache_write_tokens,
    }
    return {
        "input_tokens": reply.usage.all_input_tokens,
        "input_tokens_details": details,
        "output_tokens": reply.usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": reply.usage.total_tokens,
    }


def responses_close(reply: StubReply) -> list[bytes]:
    usage = responses_usage(reply)
    if reply.stop in (None, "completed"):
        return [sse("response.completed", response=response("completed", usage=usage))]
    ended = response("incomplete", incomplete_details={"reason": reply.stop}, usage=usage)
    return [sse("response.incomplete", response=ended)]


def responses_refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    error = {"message": message, "type": "some_error", "code": code or None, "param": None}
    return json_answer(status, {"error": error}, {"x-request-id": "req-1", **headers})


RESPONSES = Dialect(
    name="responses",
    model_name="responses:gpt-test-1",
    make=lambda url: ResponsesModel(api_key="k", base_url=f"{url}/v1"),
    open=responses_open,
    close=responses_close,
    content_type="text/event-stream",
    id_header="x-request-id",
    error_event=sse("error", code="server_error", message="boom", param=None, sequence_number=3),
    error_event_kind="overloaded",
    refusal=responses_refusal,
    signature=json.dumps({"id": "rs_1", "encrypted_content": "sig=="}),
    cut_stop="max_output_tokens",
)


# -- Azure


def azure_model(url: str) -> AzureModel:
    return AzureModel(api_key="k", endpoint=url)


AZURE = replace(
    OPENAI,
    name="azure",
    model_name="azure:my-deployment",
    make=azure_model,
)

MORE_DIALECTS = (GEMINI, RESPONSES, AZURE)
