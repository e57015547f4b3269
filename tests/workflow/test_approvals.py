"""Approvals: a call is held until a person decides, and is exactly the call they saw."""

from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, StringConstraints

from perdure import Agent, InvalidRequest, Policy, Rule, RunEnded, tool
from perdure.messages import Message
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.wire.results import Approval
from tests.conftest import Serve, until, until_status

REFUNDS: list[tuple[str, int]] = []


def _even(cents: int) -> int:
    if cents % 2:
        raise ValueError("must be even")
    return cents


Even = Annotated[int, AfterValidator(_even)]


@tool(effect="write", approval=True, resource="order_id")
async def refund(order_id: str, cents: int) -> str:
    """Pay money back."""
    REFUNDS.append((order_id, cents))
    return f"refunded {cents}"


@tool
async def look(order_id: str) -> str:
    """Look at an order."""
    return "seen"


def script(request: ModelRequest) -> Any:
    if request.step == 1:
        return [calls("look", order_id="W1"), calls("refund", order_id="W1", cents=500)]
    return says(request.messages[2].tool_results[1].text)


@pytest.fixture(autouse=True)
def _no_refunds() -> None:
    REFUNDS.clear()


def agent(**changed: Any) -> Agent:
    return Agent(name="a", model="scripted:x", tools=[look, refund], **changed)


async def held(client: Client) -> tuple[Run, Approval]:
    run = await client.start("a", "refund W1")
    await until_status(client, run.id, "waiting_approval")

    async def only_that() -> bool:
        return all(call.state in ("waiting", "done") for call in (await run.status()).calls)

    await until(only_that)
    [waiting] = (await run.status()).waiting
    assert isinstance(waiting, Approval)
    return run, waiting


async def test_approved_call_runs_once(serve: Serve) -> None:
    """An approved call runs once, and the other calls did not wait for it."""
    async with serve(agent(), models={"scripted": ScriptedModel(script)}) as client:
        run, waiting = await held(client)
        assert (waiting.tool, waiting.arguments) == ("refund", {"order_id": "W1", "cents": 500})
        assert REFUNDS == []
        assert [call.state for call in (await run.status()).calls] == ["done", "waiting"]
        await run.resolve_approval(waiting.call_id, allow=True, by="lee", digest=waiting.digest)
        assert (await run.result()).output == "refunded 500"
    assert REFUNDS == [("W1", 500)]


async def test_denied_call_is_explained_to_model(serve: Serve) -> None:
    """A denied call does not run, and the model gets the reason."""
    async with serve(agent(), models={"scripted": ScriptedModel(script)}) as client:
        run, waiting = await held(client)
        await run.resolve_approval(waiting.call_id, allow=False, by="lee", reason="too much")
        assert (await run.result()).output == "This call was refused by lee: too much"
    assert REFUNDS == []


async def test_edited_arguments_are_used(serve: Serve) -> None:
    """Edited arguments are the ones used, and the model learns of them."""
    async with serve(agent(), models={"scripted": ScriptedModel(script)}) as client:
        run, waiting = await held(client)
        await run.resolve_approval(
            waiting.call_id, allow=True, by="lee", arguments={"order_id": "W1", "cents": 100}
        )
        output = (await run.result()).output
    assert REFUNDS == [("W1", 100)]
    assert output == "(A person changed the arguments to {'order_id': 'W1', 'cents': 100}.)\nrefunded 100"


async def test_invalid_edited_arguments_are_rejected(serve: Serve) -> None:
    """Edited arguments that do not fit are rejected, and the call still waits."""
    async with serve(agent(), models={"scripted": ScriptedModel(script)}) as client:
        run, waiting = await held(client)
        with pytest.raises(InvalidRequest, match="'refund': cents: 'many' is not of type 'integer'"):
            await run.resolve_approval(
                waiting.call_id, allow=True, arguments={"order_id": "W1", "cents": "many"}
            )
        await run.resolve_approval(waiting.call_id, allow=True, arguments={"order_id": "W1", "cents": 7})
        await run.result()
    assert REFUNDS == [("W1", 7)]


async def test_policy_judges_edited_arguments(serve: Serve) -> None:
    """An edit that the policy denies is refused to the person, and the call still waits."""
    policy = Policy(rules=(Rule(verdict="deny", resource="W9*"), Rule(verdict="allow")))
    async with serve(agent(policy=policy), models={"scripted": ScriptedModel(script)}) as client:
        run, waiting = await held(client)
        with pytest.raises(InvalidRequest, match="the policy does not allow 'refund'"):
            await run.resolve_approval(waiting.call_id, allow=True, arguments={"order_id": "W9", "cents": 7})
        await run.resolve_approval(waiting.call_id, allow=True, arguments={"order_id": "W1", "cents": "7"})
        await run.result()
    assert REFUNDS == [("W1", 7)]


