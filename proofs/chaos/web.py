"""Small HTTP/1.1 server: complete requests in; answers out that may be late, cut or streamed."""

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
    """Request that was read to its end."""

    method: str
    path: str
    headers: dict[str, str]
    """Headers by lower-case names."""
    body: bytes

    def json(self) -> Any:
        """Parse the body as JSON."""
        return json.loads(self.body)


class Response:
    """Response to a request."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.is_over = False
        """True once the connection cannot be used any more."""

    async def send(
        self, plain: Any, status: int = 200, *, share: float = 1.0, retry_after: str | None = None
    ) -> None:
        """Send JSON, or the leading share of it."""
        body = json.dumps(plain).encode()
        headers = {"content_type": "application/json", "content_length": str(len(body))}
        if retry_after is not None:
            headers["retry_after"] = retry_after
        await self._write(_head(status, **headers) + body[: int(len(body) * share)])

    async def begin_events(self) -> None:
        """Begin a stream of server-sent events."""
        await self._write(_head(200, content_type="text/event-stream", transfer_encoding="chunked"))

    async def event(self, data: str, name: str = "") -> None:
        """Send an event of the stream; `data` is sent as it is."""
        head = f"event: {name}\n" if name else ""
        piece = f"{head}data: {data}\n\n".encode()
        await self._write(b"%x\r\n%b\r\n" % (len(piece), piece))

    async def end_events(self) -> None:
        """End the stream properly."""
        await self._write(b"0\r\n\r\n")

    def cut(self) -> None:
        """Reset the connection."""
        self.is_over = True
        with contextlib.suppress(OSError):
            # A linger time of 0 makes the kernel send a reset instead of an orderly end.
            linger = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


Handler = Callable[[Request, Response], Awaitable[None]]


async def serve(handler: Handler, port: int = 0) -> tuple[asyncio.Server, int]:
    """Serve on this machine only; return the server and its port."""

    async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (request := await _read(reader)) is not None:
                response = Response(writer)
                await handler(request, response)
                if response.is_over:
                    break
        writer.close()

    server = await asyncio.start_server(serve_connection, "127.0.0.1", port)
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
