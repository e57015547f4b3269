"""Remote writes that may have happened: no stand-in repeats them, and the model is told."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client as TemporalClient
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from perdure import Agent, Client, RemoteTool, ToolContext, ToolFallback, ToolRetry, tool
from perdure.model import ModelRequest
from perdure.testing import ScriptedModel, calls, says
from tests.conftest import Serve

_LATE = timedelta(seconds=3)
_REFUSED = ApplicationError("the bank is closed", non_retryable=True)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A remote tool, what its attempts do, and whether its stand-in may be called."""

    name: str
    attempts: Sequence[str | Exception]
    stands_in: bool
    effect: Any = "write"
    most: int = 2
    first_delay: timedelta = timedelta(milliseconds=100)


_OWN_DELAY = timedelta(milliseconds=50)
_LONG = timedelta(seconds=20)

ROWS = [
    Row(name="refused", attempts=[_REFUSED], stands_in=True),
    # Longer than the first delay between two attempts: only the server's history says that it was the first.
    Row(name="refused_slowly", attempts=["wait", _REFUSED], stands_in=True),
    Row(name="late_then_refused", attempts=["late", _REFUSED], stands_in=False),
    Row(name="cut_then_refused", attempts=[ConnectionResetError("cut"), _REFUSED], stands_in=False),
    # An attempt may name the delay before the next one: that both fit into the first delay says nothing.
    Row(
        name="own_delay",
        attempts=[ApplicationError("lost", next_retry_delay=_OWN_DELAY), _REFUSED],
        stands_in=False,
        first_delay=_LONG,
    ),
    Row(
        name="own_delay_then_not_there",
        attempts=[
            ApplicationError("lost", next_retry_delay=_OWN_DELAY),
            ApplicationError("nobody", type="ConnectError", non_retryable=True),
        ],
        stands_in=False,
        first_delay=_LONG,
        most=5,
    ),
    Row(name="refused_at_once", attempts=[_REFUSED], stands_in=True, first_delay=_LONG, most=5),
    Row(name="unknown", attempts=[KeyError("id")] * 2, stands_in=False),
    Row(name="unknown_once", attempts=[KeyError("id")], stands_in=False, most=1),
    Row(name="not_there", attempts=[ConnectionRefusedError("nobody")], stands_in=True, most=1),
    Row(name="late", attempts=["late"] * 2, stands_in=False),
    Row(name="too_large", attempts=["large"], stands_in=False),
    Row(name="read_late", attempts=["late", _REFUSED], stands_in=True, effect="read"),
]


@dataclass
class Bank:
    """Activity of all rows, in a worker that is not Perdure's."""

    left: dict[str, list[str | Exception]] = field(
        default_factory=lambda: {row.name: list(row.attempts) for row in ROWS}
    )

    @activity.defn(name="pay")
    async def pay(self, arguments: dict[str, Any], about: dict[str, Any]) -> str:
        """Do what the row says for this attempt."""
        left = self.left[about["user"]]
        what = left.pop(0)
        if what == "wait":
            await asyncio.sleep(0.3)
            what = left.pop(0)
        if isinstance(what, Exception):
            raise what
        if what == "late":
            await asyncio.sleep(4 * _LATE.total_seconds())
        return "x" * 5_000_000 if what == "large" else "paid"


def _remote(row: Row) -> RemoteTool:
    return RemoteTool(
        name=row.name,
        description="Pay.",
        task_queue="bank",
        activity="pay",
        effect=row.effect,
        timeout=_LATE if "late" in row.attempts else timedelta(minutes=1),
        retry=ToolRetry(attempts=row.most, initial_interval=row.first_delay),
        fallback=ToolFallback(tool="pay_elsewhere"),
        input_schema={"type": "object", "properties": {}},
    )


def _script(request: ModelRequest) -> Any:
    return says("done") if request.messages[-1].role == "tool" else calls(str(request.user))


async def _result_of(client: Client, row: Row) -> str:
    run = await client.start("clerk", "pay", user=row.name)
    await run.result()
    return (await run.transcript())[2].text


async def test_remote_write_is_not_repeated_by_stand_in(serve: Serve) -> None:
    """Whatever the last error is, no stand-in repeats a write of which any attempt may have had its effect."""
    paid: Counter[str] = Counter()

    @tool(effect="write")
    async def pay_elsewhere(context: ToolContext) -> str:
        """Pay by the other bank."""
        paid[str(context.user)] += 1
        return "paid"

    clerk = Agent(name="clerk", model="scripted:x", tools=[*map(_remote, ROWS), pay_elsewhere])
    async with serve(clerk, models={"scripted": ScriptedModel(_script)}) as client:
        foreign = await TemporalClient.connect(client.temporal.service_client.config.target_host)
        async with Worker(foreign, task_queue="bank", activities=[Bank().pay]):
            texts = await asyncio.gather(*(_result_of(client, row) for row in ROWS))
    told = {row.name: text for row, text in zip(ROWS, texts, strict=True)}
    assert set(paid) == {row.name for row in ROWS if row.stands_in}, told
    for row in ROWS:
        expected = row.stands_in or row.name == "too_large"
        assert ("may or may not have taken effect" in told[row.name]) is not expected, told[row.name]
    assert "has done its work" in told["too_large"]
