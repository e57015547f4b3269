"""Load: a steady mix of all operations on runs, each of them checked at its end."""

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

SESSIONS = 4
TURNS = 60
"""Turns of a session until it is closed and the next is opened: enough for it to continue as new."""
_MOST_AT_ONCE = 24
_PATIENCE = 180.0
"""Timeout of an operation, in seconds."""


@dataclass
class Tally:
    """Counts of completed operations, and errors of failed ones."""

    done: Counter[str] = field(default_factory=Counter[str])
    skipped: int = 0
    """Operations skipped because too many were under way: the machine was too slow for the rate."""
    errors: list[str] = field(default_factory=list[str])
    began: float = field(default_factory=time.monotonic)

    async def run(self, what: str, operation: Awaitable[None]) -> None:
        """Run an operation, and count its success or keep its error."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await operation
        except Exception as error:
            seconds = time.monotonic() - self.began
            self.errors.append(f"{what}, at {seconds:.0f} s: {type(error).__name__}: {error}"[:500])
        else:
            self.done[what] += 1


def _check(true: bool, what: object) -> None:
    if not true:
        raise AssertionError(f"not as expected: {what!r}")


async def _wait_for_status(run: Run, *wanted: str) -> None:
    while (await run.status()).status not in wanted:
        await asyncio.sleep(0.1)


async def _run_once(client: Client, n: int) -> None:
    result = await client.run("steady", f"go {n}", stream=False)
    _check((result.output, result.steps, result.tool_calls) == ("done", 4, 3), result)


async def _watch_stream(client: Client, n: int) -> None:
    run = await client.start("teller", f"tell {n}")
    reader, last = TextAssembler(), None
    async for event in run.events():
        reader.feed(event)
        last = event
    _check(isinstance(last, Finished) and reader.text(1) == STORY, last)


async def _resolve_approval(client: Client, n: int) -> None:
    run = await client.start("careful", f"pay {n}")
    await _wait_for_status(run, "waiting_approval")
    (approval,) = (await run.status()).waiting
    await run.resolve_approval(approval.call_id, allow=n % 3 != 0, by="soak")
    _check((await run.result()).output == "done", n)


async def _run_swarm(client: Client, n: int) -> None:
    result = await client.run("desk", f"find {n}", stream=False)
    _check([node.node for node in result.nodes] == ["finder", "writer"], result)


async def _run_family(client: Client, n: int) -> None:
    result = await client.run("boss", f"go {n}", stream=False)
    _check((result.output, result.tool_calls) == ("done", 4 * CHILDREN), result)


async def _store_big_results(client: Client, n: int) -> None:
    run = await client.start("big", f"dump {n}", stream=False)
    _check((await run.result()).output == "done", n)
    cut = [result.spilled for message in await run.transcript() for result in message.tool_results]
    _check(len(cut) == 4 and all(cut), cut)


async def _survive_failures(client: Client, n: int) -> None:
    result = await client.run("unlucky", f"go {n}", stream=False)
    _check((result.output, result.steps) == ("done", 3), result)


async def _cancel_or_stop(client: Client, n: int) -> None:
    run = await client.start("patient", f"go {n}")
    await _wait_for_status(run, "acting")
    await (run.cancel() if n % 2 else run.stop())
    _check((await run.result()).stop_reason == ("cancelled" if n % 2 else "stopped"), n)


async def _resume_parked(client: Client, n: int) -> None:
    run = await client.start("parked", f"go {n}", stream=False)
    await _wait_for_status(run, "parked")
    await run.resume()
    await _wait_for_status(run, "parked")
    await run.stop()
    _check((await run.result()).stop_reason == "stopped", n)


async def _run_long(client: Client, n: int) -> None:
    result = await client.run("long", f"go {n}", stream=False)
    _check((result.output, result.steps) == ("done", LONG_STEPS + 1), result)


OPERATIONS: dict[str, Callable[[Client, int], Awaitable[None]]] = {
    "plain runs": _run_once,
    "watched streams": _watch_stream,
    "approvals": _resolve_approval,
    "swarms": _run_swarm,
    "families": _run_family,
    "big results": _store_big_results,
    "tool and model failures": _survive_failures,
    "cancels and stops": _cancel_or_stop,
    "parked runs": _resume_parked,
    "long runs": _run_long,
}
"""Operations, in turns. A few sessions go on beside them all the time."""


async def load(client: Client, tally: Tally, rate: float, over: asyncio.Event) -> None:
    """Start `rate` operations a second until `over` is set; then wait for the unfinished ones."""
    async with asyncio.TaskGroup() as group:
        for number in range(SESSIONS):
            group.create_task(_keep_sessions(client, tally, number, over))
        going: set[asyncio.Task[None]] = set()
        for n, (what, operation) in enumerate(itertools.cycle(OPERATIONS.items())):
            if over.is_set():
                break
            # A slow machine skips operations: a growing queue of them would look like a leak.
            if len(going) < _MOST_AT_ONCE:
                task = group.create_task(tally.run(what, operation(client, n)))
                going.add(task)
                task.add_done_callback(going.discard)
            else:
                tally.skipped += 1
            await _pause(over, 1 / rate)


async def _keep_sessions(client: Client, tally: Tally, number: int, over: asyncio.Event) -> None:
    for count in itertools.count():
        session_id = f"talk-{number}-{count}"
        for turn in range(TURNS):
            await tally.run("turns of sessions", _say(client, session_id, f"{number} {count} {turn}"))
            await _pause(over, 1.0)
            if over.is_set():
                break
        session = await client.session(session_id)
        await session.close()
        if over.is_set():
            return


async def _say(client: Client, session_id: str, words: str) -> None:
    session = await client.session(session_id, agent="talk", stream=False)
    reply = await session.say(words, id=words)
    _check(reply.text == f"done: {words}", reply)


async def _pause(over: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)
