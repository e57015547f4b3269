"""What Strands and its Temporal plugin do wrong, as guarantees; "B1-5" is a number of our list of defects.

Elsewhere, each with a comment of that number: B1-5 to B1-8, B2-4, B2-9, B2-13 (swarms) in
`test_swarm_runs`; B1-9, B1-10, B1-11, B2-5 (graphs) in `test_graph_runs`; B2-6 in `test_graph_code`;
B1-17 in `tests/process/test_team_crashes`; limits of a tree (B2-21) in `test_shared_budgets`.
"""

import asyncio
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import pytest

from perdure import Agent, Limits, RunFailed, tool
from perdure.errors import ErrorKind
from perdure.graph import Edge, Graph, Node, NodeInput
from perdure.limits import GraphLimits, SwarmLimits
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.swarm import Swarm
from perdure.testing import calls, fails, says
from perdure.wire.results import Approval, RunResult
from perdure.workers.dev.server import DevServer
from tests.conftest import HANGS, Gate, Serve, until, until_status
from tests.serving import running

from .test_swarm_runs import Answer, Cast, ServeTeam, agent, keys, reached, sum_of, to

Kind = Literal["swarm", "graph", "tool"]
How = Literal["cancel", "deadline"]
KINDS: list[Kind] = ["swarm", "graph", "tool"]


@pytest.fixture(params=["warm", pytest.param("cold", marks=pytest.mark.cold)])
def serve(serve: Serve, request: pytest.FixtureRequest) -> ServeTeam:
    """Cold: each workflow task replays the whole history, so what is not deterministic fails."""
    cold: dict[str, Any] = {} if request.param == "warm" else {"worker": {"max_cached_workflows": 0}}
    return partial(serve, **cold)


def around(kind: Kind, worker: Agent, **limits: Any) -> Any:
    """Something called "root" that runs the worker: a swarm, a graph, or an agent that calls it."""
    match kind:
        case "swarm":
            return Swarm(name="root", agents=[worker, agent("other")], limits=SwarmLimits(**limits))
        case "graph":
            return Graph(name="root", nodes={"worker": worker}, entry="worker", limits=GraphLimits(**limits))
        case "tool":
            return Agent(
                name="root", model="scripted:root", tools=[worker.as_tool()], limits=Limits(**limits)
            )


def below(kind: Kind, run: Run) -> str:
    """Id of the worker's run."""
    return f"{run.id}/~worker-1-1" if kind == "tool" else f"{run.id}/~worker-1"


def boss(request: ModelRequest) -> Answer:
    """The part of the agent that calls the worker."""
    return calls("worker", input="do it") if request.step == 1 else says(request.messages[-1].text)


# -- ends


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("cancel", "first model call"),
        ("cancel", "later model call"),
        ("cancel", "tool"),
        ("deadline", "later model call"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
async def test_tree_ends_at_once_everywhere(serve: ServeTeam, kind: Kind, how: How, where: str) -> None:
    """A tree ends at once wherever it is, and no call is made after its end."""
    # B2-10: a cancel is stuck in a later call, and hangs during a tool. B2-11: so does a timeout.
    # B1-13: after a timeout four more model calls were made, and the object stayed locked.
    gate = Gate()

    @tool
    async def work() -> str:
        """Work."""
        if where == "tool":
            await gate.wait()
        return "worked"

    async def part(request: ModelRequest) -> Answer:
        if where == ("first model call" if request.step == 1 else "later model call"):
            await gate.wait()
        return says("Let me see.") + calls("work")

    cast = Cast({"worker": part, "root": boss})
    limits = {"timeout": timedelta(seconds=1.2)} if how == "deadline" else {}
    async with serve(around(kind, agent("worker", tools=[work]), **limits), models=cast.models) as client:
        run = await client.start("root", "go")
        await reached(gate)
        asked = len(cast.asked)
        if how == "cancel":
            await run.cancel()
        async with asyncio.timeout(HANGS):
            result = await run.result()
            await gate.left.wait()
        child = await client.get(below(kind, run)).result()
        assert not await run.is_stuck()
        assert len(cast.asked) == asked, "nobody was asked anything after it"
        again = await client.start("root", "go")  # nothing is locked
        await until(partial(_asked_more, cast, asked))
        await again.cancel()
        await again.result()
    assert result.stop_reason == ("cancelled" if how == "cancel" else "deadline")
    assert child.stop_reason in ({"cancelled"} if how == "cancel" else {"deadline", "stopped"})
    if where != "first model call":
        assert child.output == "Let me see."
        assert result.usage.total_tokens >= child.usage.total_tokens > 0


async def _asked_more(cast: Cast, than: int) -> bool:
    return len(cast.asked) > than


async def test_abandoned_wait_changes_nothing(serve: ServeTeam) -> None:
    """A caller that stops waiting for a run does not change it."""
    # B1-13: asyncio.wait_for round an agent leaves it running, and locked.
    gate = Gate()

    async def part(request: ModelRequest) -> Answer:
        await gate.wait()
        return says("done")

    cast = Cast({"worker": part})
    async with serve(around("swarm", agent("worker")), models=cast.models) as client:
        run = await client.start("root", "go")
        await reached(gate)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run.result(), 0.1)
        gate.opened.set()
        assert (await client.get(run.id).result()).output == "done"
    assert len(cast.asked) == 1


