"""Once, under faults: every automatic repetition of every carrier has one idempotency key, and tells its attempt."""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client as TemporalClient
from temporalio.worker import Worker

from perdure import (
    Agent,
    Client,
    Graph,
    Node,
    NodeInput,
    NodeResult,
    RemoteTool,
    ToolContext,
    ToolRetry,
    tool,
)
from perdure.hooks import Hook, HookedCall
from perdure.members import Member
from perdure.messages import Part
from perdure.model import ModelRequest
from perdure.pattern import Over, Pattern, PatternSpec, Scheduler, Start
from perdure.settings import load_settings
from perdure.testing import ScriptedModel, calls, fails, says
from perdure.tools import Tool
from perdure.workers.dev.server import DevServer
from tests.conftest import until_status
from tests.serving import running

_SOON = ToolRetry(attempts=3, initial_interval=timedelta(milliseconds=50))


class Journal:
    """Key and attempt of each call, by the run's user, which names the row of the table."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self.over: set[str] = set()
        """Rows whose runs have been let through after their first failure."""

    def record(self, row: str, key: str, attempt: int) -> None:
        """Record a call; its first attempt fails with a lost connection in the rows of a call's retry."""
        self.calls[row].append((key, attempt))
        if len(self.calls[row]) > 1:
            return
        if row.startswith("retry "):
            raise ConnectionError("the answer was lost")
        if row == "node node_function":
            raise ValueError("the answer was not understood")

    def fails_first(self, row: str, repetition: str) -> bool:
        """Return True once for each row of that repetition."""
        mine = row.startswith(repetition) and row not in self.over
        self.over.update({row} if mine else ())
        return mine


@dataclass(frozen=True, kw_only=True)
class Tries:
    """Progress of a pattern that runs its only member again once it has failed."""

    attempt: int = 1
    is_running: bool = False
    end: Over | None = None


class Insists(Scheduler[Tries]):
    """Scheduler of a user's own, which names the first attempt of a node that it runs again."""

    progress_type = Tries
    runs_alone = True

    def __init__(self, spec: PatternSpec) -> None:
        self.node = next(iter(spec.members))

    def begin(self, task: str | list[Part], descriptions: Mapping[str, str]) -> Tries:
        return Tries()

    def startable(self, progress: Tries) -> list[Start]:
        if progress.is_running or progress.end is not None:
            return []
        first = Start(key=f"{self.node}-1", node=self.node, prompt="post it")
        if progress.attempt == 1:
            return [first]
        return [
            replace(
                first, key=f"{first.key}.{progress.attempt}", retry_of=first.key, attempt=progress.attempt
            )
        ]

    def record_start(self, progress: Tries, starts: Sequence[Start]) -> Tries:
        return replace(progress, is_running=bool(starts))

    def record_end(self, progress: Tries, result: NodeResult) -> Tries:
        if result.error is not None and progress.attempt == 1:
            return Tries(attempt=2)
        over = Over(stop_reason="end_turn", output=result.output, failure=result.error)
        return replace(progress, is_running=False, end=over)

    def over(self, progress: Tries) -> Over | None:
        return progress.end

    def partial(self, progress: Tries) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Insistent(Pattern):
    """Pattern of a user's own, of one member."""

    pattern: ClassVar = "insistent"
    scheduler: ClassVar = Insists

    member: Member

    @property
    def members(self) -> dict[str, Member]:
        return {self.member.name: self.member}


class Watches(Hook):
    """Hook at every point of a call: the worker is asked in activities of their own, or in those of the call."""

    async def before_tool(self, call: HookedCall) -> None:
        """Let it pass."""

    async def after_tool(self, call: HookedCall) -> None:
        """Let it pass."""


@dataclass
class Cast:
    """Carriers of a call, all of which write into one journal."""

    journal: Journal

    def tools(self) -> tuple[Tool, Tool, RemoteTool]:
        """Return a function, a function whose first attempt goes on beside the second, and a remote tool."""

        @tool(effect="write", retry=_SOON)
        async def post(context: ToolContext) -> str:
            """Post it."""
            self.journal.record(str(context.user), context.idempotency_key, context.attempt)
            return "posted"

        @tool(effect="write", retry=_SOON, timeout=timedelta(milliseconds=300))
        def post_slowly(context: ToolContext) -> str:
            """Post it in a thread, which no timeout ends."""
            self.journal.record(str(context.user), context.idempotency_key, context.attempt)
            if context.attempt == 1:
                time.sleep(2)
            return "posted"

        remote = RemoteTool(
            name="post_remotely",
            description="Post it.",
            task_queue="remote",
            effect="write",
            retry=_SOON,
            input_schema={"type": "object", "properties": {}},
        )
        return post, post_slowly, remote

    @activity.defn(name="post_remotely")
    async def post_remotely(self, arguments: dict[str, Any], about: dict[str, Any]) -> str:
        """Post it from a worker that is not Perdure's."""
        attempt = about["earlier_attempts"] + activity.info().attempt
        self.journal.record(about["user"], about["idempotency_key"], attempt)
        return "posted"

    async def post_node(self, job: NodeInput) -> str:
        """Post it as a node of a graph."""
        self.journal.record(str(job.user), job.idempotency_key, job.attempt)
        return "posted"

    def members(self) -> list[Member]:
        """Return an agent or graph for each carrier."""
        post, post_slowly, remote = self.tools()
        function, remote_agent = _agent("function", post), _agent("remote", remote)
        sub_agent = _agent("sub_agent", function.as_tool())
        plain = [function, remote_agent, sub_agent]
        return [
            *plain,
            *(Insistent(name=f"pattern_{member.name}", member=member) for member in plain),
            _agent("hooked_function", post, hooks=[Watches()]),
            _agent("hooked_remote", remote, hooks=[Watches()]),
            _agent("slow", post_slowly),
            _agent("parking", post, on_failure="park"),
            _graph("node_function", self.post_node),
            _graph("node_agent", function),
            _graph("node_remote", remote_agent),
            _graph("node_sub_agent", sub_agent),
        ]

    def script(self, request: ModelRequest) -> Any:
        """Call the tool, then fail once in the rows in which the run itself is what is repeated."""
        row, name = str(request.user), request.tools[0].name
        if request.messages[-1].role != "tool":
            return calls(name, input="post it") if name == "function" else calls(name)
        # In a tree of runs, the one directly below the graph fails.
        if ("sub_agent" in row) == (name == "function") and self.journal.fails_first(row, "node "):
            return fails("bad_request", "the attempt of the node fails after its effect")
        if self.journal.fails_first(row, "redriven "):
            return fails("authentication", "the key is wrong")
        return says("done")


