"""Everything that an operator's command does is a call of Client or Run, without the command line."""

from datetime import timedelta
from typing import Any

import pytest

from perdure import Agent, InvalidRequest, tool
from perdure.errors import ModelError, RunEnded, RunNotFound
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.testing import ScriptedModel, calls, says
from perdure.wire.results import Approval
from tests.conftest import Serve, until, until_queried, until_status


@pytest.fixture
def strict_sandbox() -> bool:
    """These tests reach every handler: queries, which no history holds, too."""
    return True


@tool(effect="write", approval=True)
async def pay(cents: int) -> str:
    """Pay."""
    return f"paid {cents}"


def _payers() -> tuple[Agent, ScriptedModel]:
    """A boss that has two payments made below it, each of which waits for approval."""
    payer = Agent(name="payer", model="scripted:payer", description="Pays.", tools=[pay])
    boss = Agent(name="boss", model="scripted:boss", tools=[payer.as_tool()])

    def answer(request: ModelRequest) -> Any:
        if request.step > 1:
            return says("; ".join(result.text for result in request.messages[-1].tool_results))
        if request.config.model == "boss":
            return [calls("payer", input="1"), calls("payer", input="2")]
        return calls("pay", cents=int(request.messages[0].text))

    return boss, ScriptedModel(answer)


async def _until_waiting(client: Client, run_id: str, count: int) -> None:
    async def all_wait() -> bool:
        return len(await client.get(run_id).waiting()) == count

    await until_queried(all_wait)


async def test_tree_approvals_resolve_at_once(serve: Serve) -> None:
    boss, model = _payers()
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go")
        await _until_waiting(client, run.id, 2)
        waiting = [item for item in await run.waiting() if isinstance(item, Approval)]
        outcomes = await run.resolve_approvals(allow=True, by="lee")
        assert [outcome.error for outcome in outcomes] == [None, None]
        assert {outcome.id for outcome in outcomes} == {f"{item.run_id}/call-1-1" for item in waiting}
        assert (await run.result()).output == "paid 1; paid 2"


async def test_resolved_call_does_not_block_rest(serve: Serve) -> None:
    """A call that was resolved meanwhile does not block the rest."""
    boss, model = _payers()
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go")
        await _until_waiting(client, run.id, 2)
        with pytest.raises(InvalidRequest, match="2 calls wait; name the call"):
            await run.find_approval()
        seen = [item for item in await run.waiting() if isinstance(item, Approval)]
        first = await run.find_approval(f"{seen[0].run_id}/call-1-1")
        await run.resolve_approval(first, allow=False)
        await _until_waiting(client, run.id, 1)
        outcomes = await run.resolve_approvals(allow=True, approvals=seen)
        assert [type(outcome.error) for outcome in outcomes] == [InvalidRequest, type(None)]
        assert (await run.result()).output.count("paid") == 1


async def test_runs_waiting_for_people_are_listed(serve: Serve) -> None:
    boss, model = _payers()
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go", user="who-waits")

        async def waiting() -> list[str]:
            return [info.id async for info in client.waiting(user="who-waits")]

        async def is_listed() -> bool:
            return await waiting() == [run.id]

        await until(is_listed)
        await run.handle.terminate()

        async def is_gone() -> bool:
            return await waiting() == []

        await until(is_gone)


async def test_redrive_gives_outcome_of_each(serve: Serve) -> None:
    """Parked runs are resumed by cause, and each has an outcome."""
    broken = True

    def answer(request: ModelRequest) -> Any:
        if broken:
            raise ModelError("authentication", "no key")
        return says("hi")

    agent = Agent(name="a", model="scripted:x", on_failure="park")
    async with serve(agent, models={"scripted": ScriptedModel(answer)}) as client:
        runs = [await client.start("a", f"go {number}", user="redriven-by-cause") for number in range(2)]
        for run in runs:
            await until_status(client, run.id, "parked")
            await run.check_parked()

        async def ids() -> list[str]:
            parked = client.parked_runs(cause="auth", user="redriven-by-cause")
            return [info.id async for info in parked]

        async def all_are_listed() -> bool:
            return len(await ids()) == 2

        await until(all_are_listed)
        broken = False
        outcomes = [outcome async for outcome in client.redrive([*(await ids()), "a-stranger"])]
        assert [outcome.error for outcome in outcomes[:2]] == [None, None]
        assert isinstance(outcomes[2].error, RunNotFound)
        for run in runs:
            assert (await run.result()).output == "hi"
        with pytest.raises(InvalidRequest, match="is not parked"):
            await runs[0].check_parked()


