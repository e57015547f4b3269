"""`kill -9` of the worker: every run finishes, and no effect is done twice under one key."""

import asyncio
import collections
import random
import signal
import time

import pytest

from perdure import NotReachable, Session, TurnReply, connect
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.wire.events import Event, TextDelta, TextRestarted
from tests.conftest import HANGS, until, until_status

from .conftest import Crew
from .crew import ANSWER


async def approve_all(client: Client, runs: list[Run]) -> None:
    """Somebody who decides whatever is waiting, for as long as anything may come."""
    open_runs = {run.id for run in runs}
    while open_runs:
        for run_id in sorted(open_runs):
            run = client.get(run_id)
            try:
                status = await run.status()
                for waiting in status.waiting:
                    await run.resolve_approval(waiting.call_id, allow=True, by="lee")
            except NotReachable:
                break  # no worker just now: it is being killed
            if status.status in ("completed", "failed", "cancelled"):
                open_runs.discard(run_id)
        await asyncio.sleep(0.1)


async def test_runs_survive_random_kills(workers: Crew, settings: Settings) -> None:
    """Thirty runs survive kills at random moments."""
    seed = 4711
    moments = random.Random(seed)
    client = await connect(settings=settings)
    runs = [await client.start("many", f"job {n}", user=f"user-{n}") for n in range(30)]
    async with asyncio.TaskGroup() as group:
        group.create_task(approve_all(client, runs))
        # Each kill falls after a random number of further ledger lines: models asked, effects done.
        for _ in range(4):
            target = len(workers.happened()) + moments.randint(15, 50)

            async def far_enough(target: int = target) -> bool:
                return len(workers.happened()) >= target

            await until(far_enough)
            workers.kill()
            workers.start()
        results = await asyncio.gather(*(run.result() for run in runs))
    assert [result.output for result in results] == ["all done"] * 30, f"seed {seed}"
    effects = collections.Counter(workers.effects())
    expected = {(run.id, "charge"): 2 for run in runs} | {(run.id, "refund"): 1 for run in runs}
    assert effects == expected, "each write once under its key, whatever was retried"
    tried = collections.Counter(key for what, _, key in workers.happened() if what != "model")
    assert len(tried) == 90
    assert max(tried.values()) > 1, "some were tried again: the kills did hit tools at work"
    asked = collections.Counter((user, step) for _, user, step in workers.happened("model"))
    assert max(asked.values()) > 1, "and some hit models"


@pytest.mark.parametrize("agent", ["impatient", pytest.param("patient", marks=pytest.mark.cold)])
async def test_read_outlives_its_attempts_in_deaths(workers: Crew, settings: Settings, agent: str) -> None:
    """Three kills leave a read its three attempts: a death of a worker is none of them.

    The tool of `patient` has the product's defaults, with ten seconds until a death is noticed.
    """
    client = await connect(settings=settings)
    run = await client.start(agent, "go")
    for killed in range(3):

        async def at_work(killed: int = killed) -> bool:
            return len(workers.happened("outlive")) > killed

        await until(at_work, within=120)
        workers.kill()
        workers.start()
    assert (await run.result()).output == "seen at attempt 4"
    assert len({key for _, _, key in workers.happened("outlive")}) == 1


@pytest.mark.cold
async def test_second_worker_takes_over_under_one_key(workers: Crew, settings: Settings) -> None:
    """A worker that stands still, and goes on once another has made its call, has done nothing twice."""
    client = await connect(settings=settings)
    run = await client.start("guarded", "go")

    async def charged() -> bool:
        return bool(workers.happened("charge_slowly"))

    await until(charged)
    first = workers.processes[-1]
    first.send_signal(signal.SIGSTOP)
    workers.start()
    assert (await run.result()).output == "had been done already"
    first.send_signal(signal.SIGCONT)
    assert len({key for _, _, key in workers.happened("charge_slowly")}) == 1
    assert len(workers.effects()) == 1


@pytest.mark.parametrize("moment", ["model", "tool", "approval"])
async def test_run_continues_wherever_worker_died(workers: Crew, settings: Settings, moment: str) -> None:
    """A run continues on a new worker, wherever the old worker died."""
    client = await connect(settings=settings)
    run = await client.start("hanging" if moment == "model" else "many", "go", user="ann")
    await _reach(moment, workers, client, run)
    workers.kill()
    killed = time.monotonic()
    workers.start()
    if moment == "approval":
        await until_status(client, run.id, "waiting_approval")
    else:
        before = len(workers.happened())

        async def goes_on() -> bool:
            return len(workers.happened()) > before

        await until(goes_on)
    assert time.monotonic() - killed < HANGS, "though a model call may take five minutes"
    if moment != "model":
        await until_status(client, run.id, "waiting_approval")
        await run.resolve_approval("call-2-1", allow=True)
    assert (await run.result()).output == ("back again" if moment == "model" else "all done")
    assert len(workers.effects()) == len(set(workers.happened("charge") + workers.happened("refund")))


