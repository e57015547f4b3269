"""Errors of tools and graph functions: which are worth another attempt, and which say that nothing happened.

Rules
1. A lost connection and a timeout are transient. Any other error is the answer of the tool or of its service.
2. An unknown error may have come after the effect. Only a known one says that there was none: the other side
   was not reached, or it refused the request, or the tool says so itself.
3. An error that wraps others is what they are.
"""

import errno
import http.client
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from temporalio.exceptions import ApplicationError

from perdure.errors import RetryableToolError, ToolError

from ..providers.registry import BUILT_IN

_BUILT_IN: Final = (
    ConnectionError,
    TimeoutError,
    RetryableToolError,
    socket.gaierror,
    socket.herror,
    http.client.BadStatusLine,
    http.client.IncompleteRead,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
    ssl.SSLSyscallError,
)
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
        "urllib.ContentTooShortError",
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
_NOT_REACHED: Final = frozenset(
    {
        "aiohttp.ClientConnectorError",
        "aiohttp.ConnectionTimeoutError",
        "aiohttp.InvalidURL",
        "botocore.ConnectTimeoutError",
        "botocore.EndpointConnectionError",
        "botocore.NoCredentialsError",
        "botocore.ParamValidationError",
        "botocore.ProxyConnectionError",
        "httpx.ConnectError",
        "httpx.ConnectTimeout",
        "httpx.PoolTimeout",
        "httpx.ProxyError",
        "httpx.UnsupportedProtocol",
        "httpx2.ConnectError",
        "httpx2.ConnectTimeout",
        "httpx2.PoolTimeout",
        "httpx2.ProxyError",
        "httpx2.UnsupportedProtocol",
        "requests.ConnectTimeout",
        "requests.InvalidSchema",
        "requests.InvalidURL",
        "requests.MissingSchema",
        "urllib3.ConnectTimeoutError",
        "urllib3.NewConnectionError",
    }
)
"""Errors of libraries before anything was sent."""

_NOT_REACHED_BUILT_IN: Final = (
    ConnectionRefusedError,
    socket.gaierror,
    socket.herror,
    http.client.InvalidURL,
    # The handshake fails before the request is sent.
    ssl.SSLCertVerificationError,
)
_UNREACHABLE: Final = frozenset({errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH})
"""Numbers of errors for which Python has no class of its own: there is no way to the host."""

_STATUS_OF: Final[dict[str, Callable[[Any], object]]] = {
    "aiohttp.ClientResponseError": lambda error: error.status,
    "anthropic.APIStatusError": lambda error: error.status_code,
    "botocore.ClientError": lambda error: error.response["ResponseMetadata"]["HTTPStatusCode"],
    "httpx.HTTPStatusError": lambda error: error.response.status_code,
    "httpx2.HTTPStatusError": lambda error: error.response.status_code,
    "openai.APIStatusError": lambda error: error.status_code,
    "requests.HTTPError": lambda error: error.response.status_code,
    "urllib.HTTPError": lambda error: error.code,
}
"""HTTP status of an answer that a library raises as an error."""

_UNDECIDED_STATUS: Final = frozenset({408, 409, 425, 499})
"""Client errors that do not refuse the request: it was late, or an earlier one with its key is under way."""

_LONGEST_CHAIN: Final = 6
"""Causes that are followed; it also ends a chain that is a circle."""


def is_transient(error: BaseException) -> bool:
    """Check whether another attempt may succeed; any other error of a tool or function is its answer."""
    return _is_transient(error, _LONGEST_CHAIN)


def _is_transient(error: BaseException, depth: int) -> bool:
    # Not OSError as a whole: a missing file or a full disk stays so.
    if isinstance(error, _BUILT_IN) or _is_unreachable(error) or _is_one_of(error, _LIBRARIES):
        return True
    wrapped = _wrapped_alone(error) if depth else ()
    return bool(wrapped) and all(_is_transient(each, depth - 1) for each in wrapped)


def is_timeout(error: BaseException) -> bool:
    """Check whether the error is a timeout."""
    if isinstance(error, TimeoutError) or _is_one_of(error, _TIMEOUTS):
        return True
    return any(isinstance(each, TimeoutError) for each in _wrapped_alone(error))


def may_have_taken_effect(error: BaseException) -> bool:
    """Check whether a call that ended in this error may have had its effect: rule 2 above."""
    return not _had_no_effect(error, _LONGEST_CHAIN)


def _had_no_effect(error: object, depth: int) -> bool:
    if not isinstance(error, BaseException) or not depth:
        return False
    if isinstance(error, ToolError | ApplicationError):
        return _says_no_effect(error, depth)
    if isinstance(error, _NOT_REACHED_BUILT_IN) or _is_unreachable(error) or _is_one_of(error, _NOT_REACHED):
        return True
    if _is_refusal(error):
        return True
    several = _wrapped_alone(error)
    if several:
        return all(_had_no_effect(each, depth - 1) for each in several)
    # Libraries hide how far a call came in the errors that they wrap.
    # Not __context__: an earlier error that the tool handled is not the cause of this one.
    wrapped = (error.__cause__, getattr(error, "reason", None), *error.args)
    return any(_had_no_effect(cause, depth - 1) for cause in wrapped)


def _says_no_effect(error: BaseException, depth: int) -> bool:
    """Check an error by which the tool itself says that it failed.

    Its word counts, unless it only passes on a lost connection or a timeout: then nobody knows.
    """
    handled = None if error.__suppress_context__ else error.__context__
    cause = error.__cause__ or handled
    return cause is None or not is_transient(cause) or _had_no_effect(cause, depth - 1)


def _is_refusal(error: BaseException) -> bool:
    """Check whether the other side answered that it does not do what it was asked."""
    for kind in type(error).__mro__:
        status_of = _STATUS_OF.get(_name(kind))
        if status_of is not None:
            try:
                status = status_of(error)
            except (AttributeError, KeyError, TypeError):
                return False
            return isinstance(status, int) and 400 <= status < 500 and status not in _UNDECIDED_STATUS
    return False


def _is_unreachable(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _UNREACHABLE


def _wrapped_alone(error: BaseException) -> tuple[BaseException, ...]:
    """Return the errors of which this one is only the wrapping: `URLError`, and groups."""
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions  # pyright: ignore[reportUnknownVariableType]
    # Its class says nothing, and an answer (HTTPError) derives from it, whose reason is text.
    reason = getattr(error, "reason", None) if _is_one_of(error, frozenset({"urllib.URLError"})) else None
    return (reason,) if isinstance(reason, BaseException) else ()


def _is_one_of(error: BaseException, names: frozenset[str]) -> bool:
    return any(_name(kind) in names for kind in type(error).__mro__)


def _name(kind: type) -> str:
    # Package and class only: libraries move their errors between modules.
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
