"""Sessions of swarms and graphs on a real server: turns, people, limits, ends, and continue-as-new."""

import asyncio
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from perdure import (
    InvalidRequest,
    Limits,
    NodeInput,
    RunEnded,
    RunNotFound,
    Session,
    TurnReply,
    ask_person,
    tool,
)
from perdure.graph import Graph
from perdure.limits import SwarmLimits
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.swarm import Swarm
from perdure.testing import calls, fails, says
from perdure.wire.events import MessageFinished, NodeFinished, NodeStarted, TurnFinished
from perdure.wire.results import Approval, Question
from perdure.workers.dev.server import DevServer
from tests.conftest import HANGS, Gate, Serve, until, until_queried
from tests.serving import running
from tests.workflow.test_history import history_sizes
from tests.workflow.test_swarm_runs import Cast, ServeTeam, agent, team, to


@pytest.fixture(params=["warm", pytest.param("cold", marks=pytest.mark.cold)])
def serve(serve: Serve, request: pytest.FixtureRequest) -> ServeTeam:
    """Cold: each workflow task replays the whole history, so what is not deterministic fails."""
    cold: dict[str, Any] = {} if request.param == "warm" else {"worker": {"max_cached_workflows": 0}}
    return partial(serve, **cold)


@tool(approval=True, effect="write")
async def pay(cents: int) -> str:
    """Pay."""
    return f"paid {cents}"


def heard(request: ModelRequest) -> list[str]:
    """Texts of the conversation and the task that an agent has before it, without its own steps."""
    return [message.text for message in request.messages if message.role == "user"]


def repeats(request: ModelRequest) -> Any:
    """Says all that it heard, the words around the task left out."""
    return says(" / ".join(text.splitlines()[-1] for text in heard(request)))


async def waiting(session: Session, kind: type) -> Any:
    """The one matter of that kind that waits for a person, once it is there."""
    found: list[Any] = []

    async def is_there() -> bool:
        with suppress(RunNotFound, InvalidRequest):
            found[:] = [item for item in (await session.status()).waiting if isinstance(item, kind)]
        return bool(found)

    await until_queried(is_there)
    [item] = found
    return item


async def node_keys(session: Session) -> list[str]:
    return [node.key for node in (await session.status()).nodes]


# -- turns


async def test_swarm_knows_earlier_turns(serve: ServeTeam) -> None:
    cast = Cast({"front": to("back"), "back": says("It is about W7.")})
    async with serve(team("front", "back"), models=cast.models) as client:
        session = await client.session(f"swarm-knows-{client.task_queue}", agent="team")
        first = await session.say("My order is W7")
        keys = await node_keys(session)
        second = await session.say("What is it about?")
        keys += await node_keys(session)
        status = await session.status()
        transcript = await session.transcript()
        events = [event async for event in client.get(f"{session.id}/~turn2.back-1").events()]
    assert (first.turn, first.text, first.stop_reason) == (1, "It is about W7.", "end_turn")
    assert (second.turn, second.steps) == (2, 2)
    for request in cast.asked[2:]:
        text = "\n".join(message.text for message in request.messages)
        assert "My order is W7" in text, "both agents of the second turn know what was said in the first"
        assert "It is about W7." in text
        assert "What is it about?" in text
    assert keys == ["front-1", "back-1", "turn2.front-1", "turn2.back-1"]
    assert (status.kind, status.spec_kind, status.status, status.turn) == ("session", "swarm", "idle", 2)
    assert status.usage == first.usage + second.usage
    assert status.step == first.steps + second.steps == 4
    texts = [event.text for event in events if isinstance(event, MessageFinished)]
    assert texts == ["It is about W7."], "what was said in earlier turns is no event of a node"
    assert [(message.role, message.text) for message in transcript] == [
        ("user", "My order is W7"),
        ("assistant", "It is about W7."),
        ("user", "What is it about?"),
        ("assistant", "It is about W7."),
    ]


