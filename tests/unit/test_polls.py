"""SharedPolls: whoever watches a run, the server is asked once for all; nobody waits for anybody else."""

import asyncio
import gc
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from perdure.errors import NotReachable
from perdure.starter.client.run import Run, _soon
from perdure.starter.watch.changes import PendingActivity
from perdure.starter.watch.poll import _WATCHED, Poll, SharedPolls, _haste
from perdure.wire.effects import Progress


@dataclass(eq=False)
class Asked:
    """A run whose server is a test: each description waits until the gate is open."""

    id: str = "r"
    client: Any = field(default_factory=object)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0
    cancelled: int = 0
    errors: list[Exception] = field(default_factory=list[Exception])
    """How the first ones end."""

    async def describe(self) -> Any:
        self.begun += 1
        mine = self.begun
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.errors:
            raise self.errors.pop(0)
        raw = SimpleNamespace(pending_activities=[])
        status = WorkflowExecutionStatus.RUNNING
        return SimpleNamespace(run_id="1", history_length=mine, status=status, raw_description=raw)


def polls(run: Asked) -> SharedPolls:
    return SharedPolls.for_run(cast("Run", run))


def now() -> float:
    return asyncio.get_running_loop().time()


async def turns() -> None:
    """Let everybody get as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_those_who_ask_at_once_share_one_description() -> None:
    run, then = Asked(), now()
    asking = [asyncio.create_task(polls(run).next(then)) for _ in range(100)]
    await turns()
    run.gate.set()
    got = await asyncio.gather(*asking)
    assert run.begun == 1
    assert all(poll is got[0] for poll in got)


async def test_what_began_before_it_was_asked_for_is_not_given() -> None:
    run = Asked()
    early = asyncio.create_task(polls(run).next(now()))
    await turns()
    late = [asyncio.create_task(polls(run).next(now())) for _ in range(20)]
    await turns()
    assert run.begun == 1, "one at a time, so that none is older than the one before it"
    run.gate.set()
    newer = await asyncio.gather(*late)
    assert (await early).at == ("1", 1)
    assert {poll.at for poll in newer} == {("1", 2)}, "one more, for all who came later"


async def test_who_comes_later_takes_what_is_newer_than_their_last() -> None:
    run = Asked()
    run.gate.set()
    kept = polls(run)
    mine = await kept.next(now())
    other = await kept.next(now())
    assert await kept.next(mine.ended) is other
    assert await kept.next(other.ended) is not other
    assert run.begun == 3


async def test_who_is_cancelled_disturbs_nobody() -> None:
    run, then = Asked(), now()
    first, *others = [asyncio.create_task(polls(run).next(then)) for _ in range(5)]
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    run.gate.set()
    assert len(await asyncio.gather(*others)) == 4
    assert (run.begun, run.cancelled) == (1, 0)


async def test_when_nobody_waits_any_more_it_is_given_up_and_asked_anew() -> None:
    run, then = Asked(), now()
    kept = polls(run)
    asking = [asyncio.create_task(kept.next(then)) for _ in range(3)]
    await turns()
    for one in asking:
        one.cancel()
    again = asyncio.create_task(kept.next(then))
    await turns()
    run.gate.set()
    assert (await again).at == ("1", 2)
    assert (run.begun, run.cancelled) == (2, 1)


async def test_an_error_reaches_all_who_waited_and_nobody_after_them() -> None:
    run, then = Asked(errors=[NotReachable("gone")]), now()
    asking = [asyncio.create_task(polls(run).next(then)) for _ in range(5)]
    await turns()
    late = asyncio.create_task(polls(run).next(now()))
    run.gate.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [str(one) for one in outcomes] == ["gone"] * 5
    assert (await late).at == ("1", 2), "it failed before they came"


async def test_a_question_is_asked_once_a_glance_and_so_is_its_failure() -> None:
    run = Asked()
    run.gate.set()
    poll, count = await polls(run).next(now()), 0

    async def fails() -> None:
        nonlocal count
        count += 1
        await asyncio.sleep(0)
        raise NotReachable("nobody")

    outcomes = await asyncio.gather(*(poll.once("x", fails) for _ in range(5)), return_exceptions=True)
    with pytest.raises(NotReachable):
        await poll.once("x", fails)
    assert [str(one) for one in outcomes] == ["nobody"] * 5
    assert count == 1
    with pytest.raises(NotReachable):
        await (await polls(run).next(now())).once("x", fails)
    assert count == 2, "at the next poll it is asked again"


async def test_runs_connections_and_loops_are_kept_apart_and_none_is_kept_for_ever() -> None:
    run = Asked()
    one = polls(run)
    assert polls(run) is one
    assert polls(Asked(id="s", client=run.client)) is not one
    assert polls(Asked()) is not one
    assert not await asyncio.to_thread(asyncio.run, _is_of(run, one)), "another loop"
    del one
    gc.collect()
    assert [key for key in _WATCHED if key[0] is run.client] == []


async def _is_of(run: Asked, kept: SharedPolls) -> bool:
    return polls(run) is kept


async def test_the_pause_is_reckoned_from_the_glance() -> None:
    raw: Any = None
    haste = timedelta(milliseconds=100)
    poll = Poll(began=now() - 2, ended=now() - 1, described=raw, pending=[], haste=haste)
    assert 0.5 < poll.left_of(timedelta(seconds=2)) <= 1
    assert poll.left_of(haste) == 0


@pytest.mark.parametrize("losses", [1, 3])
async def test_a_lost_question_is_asked_again_and_the_first_answer_counts(losses: int) -> None:
    asked, lost = 0, 0

    async def ask() -> str:
        nonlocal asked, lost
        asked += 1
        if asked <= losses:
            try:
                await asyncio.Event().wait()
            finally:
                lost += 1
        return f"answer {asked}"

    assert await _soon(ask, again_after=(0.01, 0.01, 0.01)) == f"answer {losses + 1}"
    await turns()
    assert (asked, lost) == (losses + 1, losses), "those before it were given up"


async def test_an_error_that_is_an_answer_counts_whichever_question_it_answers() -> None:
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        raise NotReachable("nobody")

    with pytest.raises(NotReachable):
        await _soon(ask, again_after=(0.01, 60))


async def test_a_question_that_cannot_be_answered_is_not_asked_again() -> None:
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        raise NotReachable("nobody")

    with pytest.raises(NotReachable):
        await _soon(ask)
    assert asked == 1


async def test_when_there_is_no_room_for_another_question_the_first_is_still_waited_for() -> None:
    asked, refused = 0, asyncio.Event()

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            refused.set()
            raise RPCError("query buffer is full", RPCStatusCode.RESOURCE_EXHAUSTED, b"")
        await refused.wait()
        await turns()
        return "answer"

    assert await _soon(ask, again_after=(0.01, 60)) == "answer"


async def test_glances_follow_close_behind_reports_and_are_leisurely_without() -> None:
    raw: Any = None
    last: Poll | None = None
    pauses: list[int] = []
    for seq in (0, 1, 1, 2, 2, 2, 2, 2):
        progress = Progress(call="step-1", attempt=1, seq=seq) if seq else None
        pending = [PendingActivity(progress=progress, attempt=1, error=None)]
        haste = _haste(last, pending)
        last = Poll(began=0, ended=0, described=raw, pending=pending, haste=haste)
        pauses.append(round(haste.total_seconds() * 1000))
    assert pauses == [100, 140, 30, 140, 30, 60, 100, 100]
