"""Workers of one task queue that serve different agents: what one does not serve is tried on another."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from perdure import Agent, Graph, Hook, Limits, Swarm, tool
from perdure.graph import NodeInput
from perdure.members import Member
from perdure.model import ModelRequest
from perdure.retries import ToolRetry
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import ScriptedModel, calls, says
from perdure.wire.events import StatusChanged
from perdure.workflows import elsewhere
from tests.conftest import HANGS, Serve, until_queried

RUNS = 6
DONE: Counter[str] = Counter()
WORDS = "no worker serves 'seller' on queue '{queue}'; these agents are served there: packer"


@tool(effect="write", retry=ToolRetry(attempts=1))
async def pay(run: str) -> str:
    """Pay once: no attempt may be repeated that may have paid."""
    DONE[run] += 1
    return "paid"


class Guard(Hook):
    """Sees each point of a run."""

    async def on_start(self, run: Any) -> None:
        DONE[f"start {run.run_id}"] += 1

    async def before_model(self, call: Any) -> None:
        DONE[f"model {call.run.run_id}"] += 1


def stamp(job: NodeInput) -> str:
    """Stamp a paper, as a node of a graph."""
    return f"stamped at attempt {job.attempt}"


def _script(request: ModelRequest) -> Any:
    task = request.messages[0].text
    if request.step == 1 and request.tools:
        name = request.tools[0].name
        return calls(name, run=task) if name == "pay" else says("Handed to nobody.")
    return says(f"Done: {task}")


CLERK = Agent(name="clerk", model="own:x", tools=[pay], hooks=[Guard()])
MEMBERS: list[Member] = [
    CLERK,
    Swarm(name="pair", agents=[Agent(name="first", model="own:x"), CLERK], entry="first"),
    Graph(
        name="office",
        nodes={"stamp": stamp, "clerk": CLERK},
        edges=[("stamp", "clerk")],
        entry="stamp",
    ),
]
PACKER = Agent(name="packer", model="scripted:x")
MODELS = {"scripted": ScriptedModel(lambda _: says("Done."))}
SELLER = Agent(name="seller", model="scripted:x")


@pytest.fixture
def packing(serve: Serve) -> Callable[[], Any]:
    """Serve another team's agent, on the queue of all workers of the test."""

    @asynccontextmanager
    async def start() -> AsyncGenerator[Client]:
        async with serve(PACKER, models=MODELS) as client:
            yield client

    return start


async def test_run_ends_beside_other_workers(packing: Any, serve: Serve) -> None:
    """Agents, tools with a single attempt, hooks, providers and functions are found, whichever worker is met first."""
    DONE.clear()
    async with (
        asyncio.timeout(HANGS),
        packing() as client,
        packing(),
        serve(*MEMBERS, models={"own": ScriptedModel(_script)}),
    ):
        names = [member.name for member in MEMBERS for _ in range(RUNS)]
        ids = [f"{name}-{number}" for number, name in enumerate(names)]
        results = await asyncio.gather(
            *(client.run(name, id_, id=id_) for name, id_ in zip(names, ids, strict=True))
        )
    assert {result.stop_reason for result in results} == {"end_turn"}
    for name, id_ in zip(names, ids, strict=True):
        if name == "clerk":
            assert (DONE[id_], DONE[f"start {id_}"], DONE[f"model {id_}"]) == (1, 1, 2)


async def _waits(run: Run) -> bool:
    return (await run.status()).failure is not None


async def test_unserved_run_says_so_and_begins(packing: Any, serve: Serve) -> None:
    """A run, and a session, wait in words for a worker that serves the agent, and begin when one appears."""
    async with asyncio.timeout(2 * HANGS), packing() as client:
        run = await client.start("seller", "Offer.")
        session = await client.session("talk", agent="seller")
        reply = asyncio.ensure_future(session.say("Hello."))
        seen = [event async for event in _until_unserved(run)]
        words = WORDS.format(queue=client.task_queue)
        for waiting in (run, session.run):
            await until_queried(partial(_waits, waiting))
            status = await waiting.status()
            assert status.status == "thinking"
            assert status.doing == f"starting: {words}; it tries again"
            assert (status.failure.kind, status.failure.message) == ("UnknownAgent", words)
        assert seen[-1].failure == (await run.status()).failure
        inspection = await run.inspect()
        assert (inspection.problem, inspection.status) == (None, await run.status())
        infos = [info async for info in client.list(query=f'TaskQueue = "{client.task_queue}"')]
        assert {info.cannot_begin for info in await client.explain_unbegun(infos)} == {words}
        async with serve(SELLER, models=MODELS):
            assert (await run.result()).output == "Done."
            assert (await reply).text == "Done."
            events = [
                event async for event in client.temporal.get_workflow_handle(run.id).fetch_history_events()
            ]
    assert len(events) < 30, "attempts are no events"


async def _until_unserved(run: Run) -> AsyncGenerator[StatusChanged]:
    async for event in run.events():
        if isinstance(event, StatusChanged):
            yield event
            if event.failure is not None:
                return


async def test_unserved_run_ends_at_once(packing: Any) -> None:
    """A stop, a cancel and a deadline end a run that waits for a worker."""
    async with asyncio.timeout(HANGS), packing() as client:
        limits = Limits(timeout=timedelta(seconds=9))
        stopped, cancelled, late = [
            await client.start("seller", "Offer.", limits=each) for each in (None, None, limits)
        ]
        await asyncio.gather(*(until_queried(partial(_waits, run)) for run in (stopped, cancelled, late)))
        await stopped.stop()
        await cancelled.cancel()
        ends = [(await run.result()).stop_reason for run in (stopped, cancelled, late)]
    assert ends == ["stopped", "cancelled", "deadline"]


async def test_removed_tool_is_told_to_model(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that no worker has any more is an error that the model reads, after a while."""
    monkeypatch.setattr(elsewhere, "_ATTEMPTS", 1)

    @tool
    async def gone() -> str:
        """Be gone."""
        raise AssertionError("it is on no worker")

    asked = asyncio.Event()
    go_on = asyncio.Event()

    async def script(request: ModelRequest) -> Any:
        if request.step == 1:
            asked.set()
            await go_on.wait()
            return calls("gone")
        [result] = request.messages[-1].tool_results
        return says(result.text)

    model = ScriptedModel(script)
    async with asyncio.timeout(2 * HANGS):
        async with serve(
            Agent(name="a", model="scripted:x", tools=[gone]), models={"scripted": model}
        ) as client:
            run = await client.start("a", "go")
            await asked.wait()
        go_on.set()
        async with serve(Agent(name="a", model="scripted:x"), models={"scripted": model}) as client:
            assert "'gone' of agent 'a' is not on this worker" in (await client.get(run.id).result()).output
