"""Watching a tree from its root: whole, in order, and acted upon there."""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from perdure import Agent, InvalidRequest, ask_person
from perdure.graph import Graph, NodeInput
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.starter.cli import app as cli
from perdure.starter.client.run import Run
from perdure.swarm import Swarm
from perdure.testing import ScriptedModel, calls, says
from perdure.tools import as_tool
from perdure.wire.events import (
    ApprovalRequested,
    ChildEvent,
    Event,
    Finished,
    MessageFinished,
    NodeFinished,
    NodeStarted,
    PlanChanged,
    QuestionAsked,
    TextAssembler,
    TextDelta,
    TextRestarted,
    ToolStarted,
    TreeEvent,
)
from perdure.wire.results import Approval, RunStatus
from tests.conftest import until

from .test_people_in_trees import pay
from .test_swarm_runs import Cast, ServeTeam, agent, team, to

LONG = "".join(f"word{n} " for n in range(200))


async def collect(run: Run) -> list[TreeEvent]:
    return [event async for event in run.events(tree=True)]


def by_run(run: Run, events: Sequence[TreeEvent]) -> dict[str, list[Event]]:
    """Each run's own events."""
    found = defaultdict[str, list[Event]](list)
    for event in events:
        if isinstance(event, ChildEvent):
            found[event.run_id].append(event.event)
        else:
            found[run.id].append(event)
    return found


async def assert_whole(run: Run, events: Sequence[TreeEvent]) -> dict[str, list[Event]]:
    """Every run of the tree was told to its end, its text without gap, within its parent's word of it."""
    told, reader = by_run(run, events), TextAssembler()
    for event in events:
        reader.feed(event)
    for run_id, own in told.items():
        assert isinstance(own[-1], Finished), run_id
        assert sum(isinstance(event, Finished) for event in own) == 1
        said: dict[int, str] = {}
        for event in own:
            match event:
                case TextDelta():
                    assert event.offset == len(said.get(event.step, ""))
                    said[event.step] = said.get(event.step, "") + event.text
                case TextRestarted():
                    said[event.step] = ""
                case _:
                    pass
        messages = {e.step: e.text for e in own if isinstance(e, MessageFinished)}
        kept = [m for m in await run.get(run_id).transcript() if m.meta is not None]
        assert {m.meta.step: m.text for m in kept if m.meta} == messages
        for step, text in messages.items():
            assert said.get(step, "") == text
            assert reader.text(step, "" if run_id == run.id else run_id) == text
    assert_nested(run, events)
    return told


def assert_nested(run: Run, events: Sequence[TreeEvent]) -> None:
    """What a run below says comes after its parent told its start, and before it told its end."""
    alive: dict[str, str] = {}
    keys: set[tuple[str, str]] = set()
    for event in events:
        owner = event.run_id if isinstance(event, ChildEvent) else run.id
        if isinstance(event, ChildEvent):
            assert owner in alive
            assert owner == "/~".join([run.id, *event.path])
        match event.event if isinstance(event, ChildEvent) else event:
            case NodeStarted() as started:
                assert (owner, started.key) not in keys
                keys.add((owner, started.key))
                alive[started.run_id or f"{owner}/~{started.key}"] = started.key
            case NodeFinished() as finished:
                assert alive.pop(finished.run_id or f"{owner}/~{finished.key}") == finished.key
                assert finished.state != "running"
            case _:
                pass
    assert alive == {}


def lives(events: Sequence[Event]) -> list[str]:
    """Starts and ends of runs below, in order."""
    return [
        f"+{event.key}" if isinstance(event, NodeStarted) else f"-{event.key} {event.stop_reason}"
        for event in events
        if isinstance(event, NodeStarted | NodeFinished)
    ]


async def test_a_swarms_runs_come_in_turn(serve: ServeTeam) -> None:
    cast = Cast({"finder": says(LONG) + to("writer"), "writer": says(f"written {LONG}")})
    async with serve(team("finder", "writer"), models=cast.models) as client:
        run = await client.start("team", "go")
        for watched in (await collect(run), await collect(run)):
            told = await assert_whole(run, watched)
            assert set(told) == {run.id, f"{run.id}/~finder-1", f"{run.id}/~writer-1"}
            assert lives(told[run.id]) == [
                "+finder-1",
                "-finder-1 handoff",
                "+writer-1",
                "-writer-1 end_turn",
            ]


