"""Fake provider: OpenAI's chat completions, streamed from the scripted model, and the faults of a provider.

    python -m proofs.chaos.provider --catalogue FILE --log FILE --seed 1 --faults '[...]'

Faults come by the number of the request. Each answered request gets a line in the log.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .catalogue import Catalogue, load
from .link import Link
from .script import Reply, answer
from .web import Request, Response, serve

_REFUSED = {
    "429": (429, "rate_limit_error", "slow down"),
    "500": (500, "server_error", "something broke"),
    "529": (529, "overloaded_error", "overloaded"),
}
_PIECE = 12
"""Characters of text or arguments in an event of the stream."""


class Provider:
    """HTTP handler that answers requests, some of them with a scheduled fault."""

    def __init__(
        self, catalogue: Catalogue, seed: int, faults: list[dict[str, Any]], log: Path, link: Link
    ) -> None:
        self._catalogue = catalogue
        self._seed = seed
        self._faults = {int(fault["at"]): fault for fault in faults}
        self._log = log.open("a")
        self._link = link
        self._requests = 0

    async def handle(self, request: Request, out: Response) -> None:
        """Answer a request."""
        if request.method != "POST" or not request.path.endswith("/chat/completions"):
            await out.send({"error": {"message": "no such resource"}}, 404)
            return
        self._requests += 1
        fault = self._faults.pop(self._requests, None)
        plain = request.json()
        worker = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            reply = answer(plain["messages"], self._catalogue, self._seed)
        except ValueError as error:
            await out.send({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)
            return
        if fault is None:
            await self._stream(reply, plain, out)
        else:
            await self._send_fault(fault, reply, plain, out, worker)
        self._write(reply, fault)

    def _write(self, reply: Reply, fault: dict[str, Any] | None) -> None:
        line = {
            "at": time.time(),
            "task": reply.task,
            "turn": reply.turn,
            "calls": len(reply.calls),
            "errors": reply.errors,
            "surprises": reply.surprises,
            "fault": fault["what"] if fault else "",
        }
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    async def _stream(self, reply: Reply, plain: dict[str, Any], out: Response, stop_at: float = 1.0) -> None:
        """Send the answer up to `stop_at`, a share of it; in one piece if the request does not stream."""
        if not plain.get("stream"):
            await out.send(_complete_answer(reply, plain["model"]), share=stop_at)
            return
        events = list(_events(reply, plain["model"]))
        await out.begin_events()
        for event in events[: max(1, int(len(events) * stop_at))] if stop_at < 1 else events:
            await out.event(json.dumps(event))
        if stop_at == 1.0:
            await out.event("[DONE]")
            await out.end_events()

    async def _send_fault(
        self, fault: dict[str, Any], reply: Reply, plain: dict[str, Any], out: Response, worker: str
    ) -> None:
        what = fault["what"]
        if what in _REFUSED:
            self._link.report_done(fault["id"])
            status, kind, message = _REFUSED[what]
            body = {"error": {"message": message, "type": kind, "code": kind}}
            await out.send(body, status, retry_after="1" if what == "429" else None)
        elif what == "arguments":
            self._link.report_done(fault["id"])
            await self._stream(reply, plain, out) if not plain.get(
                "tools"
            ) else await _send_invalid_arguments(plain, out)
        elif what in ("cut", "garbled", "stall"):
            self._link.report_done(fault["id"])
            await self._stream(reply, plain, out, stop_at=0.5)
            if what == "garbled" and plain.get("stream"):
                await out.event('{"id": "x", "choices": [{"del')
            if what == "stall":
                await asyncio.sleep(fault["seconds"])
            out.cut()
        else:
            await self._wait_for_conductor(fault, reply, plain, out, worker)

    async def _wait_for_conductor(
        self, fault: dict[str, Any], reply: Reply, plain: dict[str, Any], out: Response, worker: str
    ) -> None:
        """Let the conductor act before the answer, in the middle of it, or after it."""
        if fault["moment"] == "before":
            await self._link.report_and_wait(fault["id"], worker)
            await self._stream(reply, plain, out)
        elif fault["moment"] == "during":
            await self._stream(reply, plain, out, stop_at=0.5)
            await self._link.report_and_wait(fault["id"], worker)
            out.cut()
        else:
            await self._stream(reply, plain, out)
            await self._link.report_and_wait(fault["id"], worker)


async def _send_invalid_arguments(plain: dict[str, Any], out: Response) -> None:
    """Send a call whose arguments are not JSON, as models sometimes do."""
    name = plain["tools"][0]["function"]["name"]
    function = {"name": name, "arguments": '{"path": "unfinished'}
    call = {"index": 0, "id": "call_x", "type": "function", "function": function}
    if not plain.get("stream"):
        await out.send(_completion(plain["model"], None, [call]))
        return
    await out.begin_events()
    for delta, reason in (({"role": "assistant", "tool_calls": [call]}, None), ({}, "tool_calls")):
        await out.event(json.dumps(_chunk(plain["model"], delta, reason)))
    await out.event(json.dumps(_usage(plain["model"])))
    await out.event("[DONE]")
    await out.end_events()


def _events(reply: Reply, model: str) -> Iterator[dict[str, Any]]:
    yield _chunk(model, {"role": "assistant", "content": "" if reply.text else None})
    for piece in _pieces(reply.text):
        yield _chunk(model, {"content": piece})
    for index, call in enumerate(reply.calls):
        function = {"name": call.name, "arguments": ""}
        yield _chunk(
            model,
            {
                "tool_calls": [
                    {"index": index, "id": f"call_{index}", "type": "function", "function": function}
                ]
            },
        )
        for piece in _pieces(json.dumps(call.arguments)):
            yield _chunk(model, {"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield _chunk(model, {}, "tool_calls" if reply.calls else "stop")
    yield _usage(model)


def _complete_answer(reply: Reply, model: str) -> dict[str, Any]:
    """Return the answer for a request that does not stream."""
    calls = [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for index, call in enumerate(reply.calls)
    ]
    return _completion(model, reply.text or None, calls)


def _completion(model: str, text: str | None, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    return {**_usage(model), "object": "chat.completion", "choices": [choice]}


def _pieces(text: str) -> list[str]:
    return [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]


def _chunk(model: str, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": model,
        "choices": [choice],
    }


def _usage(model: str) -> dict[str, Any]:
    tokens = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {**_chunk(model, {}), "choices": [], "usage": tokens}


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--catalogue", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", default="[]")
    options = parser.parse_args()
    link = Link()
    provider = Provider(load(options.catalogue), options.seed, json.loads(options.faults), options.log, link)
    server, port = await serve(provider.handle)
    await link.open(port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
