"""The load: a steady mix of all that people and programs do with runs, each deed checked when it is over."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.wire.events import Finished, TextAssembler

from .agents import CHILDREN, LONG_STEPS, STORY

TALKERS = 4
TURNS = 60
"""Of a session, until it is closed and another is opened: enough for it to continue as new."""
_MOST_AT_ONCE = 24
_PATIENCE = 180.0
"""Seconds for one deed."""


@dataclass
class Tally:
    """What was done, and what did not go as it should."""

    done: Counter[str] = field(default_factory=Counter[str])
    skipped: int = 0
    """Deeds that were not begun because too many went on: the machine was too slow for the rate."""
    errors: list[str] = field(default_factory=list[str])
    began: float = field(default_factory=time.monotonic)

    async def doing(self, what: str, deed: Awaitable[None]) -> None:
        """Do it, and write down what became of it."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await deed
        except Exception as error:
            seconds = time.monotonic() - self.began
            self.errors.append(f"{what}, at {seconds:.0f} s: {type(error).__name__}: {error}"[:500])
        else:
            self.done[what] += 1


def _check(true: bool, what: object) -> None:
    if not true:
        raise AssertionError(f"not as expected: {what!r}")


async def _status(run: Run, *wanted: str) -> None:
    while (await run.status()).status not in wanted:
        await asyncio.sleep(0.1)


async def _plain(client: Client, n: int) -> None:
    result = await client.run("steady", f"go {n}", stream=False)
    _check((result.output, result.steps, result.tool_calls) == ("done", 4, 3), result)


async def _watched(client: Client, n: int) -> None:
    run = await client.start("teller", f"tell {n}")
    reader, last = TextAssembler(), None
    async for event in run.events():
        reader.feed(event)
        last = event
    _check(isinstance(last, Finished) and reader.text(1) == STORY, last)


async def _approved(client: Client, n: int) -> None:
    run = await client.start("careful", f"pay {n}")
    await _status(run, "waiting_approval")
    (want,) = (await run.status()).waiting
    await run.resolve_approval(want.call_id, allow=n % 3 != 0, by="soak")
    _check((await run.result()).output == "done", n)


async def _swarm(client: Client, n: int) -> None:
    result = await client.run("desk", f"find {n}", stream=False)
    _check([node.node for node in result.nodes] == ["finder", "writer"], result)


async def _family(client: Client, n: int) -> None:
    result = await client.run("boss", f"go {n}", stream=False)
    _check((result.output, result.tool_calls) == ("done", 4 * CHILDREN), result)


async def _big(client: Client, n: int) -> None:
    run = await client.start("big", f"dump {n}", stream=False)
    _check((await run.result()).output == "done", n)
    cut = [result.spilled for message in await run.transcript() for result in message.tool_results]
    _check(len(cut) == 4 and all(cut), cut)


async def _unlucky(client: Client, n: int) -> None:
    result = await client.run("unlucky", f"go {n}", stream=False)
    _check((result.output, result.steps) == ("done", 3), result)


async def _cancelled(client: Client, n: int) -> None:
    run = await client.start("patient", f"go {n}")
    await _status(run, "acting")
    await (run.cancel() if n % 2 else run.stop())
    _check((await run.result()).stop_reason == ("cancelled" if n % 2 else "stopped"), n)


async def _parked(client: Client, n: int) -> None:
    run = await client.start("parked", f"go {n}", stream=False)
    await _status(run, "parked")
    await run.resume()
    await _status(run, "parked")
    await run.stop()
    _check((await run.result()).stop_reason == "stopped", n)


async def _long(client: Client, n: int) -> None:
    result = await client.run("long", f"go {n}", stream=False)
    _check((result.output, result.steps) == ("done", LONG_STEPS + 1), result)


DEEDS: dict[str, Callable[[Client, int], Awaitable[None]]] = {
    "plain runs": _plain,
    "watched streams": _watched,
    "approvals": _approved,
    "swarms": _swarm,
    "families": _family,
    "big results": _big,
    "tool and model failures": _unlucky,
    "cancels and stops": _cancelled,
    "parked runs": _parked,
    "long runs": _long,
}
"""In turns. Beside them a few sessions go on all the time."""


async def load(client: Client, tally: Tally, rate: float, over: asyncio.Event) -> None:
    """Begin so many deeds a second until it is over; then wait for those that go on."""
    async with asyncio.TaskGroup() as group:
        for talker in range(TALKERS):
            group.create_task(_talking(client, tally, talker, over))
        going: set[asyncio.Task[None]] = set()
        for n, (what, deed) in enumerate(itertools.cycle(DEEDS.items())):
            if over.is_set():
                break
            if len(going) < _MOST_AT_ONCE:
                task = group.create_task(tally.doing(what, deed(client, n)))
                going.add(task)
                task.add_done_callback(going.discard)
            else:
                tally.skipped += 1
            await _pause(over, 1 / rate)


async def _talking(client: Client, tally: Tally, talker: int, over: asyncio.Event) -> None:
    for count in itertools.count():
        session_id = f"talk-{talker}-{count}"
        for turn in range(TURNS):
            await tally.doing("turns of sessions", _turn(client, session_id, f"{talker} {count} {turn}"))
            await _pause(over, 1.0)
            if over.is_set():
                break
        session = await client.session(session_id)
        await session.close()
        if over.is_set():
            return


async def _turn(client: Client, session_id: str, words: str) -> None:
    session = await client.session(session_id, agent="talk", stream=False)
    reply = await session.say(words, id=words)
    _check(reply.text == f"done: {words}", reply)


async def _pause(over: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)