async def test_a_graphs_functions_and_agents_are_reported(serve: ServeTeam) -> None:
    async def publish(given: NodeInput) -> str:
        return f"published {given.node}"

    nodes: dict[str, Any] = {
        "draft": agent("author"),
        "law": agent("lawyer"),
        "style": agent("stylist"),
        "out": publish,
    }
    edges = [("draft", "law"), ("draft", "style"), ("law", "out"), ("style", "out")]
    review = Graph(name="review", nodes=nodes, edges=edges, entry="draft")
    cast = Cast({name: says(f"{name} {LONG}") for name in ("author", "lawyer", "stylist")})
    async with serve(review, models=cast.models) as client:
        run = await client.start("review", "go")
        told = await assert_whole(run, await collect(run))
        assert len(told) == 4
        own = lives(told[run.id])
        assert own[:2] == ["+draft-1", "-draft-1 end_turn"]
        assert set(own[2:4]) == {"+law-1", "+style-1"}
        assert own[-2:] == ["+out-1", "-out-1 end_turn"]


def _deep(jobs: int, tools: Sequence[Any] = ()) -> tuple[Agent, ScriptedModel]:
    """A boss, as many middle ones as jobs, a swarm of one below each."""
    leaf = Agent(name="leaf", model="scripted:leaf", description="Does it.", tools=tools)
    crew = Swarm(name="crew", agents=[leaf], description="Do it.")
    middle = Agent(name="middle", model="scripted:middle", description="Has it done.", tools=[as_tool(crew)])
    boss = Agent(name="boss", model="scripted:boss", tools=[middle.as_tool()], planning=True)

    def answer(request: ModelRequest) -> Any:
        results = request.messages[-1].tool_results
        match request.config.model:
            case "boss" if request.step == 1:
                return calls("update_plan", items=[{"text": "ask", "state": "in_progress"}])
            case "boss" if request.step == 2:
                return [says(f"I ask. {LONG}"), *(calls("middle", input=f"job {n}") for n in range(jobs))]
            case "middle" if request.step == 1:
                return calls("crew", input=request.messages[0].text)
            case "leaf" if request.step == 1 and tools:
                return says("Hm. ") + calls(tools[0].name, **_arguments(tools[0].name))
            case _:
                return says("; ".join(r.text for r in results) or f"done {LONG}")

    return boss, ScriptedModel(answer)


def _arguments(name: str) -> dict[str, Any]:
    return {"cents": 1} if name == "pay" else {"question": "Which?"}


async def test_a_deep_tree_is_reported_live_and_after(serve: ServeTeam) -> None:
    """A supervisor with agents, swarms and graphs below it: while it runs, and once it has ended."""
    boss, model = _deep(jobs=3)
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go")
        for watched in (await collect(run), await collect(run)):
            told = await assert_whole(run, watched)
            assert len(told) == 1 + 3 * 3
            own = told[run.id]
            assert {line.split()[0] for line in lives(own)} == {
                f"{sign}middle-2-{n}" for sign in "+-" for n in (1, 2, 3)
            }
            kinds = {e.node_kind for one in told.values() for e in one if isinstance(e, NodeStarted)}
            assert kinds == {"agent", "swarm"}
            started = [e.call_id for e in own if isinstance(e, ToolStarted) and e.tool == "middle"]
            assert started == ["call-2-1", "call-2-2", "call-2-3"]
        plans = [e for e in own if isinstance(e, PlanChanged)]
        assert [item.text for item in plans[-1].items] == ["ask"]


async def test_a_refused_call_starts_no_run(serve: ServeTeam) -> None:
    leaf = Agent(name="leaf", model="scripted:leaf", description="Does it.")
    boss = Agent(name="boss", model="scripted:boss", tools=[leaf.as_tool(approval=True)])
    cast = Cast({"boss": [calls("leaf", input="x"), says("well")], "leaf": says("done")})
    async with serve(boss, models=cast.models) as client:
        run = await client.start("boss", "go")
        async for event in run.events(tree=True):
            if isinstance(event, ApprovalRequested):
                await run.resolve_approval(event.approval.call_id, allow=False)
            assert not isinstance(event, NodeStarted)
        again = await collect(run)
        assert [e for e in again if isinstance(e, NodeStarted)] == []


