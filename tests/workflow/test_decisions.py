"""Decisions of people: there is room for them in any run, and each is about exactly what was seen."""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError

from perdure import Agent, Edge, Graph, InvalidRequest, RemoteTool, Swarm, tool
from perdure.errors import NotReachable, RunNotFound, ServerBusy
from perdure.members import Member
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import ScriptedModel, calls, says
from perdure.wire.results import Approval
from perdure.workers.dev.server import DevServer
from perdure.workflows import renewal
from tests.conftest import Serve, own_server, until_queried
from tests.serving import running

MOST_UPDATES = 30
MESSAGES = 40


@pytest.fixture(scope="module")
def narrow() -> Iterator[DevServer]:
    """A server that allows thirty updates a run, not two thousand."""
    yield from own_server({"history.maxTotalUpdates": str(MOST_UPDATES)})


@tool(effect="write", approval=True)
async def pay(cents: int) -> str:
    """Pay."""
    return f"paid {cents}"


away = RemoteTool(
    name="away",
    description="Asks another house.",
    input_schema={"type": "object", "properties": {}},
    task_queue=f"nobody-{uuid.uuid4().hex[:8]}",
    effect="read",
)
asked_away = RemoteTool(
    name="asked_away",
    description="Asks another house, if a person allows it.",
    input_schema={"type": "object", "properties": {}},
    task_queue=f"nobody-{uuid.uuid4().hex[:8]}",
    effect="write",
    approval=True,
)


def _script(request: ModelRequest) -> Any:
    if request.config.model == "boss":
        return [calls("payee", input=str(n)) for n in range(BELOW)] if request.step == 1 else says("Done.")
    if request.messages[-1].role == "user" and not any(m.role == "tool" for m in request.messages):
        names = {tool.name for tool in request.tools}
        return [calls("pay", cents=5), *(calls(name) for name in ("away", "asked_away") if name in names)]
    return says("Done.")


def _clerk(name: str, *more: RemoteTool) -> Agent:
    return Agent(name=name, model="scripted:x", tools=[pay, *more])


BELOW = 6
"""Runs below a parent that run at once."""

_PAYEE = Agent(name="payee", model="scripted:x", description="Pays one bill.", tools=[pay])
AGENTS: list[Member] = [
    _clerk("clerk"),
    Agent(name="boss", model="scripted:boss", tools=[_PAYEE.as_tool()]),
    Graph(
        name="wide",
        nodes={f"n{number}": _PAYEE for number in range(BELOW)},
        entry=[f"n{number}" for number in range(BELOW)],
    ),
    _clerk("remote", away),
    _clerk("asked", asked_away),
    Swarm(name="swarm", agents=[_clerk("one"), _clerk("two")]),
    Graph(
        name="graph",
        nodes={"pays": _clerk("payer"), "ends": _clerk("ender")},
        edges=[Edge("pays", "ends")],
        entry="pays",
    ),
]


@dataclass
class Flood:
    """Messages to a run: how many it took, and the words with which it refused the rest."""

    taken: int = 0
    refused: list[str] = field(default_factory=list[str])

    async def send(self, run: Run, count: int = MESSAGES) -> None:
        for number in range(count):
            await self.send_one(run, f"Note {number}")

    async def send_one(self, run: Run, text: str) -> None:
        for patience in reversed(range(3)):
            try:
                await run.send(text, id=text)
            except ServerBusy as error:
                return self.refused.append(str(error))
            except NotReachable:  # a machine with too much to do; under its id the message is taken once
                if not patience:
                    raise
            else:
                self.taken += 1
                return None
        return None


async def _approvals(run: Run, count: int = 1) -> list[Approval]:
    async def there() -> bool:
        try:
            return len((await run.status()).waiting) == count
        except RunNotFound:  # a session begins with its first message
            return False

    await until_queried(there)
    return [item for item in (await run.status()).waiting if isinstance(item, Approval)]


