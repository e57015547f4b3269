"""Forged and broken input at every door of a run, on a real server: refused in words or ended, never stuck.

A workflow task that fails is tried again for ever, and not even a cancellation gets through. So after each example
the run answers or has ended, and its history holds no failed workflow task. `FUZZ_TIMES=20` digs deeper.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from hypothesis import Phase, given
from hypothesis import strategies as st
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.client import (
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from perdure import Agent, Graph, RemoteTool, ToolRetry, ask_person, tool
from perdure.errors import PerdureError
from perdure.hooks import Hook, HookedCall, HookedRun, Proceed, Verdict
from perdure.model import ModelRequest
from perdure.settings import load_settings
from perdure.starter.client.connect import Client
from perdure.testing import Line, ScriptedModel, calls, running, says
from perdure.wire.names import (
    CALL_MODEL,
    CALL_NODE,
    CALL_TOOL,
    GRANT,
    INTERRUPT,
    KEEP_TEXT,
    PAUSE,
    REDRIVE,
    REPLY,
    REPORT,
    RESOLVE_AGENT,
    RESOLVE_APPROVAL,
    RESULT,
    RESUME,
    RUN_HOOKS,
    SAY,
    SEND,
    SESSION_WORKFLOW,
    SPEC_QUERY,
    STATUS,
    TRANSCRIPT,
    WAKE,
    WORKFLOW,
)
from perdure.workers.dev.server import DevServer
from tests.fuzz import junk
from tests.fuzz.depth import examples
from tests.fuzz.test_requests import DECISION, PARTS, RUN, SESSION
from tests.fuzz.test_requests import SAY as SAID

HANGS: Final = 15.0
NO_SHRINKING: Final = (Phase.explicit, Phase.generate)
"""An example that hangs takes its time: to shrink it would take hours."""
_T = TypeVar("_T")

# -- what is sent


def _near(*valid: Any) -> st.SearchStrategy[Any]:
    near = st.builds(junk.mutated, st.sampled_from(valid), st.integers(0, 99), junk.news)
    return st.sampled_from(valid) | near | near | junk.anything


def _text(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except (ValueError, TypeError):  # a number longer than Python writes
        return b"1" * 5000


_ENCODINGS = [b"json/plain"] * 6 + [
    b"json/protobuf",
    b"binary/plain",
    b"binary/null",
    b"no/such",
    b"",
    b"\xff",
]
_BROKEN = [
    b"",
    b"{",
    b"\xff\xfe",
    b"1" * 5000,
    b"[" * 500 + b"]" * 500,
    b'{"agent": "a", "prompt": "Thanks \\ud83d"}',
    b"NaN",
    b"\x00",
    b'{"sha256": "../../etc/passwd"}',
]
_REFERENCES = [
    Payload(
        metadata={
            "encoding": b"json/protobuf",
            "messageType": b"temporal.api.sdk.v1.ExternalStorageReference",
        },
        data=json.dumps({"driverName": "perdure-blobs", "claimData": claim}).encode(),
    )
    for claim in ({}, {"sha256": "../../etc/passwd"}, {"sha256": ""}, {"other": "x"})
]


def _payload(encoding: bytes, data: bytes) -> Payload:
    return Payload(metadata={"encoding": encoding}, data=data)


def payloads_near(*valid: Any) -> st.SearchStrategy[Payload]:
    """Payloads near to these values: other values, broken bytes, unknown encodings, forged references."""
    written = st.builds(_text, _near(*valid))
    plain = st.builds(_payload, st.just(b"json/plain"), written)
    odd = st.builds(_payload, st.sampled_from(_ENCODINGS), written | st.sampled_from(_BROKEN))
    return plain | plain | odd | st.sampled_from([Payload(), *_REFERENCES])


def arguments_near(*valid: Any) -> st.SearchStrategy[list[RawValue]]:
    """Arguments: mostly one, sometimes none or several."""
    one = st.builds(RawValue, payloads_near(*valid))
    return one.map(lambda value: [value]) | st.lists(one, max_size=3)


REPORTED: dict[str, Any] = {
    "key": "b-1-1",
    "parent_execution_id": "",
    "waiting": [],
    "idle": True,
    "returned": {"tool_calls": 1},
}
GRANTED = {"amount": {"cost_microusd": 1000, "tool_calls": -1}}
UPDATES: dict[str, tuple[Any, ...]] = {
    SEND: ("yes", {"text": "yes"}, {"run_id": "r", "text": PARTS}, PARTS),
    RESOLVE_APPROVAL: (DECISION,),
    REDRIVE: ({"newest": True, "model": "scripted:y", "limits": {"steps": 3}},),
    SAY: (SAID,),
    "no-such-update": (1,),
}
SIGNALS: dict[str, tuple[Any, ...]] = {
    REPORT: (REPORTED,),
    GRANT: (GRANTED,),
    PAUSE: (None,),
    RESUME: (None,),
    WAKE: (None,),
    INTERRUPT: (None,),
    "no-such-signal": (None,),
}
QUERIES: dict[str, tuple[Any, ...]] = {
    STATUS: (None,),
    RESULT: (None,),
    TRANSCRIPT: ({"start": 0, "stop": 1},),
    SPEC_QUERY: ("b",),
    REPLY: ("m",),
    "no-such-query": (None,),
}

# -- who gets it


@dataclass
class Forger(Interceptor):
    """Interceptor that gives a forged answer in place of one activity's own."""

    target: str = ""
    answer: Callable[[], Any] = field(default=lambda: None)

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        forger = self

        class Forging(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
                if activity.info().activity_type == forger.target:
                    return forger.answer()
                return await super().execute_activity(input)

        return Forging(next)


@tool
async def work(value: Any = None) -> str:
    """Work."""
    return "worked"


class Looks(Hook):
    async def on_start(self, run: HookedRun) -> Verdict:
        return Proceed()

    async def before_tool(self, call: HookedCall) -> Verdict:
        return Proceed()


def count(value: Any) -> Any:
    """Count."""
    return 1


TICKET = Agent(name="b", model="scripted:b", description="Answers at length.", result_preview_bytes=1024)
ASKER = Agent(name="asker", model="scripted:ask", tools=[ask_person])
WORKER = Agent(
    name="a",
    model="scripted:a",
    tools=[work, TICKET.as_tool()],
    hooks=[Looks()],
    result_preview_bytes=1024,
)
GRAPH = Graph(name="graph", nodes={"count": count}, entry="count")


def script(request: ModelRequest) -> Line:
    if request.config.model == "ask":
        return calls("ask_person", question="sure?")
    if request.config.model == "b":
        return says("long " * 1000)
    return calls("work", value=1) + calls("b", input="x") if request.step == 1 else says("done")


class World:
    """A worker and its runs, for all examples of a test."""

    def __init__(self, runner: asyncio.Runner, client: Client, forger: Forger) -> None:
        self.runner, self.client, self.forger = runner, client, forger
        self._number = 0
        self._asker = ""

    def do(self, example: Awaitable[_T]) -> _T:
        async def in_time() -> _T:
            return await asyncio.wait_for(example, 2 * HANGS)

        return self.runner.run(in_time())

    def new_id(self) -> str:
        self._number += 1
        return f"{self.client.task_queue}-{self._number}"

    async def started(self, door: str, arguments: list[RawValue]) -> str:
        run_id = self.new_id()
        await self.client.temporal.start_workflow(
            door, args=arguments, id=run_id, task_queue=self.client.task_queue
        )
        return run_id

    async def waiting(self) -> str:
        """Return a session in which an agent waits for a person; a new one when the last has ended."""
        if self._asker:
            described = await self.client.temporal.get_workflow_handle(self._asker).describe()
            if described.status == WorkflowExecutionStatus.RUNNING:
                return self._asker
        self._asker = self.new_id()
        session = await self.client.session(self._asker, agent="asker")
        asking = asyncio.ensure_future(session.say("go"))
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        async with asyncio.timeout(HANGS):
            while await self._status(self._asker) != "waiting_person":
                await asyncio.sleep(0.05)
        asking.cancel()
        return self._asker

    async def _status(self, run_id: str) -> str:
        try:
            return str((await self.client.get(run_id).status()).status)
        except PerdureError:
            return ""

    async def settles(self, run_id: str) -> None:
        """Wait until the run has ended, or waits for somebody; then cancel it and wait for its end."""
        handle = self.client.temporal.get_workflow_handle(run_id)
        async with asyncio.timeout(HANGS):
            while (await handle.describe()).status == WorkflowExecutionStatus.RUNNING:
                status = await self.client.get(run_id).status()
                if status.status in ("parked", "waiting_person", "waiting_approval", "idle", "paused"):
                    break
                if status.doing.startswith("starting: "):
                    break
                await asyncio.sleep(0.05)
        if (await handle.describe()).status == WorkflowExecutionStatus.RUNNING:
            await handle.cancel()
        reason = "none"
        try:
            await asyncio.wait_for(handle.result(), HANGS)
        except WorkflowFailureError as error:
            reason = str(error.cause)
        assert reason, "a run that fails says why"
        await self.has_no_failed_task(run_id)

    async def has_no_failed_task(self, run_id: str) -> None:
        history = await self.client.temporal.get_workflow_handle(run_id).fetch_history()
        failures = [
            event.workflow_task_failed_event_attributes.failure.message
            for event in history.events
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
        ]
        assert not failures


@pytest.fixture(scope="module")
def world(server: DevServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home: Path = tmp_path_factory.mktemp("broken")
    settings = load_settings(home=home, address=server.address, task_queue=f"broken-{home.name}")
    forger = Forger()
    with asyncio.Runner() as runner:
        serving = running(
            [WORKER, ASKER, GRAPH],
            models={"scripted": ScriptedModel(script)},
            address=server.address,
            settings=settings,
            worker={"interceptors": [forger]},
        )
        client = runner.run(serving.__aenter__())
        try:
            yield World(runner, client, forger)
        finally:
            runner.run(serving.__aexit__(None, None, None))


STARTS = {WORKFLOW: {**RUN, "agent": "graph", "limits": {}}, SESSION_WORKFLOW: {**SESSION, "agent": "asker"}}


@pytest.mark.parametrize("door", STARTS)
def test_start_arguments_end_in_words(world: World, door: str) -> None:
    """Whatever a workflow is started with, it ends in words or does its work, and can be cancelled."""

    @examples(25, phases=NO_SHRINKING)
    @given(arguments_near(STARTS[door]))
    def play(arguments: list[RawValue]) -> None:
        async def example() -> None:
            world.forger.target = ""
            await world.settles(await world.started(door, arguments))

        world.do(example())

    play()


def test_messages_are_refused_in_words(world: World) -> None:
    """Whatever an update, signal or query brings, the run answers afterwards."""

    def sent(kind: str, names: dict[str, tuple[Any, ...]]) -> st.SearchStrategy[tuple[str, str, Any]]:
        return st.one_of(
            *(
                st.tuples(st.just(kind), st.just(name), arguments_near(*valid))
                for name, valid in names.items()
            )
        )

    message = sent("update", UPDATES) | sent("signal", SIGNALS) | sent("query", QUERIES)

    async def send(run_id: str, kind: str, name: str, arguments: list[RawValue]) -> None:
        handle = world.client.temporal.get_workflow_handle(run_id)
        try:
            if kind == "signal":
                await handle.signal(name, args=arguments)
            elif kind == "query":
                await handle.query(name, args=arguments, result_type=RawValue)
            else:
                # Accepted is enough: `say` answers when its turn is over, and here a person keeps it waiting.
                accepted = WorkflowUpdateStage.ACCEPTED
                update = handle.start_update(name, args=arguments, wait_for_stage=accepted)
                await asyncio.wait_for(update, HANGS)
        except (WorkflowUpdateFailedError, WorkflowQueryFailedError, RPCError) as error:
            refusal = str(error.cause if isinstance(error, WorkflowUpdateFailedError) else error)
        else:
            return
        assert refusal, "a refusal says why"
        assert "failed state" not in refusal, "the workflow task fails"

    @examples(60, phases=NO_SHRINKING)
    @given(st.lists(message, min_size=1, max_size=4))
    def play(messages: list[tuple[str, str, list[RawValue]]]) -> None:
        async def example() -> None:
            run_id = await world.waiting()
            for kind, name, arguments in messages:
                await send(run_id, kind, name, arguments)
            assert (await world.client.get(run_id).status()).status
            await world.has_no_failed_task(run_id)

        world.do(example())

    play()


MESSAGE = {
    "role": "assistant",
    "parts": [{"kind": "text", "text": "hello"}],
    "meta": {"step": 1, "model": "m"},
}
CALL = {"kind": "tool_call", "id": "call-1-1", "name": "work", "arguments": {"value": 1}}
RESOLVED = {
    "spec": {
        "kind": "agent",
        "name": "a",
        "instructions": "",
        "models": [{"config": {"name": "scripted:a"}}],
    },
    "layout": 1,
}
ANSWERS: dict[str, tuple[Any, ...]] = {
    RESOLVE_AGENT: (RESOLVED,),
    CALL_MODEL: (
        {"message": MESSAGE, "stop": "end_turn"},
        {"message": {**MESSAGE, "parts": [CALL]}, "stop": "tool_calls", "output": 1, "output_problem": "no"},
    ),
    CALL_TOOL: (
        {"result": {"call_id": "call-1-1", "name": "work", "content": [{"kind": "text", "text": "x"}]}},
        {"ask": "why", "arguments": {}, "end_turn": "over"},
    ),
    RUN_HOOKS: ({"calls": [{"call_id": "call-1-1", "deny": "no"}], "end_turn": "x", "is_replaced": True},),
    KEEP_TEXT: ({"shown": "x", "spilled": "y"},),
    CALL_NODE: ({"any": ["json"]},),
}
FAILURES = {"kind": "rate_limited", "message": "m", "wasted": {"input_tokens": 5}, "retry_in": "PT0.01S"}


@pytest.mark.parametrize("target", ANSWERS)
def test_activity_answers_end_in_words(world: World, target: str) -> None:
    """Whatever a worker answers for an activity, result or failure, the run ends, parks or goes on."""

    def returning(payload: Payload) -> Callable[[], Any]:
        return lambda: RawValue(payload)

    def raising(kind: str, details: list[RawValue]) -> Callable[[], Any]:
        def fail() -> Any:
            raise ApplicationError("forged", *details, type=kind, non_retryable=True)

        return fail

    answers = st.builds(returning, payloads_near(*ANSWERS[target]))
    kinds = st.sampled_from(["", "rate_limited", "bug", "StaleTranscript", "x" * 300])
    failures = st.builds(raising, kinds, st.lists(st.builds(RawValue, payloads_near(FAILURES)), max_size=2))

    @examples(12, phases=NO_SHRINKING)
    @given(answers | answers | failures)
    def play(answer: Callable[[], Any]) -> None:
        async def example() -> None:
            world.forger.target, world.forger.answer = target, answer
            run_id = world.new_id()
            agent = "graph" if target == CALL_NODE else "a"
            await world.client.start(agent, "go", id=run_id)
            await world.settles(run_id)

        world.do(example())

    play()


def test_heartbeats_of_strangers_do_no_harm(world: World, tmp_path: Path) -> None:
    """Heartbeats that cannot be decoded harm neither the run, when the tool is late, nor who watches it."""

    @activity.defn(name="far")
    async def far(_: Any, __: Any) -> None:
        for broken in _BROKEN:
            activity.heartbeat(RawValue(Payload(metadata={"encoding": b"no/such"}, data=broken)))
            await asyncio.sleep(0.05)
        await asyncio.Event().wait()

    remote = RemoteTool(
        name="far",
        description="Far away.",
        input_schema={"type": "object"},
        task_queue=f"far-{world.client.task_queue}",
        timeout=timedelta(seconds=2),
        heartbeat=timedelta(seconds=1),
        retry=ToolRetry(attempts=1),
    )

    async def example() -> None:
        agent = Agent(name="watched", model="scripted:w", tools=[remote])
        lines = ScriptedModel([calls("far"), says("done")])
        settings = load_settings(
            home=tmp_path,
            address=world.client.temporal.service_client.config.target_host,
            task_queue=f"watched-{world.client.task_queue}",
        )
        address = settings.address
        async with running([agent], models={"scripted": lines}, address=address, settings=settings) as client:
            async with Worker(client.temporal, task_queue=remote.task_queue, activities=[far]):
                run = await client.start("watched", "go")
                seen = [event.kind async for event in run.events()]
                assert (await run.result()).output == "done"
                assert seen[-1] == "finished"
            await world.has_no_failed_task(run.id)

    world.do(example())
