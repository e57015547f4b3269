"""How the provider and the tools speak with the conductor: lines of JSON on their standard streams."""

import asyncio
import json
import os
import sys
from typing import Any


class Link:
    """The conductor, as one of its processes sees it. The process ends when the conductor does."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Event] = {}
        self._listening: asyncio.Task[None] | None = None

    async def open(self, port: int) -> None:
        """Say that this process serves, and where."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        self._listening = asyncio.create_task(self._listen(reader))
        _say({"ready": port})

    async def tell(self, fault: int, worker: str) -> None:
        """Say that a fault's moment has come, and wait until the conductor has done its part."""
        self._waiting[fault] = asyncio.Event()
        _say({"fault": fault, "worker": worker})
        await self._waiting[fault].wait()

    def note(self, fault: int) -> None:
        """Say that a fault was done here."""
        _say({"fault": fault, "done": True})

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self._waiting[json.loads(line)["go"]].set()
        os._exit(0)


def _say(plain: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(plain) + "\n")
    sys.stdout.flush()
