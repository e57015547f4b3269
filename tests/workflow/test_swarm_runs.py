"""Swarms on a real server: handoffs, what agents are told, limits, people, and what a result holds."""

import asyncio
import base64
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata

from perdure import Agent, InvalidRequest, RunFailed, ask_person, tool
from perdure.limits import SwarmLimits
from perdure.messages import Image, Message, Text
from perdure.messages import Part as MessagePart
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.swarm import Swarm
from perdure.testing import Line, ScriptedModel, calls, fails, says
from perdure.wire.results import Approval, RunResult
from tests.conftest import HANGS, Gate, Serve, until, until_queried, until_status
from tests.pictures import PNG

ServeTeam = Callable[..., AbstractAsyncContextManager[Client]]
Answer = Line | list[Line]
Part = Answer | Callable[[ModelRequest], Answer | Awaitable[Answer]]
PICTURE = PNG


@pytest.fixture(params=["warm", pytest.param("cold", marks=pytest.mark.cold)])
def serve(serve: Serve, request: pytest.FixtureRequest) -> ServeTeam:
    """Cold: each workflow task replays the whole history, so what is not deterministic fails."""
    cold: dict[str, Any] = {} if request.param == "warm" else {"worker": {"max_cached_workflows": 0}}
    return partial(serve, **cold)


@dataclass
class Cast:
    """Plays every agent by its part: one answer for all its calls, or a list, one a step of a run.

    An agent's model is "scripted:" and the name of its part.
    """

    parts: Mapping[str, Part | Sequence[Part]]
    asked: list[ModelRequest] = field(default_factory=list[ModelRequest])

    async def __call__(self, request: ModelRequest) -> Answer:
        self.asked.append(request)
        part: Any = self.parts[request.config.model]
        if not callable(part) and not isinstance(part, Line):
            part = part[request.step - 1]
        given: Any = part(request) if callable(part) else part
        answer: Answer = await given if inspect.isawaitable(given) else given
        return answer

    @property
    def models(self) -> dict[str, ScriptedModel]:
        return {"scripted": ScriptedModel(self, chunk=65_536)}

    @property
    def order(self) -> list[str]:
        """Who was asked, call by call."""
        return [request.config.model for request in self.asked]

    def told(self, name: str, *, call: int = 0) -> str:
        """What that agent was told first, in its so-manieth call."""
        return [r for r in self.asked if r.config.model == name][call].messages[0].text


def agent(name: str, **changed: Any) -> Agent:
    settings: dict[str, Any] = {"model": f"scripted:{name}", "description": f"Does {name}'s work."}
    return Agent(name=name, **{**settings, **changed})


def team(*agents: Agent | str, memory: Any = "own", **limits: Any) -> Swarm:
    made = [agent(one) if isinstance(one, str) else one for one in agents]
    return Swarm(name="team", agents=made, memory=memory, limits=SwarmLimits(**limits))


def to(name: str, message: str = "your turn", **context: Any) -> Line:
    """A handoff."""
    given = {"context": context} if context else {}
    return calls("handoff_to_agent", agent_name=name, message=message, **given)


def waits(gate: Gate, answer: Answer) -> Part:
    async def part(request: ModelRequest) -> Answer:
        await gate.wait()
        return answer

    return part


async def reached(gate: Gate) -> None:
    async with asyncio.timeout(HANGS):
        await gate.reached.wait()


def keys(result: RunResult) -> list[tuple[str, str, str | None]]:
    return [(node.key, node.state, node.stop_reason) for node in result.nodes]


async def details(run: Run) -> str:
    """The run's page in the Temporal UI."""
    metadata = await run.handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return str(metadata.current_details)


# -- handoffs


async def test_handoff_ends_turn_at_once(serve: ServeTeam) -> None:
    """A handoff ends the turn at once, without another model call."""
    # Strands B1-6 and B2-4: the agent that hands off is asked once more; in Temporal it never hands off.
    cast = Cast({"a": says("I found it. ") + to("b"), "b": says("written")})
    async with serve(team("a", "b"), models=cast.models) as client:
        result = await client.run("team", "do it")
    assert cast.order == ["a", "b"]
    assert (result.output, result.stop_reason, result.steps) == ("written", "end_turn", 2)
    assert keys(result) == [("a-1", "done", "handoff"), ("b-1", "done", "end_turn")]