async def test_a_rerun_shows_nothing_of_the_earlier_run(serve: ServeTeam) -> None:
    """Child ids repeat when an id is used again; the earlier children belong to the earlier run."""
    leaf = Agent(name="leaf", model="scripted:leaf", description="Does it.")
    boss = Agent(name="boss", model="scripted:boss", tools=[leaf.as_tool(approval=True)])
    cast = Cast({"boss": [calls("leaf", input="x"), says("well")], "leaf": says("done")})
    async with serve(boss, models=cast.models) as client:
        for allow, many in ((True, 1), (False, 0)):
            run = await client.start("boss", "go", id="again", rerun=True)
            events: list[TreeEvent] = []
            async for event in run.events(tree=True):
                events.append(event)
                if isinstance(event, ApprovalRequested):
                    await run.resolve_approval(event.approval.call_id, allow=allow)
            await assert_whole(run, events)
            for watched in (events, await collect(run)):
                assert len([e for e in watched if isinstance(e, NodeStarted)]) == many


async def test_the_root_resolves_a_grandchilds_approval(serve: ServeTeam) -> None:
    """The root reports it once, and passes the person's decision down."""
    boss, model = _deep(jobs=1, tools=[pay])
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go")
        events: list[TreeEvent] = []
        async for event in run.events(tree=True):
            events.append(event)
            if isinstance(event, ApprovalRequested):
                want = event.approval
                assert want.path == ["middle-2-1", "crew-1-1", "leaf-1"]
                assert want.run_id == "/~".join([run.id, *want.path])
                await run.resolve_approval(want.call_id, allow=True, digest=want.digest, run_id=want.run_id)
                assert (await run.resolve_approval(want, allow=True)).repeated
        asked = [e for e in events if isinstance(e, ApprovalRequested)]
        assert len(asked) == 1, "told by the root, and not again by those between"
        assert not any(isinstance(e, ChildEvent) and isinstance(e.event, ApprovalRequested) for e in events)
        await assert_whole(run, events)
        assert (await run.result()).output == "paid 1"


async def _waiting(run: Run, many: int) -> RunStatus:
    async def there() -> bool:
        return len((await run.status()).waiting) == many

    await until(there)
    return await run.status()


async def test_call_id_of_two_runs_needs_digest(serve: ServeTeam) -> None:
    boss, model = _deep(jobs=2, tools=[pay])
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go")
        status = await _waiting(run, 2)
        with pytest.raises(InvalidRequest, match="say what you saw there"):
            await run.resolve_approval("call-1-1", allow=True)
        for want in status.waiting:
            assert isinstance(want, Approval)
            await run.resolve_approval(want.call_id, allow=True, digest=want.digest)
        assert (await run.result()).output == "paid 1; paid 1"


Perdure = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def perdure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], settings: Settings
) -> Perdure:
    """`perdure WORDS` against the session's server: exit code, stdout, stderr."""

    async def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["perdure", *words, "--address", settings.address])
        capfd.readouterr()
        code = await asyncio.to_thread(cli.run)
        told = capfd.readouterr()
        # The worker is in this process too, and its SDK warns on stdout, in colour.
        ours = [line for line in told.out.splitlines(keepends=True) if "temporalio_sdk_core" not in line]
        return code, "".join(ours), told.err

    return call


