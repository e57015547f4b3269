"""What may pass: the errors of users' code after which another attempt may succeed."""

from typing import Final

from perdure.errors import RetryableToolError

from ..providers.registry import BUILT_IN

_OURS: Final = (ConnectionError, TimeoutError, RetryableToolError)
_OF_LIBRARIES: Final = frozenset(
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
"""How libraries call a lost connection and a timeout: few of theirs are Python's own. By name, because none
of them need be installed."""


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
_BEFORE_ANYTHING: Final = frozenset(
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
"""Nothing was sent yet: it cannot have had an effect."""
_DEEPEST: Final = 6


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may mend it. Anything else that a tool or function raises is its answer."""
    return isinstance(error, _OURS) or _is_one_of(error, _OF_LIBRARIES)


def is_timeout(error: BaseException) -> bool:
    """Whether nobody answered in time."""
    return isinstance(error, TimeoutError) or _is_one_of(error, _TIMEOUTS)


def may_have_taken_effect(error: BaseException) -> bool:
    """Whether what failed in passing may have had its effect all the same: the line was lost on the way back.

    An error that no line explains is the other side's own word, or the tool's: then it has not.
    """
    if isinstance(error, RetryableToolError) or not is_transient(error):
        return False
    return not _never_left(error, _DEEPEST)


def _never_left(error: object, deeper: int) -> bool:
    """Looks into what an error wraps: libraries hide how far they came."""
    if not isinstance(error, BaseException) or not deeper:
        return False
    if _is_one_of(error, _BEFORE_ANYTHING):
        return True
    # Not __context__: what a tool met before, and went on from, is not what this error wraps.
    inner = (error.__cause__, getattr(error, "reason", None), *error.args)
    return any(_never_left(one, deeper - 1) for one in inner)


def _is_one_of(error: BaseException, names: frozenset[str]) -> bool:
    return any(_name(kind) in names for kind in type(error).__mro__)


def _name(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