# -- failures


@pytest.mark.parametrize("kind", ["swarm", "graph"])
async def test_swarms_and_graphs_end_alike(serve: ServeTeam, kind: Kind) -> None:
    """Swarms and graphs fail alike and end alike."""

    # B1-11: a swarm never raises; a graph raises on some failures and returns on others.
    @tool
    async def work() -> str:
        """Work."""
        return "worked"

    def part(request: ModelRequest) -> Answer:
        if "limit" in request.messages[0].text:
            return says("last word") if request.tool_choice == "none" else calls("work")
        return says("half of it") + calls("work") if request.step == 1 else fails("bad_request", "no")

    worker = agent("worker", tools=[work], limits=Limits(steps=None, tool_calls=2))
    async with serve(around(kind, worker), models=Cast({"worker": part}).models) as client:
        with pytest.raises(RunFailed) as failed:
            await client.run("root", "fail")
        limited = await client.run("root", "limit")
    assert failed.value.kind == "bad_request"
    result = failed.value.result
    assert result is not None
    assert keys(result) == [("worker-1", "failed", "error")]
    assert (result.stop_reason, result.nodes[0].output, result.tool_calls) == ("error", "half of it", 1)
    assert keys(limited) == [("worker-1", "done", "max_tool_calls")]
    assert (limited.error, limited.output, limited.tool_calls) == (None, "last word", 2)


@pytest.mark.parametrize("at_step", [1, 2])
@pytest.mark.parametrize("kind", ["graph", "tool"])
async def test_any_failure_is_typed_error(serve: ServeTeam, kind: Kind, at_step: int) -> None:
    """A failure in any step is a typed error and never a stuck run."""

    # B2-9: from the second cycle on the workflow task fails, and is retried for ever.
    @tool
    async def work() -> str:
        """Work."""
        return "worked"

    def part(request: ModelRequest) -> Answer:
        return fails("bad_request", "no such thing") if request.step == at_step else calls("work")

    cast = Cast({"worker": part, "root": boss})
    async with serve(around(kind, agent("worker", tools=[work])), models=cast.models) as client:
        run = await client.start("root", "go")
        async with asyncio.timeout(HANGS):
            if kind == "graph":
                with pytest.raises(RunFailed, match="no such thing") as failed:
                    await run.result()
                assert failed.value.kind == "bad_request"
            else:
                assert "worker failed: bad_request: no such thing" in str((await run.result()).output)
        assert not await run.is_stuck()


@pytest.mark.parametrize("error", ["authentication", "not_found", "bad_request", "payment"])
async def test_permanent_failure_is_tried_once(serve: ServeTeam, error: ErrorKind) -> None:
    # B2-13: default retries are unlimited; a bad key and an unknown model are retried for ever.
    cast = Cast({"worker": fails(error, "no")})
    async with serve(around("graph", agent("worker", on_failure="fail")), models=cast.models) as client:
        run = await client.start("root", "go")
        async with asyncio.timeout(HANGS):
            with pytest.raises(RunFailed) as failed:
                await run.result()
    assert failed.value.kind == error
    assert len(cast.asked) == 1


