"""Processes of a subject: `worker` does the work and is measured, `driver` starts runs.

    python -m proofs.benchmarks.subjects.NAME worker --address 127.0.0.1:7233 --queue q
    python -m proofs.benchmarks.subjects.NAME driver --address 127.0.0.1:7233 --queue q

Both print `{"ready": true}` once they are ready. The driver then reads a JSON command a line, and answers
each in a line, in any order: the answer to `{"n": 1, "do": "run", "job": {...}}` is
`{"n": 1, "seconds": ..., ...}` or `{"n": 1, "error": "Type: message"}`. A worker with `--hold` waits for a
line on its standard input before it begins to poll. Both end when their standard input does.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from .job import Job


@dataclass(frozen=True)
class Where:
    """Address of the server, and settings of the worker."""

    address: str
    queue: str
    folder: str
    """Empty folder for the subject's files."""
    cache: int = 1000
    """Maximum number of workflows in the worker's cache (`max_cached_workflows`)."""


class Subject(Protocol):
    """System under test."""

    workflow: str
    """Type name of its workflow, as history shows it; empty when it does not run on Temporal."""
    model: str
    """Type name of the activity that asks the model."""
    tool: str
    """Type name of the activity that runs the tool; empty when the tool runs elsewhere."""

    def worker(self, where: Where) -> AbstractAsyncContextManager[None]:
        """Poll until the block ends; everything is imported and connected before it begins."""
        ...

    async def connect(self, where: Where) -> Any:
        """Connect the client that `run` needs."""
        ...

    async def run(self, client: Any, job: Job) -> str:
        """Run the job under the id `job.id`; return the closing answer, or raise when it fails."""
        ...


# Optional methods of a subject, each a command of its driver:
#   async def watch(self, client, job) -> AsyncIterator[str]
#       the text of a run as a watcher sees it grow, piece by piece, from before its first word
#   async def start(self, client, job) -> None            start a run, do not wait for its end
#   async def approve(self, client, job) -> None          approve the held tool call, and return at once
#   async def finish(self, client, job) -> str            wait for the end of a started run


def main(subject: Subject) -> None:
    """Run as the process that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["worker", "driver"])
    parser.add_argument("--address", default="")
    parser.add_argument("--queue", default="bench")
    parser.add_argument("--folder", default=".")
    parser.add_argument("--cache", type=int, default=1000)
    parser.add_argument("--hold", action="store_true")
    options = parser.parse_args()
    where = Where(address=options.address, queue=options.queue, folder=options.folder, cache=options.cache)
    role = _work(subject, where, hold=options.hold) if options.role == "worker" else _drive(subject, where)
    asyncio.run(role)
    sys.stdout.flush()
    os._exit(0)  # the SDK may crash at the interpreter's own exit, and nothing is left to save


async def _work(subject: Subject, where: Where, *, hold: bool) -> None:
    lines = _lines()
    if hold:
        _write({"held": True})
        await anext(lines)
    async with subject.worker(where):
        _write({"ready": True, "at": time.time()})
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, over.set)
        ended = asyncio.create_task(_read_to_end(lines, over))
        await over.wait()
        ended.cancel()


async def _read_to_end(lines: AsyncIterator[str], over: asyncio.Event) -> None:
    async for _ in lines:
        pass
    over.set()


async def _drive(subject: Subject, where: Where) -> None:
    client = await subject.connect(where)
    names = {"workflow": subject.workflow, "model": subject.model, "tool": subject.tool}
    _write({"ready": True, "at": time.time(), "names": names})
    tasks: set[asyncio.Task[None]] = set()
    async for line in _lines():
        task = asyncio.create_task(_answer(subject, client, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for task in tasks:
        task.cancel()


async def _answer(subject: Subject, client: Any, command: dict[str, Any]) -> None:
    began = time.perf_counter()
    try:
        answer = await _execute(subject, client, command)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {_with_root_cause(error)}"[:2000]}
    _write({"n": command["n"], "seconds": time.perf_counter() - began, **answer})


async def _execute(subject: Subject, client: Any, command: dict[str, Any]) -> dict[str, Any]:
    jobs = [Job.from_json(job) for job in command["jobs"]]
    numbers = {job.id: n for n, job in enumerate(jobs)}
    match command["do"]:
        case "run":
            outputs = await asyncio.gather(*(subject.run(client, job) for job in jobs))
            return {"outputs": [output[:100] for output in outputs]}
        case "watch":
            return await _watch(subject, client, jobs[0], command["watchers"])
        case name:
            method: Any = getattr(subject, name)
            limit = asyncio.Semaphore(command.get("at_once", 50))
            apart = command.get("seconds_apart", 0.0)

            async def call(job: Job) -> dict[str, Any]:
                await asyncio.sleep(apart * numbers[job.id])
                async with limit:
                    at = time.time()
                    output = await method(client, job)
                    return {"id": job.id, "at": at, "until": time.time(), "output": str(output)[:1000]}

            return {"each": await asyncio.gather(*(call(job) for job in jobs))}


async def _watch(subject: Any, client: Any, job: Job, watchers: int) -> dict[str, Any]:
    """Run a job with `watchers` watchers; return the lag of each word at each watcher, in seconds."""
    lags: list[float] = []
    heard: list[int] = []

    async def watch() -> None:
        text, words = "", 0
        async for piece in subject.watch(client, job):
            text += piece
            *complete, text = text.split(" ")
            now = time.time()
            lags.extend(now - float(word) for word in complete if word)
            words += sum(1 for word in complete if word)
        if text:
            lags.append(time.time() - float(text))
            words += 1
        heard.append(words)

    tasks = [asyncio.create_task(watch()) for _ in range(watchers)]
    try:
        await subject.run(client, job)
        if tasks:
            await asyncio.wait(tasks, timeout=30)
    finally:
        for task in tasks:
            task.cancel()
    failed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    errors = [f"{type(error).__name__}: {error}" for error in failed if error is not None]
    return {"lags": sorted(lags), "heard": heard, "errors": errors[:3]}


def _with_root_cause(error: BaseException) -> str:
    root = error
    while (cause := getattr(root, "cause", None) or root.__cause__) is not None:
        root = cause
    return str(error) if root is error else f"{error} <- {type(root).__name__}: {root}"


def _write(value: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()


async def _lines() -> AsyncIterator[str]:
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode()
