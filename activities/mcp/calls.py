"""Calls of MCP tools: the pinned tool is looked up on its server, and called if it is still the same.

Rules
1. Nothing is sent to a tool whose name, description, schemas or annotations differ from the pinned ones.
2. Time and "it may have had its effect" begin when the call is sent: not while a server starts or lists its tools.
3. A write that may have happened is not sent again, unless the server is `repeatable`.
4. The server's own words about a failure go to the model; they say nothing of what it did before.
"""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from perdure.mcp import McpServer
from perdure.schema import canonical_arguments, problem_with
from perdure.texts import describe_error
from perdure.wire.effects import ToolInput
from perdure.wire.spec import McpSource

from ..call_progress import CallProgress
from .errors import McpConnectionLost, McpNotReady, McpNotRepeated, McpRefused, McpToolFailed
from .listed import ListedTool
from .pool import McpPool

_log = logging.getLogger("perdure.mcp")
_KEY: Final = "dev.perdure/idempotency-key"

# Of JSON-RPC, of the SDK, and of `http`; numbers, because nothing here imports the SDK.
_CONNECTION_CLOSED: Final = -32000
_REQUEST_TIMEOUT: Final = -32001
_INVALID: Final = frozenset({-32600, -32601, -32602})
"""Codes of requests that were not carried out: they are ill-formed, or name no tool."""
_NOT_REACHED, _LOST, _REFUSED, _SESSION_OVER = -32790, -32791, -32792, -32793


class McpArgumentsRefused(Exception):
    """Arguments that do not fit the tool's schema; the message is for the model."""


@dataclass(frozen=True, kw_only=True)
class McpCallee:
    """Tool of a server that a call names, as far as this worker defines it."""

    name: str
    """Name by which the model calls it."""
    server: McpServer
    source: McpSource

    @property
    def circuit(self) -> bool:
        """True: after some failures in a row, its calls fail at once for a while."""
        entry = self.server.settings.get(self.source.tool)
        own = entry.circuit if entry else None
        return self.server.circuit if own is None else own

    @property
    def resource(self) -> str | None:
        """Name of the parameter whose value policies match."""
        entry = self.server.settings.get(self.source.tool)
        return entry.resource if entry else None


def may_repeat(call: ToolInput) -> bool:
    """Check whether a call that may have had its effect may be made again."""
    return call.mcp is None or not call.writes or call.mcp.repeatable


@dataclass(frozen=True, kw_only=True)
class McpCalls:
    """Caller of the tools of MCP servers."""

    pool: McpPool = field(default_factory=McpPool)

    async def call(
        self, callee: McpCallee, call: ToolInput, progress: CallProgress, begin: Callable[[], None]
    ) -> Any:
        """Call the tool once; `begin` is called right before the request is sent.

        Raises:
            McpArgumentsRefused, McpNotReady, McpRefused: nothing was sent to the tool.
            McpNotRepeated: an earlier attempt may have done the write.
            McpToolFailed, McpConnectionLost: see `errors`.

        """
        if progress.may_have_effect and not may_repeat(call):
            raise McpNotRepeated(
                "an earlier attempt of this call was cut off and may have taken effect, so it was not made again"
            )
        async with self.pool.use(callee.server, callee.server.recheck) as (connection, tools):
            tool = tools.get(callee.source.tool)
            _check_unchanged(callee, tool)
            assert tool is not None, "a tool that is gone is refused"
            _check_arguments(callee, call, tool)
            begin()
            try:
                result = await connection.call(
                    callee.source.tool, call.arguments, {_KEY: call.idempotency_key}, _reporter(progress)
                )
            except Exception as error:
                raise _failure(callee, error) from None
        content = importlib.import_module(f"{__package__}.content")
        if result.is_error:
            raise McpToolFailed(content.error_text(result))
        return content.to_parts(result) or None


def _check_unchanged(callee: McpCallee, tool: ListedTool | None) -> None:
    """Raise McpRefused if the server no longer has the tool as the run pinned it."""
    server, source = callee.server.name, callee.source
    if tool is not None and tool.digest == source.digest:
        return
    change = "no longer has" if tool is None else "has changed"
    _log.warning(
        "MCP server %r %s its tool %r since the run pinned it; its call is refused",
        server,
        change,
        source.tool,
    )
    reason = (
        f"MCP server {server!r} no longer has the tool {source.tool!r}"
        if tool is None
        else f"MCP server {server!r} has changed the description, schema or annotations of its tool {source.tool!r}"
    )
    raise McpRefused(f"not called: {reason} since this run began; go on without {callee.name!r}")


def _check_arguments(callee: McpCallee, call: ToolInput, tool: ListedTool) -> None:
    """Check the arguments, which a hook may have changed, by the schema that is the pinned one."""
    problem = problem_with(call.arguments, tool.input_schema)
    if problem is not None:
        raise McpArgumentsRefused(f"the arguments do not fit: {problem}")
    resource = callee.resource
    if resource is None or resource not in call.arguments:
        return
    written = call.arguments[resource]
    read = canonical_arguments(call.arguments, tool.input_schema, resource)[resource]
    if read != written:
        raise McpArgumentsRefused(
            f"{resource}: write {read!r}, not {written!r}: the policy reads it as it is written"
        )


def _reporter(progress: CallProgress) -> Any:
    async def report(done: float, total: float | None, message: str | None) -> None:
        count = f"{done:g}" if total is None else f"{done:g}/{total:g}"
        progress.report(f"{message} ({count})" if message else count)

    return report


def _failure(callee: McpCallee, error: Exception) -> Exception:
    """Return the error of a call that was sent, by what it says of the effect."""
    server, code = callee.server.name, getattr(error, "code", None)
    words = describe_error(error)
    if code == _CONNECTION_CLOSED or isinstance(error, ConnectionError):
        return McpConnectionLost(f"the connection to MCP server {server!r} ended before the answer came")
    if code == _LOST:
        return McpConnectionLost(f"MCP server {server!r}: {words}")
    if code == _NOT_REACHED:
        return McpNotReady(f"MCP server {server!r}: {words}", after=_retry_after(error))
    if code == _SESSION_OVER:
        return McpNotReady(f"MCP server {server!r}: {words}")
    if code == _REQUEST_TIMEOUT:
        return TimeoutError(f"MCP server {server!r}: {words}")
    if code in _INVALID or code == _REFUSED:
        return McpRefused(f"MCP server {server!r} refuses the call: {words}")
    kind = "" if isinstance(code, int) else f"{type(error).__name__}: "
    return McpToolFailed(f"MCP server {server!r}: {kind}{words}")


def _retry_after(error: Exception) -> timedelta | None:
    data: Any = getattr(error, "data", None)
    seconds = data.get("retry_after") if isinstance(data, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    return timedelta(seconds=min(seconds, 86_400)) if isinstance(seconds, int) else None
