"""HTTP client for MCP servers: headers of the moment, and failures told apart one request at a time.

The SDK ends a whole connection when one of its requests fails on the way, and all calls under way with it. It also
tells a call only that a status was 400 or more. So each failure becomes a JSON-RPC error in the body of an answer, with
a code of ours, which reaches the one call that it belongs to.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import httpx2

from perdure.mcp import McpServer

from ..traffic.transient_errors import may_have_taken_effect
from .errors import McpNotReady
from .values import header_of

NOT_REACHED: Final = -32790
"""Code: nothing was sent, or the server refused to take it now."""
LOST: Final = -32791
"""Code: the connection ended, or a gateway gave up, before the answer came."""
REFUSED: Final = -32792
"""Code: the server refuses the request, by a status of 4xx."""
SESSION_OVER: Final = -32793
"""Code: the server does not know the session any more, so it has not done what it was asked."""
FAILED: Final = -32794
"""Code: the server, or its answer, is broken."""

LARGEST_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of one answer that a worker reads."""
_CONNECT_WITHIN: Final = 10.0
_UNDECIDED: Final = frozenset({408, 409, 425, 499, 502, 503, 504})
"""Statuses after which nobody knows whether the request was carried out: gateways give them too."""
_SESSION: Final = "mcp-session-id"


class McpHttpClient(httpx2.AsyncClient):
    """Client of one server."""

    def __init__(self, server: McpServer) -> None:
        # No limit for reading: a tool may take long, and the call has a timeout of its own.
        super().__init__(
            auth=_Headers(server), timeout=httpx2.Timeout(_CONNECT_WITHIN, read=None), follow_redirects=False
        )

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send the request; return the answer, or one that holds the failure as a JSON-RPC error."""
        try:
            response = await super().send(request, **options)
            return await _check_answer(request, response)
        except httpx2.TransportError as error:
            code = LOST if may_have_taken_effect(error) else NOT_REACHED
            return _failure(request, code, f"{type(error).__name__}: {error}")
        except McpNotReady as error:
            return _failure(request, NOT_REACHED, str(error))


class _Headers(httpx2.Auth):
    """Headers of a server's definition, read anew for each request."""

    def __init__(self, server: McpServer) -> None:
        self._server = server

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        for name, value in self._server.headers.items():
            if isinstance(value, str):
                found = header_of(self._server, name, value)
            else:  # a function of the user's may wait for a vault
                found = await asyncio.to_thread(header_of, self._server, name, value)
            if found is not None:
                request.headers[name] = found
        yield request


async def _check_answer(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    if request.method != "POST":
        return response
    is_json = response.headers.get("content-type", "").lower().startswith("application/json")
    if response.status_code < 400:
        # Read whole, so that a connection lost in the midst of it is this call's failure alone.
        return await _read_whole(response) if is_json and response.status_code < 300 else response
    body = (await _read_whole(response)).content
    code, words = _verdict(request, response.status_code, body)
    if is_json and code in (REFUSED, FAILED) and b'"jsonrpc"' in body:
        return _answer(request, response.status_code, body)  # the server's own JSON-RPC error says more
    retry_after = response.headers.get("retry-after", "") if code == NOT_REACHED else ""
    return _failure(request, code, words, retry_after=retry_after)


def _verdict(request: httpx2.Request, status: int, body: bytes) -> tuple[int, str]:
    words = f"it answers with status {status}"
    # Some servers say 400 to a session that they do not know; the protocol says 404.
    if _SESSION in request.headers and (status == 404 or (status == 400 and b"session" in body.lower())):
        return SESSION_OVER, "it does not know the session any more"
    if status == 429:
        return NOT_REACHED, f"{words}: too many requests"
    if status in (401, 403):
        return REFUSED, f"{words}: it does not let this worker in; check the headers"
    if status in _UNDECIDED:
        return LOST, words
    return (REFUSED if status < 500 else FAILED), words


async def _read_whole(response: httpx2.Response) -> httpx2.Response:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > LARGEST_ANSWER:
            await response.aclose()
            return _failure(response.request, FAILED, f"its answer has more than {LARGEST_ANSWER:,} bytes")
        chunks.append(chunk)
    await response.aclose()
    coded = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(name, value) for name, value in response.headers.multi_items() if name not in coded]
    return httpx2.Response(
        response.status_code, headers=headers, content=b"".join(chunks), request=response.request
    )


def _answer(request: httpx2.Request, status: int, body: bytes) -> httpx2.Response:
    headers = {"content-type": "application/json"}
    return httpx2.Response(status, headers=headers, content=body, request=request)


def _failure(request: httpx2.Request, code: int, message: str, *, retry_after: str = "") -> httpx2.Response:
    error: dict[str, Any] = {"code": code, "message": message}
    if retry_after.isdigit():
        error["data"] = {"retry_after": int(retry_after)}
    return httpx2.Response(502, json={"jsonrpc": "2.0", "id": None, "error": error}, request=request)
