"""Whoever may start workflows, and no more: nothing that they write makes a run trust them."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client as TemporalClient
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, FailureError
from temporalio.worker import Worker

from perdure import Agent, InvalidRequest, ModelConfig, ask_person, run_agent
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.wire.ids import child_run_id
from perdure.wire.names import RESOLVE_AGENT, SESSION_WORKFLOW, WORKFLOW
from tests.conftest import HANGS, Serve, until, until_status

TICKET = Agent(name="ticket", model="scripted:x", description="Handles a ticket.", tools=[ask_person])
BOSS = Agent(name="boss", model="scripted:x", tools=[TICKET.as_tool()])
REQUEST = {"agent": "boss", "prompt": "go"}
STATE = {"state": {"spec": {"kind": "agent", "name": "boss"}}, "version": 1, "search_attributes": True}
CHILD = {
    "lineage": {"parent": "p", "key": "boss-1-1", "spec_digest": "", "as_of": "2026-11-30T00:00:00Z"},
    "lease": {"lender": "p"},
}


def script(request: ModelRequest) -> Line:
    """Ask for the ticket, which asks a person."""
    if request.step > 1:
        return says("done")
    tools = {tool.name for tool in request.tools}
    return calls("ticket", input="do it") if "ticket" in tools else calls("ask_person", question="sure?")


MODELS = {"scripted": ScriptedModel(script)}


async def cause_of(client: Client, run_id: str) -> ApplicationError:
    """Return the error with which the run fails."""
    with pytest.raises(WorkflowFailureError) as failed:
        await asyncio.wait_for(client.temporal.get_workflow_handle(run_id).result(), HANGS)
    assert isinstance(failed.value.cause, ApplicationError)
    return failed.value.cause


async def failed_tasks(client: Client, run_id: str) -> int:
    history = await client.temporal.get_workflow_handle(run_id).fetch_history()
    failed = (event.workflow_task_failed_event_attributes for event in history.events)
    reset = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW
    return sum(task.cause != reset for task in failed if task.scheduled_event_id)


async def test_child_ends_no_run_of_others(serve: Serve) -> None:
    """A workflow that happens to have a child's id goes on; the model hears that the id is taken."""
    async with serve(BOSS, models=MODELS) as client, asyncio.timeout(HANGS):
        taken = child_run_id("boss-of-all", "ticket-1-1")
        theirs = await client.temporal.start_workflow("Order", id=taken, task_queue="nobody")
        run = await client.start("boss", "go", id="boss-of-all")
        assert (await run.result()).output == "done"
        heard = (await run.transcript())[2].tool_results[0]
        assert heard.is_error
        assert "goes on already" in heard.text
        assert (await theirs.describe()).status == WorkflowExecutionStatus.RUNNING
        await theirs.terminate()


async def test_reset_starts_children_anew(serve: Serve) -> None:
    """A run that was reset ends the children of the execution before, and starts them again."""
    async with serve(BOSS, models=MODELS) as client, asyncio.timeout(HANGS):
        run = await client.start("boss", "go", id="boss-again")
        child = client.get(child_run_id(run.id, "ticket-1-1"))
        await until_status(client, child.id, "waiting_person")
        first = (await child.describe()).run_id
        before = await run.handle.fetch_history()
        called = next(
            event.event_id
            for event in before.events
            if event.event_type == EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED
        )
        await client.temporal.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=client.temporal.namespace,
                workflow_execution=WorkflowExecution(workflow_id=run.id),
                workflow_task_finish_event_id=called - 1,
                request_id="again",
                reason="test",
            )
        )

        async def is_another() -> bool:
            return (await child.describe()).run_id != first

        await until(is_another)
        await until_status(client, child.id, "waiting_person")
        await child.send("yes")
        result = await client.get(run.id).result()
        assert result.output == "done"
        left_behind = client.temporal.get_workflow_handle(child.id, run_id=first)
        assert (await left_behind.describe()).status == WorkflowExecutionStatus.TERMINATED
        assert await failed_tasks(client, run.id) == 0


@workflow.defn(sandboxed=False)
class Starts:
    """A user's own workflow, which starts an agent with whatever it is given."""

    @workflow.run
    async def run(self, run_id: str, arguments: list[Any], task_queue: str) -> str:
        if not arguments:
            result = await run_agent("boss", "go", id=run_id, task_queue=task_queue)
            return str(result.output)
        return str(
            await workflow.execute_child_workflow(WORKFLOW, args=arguments, id=run_id, task_queue=task_queue)
        )


