"""Watching a run with all that run below it: their events as one stream, in an order that makes sense."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from perdure.errors import PerdureError, RunNotFound
from perdure.wire.events import (
    ApprovalRequested,
    ChildEvent,
    Event,
    Finished,
    NodeFinished,
    NodeStarted,
    ParkedBelow,
    QuestionAsked,
    TreeEvent,
)

from .children import original_start
from .run import Pace, watch
from .watched import WatchedRun

_LAST_WORDS_WITHIN: Final = 30.0
"""Seconds for what a run that is over has said to be heard: a worker's time to answer, and that of the turns
of others before it.
"""

_News = asyncio.Queue[TreeEvent | None]


async def watch_tree(run: WatchedRun, *, after_message: int = 0) -> AsyncIterator[TreeEvent]:
    """Every event of the run and of all below it, until it is over.

    All of a child's events come between its NodeStarted and its NodeFinished, except those of one
    whose last words nobody can tell any more.
    """
    news: _News = asyncio.Queue()
    began = original_start(await run.describe())
    tree = _Tree(news=news, began=began)
    root = asyncio.create_task(tree.root(run, after_message))
    try:
        while (event := await news.get()) is not None:
            yield event
        await root
    finally:
        root.cancel()
        await asyncio.gather(root, return_exceptions=True)


@dataclass
class _Child:
    """The watcher of a run below."""

    task: "asyncio.Task[None]"
    over: asyncio.Event
    """Its parent says that it is over: if it is not there now, it never will be."""


@dataclass(frozen=True, kw_only=True)
class _Tree:
    news: _News
    began: datetime
    """When the root did: what is older belongs to an earlier run of the same id."""
    pace: Pace = field(default_factory=Pace)

    async def root(self, run: WatchedRun, after_message: int) -> None:
        try:
            await self._follow(run, [], after_message)
        finally:
            self.news.put_nowait(None)

    async def _follow(self, run: WatchedRun, path: list[str], after_message: int = 0) -> None:
        below: dict[str, _Child] = {}
        try:
            async for event in watch(run, after_message=after_message, pace=self.pace):
                match event:
                    case NodeStarted():
                        self._tell(run, path, event)
                        self._begin(run, path, event, below)
                        continue
                    case NodeFinished():
                        await _hear_out(below.pop(event.key, None))
                    case Finished():
                        for child in below.values():
                            await _hear_out(child)
                    case _:
                        pass
                self._tell(run, path, event)
        finally:
            tasks = [child.task for child in below.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, run: WatchedRun, path: list[str], node: NodeStarted, below: dict[str, _Child]) -> None:
        if node.run_id is None:
            return
        over = asyncio.Event()
        task = asyncio.create_task(self._child(run.get(node.run_id), [*path, node.key], over))
        below[node.key] = _Child(task=task, over=over)

    async def _child(self, run: WatchedRun, path: list[str], over: asyncio.Event) -> None:
        try:
            if await self._is_there(run, over):
                await self._follow(run, path)
        except PerdureError:
            return  # whoever watches the root is told of it there

    async def _is_there(self, run: WatchedRun, over: asyncio.Event) -> bool:
        """Wait until it has begun; a child is announced before the server knows it."""
        while True:
            last = over.is_set()
            try:
                if (await run.describe()).start_time >= self.began:
                    return True
            except RunNotFound:
                pass
            if last:
                return False
            await asyncio.sleep(self.pace.quick.total_seconds())

    def _tell(self, run: WatchedRun, path: list[str], event: Event) -> None:
        if not path:
            self.news.put_nowait(event)
        elif not isinstance(event, ApprovalRequested | QuestionAsked | ParkedBelow):  # the root tells those
            self.news.put_nowait(ChildEvent(run_id=run.id, path=path, event=event))


async def _hear_out(child: _Child | None) -> None:
    """Wait for what a run that is over has said, within reason."""
    if child is None:
        return
    child.over.set()
    await asyncio.wait({child.task}, timeout=_LAST_WORDS_WITHIN)
    child.task.cancel()
    [outcome] = await asyncio.gather(child.task, return_exceptions=True)
    if isinstance(outcome, Exception):  # a bug of ours must not pass for silence
        raise outcome