async def _run_that_waits(client: Client) -> None:
    """It continues as new while it waits, so that it takes every message."""
    run, flood = await client.start("clerk", "Pay."), Flood()
    [approval] = await _approvals(run)
    await flood.send(run)
    assert await _approvals(run) == [approval], "the same call waits under the same id and digest"
    await run.resolve_approval(approval, allow=True, by="lee")
    assert (await run.result()).stop_reason == "end_turn"
    assert (flood.taken, flood.refused) == (MESSAGES, [])


async def _paused_run(client: Client) -> None:
    run, flood = await client.start("clerk", "Pay."), Flood()
    [approval] = await _approvals(run)
    await run.pause()
    await flood.send(run)
    await run.resolve_approval(approval, allow=True, by="lee")
    await run.resume()
    assert (await run.result()).stop_reason == "end_turn"
    assert flood.refused == []


async def _session_in_a_turn(client: Client) -> None:
    """Senders that wait for replies, and senders that do not."""
    session, flood = await client.session(f"s-{uuid.uuid4().hex[:6]}", agent="clerk"), Flood()
    first = asyncio.create_task(session.say("Pay."))
    [approval] = await _approvals(session.run)
    later = [asyncio.create_task(session.say(f"m{n}")) for n in range(8)]
    await flood.send(session.run)
    assert await _approvals(session.run) == [approval]
    await session.resolve_approval(approval, allow=True)
    replies = await asyncio.gather(first, *later)
    assert {reply.stop_reason for reply in replies} == {"end_turn"}
    assert flood.refused == []


async def _session_that_is_extended(client: Client) -> None:
    """Extensions, and looks for the newest version, leave the room for decisions too."""
    session = await client.session(f"x-{uuid.uuid4().hex[:6]}", agent="remote")
    first = asyncio.create_task(session.say("Pay."))
    [approval] = await _approvals(session.run)
    refused: list[str] = []
    for number in range(MOST_UPDATES):
        for name, how in [("extend", {"id": f"e{number}", "limits": {"steps": 80}}), ("upgrade", {})]:
            try:
                await session.run.handle.execute_update(name, how)
            except WorkflowUpdateFailedError as error:
                refused.append(str(error.cause))
    reasons = ("a turn is under way", "takes no more messages until its pending calls have ended")
    assert [sum(reason in words for words in refused) > 0 for reason in reasons] == [True, True]
    await session.resolve_approval(approval, allow=True, by="lee")
    await session.close()
    assert (await first).stop_reason == "stopped"


async def _remote_call_that_waits_for_a_person(client: Client) -> None:
    run, flood = await client.start("asked", "Pay."), Flood()
    before = await _approvals(run, 2)
    await flood.send(run)
    assert await _approvals(run, 2) == before
    outcomes = await run.resolve_approvals(allow=False, by="lee", approvals=before)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert (await run.result()).stop_reason == "end_turn"
    assert flood.refused == []


async def _remote_call_under_way(client: Client) -> None:
    """A pending call cannot be carried over, so messages are refused before the room is used up."""
    run, flood = await client.start("remote", "Pay."), Flood()
    [approval] = await _approvals(run)
    await flood.send(run)
    await run.resolve_approval(approval, allow=True, by="lee")
    await run.stop()
    assert (await run.result()).stop_reason == "stopped"
    assert flood.taken < MOST_UPDATES
    assert "takes no more messages until its pending calls have ended" in flood.refused[0]


async def _team(client: Client, name: str) -> None:
    """Children belong to their parent's execution, so the team refuses messages and keeps room for decisions."""
    run, flood = await client.start(name, "Pay."), Flood()
    [approval] = await _approvals(run)
    await flood.send(run)
    assert flood.taken < MOST_UPDATES
    assert f"the run below takes it directly: {approval.run_id}" in flood.refused[0]
    direct = Flood()
    await direct.send(run.get(approval.run_id))
    assert direct.refused == [], "the run that waits continues as new by itself"
    assert await _approvals(run) == [approval]
    await run.resolve_approval(approval, allow=True, by="lee")
    if name == "graph":
        await run.resolve_approval((await _approvals(run))[0], allow=True)
    assert (await run.result()).stop_reason == "end_turn"


