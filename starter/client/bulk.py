"""The same action on many runs, a bounded number at a time."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from perdure.errors import PerdureError

_AT_ONCE: Final = 20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of an action on a run: done, or the error that kept it from being done."""

    id: str
    error: PerdureError | None = None


async def act_on_each(
    ids: Sequence[str], action: Callable[[str], Awaitable[None]]
) -> AsyncGenerator[Outcome]:
    """Apply the action to every run and yield the outcomes in the order of the ids.

    A run that fails keeps none of the rest from being acted on, nor does a caller that stops reading.
    """
    slots = asyncio.Semaphore(_AT_ONCE)

    async def act(run_id: str) -> Outcome:
        async with slots:
            try:
                await action(run_id)
            except PerdureError as error:
                return Outcome(id=run_id, error=error)
            return Outcome(id=run_id)

    tasks = [asyncio.create_task(act(run_id)) for run_id in ids]
    try:
        for task in tasks:
            yield await task
    finally:
        # A pipe that closes after the first line must not leave half of the runs unchanged.
        await asyncio.gather(*tasks, return_exceptions=True)
