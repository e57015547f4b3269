"""The tools' process: the API objects of all tasks of a run, behind HTTP and a journal.

    python -m proofs.chaos.tools.service --journal FILE --port 0 --faults '[...]'

`POST /call` with `{"task", "name", "arguments"}` and an `Idempotency-Key` does the call and answers
`{"result": ...}`; the same key again gets the same answer, and nothing is done. `GET /verdict` judges what
was done.
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
from proofs.chaos.web import Answer, Request, serve

from .objects import Objects, entries, judged


class Service:
    """The objects, what was done to them, and the faults that are to happen on the way."""

    def __init__(self, journal: Journal, faults: list[dict[str, Any]], link: Link, padding: int = 0) -> None:
        self._journal = journal
        self._link = link
        self._padding = padding
        self._faults = {int(one["at"]): one for one in faults}
        self._entries = entries()
        self._objects: dict[str, Objects] = {}
        for entry in journal.entries:
            self._of(entry.task).call(entry.name, entry.arguments)

    async def handle(self, request: Request, answer: Answer) -> None:
        """Answer one request."""
        match request.method, request.path:
            case "POST", "/call":
                await self._call(request, answer)
            case "GET", "/verdict":
                await answer.send(self._verdict())
            case _:
                await answer.send({"error": "no such thing"}, 404)

    async def _call(self, request: Request, answer: Answer) -> None:
        key, wanted = request.headers.get("idempotency-key"), request.json()
        worker = request.headers.get("x-worker", "")
        if (known := self._journal.done(key)) is not None:
            self._journal.add_told(str(key))
            await answer.send(self._shown(known.result))
            return None
        fault = self._faults.pop(len(self._journal.entries) + 1, None)
        if fault is not None and fault["moment"] == "before":
            await self._link.tell(fault["id"], worker)
            if fault["drop"]:
                answer.cut()
                return None
            # Others were served while this waited, the same call perhaps.
            return await self._call(request, answer)
        result = self._do(key, wanted)
        if fault is not None and fault["moment"] == "during":
            await self._between(fault, worker, answer)
        if not answer.is_over:
            await answer.send(self._shown(result))
        if fault is not None and fault["moment"] == "after":
            await self._link.tell(fault["id"], worker)
        return None

    def _shown(self, result: str) -> dict[str, str]:
        """The answer, made longer by what nothing compresses if it is to be long."""
        if not self._padding:
            return {"result": result}
        return {"result": result, "trace": os.urandom(self._padding // 2).hex()}

    def _do(self, key: str | None, wanted: dict[str, Any]) -> str:
        """Do the call and keep it. No other call comes in between: nothing is awaited here."""
        result = self._of(wanted["task"]).call(wanted["name"], wanted["arguments"])
        self._journal.add(
            Entry(time.time(), wanted["task"], key, wanted["name"], wanted["arguments"], result)
        )
        return result

    async def _between(self, fault: dict[str, Any], worker: str, answer: Answer) -> None:
        """What happens after the effect and before the answer."""
        match fault["what"]:
            case "cut":
                self._link.note(fault["id"])
                answer.cut()
            case "late":
                self._link.note(fault["id"])
                await asyncio.sleep(fault["seconds"])
            case _:
                await self._link.tell(fault["id"], worker)

    def _of(self, task: str) -> Objects:
        if task not in self._objects:
            self._objects[task] = Objects(self._entries[task])
        return self._objects[task]

    def _verdict(self) -> dict[str, Any]:
        tasks = {task: self._judged(task) for task in self._objects}
        return {"told": self._journal.told, "effects": len(self._journal.entries), "tasks": tasks}

    def _judged(self, task: str) -> dict[str, Any]:
        mine = [entry for entry in self._journal.entries if entry.task == task]
        said = judged(self._entries[task], self._objects[task], [entry.result for entry in mine])
        times = [entry.at for entry in mine]
        done = Counter(_written(entry.name, entry.arguments) for entry in mine)
        return {**said, "digest": self._objects[task].digest(), "times": times, "done": done}


def _written(name: str, arguments: dict[str, Any]) -> str:
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