async def test_terminated_run_counts_as_ended(serve: Serve) -> None:
    boss, model = _payers()
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go")
        await _until_waiting(client, run.id, 2)
        await run.handle.terminate()
        status = await run.reconciled_status()
        assert (status.status, status.waiting) == ("failed", [])
        assert {node.state for node in status.nodes} == {"cancelled"}
        polls = [poll async for poll in run.poll_status(interval=timedelta())]
        assert [poll.status.status for poll in polls] == ["failed"]


async def test_inspection_is_complete(serve: Serve) -> None:
    """An inspection has status, steps, runs below and the result."""
    boss, model = _payers()
    async with serve(boss, models={"scripted": model}) as client:
        run = await client.start("boss", "go")
        await _until_waiting(client, run.id, 2)
        before = await run.inspect()
        assert (before.state, before.result) == ("running", None)
        assert before.status is not None
        assert len(before.status.waiting) == 2
        await run.resolve_approvals(allow=True)
        await run.result()
        after = await run.inspect()
        assert after.state == "completed"
        assert after.result is not None
        assert after.result.output == "paid 1; paid 2"
        assert [node.state for node in after.nodes] == ["done", "done"]
        assert len(after.steps) == 2
        assert after.plain()["error"] is None
        with pytest.raises(RunNotFound):
            await client.get("a-stranger").inspect()


async def test_session_is_continued_or_opened(serve: Serve) -> None:
    agent = Agent(name="clerk", model="scripted:x")
    model = ScriptedModel(lambda _: says("hi"))
    async with serve(agent, models={"scripted": model}) as client:
        assert await client.wait_for_worker()
        name = f"continued-{client.task_queue}"
        with pytest.raises(RunNotFound):
            await client.continue_session(name)
        opened = await client.continue_session(name, agent="clerk", user=name)
        await opened.say("hello")
        again = await client.continue_session(name, agent="clerk", user="another user changes nothing")
        await again.say("hello again")
        with pytest.raises(InvalidRequest, match="is with 'clerk', not with 'boss'"):
            await client.continue_session(name, agent="boss")

        async def is_listed() -> bool:
            return [info.id async for info in client.open_sessions(user=name)] == [name]

        await until(is_listed)
        await again.close()
        await again.run.result()
        with pytest.raises(RunEnded):
            await client.continue_session(name, agent="clerk")
        with pytest.raises(InvalidRequest, match="to open it anew, name an agent"):
            await client.continue_session(name, reopen=True)
        anew = await client.continue_session(name, agent="clerk", reopen=True)
        assert (await anew.say("hello")).turn == 1
        await anew.cancel()


async def test_newest_run_of_name_is_found(serve: Serve) -> None:
    name = "newest-of-a-name"
    agent = Agent(name=name, model="scripted:x")
    async with serve(agent, models={"scripted": ScriptedModel(lambda _: says("hi"))}) as client:
        with pytest.raises(RunNotFound, match="there is no run of 'nobody-of-that-name'"):
            await client.newest_run("nobody-of-that-name")
        older, run = await client.start(name, "older"), await client.start(name, "newer")
        for started in (older, run):
            await started.result()

        async def is_found(newest: str = run.id) -> bool:
            try:
                return (await client.newest_run(name)).id == newest
            except RunNotFound:
                return False

        await until(is_found)
