"""Starting runs: idempotent ids, somebody else's worker, and agents as children of their workflows."""

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from temporalio import activity, workflow
from temporalio.client import Client as TemporalClient
from temporalio.common import Priority
from temporalio.worker import Worker

from perdure import Agent, PerdurePlugin, RemoteTool, RunConflict, RunNotFound, connect, run_agent, tool
from perdure.errors import DefinitionError, InvalidRequest
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.wire.results import ListedStatus
from tests.conftest import Gate, Serve, until


@tool
async def order_status(order_id: str) -> str:
    """Where an order is now."""
    return "on its way"


def looks_it_up(request: ModelRequest) -> Line:
    return calls("order_status", order_id="1") if request.step == 1 else says("It is on its way.")


SUPPORT = Agent(name="support", model="scripted:x", tools=[order_status])
MODELS = {"scripted": ScriptedModel(looks_it_up)}


async def test_starting_an_id_again_returns_its_run(serve: Serve) -> None:
    """The running run, and later the finished one if the request is the same."""
    gate = Gate()
    asked: list[str] = []

    async def script(request: ModelRequest) -> Line:
        asked.append(request.messages[0].text)
        await gate.wait()
        return says("done")

    async with serve(SUPPORT, models={"scripted": ScriptedModel(script)}) as client:
        ticket = f"ticket-{uuid.uuid4().hex}"
        await client.start("support", "first", id=ticket)
        await gate.reached.wait()
        again = await client.start("support", "first", id=ticket)
        gate.opened.set()
        assert (await again.result()).output == "done"
        finished = await client.start("support", "first", id=ticket)
        assert (await finished.result()).output == "done"
        assert asked == ["first"], "nothing was done twice"
        with pytest.raises(RunConflict, match="had another request"):
            await client.start("support", "second", id=ticket)
        anew = await client.start("support", "second", id=ticket, rerun=True)
        assert (await anew.result()).output == "done"
    assert asked == ["first", "second"]


async def test_priority_of_runs_and_sessions(serve: Serve) -> None:
    mine = Priority(priority_key=2, fairness_key="tenant-7", fairness_weight=3.0)
    async with serve(SUPPORT, models=MODELS) as client:
        run = await client.start("support", "where?", priority=mine)
        await run.result()
        session = await client.session(f"s-{uuid.uuid4().hex}", agent="support", priority=mine)
        await session.say("where?")
        for started in (run, session.run):
            history = await started.handle.fetch_history()
            given = history.events[0].workflow_execution_started_event_attributes.priority
            assert (given.priority_key, given.fairness_key, given.fairness_weight) == (2, "tenant-7", 3.0)
        await session.close()


async def test_an_unknown_run_is_not_found(serve: Serve) -> None:
    async with serve(SUPPORT, models=MODELS) as client:
        with pytest.raises(RunNotFound, match="'nobody'"):
            await client.get("nobody").status()
        with pytest.raises(RunNotFound, match="'nobody'"):
            await client.get("nobody").result()


@workflow.defn
class Ticket:
    """Somebody's own workflow."""

    @workflow.run
    async def run(self, question: str) -> list[str]:
        result = await run_agent("support", question, user="ann")
        return [
            str(result.output),
            result.stop_reason,
            await workflow.execute_activity(mine, start_to_close_timeout=timedelta(seconds=5)),
        ]


@activity.defn
async def mine() -> str:
    return "mine"


async def test_plugin_adds_agents_to_any_worker(settings: Settings) -> None:
    plugin = PerdurePlugin(agents=[SUPPORT], models=MODELS, settings=settings)
    temporal = await TemporalClient.connect(settings.address, plugins=[plugin])
    async with Worker(temporal, task_queue=settings.task_queue, workflows=[Ticket], activities=[mine]):
        answer = await temporal.execute_workflow(
            Ticket.run, "Where is 1?", id=f"t-{uuid.uuid4()}", task_queue=settings.task_queue
        )
        assert answer == ["It is on its way.", "end_turn", "mine"]
        client = await connect(settings=settings)
        assert (await client.run("support", "Where is 1?")).output == "It is on its way."