async def test_edit_is_read_as_the_function_reads_it(serve: Serve) -> None:
    """An edit that the policy denies is refused at the door in any spelling, and so is one the function refuses."""

    @tool(name="refund", effect="write", approval=True, resource="order_id")
    async def shouted(order_id: Annotated[str, StringConstraints(to_upper=True)], cents: Even) -> str:
        """Pay money back."""
        REFUNDS.append((order_id, cents))
        return "refunded"

    policy = Policy(rules=(Rule(verdict="deny", resource="W9*"), Rule(verdict="allow")))
    clerk = Agent(name="a", model="scripted:x", tools=[look, shouted], policy=policy)
    async with serve(clerk, models={"scripted": ScriptedModel(script)}) as client:
        run, waiting = await held(client)
        for edited, why in (
            ({"order_id": "w9", "cents": 8}, "the policy does not allow 'refund' with these arguments"),
            ({"order_id": "w1", "cents": 7}, r"must be even \(got 7\); the call still waits"),
            ({"order_id": "w1", "cents": float("nan")}, "cents is nan, and JSON has no such number"),
        ):
            with pytest.raises(InvalidRequest, match=why):
                await run.resolve_approval(waiting, allow=True, arguments=edited)
        plain = {"call_id": waiting.call_id, "allow": True, "arguments": {"cents": float("inf")}}
        with pytest.raises(InvalidRequest, match="cents is inf, and JSON has no such number"):
            await run.calls.update("resolve_approval", plain)
        answer = await run.resolve_approval(waiting, allow=True, arguments={"order_id": "w1", "cents": 8})
        assert answer.words.startswith("approved with other arguments at ")
        await run.result()
        [call] = [call for step in await run.steps() for call in step.tool_calls if call.tool == "refund"]
    assert REFUNDS == [("W1", 8)]
    assert call.approval is not None
    assert call.approval.arguments == {"order_id": "W1", "cents": 8}


@pytest.mark.parametrize(
    ("decision", "why"),
    [
        ({"call_id": "call-9-9", "allow": True}, "does not wait for an approval; waiting: call-1-2"),
        ({"call_id": "call-1-2", "allow": True, "digest": "0" * 64}, "digest is another"),
        ({"call_id": "call-1-2", "allow": False, "arguments": {}}, "only when the call is allowed"),
        ({"call_id": "call-1-2"}, "allow: Field required"),
        ({"call_id": "call-1-2", "allow": True, "bye": "lee"}, "bye: Extra inputs"),
        ("yes", "decision"),
    ],
)
async def test_wrong_approval_leaves_no_trace(serve: Serve, decision: Any, why: str) -> None:
    """A wrong approval decision is rejected and leaves no trace."""
    async with serve(agent(), models={"scripted": ScriptedModel(script)}) as client:
        run, _ = await held(client)
        before = (await run.describe()).history_length
        with pytest.raises(InvalidRequest, match=why):
            await run.calls.update("resolve_approval", decision)
        assert (await run.describe()).history_length == before
        await run.stop()
        await run.result()


async def test_ended_run_accepts_nothing(serve: Serve) -> None:
    """A run that is over accepts no message and no command."""
    async with serve(agent(), models={"scripted": ScriptedModel([says("hi")])}) as client:
        run = await client.start("a", "hi")
        await run.result()
        with pytest.raises(RunEnded, match="is over"):
            await run.send("more")
        with pytest.raises(RunEnded, match="is over"):
            await run.resolve_approval("call-1-1", allow=True)
        with pytest.raises(RunEnded, match="is over"):
            await run.stop()
        with pytest.raises(RunEnded, match="is over"):
            await run.cancel()


async def test_same_decision_holds_after_the_end(serve: Serve) -> None:
    """The same decision again has its first one as its answer, also after the end; another is refused."""
    async with serve(agent(), models={"scripted": ScriptedModel(script)}) as client:
        run, waiting = await held(client)
        first = await run.resolve_approval(waiting, allow=True, by="lee")
        await run.result()
        again = await client.get(run.id).resolve_approval(waiting, allow=True, by="lee")
        assert (again.allow, again.by, again.at, again.repeated) == (True, "lee", first.at, True)
        with pytest.raises(RunEnded, match="is over"):
            await run.resolve_approval(waiting, allow=False)
        with pytest.raises(RunEnded, match="is over"):
            await run.resolve_approval(waiting, allow=True, arguments={"cents": 1})


async def test_visibility_query_finds_waiting_runs(serve: Serve) -> None:
    async with serve(agent(), models={"scripted": ScriptedModel(script)}) as client:
        run, waiting = await held(client)

        async def found() -> bool:
            listed = [info async for info in client.list(status="waiting_approval")]
            return run.id in [info.id for info in listed]

        await until(found)
        await run.resolve_approval(waiting.call_id, allow=True)
        await run.result()

        async def gone() -> bool:
            return run.id not in [info.id async for info in client.list(status="waiting_approval")]

        await until(gone)


async def test_policy_can_require_approval(serve: Serve) -> None:
    """A policy can require an approval that the tool does not."""
    policy = Policy(rules=(Rule(verdict="ask", tool="look"), Rule(verdict="allow")))

    def both(request: ModelRequest) -> Line:
        return calls("look", order_id="W1") if request.step == 1 else says("done")

    async with serve(agent(policy=policy), models={"scripted": ScriptedModel(both)}) as client:
        run = await client.start("a", "look")
        await until_status(client, run.id, "waiting_approval")
        [waiting] = (await run.status()).waiting
        await run.resolve_approval(waiting.call_id, allow=True)
        assert (await run.result()).output == "done"


async def test_plain_json_resolves_approval(serve: Serve) -> None:
    """Plain JSON is all that another language needs."""
    async with serve(agent(), models={"scripted": ScriptedModel(script)}) as client:
        handle = await client.temporal.start_workflow(
            "AgentWorkflow",
            {"agent": "a", "prompt": "refund W1"},
            id=client.task_queue,
            task_queue=client.task_queue,
        )
        await until_status(client, client.task_queue, "waiting_approval")
        status: dict[str, Any] = await handle.query("status")
        await handle.execute_update("send", "hello")
        await handle.execute_update(
            "resolve_approval", {"call_id": status["waiting"][0]["call_id"], "allow": True}
        )
        result: dict[str, Any] = await handle.result()
        page: dict[str, Any] = await handle.query("transcript", {"start": 1})
    assert result["stop_reason"] == "end_turn"
    assert Message.model_validate(page["messages"][0]).role == "assistant"
