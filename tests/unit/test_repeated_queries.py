"""A query is asked again while no answer comes; the first answer counts."""

import asyncio

import pytest
from temporalio.service import RPCError, RPCStatusCode

from perdure.errors import NotReachable
from perdure.starter.client.calls import first_answer


async def turns() -> None:
    """Let every task get as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("losses", [1, 3])
async def test_a_lost_query_is_repeated(losses: int) -> None:
    """The first answer counts, and the queries before it are cancelled."""
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

    assert await first_answer(ask, again_after=(0.01, 0.01, 0.01)) == f"answer {losses + 1}"
    await turns()
    assert (asked, lost) == (losses + 1, losses), "those before it were given up"


async def test_an_error_is_an_answer_too() -> None:
    """Whichever of the repeated queries it answers."""
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        raise NotReachable("nobody")

    with pytest.raises(NotReachable):
        await first_answer(ask, again_after=(0.01, 60))


async def test_a_failed_query_is_not_repeated() -> None:
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        raise NotReachable("nobody")

    with pytest.raises(NotReachable):
        await first_answer(ask)
    assert asked == 1


async def test_a_full_server_keeps_the_first_query() -> None:
    """No room for a repeated query is no answer to the first, which is still awaited."""
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

    assert await first_answer(ask, again_after=(0.01, 60)) == "answer"