DOORS = [WORKFLOW, SESSION_WORKFLOW]


@pytest.mark.parametrize("door", DOORS)
async def test_id_of_child_form_is_refused(serve: Serve, door: str) -> None:
    """Nobody can choose an id that could be a child's: with our client, a plain one, or a workflow."""
    run_id = child_run_id("acme", "ticket-1-1")
    async with serve(BOSS, models=MODELS) as client, asyncio.timeout(HANGS):
        with pytest.raises(InvalidRequest, match="for runs that other runs start"):
            await (
                client.start("boss", "go", id=run_id)
                if door == WORKFLOW
                else client.session(run_id, agent="boss")
            )
        await client.temporal.start_workflow(door, REQUEST, id=run_id, task_queue=client.task_queue)
        assert (await cause_of(client, run_id)).type == "InvalidRequest"
        plain = await TemporalClient.connect(client.temporal.service_client.config.target_host)
        async with Worker(plain, task_queue="own", workflows=[Starts]):
            for number, arguments in enumerate(([], [REQUEST])):
                own = await plain.start_workflow(
                    Starts.run,
                    args=[f"own/~a-{number}", arguments, client.task_queue],
                    id=f"own-{door}-{number}",
                    task_queue="own",
                )
                with pytest.raises(WorkflowFailureError) as failed:
                    await own.result()
                assert "for runs that other runs start" in repr(failed.value.cause) + repr(
                    failed.value.cause and failed.value.cause.__cause__
                )


FURTHER: list[list[Any]] = [
    [STATE],
    [STATE, []],
    [CHILD],
    [{"limits": {"steps": 3}}],
    ["state"],
    [None, None],
    [7, [], {}, ""],
]


@pytest.mark.parametrize("door", DOORS)
async def test_only_server_vouches_for_arguments(serve: Serve, door: str) -> None:
    """A state or a lineage that the server does not vouch for is refused, and no workflow task fails."""
    async with serve(BOSS, models=MODELS) as client, asyncio.timeout(HANGS):
        for number, further in enumerate(FURTHER):
            run_id = f"{door}-{number}"
            arguments = [REQUEST if door == WORKFLOW else {"agent": "boss"}, *further]
            await client.temporal.start_workflow(
                door, args=arguments, id=run_id, task_queue=client.task_queue
            )
            error = await cause_of(client, run_id)
            assert (error.type, "takes one argument" in error.message) == ("InvalidRequest", True)
            assert await failed_tasks(client, run_id) == 0


async def test_lineage_names_real_parent(serve: Serve) -> None:
    """A workflow that starts an agent cannot name another run as its parent."""
    async with serve(BOSS, models=MODELS) as client, asyncio.timeout(HANGS):
        plain = await TemporalClient.connect(client.temporal.service_client.config.target_host)
        real = await client.start("boss", "go", id="p")
        async with Worker(plain, task_queue=f"own-{client.task_queue}", workflows=[Starts]) as worker:
            own = await plain.start_workflow(
                Starts.run,
                args=["p-child", [REQUEST, CHILD], client.task_queue],
                id="own-lineage",
                task_queue=worker.task_queue,
            )
            with pytest.raises(WorkflowFailureError):
                await own.result()
        assert "has started this run" in (await cause_of(client, "p-child")).message
        await real.cancel()


