"""The proxy's line does what its word says, to connections that are there and to new ones."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from proofs.chaos.proxy import Proxy, proxied

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echoing() -> AsyncGenerator[Proxy]:
    """A proxy to a server that says each line again."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(line)
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        async with proxied(server.sockets[0].getsockname()[1]) as proxy:
            yield proxy
    finally:
        server.close()


async def opened(proxy: Proxy) -> Ends:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def said(ends: Ends, line: bytes) -> bytes:
    """What comes back for a line; empty when the connection is gone."""
    reader, writer = ends
    try:
        writer.write(line)
        return await reader.readline()
    except ConnectionError:
        return b""


async def test_an_open_line_passes_everything() -> None:
    async with echoing() as proxy:
        ends = await opened(proxy)
        assert await said(ends, b"one\n") == b"one\n"
        assert await said(ends, b"two\n") == b"two\n"
        ends[1].close()


async def test_a_reset_ends_what_is_there_and_lets_new_ones_pass() -> None:
    async with echoing() as proxy:
        old = await opened(proxy)
        assert await said(old, b"one\n") == b"one\n"
        proxy.set("reset")
        assert await said(old, b"two\n") == b""
        new = await opened(proxy)
        assert await said(new, b"three\n") == b"three\n"
        for _, writer in (old, new):
            writer.close()


async def test_a_cut_line_lets_nobody_in_until_it_is_open_again() -> None:
    async with echoing() as proxy:
        proxy.set("cut")
        barred = await opened(proxy)
        assert await said(barred, b"one\n") == b""
        proxy.set("open")
        let_in = await opened(proxy)
        assert await said(let_in, b"two\n") == b"two\n"
        for _, writer in (barred, let_in):
            writer.close()


async def test_a_connection_that_has_lost_something_stays_silent_and_others_do_not() -> None:
    async with echoing() as proxy:
        lost = await opened(proxy)
        assert await said(lost, b"one\n") == b"one\n"
        proxy.set("silent")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await said(lost, b"swallowed\n")
        proxy.set("open")
        new = await opened(proxy)
        assert await said(new, b"two\n") == b"two\n"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await said(lost, b"three\n")
        for _, writer in (lost, new):
            writer.close()


async def test_a_slow_line_passes_everything_later() -> None:
    async with echoing() as proxy:
        proxy.delay = 0.01
        proxy.set("slow")
        ends = await opened(proxy)
        assert await said(ends, b"one\n") == b"one\n"
        ends[1].close()
