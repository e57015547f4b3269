"""The contract of every adapter, checked over a real connection."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, cast

import pytest

from perdure.activities.attempt import may_be_billed
from perdure.activities.providers.scripted import ScriptedModel, calls, fails, says
from perdure.errors import RULES, DefinitionError, ModelError
from perdure.messages import Document, Image, Message, Opaque, ReplyMeta, Text, Thinking, ToolCall, ToolResult
from perdure.model import (
    Model,
    ModelConfig,
    ModelRequest,
    Reply,
    TextDelta,
    ThinkingDelta,
    ToolDefinition,
    UsageSoFar,
)

from .conftest import Wire
from .dialects import COUNTED, StubCall, StubReply

HALF = StubReply(text=("Hello", ", wor"))
SEARCH = ToolDefinition(name="search", description="Search.", input_schema={"type": "object"})
PNG = "iVBORw0KGgo="


def call_step(*results: ToolResult) -> tuple[Message, ...]:
    made = [ToolCall(id=result.call_id, name=result.name) for result in results]
    return (
        Message.user("go"),
        Message(role="assistant", parts=[*made]),
        Message(role="tool", parts=[*results]),
    )


# -- the four ways a stream can end


async def test_reply_comes_once_after_deltas(wire: Wire) -> None:
    """A finished answer is deltas, and then exactly one Reply."""
    events = await wire.ask(StubReply(text=("Hello", ", ", "world")))
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["Hello", ", ", "world"]
    replies = [event for event in events if isinstance(event, Reply)]
    assert replies == [events[-1]]
    assert replies[0].parts == (Text(text="Hello, world"),)
    assert replies[0].stop == "end_turn"


async def test_error_event_is_no_reply(wire: Wire) -> None:
    error = await wire.error(wire.dialect.unfinished(HALF, wire.dialect.error_event))
    assert error.kind == wire.dialect.error_event_kind
    assert error.request_id == "req-1"
    assert error.usage is not None
    assert error.usage.estimated


async def test_cut_connection_is_stream_cut(wire: Wire) -> None:
    """The error carries what the call has cost."""
    unthinking = wire.request({"thinking": "off"})
    error = await wire.error(wire.dialect.unfinished(HALF, end="cut"), request=unthinking)
    assert error.kind == "stream_cut"
    assert error.usage is not None
    assert error.usage.estimated
    # What has arrived, and what may have been in flight.
    assert 3 <= error.usage.output_tokens <= 80


async def test_missing_bytes_are_stream_cut(wire: Wire) -> None:
    """The connection ends before the promised content-length."""
    error = await wire.error(wire.dialect.unfinished(HALF, end="cut", length=100_000))
    assert error.kind == "stream_cut"


async def test_missing_terminal_mark_is_stream_cut(wire: Wire) -> None:
    """The connection ends cleanly, but before the mark of completion."""
    error = await wire.error(wire.dialect.unfinished(HALF))
    assert error.kind == "stream_cut"
    assert error.request_id == "req-1"
    assert error.usage is not None
    assert error.usage.estimated


async def test_empty_answer_is_stream_cut(wire: Wire) -> None:
    assert (await wire.error(wire.dialect.unfinished(StubReply(), length=0))).kind == "stream_cut"


# -- the shipped fake keeps the same contract


@pytest.fixture
def scripted_request() -> ModelRequest:
    return ModelRequest(config=ModelConfig(name="scripted:x"), messages=(Message.user("hi"),))


async def test_scripted_reply_comes_once_after_deltas(scripted_request: ModelRequest) -> None:
    model: Model = ScriptedModel([says("Hello, world", thinking="hm")])
    events = [event async for event in model.stream(scripted_request)]
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "Hello, world"
    assert [e.text for e in events if isinstance(e, ThinkingDelta)] == ["hm"]
    assert [e for e in events if isinstance(e, Reply)] == [events[-1]]


async def test_scripted_failure_has_no_reply(scripted_request: ModelRequest) -> None:
    """The text before the failure is streamed."""
    model = ScriptedModel([says("half") + fails("overloaded", retry_after=timedelta(seconds=2))])
    events = model.stream(scripted_request)
    assert isinstance(await anext(events), UsageSoFar)
    assert await anext(events) == TextDelta(text="half")
    with pytest.raises(ModelError) as caught:
        await anext(events)
    assert caught.value.retry_after == timedelta(seconds=2)


async def test_scripted_calls_keep_their_order(scripted_request: ModelRequest) -> None:
    model = ScriptedModel([calls("search", query="a") + calls("fetch", url="b")])
    reply = [event async for event in model.stream(scripted_request)][-1]
    assert isinstance(reply, Reply)
    assert reply.stop == "tool_calls"
    assert [part.name for part in reply.parts if isinstance(part, ToolCall)] == ["search", "fetch"]


# -- what a reply holds


async def test_calls_keep_order_and_arguments(wire: Wire) -> None:
    stub_calls = (
        StubCall(id="a"),
        StubCall(id="b", name="fetch", pieces=('{"n"', ": [1, 2]}")),
        StubCall(id="c", pieces=()),
    )
    reply = await wire.reply(StubReply(text=("On it.",), calls=stub_calls))
    assert reply.stop == "tool_calls"
    assert reply.parts == (
        Text(text="On it."),
        ToolCall(id="a", name="search", arguments={"query": "x"}),
        ToolCall(id="b", name="fetch", arguments={"n": [1, 2]}),
        ToolCall(id="c", name="search", arguments={}),
    )


@pytest.mark.parametrize("raw", ['{"query": ', "[1]", '"x"', "{'a': 1}", '{"a": 1} trailing'])
async def test_invalid_arguments_become_a_problem(wire: Wire, raw: str) -> None:
    """The raw text is kept beside the problem."""
    reply = await wire.reply(StubReply(calls=(StubCall(id="a", pieces=(raw[:2], raw[2:])),)))
    (call,) = reply.parts
    assert isinstance(call, ToolCall)
    assert call.problem
    assert call.arguments == {"_raw": raw}


@pytest.mark.parametrize("pieces", [(), ('{"query": "x"}',), ('{"query',)])
async def test_call_cut_by_length_never_runs(wire: Wire, pieces: tuple[str, ...]) -> None:
    """A call that was cut may parse by accident."""
    calls_made = (StubCall(id="a"), StubCall(id="b", pieces=pieces))
    reply = await wire.reply(StubReply(calls=calls_made, stop=wire.dialect.cut_stop))
    complete, cut = [part for part in reply.parts if isinstance(part, ToolCall)]
    assert reply.stop == "max_tokens"
    assert complete.problem is None
    assert cut.problem
    assert cut.arguments == {"_raw": "".join(pieces) or wire.dialect.no_arguments}


async def test_usage_is_four_disjoint_counts(wire: Wire) -> None:
    reply = await wire.reply(StubReply(text=("ok",)))
    assert reply.usage == wire.dialect.counted
    assert not reply.usage.estimated


async def test_request_id_and_digest_are_recorded(wire: Wire) -> None:
    image = Image(data=PNG)
    stops = {} if wire.dialect.name == "responses" else {"stop_sequences": ("END",)}
    request = wire.request(
        {"effort": "low", "options": {"extra_body": {"top_k": 5}}, **stops},
        instructions="Be brief. Grüße.",
        messages=(Message.user([Text(text="see"), image]),),
        tools=(SEARCH,),
    )
    reply = await wire.reply(StubReply(text=("ok",)), request=request)
    again = await wire.reply(StubReply(text=("ok",)), request=replace(request))
    other = await wire.reply(StubReply(text=("ok",)), request=replace(request, max_tokens=77))
    bodies = [received.body for received in wire.server.requests]
    assert bodies[0] == bodies[1] != bodies[2]
    assert reply.request_digest == again.request_digest != other.request_digest
    assert reply.request_digest
    assert len(reply.request_digest) == 64
    assert reply.request_id == "req-1"


async def test_thinking_is_apart_from_text(wire: Wire) -> None:
    events = await wire.ask(StubReply(thinking="Let me see.", text=("42",)))
    assert [event.text for event in events if isinstance(event, ThinkingDelta)] == ["Let me see."]
    reply = events[-1]
    assert isinstance(reply, Reply)
    assert reply.parts == (Thinking(text="Let me see.", signature=wire.dialect.signature), Text(text="42"))


STOPS = {
    "anthropic": {
        "end_turn": "end_turn",
        "tool_use": "tool_calls",
        "max_tokens": "max_tokens",
        "stop_sequence": "stop_sequence",
        "refusal": "refusal",
        "model_context_window_exceeded": "context_overflow",
        "pause_turn": "pause_turn",
    },
    "bedrock": {
        "end_turn": "end_turn",
        "tool_use": "tool_calls",
        "max_tokens": "max_tokens",
        "stop_sequence": "stop_sequence",
        "guardrail_intervened": "guardrail",
        "content_filtered": "refusal",
        "model_context_window_exceeded": "context_overflow",
    },
    "openai": {
        "stop": "end_turn",
        "tool_calls": "tool_calls",
        "function_call": "tool_calls",
        "length": "max_tokens",
        "content_filter": "refusal",
    },
    "gemini": {
        "STOP": "end_turn",
        "MAX_TOKENS": "max_tokens",
        "SAFETY": "refusal",
        "IMAGE_SAFETY": "refusal",
    },
    "responses": {"completed": "end_turn", "max_output_tokens": "max_tokens", "content_filter": "refusal"},
}
STOPS["azure"] = STOPS["openai"]


async def test_stop_reasons_are_translated(wire: Wire) -> None:
    for theirs, ours in STOPS[wire.dialect.name].items():
        assert (await wire.reply(StubReply(text=("ok",), stop=theirs))).stop == ours


@pytest.mark.parametrize(
    ("stop", "kind"),
    [("tea_break", "malformed_reply"), ("abort", "stream_cut"), ("engine_error", "overloaded")],
)
async def test_other_stop_reason_is_retried(wire: Wire, stop: str, kind: str) -> None:
    """A stop reason that says that the answer is broken, or that nobody knows, is no end: another call may be whole."""
    error = await wire.error(StubReply(text=("ok",), stop=stop))
    assert error.kind == kind
    assert RULES[error.kind].retried
    assert RULES[error.kind].falls_back
    assert f"'{stop}'" in str(error)
    assert error.usage == wire.dialect.counted


async def test_stop_reasons_of_other_servers_are_known(wire: Wire) -> None:
    """A gateway passes on the words of the server behind it."""
    for theirs, ours in {"eos": "end_turn", "MAX_TOKENS": "max_tokens", "SAFETY": "refusal"}.items():
        assert (await wire.reply(StubReply(text=("ok",), stop=theirs))).stop == ours


# -- errors

REFUSALS: dict[str, list[tuple[int, str, str, str]]] = {
    "anthropic": [
        (400, "invalid_request_error", "max_tokens: must be positive", "bad_request"),
        (400, "invalid_request_error", "prompt is too long: 250000 tokens > 200000", "context_overflow"),
        (400, "invalid_request_error/organization_on_hold", "on hold", "payment"),
        (400, "invalid_request_error/cmek_key_disabled", "key disabled", "authentication"),
        (401, "authentication_error", "invalid key", "authentication"),
        (402, "billing_error", "no credit", "payment"),
        (403, "permission_error", "not allowed", "authentication"),
        (404, "not_found_error", "model: claude-nope", "not_found"),
        (408, "timeout_error", "too slow", "timeout"),
        (409, "conflict_error", "conflict", "overloaded"),
        (413, "request_too_large", "too big", "too_large"),
        (422, "invalid_request_error", "unprocessable", "bad_request"),
        (429, "rate_limit_error", "slow down", "rate_limited"),
        (429, "rate_limit_error/ramp_limit_exceeded", "slow down", "rate_limited"),
        (429, "rate_limit_error/enforced_spend_limit_reached", "limit", "payment"),
        (429, "rate_limit_error/contract_spend_limit_reached", "limit", "payment"),
        (431, "invalid_request_error", "headers", "too_large"),
        (499, "api_error", "closed", "overloaded"),
        (500, "api_error", "oops", "overloaded"),
        (501, "api_error", "not implemented", "bad_request"),
        (503, "api_error", "unavailable", "overloaded"),
        (504, "timeout_error", "deadline", "timeout"),
        (529, "overloaded_error", "Overloaded", "overloaded"),
    ],
    "bedrock": [
        (400, "ValidationException", "messages.0.content: empty", "bad_request"),
        (400, "ValidationException", "Input is too long for requested model.", "context_overflow"),
        (400, "ValidationException", "The provided model identifier is invalid.", "not_found"),
        (400, "ServiceQuotaExceededException", "quota", "payment"),
        (403, "AccessDeniedException", "no access", "authentication"),
        (403, "UnrecognizedClientException", "bad token", "authentication"),
        (403, "ExpiredTokenException", "expired", "authentication"),
        (404, "ResourceNotFoundException", "no such profile", "not_found"),
        (408, "ModelTimeoutException", "too slow", "timeout"),
        (424, "ModelErrorException", "model failed", "overloaded"),
        (429, "ThrottlingException", "slow down", "rate_limited"),
        (429, "ModelNotReadyException", "loading", "overloaded"),
        (500, "InternalServerException", "oops", "overloaded"),
        (503, "ServiceUnavailableException", "unavailable", "overloaded"),
        (413, "SomethingNewException", "too big", "too_large"),
    ],
    "openai": [
        (400, "", "Invalid value: 'temperature'", "bad_request"),
        (400, "context_length_exceeded", "too long", "context_overflow"),
        (400, "", "This model's maximum context length is 8192 tokens", "context_overflow"),
        (401, "invalid_api_key", "wrong key", "authentication"),
        (403, "", "not allowed", "authentication"),
        (404, "model_not_found", "no such model", "not_found"),
        (409, "", "conflict", "overloaded"),
        (413, "", "too big", "too_large"),
        (422, "", "unprocessable", "bad_request"),
        (429, "rate_limit_exceeded", "slow down", "rate_limited"),
        (429, "insufficient_quota", "check your plan", "payment"),
        (500, "", "oops", "overloaded"),
        (503, "", "unavailable", "overloaded"),
    ],
}
REFUSALS["azure"] = REFUSALS["responses"] = REFUSALS["openai"]
REFUSALS["gemini"] = [
    (400, "INVALID_ARGUMENT", "Invalid value at 'contents'", "bad_request"),
    (
        400,
        "INVALID_ARGUMENT",
        "The input token count (9) exceeds the maximum number of tokens allowed (8).",
        "context_overflow",
    ),
    (400, "INVALID_ARGUMENT/API_KEY_INVALID", "API key not valid.", "authentication"),
    (401, "UNAUTHENTICATED", "no", "authentication"),
    (403, "PERMISSION_DENIED", "no", "authentication"),
    (404, "NOT_FOUND", "no such model", "not_found"),
    (429, "RESOURCE_EXHAUSTED", "slow down", "rate_limited"),
    (500, "INTERNAL", "oops", "overloaded"),
    (503, "UNAVAILABLE", "unavailable", "overloaded"),
    (504, "DEADLINE_EXCEEDED", "too slow", "timeout"),
]


async def test_refusals_have_kinds_and_no_retries(wire: Wire) -> None:
    for status, code, message, kind in REFUSALS[wire.dialect.name]:
        before = len(wire.server.requests)
        error = await wire.error(wire.dialect.refusal(status, code, message))
        assert error.kind == kind, (status, code, message)
        assert message in str(error)
        assert error.request_id == "req-1"
        assert error.usage is None, "a refused call costs nothing"
        assert not may_be_billed(error) or error.kind == "timeout"
        assert len(wire.server.requests) == before + 1, "no retries of the library's own"


@pytest.mark.parametrize(
    ("headers", "delay"),
    [
        ({"retry-after": "7"}, timedelta(seconds=7)),
        ({"retry-after": "0.5"}, timedelta(seconds=0.5)),
        ({"retry-after-ms": "250", "retry-after": "1"}, timedelta(milliseconds=250)),
        ({"retry-after": "7200"}, timedelta(hours=2)),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
async def test_retry_after_is_passed_on(wire: Wire, headers: dict[str, str], delay: timedelta | None) -> None:
    code = {"anthropic": "rate_limit_error", "bedrock": "ThrottlingException", "gemini": "RESOURCE_EXHAUSTED"}
    name = code.get(wire.dialect.name, "requests")
    error = await wire.error(wire.dialect.refusal(429, name, "slow down", **headers))
    assert error.retry_after == delay


async def test_retry_after_date_counts_from_now(wire: Wire) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    error = await wire.error(wire.dialect.refusal(503, "x", "later", **{"retry-after": date}))
    assert error.retry_after is not None
    assert timedelta(minutes=4) < error.retry_after <= timedelta(minutes=5)


async def test_error_page_without_json_has_kind(wire: Wire) -> None:
    error = await wire.error(wire.dialect.refusal(502, "", "x"))
    assert error.kind == "overloaded"


async def test_missing_server_is_connection_error(wire: Wire) -> None:
    model = wire.dialect.make("http://127.0.0.1:1")
    with pytest.raises(ModelError) as caught:
        [event async for event in model.stream(wire.request())]
    await model.aclose()
    assert caught.value.kind == "connection"
    assert caught.value.usage is None
    assert not may_be_billed(caught.value)
    assert RULES[caught.value.kind].retried


async def test_early_hang_up_is_connection_error(wire: Wire) -> None:
    """The server hangs up before it answers."""
    wire.server.script(wire.dialect.answer(StubReply(), silent=True))
    asking = asyncio.create_task(wire.error())
    await wire.server.requested.wait()
    await wire.server.hang_up()
    error = await asking
    assert error.kind == "connection"
    assert may_be_billed(error), "the server has read the request"


async def test_timeout_carries_the_cost(wire: Wire) -> None:
    # A first call makes the library's client, which takes long on a busy machine.
    await wire.reply(StubReply())
    request = wire.request({"timeout": timedelta(seconds=3)})
    error = await wire.error(wire.dialect.unfinished(HALF, end="hang"), request=request)
    assert error.kind == "timeout"
    assert error.usage is not None
    assert error.usage.estimated


async def test_read_timeout_ends_a_stalled_answer(wire: Wire) -> None:
    request = wire.request({"read_timeout": timedelta(seconds=2), "timeout": timedelta(minutes=10)})
    # A first call makes botocore's client, which takes seconds on a busy machine.
    await wire.reply(StubReply())
    error = await wire.error(wire.dialect.unfinished(HALF, end="hang"), request=request)
    assert error.kind == "timeout"
    assert "nothing of it for 0:00:02" in str(error)
    assert error.usage is not None
    assert error.usage.estimated
    await asyncio.wait_for(wire.server.disconnected.wait(), 60)


async def test_read_timeout_ends_a_silent_start(wire: Wire) -> None:
    request = wire.request({"read_timeout": timedelta(milliseconds=500), "timeout": timedelta(minutes=10)})
    error = await wire.error(wire.dialect.answer(StubReply(), silent=True), request=request)
    assert error.kind == "timeout"
    assert may_be_billed(error)


async def test_timeout_ends_an_endless_answer(wire: Wire) -> None:
    """Data that is always ready never makes the reader wait, and a timeout only ends a wait."""
    # A first call makes the library's client, which takes long on a busy machine.
    await wire.reply(StubReply())
    request = wire.request({"timeout": timedelta(seconds=2)})
    drip = wire.dialect.open(StubReply(text=("x",)))[wire.dialect.last_piece]
    error = await wire.error(wire.dialect.unfinished(HALF, drip, end="drip"), request=request)
    assert error.kind == "timeout"
    await asyncio.wait_for(wire.server.disconnected.wait(), 60)


# -- cancellation


async def test_closing_the_iterator_closes_the_connection(wire: Wire) -> None:
    wire.server.script(wire.dialect.unfinished(HALF, end="hang"))
    events = wire.model.stream(wire.request())
    while not isinstance(await anext(events), TextDelta):
        pass
    assert isinstance(events, AsyncGenerator)
    await cast("AsyncGenerator[object]", events).aclose()
    await asyncio.wait_for(wire.server.disconnected.wait(), 60)


async def test_cancelled_reader_closes_the_connection(wire: Wire) -> None:
    wire.server.script(wire.dialect.unfinished(HALF, end="hang"))
    heard = asyncio.Event()

    async def read() -> None:
        async for event in wire.model.stream(wire.request()):
            if isinstance(event, TextDelta) and event.text == ", wor":
                heard.set()

    reading = asyncio.create_task(read())
    await heard.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.wait_for(wire.server.disconnected.wait(), 60)


async def test_cancelled_before_answer_hangs_up(wire: Wire) -> None:
    """The reader leaves at once; the connection is closed by the first byte at the latest."""
    wire.server.script(wire.dialect.unfinished(HALF, end="hang", silent=True))
    asking = asyncio.create_task(wire.ask())
    await wire.server.requested.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    wire.server.speak.set()
    await asyncio.wait_for(wire.server.disconnected.wait(), 60)


async def test_adapter_serves_calls_concurrently(wire: Wire) -> None:
    for _ in range(5):
        wire.will_say(StubReply(text=("ok",)))
    replies = await asyncio.gather(*(wire.reply() for _ in range(5)))
    assert [reply.parts for reply in replies] == [(Text(text="ok"),)] * 5


# -- settings


def test_unknown_option_is_refused(wire: Wire) -> None:
    """The message names the known options."""
    with pytest.raises(DefinitionError, match=r"'wings'; the known ones are .*extra_body"):
        wire.model.check(wire.dialect.config(options={"wings": 2}))


def test_option_of_wrong_type_is_refused(wire: Wire) -> None:
    with pytest.raises(DefinitionError, match="option 'extra_body'"):
        wire.model.check(wire.dialect.config(options={"extra_body": "x"}))


def test_plain_config_passes(wire: Wire) -> None:
    wire.model.check(wire.dialect.config())


async def test_thinking_stays_with_its_model(wire: Wire) -> None:
    def message_of(model: str) -> Message:
        parts = [Thinking(text="secret", signature="s"), Text(text="hi")]
        return Message(role="assistant", parts=[*parts], meta=ReplyMeta(step=1, model=model))

    foreign = wire.request(messages=(Message.user("a"), message_of("other:model"), Message.user("b")))
    assert "secret" not in str(await wire.body_of(foreign))
    same = wire.request(messages=(Message.user("a"), message_of(wire.dialect.model_name), Message.user("b")))
    assert ("secret" in str(await wire.body_of(same))) == (wire.dialect.name in ("anthropic", "bedrock"))


async def test_foreign_blocks_and_meta_stay_unsent(wire: Wire) -> None:
    """Opaque blocks of another provider, and our own notes on a reply, are never sent."""
    meta = ReplyMeta(step=1, model="other:model", request_id="meta-note")
    foreign = Message(role="assistant", parts=[Opaque(provider="other", data={"type": "alien"})], meta=meta)
    body = await wire.body_of(wire.request(messages=(Message.user("a"), foreign, Message.user("b"))))
    assert "alien" not in str(body)
    assert "meta-note" not in str(body)
    assert "(empty)" in str(body), "an assistant's message is never sent empty"


async def test_missing_blob_is_a_bug(wire: Wire) -> None:
    request = wire.request(messages=(Message.user([Image(blob="b1")]),))
    assert (await wire.error(request=request)).kind == "bug"
    assert wire.server.requests == []


async def test_unsupported_media_is_told_in_words(wire: Wire) -> None:
    """A document that the provider does not read is not sent; the model reads that there is one."""
    body = await wire.body_of(
        wire.request(messages=(Message.user([Document(data=PNG, media_type="application/x-odd")]),))
    )
    assert "the document of type 'application/x-odd', which cannot be shown to you" in str(body)
    assert PNG not in str(body)


async def test_tools_are_never_forced(wire: Wire) -> None:
    body = await wire.body_of(wire.request(messages=(Message.user("a"),), tools=(SEARCH,)))
    assert "any" not in str(body.get("tool_choice", body.get("toolConfig")))
    assert "required" not in str(body.get("tool_choice", ""))


@pytest.mark.parametrize("choice", ["auto", "none"])
async def test_tools_stay_listed_when_forbidden(wire: Wire, choice: Any) -> None:
    """The provider's prompt cache counts on it."""
    request = wire.request(messages=(Message.user("a"),), tools=(SEARCH,), tool_choice=choice)
    body = await wire.body_of(request)
    assert "search" in str(body.get("tools") or body["toolConfig"]["tools"])


async def test_early_usage_is_yielded_early(anthropic_wire: Wire) -> None:
    first = (await anthropic_wire.ask(StubReply(text=("ok",))))[0]
    assert isinstance(first, UsageSoFar)
    assert first.usage.all_input_tokens == COUNTED.all_input_tokens
