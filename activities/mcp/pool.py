"""Pool of a worker's connections to MCP servers.

Rules
1. A server has at most `McpServer.connections` of them. A call takes the one with the fewest calls; another one is
   opened while all are busy. Definitions of the same place share them.
2. A connection that has ended is replaced by the next call. One that ended soon after it was opened counts as a failed
   start, and the next start waits: half a second, then twice as long each time, up to half a minute.
3. A connection without calls is closed after ten minutes, and all are when the worker ends.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from perdure.errors import DefinitionError
from perdure.mcp import McpServer

from .errors import McpNotReady
from .listed import ListedTool

if TYPE_CHECKING:
    from .connection import Connection

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_SHORT_LIFE: Final = 10.0
"""Seconds before which the end of a connection counts as a failed start."""
_PATIENCE: Final = 3.0
"""Longest pause after a failed start that a call waits for, instead of failing."""
_READY_WITHIN: Final = 20.0
"""Seconds that a call waits for a server to start; the server goes on starting for the next attempt."""
_IDLE: Final = 600.0


def require_sdk(servers: Sequence[McpServer]) -> None:
    """Check that the package `mcp` is installed where servers are defined.

    Raises:
        DefinitionError: it is not; the message says how to install it.

    """
    if servers and find_spec("mcp") is None:
        raise DefinitionError(
            f'MCP server {servers[0].name!r} needs the package mcp: pip install "perdure[mcp]"'
        )


class McpPool:
    """Connections of one worker, by server."""

    def __init__(self) -> None:
        self._places: dict[object, _Place] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def use(
        self, server: McpServer, greatest_age: timedelta, *, wait: bool = True
    ) -> "AsyncGenerator[tuple[Connection, Mapping[str, ListedTool]]]":
        """Yield a connection, and the server's tools by name, as they were listed at most so long ago.

        Without `wait`, no pause after a failed start is waited for.

        Raises:
            McpNotReady: the server is not reached, does not start, or does not list its tools.

        """
        place = self._place(server)
        connection = await place.get(wait=wait)
        async with AsyncExitStack() as stack:
            stack.enter_context(connection.hold())
            try:
                tools = await connection.tools(greatest_age)
            except McpNotReady:
                if not connection.is_over:
                    raise
                # It had ended before, and nobody knew: nothing was lost with it.
                connection = await place.get(wait=wait)
                stack.enter_context(connection.hold())
                tools = await connection.tools(greatest_age)
            yield connection, tools

    async def list_tools(self, server: McpServer) -> Sequence[ListedTool]:
        """Return the server's tools as they are now.

        Raises:
            McpNotReady: it does not list them.

        """
        async with self.use(server, timedelta(), wait=False) as (_, tools):
            return list(tools.values())

    async def close(self) -> None:
        """End all connections and processes."""
        places, self._places = list(self._places.values()), {}
        if self._loop is asyncio.get_running_loop():
            await asyncio.gather(*(place.close() for place in places))

    def _place(self, server: McpServer) -> "_Place":
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Those of an earlier loop ended with it.
            self._loop, self._places = loop, {}
        place = self._places.get(server.place)
        if place is None:
            place = self._places[server.place] = _Place(server)
        return place


class _Place:
    """Connections to one server."""

    def __init__(self, server: McpServer) -> None:
        self.server = server
        self._open: list[Connection] = []
        self._failures = 0
        self._not_before = float("-inf")
        self._last_failure = ""
        self._sweeper: asyncio.Task[None] | None = None

    async def get(self, *, wait: bool) -> "Connection":
        """Return a ready connection; raises McpNotReady as `McpPool.use`."""
        connection = self._least_busy()
        is_free = connection is not None and connection.load == 0
        if connection is None:
            await self._wait_for_turn(wait=wait)
            connection = self._least_busy() or await self._start()
        elif not is_free and len(self._open) < self.server.connections and self._not_before <= _now():
            connection = await self._start()
        try:
            async with asyncio.timeout(_READY_WITHIN):
                await asyncio.shield(connection.ready)
        except TimeoutError:
            raise self._not_ready(f"it is not ready after {_READY_WITHIN:g} seconds") from None
        if connection.is_over:
            raise self._not_ready(connection.failure or "its connection has just ended")
        return connection

    def _least_busy(self) -> "Connection | None":
        alive = [connection for connection in self._open if not connection.is_over]
        return min(alive, key=lambda connection: connection.load, default=None)

    async def _wait_for_turn(self, *, wait: bool) -> None:
        pause = self._not_before - _now()
        if pause <= 0:
            return
        if not wait or pause > _PATIENCE:
            raise McpNotReady(
                f"MCP server {self.server.name!r}: {self._last_failure}", after=timedelta(seconds=pause)
            )
        await asyncio.sleep(pause)

    async def _start(self) -> "Connection":
        # In a thread: the SDK takes half a second to import, once, and the loop serves other runs.
        module = await asyncio.to_thread(import_module, f"{__package__}.connection")
        found = self._least_busy()
        if found is not None and len(self._open) >= self.server.connections:
            return found  # another call was quicker
        module.quiet_sdk()
        connection: Connection = module.Connection(self.server, self._note_end)
        self._open.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())
        return connection

    def _note_end(self, connection: "Connection") -> None:
        if connection in self._open:
            self._open.remove(connection)
        now = _now()
        if not connection.failure and now - connection.opened_at > _SHORT_LIFE:
            self._failures, self._not_before = 0, float("-inf")
            return
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._not_before = now + pause
        self._last_failure = connection.failure or "its connection ended soon after it was opened"

    async def _sweep(self) -> None:
        """Close connections that nobody uses."""
        while True:
            await asyncio.sleep(_IDLE / 4)
            idle = [each for each in self._open if each.is_idle and _now() - each.used_at > _IDLE]
            await asyncio.gather(*(connection.close() for connection in idle))

    def _not_ready(self, why: str) -> McpNotReady:
        return McpNotReady(f"MCP server {self.server.name!r}: {why}")

    async def close(self) -> None:
        """End all connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.gather(*(connection.close() for connection in list(self._open)))


def _now() -> float:
    return asyncio.get_running_loop().time()
