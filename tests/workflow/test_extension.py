"""Extensions: a run that a limit has ended goes on from where it stood, and does nothing again."""

import asyncio
import re
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError, ChildWorkflowError
from temporalio.worker import Worker

from perdure import Agent, InvalidRequest, Limits, SwarmLimits, ToolContext, tool
from perdure.errors import RunNotFound
from perdure.messages import Usage
from perdure.model import ModelRequest
from perdure.settings import Settings, load_settings
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.wire.events import Extended
from perdure.wire.identity import idempotency_key, root_identity
from perdure.wire.ids import child_run_id
from perdure.wire.names import SESSION_WORKFLOW, WORKFLOW
from perdure.workers.dev.server import DevServer
from perdure.workflows.engine.calls import call_digest
from tests.conftest import HANGS, Gate, Serve, check_rows, until
from tests.serving import running

USED = Usage(input_tokens=1000, output_tokens=100)
WANTED = 6
"""Calls of `work` after which the script is done."""


class Journal:
    """Keys of the calls that were made, by the run's user, which names the row; and what the model was asked."""

    def __init__(self) -> None:
        self.keys: dict[str, list[str]] = defaultdict(list)
        self.asked: dict[str, list[ModelRequest]] = defaultdict(list)

    def script(self, request: ModelRequest) -> Line:
        """Work until enough is done. Without tools, say how far it is."""
        row = str(request.user)
        self.asked[row].append(request)
        results = [result for message in request.messages for result in message.tool_results]
        worked = sum(not result.is_error for result in results)
        if request.tool_choice == "none":
            return says(f"{worked} done, more wanted", usage=USED)
        if worked >= WANTED:
            return says("all done", usage=USED)
        return Line(text=f"after {worked}", calls=calls("work", n=worked).calls, usage=USED)

    def agent(self, **settings: Any) -> Agent:
        """Return an agent that works."""

        @tool(effect="write")
        async def work(context: ToolContext, n: int) -> str:
            """Work."""
            self.keys[str(context.user)].append(context.idempotency_key)
            return f"worked {n}"

        settings = {"name": "a", "model": "scripted:x", **settings}
        return Agent(tools=[work], **settings)

    @property
    def models(self) -> dict[str, ScriptedModel]:
        return {"scripted": ScriptedModel(self.script)}


ROWS: dict[str, tuple[Limits, Limits, str, str]] = {
    "steps": (Limits(steps=3), Limits(steps=20), "max_steps", "steps to 4 or more"),
    "tool_calls": (
        Limits(tool_calls=2),
        Limits(tool_calls=WANTED),
        "max_tool_calls",
        "tool_calls to 3 or more",
    ),
    "input_tokens": (
        Limits(input_tokens=2500),
        Limits(input_tokens=50_000),
        "token_budget",
        "input_tokens to",
    ),
    "output_tokens": (
        Limits(output_tokens=250),
        Limits(output_tokens=5000),
        "token_budget",
        "output_tokens to 316 or more",
    ),
    "total_tokens": (
        Limits(total_tokens=3500),
        Limits(total_tokens=50_000),
        "token_budget",
        "total_tokens to",
    ),
    "cost": (Limits(cost_usd=0.0150), Limits(cost_usd=1), "cost_budget", "cost_usd to 0.0"),
}


async def test_limited_run_goes_on(serve: Serve) -> None:
    """Whatever limit has ended a run: it goes on with what it had, does nothing again, and all it cost counts."""
    journal = Journal()

    async def play(client: Client, row: str) -> None:
        limits, granted, reason, words = ROWS[row]
        run = await client.start("a", "go", limits=limits, user=row, id=f"limited-{row}")
        first = await run.result()
        assert first.stop_reason == reason
        with pytest.raises(InvalidRequest, match=words):
            await run.extend(limits=limits)
        before = await run.transcript()
        assert await run.extend(limits=granted, by="ann", reason="it is worth it") is run
        result = await run.result()
        assert (result.stop_reason, result.output) == ("end_turn", "all done")
        assert len(journal.keys[row]) == len(set(journal.keys[row])) == WANTED
        assert result.tool_calls >= first.tool_calls
        assert result.usage.total_tokens > first.usage.total_tokens
        assert result.usage.input_tokens == 1000 * len(journal.asked[row])
        after = await run.transcript()
        assert after[: len(before)] == before
        assert "ann has granted more" in after[len(before)].text
        assert "it is worth it" in after[len(before)].text
        made = (await run.status()).extensions
        assert [(record.by, record.reason, record.ended) for record in made] == [
            ("ann", "it is worth it", reason)
        ]
        events = [event async for event in run.events()]
        assert [e.extension.by for e in events if isinstance(e, Extended)] == ["ann"]
        with pytest.raises(InvalidRequest, match=r"extended so at .* it has given its answer"):
            await run.extend(limits=granted, by="ann", reason="it is worth it")

    agent = journal.agent()
    async with serve(agent, models=journal.models) as client, asyncio.timeout(HANGS):
        await check_rows({row: play(client, row) for row in ROWS})