async def _say_until_heard(session: Session, text: str) -> TurnReply:
    """As a caller would: the same id again, when no worker was there to take the message."""
    while True:
        try:
            return await session.say(text, id=text)
        except NotReachable:
            continue


async def test_session_survives_kills_in_turn(workers: Crew, settings: Settings) -> None:
    """A session survives workers that are killed in mid-turn."""
    client = await connect(settings=settings)
    session = await client.session("outliving", agent="clerk", user="ann")
    said = [f"job {n}" for n in range(8)]
    replies: list[TurnReply] = []

    async def converse() -> None:
        for text in said:
            replies.append(await _say_until_heard(session, text))  # noqa: PERF401 - counted meanwhile

    async with asyncio.TaskGroup() as group:
        group.create_task(converse())
        for turn, moment in ((1, "model"), (3, "charge"), (5, "charge")):

            async def in_mid_turn(turn: int = turn, moment: str = moment) -> bool:
                return len(workers.happened(moment)) > (2 * turn if moment == "model" else turn)

            await until(in_mid_turn)
            workers.kill()
            workers.start()
    again = await session.say("job 0", id="job 0")
    assert [reply.text for reply in replies] == [f"done: {text}" for text in said]
    assert [reply.turn for reply in replies] == list(range(1, 9))
    assert again == replies[0]
    assert collections.Counter(workers.effects()) == {("outliving", "charge"): 8}
    transcript = await session.transcript()
    assert [message.text for message in transcript if message.role == "user"] == said


async def test_stopping_worker_hands_over(workers: Crew, settings: Settings) -> None:
    """A worker that is told to stop hands over the calls that it cannot finish."""
    client = await connect(settings=settings)
    run = await client.start("hanging", "go", user="ann")
    await _reach("model", workers, client, run)
    stopped = await asyncio.to_thread(workers.stop)
    workers.start()
    async with asyncio.timeout(HANGS):
        result = await run.result()
    assert stopped == 0
    assert result.output == "back again", "nobody waited for the five minutes the first call would take"


async def _reach(moment: str, workers: Crew, client: Client, run: Run) -> None:
    async def there() -> bool:
        return bool(workers.happened("model" if moment == "model" else "charge"))

    if moment == "approval":
        await until_status(client, run.id, "waiting_approval")
    else:
        await until(there)


async def _watch(run: Run, seen: list[Event]) -> None:
    async for event in run.events():
        seen.append(event)  # noqa: PERF401 - others look at it meanwhile


def _read(events: list[Event]) -> str:
    text = ""
    for event in events:
        if isinstance(event, TextDelta):
            assert event.offset == len(text), "no gap, no overlap"
            text += event.text
        elif isinstance(event, TextRestarted):
            text = ""
    return text


async def test_watchers_survive_kill_in_answer(workers: Crew, settings: Settings) -> None:
    """Twenty watchers lose and repeat nothing when the worker dies in mid-answer."""
    client = await connect(settings=settings)
    run = await client.start("talker", "talk")
    seen: list[list[Event]] = [[] for _ in range(20)]
    async with asyncio.TaskGroup() as group:
        for events in seen:
            group.create_task(_watch(run, events))

        async def half_way() -> bool:
            return all(len(_read(events)) > 4_000 for events in seen)

        await until(half_way)
        workers.kill()
        workers.start()
    for events in seen:
        assert _read(events) == ANSWER
        attempts = [event.attempt for event in events if isinstance(event, TextDelta)]
        assert sorted(set(attempts)) == [1, 2]
        assert attempts == sorted(attempts), "nothing of the first attempt after the second began"
        numbers = [
            event.seq for event in events if isinstance(event, TextDelta) and event.seq and event.attempt == 2
        ]
        assert numbers == sorted(set(numbers))
        assert sum(isinstance(event, TextRestarted) for event in events) == 1
    described = await run.describe()
    info = described.raw_description.workflow_execution_info
    assert info.history_size_bytes + info.external_payload_size_bytes < 2 * len(ANSWER) + 10_000


async def test_killed_call_asks_its_hooks_once(workers: Crew, settings: Settings) -> None:
    """A verdict outlives the worker that was killed in the middle of the call."""
    client = await connect(settings=settings)
    run = await client.start("guarded", "go")

    async def is_at_work() -> bool:
        return bool(workers.happened("charge_slowly"))

    await until(is_at_work)
    await asyncio.sleep(1)  # the heartbeat with the verdict is on its way
    workers.kill()
    workers.start()
    assert (await run.result()).output == "had been done already"
    assert len(workers.happened("charge_slowly")) == 2
    assert len(workers.happened("hook")) == 1
