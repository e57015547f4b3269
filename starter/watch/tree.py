"""Events of a run and of all runs below it, as one stream.

Each run has a watcher of its own; all of them write to one queue. A parent's watcher starts that of a child
at its NodeStarted, and waits for it before NodeFinished, so that a child's events come between the two.
"""

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
from .run import WatchGroup, watch
from .watched import WatchedRun

# Seconds for the last events of a run that has ended: its worker may have to answer for other runs first.
_LAST_EVENTS_WITHIN: Final = 30.0

_Events = asyncio.Queue[TreeEvent | None]


async def watch_tree(run: WatchedRun, *, after_message: int = 0) -> AsyncIterator[TreeEvent]:
    """Yield every event of the run and of all below it, until it has ended.

    All of a child's events come between its NodeStarted and its NodeFinished, unless no worker can
    report the last of them any more.
    """
    events: _Events = asyncio.Queue()
    tree = _Tree(events=events, began=original_start(await run.describe()))
    root = asyncio.create_task(tree.watch_root(run, after_message))
    try:
        while (event := await events.get()) is not None:
            yield event
        await root
    finally:
        root.cancel()
        await asyncio.gather(root, return_exceptions=True)


@dataclass
class _Child:
    """Watcher of a child run."""

    task: "asyncio.Task[None]"
    ended: asyncio.Event
    """Set when the parent says that the child has ended: if the server does not know it now, it never will.
    """


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """Watchers of a tree, and the queue that they write to."""

    events: _Events
    began: datetime
    """Start of the root: an older child belongs to an earlier run of the same id."""
    group: WatchGroup = field(default_factory=WatchGroup)

    async def watch_root(self, run: WatchedRun, after_message: int) -> None:
        """Write all events of the tree to the queue, and None after the last, or after an error."""
        try:
            await self._watch(run, [], after_message)
        finally:
            self.events.put_nowait(None)

    async def _watch(self, run: WatchedRun, path: list[str], after_message: int = 0) -> None:
        children: dict[str, _Child] = {}
        try:
            async for event in watch(run, after_message=after_message, group=self.group):
                match event:
                    case NodeStarted():
                        # First the start, then the child's own events.
                        self._put(run, path, event)
                        self._watch_child(run, path, event, children)
                        continue
                    case NodeFinished():
                        await _finish(children.pop(event.key, None))
                    case Finished():
                        for child in children.values():
                            await _finish(child)
                    case _:
                        pass
                self._put(run, path, event)
        finally:
            tasks = [child.task for child in children.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _watch_child(
        self, run: WatchedRun, path: list[str], node: NodeStarted, children: dict[str, _Child]
    ) -> None:
        if node.run_id is None:  # a function of a graph
            return
        ended = asyncio.Event()
        task = asyncio.create_task(self._run_child(run.get(node.run_id), [*path, node.key], ended))
        children[node.key] = _Child(task=task, ended=ended)

    async def _run_child(self, run: WatchedRun, path: list[str], ended: asyncio.Event) -> None:
        try:
            if await self._exists(run, ended):
                await self._watch(run, path)
        except PerdureError:
            return  # the watcher of the root meets the same error, and raises it

    async def _exists(self, run: WatchedRun, ended: asyncio.Event) -> bool:
        """Wait until the child has begun; its parent announces it before the server knows it."""
        while True:
            is_last = ended.is_set()
            try:
                if (await run.describe()).start_time >= self.began:
                    return True
            except RunNotFound:
                pass
            if is_last:
                return False
            await asyncio.sleep(self.group.interval().total_seconds())

    def _put(self, run: WatchedRun, path: list[str], event: Event) -> None:
        if not path:
            self.events.put_nowait(event)
        # What waits for a person is in the status of every run above it. The root reports it, once.
        elif not isinstance(event, ApprovalRequested | QuestionAsked | ParkedBelow):
            self.events.put_nowait(ChildEvent(run_id=run.id, path=path, event=event))


async def _finish(child: _Child | None) -> None:
    """Wait for the last events of a run that has ended, within reason."""
    if child is None:
        return
    child.ended.set()
    await asyncio.wait({child.task}, timeout=_LAST_EVENTS_WITHIN)
    child.task.cancel()
    [outcome] = await asyncio.gather(child.task, return_exceptions=True)
    if isinstance(outcome, Exception):  # a bug of ours must not pass for a run without events
        raise outcome
