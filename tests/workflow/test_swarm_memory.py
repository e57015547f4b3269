"""Memory of a swarm: what an agent knows that gets the task again, on a real server."""

from collections import Counter

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.service import RPCError

from perdure import Graph, SlidingWindow, Swarm, ToolContext, as_tool, tool
from perdure.messages import Image, Text
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import calls, says
from perdure.wire.events import ChildEvent, ToolFinished
from perdure.wire.spec import SwarmMemory
from tests.conftest import until
from tests.pictures import PNG

from .test_swarm_runs import Answer, Cast, ServeTeam, agent, keys, serve, to

__all__ = ["serve"]

KEYS: list[str] = []


@tool(effect="write")
async def measure(room: str, context: ToolContext) -> str:
    """Measure a room."""
    KEYS.append(context.idempotency_key)
    return f"{room}: {len(KEYS)}3.5 square metres"


def read(request: ModelRequest) -> str:
    return " ".join(message.text for message in request.messages)


def surveyor(request: ModelRequest) -> Answer:
    """Measure once a visit, and hand over; answer at the third visit, with all that is known."""
    new = request.messages[-1].text
    if request.messages[-1].role == "tool":
        return to("planner", "Which covering?", area="measured")
    if "Oak" in new:
        return says(f"{read(request).count('3.5 square metres')} areas known")
    return calls("measure", room="attic")


def planner(request: ModelRequest) -> Answer:
    """Hand back twice: the second visit is one that remembers the first."""
    has_been_asked = any(message.role == "tool" for message in request.messages)
    return to("surveyor", "Oak." if has_been_asked else "Cork?", choice="made")


AGENTS = (agent("surveyor", tools=[measure]), agent("planner"))


def floor(memory: SwarmMemory, name: str = "floor") -> Swarm:
    return Swarm(name=name, agents=AGENTS, memory=memory)


def cast() -> Cast:
    KEYS.clear()
    return Cast({"surveyor": surveyor, "planner": planner})


def assert_sendable(request: ModelRequest) -> None:
    """Call ids are unique in a request, and each call has its result: providers demand both."""
    made = [call.id for message in request.messages for call in message.tool_calls]
    answered = [result.call_id for message in request.messages for result in message.tool_results]
    assert made == answered
    assert max(Counter(made).values(), default=1) == 1


async def activities(client: Client, run: Run) -> Counter[str]:
    history = await client.temporal.get_workflow_handle(run.id).fetch_history()
    return Counter(
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.HasField("activity_task_scheduled_event_attributes")
    )


async def test_agent_remembers_its_own_visits(serve: ServeTeam) -> None:
    """An agent that gets the task again has its own transcript before a prompt that says what is new."""
    played = cast()
    async with serve(floor("own"), models=played.models) as client:
        run = await client.start("floor", [Text(text="Plan the floor."), Image(data=PNG)])
        result = await run.result()
        below = [await activities(client, client.get(f"{run.id}/~{key}")) for key, _, _ in keys(result)]
        own = await client.get(f"{run.id}/~surveyor-3").steps()
        seen = [event.event async for event in run.events(tree=True) if isinstance(event, ChildEvent)]
    # Three visits of the surveyor, of which two measured; the planner handed back twice.
    assert result.output == "2 areas known"
    assert [key for key, _, _ in keys(result)] == [
        "surveyor-1",
        "planner-1",
        "surveyor-2",
        "planner-2",
        "surveyor-3",
    ]
    assert len(set(KEYS)) == 2, "the same call of two visits has two keys"
    assert [names["remember"] for names in below] == [0, 0, 1, 1, 1], "only a visit that is not the first"
    last = played.asked[-1]
    assert_sendable(last)
    assert "planner" not in {call.name for message in last.messages for call in message.tool_calls}
    new = last.messages[-1].text
    assert new.startswith("Handoff Message from planner: Oak.")
    assert "Agents who worked on this since your last turn: planner" in new
    assert '• planner: {"choice":"made"}' in new
    assert "User Request: Plan the floor." in new
    assert "Agent name: planner" in new
    assert sum(isinstance(part, Image) for message in last.messages for part in message.parts) == 1
    assert len(own) == 1, "earlier visits are billed where they were made"
    finished = [event.tool for event in seen if isinstance(event, ToolFinished)]
    assert finished.count("measure") == 2, "who watches sees each call once"


@pytest.mark.parametrize("memory", ["shared", "none"])
async def test_memory_may_be_shared_or_none(serve: ServeTeam, memory: SwarmMemory) -> None:
    """With "shared" each agent reads all visits before its own; with "none" each visit begins anew."""

    def first(request: ModelRequest) -> Answer:
        if memory == "none" and "from b" in request.messages[-1].text:
            return says(read(request))
        if request.messages[-1].role == "tool":
            return to("b", "go on")
        return says(read(request)) if "3.5" in read(request) else calls("measure", room="attic")

    KEYS.clear()
    played = Cast({"a": first, "b": to("a", "back")})
    pair = Swarm(name="pair", agents=[agent("a", tools=[measure]), agent("b")], memory=memory)
    async with serve(pair, models=played.models) as client:
        result = await client.run("pair", "do it")
    b = next(request for request in played.asked if request.config.model == "b")
    assert_sendable(played.asked[-1])
    assert ("3.5 square" in read(b)) == (memory == "shared")
    assert ("3.5 square" in str(result.output)) == (memory == "shared")
    assert "Agent name: a" in read(b), "an agent learns whom it can hand over to at its first visit"
    assert len(b.messages) == (1 if memory == "none" else 6)


