"""`kill -9` of the worker as a turn of a session ends: its stream gives the whole answer, and says what is missing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import temporalio.client
from temporalio.api.enums.v1 import EventType
from temporalio.client import Interceptor, OutboundInterceptor, QueryWorkflowInput

from perdure import connect
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.starter.watch import run as watching
from perdure.wire.events import (
    Event,
    EventsMissing,
    MessageFinished,
    TextAssembler,
    TextRestarted,
    ToolFinished,
    ToolStarted,
    TurnFinished,
)
from tests.conftest import HANGS, until

from .conftest import Crew
from .crew import BRIEF

TURNS = {"teller": ["message"], "counter": [*["tool_started", "tool_finished"] * 2, "message", "message"]}
"""Agents, and what their turn consists of beside its texts."""


class _KillsAtTheEnd(Interceptor):
    """Interceptor that kills the worker once all turns have ended, before any question about an ended turn."""

    def __init__(
        self, temporal: temporalio.client.Client, sessions: set[str], kill: Callable[[], None]
    ) -> None:
        self._temporal = temporal
        self._in_turn = set(sessions)
        self._kill = kill
        self.has_killed = False

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002
        killer = self

        class Outbound(OutboundInterceptor):
            async def query_workflow(self, input: QueryWorkflowInput) -> Any:  # noqa: A002
                await killer.before_question(input.id)
                return await super().query_workflow(input)

        return Outbound(next)

    async def before_question(self, session: str) -> None:
        """Hold the question back if the session's turn has ended."""
        history = await self._temporal.get_workflow_handle(session).fetch_history()
        ended = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED
        if not any(event.event_type == ended for event in history.events):
            return
        self._in_turn.discard(session)
        while self._in_turn:
            await asyncio.sleep(0.02)
        if not self.has_killed:
            self.has_killed = True
            self._kill()


def _killing(client: Client, sessions: set[str], kill: Callable[[], None]) -> tuple[Client, _KillsAtTheEnd]:
    """Return another client, whose questions at the end of a turn kill the worker."""
    killer, config = _KillsAtTheEnd(client.temporal, sessions, kill), client.temporal.config()
    config["interceptors"] = [*config["interceptors"], killer]
    return Client(temporalio.client.Client(**config), task_queue=client.task_queue), killer


async def _stream(client: Client, agent: str, session_id: str) -> list[Event]:
    session = await client.session(session_id, agent=agent, user="ann")
    async with asyncio.timeout(2 * HANGS):
        return [event async for event in session.stream("go")]


def _last_text(events: list[Event]) -> str:
    reader = TextAssembler()
    steps = [0]
    for event in events:
        reader.feed(event)
        if isinstance(event, MessageFinished):
            steps.append(event.step)
    return reader.text(max(steps))


def _parts(events: list[Event]) -> list[str]:
    kinds = (MessageFinished, ToolStarted, ToolFinished)
    return sorted(event.kind for event in events if isinstance(event, kinds))


@pytest.mark.parametrize("successor", [True, False], ids=["successor", "nobody"])
async def test_stream_of_killed_turn_is_whole_or_marked(
    workers: Crew, settings: Settings, monkeypatch: pytest.MonkeyPatch, *, successor: bool
) -> None:
    """A worker is killed between the end of a turn and the last question about it.

    The stream has the whole answer. With a successor it has every event. Without one it says that events are missing.
    """
    # Only the time to wait differs from the product: neither a busy machine nor the test is to decide.
    monkeypatch.setattr(watching, "_LAST_ANSWER_WITHIN", HANGS if successor else 1.0)

    def kill() -> None:
        workers.kill()
        if successor:
            workers.start()

    sessions = {f"{agent}-{successor}": agent for agent in TURNS}
    client, killer = _killing(await connect(settings=settings), set(sessions), kill)
    streams = await asyncio.gather(*(_stream(client, agent, name) for name, agent in sessions.items()))
    assert killer.has_killed
    for agent, events in zip(sessions.values(), streams, strict=True):
        end = events[-1]
        assert isinstance(end, TurnFinished)
        assert end.reply.text == _last_text(events) == BRIEF
        is_marked = any(isinstance(event, EventsMissing) for event in events)
        is_complete = _parts(events) == sorted(TURNS[agent])
        assert is_marked is not is_complete, events
        if successor:
            assert is_complete


async def test_stream_survives_kill_in_last_words(workers: Crew, settings: Settings) -> None:
    """A worker dies after the last word of an answer and before its end: the next one's answer is whole, once."""
    client = await connect(settings=settings)

    async def replace() -> None:
        async def is_dead() -> bool:
            return workers.processes[0].poll() is not None

        await until(is_dead)
        workers.start()

    replacing = asyncio.create_task(replace())
    events = await _stream(client, "mortal", "last-words")
    await replacing
    end = events[-1]
    assert isinstance(end, TurnFinished)
    assert end.reply.text == _last_text(events) == BRIEF
    assert _parts(events) == ["message"]
    assert not any(isinstance(event, EventsMissing) for event in events)
    assert any(isinstance(event, TextRestarted) for event in events), "words of the first attempt were shown"