async def test_extension_keeps_the_key(serve: Serve) -> None:
    """The keys of calls after an extension, and after a second, are those of the first execution's family."""
    journal = Journal()
    async with serve(journal.agent(), models=journal.models) as client, asyncio.timeout(HANGS):
        run = await client.start("a", "go", limits=Limits(steps=2), user="u")
        await run.result()
        first = (await run.describe()).run_id
        for steps in (4, 20):
            await run.extend(limits=Limits(steps=steps))
            result = await run.result()
        assert result.output == "all done"
        assert len((await run.status()).extensions) == 2
        identity = root_identity(client.temporal.namespace, run.id, first)
        asked = [call for message in await run.transcript() for call in message.tool_calls]
        assert journal.keys["u"] == [idempotency_key(identity, c.id, call_digest(c)) for c in asked]
        assert (await client.start("a", "go", limits=Limits(steps=2), user="u", id=run.id)).id == run.id


async def test_extension_refuses_in_words(serve: Serve) -> None:
    """What no grant can take back, and a grant that would take something away, is refused; nothing is changed."""
    journal, gate = Journal(), Gate()

    async def waits(request: ModelRequest) -> Line:
        if request.user == "waits":
            await gate.wait()
        return journal.script(request)

    boss = journal.agent(name="boss", description="Works.")
    caller = Agent(name="caller", model="calls:x", tools=[boss.as_tool()])
    models = {
        "scripted": ScriptedModel(waits),
        "calls": ScriptedModel([calls("boss", input="go"), says("ok")]),
    }
    async with serve(journal.agent(), caller, models=models) as client, asyncio.timeout(HANGS):
        done = await client.start("a", "go", user="done")
        await done.result()
        limited = await client.start("a", "go", limits=Limits(steps=2, tool_calls=3), user="limited")
        await limited.result()
        working = await client.start("a", "go", user="waits")
        await gate.reached.wait()
        below = await client.start("caller", "go", user="below")
        await below.result()
        more = Limits(steps=40)
        rows: list[tuple[Run, dict[str, Any], str]] = [
            (done, {"limits": more}, "ended with 'end_turn': it has given its answer"),
            (limited, {"limits": Limits(tool_calls=9)}, "raise steps to 3 or more"),
            (limited, {"limits": Limits(steps=1)}, "steps=1 is less than what the run has"),
            (limited, {"limits": Limits(steps=9, cost_usd=1)}, r"cost_usd=1.0 is less than what .*no bound"),
            (limited, {"limits": Limits()}, "raise steps to 3 or more"),
            (limited, {"limits": SwarmLimits(max_handoffs=30)}, "no limit 'max_handoffs' here"),
            (limited, {"limits": more, "user": "eve"}, "on behalf of another user than 'eve'"),
            (limited, {"limits": more, "by": "x" * 201}, "by: String should have at most 200"),
            (working, {"limits": more}, "is not over .* Use resume or redrive"),
            (client.get(child_run_id(below.id, "boss-1-1")), {"limits": more}, "extend the root of the tree"),
        ]
        for run, how, words in rows:
            with pytest.raises(InvalidRequest, match=words):
                await run.extend(**how)
        with pytest.raises(RunNotFound):
            await client.get("nobody").extend(limits=more)
        gate.opened.set()
        assert (await limited.result()).stop_reason == "max_steps"
        assert (await working.result()).output == "all done"


