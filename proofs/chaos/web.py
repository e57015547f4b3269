"""A small HTTP/1.1 server: whole requests in, answers that may be late, cut or streamed out."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

_WORDS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests"}


@dataclass(frozen=True)
class Request:
    """One request, read to its end."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case names."""
    body: bytes

    def json(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)


class Answer:
    """The way back to whoever asked."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.is_over = False
        """Whether the connection cannot be used any more."""

    async def send(
        self, plain: Any, status: int = 200, *, share: float = 1.0, retry_after: str | None = None
    ) -> None:
        """Answer with JSON, or with that share of it."""
        body = json.dumps(plain).encode()
        headers = {"content_type": "application/json", "content_length": str(len(body))}
        if retry_after is not None:
            headers["retry_after"] = retry_after
        await self._write(_head(status, **headers) + body[: int(len(body) * share)])

    async def begin_events(self) -> None:
        """Begin a stream of server-sent events."""
        await self._write(_head(200, content_type="text/event-stream", transfer_encoding="chunked"))

    async def event(self, data: str) -> None:
        """One event of the stream; `data` is sent as it is."""
        piece = f"data: {data}\n\n".encode()
        await self._write(b"%x\r\n%b\r\n" % (len(piece), piece))

    async def end_events(self) -> None:
        """End the stream as it should end."""
        await self._write(b"0\r\n\r\n")

    def cut(self) -> None:
        """Reset the connection."""
        self.is_over = True
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


Handler = Callable[[Request, Answer], Awaitable[None]]


async def serve(handler: Handler, port: int = 0) -> tuple[asyncio.Server, int]:
    """Serve on this machine only; the server and its port."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (request := await _read(reader)) is not None:
                answer = Answer(writer)
                await handler(request, answer)
                if answer.is_over:
                    break
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    return server, server.sockets[0].getsockname()[1]


async def _read(reader: asyncio.StreamReader) -> Request | None:
    first = await reader.readline()
    if not first.strip():
        return None
    method, path, _ = first.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


def _head(status: int, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {_WORDS.get(status, 'Error')}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
