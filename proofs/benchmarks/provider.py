"""Loopback provider: answers jobs as Anthropic, OpenAI (chat completions) and Bedrock (Converse) do.

    python -m proofs.benchmarks.provider

It prints its port, and ends with its standard input. It reads the job from the prompt and the step from the newest
result, by searching the bytes of the request: parsing would cost as much as what is measured. A request must hold
the result of every step so far. Else it is refused: a subject that sends less has less work.
"""

import asyncio
import json
import re
import struct
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .kit import TOOL, Answer, Job, ask

_STEPS, _SIZE = re.compile(rb'steps\\+": ?(\d+)'), re.compile(rb'size\\+": ?(\d+)')
_RESULT = b" call 1: "
"""Words that stand in each result once, behind the number of its step."""
_USAGE = {"in": 1000, "out": 20}
_STREAMED = re.compile(rb'"stream": ?true')


@dataclass
class Counts:
    """Requests since the last look, and the bytes of their bodies."""

    requests: int = 0
    bytes: int = 0


@dataclass
class Provider:
    """Provider on a port of this machine."""

    counts: Counts = field(default_factory=Counts)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, _, rest = head.partition(b"\r\n")
                _, path, _ = line.split(b" ", 2)
                body = await _read_body(rest, reader)
                writer.write(self._answer(path.decode(), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, path: str, body: bytes) -> bytes:
        if path == "/counts":
            counts, self.counts = self.counts, Counts()
            return _response(json.dumps({"requests": counts.requests, "bytes": counts.bytes}).encode())
        self.counts.requests += 1
        self.counts.bytes += len(body)
        done, results = _progress(body)
        if results != done:
            words = f"the request holds {results} results after {done} steps"
            refusal = {"message": words, "error": {"type": "invalid_request_error", "message": words}}
            return _response(json.dumps(refusal).encode(), status="400 Bad Request")
        answer = ask(_job(body), done)
        if path.endswith("/converse-stream"):
            return _response(b"".join(_converse_events(answer, done)), "application/vnd.amazon.eventstream")
        if path.endswith("/converse"):
            return _response(json.dumps(_converse(answer, done)).encode())
        is_streamed = _STREAMED.search(body) is not None
        is_anthropic = "/messages" in path
        if is_streamed:
            events = _message_events(answer, done) if is_anthropic else _chunks(answer, done)
            return _response("".join(events).encode(), "text/event-stream")
        return _response(json.dumps((_message if is_anthropic else _completion)(answer, done)).encode())


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n") if b":" in line)
    if b"chunked" not in headers.get(b"transfer-encoding", b""):
        return await reader.readexactly(int(headers.get(b"content-length", b"0")))
    pieces: list[bytes] = []
    while size := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(pieces)


def _progress(body: bytes) -> tuple[int, int]:
    """Return the number of finished steps, by the newest result, and the number of results."""
    at = body.rfind(_RESULT)
    if at < 0:
        return 0, 0
    number = body[max(0, at - 24) : at].rpartition(b"step ")[2]
    return int(number), body.count(_RESULT)


def _job(body: bytes) -> Job:
    steps, size = _STEPS.search(body), _SIZE.search(body)
    usual = Job(id="")
    return Job(
        id="", steps=int(steps[1]) if steps else usual.steps, size=int(size[1]) if size else usual.size
    )


def _response(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nrequest-id: r\r\n\r\n"
    )
    return head.encode() + body


def _calls(answer: Answer, done: int) -> list[tuple[str, dict[str, int]]]:
    """Return the calls of an answer with their ids."""
    return [(f"call_{done + 1}_{n}", call) for n, call in enumerate(answer.calls, 1)]


# -- Anthropic


def _message(answer: Answer, done: int) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = [
        {"type": "tool_use", "id": id_, "name": TOOL, "input": call} for id_, call in _calls(answer, done)
    ]
    usage = {"input_tokens": _USAGE["in"], "output_tokens": _USAGE["out"]}
    return {
        "id": f"msg_{done}", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5",
        "content": blocks or [{"type": "text", "text": answer.text}],
        "stop_reason": "tool_use" if blocks else "end_turn", "stop_sequence": None, "usage": usage,
    }  # fmt: skip


def _message_events(answer: Answer, done: int) -> Iterable[str]:
    whole = _message(answer, done)
    begun: dict[str, Any]
    yield _sse("message_start", message=whole | {"content": [], "stop_reason": None})
    for index, block in enumerate(whole["content"]):
        if block["type"] == "tool_use":
            begun = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        else:
            begun, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
        yield _sse("content_block_start", index=index, content_block=begun)
        yield _sse("content_block_delta", index=index, delta=delta)
        yield _sse("content_block_stop", index=index)
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _sse("message_delta", delta=ended, usage={"output_tokens": _USAGE["out"]})
    yield _sse("message_stop")


def _sse(kind: str, **more: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n"


# -- OpenAI


def _completion(answer: Answer, done: int) -> dict[str, Any]:
    calls = [
        {"id": id_, "type": "function", "function": {"name": TOOL, "arguments": json.dumps(call)}}
        for id_, call in _calls(answer, done)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    choice = {
        "index": 0,
        "finish_reason": "tool_calls" if calls else "stop",
        "message": message | ({"tool_calls": calls} if calls else {}),
    }
    return _of_openai("chat.completion", done, choices=[choice], usage=_completion_usage())


def _chunks(answer: Answer, done: int) -> Iterable[str]:
    whole = _completion(answer, done)["choices"][0]
    calls = [{"index": n, **call} for n, call in enumerate(whole["message"].get("tool_calls", ()))]
    said: dict[str, Any] = {"tool_calls": calls} if calls else {"content": answer.text}
    for delta, reason in (
        ({"role": "assistant", "content": ""}, None),
        (said, None),
        ({}, whole["finish_reason"]),
    ):
        yield _chunk(done, choices=[{"index": 0, "delta": delta, "finish_reason": reason}])
    yield _chunk(done, choices=[], usage=_completion_usage())
    yield "data: [DONE]\n\n"


def _chunk(done: int, **more: Any) -> str:
    return f"data: {json.dumps(_of_openai('chat.completion.chunk', done, **more))}\n\n"


def _of_openai(kind: str, done: int, **more: Any) -> dict[str, Any]:
    return {"id": f"chatcmpl-{done}", "object": kind, "created": 1, "model": "gpt-5.4-mini", **more}


def _completion_usage() -> dict[str, int]:
    return {
        "prompt_tokens": _USAGE["in"],
        "completion_tokens": _USAGE["out"],
        "total_tokens": sum(_USAGE.values()),
    }


# -- Bedrock


def _converse(answer: Answer, done: int) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = [
        {"toolUse": {"toolUseId": id_, "name": TOOL, "input": call}} for id_, call in _calls(answer, done)
    ]
    content = blocks or [{"text": answer.text}]
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": "tool_use" if blocks else "end_turn",
        "usage": _converse_usage(),
        "metrics": {"latencyMs": 0},
    }


def _converse_usage() -> dict[str, int]:
    return {
        "inputTokens": _USAGE["in"],
        "outputTokens": _USAGE["out"],
        "totalTokens": sum(_USAGE.values()),
    }


def _converse_events(answer: Answer, done: int) -> Iterable[bytes]:
    whole = _converse(answer, done)
    yield _frame("messageStart", {"role": "assistant"})
    for index, block in enumerate(whole["output"]["message"]["content"]):
        delta: dict[str, Any] = block
        if "toolUse" in block:
            start = {key: block["toolUse"][key] for key in ("toolUseId", "name")}
            yield _frame("contentBlockStart", {"contentBlockIndex": index, "start": {"toolUse": start}})
            delta = {"toolUse": {"input": json.dumps(block["toolUse"]["input"])}}
        yield _frame("contentBlockDelta", {"contentBlockIndex": index, "delta": delta})
        yield _frame("contentBlockStop", {"contentBlockIndex": index})
    yield _frame("messageStop", {"stopReason": whole["stopReason"]})
    yield _frame("metadata", {"usage": whole["usage"], "metrics": whole["metrics"]})


def _frame(kind: str, payload: Any) -> bytes:
    """Return an event in AWS's framing."""
    head = b"".join(
        _header(name, value)
        for name, value in (
            (":message-type", "event"),
            (":event-type", kind),
            (":content-type", "application/json"),
        )
    )
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(head) + len(body), len(head))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + body
    return message + struct.pack(">I", zlib.crc32(message))


def _header(name: str, value: str) -> bytes:
    return bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()


async def _main() -> None:
    server = await asyncio.start_server(Provider().serve, "127.0.0.1", 0, limit=2**24)
    print(json.dumps({"ready": True, "port": server.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
