import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator

import pytest

from perdure.errors import DefinitionError
from perdure.workers.observe.health import check, fetch, serve


class Worker:
    missing: str | None = "not connected"

    async def ready(self) -> str | None:
        if self.missing == "bug":
            raise RuntimeError("secret detail")
        return self.missing


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
async def url(worker: Worker) -> AsyncGenerator[str]:
    async with serve("127.0.0.1:0", worker.ready) as address:
        yield f"http://{address}"


async def test_ready_follows_worker_and_live_does_not(worker: Worker, url: str) -> None:
    assert await asyncio.to_thread(check, f"{url}/live") is None
    assert await asyncio.to_thread(check, f"{url}/ready") == "503: not connected"
    worker.missing = None
    assert await asyncio.to_thread(check, f"{url}/ready") is None
    worker.missing = "bug"
    assert await asyncio.to_thread(check, f"{url}/ready") == "503: RuntimeError"
    assert await asyncio.to_thread(check, f"{url}/live") is None


async def test_circuits_not_closed_are_listed(worker: Worker) -> None:
    states: dict[str, str] = {}
    async with serve("127.0.0.1:0", worker.ready, lambda: states) as address:
        assert (await asyncio.to_thread(fetch, f"http://{address}/circuits")).strip() == ""
        states |= {"anthropic:x": "open", "tool:search": "half_open"}
        said = await asyncio.to_thread(fetch, f"http://{address}/circuits")
    assert said.split("\n") == ["anthropic:x: open", "tool:search: half_open", ""]


async def _raw(url: str, request: bytes) -> bytes:
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_invalid_requests_do_no_harm(url: str) -> None:
    assert (await _raw(url, b"GET /secrets HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
    assert (await _raw(url, b"POST /live HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
    assert (await _raw(url, b"\r\n\r\n")).startswith(b"HTTP/1.1 405")
    with contextlib.suppress(ConnectionError):  # reset, when it hung up with bytes unread
        assert await _raw(url, b"x" * 100_000) == b""
    assert await _raw(url, b"") == b""
    head = await _raw(url, b"HEAD /live?now HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert head.endswith(b"\r\n\r\n")
    assert await asyncio.to_thread(check, f"{url}/live") is None


async def test_taken_address_names_its_variable(url: str, worker: Worker) -> None:
    with pytest.raises(DefinitionError, match="PERDURE_HEALTH_ADDRESS"):
        async with serve(url.removeprefix("http://"), worker.ready):
            pass


async def test_address_is_free_after_block(worker: Worker) -> None:
    async with serve("127.0.0.1:0", worker.ready) as address:
        pass
    async with serve(address, worker.ready):
        pass
    assert check(f"http://{address}/live") is not None


async def test_health_command_checks_url(worker: Worker, url: str) -> None:
    async def ask(*arguments: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perdure.workers.observe.health", *arguments),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        return process.returncode, said.decode().strip()

    assert await ask(f"{url}/ready") == (1, "503: not connected")
    worker.missing = None
    assert await ask(f"{url}/ready") == (0, "")
    assert await ask("file:/etc/passwd") == (1, "'file:/etc/passwd' is no http URL")
    assert await ask() == (1, "usage: health URL")