async def test_repetition_by_server_is_no_continuation(serve: Serve) -> None:
    """A cron schedule or a retry repeats the arguments of the starter: they are no carried state."""
    async with serve(BOSS, models=MODELS) as client, asyncio.timeout(HANGS):
        await client.temporal.start_workflow(
            WORKFLOW,
            args=[REQUEST, STATE],
            id="cron",
            task_queue=client.task_queue,
            cron_schedule="@every 1s",
        )

        async def was_repeated() -> bool:
            runs = [found async for found in client.temporal.list_workflows("WorkflowId = 'cron'")]
            states = {found.status for found in runs}
            return len(runs) > 2 and states <= {
                WorkflowExecutionStatus.FAILED,
                WorkflowExecutionStatus.RUNNING,
            }

        await until(was_repeated)
        await client.temporal.get_workflow_handle("cron").terminate()
        # Without a worker the first attempt times out, and the server starts the second with its arguments.
        await client.temporal.start_workflow(
            WORKFLOW,
            args=[REQUEST, STATE],
            id="retried",
            task_queue="served-later",
            run_timeout=timedelta(seconds=1),
            retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_attempts=30),
        )

        async def is_retried() -> bool:
            described = await client.temporal.get_workflow_handle("retried").describe()
            return described.raw_description.workflow_execution_info.first_run_id != described.run_id

        await until(is_retried)
    async with serve(BOSS, models=MODELS, task_queue="served-later") as client, asyncio.timeout(HANGS):
        assert "takes one argument" in (await cause_of(client, "retried")).message


async def test_run_of_other_host_parks(serve: Serve) -> None:
    """A run whose pinned host no agent here names parks, until the settings name it."""

    def talker(host: str) -> Agent:
        model = ModelConfig(name="scripted:x", options={"base_url": f"https://{host}/v1"})
        return Agent(name="talker", model=model, tools=[ask_person])

    asked: list[str] = []

    def reply(request: ModelRequest) -> Line:
        asked.append(str(request.config.options["base_url"]))
        return says("done") if request.step > 1 else calls("ask_person", question="sure?")

    models = {"scripted": ScriptedModel(reply)}
    async with serve(talker("old.example"), models=models) as client, asyncio.timeout(HANGS):
        run = await client.start("talker", "go")
        await until_status(client, run.id, "waiting_person")
    async with serve(talker("new.example"), models=models) as client, asyncio.timeout(HANGS):
        run = client.get(run.id)
        await run.send("yes")
        await until_status(client, run.id, "parked")
        parked = (await run.status()).failure
        assert parked is not None
        assert (parked.kind, "PERDURE_MODEL_HOSTS" in parked.message) == ("authentication", True)
    new, named = talker("new.example"), "https://old.example"
    async with serve(new, models=models, model_hosts=named) as client, asyncio.timeout(HANGS):
        run = client.get(run.id)
        await run.resume()
        assert (await run.result()).output == "done"
    assert asked == ["https://old.example/v1"] * 2


@workflow.defn(sandboxed=False)
class Asks:
    """A user's own workflow, which asks a worker for a spec, in the name of another run or by a child."""

    @workflow.run
    async def run(self, parent: str, task_queue: str) -> str:
        now = workflow.now().isoformat()
        try:
            if parent != workflow.info().workflow_id:
                asked = {"agent": "boss", "as_of": now, "parent": parent, "spec_digest": "of another version"}
                once = RetryPolicy(maximum_attempts=1)
                await workflow.execute_activity(
                    RESOLVE_AGENT,
                    asked,
                    task_queue=task_queue,
                    start_to_close_timeout=timedelta(seconds=30),
                    retry_policy=once,
                )
            else:
                lineage = {"parent": parent, "key": "k", "spec_digest": "of another version", "as_of": now}
                child = {"lineage": lineage, "lease": {"lender": parent}}
                await workflow.execute_child_workflow(
                    WORKFLOW, args=[REQUEST, child], id=child_run_id(parent, "k"), task_queue=task_queue
                )
        except FailureError as error:
            return str(error.cause)
        return "answered"


async def test_spec_is_asked_of_real_parent(serve: Serve) -> None:
    """A worker without the pinned version asks no run that the server does not name, and none that pins nothing."""
    async with serve(BOSS, models=MODELS) as client, asyncio.timeout(HANGS):
        victim = await client.start("boss", "go")
        plain = await TemporalClient.connect(client.temporal.service_client.config.target_host)
        async with Worker(plain, task_queue=f"asks-{client.task_queue}", workflows=[Asks]) as worker:

            async def answer(parent: str, own: str) -> str:
                return await plain.execute_workflow(
                    Asks.run, args=[parent, client.task_queue], id=own, task_queue=worker.task_queue
                )

            stranger, without = f"{victim.id}-stranger", f"{victim.id}-without"
            assert f"is pinned by {victim.id!r}, but the parent of this run is None" in await answer(
                victim.id, stranger
            )
            assert "which is a 'Asks' and pins none" in await answer(without, without)
        await victim.cancel()
