"""Provider: Anthropic's Messages API, streamed; it writes what it bills for each call into a file.

    python -m proofs.money.provider --bills FILE --seed 1 --faults '[...]'

It bills for everything that it has produced, whether or not anybody read it: answers that it cuts itself, answers
whose reader was killed, and answers that were stopped.
"""

import argparse
import asyncio
import hashlib
import json
import random
from pathlib import Path
from typing import Any

from ..chaos.link import Link
from ..chaos.web import Request, Response, serve
from .script import Block, agent_of, answer, tree_of
from .tokens import CALL_TOKENS, count_request, count_text

_CUT, _REFUSED, _BROKEN = 0.05, 0.02, 0.02
"""Shares of the calls that are cut, refused, or ended by an error in the stream."""
_THINKING_SECONDS = 0.3
_MISSED = 0.1
"""Share of the calls whose prefix the cache has lost."""


class CutHere(Exception):
    """The answer ends here."""


class Call:
    """Call that is answered, and its bill."""

    def __init__(self, body: dict[str, Any], out: Response, usage: dict[str, int]) -> None:
        self.body = body
        self.out = out
        self.bill = {**usage, "output": 1}
        self.most = int(body["max_tokens"])
        self.stops_after = -1
        """Number of events after which the answer is cut; -1: it is not."""
        self.events = 0

    async def send(self, kind: str, **fields: Any) -> None:
        """Send an event of the stream."""
        if self.events == self.stops_after:
            raise CutHere
        self.events += 1
        await self.out.event(json.dumps({"type": kind, **fields}), kind)
        if self.events % 8 == 0:
            await asyncio.sleep(0.02)  # a model takes its time: others answer meanwhile

    def take(self, tokens: int) -> bool:
        """Bill so many tokens of the answer; return False when it may not be that long."""
        if self.bill["output"] + tokens > self.most:
            self.bill["output"] = self.most
            return False
        self.bill["output"] += tokens
        return True


class Provider:
    """HTTP handler that answers and bills."""

    def __init__(self, seed: int, faults: list[dict[str, Any]], bills: Path, link: Link) -> None:
        self._seed = seed
        self._faults = {int(fault["at"]): fault for fault in faults}
        self._bills = bills.open("a")
        self._link = link
        self._requests = 0
        self._cached: dict[str, int] = {}
        self._chance = random.Random(seed)

    async def handle(self, request: Request, out: Response) -> None:
        """Answer a request."""
        if not request.path.startswith("/v1/messages"):
            await out.send({"type": "error", "error": {"type": "not_found_error", "message": "no"}}, 404)
            return
        self._requests += 1
        body = request.json()
        fault = self._faults.pop(self._requests, None)
        if fault is None and self._chance.random() < _REFUSED:
            error = {"type": "overloaded_error", "message": "overloaded"}
            await out.send({"type": "error", "error": error}, 529)
            return
        call = Call(body, out, self._usage(body))
        blocks = answer(body, self._seed)
        try:
            worker = request.headers.get("authorization", "").removeprefix("Bearer ")
            await self._answer(call, blocks, fault, worker or request.headers.get("x-api-key", ""))
        except CutHere:
            out.cut()
        except ConnectionError:
            out.is_over = True
        finally:
            self._write(call)

    def _usage(self, body: dict[str, Any]) -> dict[str, int]:
        """Return what the request has the model read, by its price."""
        whole = count_request(body)
        first = json.dumps(body["messages"][0])
        conversation = f"{tree_of(body)} {agent_of(body)} {hashlib.sha256(first.encode()).hexdigest()}"
        known = 0 if self._chance.random() < _MISSED else self._cached.get(conversation, 0)
        self._cached[conversation] = whole
        read = min(known, whole - 3)
        return {"input": 3, "cache_read": read, "cache_write": whole - read - 3}

    async def _answer(
        self, call: Call, blocks: list[Block], fault: dict[str, Any] | None, worker: str
    ) -> None:
        await call.out.begin_events()
        usage = {
            "input_tokens": call.bill["input"],
            "cache_read_input_tokens": call.bill["cache_read"],
            "cache_creation_input_tokens": call.bill["cache_write"],
            "output_tokens": 1,
        }
        message: dict[str, Any] = {
            "id": "m",
            "role": "assistant",
            "model": call.body["model"],
            "content": [],
            "usage": usage,
        }
        length = 2 + sum(2 + len(block.pieces) for block in blocks)
        where = self._chance.randint(1, length)
        kind = self._chance.random()
        if fault is None and kind < _CUT:
            call.stops_after = where
        await call.send("message_start", message=message)
        stop = "tool_use" if any(block.kind == "tool_use" for block in blocks) else "end_turn"
        for index, block in enumerate(blocks):
            if fault is not None and (index == len(blocks) - 1):
                await self._report(call, block, index, fault, worker)
                return
            if fault is None and _CUT <= kind < _CUT + _BROKEN and index == len(blocks) - 1:
                await _send_block(call, block, index, most=len(block.pieces) // 2)
                await call.send("error", error={"type": "overloaded_error", "message": "overloaded"})
                raise CutHere
            if not await _send_block(call, block, index):
                stop = "max_tokens"
                break
        await _end(call, stop)

    async def _report(self, call: Call, block: Block, index: int, fault: dict[str, Any], worker: str) -> None:
        """Send half of the block, and let the conductor act; then write on into the void."""
        await _send_block(call, block, index, most=len(block.pieces) // 2)
        await self._link.report_and_wait(fault["id"], worker)
        await _send_block(call, block, index + 1)
        raise CutHere

    def _write(self, call: Call) -> None:
        line = {"tree": tree_of(call.body), "agent": agent_of(call.body), **call.bill}
        self._bills.write(json.dumps(line) + "\n")
        self._bills.flush()


async def _send_block(call: Call, block: Block, index: int, *, most: int | None = None) -> bool:
    """Send a block, or its beginning; return False when the answer has reached its longest."""
    start: dict[str, Any] = {"type": block.kind}
    delta, field = {"thinking": ("thinking_delta", "thinking"), "text": ("text_delta", "text")}.get(
        block.kind, ("input_json_delta", "partial_json")
    )
    if block.kind == "tool_use":
        start |= {"id": f"toolu_{index}", "name": block.name, "input": {}}
        if not call.take(CALL_TOKENS):
            return False
    else:
        start[field] = ""
    await call.send("content_block_start", index=index, content_block=start)
    if block.hidden:
        await asyncio.sleep(_THINKING_SECONDS)
        if not call.take(block.hidden):
            return False
    for piece in block.pieces[:most]:
        if not call.take(count_text(piece)):
            return False
        await call.send("content_block_delta", index=index, delta={"type": delta, field: piece})
    if most is None:
        await call.send("content_block_stop", index=index)
    return True


async def _end(call: Call, stop: str) -> None:
    usage = {"output_tokens": call.bill["output"]}
    await call.send("message_delta", delta={"stop_reason": stop}, usage=usage)
    await call.send("message_stop")
    await call.out.end_events()


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bills", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", default="[]")
    options = parser.parse_args()
    link = Link()
    provider = Provider(options.seed, json.loads(options.faults), options.bills, link)
    server, port = await serve(provider.handle)
    await link.open(port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
