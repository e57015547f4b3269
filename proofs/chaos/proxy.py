"""TCP proxy whose line can be made slow, reset, silent, or cut."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

Line = Literal["open", "slow", "reset", "silent", "cut"]
"""State of a line.

open: everything passes. slow: each piece is late. reset: all connections are reset, new ones pass.
silent: half-open; pieces are read and dropped. A connection that has lost a piece stays silent after the
line is open again, so its owner has to notice. cut: all connections are reset, new ones are refused.
"""

_PIECE = 65_536


@dataclass
class _Connection:
    """Two ends of a connection."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    carrier: "asyncio.Task[None] | None"
    is_lost: bool = False
    """True once a piece was dropped."""

    def reset(self) -> None:
        for writer in (self.near, self.far):
            _reset(writer)


@dataclass
class Proxy:
    """Proxy from its own port to another port of this machine."""

    target: int
    delay: float = 0.1
    """Seconds by which each piece is late on a slow line, in each direction."""
    port: int = 0
    line: Line = "open"
    _connections: list[_Connection] = field(default_factory=list[_Connection])

    def set_line(self, line: Line) -> None:
        """Change the line for present and future connections."""
        self.line = "open" if line == "reset" else line
        if line in ("reset", "cut"):
            for connection in self._connections:
                connection.reset()

    async def carry_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection to its end."""
        if self.line == "cut":
            _reset(writer)
            return
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _reset(writer)
            return
        connection = _Connection(writer, far, asyncio.current_task())
        self._connections.append(connection)
        try:
            await self._carry(connection, reader, far_reader)
        except asyncio.CancelledError:
            pass  # the proxy is closed: no caller waits for this task
        finally:
            self._connections.remove(connection)
            connection.reset()

    def close(self) -> None:
        """End all connections, including those that stay silent."""
        for connection in self._connections:
            if connection.carrier is not None:
                connection.carrier.cancel()

    async def _carry(
        self, connection: _Connection, reader: asyncio.StreamReader, far_reader: asyncio.StreamReader
    ) -> None:
        ways = [
            asyncio.create_task(self._pass(connection, reader, connection.far)),
            asyncio.create_task(self._pass(connection, far_reader, connection.near)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()

    async def _pass(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                if self.line == "silent":
                    connection.is_lost = True
                if connection.is_lost:
                    continue
                if self.line == "slow":
                    await asyncio.sleep(self.delay)
                writer.write(piece)
                await writer.drain()
            if connection.is_lost:  # a half-open connection does not report its end either
                await asyncio.Event().wait()


@asynccontextmanager
async def open_proxy(target: int) -> AsyncGenerator[Proxy]:
    """Start a proxy to that port, with an open line."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.carry_connection, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, AttributeError):
        # A linger time of 0 makes the kernel send a reset instead of an orderly end.
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
