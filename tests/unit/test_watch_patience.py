"""How long a watcher waits for a worker: long for the last word, and not again where nobody speaks."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from perdure.starter.watch import run as watch
from perdure.starter.watch.run import Pace


class Slow:
    """A run whose worker answers when told to, and stands for its poll and for what is below it too."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.described = None

    async def status(self) -> Any:
        await self.answers.wait()
        return SimpleNamespace(messages=0)

    async def once(self, _: object, ask: Callable[[], Awaitable[Any]]) -> Any:
        return await ask()

    async def nodes(self, *_: object) -> list[Any]:
        return []


async def told(run: Slow, pace: Pace, *, closed: bool) -> bool:
    poll = cast("Any", SimpleNamespace(closed=closed, described=None, once=run.once))
    return await watch._ask(cast("Any", run), 0, cast("Any", run), poll, pace) is not None  # pyright: ignore[reportPrivateUsage]


async def test_the_last_word_of_a_slow_worker_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_ANSWER_WITHIN", 0.02)
    run, pace = Slow(), Pace()
    assert not await told(run, pace, closed=False), "the next look asks again"
    asyncio.get_running_loop().call_later(0.2, run.answers.set)
    assert await told(run, pace, closed=True)


async def test_where_no_worker_spoke_in_all_that_time_the_next_run_is_not_waited_for_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_ANSWER_WITHIN", 0.02)
    monkeypatch.setattr(watch, "_LAST_ANSWER_WITHIN", 0.1)
    run, pace = Slow(), Pace()
    assert not await told(run, pace, closed=True)
    monkeypatch.setattr(watch, "_LAST_ANSWER_WITHIN", 3600.0)
    assert not await told(run, pace, closed=True)
    run.answers.set()
    assert await told(run, pace, closed=True)
    assert not pace.silent, "somebody speaks again"