async def test_plugin_on_the_worker_only_is_refused(settings: Settings) -> None:
    """The error says that the plugin belongs to the client."""
    temporal = await TemporalClient.connect(settings.address)
    with pytest.raises(DefinitionError, match=r"Client\.connect"):
        Worker(temporal, task_queue="q", plugins=[PerdurePlugin(agents=[SUPPORT], settings=settings)])


async def test_agents_with_same_name_are_refused(settings: Settings) -> None:

    other = replace(SUPPORT, instructions="Another one.")
    with pytest.raises(DefinitionError, match="called 'support'; rename one"):
        PerdurePlugin(agents=[SUPPORT, other], settings=settings)


async def test_any_worker_may_run_a_remote_tool(serve: Serve, settings: Settings) -> None:
    got: list[Any] = []

    @activity.defn(name="stock")
    async def stock(arguments: dict[str, Any], context: dict[str, Any]) -> dict[str, int]:
        got.append((arguments, context))
        return {"in_stock": 4}

    queue = f"stock-{uuid.uuid4().hex}"
    remote = RemoteTool(
        name="stock",
        description="How many are left.",
        input_schema={"type": "object", "properties": {"sku": {"type": "string"}}, "required": ["sku"]},
        task_queue=queue,
    )

    def script(request: ModelRequest) -> Line:
        return calls("stock", sku="A1") if request.step == 1 else says(request.messages[-1].text)

    agent = Agent(name="a", model="scripted:x", tools=[remote])
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        elsewhere = await TemporalClient.connect(settings.address)
        async with Worker(elsewhere, task_queue=queue, activities=[stock]):
            run = await client.start("a", "how many", user="ann")
            assert (await run.result()).output == '{"in_stock": 4}'
    [(arguments, context)] = got
    assert arguments == {"sku": "A1"}
    assert (context["call_id"], context["user"], context["run_id"]) == ("call-1-1", "ann", run.id)
    assert context["idempotency_key"].startswith("perdure-")


async def test_client_exposes_temporals_client(serve: Serve) -> None:
    async with serve(SUPPORT, models=MODELS) as client:
        assert isinstance(client, Client)
        run = await client.start("support", "Where is 1?", id=f"mine-{uuid.uuid4()}")
        described = await client.temporal.get_workflow_handle(run.id).describe()
        assert described.workflow_type == "AgentWorkflow"
        assert (await described.static_summary()) == "support: Where is 1?"
        await run.result()


async def test_lists_say_working(serve: Serve) -> None:
    gate = Gate()

    async def script(request: ModelRequest) -> Line:
        await gate.wait()
        return says("done")

    user = f"lister-{uuid.uuid4().hex[:8]}"
    async with serve(SUPPORT, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("support", "go", user=user)
        await gate.reached.wait()

        async def listed(status: ListedStatus) -> list[str]:
            return [one.id async for one in client.list(status=status, user=user)]

        async def is_listed() -> bool:
            return await listed("working") == [run.id]

        await until(is_listed)
        assert (await run.status()).status == "thinking"
        [info] = [info async for info in client.list(user=user)]
        assert (info.steps, info.has_gone_on) == (None, True)  # not 0: the server was told when it began
        for queue, found in ((client.task_queue, [run.id]), ("another", [])):
            assert [info.id async for info in client.list(user=user, task_queue=queue)] == found
        assert await listed("waiting_approval") == []
        with pytest.raises(InvalidRequest, match="list 'working'"):
            await listed(cast("ListedStatus", "thinking"))
        gate.opened.set()
        await run.result()
        [info] = [info async for info in client.list(user=user)]
        assert (info.steps, info.has_gone_on) == (1, False)
