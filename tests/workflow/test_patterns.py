"""A pattern of a user's own on a real server: the debate of the examples, and schedulers that are wrong."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest

from perdure import Agent, NodeResult, PatternLimits, RunFailed
from perdure.members import Member
from perdure.messages import Part as MessagePart
from perdure.model import ModelRequest
from perdure.pattern import Over, Pattern, PatternSpec, Scheduler, Start, by_name
from perdure.settings import Settings
from perdure.starter.client.run import Run
from perdure.testing import calls, fails, says
from perdure.tools import as_tool
from perdure.wire.events import ChildEvent
from perdure.workers.dev.server import DevServer
from tests.conftest import HANGS, Gate, Serve, until
from tests.debates import EXAMPLES, load_debate
from tests.serving import running

from .test_swarm_runs import Answer, Cast, ServeTeam, agent, reached, sum_of, waits

debate = load_debate()


@pytest.fixture(params=["warm", pytest.param("cold", marks=pytest.mark.cold)])
def serve(serve: Serve, request: pytest.FixtureRequest) -> ServeTeam:
    """Cold: each workflow task replays the whole history, so what is not deterministic fails."""
    cold: dict[str, Any] = {} if request.param == "warm" else {"worker": {"max_cached_workflows": 0}}
    return partial(serve, **cold)


def talk(*speakers: Member | str, rounds: int = 2, **limits: Any) -> Any:
    members = [agent(member) if isinstance(member, str) else member for member in speakers]
    return debate.Debate(
        name="talk",
        description="Talks it over.",
        speakers=members,
        judge=agent("judge"),
        rounds=rounds,
        limits=PatternLimits(**limits),
    )


def rounds_of(request: ModelRequest) -> int:
    """Return the round in which the speaker is asked, as far as two speakers tell it."""
    return 2 if "Answers so far" in request.messages[-1].text else 1


def speaks(name: str) -> Any:
    def part(request: ModelRequest) -> Answer:
        return says(f"{name}{rounds_of(request)}")

    return part


def cast_of(*names: str, **parts: Any) -> Cast:
    return Cast({**{name: speaks(name) for name in names}, "judge": says("the verdict"), **parts})


def test_example_is_short() -> None:
    assert len((EXAMPLES / "debate.py").read_text().splitlines()) <= 150


async def test_example_reaches_verdict(serve: ServeTeam) -> None:
    async with serve(debate.tides, models=debate.models) as client:
        result = await client.run("tides", "What makes the tides?")
    assert (result.output, result.stop_reason) == ("The Moon, by 3 to 0.", "end_turn")
    expected = [f"{name}-{number}" for name in ("galileo", "kepler", "newton") for number in (1, 2)]
    assert Counter(node.key for node in result.nodes) == Counter([*expected, "judge-1"])
    assert result.usage == sum_of(result)
    assert result.cost_microusd == sum(node.cost_microusd or 0 for node in result.nodes) > 0


@pytest.mark.parametrize("rounds", [1, 3])
async def test_rounds_are_bounded(serve: ServeTeam, rounds: int) -> None:
    cast = cast_of("a", "b")
    async with serve(talk("a", "b", rounds=rounds), models=cast.models) as client:
        result = await client.run("talk", "why?")
    assert Counter(cast.order) == Counter(a=rounds, b=rounds, judge=1)
    assert result.output == "the verdict"


# -- limits


async def test_node_executions_end_pattern(serve: ServeTeam) -> None:
    cast = cast_of("a", "b")
    async with serve(talk("a", "b", max_node_executions=3), models=cast.models) as client:
        result = await client.run("talk", "why?")
    assert result.stop_reason == "max_node_executions"
    assert result.output == {"a": "a2", "b": "b1"}


@pytest.mark.parametrize(
    ("limits", "reason"), [({"total_tokens": 900}, "token_budget"), ({"cost_usd": 0.006}, "cost_budget")]
)
async def test_budgets_are_shared(serve: ServeTeam, limits: dict[str, Any], reason: str) -> None:
    """All members spend from one budget, and the newest answers remain when it is used up."""

    def part(request: ModelRequest) -> Answer:
        return says((f"{len(cast.asked)} " + "and on " * 60)[: 3 * request.max_tokens])

    cast = cast_of(a=part, b=part)
    async with serve(talk("a", "b", rounds=20, **limits), models=cast.models) as client:
        result = await client.run("talk", "why?")
    assert result.stop_reason == reason
    assert 0 < result.usage.total_tokens <= limits.get("total_tokens", 10_000)
    assert result.cost_microusd is not None
    assert 0 < result.cost_microusd <= limits.get("cost_usd", 1) * 1_000_000
    assert result.usage == sum_of(result)
    assert set(result.output) == {"a", "b"}, result


async def test_node_timeout_bounds_each_run(serve: ServeTeam) -> None:
    gate = Gate()
    cast = cast_of("b", a=waits(gate, says("late")))
    async with serve(talk("a", "b", rounds=1, node_timeout="PT1S"), models=cast.models) as client:
        async with asyncio.timeout(HANGS):
            result = await client.run("talk", "why?")
    assert result.output == "the verdict"
    reasons = {node.key: node.stop_reason for node in result.nodes}
    assert reasons == {"a-1": "node_timeout", "b-1": "end_turn", "judge-1": "end_turn"}


# -- ends


async def test_failed_member_fails_pattern(serve: ServeTeam) -> None:
    """The result holds everything that there is."""
    gate = Gate()

    async def a(request: ModelRequest) -> Answer:
        if rounds_of(request) == 1:
            return says("a1")
        await gate.wait()
        return says("never heard")

    async def b(request: ModelRequest) -> Answer:
        if rounds_of(request) == 1:
            return says("b1")
        await gate.reached.wait()
        return fails("bad_request", "no such thing")

    cast = cast_of(a=a, b=b)
    async with serve(talk(agent("a"), agent("b", on_failure="fail")), models=cast.models) as client:
        run = await client.start("talk", "why?")
        with pytest.raises(RunFailed, match="no such thing") as failed:
            async with asyncio.timeout(HANGS):
                await run.result()
    result = failed.value.result
    assert failed.value.kind == "bad_request"
    assert result is not None
    assert result.output == {"a": "a1", "b": "b1"}
    states = {node.key: node.state for node in result.nodes}
    assert states == {"a-1": "done", "b-1": "done", "a-2": "cancelled", "b-2": "failed"}


async def test_stop_gives_newest_answers(serve: ServeTeam) -> None:
    gate = Gate()

    async def b(request: ModelRequest) -> Answer:
        if rounds_of(request) == 2:
            await gate.wait()
        return says(f"b{rounds_of(request)}")

    cast = cast_of("a", b=b)
    async with serve(talk("a", "b"), models=cast.models) as client:
        run = await client.start("talk", "why?")
        await reached(gate)
        await _ended(run, "a-2")
        await run.stop()
        async with asyncio.timeout(HANGS):
            result = await run.result()
        status = await run.status()
    assert result.stop_reason == "stopped"
    assert result.output == {"a": "a2", "b": "b1"}
    assert (status.kind, status.status) == ("pattern", "completed")
    assert {node.key for node in status.nodes} == {"a-1", "b-1", "a-2", "b-2"}


async def _ended(run: Run, key: str) -> None:
    async def has_ended() -> bool:
        return any(node.key == key and node.state == "done" for node in (await run.status()).nodes)

    await until(has_ended, every=0.25)


# -- watched, nested, in a session


async def test_pattern_is_watched_inside_others(serve: ServeTeam) -> None:
    """A debate is a tool of an agent, and its nodes are runs of their own in the stream of the root."""
    cast = cast_of("a", "b", caller=[calls("talk", input="why?"), says("they say so")])
    caller = agent("caller", tools=[as_tool(talk("a", "b", rounds=1))])
    async with serve(caller, models=cast.models) as client:
        run = await client.start("caller", "ask them")
        paths: set[tuple[str, ...]] = set()
        async for event in run.events(tree=True):
            if isinstance(event, ChildEvent):
                paths.add(tuple(event.path))
        result = await run.result()
    assert result.output == "they say so"
    below = {path[-1] for path in paths if len(path) == 2}
    assert below == {"a-1", "b-1", "judge-1"}


async def test_session_of_pattern_remembers_turns(serve: ServeTeam) -> None:
    cast = cast_of("a", "b")
    async with serve(talk("a", "b", rounds=1), models=cast.models) as client:
        session = await client.session(f"debate-{uuid.uuid4().hex[:8]}", agent="talk")
        first = await session.say("why?")
        second = await session.say("and then?")
        status = await session.status()
        await session.close()
    assert (first.output, second.output, second.turn) == ("the verdict", "the verdict", 2)
    assert (status.kind, status.status) == ("session", "idle")
    asked = [request for request in cast.asked if request.config.model == "a"]
    texts = [message.text for message in asked[-1].messages]
    assert texts == ["why?", "the verdict", "and then?"]


# -- deploys and durability


async def test_pattern_keeps_all_over_continue_as_new(impatient: DevServer, settings: Settings) -> None:
    counts: Counter[str] = Counter()

    def part(request: ModelRequest) -> Answer:
        counts[request.config.model] += 1
        return says(f"{request.config.model}{counts[request.config.model]}")

    cast = cast_of(a=part, b=part)
    mine = settings.model_copy(update={"address": impatient.address})
    pattern = talk("a", "b", rounds=10)
    async with running([pattern], models=cast.models, address=impatient.address, settings=mine) as client:
        run = await client.start("talk", "why?")
        async with asyncio.timeout(HANGS):
            result = await run.result()
        listed = client.temporal.list_workflows(f'WorkflowId = "{run.id}"')

        async def several() -> bool:
            return len([execution async for execution in listed]) > 1

        with suppress(TimeoutError):
            await until(several, within=10)
        histories = client.temporal.list_workflows(f'WorkflowId = "{run.id}"')
        assert len([execution async for execution in histories]) > 1, "it did continue as new"
    assert result.output == "the verdict"
    expected = [f"{name}-{number}" for name in "ab" for number in range(1, 11)]
    assert Counter(node.key for node in result.nodes) == Counter([*expected, "judge-1"])
    assert "a: a10\n\nb: b10" in cast.asked[-1].messages[0].text
    assert result.usage == sum_of(result)


async def test_worker_without_pattern_does_not_end_run(serve: Serve) -> None:
    """Its workflow task fails until a worker comes that serves the pattern."""
    gate = Gate()
    cast = cast_of("b", a=waits(gate, says("a1")))
    pattern = talk("a", "b", rounds=1)
    async with serve(pattern, models=cast.models) as client:
        run = await client.start("talk", "why?")
        await reached(gate)
    gate.opened.set()
    async with serve(agent("a"), agent("b"), agent("judge"), models=cast.models) as client:
        await until(client.get(run.id).is_stuck)
    async with serve(pattern, models=cast.models) as client, asyncio.timeout(HANGS):
        result = await client.get(run.id).result()
    assert result.output == "the verdict"
    assert len(result.nodes) == 3


@dataclass(frozen=True)
class Seen:
    running: bool = False
    end: Over | None = None


class Clocked(Scheduler[Seen]):
    """Asks the clock in a helper method."""

    progress_type = Seen
    runs_alone = True

    def __init__(self, spec: PatternSpec) -> None:
        self.node = next(iter(spec.members))

    def begin(self, task: str | list[MessagePart], descriptions: Mapping[str, str]) -> Seen:
        return Seen()

    def startable(self, progress: Seen) -> list[Start]:
        return (
            []
            if progress.running
            else [Start(key=f"{self.node}-{self.number()}", node=self.node, prompt="go")]
        )

    def number(self) -> int:
        return round(time.time())

    def record_start(self, progress: Seen, starts: Sequence[Start]) -> Seen:
        return Seen(running=True)

    def record_end(self, progress: Seen, result: NodeResult) -> Seen:
        return Seen(running=True, end=Over(stop_reason="end_turn", output=result.output))

    def over(self, progress: Seen) -> Over | None:
        return progress.end

    def partial(self, progress: Seen) -> Any:
        return None


class Corrected(Clocked):
    def number(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class Alone(Pattern):
    pattern: ClassVar = "alone"
    scheduler: ClassVar = Clocked
    runs: Agent

    @property
    def members(self) -> dict[str, Member]:
        return by_name([self.runs])


class AloneCorrected(Alone):
    scheduler: ClassVar = Corrected


async def test_impure_scheduler_is_stuck_until_corrected(serve: Serve) -> None:
    """The sandbox refuses the clock; a worker with a corrected scheduler goes on with the run."""
    cast = Cast({"a": says("done")})
    async with serve(Alone(name="alone", runs=agent("a")), models=cast.models) as client:
        run = await client.start("alone", "go")
        await until(run.is_stuck)
        history = await run.handle.fetch_history()
    assert "time.time" in str(history.events)
    async with serve(AloneCorrected(name="alone", runs=agent("a")), models=cast.models) as client:
        async with asyncio.timeout(HANGS):
            result = await client.get(run.id).result()
    assert (result.output, [node.key for node in result.nodes]) == ("done", ["a-1"]), result.nodes
