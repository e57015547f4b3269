"""Errors of MCP servers, by what they say of the call's effect.

McpNotReady        nothing was sent: another attempt may succeed
McpRefused         the server, or the worker, refuses the call: no attempt can succeed
McpToolFailed      the tool was called and has failed: its words, and nobody knows what it did before
McpConnectionLost  the connection ended in the midst of the call
McpNotRepeated     an earlier attempt may have done the write, so it is not made again
"""

from datetime import timedelta

from perdure.errors import FatalToolError, PerdureError, RetryableToolError


class McpNotReady(RetryableToolError):
    """The server was not reached, or does not offer what the agent needs; nothing was sent to its tool."""

    def __init__(self, message: str, *, after: timedelta | None = None) -> None:
        super().__init__(message, after=after)


class McpRefused(FatalToolError):
    """The call was refused: the server's tool is not the pinned one, or the server does not take the request."""


class McpToolFailed(PerdureError):
    """The server says that its tool has failed."""


class McpConnectionLost(ConnectionError):
    """The connection ended before the answer came."""


class McpNotRepeated(TimeoutError):
    """An earlier attempt of this write may have taken effect, and the server need not notice a repetition."""