async def test_calls_beside_handoff_run_first(serve: ServeTeam) -> None:
    gate = Gate()
    done: list[int] = []

    @tool
    async def work(n: int) -> str:
        """Work."""
        if n == 2:
            await gate.wait()
        done.append(n)
        return f"did {n}"

    cast = Cast({"a": [[calls("work", n=1), to("b"), calls("work", n=2)]], "b": says("written")})
    async with serve(team(agent("a", tools=[work]), "b"), models=cast.models) as client:
        run = await client.start("team", "do it")
        await reached(gate)
        assert cast.order == ["a"], "nobody is handed anything while a call is under way"
        gate.opened.set()
        result = await run.result()
        transcript = await client.get(f"{run.id}/~a-1").transcript()
    assert sorted(done) == [1, 2]
    assert cast.order == ["a", "b"]
    results = transcript[-1].tool_results
    assert [one.text for one in results] == ["did 1", "handed over to 'b'", "did 2"]
    assert result.tool_calls == 2


async def test_two_handoffs_cancel_each_other(serve: ServeTeam) -> None:
    """Of two handoffs in a step neither is carried out, and nothing is lost."""
    # Strands B1-6: of several handoffs in a turn the last one wins, silently.
    did: list[str] = []

    @tool
    async def work() -> str:
        """Work."""
        did.append("work")
        return "did it"

    cast = Cast(
        {
            "a": [[to("b", "one"), calls("work"), to("c", "two")], to("c", "decided", found=1)],
            "c": says("c has it"),
        }
    )
    async with serve(team(agent("a", tools=[work]), "b", "c"), models=cast.models) as client:
        run = await client.start("team", "do it")
        result = await run.result()
        transcript = await client.get(f"{run.id}/~a-1").transcript()
    one, worked, two = transcript[2].tool_results
    assert one.is_error
    assert two.is_error
    assert "one agent" in one.text
    assert (worked.is_error, did) == (False, ["work"])
    assert cast.order == ["a", "a", "c"]
    assert "Handoff Message from a: decided" in cast.told("c")
    assert result.shared_context == {"a": {"found": 1}}


@pytest.mark.parametrize(("target", "says_why"), [("nobody", "'nobody', who is not here"), ("a", "yourself")])
async def test_invalid_handoff_target_is_returned(serve: ServeTeam, target: str, says_why: str) -> None:
    """A handoff to an unknown agent, or to oneself, goes back to the agent."""
    cast = Cast({"a": [to(target), says("then I do it")]})
    async with serve(team("a", "b"), models=cast.models) as client:
        run = await client.start("team", "do it")
        result = await run.result()
        transcript = await client.get(f"{run.id}/~a-1").transcript()
    [refused] = transcript[2].tool_results
    assert refused.is_error
    assert says_why in refused.text
    assert "there are: 'b'" in refused.text
    assert (result.output, result.stop_reason) == ("then I do it", "end_turn")
    assert keys(result) == [("a-1", "done", "end_turn")]


@pytest.mark.parametrize(
    "arguments", [{"message": "hi"}, {"agent_name": "b"}, {"agent_name": "b", "message": "x", "context": 3}]
)
async def test_invalid_handoff_arguments_are_returned(serve: ServeTeam, arguments: dict[str, Any]) -> None:
    cast = Cast({"a": [calls("handoff_to_agent", **arguments), says("then I do it")], "b": says("never")})
    async with serve(team("a", "b"), models=cast.models) as client:
        run = await client.start("team", "do it")
        result = await run.result()
        transcript = await client.get(f"{run.id}/~a-1").transcript()
    assert transcript[2].tool_results[0].is_error
    assert (result.output, cast.order) == ("then I do it", ["a", "a"])


# -- what agents are told