async def _parent_of_many(client: Client, name: str) -> None:
    """With many runs below, the parent refuses messages early, and every one of them gets its decision through it."""
    run, flood = await client.start(name, "Pay."), Flood()
    approvals = await _approvals(run, BELOW)
    assert len({approval.run_id for approval in approvals}) == BELOW
    if name == "wide":  # a team reads no messages: somebody must be named
        with pytest.raises(InvalidRequest, match="say to whom"):
            await run.send("Note")
    else:
        await flood.send(run)
        assert flood.taken < MOST_UPDATES
        assert "takes no more messages until its pending calls have ended" in flood.refused[0]
    outcomes = await run.resolve_approvals(allow=True, by="lee", approvals=approvals)
    assert [outcome.error for outcome in outcomes] == [None] * BELOW
    assert (await run.result()).stop_reason == "end_turn"


async def _session_of_a_team(client: Client) -> None:
    session, flood = await client.session(f"t-{uuid.uuid4().hex[:6]}", agent="swarm"), Flood()
    first = asyncio.create_task(session.say("Pay."))
    [approval] = await _approvals(session.run)
    await flood.send(session.run)
    assert flood.refused
    await session.run.resolve_approval(approval, allow=True, by="lee")
    assert (await first).stop_reason == "end_turn"
    await session.close()


async def test_room_for_decisions_is_reserved(narrow: DevServer, settings: Settings) -> None:
    """Whatever was sent to a run before, a decision is taken, and the run ends."""
    mine = settings.model_copy(update={"address": narrow.address})
    scripted = {"scripted": ScriptedModel(_script)}
    async with running(AGENTS, models=scripted, address=narrow.address, settings=mine) as client:
        await asyncio.gather(
            _run_that_waits(client),
            _paused_run(client),
            _session_in_a_turn(client),
            _session_that_is_extended(client),
            _remote_call_that_waits_for_a_person(client),
            _remote_call_under_way(client),
            _team(client, "swarm"),
            _team(client, "graph"),
            _parent_of_many(client, "boss"),
            _parent_of_many(client, "wide"),
            _session_of_a_team(client),
        )