@pytest.mark.parametrize("memory", ["own", "shared"])
async def test_request_stays_visible_in_later_visits(serve: ServeTeam, memory: SwarmMemory) -> None:
    """In a short window each step of each visit shows the request, its picture once, and the peers."""
    blind: list[tuple[str, int]] = []

    def look(name: str, request: ModelRequest) -> Answer:
        pictures = sum(isinstance(part, Image) for message in request.messages for part in message.parts)
        whole = "User Request: Measure all rooms." in read(request) and "Agent name: " in read(request)
        if not whole or pictures != 1:
            blind.append((name, request.step))
        if request.step < 6:
            return calls("measure", room=f"room {request.step}")
        return (
            says("measured")
            if read(request).count("Message from b: again")
            else to("b" if name == "a" else "a", "again")
        )

    KEYS.clear()
    played = Cast({"a": lambda request: look("a", request), "b": lambda request: look("b", request)})
    window = SlidingWindow(messages=4)
    team = [agent(name, tools=[measure], context=window) for name in ("a", "b")]
    async with serve(Swarm(name="short", agents=team, memory=memory), models=played.models) as client:
        result = await client.run("short", [Text(text="Measure all rooms."), Image(data=PNG)])
    assert (result.output, len(result.nodes), blind) == ("measured", 3, [])


async def test_memory_in_sessions_and_nested(serve: ServeTeam) -> None:
    """A turn of a session, a swarm within a graph and one that an agent calls remember as well."""
    played = cast()
    inner = floor("own", "inner")
    around = Graph(name="around", nodes={"floor": inner}, entry="floor")
    boss = agent("boss", tools=[as_tool(inner, description="Plan.")])

    def asks(request: ModelRequest) -> Answer:
        return says(read(request)) if request.step > 1 else calls("inner", input="Plan.")

    played = Cast({**played.parts, "boss": asks})
    async with serve(floor("own"), around, boss, models=played.models) as client:
        session = await client.session("floors", agent="floor")
        turns = [str((await session.say("Plan.")).output), str((await session.say("And again.")).output)]
        nested = str((await client.run("around", "Plan.")).output)
        called = str((await client.run("boss", "Plan.")).output)
    assert turns == ["2 areas known", "2 areas known"]
    assert nested == "2 areas known"
    assert "2 areas known" in called
    newest = [r for r in played.asked if r.config.model == "surveyor" and "And again." in read(r)][-1]
    assert_sendable(newest)
    assert read(newest).count("2 areas known") == 1, "the conversation stands there once"


async def test_work_beside_a_handback_is_known(serve: ServeTeam) -> None:
    """What was done beside the handoff, by whoever hands back, stands after the prompt that builds on a memory."""

    def first(request: ModelRequest) -> Answer:
        new = request.messages[-1].text
        return says(new) if "Message from b" in new else to("b", "measure it")

    KEYS.clear()
    played = Cast({"a": first, "b": [calls("measure", room="hall") + to("a", "back")]})
    pair = Swarm(name="pair", agents=[agent("a"), agent("b", tools=[measure])])
    async with serve(pair, models=played.models) as client:
        result = await client.run("pair", "do it")
    assert "Handoff Message from b: back" in str(result.output)
    assert "hall: 13.5 square metres" in str(result.output)
    assert_sendable(played.asked[-1])


async def test_lost_memory_does_not_stop_swarm(serve: ServeTeam) -> None:
    """A visit whose transcript is gone is not remembered: the agent is told so, and gets the whole prompt."""
    clients: list[Client] = []

    async def forgets(request: ModelRequest) -> Answer:
        client = clients[0]
        earlier = f"{client_run[0].id}/~a-1"
        await client.temporal.workflow_service.delete_workflow_execution(
            DeleteWorkflowExecutionRequest(
                namespace=client.temporal.namespace, workflow_execution=WorkflowExecution(workflow_id=earlier)
            )
        )

        async def gone() -> bool:
            try:
                await client.temporal.get_workflow_handle(earlier).describe()
            except RPCError:
                return True
            return False

        await until(gone)
        return to("a", "back")

    def first(request: ModelRequest) -> Answer:
        return says("done") if "Message from b" in request.messages[-1].text else to("b", "go on")

    client_run: list[Run] = []
    played = Cast({"a": first, "b": forgets})
    pair = Swarm(name="pair", agents=[agent("a"), agent("b")])
    async with serve(pair, models=played.models) as client:
        clients.append(client)
        client_run.append(await client.start("pair", "do it"))
        result = await client_run[0].result()
    assert (result.output, len(result.nodes)) == ("done", 3)
    told = [message.text for message in played.asked[-1].messages]
    assert told[0].startswith("(What you did in your earlier visits can no longer be read.")
    assert "User Request: do it" in told[1]