async def test_next_agent_gets_full_briefing(serve: ServeTeam) -> None:
    """The next agent gets message, request, history, knowledge and peers."""
    cast = Cast(
        {
            "a": to("b", "please write", found=3, why="x"),
            "b": to("c", "please check", draft="y"),
            "c": says("checked"),
        }
    )
    async with serve(team("a", "b", "c"), models=cast.models) as client:
        assert (await client.run("team", "the request")).output == "checked"
    first, second, third = cast.told("a"), cast.told("b"), cast.told("c")
    assert first.startswith("User Request: the request")
    assert "Previous agents" not in first
    assert "Shared knowledge" not in first
    expected = [
        "Handoff Message from b: please check",
        "User Request: the request",
        "Previous agents who worked on this: a → b",
        'Shared knowledge from previous agents:\n• a: {"found":3,"why":"x"}\n• b: {"draft":"y"}',
        "Other agents available for collaboration:\nAgent name: a. Agent description: Does a's work.",
        "Agent name: b. Agent description: Does b's work.",
    ]
    places = [third.index(block) for block in expected]
    assert places == sorted(places), "in the order that users of Strands know"
    assert "Agent name: c" not in third
    assert "Agent name: a. Agent description: Does a's work.\nAgent name: c" in second
    assert third.endswith("your answer is final and the task is complete.")


async def test_repeated_agent_may_begin_anew(serve: ServeTeam) -> None:
    """With memory="none" an agent that gets the task again knows nothing of its earlier visit."""

    def a(request: ModelRequest) -> Answer:
        return says("done") if "Handoff Message" in request.messages[0].text else to("b", "first")

    cast = Cast({"a": a, "b": to("a", "back to you")})
    async with serve(team("a", "b", memory="none"), models=cast.models) as client:
        result = await client.run("team", "do it")
    assert [key for key, _, _ in keys(result)] == ["a-1", "b-1", "a-2"]
    assert len(cast.asked[2].messages) == 1
    assert "Previous agents who worked on this: a → b" in cast.told("a", call=1)


async def test_task_pictures_reach_every_agent(serve: ServeTeam) -> None:
    cast = Cast({"a": to("b"), "b": says("seen")})
    prompt: list[MessagePart] = [Text(text="What is this?"), Image(data=PICTURE)]
    async with serve(team("a", "b"), models=cast.models) as client:
        await client.run("team", prompt)
    for request in cast.asked:
        message = request.messages[0]
        [shown] = [part for part in message.parts if isinstance(part, Image)]
        assert shown.data == PICTURE or base64.b64encode(request.blobs[shown.blob or ""]).decode() == PICTURE
        assert "User Request: What is this?" in message.text


async def test_shared_context_ends_with_run(serve: ServeTeam) -> None:
    """Shared context is in status and details, and gone in the next run."""
    # Strands B1-7: shared context leaks into the next invocation.
    gate = Gate()
    first = True

    async def b(request: ModelRequest) -> Answer:
        await gate.wait()
        return says("done")

    def a(request: ModelRequest) -> Answer:
        return to("b", "go on", found=3) if first else to("b", "go on")

    cast = Cast({"a": a, "b": b})
    async with serve(team("a", "b"), models=cast.models) as client:
        run = await client.start("team", "one")
        await reached(gate)
        status = await run.status()
        page = await details(run)
        gate.opened.set()
        result = await run.result()
        first = False
        again = await client.run("team", "two")
    assert (status.kind, status.status, status.doing) == ("swarm", "acting", "running b-1")
    assert status.shared_context == result.shared_context == {"a": {"found": 3}}
    assert [(node.key, node.state) for node in status.nodes] == [("a-1", "done"), ("b-1", "running")]
    assert "Shared context" in page
    assert '"found": 3' in page
    assert "| `a-1` | done (handoff) |" in page
    assert again.shared_context == {}
    assert "Shared knowledge" not in cast.told("b", call=1)


# -- limits


