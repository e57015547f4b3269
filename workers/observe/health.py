"""Health of a worker over HTTP: `/live`, `/ready`, `/circuits`, `/threads`, from the standard library.

- `/live` answers while the event loop runs. When it does not answer, restart the worker.
- `/ready` answers 200 while the worker polls a server that serves, else 503 with the reason. A server that
  is away is no reason to restart a worker; threads that hang are, and the answer says so.
- `/circuits` lists the models and tools whose circuits are not closed, a line each.
- `/threads` lists the functions whose calls were given up and that run on in their threads, a line each.

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

ReadinessCheck = Callable[[], Awaitable[str | None]]
"""Function that returns None when ready, else the reason why not, in words for people."""

States = Callable[[], Mapping[str, str]]
"""Function that returns the state of what is not as it should be, by name: of circuits by model or tool, and of
threads by function."""

_TIMEOUT: Final = 5.0
"""Seconds for a request to arrive and for the readiness check."""
_MAX_REQUEST: Final = 8 * 1024
_CLIENT_ERRORS: Final = (
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,
    ValueError,
)
"""Errors of a client that disconnects, is too slow or sends no HTTP: its connection is closed, no more."""


@contextlib.asynccontextmanager
async def serve(
    address: str, ready: ReadinessCheck, circuits: States = dict, threads: States = dict
) -> AsyncGenerator[str, None]:
    """Serve at `host:port` until the block ends; yield the address, with port 0 replaced by the real port.

    Raises:
        DefinitionError: the address is taken or not ours.

    """
    host, _, port = address.rpartition(":")
    try:
        server = await asyncio.start_server(
            _Handler(ready, circuits, threads), host, int(port), limit=_MAX_REQUEST
        )
    except OSError as error:
        raise DefinitionError(f"PERDURE_HEALTH_ADDRESS {address}: {error.strerror or error}") from None
    try:
        yield f"{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        # Connections are closed after one answer, and given up after `_TIMEOUT`.
        server.close()
        await server.wait_closed()


class _Handler:
    """Handler of a connection, which carries a single request."""

    def __init__(self, ready: ReadinessCheck, circuits: States, threads: States) -> None:
        self._ready = ready
        self._circuits = circuits
        self._threads = threads

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(*_CLIENT_ERRORS):
            async with asyncio.timeout(_TIMEOUT):
                method, path, *_ = [*(await reader.readuntil(b"\r\n")).split(), b"", b""]
                while await reader.readline() not in (b"\r\n", b"\n", b""):
                    pass  # headers, which no path needs
                status, text = await self._respond(method, path)
                writer.write(_response(status, text, body=method != b"HEAD"))
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    async def _respond(self, method: bytes, path: bytes) -> tuple[HTTPStatus, str]:
        if method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, "GET only"
        match path.partition(b"?")[0]:
            case b"/live":
                return HTTPStatus.OK, "live"
            case b"/ready":
                return await self._readiness()
            case b"/circuits":
                return HTTPStatus.OK, _lines(self._circuits())
            case b"/threads":
                return HTTPStatus.OK, _lines(self._threads())
            case _:
                return HTTPStatus.NOT_FOUND, "the paths are /live, /ready, /circuits and /threads"

    async def _readiness(self) -> tuple[HTTPStatus, str]:
        try:
            reason = await self._ready()
        except Exception as error:
            # The name only: a message may hold secrets, and anybody may ask here.
            reason = type(error).__name__
        return (HTTPStatus.OK, "ready") if reason is None else (HTTPStatus.SERVICE_UNAVAILABLE, reason)


def _lines(states: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {state}" for name, state in states.items())


def _response(status: HTTPStatus, text: str, *, body: bool) -> bytes:
    content = f"{text}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(content)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (content if body else b"")


def check(url: str) -> str | None:
    """Return None when the URL answers 200, else its answer or the error."""
    if not url.startswith(("http://", "https://")):
        return f"{url!r} is no http URL"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT):  # noqa: S310 - the scheme is checked
            return None
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code}: {error.read().decode(errors='replace').strip()}"
    except OSError as error:
        return str(error)


def fetch(url: str) -> str:
    """Return the body of the URL's answer.

    Raises:
        OSError: the URL does not answer, or not with 200.

    """
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:  # noqa: S310 - the URL comes from our settings
        return str(answer.read().decode(errors="replace"))


def main(arguments: list[str]) -> int:
    """Check a URL, for a container's HEALTHCHECK; return 0 when it answers 200."""
    problem = check(arguments[0]) if len(arguments) == 1 else "usage: health URL"
    if problem is not None:
        print(problem, file=sys.stderr)  # noqa: T201 - container runtimes show it
    return int(problem is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
