"""Forged and broken input: payloads near to valid ones, and a worker whose runs get them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from hypothesis import Phase
from hypothesis import strategies as st
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import RawValue
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from perdure import Agent, Graph, ask_person, tool
from perdure.errors import PerdureError
from perdure.hooks import Hook, HookedCall, HookedRun, Proceed, Verdict
from perdure.members import Member
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.testing import Line, ScriptedModel, calls, says
from tests.fuzz import junk
from tests.serving import running

HANGS: Final = 60.0
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
BROKEN = [
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
    odd = st.builds(_payload, st.sampled_from(_ENCODINGS), written | st.sampled_from(BROKEN))
    return plain | plain | odd | st.sampled_from([Payload(), *_REFERENCES])


def arguments_near(*valid: Any) -> st.SearchStrategy[list[RawValue]]:
    """Arguments: mostly one, sometimes none or several."""
    one = st.builds(RawValue, payloads_near(*valid))
    return one.map(lambda value: [value]) | st.lists(one, max_size=3)


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


@contextmanager
def open_world(
    settings: Settings, more: Sequence[Member] = (), answer: Callable[[ModelRequest], Any] = script
) -> Generator[World]:
    """Serve the agents of this file and some more, with a model that answers so."""
    forger = Forger()
    with asyncio.Runner() as runner:
        serving = running(
            [WORKER, ASKER, GRAPH, *more],
            models={"scripted": ScriptedModel(answer)},
            address=settings.address,
            settings=settings,
            worker={"interceptors": [forger]},
        )
        client = runner.run(serving.__aenter__())
        try:
            yield World(runner, client, forger)
        finally:
            runner.run(serving.__aexit__(None, None, None))