async def test_single_handoff_limit_is_exact(serve: ServeTeam) -> None:
    """A limit of a single handoff is exact, and the reason is in the result."""

    # Strands B1-5: max_handoffs=1 allows none.
    def b(request: ModelRequest) -> Answer:
        return says("my last word") if request.tool_choice == "none" else to("c")

    cast = Cast({"a": to("b"), "b": b, "c": says("never")})
    async with serve(team("a", "b", "c", max_handoffs=1), models=cast.models) as client:
        run = await client.start("team", "do it")
        result = await run.result()
        info = (await run.status()).stop_reason
        transcript = await client.get(f"{run.id}/~b-1").transcript()
    assert cast.order == ["a", "b", "b"]
    assert (result.stop_reason, result.output, result.error) == ("max_handoffs", "my last word", None)
    assert info == "max_handoffs"
    assert "max_handoffs" in transcript[2].tool_results[0].text
    assert "Nobody else can take over" in cast.told("b")


@pytest.mark.parametrize(
    ("limits", "reason", "order"),
    [
        ({"max_handoffs": 0}, "max_handoffs", ["a-1"]),
        ({"max_handoffs": 3}, "max_handoffs", ["a-1", "b-1", "a-2", "b-2"]),
        ({"max_iterations": 3}, "max_iterations", ["a-1", "b-1", "a-2"]),
        (
            {"repetitive_handoff_detection_window": 5, "repetitive_handoff_min_unique_agents": 3},
            "repetitive_handoff",
            ["a-1", "b-1", "a-2", "b-2"],
        ),
    ],
    ids=["no handoffs", "handoffs", "iterations", "repetitive"],
)
async def test_handoff_limit_allows_last_answer(
    serve: ServeTeam, limits: dict[str, int], reason: str, order: list[str]
) -> None:
    """A limit of handoffs is exact, and leaves the last agent an answer."""

    def part(request: ModelRequest) -> Answer:
        if request.tool_choice == "none":
            return says("my last word")
        return to("b" if request.config.model == "a" else "a")

    cast = Cast({"a": part, "b": part})
    async with serve(team("a", "b", "c", **limits), models=cast.models) as client:
        result = await client.run("team", "do it")
    assert [key for key, _, _ in keys(result)] == order
    assert (result.stop_reason, result.output, result.error) == (reason, "my last word", None)
    assert result.usage == sum_of(result)


async def test_circle_bars_only_its_members(serve: ServeTeam) -> None:
    """A third agent is still free when the other two have had the task too often."""

    def part(request: ModelRequest) -> Answer:
        if any(result.is_error for m in request.messages for result in m.tool_results):
            return says("my last word") if request.tool_choice == "none" else to("c")
        return to("b" if request.config.model == "a" else "a")

    cast = Cast({"a": part, "b": part, "c": says("c has it")})
    limits = {"repetitive_handoff_detection_window": 3, "repetitive_handoff_min_unique_agents": 3}
    async with serve(team("a", "b", "c", **limits), models=cast.models) as client:
        await client.run("team", "do it")
    told = cast.told("b")
    assert "Agent name: c" in told
    assert "Agent name: a" not in told, "nobody is told of whom it cannot hand over to"


def sum_of(result: RunResult) -> Any:
    """Usage of all runs of nodes."""
    first, *others = (node.usage for node in result.nodes)
    for usage in others:
        first += usage
    return first


async def test_node_timeout_ends_swarm(serve: ServeTeam) -> None:
    """A node's timeout ends the swarm with its reason and partial results."""
    # Strands B1-8: a node's timeout gives empty results, and the reason is only logged.
    gate = Gate()

    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    cast = Cast(
        {"a": to("b", "please write", found=3), "b": [says("half of it") + calls("look"), _hang(gate)]}
    )
    span = timedelta(seconds=0.8)
    async with serve(team("a", agent("b", tools=[look]), node_timeout=span), models=cast.models) as client:
        async with asyncio.timeout(HANGS):
            result = await client.run("team", "do it")
    assert keys(result) == [("a-1", "done", "handoff"), ("b-1", "done", "node_timeout")]
    assert (result.stop_reason, result.output, result.error) == ("node_timeout", "half of it", None)
    assert result.shared_context == {"a": {"found": 3}}
    assert result.tool_calls == 1


