"""Forged and broken input at every door of a run, on a real server: refused in words or ended, never stuck.

A workflow task that fails is tried again for ever, and not even a cancellation gets through. So after each example
the run answers or has ended, and its history holds no failed workflow task. `FUZZ_TIMES=20` digs deeper.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.client import (
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from temporalio.common import RawValue
from temporalio.service import RPCError

from perdure.settings import load_settings
from perdure.wire.names import (
    GRANT,
    INTERRUPT,
    PAUSE,
    REDRIVE,
    REPLY,
    REPORT,
    RESOLVE_APPROVAL,
    RESULT,
    RESUME,
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
from tests.fuzz.depth import examples
from tests.fuzz.test_requests import DECISION, PARTS, RUN, SESSION
from tests.fuzz.test_requests import SAY as SAID

from .forged import HANGS, NO_SHRINKING, World, arguments_near, open_world

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


@pytest.fixture(scope="module")
def world(server: DevServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home: Path = tmp_path_factory.mktemp("broken")
    settings = load_settings(home=home, address=server.address, task_queue=f"broken-{home.name}")
    with open_world(settings) as opened:
        yield opened


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