async def test_graph_knows_earlier_turns(serve: ServeTeam) -> None:
    given: list[NodeInput] = []

    def ship(node: NodeInput) -> dict[str, str]:
        given.append(node)
        return {"shipped": node.prompt.splitlines()[-1]}

    cast = Cast({"draft": lambda request: says(f"draft of {len(heard(request))}")})
    shop = Graph(
        name="shop", nodes={"draft": agent("draft"), "ship": ship}, edges=[("draft", "ship")], entry="draft"
    )
    async with serve(shop, models=cast.models) as client:
        session = await client.session(f"graph-knows-{client.task_queue}", agent="shop")
        replies = [await session.say(text) for text in ("a red one", "and a blue one")]
        keys = await node_keys(session)
        transcript = await session.transcript()
    assert [reply.output for reply in replies] == [{"shipped": "draft of 1"}, {"shipped": "draft of 2"}]
    assert keys == ["turn2.draft-1", "turn2.ship-1"]
    assert len({node.idempotency_key for node in given}) == 2, "the same function, another effect"
    assert [node.task for node in given] == ["a red one", "and a blue one"]
    assert [message.role for message in transcript] == ["user", "assistant"] * 2


async def test_long_conversation_is_kept_and_passed_in_part(serve: ServeTeam) -> None:
    """The transcript of a team's session is whole; its nodes are given the newest 64 KB of it."""
    cast = Cast({"front": lambda request: says(str(len(request.messages)))})
    async with serve(team("front"), models=cast.models) as client:
        session = await client.session(f"swarm-long-{client.task_queue}", agent="team")
        seen = [int((await session.say(f"{n}: {'x' * 20_000}")).text) for n in range(6)]
        streamed = [event async for event in session.stream("last")]
        transcript = await session.transcript()
    assert seen == [1, 3, 5, 7, 7, 7]
    assert [message.text[:2] for message in transcript if message.role == "user"] == [
        *(f"{n}:" for n in range(6)),
        "la",
    ]
    texts = [event.text for event in streamed if isinstance(event, MessageFinished)]
    assert texts == ["7"]


async def test_stream_of_team_has_its_turn_alone(serve: ServeTeam) -> None:
    async def work(node: NodeInput) -> str:
        await asyncio.sleep(0.2)
        return "worked"

    pair = Graph(
        name="pair", nodes={"draft": agent("draft"), "work": work}, edges=[("draft", "work")], entry="draft"
    )
    cast = Cast({"draft": says("a draft")})
    async with serve(pair, models=cast.models) as client:
        session = await client.session(f"team-streamed-{client.task_queue}", agent="pair")
        turns = [[event async for event in session.stream(text)] for text in ("one", "two")]
    for events, prefix in zip(turns, ("", "turn2."), strict=True):
        started = [event.key for event in events if isinstance(event, NodeStarted)]
        finished = [event.key for event in events if isinstance(event, NodeFinished)]
        assert started == finished == [f"{prefix}draft-1", f"{prefix}work-1"]
        assert isinstance(events[-1], TurnFinished)
        assert events[-1].reply.output == "worked"


# -- limits


async def test_limits_of_turn_and_session_of_team(serve: ServeTeam) -> None:
    @tool
    async def look(n: int) -> str:
        """Look."""
        return "seen"

    def front(request: ModelRequest) -> Any:
        if request.tool_choice == "none" or heard(request)[-1].endswith("short"):
            return says("done")
        return calls("look", n=request.step)

    swarm = Swarm(
        name="team", agents=[agent("front", tools=[look])], limits=SwarmLimits(tool_calls=3, max_handoffs=1)
    )
    async with serve(swarm, models=Cast({"front": front}).models) as client:
        session = await client.session(
            f"team-bounded-{client.task_queue}", agent="team", session_limits=Limits(tool_calls=5)
        )
        replies = [await session.say(text) for text in ("long", "short", "long")]
        result = await session.run.result()
        with pytest.raises(RunEnded):
            await session.say("more?")
    assert [(reply.stop_reason, reply.tool_calls) for reply in replies] == [
        ("max_tool_calls", 3),
        ("end_turn", 0),
        ("max_tool_calls", 2),
    ]
    assert (result.stop_reason, result.tool_calls) == ("max_tool_calls", 5)