def _hang(gate: Gate) -> Part:
    return waits(gate, says("never"))


async def test_swarm_timeout_holds_in_agent(serve: ServeTeam) -> None:
    # Strands B1-8: a timeout of 0.2 s and an agent of 1 s: COMPLETED. Here the first agent has to come first.
    gate = Gate()
    cast = Cast({"a": to("b", "please write"), "b": _hang(gate)})
    async with serve(team("a", "b", timeout=timedelta(seconds=4)), models=cast.models) as client:
        async with asyncio.timeout(HANGS):
            result = await client.run("team", "do it")
            await gate.left.wait()
    assert result.stop_reason == "deadline"
    assert result.output == "please write", "the best there is"
    assert keys(result)[0] == ("a-1", "done", "handoff")
    assert [key for key, _, _ in keys(result)] == ["a-1", "b-1"]
    assert cast.order == ["a", "b"], "nothing was asked after it"


async def test_tokens_bind_all_agents_together(serve: ServeTeam) -> None:
    def part(request: ModelRequest) -> Answer:
        if request.tool_choice == "none":
            return says("my last word")
        return to("b" if request.config.model == "a" else "a")

    cast = Cast({"a": part, "b": part})
    async with serve(team("a", "b", total_tokens=1200, max_handoffs=50), models=cast.models) as client:
        result = await client.run("team", "do it")
    assert result.stop_reason == "token_budget"
    assert 0 < result.usage.total_tokens <= 1200


# -- accounts and failures


async def test_repeated_agent_usage_counts_once(serve: ServeTeam) -> None:
    # Strands B1-7: counted twice, 105 instead of 75.
    def a(request: ModelRequest) -> Answer:
        return says("done") if "Handoff Message" in request.messages[-1].text else to("b")

    cast = Cast({"a": a, "b": to("a")})
    async with serve(team("a", "b"), models=cast.models) as client:
        run = await client.start("team", "do it")
        result = await run.result()
        status = await run.status()
        steps = [step for key, _, _ in keys(result) for step in await client.get(f"{run.id}/~{key}").steps()]
    assert len(steps) == result.steps == 3
    assert result.usage.total_tokens == sum(step.usage.total_tokens for step in steps)
    assert result.usage == sum_of(result) == status.usage
    assert result.cost_microusd == sum(step.cost_microusd or 0 for step in steps) == status.cost_microusd


@pytest.mark.parametrize("at_step", [1, 2])
async def test_agent_error_fails_swarm(serve: ServeTeam, at_step: int) -> None:
    """An agent's error fails the swarm, with everything it had."""

    # Strands B2-9: in a later step the workflow task fails, and is retried for ever.
    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    script = [fails("bad_request", "no such thing")]
    if at_step == 2:
        script = [says("half of it") + calls("look"), *script]
    cast = Cast({"a": to("b", "please write", found=3), "b": script})
    async with serve(team("a", agent("b", tools=[look])), models=cast.models) as client:
        run = await client.start("team", "do it")
        with pytest.raises(RunFailed, match="agent 'b': no such thing") as failed:
            await run.result()
        assert not await run.is_stuck()
        status = await run.status()
    assert failed.value.kind == "bad_request"
    result = failed.value.result
    assert result is not None
    assert keys(result) == [("a-1", "done", "handoff"), ("b-1", "failed", "error")]
    assert result.nodes[1].error is not None
    assert result.shared_context == {"a": {"found": 3}}
    assert result.output == ("please write" if at_step == 1 else "half of it")
    assert result.usage == sum_of(result)
    assert (status.status, status.failure and status.failure.kind) == ("failed", "bad_request")


# -- people


