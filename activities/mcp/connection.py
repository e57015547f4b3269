"""Connection to an MCP server: opened, used and closed by a task of its own.

Theory of operation. The SDK's streams must be opened and closed by the same task, and many activities share them.
1. The task opens the connection and negotiates the protocol: 2026-07-28, else the versions before it by handshake.
2. The connection is over as soon as the server's side ends: a call that has not been sent goes to another one.
3. A call that is under way then does not know what became of it.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, cast

from mcp.client.client import Client
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CONNECTION_CLOSED, CallToolResult, ToolListChangedNotification
from mcp_types import Tool as McpSdkTool

from perdure.mcp import McpServer
from perdure.texts import describe_error

from ..content.redact import redact_and_cut
from .errors import McpNotReady
from .http import LOST, NOT_REACHED, SESSION_OVER
from .listed import ListedTool
from .transports import LastWords, open_streams

_OPEN_WITHIN: Final = 90.0
"""Seconds for a server to start: a package runner may have to download it first."""
_LIST_WITHIN: Final = 20.0
_CLOSE_WITHIN: Final = 8.0
"""Seconds to close: the SDK asks a process to end and kills it after four."""
_MOST_PAGES, _MOST_TOOLS = 200, 5_000
_LONGEST_REASON: Final = 500


class Connection:
    """Connection to a server, shared by the calls of a worker."""

    def __init__(self, server: McpServer, on_end: Callable[["Connection"], None]) -> None:
        self.server = server
        self.load = 0
        """Calls under way."""
        self.is_over = False
        self.failure = ""
        """Reason why it was never ready."""
        loop = asyncio.get_running_loop()
        self.opened_at = self.used_at = loop.time()
        self.ready: asyncio.Future[None] = loop.create_future()
        self._on_end = on_end
        self._words = LastWords()
        self._closing = asyncio.Event()
        self._client: Client | None = None
        self._listing: asyncio.Task[dict[str, ListedTool]] | None = None
        self._listed: dict[str, ListedTool] = {}
        self._listed_at = float("-inf")
        # Not in the context of the call that happens to be the first: neither its trace nor its activity.
        self._task = asyncio.create_task(self._hold(), context=contextvars.Context())

    # -- life

    async def _hold(self) -> None:
        try:
            await self._open()
        except asyncio.CancelledError:
            self.failure = self.failure or "the connection was closed"
        except BaseException as error:
            self.failure = self.failure or self._reason(error)
        finally:
            self.is_over = True
            if not self.ready.done():
                self.ready.set_result(None)
            self._on_end(self)

    async def _open(self) -> None:
        streams = open_streams(self.server, self._end, self._words)
        client = Client(streams, cache=None, message_handler=self._note)
        opening = asyncio.timeout(_OPEN_WITHIN)
        try:
            async with opening:
                await client.__aenter__()
        except TimeoutError:
            if opening.expired():
                self.failure = f"it did not answer within {_OPEN_WITHIN:g} seconds{self._words_of_process()}"
            raise
        try:
            self._client = client
            self.used_at = asyncio.get_running_loop().time()
            self.ready.set_result(None)
            await self._closing.wait()
        finally:
            self.is_over = True
            await client.__aexit__(None, None, None)

    def _end(self) -> None:
        """Take no further calls: the server's side has ended."""
        self.is_over = True
        self._closing.set()

    def _retire(self) -> None:
        """Take no further calls, and close once those under way have ended."""
        self.is_over = True
        if self.load == 0:
            self._closing.set()

    async def close(self) -> None:
        """End the connection, and the process behind it, in bounded time."""
        self._end()
        if not self.ready.done():
            self._task.cancel()
        done, _ = await asyncio.wait({self._task}, timeout=_CLOSE_WITHIN)
        if not done:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)

    async def _note(self, message: Any) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._listed_at = float("-inf")

    def _reason(self, error: BaseException) -> str:
        error = _innermost(error)
        code = getattr(error, "code", None)
        if code == CONNECTION_CLOSED and self.server.url is None:
            return redact_and_cut(f"its process has ended{self._words_of_process()}", _LONGEST_REASON)
        if code in (NOT_REACHED, LOST):
            return redact_and_cut(f"it is not reached: {describe_error(error)}", _LONGEST_REASON)
        kind = "" if code is not None else f"{type(error).__name__}: "
        return redact_and_cut(f"{kind}{describe_error(error)}{self._words_of_process()}", _LONGEST_REASON)

    def _words_of_process(self) -> str:
        return f"; it said: {self._words.text}" if self._words.text else ""

    # -- use

    @property
    def is_idle(self) -> bool:
        """True when it is ready and no call uses it."""
        return self.ready.done() and self.load == 0

    @contextmanager
    def hold(self) -> Generator[None, None, None]:
        """Count a call as under way while the block runs."""
        self.load += 1
        try:
            yield
        finally:
            self.load -= 1
            self.used_at = asyncio.get_running_loop().time()
            if self.is_over and self.load == 0:
                self._closing.set()

    async def tools(self, greatest_age: timedelta) -> dict[str, ListedTool]:
        """Return the server's tools by name, as they were listed at most so long ago.

        Raises:
            McpNotReady: the server does not list them.

        """
        now = asyncio.get_running_loop().time()
        if now - self._listed_at < greatest_age.total_seconds():
            return self._listed
        if self._listing is None:
            # Of its own, so that a caller who goes does not end it for the others.
            self._listing = asyncio.create_task(self._list(), context=contextvars.Context())
            self._listing.add_done_callback(self._end_listing)
        return await asyncio.shield(self._listing)

    def _end_listing(self, listing: "asyncio.Task[dict[str, ListedTool]]") -> None:
        self._listing = None
        if not listing.cancelled():
            listing.exception()  # somebody has it, or all have gone

    async def _list(self) -> dict[str, ListedTool]:
        assert self._client is not None, "only ready connections are used"
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_LIST_WITHIN):
                listed = await self._list_pages(self._client)
        except TimeoutError:
            raise self._not_ready(f"it did not list its tools within {_LIST_WITHIN:g} seconds") from None
        except McpNotReady:
            raise
        except Exception as error:
            if getattr(error, "code", None) in (CONNECTION_CLOSED, SESSION_OVER):
                self._retire()
            raise self._not_ready(f"it does not list its tools: {self._reason(error)}") from None
        self._listed, self._listed_at = listed, began
        return listed

    async def _list_pages(self, client: Client) -> dict[str, ListedTool]:
        found: dict[str, ListedTool] = {}
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            found |= {tool.name: _listed_tool(tool) for tool in page.tools}
            cursor = page.next_cursor
            if len(found) > _MOST_TOOLS:
                raise self._not_ready(f"it lists more than {_MOST_TOOLS:,} tools")
            if not cursor:
                return found
        raise self._not_ready(f"its list of tools has no end after {_MOST_PAGES} pages")

    def _not_ready(self, why: str) -> McpNotReady:
        return McpNotReady(f"MCP server {self.server.name!r}: {why}")

    async def call(
        self, tool: str, arguments: dict[str, Any], meta: dict[str, Any], report: ProgressFnT
    ) -> CallToolResult:
        """Call a tool; raise the SDK's own errors. A cancelled call is cancelled on the server too."""
        assert self._client is not None, "only ready connections are used"
        stated: Any = meta
        try:
            return await self._client.call_tool(tool, arguments, progress_callback=report, meta=stated)
        except Exception as error:
            if getattr(error, "code", None) == SESSION_OVER:
                self._retire()
            raise


def _innermost(error: BaseException) -> BaseException:
    """Return the first error of a group of errors, at any depth."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    return _innermost(cast("BaseException", error.exceptions[0]))


def _listed_tool(tool: McpSdkTool) -> ListedTool:
    annotations: dict[str, Any] = {}
    if tool.annotations is not None:
        annotations = tool.annotations.model_dump(mode="json", by_alias=True, exclude_none=True)
    return ListedTool(
        name=tool.name,
        title=tool.title or "",
        text=tool.description or "",
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        annotations=annotations,
    )


def quiet_sdk() -> None:
    """Keep the SDK's loggers still where nobody has set them: their lines hold whole messages."""
    for name in ("mcp.client", "mcp.shared"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL + 1)
