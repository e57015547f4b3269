"""Server on loopback that plays recorded answers, breaks included."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from .shapes import Answer


class PlayingServer:
    """Server that gives each request the answer that was set last, and keeps the requests."""

    def __init__(self) -> None:
        self.url = ""
        self.answer = Answer()
        self.bodies: list[Any] = []
        """Bodies of the requests so far, as JSON; text where they are none."""
        self.hung_up = asyncio.Event()
        """Set when a client has closed its connection in the middle of an answer."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the requests of one connection."""
        self._writers.add(writer)
        self._tasks.add(asyncio.current_task())
        try:
            while await self._read(reader):
                if not await self._play(self.answer, reader, writer):
                    return
        except (OSError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            self._writers.discard(writer)
            self._tasks.discard(asyncio.current_task())
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return False
        fields = (line.partition(":") for line in head.split("\r\n")[1:])
        headers = {name.lower(): value.strip() for name, _, value in fields}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        try:
            self.bodies.append(json.loads(body or b"{}"))
        except ValueError:
            self.bodies.append(body.decode(errors="replace"))
        return True

    async def _play(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send the answer; return whether the connection can take another request."""
        lines = [f"HTTP/1.1 {answer.status} Recorded", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        for chunk in filter(None, answer.chunks):
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if answer.end == "whole":
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        if answer.end == "hang":
            await reader.read()
            self.hung_up.set()
        return answer.end == "whole"

    async def close_connections(self) -> None:
        """Close all connections that are open, and wait until nobody serves them."""
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.gather(*filter(None, list(self._tasks)), return_exceptions=True)


@asynccontextmanager
async def playing_server() -> AsyncGenerator[PlayingServer]:
    """Serve on a free port of loopback while the body runs."""
    playing = PlayingServer()
    server = await asyncio.start_server(playing.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    playing.url = f"http://{host}:{port}"
    try:
        yield playing
    finally:
        server.close()
        await playing.close_connections()
        await server.wait_closed()