async def test_repeated_extension_changes_nothing(serve: Serve) -> None:
    """Two people who extend at once extend once; another extension meanwhile is refused."""
    journal, gate = Journal(), Gate()

    async def waits(request: ModelRequest) -> Line:
        if request.step > 2:
            await gate.wait()
        return journal.script(request)

    models = {"scripted": ScriptedModel(waits)}
    async with serve(journal.agent(), models=models) as client, asyncio.timeout(HANGS):
        run = await client.start("a", "go", limits=Limits(steps=2), user="u")
        await run.result()
        await asyncio.gather(*(run.extend(limits=Limits(steps=30), by="ann") for _ in range(3)))
        await gate.reached.wait()
        await run.extend(limits=Limits(steps=30), by="ann")
        with pytest.raises(InvalidRequest, match=r"is not over .*extended by ann"):
            await run.extend(limits=Limits(steps=31), by="ann")
        gate.opened.set()
        assert (await run.result()).output == "all done"
        assert len((await run.status()).extensions) == 1
    assert len(journal.keys["u"]) == WANTED


async def test_identical_calls_count_on(serve: Serve) -> None:
    """The bound of identical calls ends a run that can be given more, and holds on where other limits are raised."""
    paid: list[str] = []

    @tool(effect="write")
    async def pay(context: ToolContext, order: str) -> str:
        """Pay."""
        paid.append(str(context.user))
        return "queued"

    def script(request: ModelRequest) -> Line:
        enough = len([user for user in paid if user == request.user]) >= 4
        return says("enough") if enough or request.tool_choice == "none" else calls("pay", order="A7")

    till = Agent(name="till", model="scripted:x", tools=[pay], limits=Limits(identical_calls=2, steps=9))
    models = {"scripted": ScriptedModel(script)}
    async with serve(till, models=models) as client, asyncio.timeout(HANGS):
        looped = await client.start("till", "go", user="looped")
        assert (await looped.result()).stop_reason == "max_tool_calls"
        with pytest.raises(InvalidRequest, match="raise identical_calls to 3 or more"):
            await looped.extend(limits=Limits(steps=20))
        await looped.extend(limits=Limits(identical_calls=20, steps=20))
        assert (await looped.result()).output == "enough"
        short = await client.start("till", "go", limits=Limits(steps=3), user="short")
        assert (await short.result()).stop_reason == "max_steps"
        await short.extend(limits=Limits(steps=30))
        assert (await short.result()).stop_reason == "max_tool_calls"
    assert (paid.count("looped"), paid.count("short")) == (4, 2)


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "a state": ({"state": {"messages": []}}, "state: Extra inputs are not permitted"),
    "another run": ({"origin": {"workflow_id": "other", "execution_id": "x"}}, "under its own id alone"),
    "no such execution": (
        {"origin": {"execution_id": "0f8fad5b-d9cb-469f-a165-70867728950e"}},
        "is gone: the server no longer keeps",
    ),
    "another user": ({"user": "eve"}, "another user than 'eve'"),
    "no limit": ({"limits": {}}, "the run cannot go on: raise steps to"),
    "a smaller limit": ({"limits": {"steps": 1}}, "is less than what the run has"),
    "an unknown limit": ({"limits": {"dollars": 3}}, "no limit 'dollars' here"),
    "a limit of another kind": ({"limits": {"steps": "many"}}, "limits: steps"),
    "a second argument": ({}, "takes one argument"),
    "another queue": ({}, "ran on task queue"),
    "a session": ({}, "is a 'AgentWorkflow', and this run a 'SessionWorkflow'"),
}


