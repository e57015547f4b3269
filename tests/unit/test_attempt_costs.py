"""Each call within an attempt is booked by one rule, and the reservation covers all of them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from perdure import Agent, Image
from perdure.activities import genai
from perdure.activities.content.blobs import FileBlobs
from perdure.activities.content.transcripts import ModelView, Transcripts
from perdure.activities.model import ModelCalls
from perdure.errors import ErrorKind, ModelError
from perdure.messages import Message, Part, Text, Usage
from perdure.model import Model, ModelConfig, ModelEvent, ModelRequest, Reply, TextDelta, UsageSoFar
from perdure.wire.effects import ModelFailure, ModelInput, ModelOutcome, Progress, TranscriptView
from perdure.wire.reservation import Reservation
from perdure.wire.spec import AgentSpec
from perdure.wire.tree import Amount
from tests.pictures import PNG

LONGEST = 4000


class Provider:
    """Provider that bills all that a request allows, and of which the case says what comes of it."""

    def __init__(self, case: Callable[["Provider", ModelRequest], AsyncIterator[ModelEvent]]) -> None:
        self.case = case
        self.bounds: list[int] = []
        self.asked = asyncio.Event()

    def check(self, config: ModelConfig) -> None: ...

    def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        self.bounds.append(request.max_tokens)
        self.asked.set()
        return self.case(self, request)


class Conversation(Transcripts):
    """Conversation of one message."""

    def __init__(self, *parts: Part) -> None:
        super().__init__()
        self.message = Message(role="user", parts=list(parts) or [Text(text="go")])

    async def get_spec(self, digest: str) -> AgentSpec:
        return Agent(name="a", model="provider:x").spec()

    async def get_view(self, call: ModelInput) -> ModelView:
        return ModelView(messages=(self.message,), blobs=())


MODEL_CALL = ModelInput(
    agent="a",
    spec="x",
    step=1,
    view=TranscriptView(length=1, start=0),
    max_tokens=8000,
    reservation=Reservation(amount=Amount(output_tokens=LONGEST), reads=100),
)


def model_calls(folder: Path, provider: Model, *parts: Part) -> ModelCalls:
    """Return the activity for a conversation of one message."""
    return ModelCalls(
        models={"provider": provider}, agents={}, transcripts=Conversation(*parts), blobs=FileBlobs(folder)
    )


async def _call(
    folder: Path,
    provider: Provider,
    *parts: Part,
    stop: bool = False,
    earlier: Progress | None = None,
    attempt: int = 1,
    **fields: Any,
) -> ModelOutcome | ModelFailure:
    """Return the outcome of one attempt, or why it failed."""
    environment = ActivityEnvironment()
    if earlier is not None:
        details = [earlier.model_dump(mode="json")]
        environment.info = replace(environment.info, attempt=attempt, heartbeat_details=details)
    activity, call = model_calls(folder, provider, *parts), MODEL_CALL.model_copy(update=fields)
    calling = asyncio.ensure_future(environment.run(activity.call_model, call))
    if stop:
        await provider.asked.wait()
        environment.cancel()
    try:
        return await calling
    except ApplicationError as error:
        [failure] = error.details
        assert isinstance(failure, ModelFailure)
        return failure


def _spent(end: ModelOutcome | ModelFailure) -> Usage:
    if isinstance(end, ModelFailure):
        return end.wasted
    assert end.message.meta is not None
    return end.wasted + end.message.meta.usage


def _lost(kind: ErrorKind, cause: BaseException | None = None, usage: Usage | None = None) -> ModelError:
    error = ModelError(kind, "no answer", usage=usage)
    error.__cause__ = cause
    return error


def _wrapped(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


UNCOUNTED = Usage(input_tokens=10, output_tokens=64, estimated=True)
READ, SENT_NOTHING = LONGEST, 0
SILENT_ENDS: dict[str, tuple[Exception, int]] = {
    "line cut": (_lost("connection", httpx2.ReadError("reset")), READ),
    "server hung up": (_lost("connection", httpx2.RemoteProtocolError("no response")), READ),
    "reset by the system": (_lost("connection", ConnectionResetError(104, "reset")), READ),
    "cause unknown": (_lost("connection"), READ),
    "too late": (_lost("timeout", httpx2.ReadTimeout("late")), READ),
    "cut after the headers": (_lost("stream_cut", usage=UNCOUNTED), READ),
    "unreadable": (_lost("malformed_reply"), READ),
    "library's error let pass": (httpx2.ReadError("reset"), READ),
    "refused connection": (_lost("connection", httpx2.ConnectError("refused")), SENT_NOTHING),
    "refused by the system": (
        _lost("connection", _wrapped(OSError("all failed"), ConnectionRefusedError())),
        SENT_NOTHING,
    ),
    "no such host": (_lost("connection", socket.gaierror(-2, "unknown")), SENT_NOTHING),
    "late to connect": (_lost("timeout", httpx2.ConnectTimeout("late")), SENT_NOTHING),
    "no connection free": (_lost("timeout", httpx2.PoolTimeout("late")), SENT_NOTHING),
    "proxy away": (_lost("connection", httpx2.ProxyError("no")), SENT_NOTHING),
    "library could not connect": (httpx2.ConnectError("refused"), SENT_NOTHING),
    "busy": (_lost("overloaded"), SENT_NOTHING),
    "slow down": (_lost("rate_limited"), SENT_NOTHING),
    "refused": (_lost("bad_request"), SENT_NOTHING),
    "own bug": (TypeError("no"), SENT_NOTHING),
}


@pytest.mark.parametrize("name", SILENT_ENDS)
async def test_silent_call_is_billed_unless_unsent(tmp_path: Path, name: str) -> None:
    """Of a call that ended before anything came, all is booked that it may have cost, unless nothing was sent."""
    error, least = SILENT_ENDS[name]

    async def case(provider: Provider, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        if provider.bounds:
            raise error
        yield TextDelta(text="never")

    spent = _spent(await _call(tmp_path, Provider(case)))
    assert spent.output_tokens == least
    assert bool(spent.input_tokens) == spent.estimated == bool(least)


async def test_stopped_silent_call_is_billed(tmp_path: Path) -> None:
    """A person's stop is no proof that the provider has written nothing yet."""

    async def case(provider: Provider, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        await asyncio.Event().wait()
        yield TextDelta(text="late")

    spent = _spent(await _call(tmp_path, Provider(case), stop=True))
    assert spent.output_tokens == LONGEST
    assert spent.estimated


PICTURE = Image(data=PNG)
REFUSALS: dict[str, tuple[str, dict[str, Any]]] = {
    "picture": ("this picture cannot be read", {}),
    "forced tool": ("tool_choice is not supported", {"tool_choice": "required"}),
    "length of the reply": ("max_tokens: 8000 is too large, must be at most 2000", {}),
}


@pytest.mark.parametrize("share", [0, 0.25, 1], ids=["free", "billed in part", "billed in full"])
@pytest.mark.parametrize("name", REFUSALS)
async def test_calls_of_one_attempt_share_the_reservation(tmp_path: Path, name: str, share: float) -> None:
    """A provider that bills a refused request: the call after it gets what is left, or is not made."""
    words, fields = REFUSALS[name]
    billed: list[int] = []

    async def case(provider: Provider, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        is_first = len(provider.bounds) == 1
        written = round(request.max_tokens * share) if is_first else request.max_tokens
        billed.append(written)
        usage = Usage(input_tokens=100, output_tokens=written)
        if written:
            yield UsageSoFar(usage=usage)
        if is_first:
            raise ModelError("bad_request", words, usage=usage if written else None)
        yield Reply(parts=(Text(text="done"),), stop="end_turn", usage=usage)

    provider = Provider(case)
    spent = _spent(await _call(tmp_path, provider, Text(text="see"), PICTURE, **fields))
    assert len(provider.bounds) == (1 if share == 1 else 2)
    assert spent.output_tokens == sum(billed) <= LONGEST
    assert not spent.estimated


async def test_refused_call_leaves_nothing_behind(tmp_path: Path) -> None:
    """What the first call wrote is no part of the answer of a second one that a person stops."""
    second = asyncio.Event()

    async def case(provider: Provider, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        if len(provider.bounds) == 1:
            yield TextDelta(text="half a word")
            raise ModelError("bad_request", "this picture cannot be read")
        yield TextDelta(text="I see")
        second.set()
        await asyncio.Event().wait()

    provider = Provider(case)
    provider.asked = second
    end = await _call(tmp_path, provider, Text(text="see"), PICTURE, stop=True)
    assert isinstance(end, ModelOutcome)
    assert end.message.text == "I see"
    assert end.wasted.output_tokens > 0


LOST = Usage(input_tokens=50, output_tokens=900, estimated=True)
BEFORE = Usage(input_tokens=7, output_tokens=70)


@pytest.mark.parametrize(
    ("earlier", "attempt", "recorded"),
    [
        # Killed while the model wrote; nothing before it.
        (Progress(call="step-1", attempt=1, seq=3, at_most=LOST, unrecorded=LOST), 2, [LOST]),
        # The same after an attempt that has recorded its own.
        (
            Progress(call="step-1", attempt=2, seq=3, spent=BEFORE, at_most=BEFORE + LOST, unrecorded=LOST),
            3,
            [LOST],
        ),
        # Ended by itself, and said so.
        (Progress(call="step-1", attempt=1, seq=0, spent=LOST), 2, []),
        # Killed, then one that died before it could record it: the heartbeat passed it on.
        (Progress(call="step-1", attempt=2, seq=1, spent=LOST, unrecorded=LOST), 3, [LOST]),
    ],
)
async def test_metrics_have_what_a_killed_worker_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: Progress, attempt: int, recorded: list[Usage]
) -> None:
    """The next attempt records it once; together the metrics say what is booked."""
    counted: list[Usage] = []

    def count(labels: Any, agent: str, model: Any, usage: Usage, cost_microusd: int | None) -> None:
        counted.append(usage)

    monkeypatch.setattr(genai, "record_usage", count)

    async def case(provider: Provider, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        yield Reply(parts=(Text(text="done"),), stop="end_turn", usage=BEFORE)

    end = await _call(tmp_path, Provider(case), earlier=earlier, attempt=attempt)
    assert counted == [*recorded, BEFORE]
    assert _spent(end) == (earlier.at_most or earlier.spent) + BEFORE
