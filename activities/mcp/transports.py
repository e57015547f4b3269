"""Transports to MCP servers: the SDK's own, with a guard around processes and our HTTP client."""

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from perdure.mcp import McpServer

from .http import LARGEST_ANSWER, McpHttpClient
from .values import fill

_GUARD: Final = str(Path(__file__).with_name("guard.py"))
_TAIL_CHUNKS, _TAIL_BYTES = 8, 1024
"""Pieces of stderr that are kept, and their greatest length."""

Streams = tuple[Any, Any]


class LastWords:
    """End of what a process has written to stderr, for the reason why it does not start. Nothing is logged."""

    def __init__(self) -> None:
        self._pieces = deque[bytes](maxlen=_TAIL_CHUNKS)

    @property
    def text(self) -> str:
        """The words, in a line."""
        return " ".join(b"".join(self._pieces).decode(errors="replace").split())

    @asynccontextmanager
    async def collect(self) -> AsyncGenerator[Any]:
        """Yield a file for a process to write to, and read what it writes until the block ends."""
        read, write = os.pipe()
        loop = asyncio.get_running_loop()
        os.set_blocking(read, False)
        loop.add_reader(read, self._read, read)
        try:
            with os.fdopen(write, "w") as file:
                yield file
        finally:
            self._read(read)
            loop.remove_reader(read)
            os.close(read)

    def _read(self, descriptor: int) -> None:
        with contextlib.suppress(BlockingIOError):
            piece = os.read(descriptor, _TAIL_BYTES)
            if piece:
                self._pieces.append(piece)
            else:
                asyncio.get_running_loop().remove_reader(descriptor)


@asynccontextmanager
async def open_streams(
    server: McpServer, on_end: Callable[[], None], words: LastWords
) -> AsyncGenerator[Streams]:
    """Yield the streams of a connection; `on_end` is called as soon as the server's side has ended."""
    opened = _open_http(server) if server.url is not None else _open_process(server, words)
    async with opened as (read, write):
        yield _WatchedStream(read, on_end), write


@asynccontextmanager
async def _open_http(server: McpServer) -> AsyncGenerator[Streams]:
    assert server.url is not None, "a server has a url or a command"
    async with (
        McpHttpClient(server) as client,
        streamable_http_client(
            fill(server, server.url), http_client=client, max_sse_event_size=LARGEST_ANSWER
        ) as streams,
    ):
        yield streams


@asynccontextmanager
async def _open_process(server: McpServer, words: LastWords) -> AsyncGenerator[Streams]:
    command = [fill(server, word) for word in server.words]
    parameters = StdioServerParameters(
        command=sys.executable,
        # Isolated and without site-packages: the guard starts in some 20 ms, and imports nothing of the user's.
        args=["-I", "-S", _GUARD, str(os.getpid()), *command],
        env={name: fill(server, value, key=name) for name, value in server.env.items()},
        cwd=server.cwd,
        encoding_error_handler="replace",
    )
    async with words.collect() as file, stdio_client(parameters, file) as streams:
        file.close()  # the process has its own copy; ours would hide the end of it
        yield streams


class _WatchedStream:
    """Stream of the server's messages that reports its end at once.

    The SDK tells of it only to calls that are under way. A later one could not know whether it was sent.
    """

    def __init__(self, stream: Any, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> "_WatchedStream":
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except StopAsyncIteration:
            self._on_end()
            raise

    async def receive(self) -> Any:
        """Return the next message."""
        try:
            return await self._stream.receive()
        except Exception:
            self._on_end()
            raise

    async def __aenter__(self) -> "_WatchedStream":
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        ended: bool | None = await self._stream.__aexit__(*error)
        return ended
