"""Each state of the proxy's line affects present and new connections as documented."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from proofs.chaos.proxy import Proxy, open_proxy

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echoing() -> AsyncGenerator[Proxy]:
    """A proxy to an echo server."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(line)
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        async with open_proxy(server.sockets[0].getsockname()[1]) as proxy:
            yield proxy
    finally:
        server.close()


async def connect(proxy: Proxy) -> Ends:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def send(ends: Ends, line: bytes) -> bytes:
    """Send a line; return the answer, or nothing when the connection is gone."""
    reader, writer = ends
    try:
        writer.write(line)
        return await reader.readline()
    except ConnectionError:
        return b""


async def test_open_line_passes_everything() -> None:
    async with echoing() as proxy:
        ends = await connect(proxy)
        assert await send(ends, b"one\n") == b"one\n"
        assert await send(ends, b"two\n") == b"two\n"
        ends[1].close()


async def test_reset_ends_only_present_connections() -> None:
    """A reset ends present connections and lets new ones pass."""
    async with echoing() as proxy:
        old = await connect(proxy)
        assert await send(old, b"one\n") == b"one\n"
        proxy.set_line("reset")
        assert await send(old, b"two\n") == b""
        new = await connect(proxy)
        assert await send(new, b"three\n") == b"three\n"
        for _, writer in (old, new):
            writer.close()


async def test_cut_line_refuses_connections() -> None:
    """A cut line refuses connections until it is open again."""
    async with echoing() as proxy:
        proxy.set_line("cut")
        barred = await connect(proxy)
        assert await send(barred, b"one\n") == b""
        proxy.set_line("open")
        let_in = await connect(proxy)
        assert await send(let_in, b"two\n") == b"two\n"
        for _, writer in (barred, let_in):
            writer.close()


async def test_lossy_connection_stays_silent() -> None:
    """A connection that lost a piece stays silent after the line is open again; new ones do not."""
    async with echoing() as proxy:
        lost = await connect(proxy)
        assert await send(lost, b"one\n") == b"one\n"
        proxy.set_line("silent")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await send(lost, b"swallowed\n")
        proxy.set_line("open")
        new = await connect(proxy)
        assert await send(new, b"two\n") == b"two\n"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await send(lost, b"three\n")
        for _, writer in (lost, new):
            writer.close()


async def test_slow_line_passes_everything_later() -> None:
    async with echoing() as proxy:
        proxy.delay = 0.01
        proxy.set_line("slow")
        ends = await connect(proxy)
        assert await send(ends, b"one\n") == b"one\n"
        ends[1].close()
