"""Pool of connections to MCP servers: shared, bounded, and renewed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from perdure import McpServer
from perdure.activities.mcp import pool as pools
from perdure.activities.mcp.errors import McpNotReady
from perdure.activities.mcp.pool import McpPool

from ..conftest import until
from .conftest import Served, is_alive

HOUR = timedelta(hours=1)
OLD = Path(__file__).with_name("old_server.py")


@pytest.fixture
async def pool() -> AsyncGenerator[McpPool]:
    """A pool that is closed in the end."""
    made = McpPool()
    yield made
    await made.close()


def old(fault: str) -> McpServer:
    return McpServer(name="old", command=[sys.executable, str(OLD), "2025-06-18", fault])


async def gone(served: Served) -> bool:
    return not any(map(is_alive, served.pids()))


async def test_calls_share_as_many_connections_as_allowed(pool: McpPool, served: Served) -> None:
    """Connections are opened while all are busy, up to the bound; equal definitions share them."""
    async with AsyncExitStack() as stack:
        server = served.stdio(connections=2)
        used = [await stack.enter_async_context(pool.use(server, HOUR)) for _ in range(5)]
    assert len({id(connection) for connection, _ in used}) == len(served.pids()) == 2
    await asyncio.gather(*(pool.list_tools(served.stdio()) for _ in range(10)))
    assert len(served.pids()) == 3, "a bound of one is another place"


async def test_a_process_that_ended_is_started_again(pool: McpPool, served: Served) -> None:
    """The next call after a server's end gets a new process."""
    await pool.list_tools(served.stdio())
    [first] = served.pids()
    os.kill(first, signal.SIGKILL)

    await pool.list_tools(served.stdio())
    assert len(served.pids()) == 2
    await pool.close()
    assert await gone(served)


async def test_failed_starts_are_spaced(pool: McpPool, served: Served) -> None:
    """A server that does not start is tried ever more rarely, and each refusal says why."""
    served.write("quiet")
    words: list[str] = []
    for _ in range(50):
        try:
            await pool.list_tools(served.stdio())
        except McpNotReady as error:
            words.append(str(error))
    assert len(words) == 50
    assert all("no disk today" in word for word in words)
    assert len(served.pids()) <= 2, "fifty attempts within a moment start it once or twice"


async def test_idle_connections_are_closed(
    pool: McpPool, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that nobody uses ends; one in use does not."""
    monkeypatch.setattr(pools, "_IDLE", 0.2)
    async with pool.use(served.stdio(), HOUR):
        await asyncio.sleep(0.5)
        assert len(served.pids()) == 1
        assert not await gone(served)
    await until(lambda: gone(served))


async def test_a_notice_of_change_counts_at_once(pool: McpPool) -> None:
    """A server's notice that its list has changed makes an old list invalid, however long it might be used."""

    async def ignore(progress: float, total: float | None, message: str | None) -> None: ...

    async with pool.use(old("moving"), HOUR) as (connection, _):
        before = (await connection.tools(HOUR))["echo"]
        assert (await connection.tools(HOUR))["echo"] is before, "the list is not asked for again"
        await connection.call("echo", {"text": "x"}, {}, ignore)

        async def changed() -> bool:
            return (await connection.tools(HOUR))["echo"].digest != before.digest

        await until(changed)