def _agent(name: str, *tools: Any, on_failure: Any = "fail", hooks: Sequence[Hook] = ()) -> Agent:
    return Agent(
        name=name,
        model="scripted:x",
        description=name,
        tools=list(tools),
        on_failure=on_failure,
        hooks=hooks,
    )


def _graph(name: str, run: Any) -> Graph:
    nodes: dict[str, Any] = {"first": _first, "post": Node(run, retries=1)}
    return Graph(name=name, nodes=nodes, entry="first", edges=[("first", "post")])


async def _first(job: NodeInput) -> str:
    """Do nothing, so that a graph has a step before the one that is repeated."""
    return "go on"


PATTERNS = ("pattern_function", "pattern_remote", "pattern_sub_agent")
NODES = ("node_function", "node_agent", "node_remote", "node_sub_agent", *PATTERNS)
RETRIED = ("function", "remote", "sub_agent", "hooked_function", "hooked_remote", *NODES)
ROWS = [
    *(f"retry {name}" for name in RETRIED),
    *(f"node {name}" for name in NODES),
    *(f"reset {name}" for name in RETRIED),
    "taken over slow",
    "redriven parking",
]


async def _play(client: Client, row: str) -> None:
    """Play a row: a run of its member, and after its end or its parking the repetition that somebody starts."""
    member = row.rpartition(" ")[2]
    run = await client.start(member, "post it", user=row)
    if row.startswith("redriven "):
        await until_status(client, run.id, "parked")
        await run.redrive()
    await run.result()
    if row.startswith("reset "):
        await _reset(client.temporal, run.id)


async def _reset(temporal: TemporalClient, workflow_id: str) -> None:
    """Reset the first execution of the run to its beginning, and wait for the new end."""
    executions = [found async for found in temporal.list_workflows(f'WorkflowId = "{workflow_id}"')]
    first = min(executions, key=lambda found: found.start_time)
    reset = await temporal.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=temporal.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=first.run_id),
            reason="a test",
            request_id=uuid.uuid4().hex,
            workflow_task_finish_event_id=4,  # the first workflow task's end
        )
    )
    await temporal.get_workflow_handle(workflow_id, run_id=reset.run_id).result()


async def test_repetition_keeps_the_key(tmp_path: Path) -> None:
    """Every automatic repetition of every carrier has the key of the first attempt, and a higher attempt.

    Runs continue as new at each step, so every row is a repetition over continue-as-new as well.
    """
    journal = Journal()
    cast = Cast(journal)
    models = {"scripted": ScriptedModel(cast.script)}
    config = {"limit.historyCount.suggestContinueAsNew": "12"}
    async with DevServer.start(db=None, ui_port=False, dynamic_config=config) as server:
        settings = load_settings(home=tmp_path, address=server.address, task_queue="once")
        async with running(
            cast.members(), models=models, settings=settings, address=server.address
        ) as client:
            foreign = await TemporalClient.connect(server.address)
            async with Worker(foreign, task_queue="remote", activities=[cast.post_remotely]):
                await asyncio.gather(*(_play(client, row) for row in ROWS))
    calls_of = {row: journal.calls[row] for row in ROWS}
    assert {row for row, made in calls_of.items() if len({key for key, _ in made}) != 1} == set(), calls_of
    # A redrive goes on behind the call, and repeats nothing.
    once = {row for row, made in calls_of.items() if len(made) == 1}
    assert once == {row for row in ROWS if row.startswith("redriven ")}
    hidden = {row for row, made in calls_of.items() if row not in once and min(n for _, n in made[1:]) < 2}
    assert hidden == set(), calls_of
    keys = [made[0][0] for made in calls_of.values()]
    assert len(set(keys)) == len(ROWS), "another act has another key"
