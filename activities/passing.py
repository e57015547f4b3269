"""What may pass: the errors of users' code after which another attempt may succeed."""

from typing import Final

from perdure.errors import RetryableToolError

_OURS: Final = (ConnectionError, TimeoutError, RetryableToolError)
_OF_LIBRARIES: Final = frozenset(
    {
        "aiohttp.ClientConnectionError",
        "aiohttp.ClientPayloadError",
        "anthropic.APIConnectionError",
        "botocore.ConnectionError",
        "botocore.HTTPClientError",
        "httpx.NetworkError",
        "httpx.RemoteProtocolError",
        "httpx.TimeoutException",
        "httpx2.NetworkError",
        "httpx2.RemoteProtocolError",
        "httpx2.TimeoutException",
        "openai.APIConnectionError",
        "requests.ChunkedEncodingError",
        "requests.ConnectionError",
        "requests.Timeout",
        "urllib3.MaxRetryError",
        "urllib3.ProtocolError",
        "urllib3.TimeoutError",
    }
)
"""How libraries call a lost connection and a timeout: few of theirs are Python's own. By name, because none
of them need be installed."""


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may mend it. Anything else that a tool or function raises is its answer."""
    return isinstance(error, _OURS) or any(_name(kind) in _OF_LIBRARIES for kind in type(error).__mro__)


def _name(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