How = Literal["stop", "cancel"]


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_ended_swarm_keeps_results(serve: ServeTeam, how: How) -> None:
    gate = Gate()

    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    cast = Cast(
        {"a": to("b", "please write", found=3), "b": [says("half of it") + calls("look"), _hang(gate)]}
    )
    async with serve(team("a", agent("b", tools=[look])), models=cast.models) as client:
        run = await client.start("team", "do it")
        await reached(gate)
        await (run.stop() if how == "stop" else run.cancel())
        async with asyncio.timeout(HANGS):
            result = await run.result()
            await gate.left.wait()
        child = await client.get(f"{run.id}/~b-1").result()
        parts = [step for key in ("a-1", "b-1") for step in await client.get(f"{run.id}/~{key}").steps()]
        status = await run.status()
    reason = "stopped" if how == "stop" else "cancelled"
    assert (result.stop_reason, child.stop_reason) == (reason, reason)
    assert status.status == ("completed" if how == "stop" else "cancelled")
    state = "done" if how == "stop" else "cancelled"
    assert keys(result) == [("a-1", "done", "handoff"), ("b-1", state, reason)]
    assert result.output == "half of it"
    assert result.shared_context == {"a": {"found": 3}}
    assert result.tool_calls == 1
    assert result.usage.total_tokens == sum(step.usage.total_tokens for step in parts)


async def test_paused_swarm_starts_nobody(serve: ServeTeam) -> None:
    gate = Gate()
    cast = Cast({"a": waits(gate, to("b")), "b": says("done")})
    async with serve(team("a", "b"), models=cast.models) as client:
        run = await client.start("team", "do it")
        await reached(gate)
        await run.pause()
        await until_status(client, run.id, "paused")
        gate.opened.set()

        async def a_has_ended() -> bool:
            return [node.state for node in (await run.status()).nodes] == ["done"]

        await until_queried(a_has_ended)
        assert (await run.status()).status == "paused"
        assert cast.order == ["a"]
        await run.resume()
        result = await run.result()
    assert (result.output, cast.order) == ("done", ["a", "b"])


async def test_paused_swarm_pauses_running_agent(serve: ServeTeam) -> None:
    gate = Gate()

    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    cast = Cast({"a": [waits(gate, calls("look")), says("done")]})
    async with serve(team(agent("a", tools=[look]), "b"), models=cast.models) as client:
        run = await client.start("team", "do it")
        await reached(gate)
        await run.pause()
        await until_status(client, f"{run.id}/~a-1", "paused")
        gate.opened.set()
        assert (await run.status()).status == "paused"
        await run.resume()
        assert (await run.result()).output == "done"
    assert cast.order == ["a", "a"]


async def test_root_resolves_agent_approval(serve: ServeTeam) -> None:
    paid: list[int] = []

    @tool(effect="write", approval=True)
    async def pay(cents: int) -> str:
        """Pay."""
        paid.append(cents)
        return f"paid {cents}"

    cast = Cast({"a": to("b"), "b": [calls("pay", cents=5), lambda request: says(request.messages[-1].text)]})
    async with serve(team("a", agent("b", tools=[pay])), models=cast.models) as client:
        run = await client.start("team", "do it")
        await until_status(client, run.id, "waiting_approval")
        [waiting] = (await run.status()).waiting
        page = await details(run)
        assert isinstance(waiting, Approval)
        assert (waiting.tool, waiting.arguments, waiting.path) == ("pay", {"cents": 5}, ["b-1"])
        assert waiting.run_id == f"{run.id}/~b-1"
        assert "waits for a person" in page
        assert "pay(cents=5)" in page
        with pytest.raises(InvalidRequest, match="does not wait"):
            await run.resolve_approval("call-9-9", allow=True)
        with pytest.raises(InvalidRequest, match="digest"):
            await run.resolve_approval(waiting.call_id, allow=True, digest="0" * 64)
        assert paid == []
        await run.resolve_approval(waiting.call_id, allow=True, by="lee", digest=waiting.digest)
        result = await run.result()
    assert (result.output, paid) == ("paid 5", [5])


async def test_root_answers_agent_question(serve: ServeTeam) -> None:
    cast = Cast(
        {
            "a": to("b"),
            "b": [calls("ask_person", question="Which?"), lambda request: says(request.messages[-1].text)],
        }
    )
    async with serve(team("a", agent("b", tools=[ask_person])), models=cast.models) as client:
        run = await client.start("team", "do it")
        await until_status(client, run.id, "waiting_person")
        await run.send("the blue one")
        assert (await run.result()).output == "the blue one"


