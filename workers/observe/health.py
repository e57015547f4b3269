"""Health of a worker over HTTP: `/live`, `/ready`, `/circuits`, from the standard library.

`/live` says that the event loop turns: restart me when it does not. `/ready` says that work gets
done: send me none when it does not. Temporal being away is no reason to restart a worker, nor is a
provider: `/circuits` says which are not asked at present, a line each.
`python -m perdure.workers.observe.health http://127.0.0.1:8080/ready` exits with 0 on a 200.
"""

import asyncio
import contextlib
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

from perdure.errors import DefinitionError

Ready = Callable[[], Awaitable[str | None]]
"""None when ready; else what is missing, in words for people."""

Circuits = Callable[[], Mapping[str, str]]
"""The models and tools that this worker does not ask at present, and the states of their circuits."""

_PATIENCE: Final = 5.0
"""Seconds for a request to arrive and for readiness to be found out."""
_LONGEST: Final = 8 * 1024
_NOISE: Final = (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)
"""What a client that hangs up, dawdles or speaks no HTTP raises: its connection is closed, no more."""


@contextlib.asynccontextmanager
async def serve(address: str, ready: Ready, circuits: Circuits = dict) -> AsyncGenerator[str, None]:
    """Answer at `host:port` until the block ends; gives the address, with port 0 filled in.

    Raises:
        DefinitionError: the address cannot be listened on.

    """
    host, _, port = address.rpartition(":")
    try:
        server = await asyncio.start_server(_Answers(ready, circuits), host, int(port), limit=_LONGEST)
    except OSError as error:
        raise DefinitionError(f"PERDURE_HEALTH_ADDRESS {address}: {error.strerror or error}") from None
    try:
        yield f"{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        # Connections are closed after one answer, and given up after `_PATIENCE`.
        server.close()
        await server.wait_closed()


class _Answers:
    def __init__(self, ready: Ready, circuits: Circuits) -> None:
        self._ready = ready
        self._circuits = circuits

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(*_NOISE):
            async with asyncio.timeout(_PATIENCE):
                method, path, *_ = [*(await reader.readuntil(b"\r\n")).split(), b"", b""]
                while await reader.readline() not in (b"\r\n", b"\n", b""):
                    pass  # headers
                status, text = await self._answer(method, path)
                writer.write(_response(status, text, body=method != b"HEAD"))
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    async def _answer(self, method: bytes, path: bytes) -> tuple[HTTPStatus, str]:
        if method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, "GET only"
        match path.partition(b"?")[0]:
            case b"/live":
                return HTTPStatus.OK, "live"
            case b"/ready":
                return await self._readiness()
            case b"/circuits":
                return HTTPStatus.OK, "\n".join(f"{key}: {state}" for key, state in self._circuits().items())
            case _:
                return HTTPStatus.NOT_FOUND, "there are /live, /ready and /circuits"

    async def _readiness(self) -> tuple[HTTPStatus, str]:
        try:
            missing = await self._ready()
        except Exception as error:
            missing = type(error).__name__
        return (HTTPStatus.OK, "ready") if missing is None else (HTTPStatus.SERVICE_UNAVAILABLE, missing)


def _response(status: HTTPStatus, text: str, *, body: bool) -> bytes:
    content = f"{text}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(content)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (content if body else b"")


def check(url: str) -> str | None:
    """None when the URL answers 200; else what it says, or why it does not."""
    if not url.startswith(("http://", "https://")):
        return f"{url!r} is no http URL"
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE):  # noqa: S310 - the scheme is checked
            return None
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code}: {error.read().decode(errors='replace').strip()}"
    except OSError as error:
        return str(error)


def read(url: str) -> str:
    """What the URL answers.

    Raises:
        OSError: nothing, or no 200.

    """
    with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:  # noqa: S310 - of our own settings
        return str(answer.read().decode(errors="replace"))


def main(arguments: list[str]) -> int:
    """Check one URL; for a container's HEALTHCHECK."""
    problem = check(arguments[0]) if len(arguments) == 1 else "usage: health URL"
    if problem is not None:
        print(problem, file=sys.stderr)  # noqa: T201 - what a container runtime shows
    return int(problem is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