async def test_reserve_below_a_root_never_ends(narrow: DevServer, settings: Settings) -> None:
    """A root that has used up its updates stands in nobody's way: decisions reach the run that waits."""

    def script(request: ModelRequest) -> Any:
        many = [calls("pay", cents=cents) for cents in range(MOST_UPDATES // 4)]
        return many if request.step == 1 else says("Done.")

    mine = settings.model_copy(update={"address": narrow.address})
    team = Swarm(name="team", agents=[_clerk("one")])
    scripted = {"scripted": ScriptedModel(script)}
    async with running([team], models=scripted, address=narrow.address, settings=mine) as client:
        run = await client.start("team", "Pay all.")
        approvals = await _approvals(run, MOST_UPDATES // 4)
        await Flood().send(run, MOST_UPDATES)
        outcomes = await run.resolve_approvals(allow=True, by="lee", approvals=approvals)
        assert [outcome.error for outcome in outcomes] == [None] * len(approvals)
        assert (await run.result()).stop_reason == "end_turn"


async def test_growing_history_leaves_room_for_decisions(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports of runs below make a parent's history grow: it then refuses messages in words, and no decision."""
    monkeypatch.setattr(renewal, "_MOST_EVENTS", 100)
    rounds = 4

    def script(request: ModelRequest) -> Any:
        if request.config.model == "boss":
            return _script(request)
        return calls("pay", cents=request.step) if request.step <= rounds else says("Done.")

    boss = Agent(name="boss", model="scripted:boss", tools=[_PAYEE.as_tool()])
    async with serve(boss, models={"scripted": ScriptedModel(script)}) as client:
        run, refused = await client.start("boss", "Pay."), list[int]()
        for number in range(rounds):
            approvals = await _approvals(run, BELOW)
            flood = Flood()
            await flood.send_one(run, f"Note {number}")
            refused.append(len(flood.refused))
            outcomes = await run.resolve_approvals(allow=True, by="lee", approvals=approvals)
            assert [outcome.error for outcome in outcomes] == [None] * BELOW, number
        assert (await run.result()).stop_reason == "end_turn"
    assert refused[0] == 0
    assert refused[-1] == 1
    assert refused == sorted(refused), "once it is short of room, it stays so while runs below go on"


async def test_used_up_signals_leave_decision_and_cancel(settings: Settings) -> None:
    """A parent that takes no more signals says so, and decisions and a cancellation still get in."""
    boss = Agent(name="boss", model="scripted:boss", tools=[_PAYEE.as_tool()])
    config = {"history.maximumSignalsPerExecution": str(4 * BELOW)}
    async with DevServer.start(db=None, ui_port=False, dynamic_config=config) as server:
        mine = settings.model_copy(update={"address": server.address})
        models = {"scripted": ScriptedModel(_script)}
        async with running([boss], models=models, address=server.address, settings=mine) as client:
            run = await client.start("boss", "Pay.")
            first, *_ = await _approvals(run, BELOW)
            with suppress(ServerBusy):
                for _ in range(4 * BELOW):
                    await run.resume()
            with pytest.raises(ServerBusy, match=r"no more signals, such as a stop, .* it can be cancelled"):
                await run.stop()
            assert (await run.resolve_approval(first, allow=True, by="lee")).by == "lee"
            await run.cancel()
            assert (await run.result()).stop_reason == "cancelled"


async def test_second_click_pays_nothing_else(serve: Serve) -> None:
    """Two people see one payment of two equal ones; the second click says that it was made, and pays no other."""
    paid: list[str] = []

    @tool(approval=True, effect="write")
    async def transfer(to: str) -> str:
        """Pay."""
        paid.append(to)
        return "paid"

    def script(request: ModelRequest) -> Any:
        if request.tools[0].name == "clerk":
            return calls("clerk", input="Ann") if request.step < 3 else says("Done.")
        return calls("transfer", to="Ann") if request.step == 1 else says("Paid.")

    clerk = Agent(name="clerk", model="scripted:x", description="Pays one bill.", tools=[transfer])
    boss = Agent(name="boss", model="scripted:x", tools=[clerk.as_tool()])
    async with serve(boss, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("boss", "Pay both.")
        [first] = await _approvals(run)
        clicks = (run.resolve_approval(first, allow=True, by=by) for by in ("lee", "kim"))
        one, two = await asyncio.gather(*clicks)
        assert sorted([one.repeated, two.repeated]) == [False, True]
        assert one.by == two.by, "both hear who decided"

        async def next_waits() -> bool:
            waiting = (await run.status()).waiting
            return bool(waiting) and waiting[0].run_id != first.run_id

        await until_queried(next_waits)
        late = await run.resolve_approval(first, allow=True, by="ada")
        assert late.words.startswith(f"already approved by {one.by} at ")
        with pytest.raises(InvalidRequest, match=f"was approved by {one.by} at .* cannot be changed"):
            await run.resolve_approval(first, allow=False, by="ada")
        with pytest.raises(InvalidRequest, match="is a call of a run below: say what you saw there"):
            await run.resolve_approval("call-1-1", allow=True, by="ada")
        assert paid == ["Ann"]
        [second] = await _approvals(run)
        assert second.digest != first.digest
        await run.resolve_approval(second, allow=False)
        await run.result()
    assert paid == ["Ann"]
