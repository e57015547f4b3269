"""Process of the tools: the API objects of all tasks of a run, behind HTTP and a journal.

    python -m proofs.chaos.tools.service --journal FILE --port 0 --faults '[...]'

`POST /call` with `{"task", "name", "arguments"}` and an `Idempotency-Key` carries the call out
and answers `{"result": ...}`; a repeated key gets the same answer, without an effect. `GET /verdict` judges
all effects.
"""

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from proofs.chaos.journal import Entry, Journal
from proofs.chaos.link import Link
from proofs.chaos.web import Request, Response, serve

from .objects import Objects, entries, judge


class Service:
    """HTTP handler with the objects, the journal of effects, and the faults that are still to happen."""

    def __init__(self, journal: Journal, faults: list[dict[str, Any]], link: Link, padding: int = 0) -> None:
        self._journal = journal
        self._link = link
        self._padding = padding
        self._faults = {int(fault["at"]): fault for fault in faults}
        self._entries = entries()
        self._objects: dict[str, Objects] = {}
        # A replay rebuilds the objects, so a kill loses no effect that was answered.
        for entry in journal.entries:
            self._objects_of(entry.task).call(entry.name, entry.arguments)

    async def handle(self, request: Request, answer: Response) -> None:
        """Answer a request."""
        match request.method, request.path:
            case "POST", "/call":
                await self._call(request, answer)
            case "GET", "/verdict":
                await answer.send(self._verdict())
            case _:
                await answer.send({"error": "no such resource"}, 404)

    async def _call(self, request: Request, answer: Response) -> None:
        key, call = request.headers.get("idempotency-key"), request.json()
        worker = request.headers.get("x-worker", "")
        if (known := self._journal.find(key)) is not None:
            self._journal.add_repeat(str(key))
            await answer.send(self._answer(known.result))
            return None
        fault = self._faults.pop(len(self._journal.entries) + 1, None)
        if fault is not None and fault["moment"] == "before":
            await self._link.report_and_wait(fault["id"], worker)
            if fault["drop"]:
                answer.cut()
                return None
            # Other requests were served while this waited, perhaps a repeat of this call.
            return await self._call(request, answer)
        result = self._carry_out(key, call)
        if fault is not None and fault["moment"] == "during":
            await self._fail_before_answer(fault, worker, answer)
        if not answer.is_over:
            await answer.send(self._answer(result))
        if fault is not None and fault["moment"] == "after":
            await self._link.report_and_wait(fault["id"], worker)
        return None

    def _answer(self, result: str) -> dict[str, str]:
        """Return the answer, padded with random text that nothing can compress."""
        if not self._padding:
            return {"result": result}
        return {"result": result, "trace": os.urandom(self._padding // 2).hex()}

    def _carry_out(self, key: str | None, call: dict[str, Any]) -> str:
        """Carry the call out and store it; atomic, because nothing is awaited here."""
        result = self._objects_of(call["task"]).call(call["name"], call["arguments"])
        self._journal.add(Entry(time.time(), call["task"], key, call["name"], call["arguments"], result))
        return result

    async def _fail_before_answer(self, fault: dict[str, Any], worker: str, answer: Response) -> None:
        """Cause a fault after the effect and before the answer."""
        match fault["what"]:
            case "cut":
                self._link.report_done(fault["id"])
                answer.cut()
            case "late":
                self._link.report_done(fault["id"])
                await asyncio.sleep(fault["seconds"])
            case _:
                await self._link.report_and_wait(fault["id"], worker)

    def _objects_of(self, task: str) -> Objects:
        if task not in self._objects:
            self._objects[task] = Objects(self._entries[task])
        return self._objects[task]

    def _verdict(self) -> dict[str, Any]:
        tasks = {task: self._judge(task) for task in self._objects}
        return {
            "flagged_repeats": self._journal.repeats,
            "effects": len(self._journal.entries),
            "tasks": tasks,
        }

    def _judge(self, task: str) -> dict[str, Any]:
        effects = [entry for entry in self._journal.entries if entry.task == task]
        verdict = judge(self._entries[task], self._objects[task], [entry.result for entry in effects])
        times = [entry.at for entry in effects]
        done = Counter(_canonical(entry.name, entry.arguments) for entry in effects)
        return {**verdict, "digest": self._objects[task].digest(), "times": times, "done": done}


def _canonical(name: str, arguments: dict[str, Any]) -> str:
    return json.dumps([name, arguments], sort_keys=True)


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", default="[]")
    parser.add_argument("--padding", type=int, default=0)
    options = parser.parse_args()
    link = Link()
    service = Service(Journal(options.journal), json.loads(options.faults), link, options.padding)
    server, port = await serve(service.handle, options.port)
    await link.open(port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