async def test_steps_of_session_bound_team(serve: ServeTeam) -> None:
    @tool
    async def look(n: int) -> str:
        """Look."""
        return "seen"

    def front(request: ModelRequest) -> Any:
        return says("done") if request.tool_choice == "none" else calls("look", n=request.step)

    swarm = Swarm(name="team", agents=[agent("front", tools=[look])], limits=SwarmLimits(steps=4))
    async with serve(swarm, models=Cast({"front": front}).models) as client:
        session = await client.session(
            f"team-steps-{client.task_queue}", agent="team", session_limits=Limits(steps=6)
        )
        replies = [await session.say(text) for text in ("one", "two")]
        result = await session.run.result()
    assert [reply.steps for reply in replies] == [4, 2]
    assert (result.stop_reason, result.steps) == ("max_steps", 6)


async def test_turn_of_team_has_its_deadline(serve: ServeTeam) -> None:
    gate = Gate()

    async def front(request: ModelRequest) -> Any:
        if heard(request)[-1].endswith("hang"):
            await gate.wait()
        return says("here")

    swarm = team("front", timeout=timedelta(seconds=4))
    async with serve(swarm, models=Cast({"front": front}).models) as client:
        session = await client.session(f"team-timed-{client.task_queue}", agent="team")
        replies = [await session.say(text) for text in ("hello", "hang", "still there?")]
    assert [reply.stop_reason for reply in replies] == ["end_turn", "deadline", "end_turn"]


# -- people


def asks(request: ModelRequest) -> Any:
    if request.step == 1:
        return calls("ask_person", question="Which?")
    return says(" ".join(result.text for result in request.messages[-1].tool_results))


@pytest.mark.parametrize("how", ["steer", "send", "send to"])
async def test_question_of_node_is_answered(serve: ServeTeam, how: str) -> None:
    swarm = team(agent("front", tools=[ask_person]))
    async with serve(swarm, models=Cast({"front": asks}).models) as client:
        session = await client.session(f"{how.replace(' ', '-')}-{client.task_queue}", agent="team")
        saying = asyncio.create_task(session.say("go"))
        question = await waiting(session, Question)
        assert question.path == ["front-1"]
        if how == "steer":
            answers = [session.say("the red one", id="answer", when_busy="steer") for _ in range(3)]
            replies = await asyncio.gather(saying, *answers)
        elif how == "send":
            await session.run.send("the red one")
            replies = [await saying]
        else:
            update = {"run_id": question.run_id, "text": "the red one"}
            await session.run.handle.execute_update("send", update)
            replies = [await saying]
        status = await session.status()
        node = await client.get(question.run_id).transcript()
    assert {(reply.turn, reply.text) for reply in replies} == {(1, "the red one")}
    assert status.turn == 1
    assert [message.role for message in node] == ["user", "assistant", "tool", "assistant"], "heard once"


async def test_message_to_working_team_gets_own_turn(serve: ServeTeam) -> None:
    gate = Gate()

    async def front(request: ModelRequest) -> Any:
        if heard(request)[-1].endswith("first"):
            await gate.wait()
        return says(heard(request)[-1].splitlines()[-1])

    async with serve(team("front"), models=Cast({"front": front}).models) as client:
        session = await client.session(f"team-busy-{client.task_queue}", agent="team")
        first = asyncio.create_task(session.say("first"))
        await gate.reached.wait()
        second = asyncio.create_task(session.say("second", when_busy="steer"))

        async def is_queued() -> bool:
            return (await session.status()).queued == 1

        await until(is_queued)
        gate.opened.set()
        replies = await first, await second
    assert [reply.turn for reply in replies] == [1, 2]
    assert ["first" in replies[0].text, "second" in replies[1].text] == [True, True]


