"""Instructions by a function: made when a run resolves, for its user, and pinned with it."""

from typing import Any

import pytest

from perdure import Agent, DefinitionError, InstructionsContext, RunFailed, Swarm
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.testing import running as running_apart
from tests.conftest import until, until_status
from tests.serving import running

seen: list[tuple[str, str]] = []


def script(request: ModelRequest) -> Line:
    """Answer with the instructions that the model was given."""
    return says(request.instructions)


MODELS = {"scripted": ScriptedModel(script)}


def for_user(run: InstructionsContext[str]) -> str:
    shop = run.context.get("shop", "no shop")
    return f"{run.agent} serves {run.user} ({', '.join(run.roles)}) of {shop} with {run.resources}."


async def for_user_later(run: InstructionsContext[str]) -> str:
    return for_user(run)


async def resolved_times(client: Client, run_id: str) -> int:
    history = await client.get(run_id).handle.fetch_history()
    kinds = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    return kinds.count("resolve_agent")


@pytest.mark.parametrize("function", [for_user, for_user_later], ids=["sync", "async"])
async def test_instructions_are_made_for_the_run(function: Any) -> None:
    """The function gets user, roles, context and resources; its text is pinned, and is part of the spec's hash."""
    clerk = Agent(name="clerk", model="scripted:x", instructions=function)
    plain = Agent(name="plain", model="scripted:x", instructions="Be kind.")
    async with running([clerk, plain], models=MODELS, resources="a pool") as client:
        who: dict[str, Any] = {"user": "ann", "roles": ["vip", "old"], "context": {"shop": "Lamps"}}
        first = await client.start("clerk", "hi", **who)
        assert (await first.result()).output == "clerk serves ann (vip, old) of Lamps with a pool."
        other = await client.start("clerk", "hi")
        assert (await other.result()).output == "clerk serves None () of no shop with a pool."
        same = await client.run("clerk", "hi", **who)
        hashes = [(await run.result()).spec_hash for run in (first, other)]
        assert hashes[0] == same.spec_hash != hashes[1]
        untouched = await client.start("plain", "hi", **who)
        assert (await untouched.result()).output == "Be kind."
        assert [await resolved_times(client, run.id) for run in (first, untouched)] == [2, 1]


async def test_whole_trees_are_pinned() -> None:
    """Members of a team and agents called as tools get instructions for the user of the root, made once."""
    made: list[str] = []

    def counted(run: InstructionsContext) -> str:
        made.append(run.agent)
        return f"for {run.user}"

    helper = Agent(name="helper", model="scripted:help", description="helps", instructions=counted)
    boss = Agent(name="boss", model="scripted:boss", instructions=counted, tools=[helper.as_tool()])
    team = Swarm(name="team", agents=[boss])

    def asks(request: ModelRequest) -> Line:
        if request.config.name == "scripted:help" or request.step > 1:
            seen.append((request.config.name, request.instructions))
            return says("done")
        return calls("helper", task="help me")

    seen.clear()
    async with running([team], models={"scripted": ScriptedModel(asks)}) as client:
        await client.run("team", "go", user="ann")
    assert sorted(made) == ["boss", "helper"]
    assert {words.partition("\n")[0] for _, words in seen} == {"for ann"}


async def test_session_takes_new_instructions_each_turn() -> None:
    """A session keeps its instructions, unless it takes the newest version of its agent with each message."""
    day = ["Monday"]
    clerk = Agent(name="clerk", model="scripted:x", instructions=lambda run: f"{day[0]} for {run.user}")
    async with running([clerk], models=MODELS) as client:
        kept = await client.session("kept", agent="clerk", user="ann")
        fresh = await client.session("fresh", agent="clerk", user="ann", upgrade="each_turn")
        for session in (kept, fresh):
            assert (await session.say("hi")).output == "Monday for ann"
        day[0] = "Tuesday"
        assert (await kept.say("hi")).output == "Monday for ann"
        assert (await fresh.say("hi")).output == "Tuesday for ann"


async def test_run_waits_for_its_instructions() -> None:
    """A function that fails holds the run back, in words; it begins once the function answers."""
    away = [True]

    def asks_database(run: InstructionsContext) -> str:
        if away:
            raise ConnectionError("the database is away")
        return "at last"

    clerk = Agent(name="clerk", model="scripted:x", instructions=asks_database)
    async with running([clerk], models=MODELS) as client:
        run = await client.start("clerk", "hi")

        async def says_why() -> bool:
            status = await run.status()
            return "instructions of agent 'clerk' cannot be made: ConnectionError" in status.doing

        await until(says_why)
        stopped = await client.start("clerk", "hi")
        await until_status(client, stopped.id, "thinking")
        await stopped.stop()
        assert (await stopped.result()).stop_reason == "stopped"
        away.clear()
        assert (await run.result()).output == "at last"


async def test_test_learns_the_reason() -> None:
    """In a test nobody would mend it: the run fails, and says why."""

    def wrong(run: InstructionsContext) -> Any:
        return 7

    clerk = Agent(name="clerk", model="scripted:x", instructions=wrong)
    async with running_apart([clerk], models=MODELS) as client:
        with pytest.raises(RunFailed, match="must be text, and its function gave a int"):
            await client.run("clerk", "hi")


def test_other_instructions_are_refused() -> None:
    wrong: Any = ["Be kind."]
    with pytest.raises(DefinitionError, match="instructions must be text, or a function"):
        Agent(name="clerk", model="scripted:x", instructions=wrong)


def test_function_is_named_in_the_spec() -> None:
    spec = Agent(name="clerk", model="scripted:x", instructions=for_user).spec()
    assert (spec.instructions, spec.instructions_by) == ("", "for_user")
