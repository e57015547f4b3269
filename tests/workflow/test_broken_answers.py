"""Forged and broken answers of activities: the run ends, parks or goes on, and its callers hear words.

Whoever may poll a task queue answers for the workers; a worker of another version, or a codec that fails, gives the
same. As in `test_broken_input`, no workflow task may fail. `FUZZ_TIMES=20` digs deeper.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.client import Client as TemporalClient
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from perdure import Agent, Limits, RemoteTool, Swarm, ToolRetry, tool
from perdure.errors import PerdureError
from perdure.model import ModelRequest
from perdure.settings import load_settings
from perdure.testing import ScriptedModel, calls, says
from perdure.wire.ids import child_run_id
from perdure.wire.names import (
    BIND_ARGUMENTS,
    CALL_MODEL,
    CALL_NODE,
    CALL_TOOL,
    COUNT_ATTEMPTS,
    END_EARLIER_CHILD,
    KEEP_TEXT,
    RELAY,
    RENEW_BLOBS,
    RESOLVE_AGENT,
    RESOLVE_APPROVAL,
    RUN_HOOKS,
    SEND,
)
from perdure.wire.results import Approval
from perdure.workers.dev.server import DevServer
from tests.conftest import until
from tests.fuzz.depth import examples
from tests.serving import running

from .forged import BROKEN, HANGS, NO_SHRINKING, TICKET, World, open_world, payloads_near, script, work

# -- who asks for the answers


@tool(approval=True, effect="write")
async def pay(cents: int) -> str:
    """Pay."""
    return f"paid {cents}"


def _bank(task_queue: str) -> RemoteTool:
    """A remote write whose only attempt is refused so late that the server is asked whether it was the only one."""
    return RemoteTool(
        name="bank",
        description="Pay by the bank.",
        task_queue=task_queue,
        effect="write",
        input_schema={"type": "object", "properties": {}},
        retry=ToolRetry(attempts=3, initial_interval=timedelta(milliseconds=10)),
    )


@activity.defn(name="bank")
async def bank(_: Any, __: Any) -> None:
    await asyncio.sleep(0.1)
    raise ApplicationError("the bank is closed", non_retryable=True)


PAYER = Agent(name="payer", model="scripted:pays", tools=[pay])
LONG = Agent(name="long", model="scripted:long", tools=[work, TICKET.as_tool()], result_preview_bytes=1024)
STEPS_OF_LONG = 8
"""Enough for a server that wants runs to continue as new after sixty events."""


def answer(request: ModelRequest) -> Any:
    match request.config.model:
        case "pays" | "banks" if request.messages[-1].role != "tool":
            return calls("pay", cents=5) if request.config.model == "pays" else calls("bank")
        case "long" if request.step <= STEPS_OF_LONG:
            return calls("b", input="x") if request.step == 1 else calls("work", value=request.step)
        case "pays" | "banks" | "long":
            return says("done")
        case _:
            return script(request)


@pytest.fixture(scope="module")
def world(impatient: DevServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home: Path = tmp_path_factory.mktemp("answers")
    settings = load_settings(home=home, address=impatient.address, task_queue=f"answers-{home.name}")
    banker = Agent(name="banker", model="scripted:banks", tools=[_bank(f"bank-{home.name}")])
    with open_world(settings, [PAYER, banker, Swarm(name="team", agents=[PAYER]), LONG], answer) as opened:
        foreign = opened.runner.run(_foreign_worker(impatient.address, f"bank-{home.name}"))
        opened.runner.run(foreign.__aenter__())
        try:
            yield opened
        finally:
            opened.runner.run(foreign.__aexit__(None, None, None))


async def _foreign_worker(address: str, task_queue: str) -> Worker:
    return Worker(await TemporalClient.connect(address), task_queue=task_queue, activities=[bank])


async def _ends(world: World, agent: str) -> None:
    run_id = world.new_id()
    await world.client.start(agent, "go", id=run_id)
    await world.settles(run_id)


async def _ends_worker(world: World) -> None:
    await _ends(world, "a")


async def _waits(world: World, agent: str) -> tuple[str, Approval]:
    """Return a run of the agent that waits for a person, and what it waits for."""
    run = await world.client.start(agent, "go", id=world.new_id())
    found: list[Approval] = []

    async def is_asking() -> bool:
        try:
            found[:] = [item for item in (await run.status()).waiting if isinstance(item, Approval)]
        except PerdureError:
            return False
        return bool(found)

    await until(is_asking, within=HANGS)
    return run.id, found[0]


async def _tell(world: World, run_id: str, update: str, argument: Any) -> None:
    """Send an update of a person: it is taken, or refused in words."""
    refusal = "none"
    try:
        async with asyncio.timeout(HANGS):
            await world.client.get(run_id).calls.update(update, argument)
    except PerdureError as error:
        refusal = str(error)
    assert refusal, "a refusal says why"


async def _decides_below(world: World) -> None:
    run_id, approval = await _waits(world, "team")
    await _tell(world, run_id, SEND, {"run_id": approval.run_id, "text": "go on"})
    decision = {"call_id": approval.call_id, "allow": True, "digest": approval.digest}
    await _tell(world, run_id, RESOLVE_APPROVAL, decision)
    assert (await world.client.get(run_id).status()).status
    await world.settles(run_id)


async def _edits(world: World) -> None:
    run_id, approval = await _waits(world, "payer")
    decision = {"call_id": approval.call_id, "allow": True, "arguments": {"cents": 7}}
    await _tell(world, run_id, RESOLVE_APPROVAL, decision)
    await world.settles(run_id)


async def _meets_earlier_child(world: World) -> None:
    run_id = world.new_id()
    taken = child_run_id(run_id, "b-1-2")
    theirs = await world.client.temporal.start_workflow("Order", id=taken, task_queue="nobody")
    await world.client.start("a", "go", id=run_id)
    await world.settles(run_id)
    await theirs.terminate()


ASKING: dict[str, Callable[[World], Awaitable[None]]] = {
    CALL_NODE: lambda world: _ends(world, "graph"),
    RELAY: _decides_below,
    BIND_ARGUMENTS: _edits,
    COUNT_ATTEMPTS: lambda world: _ends(world, "banker"),
    END_EARLIER_CHILD: _meets_earlier_child,
    RENEW_BLOBS: lambda world: _ends(world, "long"),
}
"""Runs that ask for an answer; all others are those of agent `a`."""

# -- what they are told

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
    RELAY: (1, {"call_id": "call-1-1", "run_id": "r", "allow": True, "by": "lee"}),
    BIND_ARGUMENTS: ({"arguments": {"cents": 5}}, {"problem": "no such account"}),
    COUNT_ATTEMPTS: (1, 2, 0),
    END_EARLIER_CHILD: (True, False),
    RENEW_BLOBS: (None,),
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

    given_out: list[str] = []

    def counted(answer: Callable[[], Any]) -> Callable[[], Any]:
        def give() -> Any:
            given_out.append(target)
            return answer()

        return give

    answers = st.builds(returning, payloads_near(*ANSWERS[target]))
    kinds = st.sampled_from(["", "rate_limited", "bug", "StaleTranscript", "x" * 300])
    failures = st.builds(raising, kinds, st.lists(st.builds(RawValue, payloads_near(FAILURES)), max_size=2))

    @examples(12, phases=NO_SHRINKING)
    @given(answers | answers | failures)
    def play(answer: Callable[[], Any]) -> None:
        async def example() -> None:
            world.forger.target, world.forger.answer = target, counted(answer)
            await ASKING.get(target, _ends_worker)(world)

        world.do(example())

    play()
    assert given_out, "the answers were asked for"


_OTHER = {"call_id": "call-9-9", "name": "work", "content": [{"kind": "text", "text": "x"}]}
ABOUT_OTHERS: dict[str, tuple[str, Any]] = {
    "hooks give no verdict": (RUN_HOOKS, {"calls": []}),
    "hooks judge another call": (RUN_HOOKS, {"calls": [{"call_id": "call-9-9"}]}),
    "hooks judge one of two calls": (RUN_HOOKS, {"calls": [{"call_id": "call-1-1"}]}),
    "tool answers another call": (CALL_TOOL, {"result": _OTHER}),
    "model gives an id twice": (
        CALL_MODEL,
        {"message": {**MESSAGE, "parts": [CALL, CALL]}, "stop": "tool_calls"},
    ),
}


@pytest.mark.parametrize("row", ABOUT_OTHERS)
def test_answers_about_others_hold_up_no_run(world: World, row: str) -> None:
    """An answer that leaves out what was asked, or is about something else, ends or parks the run, or lets it go on."""
    target, told = ABOUT_OTHERS[row]
    forged = Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(told).encode())

    async def example() -> None:
        world.forger.target = target
        world.forger.answer = lambda: RawValue(forged)
        run_id = world.new_id()
        await world.client.start("a", "go", id=run_id, limits=Limits(steps=3))
        await world.settles(run_id)

    world.do(example())


def test_heartbeats_of_strangers_do_no_harm(world: World, tmp_path: Path) -> None:
    """Heartbeats that cannot be decoded harm neither the run, when the tool is late, nor who watches it."""

    @activity.defn(name="far")
    async def far(_: Any, __: Any) -> None:
        for broken in BROKEN:
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
