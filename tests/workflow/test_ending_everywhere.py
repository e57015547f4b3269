"""Stop, cancel and deadline at each moment at which a run waits for something: none of them waits with it.

`make ending` measures the seconds of the same table. Here each row is judged by what lies between the request and the
end in its history, which no busy machine changes.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from proofs.ending.judge import End, Row, end, played, rows
from proofs.ending.moments import MOMENTS, How, Moment, Played
from proofs.ending.stage import Stage, staged

_ALL_WAYS: Sequence[How] = ("stop", "cancel", "deadline")
_REQUESTS: Sequence[How] = ("stop", "cancel")
_DEADLINE = timedelta(seconds=5)
_HANGS = timedelta(seconds=60)


def _moments(*, takes_slots: bool) -> list[Moment]:
    return [moment for moment in MOMENTS if not moment.wide and moment.takes_slots == takes_slots]


async def test_end_needs_no_slot() -> None:
    """With all slots of the worker taken, runs end at each moment with few workflow tasks and no further attempt."""
    # A deadline before the beginning has a way of its own. Later it is an event, as a stop is.
    not_begun = [moment for moment in _moments(takes_slots=True) if moment.prepare is None]
    later = [moment for moment in _moments(takes_slots=True) if moment.prepare is not None]
    async with staged() as stage:
        chosen = rows(later, _REQUESTS)
        runs = {row.id: played(stage, row, _DEADLINE) for row in chosen}
        await asyncio.gather(*(_prepare(row, runs[row.id]) for row in chosen))
        await stage.take_all_slots()
        first = rows(not_begun, _ALL_WAYS)
        runs |= {row.id: played(stage, row, _DEADLINE) for row in first}
        await _judge(stage, [*chosen, *first], runs)


async def test_end_needs_no_storage() -> None:
    """While the blob store accepts nothing, runs end as at any other time."""
    async with staged() as stage:
        stage.disk.is_full = True
        chosen = rows(_moments(takes_slots=False), _REQUESTS)
        held_up = [moment for moment in _moments(takes_slots=False) if moment.name.startswith("resolving")]
        chosen += rows(held_up, ["deadline"])
        await _judge(stage, chosen, {row.id: played(stage, row, _DEADLINE) for row in chosen})


async def _prepare(row: Row, run: Played) -> None:
    if row.moment.prepare is not None:
        await row.moment.prepare(run)


async def _judge(stage: Stage, chosen: Sequence[Row], runs: dict[str, Played]) -> None:
    async def arrive_and_end(row: Row) -> End:
        run = runs[row.id]
        await row.moment.arrive(run)
        return await end(run, row, within=_HANGS)

    ends = await asyncio.gather(*(arrive_and_end(row) for row in chosen))
    assert [fault for ended in ends for fault in ended.faults()] == []
