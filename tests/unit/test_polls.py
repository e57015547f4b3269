"""Polls are shared: however many watch a run, the server is polled once for all of them."""

import asyncio
import gc
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import WorkflowExecutionStatus

from perdure.errors import NotReachable
from perdure.starter.client.run import Run
from perdure.starter.watch.poll import _SHARED, Poll, SharedPolls


@dataclass(eq=False)
class FakeRun:
    """A run whose server is the test: a description waits until the gate is open."""

    id: str = "r"
    client: Any = field(default_factory=object)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0
    cancelled: int = 0
    errors: list[Exception] = field(default_factory=list[Exception])
    """Ends of the first descriptions."""

    async def describe(self) -> Any:
        self.begun += 1
        number = self.begun
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.errors:
            raise self.errors.pop(0)
        raw = SimpleNamespace(pending_activities=[])
        status = WorkflowExecutionStatus.RUNNING
        return SimpleNamespace(run_id="1", history_length=number, status=status, raw_description=raw)


def polls_of(run: FakeRun) -> SharedPolls:
    return SharedPolls.for_run(cast("Run", run))


def now() -> float:
    return asyncio.get_running_loop().time()


async def turns() -> None:
    """Let every task get as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_simultaneous_watchers_share_one_description() -> None:
    run, start = FakeRun(), now()
    waiting = [asyncio.create_task(polls_of(run).next(start)) for _ in range(100)]
    await turns()
    run.gate.set()
    polls = await asyncio.gather(*waiting)
    assert run.begun == 1
    assert all(poll is polls[0] for poll in polls)


async def test_poll_begins_after_given_moment() -> None:
    """Whoever comes during a poll gets the next one, which all who came by then share."""
    run = FakeRun()
    early = asyncio.create_task(polls_of(run).next(now()))
    await turns()
    late = [asyncio.create_task(polls_of(run).next(now())) for _ in range(20)]
    await turns()
    assert run.begun == 1, "one at a time, so that none is older than the one before it"
    run.gate.set()
    newer = await asyncio.gather(*late)
    assert (await early).position == ("1", 1)
    assert {poll.position for poll in newer} == {("1", 2)}


async def test_watcher_takes_newer_poll() -> None:
    """A watcher takes a poll that is newer than its last."""
    run = FakeRun()
    run.gate.set()
    polls = polls_of(run)
    first = await polls.next(now())
    second = await polls.next(now())
    assert await polls.next(first.ended) is second
    assert await polls.next(second.ended) is not second
    assert run.begun == 3


async def test_cancelling_a_watcher_disturbs_no_other() -> None:
    """The watcher that polls is cancelled: the next in line polls anew, once for all the rest."""
    run, start = FakeRun(), now()
    first, *rest = [asyncio.create_task(polls_of(run).next(start)) for _ in range(5)]
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    run.gate.set()
    assert len(set(await asyncio.gather(*rest))) == 1
    assert (run.begun, run.cancelled) == (2, 1)


async def test_unawaited_poll_is_cancelled() -> None:
    run, start = FakeRun(), now()
    polls = polls_of(run)
    waiting = [asyncio.create_task(polls.next(start)) for _ in range(3)]
    await turns()
    for task in waiting:
        task.cancel()
    again = asyncio.create_task(polls.next(start))
    await turns()
    run.gate.set()
    assert (await again).position == ("1", 2)
    assert (run.begun, run.cancelled) == (2, 1)


async def test_error_reaches_only_waiting_callers() -> None:
    run, start = FakeRun(errors=[NotReachable("gone")]), now()
    waiting = [asyncio.create_task(polls_of(run).next(start)) for _ in range(5)]
    await turns()
    late = asyncio.create_task(polls_of(run).next(now()))
    run.gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["gone"] * 5
    assert (await late).position == ("1", 2), "it came after the poll that failed had begun"


async def test_shared_call_runs_once_a_poll() -> None:
    """All who share it get its outcome, an error too; at the next poll it is made again."""
    run = FakeRun()
    run.gate.set()
    poll, count = await polls_of(run).next(now()), 0

    async def fail() -> None:
        nonlocal count
        count += 1
        await asyncio.sleep(0)
        raise NotReachable("nobody")

    outcomes = await asyncio.gather(*(poll.share("x", fail) for _ in range(5)), return_exceptions=True)
    with pytest.raises(NotReachable):
        await poll.share("x", fail)
    assert [str(outcome) for outcome in outcomes] == ["nobody"] * 5
    assert count == 1
    with pytest.raises(NotReachable):
        await (await polls_of(run).next(now())).share("x", fail)
    assert count == 2


async def test_shared_call_times_out_once() -> None:
    """A worker that does not answer is not queried by one watcher after the other."""
    run, count = FakeRun(), 0
    run.gate.set()
    poll = await polls_of(run).next(now())

    async def hang() -> None:
        nonlocal count
        count += 1
        await asyncio.Event().wait()

    calls = (poll.share("x", hang, within=0.05) for _ in range(50))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {TimeoutError}
    assert count == 1


async def test_runs_and_loops_share_no_polls() -> None:
    """And none are kept of a run that nobody watches."""
    run = FakeRun()
    polls = polls_of(run)
    assert polls_of(run) is polls
    assert polls_of(FakeRun(id="s", client=run.client)) is not polls
    assert polls_of(FakeRun()) is not polls
    assert not await asyncio.to_thread(asyncio.run, _shares(run, polls)), "another loop"
    del polls
    gc.collect()
    assert [key for key in _SHARED if key[0] is run.client] == []


async def _shares(run: FakeRun, polls: SharedPolls) -> bool:
    return polls_of(run) is polls


async def test_interval_counts_from_poll() -> None:
    """Not from when a watcher was done with it: so those who share a poll share the next one too."""
    description: Any = None
    poll = Poll(began=now() - 2, ended=now() - 1, description=description, pending=[])
    assert 0.5 < poll.remaining(timedelta(seconds=2)) <= 1
    assert poll.remaining(timedelta(milliseconds=100)) == 0
