"""What the caller is told when the server does not answer: to ask again, and nothing else."""

from datetime import timedelta
from typing import Any, cast

import pytest
from temporalio.service import RPCError, RPCStatusCode

from perdure import InvalidRequest, NotReachable
from perdure.starter.client import outages
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_outages` holds how long a server is waited for."""
    monkeypatch.setattr(outages, "RIDES_OUT", timedelta())


GONE = [
    RPCError("tcp connect error", RPCStatusCode.UNAVAILABLE, b""),
    RPCError("transport error", RPCStatusCode.UNKNOWN, b""),
    RPCError("h2 protocol error: http2 error", RPCStatusCode.INTERNAL, b""),
]
"""As the SDK raises them when a server is killed: before a call, and under one."""


class Dead:
    """A connection to a server that is killed under each call."""

    namespace = "default"

    def __init__(self, error: RPCError) -> None:
        self.error = error

    async def start_workflow(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("error", GONE, ids=str)
async def test_a_broken_call_is_not_reachable(error: RPCError) -> None:
    """A server that dies under a call: the caller is told to try again."""
    run = Run(cast("Any", Dead(error)), "r")
    with pytest.raises(NotReachable, match="does not answer"):
        async with run.calls.translate_errors():
            raise error
    with pytest.raises(NotReachable, match="does not answer"):
        await Client(cast("Any", Dead(error))).start("a", "go")


@pytest.mark.parametrize("said", ["consistent query buffer is full", "namespace rate limit exceeded"])
async def test_a_busy_server_is_reported_as_busy(said: str) -> None:
    error = RPCError(said, RPCStatusCode.RESOURCE_EXHAUSTED, b"")
    with pytest.raises(NotReachable, match=f"too much to do.*{said}"):
        async with Run(cast("Any", Dead(error)), "r").calls.translate_errors():
            raise error
    with pytest.raises(NotReachable, match=f"too much to do.*{said}"):
        await Client(cast("Any", Dead(error))).start("a", "go")


async def test_too_large_messages_are_invalid() -> None:
    """They have the status of a busy server, but trying again would not help."""
    error = RPCError("grpc: received message larger than max", RPCStatusCode.RESOURCE_EXHAUSTED, b"")
    with pytest.raises(InvalidRequest, match="larger than max"):
        await Client(cast("Any", Dead(error))).start("a", "go")