async def test_message_reaches_running_agent(serve: ServeTeam) -> None:
    gate = Gate()

    @tool
    async def work() -> str:
        """Work."""
        await gate.wait()
        return "worked"

    def b(request: ModelRequest) -> Answer:
        return calls("work") if request.step == 1 else says(request.messages[-1].text)

    cast = Cast({"a": to("b"), "b": b})
    async with serve(team("a", agent("b", tools=[work])), models=cast.models) as client:
        run = await client.start("team", "do it")
        await reached(gate)
        assert (await run.send("be quick", id="m1")).unread == 1
        assert (await run.send("be quick", id="m1")).unread == 1
        gate.opened.set()
        result = await run.result()
        transcript = await client.get(f"{run.id}/~b-1").transcript()
    assert result.output == "be quick"
    assert Counter(message.text for message in transcript)["be quick"] == 2, "said once, and repeated once"


async def test_agent_reads_messages_before_handoff(serve: ServeTeam) -> None:
    gate = Gate()
    cast = Cast(
        {"a": [waits(gate, to("b")), lambda request: to("b", request.messages[-1].text)], "b": says("ok")}
    )
    async with serve(team("a", "b"), models=cast.models) as client:
        run = await client.start("team", "do it")
        await reached(gate)
        await run.send("tell b that it is urgent")
        gate.opened.set()
        await run.result()
    assert "Handoff Message from a: tell b that it is urgent" in cast.told("b")


async def test_resumed_swarm_resumes_parked_agent(serve: ServeTeam) -> None:
    # Strands B2-13: a bad key is retried for ever.
    tries = 0

    def b(request: ModelRequest) -> Answer:
        nonlocal tries
        tries += 1
        return fails("authentication", "no key") if tries == 1 else says("done")

    cast = Cast({"a": to("b"), "b": b})
    async with serve(team("a", "b"), models=cast.models) as client:
        run = await client.start("team", "do it")
        await until(partial(_parked, client, f"{run.id}/~b-1"))
        await run.resume()
        result = await run.result()
    assert (result.output, tries) == ("done", 2)


async def _parked(client: Client, run_id: str) -> bool:
    runs = [info.id async for info in client.list(status="parked", roots=False)]
    return run_id in runs


# -- pinned


async def test_later_agents_keep_first_spec(serve: ServeTeam) -> None:
    """Agents that start later have the spec with which the swarm began."""
    gate = Gate()
    cast = Cast({"a": waits(gate, to("b")), "b": says("done")})
    old = team("a", agent("b", instructions="the old way"))
    new = team("a", agent("b", instructions="the new way"))
    async with serve(old, models=cast.models) as client:
        run = await client.start("team", "do it")
        await reached(gate)
        await run.pause()
        gate.opened.set()

        async def a_has_ended() -> bool:
            return [node.state for node in (await run.status()).nodes] == ["done"]

        await until_queried(a_has_ended)
    async with serve(new, models=cast.models) as client:
        again = client.get(run.id)
        await again.resume()
        result = await again.result()
        assert result.spec_hash == old.spec().hash
        assert [request.instructions for request in cast.asked if request.config.model == "b"] == [
            "the old way"
        ]
        fresh = await client.run("team", "do it")
        assert fresh.spec_hash == new.spec().hash
    assert cast.asked[-1].instructions == "the new way"


async def test_children_are_runs(serve: ServeTeam) -> None:
    cast = Cast({"a": to("b"), "b": says("done")})
    async with serve(team("a", "b"), models=cast.models) as client:
        run = await client.start("team", "do it", user="ann", context={"k": 1})
        await run.result()
        child = client.get(f"{run.id}/~b-1")
        result, status = await child.result(), await child.status()
        transcript: list[Message] = await child.transcript()
    assert (result.agent, result.output, status.status) == ("b", "done", "completed")
    assert [message.role for message in transcript] == ["user", "assistant"]
    assert cast.asked[1].user == "ann"