async def test_forged_extension_is_refused(serve: Serve, settings: Settings) -> None:
    """Whoever may start workflows cannot give a run a state, another run's, or another user's by an extension.

    What was refused does not stand in the way: the closed run can still be extended.
    """
    journal = Journal()
    elsewhere = settings.model_copy(update={"task_queue": f"{settings.task_queue}-2"})

    async def play(client: Client, row: str) -> None:
        forged, words = FORGED[row]
        run = await client.start("a", "go", limits=Limits(steps=2), user="ann", id=f"forged {row}")
        await run.result()
        execution = (await run.describe()).run_id
        origin = {"workflow_id": run.id, "execution_id": execution, **forged.get("origin", {})}
        plain = {"limits": {"steps": 40}, **forged, "origin": origin}
        started = await client.temporal.start_workflow(
            SESSION_WORKFLOW if row == "a session" else WORKFLOW,
            args=[plain, {"state": {}}] if row == "a second argument" else [plain],
            id=run.id,
            task_queue=elsewhere.task_queue if row == "another queue" else client.task_queue,
        )
        with pytest.raises(WorkflowFailureError) as failed:
            await started.result()
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == "InvalidRequest"
        assert re.search(words, failed.value.cause.message), failed.value.cause.message
        if row != "a second argument":  # it never was an extension
            await run.extend(limits=Limits(steps=40))
            assert (await run.result()).output == "all done"

    agent = journal.agent()
    async with (
        serve(agent, models=journal.models) as client,
        serve(agent, models=journal.models, task_queue=elsewhere.task_queue),
        asyncio.timeout(HANGS),
    ):
        await check_rows({row: play(client, row) for row in FORGED})


async def test_old_execution_is_not_extended_twice(serve: Serve) -> None:
    """Work that an extension has gone on with is not done again from the execution before."""
    journal = Journal()
    async with serve(journal.agent(), models=journal.models) as client, asyncio.timeout(HANGS):
        run = await client.start("a", "go", limits=Limits(steps=2), user="u")
        await run.result()
        first = (await run.describe()).run_id
        await run.extend(limits=Limits(steps=4))
        await run.result()
        plain = {"origin": {"workflow_id": run.id, "execution_id": first}, "limits": {"steps": 40}}
        await until_listed(client, run.id, 2)
        again = await client.temporal.start_workflow(WORKFLOW, plain, id=run.id, task_queue=client.task_queue)
        with pytest.raises(WorkflowFailureError) as failed:
            await again.result()
        assert "is not the newest" in str(failed.value.cause)
        assert len(journal.keys["u"]) == 4
        await run.extend(limits=Limits(steps=40))
        assert (await run.result()).output == "all done"
    assert len(journal.keys["u"]) == WANTED


async def test_reset_extension_goes_on(serve: Serve) -> None:
    """An extension that is reset to its beginning is rebuilt again. It makes its calls again, under the same keys."""
    journal = Journal()
    async with serve(journal.agent(), models=journal.models) as client, asyncio.timeout(HANGS):
        run = await client.start("a", "go", limits=Limits(steps=2), user="u")
        await run.result()
        await run.extend(limits=Limits(steps=40))
        await run.result()
        extended = (await run.describe()).run_id
        for _ in range(2):
            await reset_to_first_task(client, run.id, (await run.describe()).run_id)
            assert (await client.get(run.id).result()).output == "all done"
        assert (await run.describe()).run_id != extended
    keys = journal.keys["u"]
    assert keys == [*keys[:2], *3 * keys[2:WANTED]]
    assert len(set(keys)) == WANTED


async def reset_to_first_task(client: Client, run_id: str, execution_id: str) -> None:
    history = await client.temporal.get_workflow_handle(run_id, run_id=execution_id).fetch_history()
    done = next(
        event.event_id
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    )
    await client.temporal.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=client.temporal.namespace,
            workflow_execution=WorkflowExecution(workflow_id=run_id, run_id=execution_id),
            workflow_task_finish_event_id=done,
            request_id=str(uuid4()),
            reason="test",
        )
    )


@workflow.defn(sandboxed=False)
class Extends:
    """A user's own workflow, which extends an agent's run below it again and again from the same execution."""

    @workflow.run
    async def run(self, run_id: str, task_queue: str) -> list[str]:
        ends: list[str] = []
        executions: list[str] = []

        async def start(request: dict[str, Any]) -> None:
            child = await workflow.start_child_workflow(WORKFLOW, request, id=run_id, task_queue=task_queue)
            executions.append(str(child.first_execution_run_id))
            try:
                ends.append((await child)["stop_reason"])
            except ChildWorkflowError as error:
                ends.append(str(error.cause))

        await start({"agent": "a", "prompt": "go", "limits": {"steps": 2}, "user": "u"})
        origin = {"workflow_id": run_id, "execution_id": executions[0]}
        await start({"origin": origin, "limits": {"steps": 4}})
        await workflow.wait_condition(lambda: self.is_listed)
        await start({"origin": origin, "limits": {"steps": 40}})
        return ends

    is_listed = False

    @workflow.signal
    def listed(self) -> None:
        """Let the last extension begin."""
        self.is_listed = True


