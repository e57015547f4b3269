"""Transient errors of tools and graph functions: those after which another attempt may succeed."""

from typing import Final

from perdure.errors import RetryableToolError

from ..providers.registry import BUILT_IN

_BUILT_IN: Final = (ConnectionError, TimeoutError, RetryableToolError)
_LIBRARIES: Final = frozenset(
    {
        "aiohttp.ClientConnectionError",
        "aiohttp.ClientPayloadError",
        "botocore.ConnectionError",
        "botocore.HTTPClientError",
        "httpx.NetworkError",
        "httpx.RemoteProtocolError",
        "httpx.TimeoutException",
        "httpx2.NetworkError",
        "httpx2.RemoteProtocolError",
        "httpx2.TimeoutException",
        "requests.ChunkedEncodingError",
        "requests.ConnectionError",
        "requests.Timeout",
        "urllib3.MaxRetryError",
        "urllib3.ProtocolError",
        "urllib3.TimeoutError",
        *(name for provider in BUILT_IN.values() for name in provider.connection_errors),
    }
)
"""Errors of libraries for a lost connection or a timeout; few of them derive from Python's own.

By name, because none of the libraries need be installed.
"""

_TIMEOUTS: Final = frozenset(
    {
        "botocore.ConnectTimeoutError",
        "botocore.ReadTimeoutError",
        "httpx.TimeoutException",
        "httpx2.TimeoutException",
        "requests.Timeout",
        "urllib3.TimeoutError",
        *(name for provider in BUILT_IN.values() for name in provider.timeout_errors),
    }
)
_NOTHING_SENT: Final = frozenset(
    {
        "aiohttp.ClientConnectorError",
        "botocore.ConnectTimeoutError",
        "botocore.EndpointConnectionError",
        "builtins.ConnectionRefusedError",
        "httpx.ConnectError",
        "httpx.ConnectTimeout",
        "httpx2.ConnectError",
        "httpx2.ConnectTimeout",
        "urllib3.ConnectTimeoutError",
        "urllib3.NewConnectionError",
    }
)
"""Errors before anything was sent: the call cannot have had an effect."""

_LONGEST_CHAIN: Final = 6
"""Causes that are followed; it also ends a chain that is a circle."""


def is_transient(error: BaseException) -> bool:
    """Check whether another attempt may succeed; any other error of a tool or function is its answer."""
    # Not OSError as a whole: a missing file or a full disk stays so.
    return isinstance(error, _BUILT_IN) or _is_one_of(error, _LIBRARIES)


def is_timeout(error: BaseException) -> bool:
    """Check whether the error is a timeout."""
    return isinstance(error, TimeoutError) or _is_one_of(error, _TIMEOUTS)


def may_have_taken_effect(error: BaseException) -> bool:
    """Check whether a call that ended in this error may have had its effect.

    It may when the connection was lost after the request was sent. Every error that is not transient is an
    answer of the service or of the tool: the effect did not happen.
    """
    if isinstance(error, RetryableToolError) or not is_transient(error):
        return False
    return not _was_never_sent(error, _LONGEST_CHAIN)


def _was_never_sent(error: object, depth: int) -> bool:
    """Check the error and the errors it wraps, because libraries hide how far a call came."""
    if not isinstance(error, BaseException) or not depth:
        return False
    if _is_one_of(error, _NOTHING_SENT):
        return True
    # Not __context__: an earlier error that the tool handled is not the cause of this one.
    wrapped = (error.__cause__, getattr(error, "reason", None), *error.args)
    return any(_was_never_sent(cause, depth - 1) for cause in wrapped)


def _is_one_of(error: BaseException, names: frozenset[str]) -> bool:
    return any(_name(kind) in names for kind in type(error).__mro__)


def _name(kind: type) -> str:
    # Package and class only: libraries move their errors between modules.
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
