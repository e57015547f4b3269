"""Patience of a watcher with a worker: long for a last answer, less where none came."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from perdure.starter.watch import run as watch
from perdure.starter.watch.poll import POLL_INTERVAL, _SharedCall
from perdure.starter.watch.run import WatchGroup


class SlowRun:
    """A run whose worker answers when the test says so. It stands for its polls and child runs too."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()

    async def status(self) -> Any:
        await self.answers.wait()
        return SimpleNamespace(messages=0)

    async def share(self, _: object, call: Callable[[], Awaitable[Any]], *, within: float) -> Any:
        return await _SharedCall[Any]().get(call, within)

    async def nodes(self, *_: object) -> list[Any]:
        return []


async def answers(run: SlowRun, group: WatchGroup, *, closed: bool) -> bool:
    poll = cast("Any", SimpleNamespace(is_closed=closed, description=None, share=run.share))
    return await watch._query(cast("Any", run), 0, cast("Any", run), poll, group) is not None  # pyright: ignore[reportPrivateUsage]


async def test_slow_worker_last_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_ANSWER_WITHIN", 0.02)
    run, group = SlowRun(), WatchGroup()
    assert not await answers(run, group, closed=False), "the next poll asks again"
    asyncio.get_running_loop().call_later(0.2, run.answers.set)
    assert await answers(run, group, closed=True)


async def test_silent_worker_is_awaited_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a last query that nobody answered, those of the tree's other runs get less time."""
    monkeypatch.setattr(watch, "_ANSWER_WITHIN", 0.02)
    monkeypatch.setattr(watch, "_LAST_ANSWER_WITHIN", 0.1)
    run, group = SlowRun(), WatchGroup()
    assert not await answers(run, group, closed=True)
    monkeypatch.setattr(watch, "_LAST_ANSWER_WITHIN", 3600.0)
    assert not await answers(run, group, closed=True)
    run.answers.set()
    assert await answers(run, group, closed=True)
    assert not group.timed_out, "a worker answers again"


def test_poll_rate_of_tree_is_bounded() -> None:
    def polls_a_second(runs: int) -> float:
        return runs / WatchGroup(runs=runs).interval("acting").total_seconds()

    assert WatchGroup(runs=8).interval("acting") == POLL_INTERVAL
    assert polls_a_second(500) == pytest.approx(polls_a_second(8))
    assert WatchGroup(runs=1).interval("waiting_approval") == timedelta(seconds=1)
