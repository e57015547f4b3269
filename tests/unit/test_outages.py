"""A call rides out a server that is away, and has one effect however often it is sent."""

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.service import RPCError, RPCStatusCode

from perdure import InvalidRequest, NotReachable
from perdure.starter.client import outages
from perdure.starter.client.connect import Client
from perdure.starter.client.outages import ride_out
from perdure.starter.client.run import Run

AWAY = RPCError("tcp connect error", RPCStatusCode.UNAVAILABLE, b"")
REFUSED = RPCError("no", RPCStatusCode.INVALID_ARGUMENT, b"")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "_FIRST_PAUSE", 0.0)


class Restarting:
    """A connection to a server that is away for a number of calls, and takes each of them all the same."""

    namespace = "default"

    def __init__(self, away_for: int) -> None:
        self.away_for = away_for
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.memo: dict[str, Any] = {}

    def get_workflow_handle(self, *_: Any, **__: Any) -> "Restarting":
        return self

    async def start_workflow(self, *arguments: Any, **named: Any) -> Any:
        self.memo = named["memo"]
        return self._take(arguments, named)

    async def execute_update(self, *arguments: Any, **named: Any) -> Any:
        return self._take(arguments, named)

    async def signal(self, *arguments: Any, **named: Any) -> Any:
        return self._take(arguments, named)

    async def describe(self, *_: Any, **__: Any) -> Any:
        async def memo() -> dict[str, Any]:
            return self.memo

        return SimpleNamespace(memo=memo)

    def _take(self, arguments: Any, named: dict[str, Any]) -> int:
        self.calls.append((arguments, named))
        if len(self.calls) <= self.away_for:
            raise AWAY
        return len(self.calls)


async def test_call_is_repeated_until_server_answers() -> None:
    server = Restarting(3)
    assert await ride_out(server.signal) == 4


@pytest.mark.parametrize(("error", "calls"), [(AWAY, 2), (REFUSED, 1)], ids=["away", "refused"])
async def test_wait_for_server_is_bounded(error: RPCError, calls: int) -> None:
    """An outage is ridden out for a time, and a refusal not at all."""
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1
        if made < 2 or error is REFUSED:
            raise error
        raise RPCError("transport error", RPCStatusCode.UNKNOWN, b"")

    within = timedelta(milliseconds=1) if error is AWAY else timedelta(minutes=1)
    with pytest.raises(RPCError):
        await ride_out(call, within=within)
    assert made >= calls


async def test_repeated_update_keeps_its_id() -> None:
    """The server runs an update of one id once."""
    server = Restarting(2)
    await Run(cast("Any", server), "r").send("hello")
    assert len({named["id"] for _, named in server.calls}) == 1
    assert len(server.calls) == 3


@pytest.mark.parametrize("rerun", [False, True])
async def test_repeated_start_starts_one_run(*, rerun: bool) -> None:
    """With `rerun`, a run that the lost start has started is known by its memo. Without, by its id."""
    server = Restarting(1)
    run = await Client(cast("Any", server)).start("a", "go", id="r", rerun=rerun)
    assert run.id == "r"
    assert len(server.calls) == (1 if rerun else 2)


CALLS: dict[str, Callable[[Any], Any]] = {
    "start": lambda server: Client(server).start("a", "go"),
    "signal": lambda server: Run(server, "r").stop(),
    "update": lambda server: Run(server, "r").send("hello"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_long_outage_is_reported(call: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "RIDES_OUT", timedelta())
    with pytest.raises(NotReachable, match="does not answer"):
        await call(Restarting(10**6))


async def test_refusal_is_not_repeated() -> None:
    server = Restarting(0)

    async def refuse(*_: Any, **__: Any) -> Any:
        server.calls.append((_, __))
        raise REFUSED

    server.start_workflow = refuse  # type: ignore[method-assign]
    with pytest.raises(InvalidRequest):
        await Client(cast("Any", server)).start("a", "go")
    assert len(server.calls) == 1
