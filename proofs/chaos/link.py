"""Channel from the provider and the tools to the conductor: lines of JSON on their standard streams."""

import asyncio
import json
import os
import sys
from typing import Any


class Link:
    """Connection of a process to the conductor; the process ends when the conductor does."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Event] = {}
        self._listening: asyncio.Task[None] | None = None

    async def open(self, port: int) -> None:
        """Report that this process serves, and on which port."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        self._listening = asyncio.create_task(self._listen(reader))
        _write({"ready": port})

    async def report_and_wait(self, fault: int, worker: str) -> None:
        """Report that a fault's moment has come, and wait until the conductor has done its part."""
        self._waiting[fault] = asyncio.Event()
        _write({"fault": fault, "worker": worker})
        await self._waiting[fault].wait()

    def report_done(self, fault: int) -> None:
        """Report that this process carried a fault out itself."""
        _write({"fault": fault, "done": True})

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self._waiting[json.loads(line)["go"]].set()
        # The stream ended, so the conductor is gone: nobody else would end this process.
        os._exit(0)


def _write(plain: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(plain) + "\n")
    sys.stdout.flush()
