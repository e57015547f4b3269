"""The fake provider: OpenAI's chat completions, streamed, from the scripted model; and what goes wrong
with one.

    python -m proofs.chaos.provider --catalogue FILE --log FILE --seed 1 --faults '[...]'

Its faults come by the number of the request. It writes a line of its log for each request that it answered.
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
from .script import Say, answer
from .web import Answer, Request, serve

_REFUSED = {
    "429": (429, "rate_limit_error", "slow down"),
    "500": (500, "server_error", "something broke"),
    "529": (529, "overloaded_error", "overloaded"),
}
_PIECE = 12
"""Characters of text or arguments in one event of the stream."""


class Provider:
    """Answers requests, and does what the schedule says to some of them."""

    def __init__(
        self, catalogue: Catalogue, seed: int, faults: list[dict[str, Any]], log: Path, link: Link
    ) -> None:
        self._catalogue = catalogue
        self._seed = seed
        self._faults = {int(one["at"]): one for one in faults}
        self._log = log.open("a")
        self._link = link
        self._asked = 0

    async def handle(self, request: Request, out: Answer) -> None:
        """Answer one request."""
        if request.method != "POST" or not request.path.endswith("/chat/completions"):
            await out.send({"error": {"message": "no such thing"}}, 404)
            return
        self._asked += 1
        fault = self._faults.pop(self._asked, None)
        plain = request.json()
        worker = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            said = answer(plain["messages"], self._catalogue, self._seed)
        except ValueError as error:
            await out.send({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)
            return
        if fault is None:
            await self._stream(said, plain, out)
        else:
            await self._faulty(fault, said, plain, out, worker)
        self._write(said, fault)

    def _write(self, said: Say, fault: dict[str, Any] | None) -> None:
        line = {
            "at": time.time(),
            "task": said.task,
            "turn": said.turn,
            "calls": len(said.calls),
            "errors": said.errors,
            "surprises": said.surprises,
            "fault": fault["what"] if fault else "",
        }
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    async def _stream(self, said: Say, plain: dict[str, Any], out: Answer, stop_at: float = 1.0) -> None:
        """The answer, or that share of it; in one piece for those who do not want it streamed."""
        if not plain.get("stream"):
            await out.send(_whole(said, plain["model"]), share=stop_at)
            return
        events = list(_events(said, plain["model"]))
        await out.begin_events()
        for event in events[: max(1, int(len(events) * stop_at))] if stop_at < 1 else events:
            await out.event(json.dumps(event))
        if stop_at == 1.0:
            await out.event("[DONE]")
            await out.end_events()

    async def _faulty(
        self, fault: dict[str, Any], said: Say, plain: dict[str, Any], out: Answer, worker: str
    ) -> None:
        what = fault["what"]
        if what in _REFUSED:
            self._link.note(fault["id"])
            status, kind, message = _REFUSED[what]
            body = {"error": {"message": message, "type": kind, "code": kind}}
            await out.send(body, status, retry_after="1" if what == "429" else None)
        elif what == "arguments":
            self._link.note(fault["id"])
            await self._stream(said, plain, out) if not plain.get("tools") else await _nonsense(plain, out)
        elif what in ("cut", "garbled", "stall"):
            self._link.note(fault["id"])
            await self._stream(said, plain, out, stop_at=0.5)
            if what == "garbled" and plain.get("stream"):
                await out.event('{"id": "x", "choices": [{"del')
            if what == "stall":
                await asyncio.sleep(fault["seconds"])
            out.cut()
        else:
            await self._moment(fault, said, plain, out, worker)

    async def _moment(
        self, fault: dict[str, Any], said: Say, plain: dict[str, Any], out: Answer, worker: str
    ) -> None:
        """The conductor does something: before the answer, in the middle of it, or after it."""
        if fault["moment"] == "before":
            await self._link.tell(fault["id"], worker)
            await self._stream(said, plain, out)
        elif fault["moment"] == "during":
            await self._stream(said, plain, out, stop_at=0.5)
            await self._link.tell(fault["id"], worker)
            out.cut()
        else:
            await self._stream(said, plain, out)
            await self._link.tell(fault["id"], worker)


async def _nonsense(plain: dict[str, Any], out: Answer) -> None:
    """A call whose arguments are not JSON, as models make them now and then."""
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


def _events(said: Say, model: str) -> Iterator[dict[str, Any]]:
    yield _chunk(model, {"role": "assistant", "content": "" if said.text else None})
    for piece in _pieces(said.text):
        yield _chunk(model, {"content": piece})
    for index, call in enumerate(said.calls):
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
    yield _chunk(model, {}, "tool_calls" if said.calls else "stop")
    yield _usage(model)


def _whole(said: Say, model: str) -> dict[str, Any]:
    """The answer for those who do not want it streamed."""
    calls = [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for index, call in enumerate(said.calls)
    ]
    return _completion(model, said.text or None, calls)


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
    counted = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {**_chunk(model, {}), "choices": [], "usage": counted}


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