async def test_commands_resolve_what_waits_below(serve: ServeTeam, perdure: Perdure) -> None:
    boss, model = _deep(jobs=2, tools=[pay])
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go", id="commanded")
        await _waiting(run, 2)
        code, out, _ = await perdure("show", run.id)
        assert code == 0
        assert "middle-2-1 / crew-1-1 / leaf-1: pay(cents=1)" in out
        assert f"perdure approve {run.id}/~middle-2-1/~crew-1-1/~leaf-1 call-1-1" in out
        assert "[~] ask" in out or "▸ ask" in out
        assert [line.split()[:2] for line in out.splitlines() if line.startswith("middle-2")] == [
            ["middle-2-1", "running"],
            ["middle-2-2", "running"],
        ]
        code, _, err = await perdure("approve", run.id)
        assert code == 2
        assert f"2 calls wait; name the call as CALL or RUN_ID/CALL; these wait: {run.id}/~middle-2-1/" in err
        first = "middle-2-1/crew-1-1/leaf-1/call-1-1"
        named = f"{run.id}/~middle-2-1/~crew-1-1/~leaf-1/call-1-1"
        code, out, _ = await perdure("approve", run.id, named, "--by", "lee", "--json")
        said = {"id": run.id, "call_id": "call-1-1", "allow": True, "by": "lee"}
        assert json.loads(out) == {**said, "run_id": f"{run.id}/~middle-2-1/~crew-1-1/~leaf-1"}
        code, out, err = await perdure("approve", run.id, first)
        # The root may not have heard yet that the call below was decided.
        assert out.startswith("already approved by lee at ") or (code, err[:6]) == (2, "error:")
        code, out, err = await perdure(
            "deny", f"{run.id}/~middle-2-2/~crew-1-1/~leaf-1", "--reason", "too much"
        )
        assert (code, out.strip(), err) == (0, "denied: call-1-1 pay(cents=1)", "")
        result = await run.result()
        assert re.fullmatch(r"paid 1; This call was refused by .*: too much", str(result.output))
        code, out, err = await perdure("watch", run.id)
        assert (code, out) == (0, f"{result.output}\n")
        assert "middle-2-1/crew-1-1/leaf-1 | → pay(cents=1)" in err
        code, out, _ = await perdure("show", run.id)
        ended = [line.split()[:3] for line in out.splitlines() if line.startswith("middle-2")]
        assert ended == [["middle-2-1", "done", "end_turn"], ["middle-2-2", "done", "end_turn"]]


async def test_the_root_answers_a_question_below(serve: ServeTeam) -> None:
    boss, model = _deep(jobs=2, tools=[ask_person])
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go")
        events: list[TreeEvent] = []
        async for event in run.events(tree=True):
            events.append(event)
            if isinstance(event, QuestionAsked):
                path = event.question.path
                await run.send(f"answer for {path[0]}", run_id=event.question.run_id)
        await assert_whole(run, events)
        assert (await run.result()).output == "answer for middle-2-1; answer for middle-2-2"


async def test_a_run_has_spec_nodes_and_children(serve: ServeTeam) -> None:
    boss, model = _deep(jobs=1, tools=[pay])
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go")
        status = await _waiting(run, 1)
        assert [node.key for node in await run.nodes()] == ["middle-2-1"]
        [child] = await run.children()
        assert child.id == f"{run.id}/~middle-2-1"
        assert (await child.status()).agent == "middle"
        resolved = await run.spec()
        assert resolved.spec.name == "boss"
        assert {one.name for one in resolved.members} == {"middle", "crew", "leaf"}
        [approval] = status.waiting
        assert isinstance(approval, Approval)
        await run.resolve_approval(approval, allow=True)
        await run.result()


async def test_a_cancelled_tree_is_reported_to_its_end(serve: ServeTeam) -> None:
    boss, model = _deep(jobs=2, tools=[pay])
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go")
        events: list[TreeEvent] = []
        async for event in run.events(tree=True):
            events.append(event)
            if isinstance(event, ApprovalRequested):
                await run.cancel()
        assert_nested(run, events)
        assert isinstance(events[-1], Finished)
        assert events[-1].status == "cancelled"
        ends = [e for e in events if isinstance(e, NodeFinished)]
        assert [e.state for e in ends] == ["cancelled", "cancelled"]


async def test_child_runs_are_listed_on_request(serve: ServeTeam) -> None:
    boss, model = _deep(jobs=2)
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go", id="listed", user="lister")
        await run.result()

        async def listed(*, roots: bool) -> list[str]:
            found = client.list(user="lister", roots=roots)
            return [info.id async for info in found]

        async def all_there() -> bool:
            return len(await listed(roots=False)) == 7

        await until(all_there)
        assert await listed(roots=True) == ["listed"]