async def test_repairable_failure_parks_below_root(serve: ServeTeam) -> None:
    """A failure that a person can repair parks the run below the root."""
    # B2-13, and rule 1 of the design: a run ends, or waits where a person finds it.
    tries = 0

    def part(request: ModelRequest) -> Answer:
        nonlocal tries
        tries += 1
        return fails("authentication", "no key") if tries == 1 else says("done")

    cast = Cast({"worker": part})
    async with serve(around("graph", agent("worker")), models=cast.models) as client:
        run = await client.start("root", "go")

        async def found() -> bool:
            return f"{run.id}/~worker-1" in [
                info.id async for info in client.list(status="parked", roots=False)
            ]

        await until(found)
        await client.get(f"{run.id}/~worker-1").resume()
        assert (await run.result()).output == "done"


# -- agents as tools


async def test_waiting_agent_writes_no_history(serve: ServeTeam) -> None:
    """An agent that waits for another writes no history."""
    # B2-7: an agent as a tool is polled each 50 ms, about 100 events a second.
    gate = Gate()

    async def part(request: ModelRequest) -> Answer:
        await gate.wait()
        return says("done")

    cast = Cast({"worker": part, "root": boss})
    async with serve(around("tool", agent("worker")), models=cast.models) as client:
        run = await client.start("root", "go")
        await reached(gate)
        loop = asyncio.get_running_loop()
        began, before = loop.time(), (await run.describe()).history_length

        async def waited_two_seconds() -> bool:
            return loop.time() - began > 2

        await until(waited_two_seconds)
        assert (await run.describe()).history_length == before
        gate.opened.set()
        assert (await run.result()).output == "done"
        history = await run.handle.fetch_history()
    kinds = Counter(event.WhichOneof("attributes") for event in history.events)
    assert kinds["timer_started_event_attributes"] == 0
    assert len(history.events) < 40, kinds


@pytest.mark.parametrize("kind", KINDS)
async def test_root_resolves_approval_below(serve: ServeTeam, kind: Kind) -> None:
    """An approval below is seen and resolved at the root, and the answer arrives."""
    # B2-7: approvals of children are broken.
    paid: list[int] = []

    @tool(effect="write", approval=True)
    async def pay(cents: int) -> str:
        """Pay."""
        paid.append(cents)
        return f"paid {cents}"

    def part(request: ModelRequest) -> Answer:
        return calls("pay", cents=5) if request.step == 1 else says(request.messages[-1].text)

    cast = Cast({"worker": part, "root": boss})
    async with serve(around(kind, agent("worker", tools=[pay])), models=cast.models) as client:
        run = await client.start("root", "go")
        await until_status(client, run.id, "waiting_approval")
        [waiting] = (await run.status()).waiting
        assert isinstance(waiting, Approval)
        assert waiting.run_id == below(kind, run)
        assert waiting.path == [below(kind, run).rpartition("/~")[2]]
        await run.resolve_approval(
            waiting.call_id, allow=True, by="lee", digest=waiting.digest, arguments={"cents": 4}
        )
        result = await run.result()
        assert (await run.status()).waiting == []
    assert paid == [4]
    assert "paid 4" in str(result.output)


# -- continue-as-new


async def _histories(client: Client, run: Run) -> int:
    listed = client.temporal.list_workflows(f'WorkflowId = "{run.id}"')
    return len([execution async for execution in listed])


async def test_swarm_keeps_all_over_continue_as_new(impatient: DevServer, settings: Settings) -> None:
    """A swarm that continues as new in mid-run keeps everything."""

    # B2-20: by hand, between turns only; state, interrupts and counters are lost.
    def part(request: ModelRequest) -> Answer:
        if request.tool_choice == "none":
            return says("last word")
        me = request.config.model
        return to("b" if me == "a" else "a", f"from {me}", **{f"n{len(cast.asked)}": len(cast.asked)})

    cast = Cast({"a": part, "b": part})
    swarm = Swarm(
        name="root",
        agents=[agent("a"), agent("b")],
        limits=SwarmLimits(max_handoffs=25, max_iterations=100),
    )
    mine = settings.model_copy(update={"address": impatient.address})
    async with running(
        [swarm],
        models=cast.models,
        address=impatient.address,
        settings=mine,
    ) as client:
        run = await client.start("root", "the task", user="ann")
        async with asyncio.timeout(HANGS):
            result = await run.result()
        assert await _visible(client, run) > 2, "it did continue as new"
    assert (result.stop_reason, result.output) == ("max_handoffs", "last word")
    names = ["ab"[n % 2] for n in range(26)]
    assert [key for key, _, _ in keys(result)] == [f"{name}-{n // 2 + 1}" for n, name in enumerate(names)]
    assert result.usage == sum_of(result)
    assert result.steps == len(cast.asked) == 27
    assert sum(len(told) for told in result.shared_context.values()) == 25
    assert {request.user for request in cast.asked} == {"ann"}
    last = [message.text for message in cast.asked[-1].messages]
    assert sum("Handoff Message from a: from a" in text for text in last) == 13, "b remembers all its visits"
    assert "the task" in last[0]