async def test_approval_within_turn_of_team(serve: ServeTeam) -> None:
    def front(request: ModelRequest) -> Any:
        if request.step == 1:
            return calls("pay", cents=7)
        return says(request.messages[-1].tool_results[0].text)

    async with serve(team(agent("front", tools=[pay])), models=Cast({"front": front}).models) as client:
        session = await client.session(f"team-pays-{client.task_queue}", agent="team")
        texts: list[str] = []
        for allow in (True, False):
            saying = asyncio.create_task(session.say("pay"))
            approval = await waiting(session, Approval)
            decision = {"run_id": approval.run_id, "digest": approval.digest}
            await session.resolve_approval(approval.call_id, allow=allow, **decision)
            texts.append((await saying).text)
    assert texts[0] == "paid 7"
    assert "refused" in texts[1]


# -- ends


async def test_interrupt_ends_turn_of_team(serve: ServeTeam) -> None:
    gate = Gate()

    async def front(request: ModelRequest) -> Any:
        if heard(request)[-1].endswith("hang"):
            await gate.wait()
        return says("here")

    async with serve(team("front"), models=Cast({"front": front}).models) as client:
        session = await client.session(f"team-interrupted-{client.task_queue}", agent="team")
        hanging = asyncio.create_task(session.say("hang"))
        await gate.reached.wait()
        await session.interrupt()
        interrupted = await hanging
        await session.interrupt()
        after = await session.say("go on")
        status = await session.status()
    assert interrupted.stop_reason == "stopped"
    assert (after.turn, after.text, after.stop_reason) == (2, "here", "end_turn")
    assert (status.status, status.stop_reason) == ("idle", None)


async def test_failing_turn_of_team_fails_alone(serve: ServeTeam) -> None:
    def front(request: ModelRequest) -> Any:
        return fails("bad_request", "no") if heard(request)[-1].endswith("bad") else says("good")

    async with serve(team(agent("front", on_failure="fail")), models=Cast({"front": front}).models) as client:
        session = await client.session(f"team-failing-{client.task_queue}", agent="team")
        replies = [await session.say(text) for text in ("fine", "bad", "fine again")]
        status = await session.status()
    assert [reply.stop_reason for reply in replies] == ["end_turn", "error", "end_turn"]
    failed = replies[1]
    assert failed.error is not None
    assert failed.text == ""
    assert (replies[2].turn, replies[2].text, replies[2].error) == (3, "good", None)
    assert (status.status, status.failure) == ("idle", None)


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_end_of_session_of_team(serve: ServeTeam, how: str) -> None:
    gate = Gate()

    async def front(request: ModelRequest) -> Any:
        await gate.wait()
        return says("late")

    async with serve(team("front"), models=Cast({"front": front}).models) as client:
        session = await client.session(f"team-{how}-{client.task_queue}", agent="team")
        saying = asyncio.create_task(session.say("go"))
        await gate.reached.wait()
        await (session.close() if how == "close" else session.cancel())
        reply = await saying
        result = await session.run.result()
        node = await client.get(f"{session.id}/~front-1").describe()
    reason = "stopped" if how == "close" else "cancelled"
    assert reply.stop_reason == result.stop_reason == reason
    assert node.close_time is not None, "no node outlives its session"


# -- continue-as-new


