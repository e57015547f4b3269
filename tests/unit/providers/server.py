"""A small HTTP server on loopback that plays scripted answers, breaks included.

It speaks HTTP/1.1 itself, so that it can stop in the middle of a body the way networks do.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

End = Literal["whole", "cut", "hang", "drip"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer of the server. `end`: "whole" finishes the body, "cut" drops the connection in the middle of
    it, "hang" says no more until the client hangs up, "drip" repeats the last chunk until then.
    `silent` sends nothing before `speak` is set.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    chunks: tuple[bytes, ...] = ()
    end: End = "whole"
    length: int | None = None
    """A content-length to promise instead of chunked framing."""
    silent: bool = False


@dataclass(frozen=True, kw_only=True)
class Received:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Stub:
    """The server: `script` the answers first, read `requests` afterwards."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Received] = []
        self.disconnected = asyncio.Event()
        self.requested = asyncio.Event()
        self.speak = asyncio.Event()
        self._answers: deque[Answer] = deque()
        self._open: set[asyncio.StreamWriter] = set()

    def script(self, *answers: Answer) -> None:
        self._answers.extend(answers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                self.requested.set()
                answer = self._answers.popleft() if self._answers else Answer(status=418)
                if not await self._play(answer, reader, writer):
                    return
        except OSError:
            self.disconnected.set()
        finally:
            self._open.discard(writer)
            writer.close()

    async def _play(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send the answer; True when the connection can take another request."""
        if answer.silent:
            await self.speak.wait()
        writer.write(_head(answer))
        for chunk in answer.chunks:
            writer.write(chunk if answer.length is not None else b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if answer.end == "whole" and answer.length is None:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        while answer.end == "drip":
            writer.write(b"%x\r\n%b\r\n" % (len(answer.chunks[-1]), answer.chunks[-1]))
            await writer.drain()
            await asyncio.sleep(0)  # drain() lets nobody else run while the client keeps up
        if answer.end == "hang":
            await reader.read()
            self.disconnected.set()
        return answer.end == "whole"

    async def hang_up(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()


def _head(answer: Answer) -> bytes:
    framing = {"transfer-encoding": "chunked"}
    if answer.length is not None:
        framing = {"content-length": str(answer.length)}
    lines = [f"{name}: {value}" for name, value in {**answer.headers, **framing}.items()]
    return "\r\n".join([f"HTTP/1.1 {answer.status} Scripted", *lines, "", ""]).encode()


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Received(path=unquote(head[0].split()[1]), headers=headers, body=json.loads(body or b"{}"))


@asynccontextmanager
async def stub_server() -> AsyncGenerator[Stub]:
    stub = Stub()
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    stub.url = f"http://{host}:{port}"
    try:
        yield stub
    finally:
        server.close()
        stub.speak.set()
        await stub.hang_up()
        await server.wait_closed()