async def _visible(client: Client, run: Run) -> int:
    """How many histories the run has; the list of runs is a moment late."""
    seen = 0

    async def several() -> bool:
        nonlocal seen
        seen = await _histories(client, run)
        return seen > 2

    await until(several)
    return seen


async def test_graph_keeps_all_over_continue_as_new(impatient: DevServer, settings: Settings) -> None:
    """A graph that continues as new in mid-run keeps everything."""
    # B2-20, B2-5.
    cast = Cast({"a": lambda request: says(f"draft {len(request.messages)}"), "b": says("not yet")})
    visits: list[tuple[str, int]] = []

    async def check(given: NodeInput) -> str:
        visits.append((given.node, given.visit))
        return "checked"

    graph = Graph(
        name="root",
        nodes={"a": agent("a"), "b": agent("b"), "c": check, "d": Node(check, join=2)},
        edges=[
            *(("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")),
            Edge("d", "a", lambda state: state.visits["a"] < 8),
        ],
        entry="a",
        limits=GraphLimits(max_node_executions=100),
    )
    mine = settings.model_copy(update={"address": impatient.address})
    async with running(
        [graph],
        models=cast.models,
        address=impatient.address,
        settings=mine,
    ) as client:
        run = await client.start("root", "the task")
        async with asyncio.timeout(HANGS):
            result = await run.result()
        assert await _visible(client, run) > 2, "it did continue as new"
    assert result.stop_reason == "end_turn"
    assert Counter(node.key for node in result.nodes) == Counter(
        f"{n}-{v}" for n in "abcd" for v in range(1, 9)
    )
    assert result.usage == sum_of(result)
    assert [len(r.messages) for r in cast.asked if r.config.model == "a"] == [2 * n + 1 for n in range(8)]
    assert sorted(visits) == [(node, visit) for node in "cd" for visit in range(1, 9)]


async def test_approval_passes_run_continuing_as_new(impatient: DevServer, settings: Settings) -> None:
    """The root sees an approval below while a run between waits to continue as new."""
    # B2-20, B2-7: the run between must start nothing new just then, but must still speak.
    gate = Gate()

    @tool(effect="write", approval=True)
    async def pay(cents: int) -> str:
        """Pay."""
        return f"paid {cents}"

    async def part(request: ModelRequest) -> Answer:
        if request.step == 1:
            await gate.wait()
            return calls("pay", cents=5)
        return says(request.messages[-1].text)

    async def tick(given: NodeInput) -> int:
        return given.visit

    inner = Graph(
        name="inner",
        nodes={"slow": agent("slow", tools=[pay]), "tick": tick, "tock": tick},
        edges=[("tick", "tock"), Edge("tock", "tick", lambda state: state.visits["tick"] < 30)],
        entry=["slow", "tick"],
        limits=GraphLimits(max_node_executions=200),
    )
    outer = Graph(name="root", nodes={"inner": inner}, entry="inner")
    mine = settings.model_copy(update={"address": impatient.address})
    cast = Cast({"slow": part})
    async with running(
        [outer],
        models=cast.models,
        address=impatient.address,
        settings=mine,
    ) as client:
        run = await client.start("root", "go")
        await reached(gate)
        between = client.get(f"{run.id}/~inner-1")

        async def is_long() -> bool:
            return (await between.describe()).history_length > 60

        await until(is_long)
        gate.opened.set()
        await until_status(client, f"{run.id}/~inner-1/~slow-1", "waiting_approval")
        await until_status(client, run.id, "waiting_approval")
        await run.resolve_approval(await run.find_approval(), allow=True)
        async with asyncio.timeout(HANGS):
            result: RunResult = await run.result()
    assert result.output == "paid 5"