@pytest.mark.parametrize("cached", [1000, 0], ids=["warm", "cold"])
async def test_team_session_survives_continue_as_new(
    impatient: DevServer, settings: Settings, cached: int
) -> None:
    """The conversation, the replies and the keys of nodes outlive continue-as-new, between turns and within."""
    turns = 8

    def front(request: ModelRequest) -> Any:
        if "turn 2." in heard(request)[-1] and request.config.model == "front":
            return calls("ask_person", question="Which?") if request.step == 1 else to("back")
        return to("back")

    def back(request: ModelRequest) -> Any:
        said = "\n".join(message.text for message in request.messages)
        return says(",".join(str(n) for n in range(turns) if f"turn {n}." in said))

    cast = Cast({"front": front, "back": back})
    swarm = team(agent("front", tools=[ask_person]), "back")
    mine = settings.model_copy(update={"address": impatient.address})
    worker = {"max_cached_workflows": cached}
    keys: list[str] = []
    replies: list[TurnReply] = []
    async with running(
        [swarm], models=cast.models, address=impatient.address, settings=mine, worker=worker
    ) as client:
        session = await client.session(f"team-renewed-{cached}", agent="team")
        for n in range(turns):
            saying = asyncio.create_task(session.say(f"turn {n}.", id=f"id-{n}"))
            if n == 2:
                await waiting(session, Question)
                await session.say("this", id="answer", when_busy="steer")
            replies.append(await saying)
            keys += await node_keys(session)
        again = [await session.say("?", id=f"id-{n}") for n in range(turns)]
        answer = await session.say("?", id="answer")
        status = await session.status()
        transcript = await session.transcript()
        sizes = await history_sizes(client, session.id)
    assert len(sizes) > 2
    assert again == replies
    assert answer.turn == 3
    assert [reply.text for reply in replies] == [",".join(map(str, range(n + 1))) for n in range(turns)]
    assert [reply.turn for reply in replies] == list(range(1, turns + 1))
    assert Counter(keys).most_common(1)[0][1] == 1
    assert len(keys) == 2 * turns
    assert len(transcript) == 2 * turns
    assert sum(reply.steps for reply in replies) == status.step == 2 * turns + 1
    assert sum(reply.cost_microusd or 0 for reply in replies) == status.cost_microusd


class HeldRelay(Interceptor):
    """Holds what a relay returns until the gate is open."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        gate = self._gate

        class Held(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
                result = await super().execute_activity(input)
                if input.fn.__name__ == "relay":
                    await gate.wait()
                return result

        return Held(next)


async def test_continue_as_new_waits_for_relay_only(settings: Settings) -> None:
    """A sender waits until its message is in the state; a run that continues as new must not wait for both."""
    gate = Gate()
    cast = Cast(
        {"front": lambda request: asks(request) if request.step == 1 else to("back"), "back": says("ok")}
    )
    swarm = team(agent("front", tools=[ask_person]), "back")
    config = {"limit.historyCount.suggestContinueAsNew": "12"}
    async with DevServer.start(db=None, ui_port=False, dynamic_config=config) as impatient:
        mine = settings.model_copy(update={"address": impatient.address})
        worker: dict[str, Any] = {"interceptors": [HeldRelay(gate)]}
        async with running(
            [swarm], models=cast.models, address=impatient.address, settings=mine, worker=worker
        ) as client:
            session = await client.session(f"team-relayed-{client.task_queue}", agent="team")
            saying = asyncio.create_task(session.say("go"))
            await waiting(session, Question)
            answering = asyncio.create_task(session.say("this", when_busy="steer"))
            await client.get(f"{session.id}/~front-1").result()

            async def is_moving_on() -> bool:
                return (await session.status()).nodes[0].state != "running"

            await until(is_moving_on)
            assert gate.reached.is_set()
            gate.opened.set()
            async with asyncio.timeout(HANGS):
                replies = await asyncio.gather(saying, answering)
            sizes = await history_sizes(client, session.id)
    assert len(sizes) > 1
    assert [(reply.turn, reply.text) for reply in replies] == [(1, "ok")] * 2


async def test_held_relay_begins_no_turn(serve: Serve) -> None:
    """The turn ends before the session hears that its answer has arrived: the answer is no turn of its own."""
    gate = Gate()
    swarm = team(agent("front", tools=[ask_person]))
    worker: dict[str, Any] = {"interceptors": [HeldRelay(gate)]}
    async with serve(swarm, models=Cast({"front": asks}).models, worker=worker) as client:
        session = await client.session(f"held-relay-{client.task_queue}", agent="team")
        saying = asyncio.create_task(session.say("go"))
        await waiting(session, Question)
        answering = asyncio.create_task(session.say("the red one"))
        assert (await saying).text == "the red one"
        assert gate.reached.is_set()
        gate.opened.set()
        assert (await answering).turn == 1
        status = await session.status()
    assert (status.turn, status.queued) == (1, 0)