async def test_other_parent_extends_once(serve: Serve) -> None:
    """A run below a user's own workflow goes on once from an execution, as a run without a parent does."""
    journal = Journal()
    async with serve(journal.agent(), models=journal.models) as client, asyncio.timeout(HANGS):
        queue = f"{client.task_queue}-own"
        async with Worker(client.temporal, task_queue=queue, workflows=[Extends]):
            own = await client.temporal.start_workflow(
                Extends.run, args=["below", client.task_queue], id="extends", task_queue=queue
            )
            await until_listed(client, "below", 2)
            await own.signal(Extends.listed)
            ends = await own.result()
    assert ends[:2] == ["max_steps", "max_steps"]
    assert "is not the newest" in ends[2]
    assert len(journal.keys["u"]) == 4


async def until_listed(client: Client, run_id: str, executions: int) -> None:
    """Wait until the server lists so many executions of the run."""

    async def is_listed() -> bool:
        found = [x async for x in client.temporal.list_workflows(f"WorkflowId = '{run_id}'")]
        return len(found) >= executions

    await until(is_listed)


async def test_extension_outlives_its_worker(serve: Serve) -> None:
    """A worker that goes away while the state is rebuilt changes nothing; parts of a long transcript come whole."""
    journal = Journal()
    agent = journal.agent()
    long = "x" * 400_000
    async with asyncio.timeout(HANGS):
        async with serve(agent, models=journal.models) as client:
            run = await client.start("a", long, limits=Limits(steps=2), user="u")
            await run.result()
            before = await run.transcript()
            await run.extend(limits=Limits(steps=40))
        async with serve(agent, models=journal.models) as client:
            run = client.get(run.id)
            assert (await run.result()).output == "all done"
            assert (await run.transcript())[: len(before)] == before
    assert len(journal.keys["u"]) == WANTED


async def test_extended_run_continues_as_new(impatient: DevServer, tmp_path: Path) -> None:
    """Keys, grants and counts stay when a run continues as new before and after its extension."""
    journal = Journal()
    settings = load_settings(home=tmp_path, address=impatient.address, task_queue="extended")
    agent = journal.agent(tool_concurrency=1)
    async with (
        running([agent], models=journal.models, settings=settings, address=impatient.address) as client,
        asyncio.timeout(HANGS),
    ):
        run = await client.start("a", "go", limits=Limits(steps=3), user="u")
        await run.result()
        first = (await run.describe()).run_id
        for steps in range(4, WANTED + 2):
            await run.extend(limits=Limits(steps=steps), by=f"ann {steps}")
            await run.result()
        result = await run.result()
        assert result.output == "all done"
        assert len((await run.status()).extensions) == WANTED - 2
        identity = root_identity(client.temporal.namespace, run.id, first)
        asked = [call for message in await run.transcript() for call in message.tool_calls]
        assert journal.keys["u"] == [idempotency_key(identity, c.id, call_digest(c)) for c in asked]


async def test_time_closed_does_not_count(serve: Serve) -> None:
    """A run that its deadline has ended goes on with the rest of a longer one."""
    journal, gate = Journal(), Gate()

    async def waits(request: ModelRequest) -> Line:
        if request.step == 2:
            await gate.wait()
        return journal.script(request)

    models = {"scripted": ScriptedModel(waits)}
    async with serve(journal.agent(), models=models) as client, asyncio.timeout(HANGS):
        run = await client.start("a", "go", limits=Limits(timeout=timedelta(seconds=2)), user="u")
        first = await run.result()
        assert first.stop_reason == "deadline"
        with pytest.raises(InvalidRequest, match="timeout to more than 0:00:0"):
            await run.extend(limits=Limits(steps=99))
        gate.opened.set()
        await run.extend(limits=Limits(timeout=timedelta(seconds=40)))
        assert (await run.result()).output == "all done"
    assert len(journal.keys["u"]) == WANTED
