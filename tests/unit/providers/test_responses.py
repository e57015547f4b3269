"""Ways of the Responses API: reasoning items, calls, ends, and what is asked of the provider."""

import json
from dataclasses import replace
from typing import Any

import pytest

from perdure.activities.providers.responses import ResponsesModel
from perdure.errors import DefinitionError, ErrorKind, ModelError
from perdure.messages import Message, Opaque, ReplyMeta, Text, Thinking, ToolCall, ToolResult
from perdure.model import ModelConfig, Reply, ToolDefinition

from .conftest import Wire
from .dialects import StubCall, StubReply
from .more_dialects import item, reasoning_item, response, responses_open, responses_usage, sse
from .server import Answer

SEARCH = ToolDefinition(name="search", description="Search.", input_schema={"type": "object"})
DONE = sse("response.completed", response=response("completed", usage=responses_usage(StubReply())))


def stream(*frames: bytes) -> Answer:
    return Answer(headers={"content-type": "text/event-stream"}, chunks=frames)


def replied(reply: Reply, name: str = "responses:gpt-test-1") -> Message:
    return Message(role="assistant", parts=[*reply.parts], meta=ReplyMeta(step=1, model=name))


async def test_reasoning_goes_back_encrypted(responses_wire: Wire) -> None:
    """In its place before the call, with its id; another model gets none of it."""
    scripted = StubReply(thinking="Hmm.", signature="gAAA==", calls=(StubCall(id="call_1"),))
    reply = await responses_wire.reply(scripted)
    result = ToolResult(call_id="call_1", name="search", content=[Text(text="found")])
    after = Message(role="tool", parts=[result])
    conversation = (Message.user("a"), replied(reply), after)
    body = await responses_wire.body_of(responses_wire.request(messages=conversation, tools=(SEARCH,)))
    call = {"type": "function_call", "call_id": "call_1", "name": "search", "arguments": '{"query": "x"}'}
    assert body["input"] == [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        reasoning_item("Hmm.", "gAAA=="),
        call,
        {"type": "function_call_output", "call_id": "call_1", "output": "found"},
    ]
    foreign = (Message.user("a"), replied(reply, "responses:gpt-other"), after)
    body = await responses_wire.body_of(responses_wire.request(messages=foreign, tools=(SEARCH,)))
    assert "reasoning" not in [sent.get("type") for sent in body["input"]]


async def test_reasoning_alone_is_not_sent(responses_wire: Wire) -> None:
    """The API refuses it without what followed; nothing can be sent that was not encrypted."""
    signature = json.dumps({"id": "rs_1", "encrypted_content": "e"})
    for thought in (Thinking(text="cut", signature=signature), Thinking(text="plain")):
        message = Message(role="assistant", parts=[thought])
        request = responses_wire.request(messages=(Message.user("a"), message, Message.user("b")))
        sent = (await responses_wire.body_of(request))["input"]
        assert sent[1] == {"role": "assistant", "content": "(empty)"}


async def test_nothing_is_kept_at_the_provider(responses_wire: Wire) -> None:
    body = await responses_wire.body_of(responses_wire.request(messages=(Message.user("a"),)))
    assert body["store"] is False
    assert body["include"] == ["reasoning.encrypted_content"]
    assert "previous_response_id" not in body
    stored = await responses_wire.body_of(responses_wire.request({"options": {"store": True}}))
    assert stored["store"] is True


@pytest.mark.parametrize(
    ("model", "settings", "asked"),
    [
        ("gpt-6.1-sol", {}, True),
        ("o3", {}, True),
        ("gpt-4.1", {}, False),
        ("gpt-4o-mini", {}, False),
        ("gpt-6.1-sol", {"thinking": "off"}, False),
        ("gpt-4.1", {"options": {"encrypted_reasoning": True}}, True),
        ("gpt-6.1-sol", {"options": {"encrypted_reasoning": False}}, False),
    ],
)
async def test_encryption_is_asked_of_models_that_reason(
    responses_wire: Wire, model: str, settings: dict[str, Any], asked: bool
) -> None:
    config = ModelConfig(name=f"responses:{model}", **settings)
    body = await responses_wire.body_of(replace(responses_wire.request(), config=config))
    assert ("include" in body) == asked


async def test_responses_settings_are_sent(responses_wire: Wire) -> None:
    options: dict[str, Any] = {
        "extra_body": {"truncation": "disabled"},
        "extra_headers": {"openai-project": "p"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "reasoning_summary": "detailed",
    }
    config = {"effort": "high", "temperature": 0.5, "options": options}
    request = responses_wire.request(
        config, instructions="Hi.", messages=(Message.user("a"),), tools=(SEARCH,), max_tokens=99
    )
    body = await responses_wire.body_of(request)
    received = responses_wire.server.requests[-1]
    assert received.path == "/v1/responses"
    assert (received.headers["authorization"], received.headers["openai-project"]) == ("Bearer k", "p")
    assert (body["instructions"], body["max_output_tokens"], body["temperature"]) == ("Hi.", 99, 0.5)
    assert body["reasoning"] == {"effort": "high", "summary": "detailed"}
    (tool,) = body["tools"]
    assert tool.pop("parameters")["type"] == "object"
    assert tool == {"type": "function", "name": "search", "description": "Search.", "strict": False}
    assert (body["parallel_tool_calls"], body["prompt_cache_key"], body["service_tier"]) == (
        False,
        "k",
        "flex",
    )
    assert (body["truncation"], body["stream"]) == ("disabled", True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stop_sequences": ("x",)}, "stop_sequences"),
        ({"thinking": 2048}, "effort"),
        ({"thinking": "off", "effort": "low"}, "one of them"),
    ],
)
def test_responses_refuses_what_it_does_not_take(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        ResponsesModel("k").check(ModelConfig(name="responses:gpt-6", **settings))
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        ResponsesModel().check(ModelConfig(name="responses:gpt-6"))


# -- answers


async def test_refusal_of_the_model_is_an_answer(responses_wire: Wire) -> None:
    content = [{"type": "refusal", "refusal": "I can't."}]
    message = {"type": "message", "id": "m", "role": "assistant", "content": content}
    delta = sse("response.refusal.delta", output_index=0, delta="I can't.")
    reply = await responses_wire.reply(stream(*item(0, message, delta), DONE))
    assert (reply.stop, reply.parts) == ("refusal", (Text(text="I can't."),))


async def test_cut_reply_has_its_reason(responses_wire: Wire) -> None:
    """A call that the bound has cut is never run."""
    scripted = StubReply(calls=(StubCall(id="c", pieces=('{"query": ',)),), stop="max_output_tokens")
    reply = await responses_wire.reply(scripted)
    assert reply.stop == "max_tokens"
    (call,) = (part for part in reply.parts if isinstance(part, ToolCall))
    assert call.problem is not None
    assert (await responses_wire.reply(StubReply(text=("x",), stop="content_filter"))).stop == "refusal"


async def test_items_that_came_whole_are_read(responses_wire: Wire) -> None:
    """Some servers send no deltas, and some the whole response as plain JSON."""
    call = {"type": "function_call", "call_id": "c1", "name": "search", "arguments": '{"query": "x"}'}
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "On it."}]}
    items = [reasoning_item("Hmm.", "e"), message, call]
    signature = json.dumps({"id": "rs_1", "encrypted_content": "e"})
    wanted = (
        Thinking(text="Hmm.", signature=signature),
        Text(text="On it."),
        ToolCall(id="c1", name="search", arguments={"query": "x"}),
    )
    ends = [sse("response.output_item.done", output_index=at, item=each) for at, each in enumerate(items)]
    assert (await responses_wire.reply(stream(*ends, DONE))).parts == wanted
    whole = json.dumps(response("completed", output=items, usage=responses_usage(StubReply()))).encode()
    reply = await responses_wire.reply(Answer(headers={"content-type": "application/json"}, chunks=(whole,)))
    assert (reply.parts, reply.stop) == (wanted, "tool_calls")


async def test_sections_of_a_summary_are_apart(responses_wire: Wire) -> None:
    def piece(section: int, text: str) -> bytes:
        return sse("response.reasoning_summary_text.delta", output_index=0, summary_index=section, delta=text)

    frames = (piece(0, "One "), piece(0, "thing."), piece(1, "Another."))
    reply = await responses_wire.reply(stream(*frames, DONE))
    assert reply.parts == (Thinking(text="One thing.\n\nAnother."),)


async def test_items_of_own_tools_go_back_as_they_came(responses_wire: Wire) -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
    done = sse("response.output_item.done", output_index=0, item=search)
    text = sse("response.output_text.delta", output_index=1, delta="Found.")
    reply = await responses_wire.reply(stream(done, text, DONE))
    assert reply.parts == (Opaque(provider="responses", data=search), Text(text="Found."))
    request = responses_wire.request(messages=(Message.user("a"), replied(reply), Message.user("b")))
    assert (await responses_wire.body_of(request))["input"][1] == search


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "server_error", "message": "boom"}, "overloaded"),
        ({"code": "rate_limit_exceeded", "message": "slow down"}, "rate_limited"),
        ({"code": "insufficient_quota", "message": "plan"}, "payment"),
        ({"code": "context_length_exceeded", "message": "too long"}, "context_overflow"),
        ({"code": "bio_policy", "message": "no"}, "filtered"),
        ({"code": "image_content_policy_violation", "message": "no"}, "filtered"),
    ],
)
async def test_failed_responses_have_kinds(
    responses_wire: Wire, error: dict[str, str], kind: ErrorKind
) -> None:
    """As the end of a stream, and as an event in it; the call has been paid for."""
    ended = sse(
        "response.failed", response=response("failed", error=error, usage=responses_usage(StubReply()))
    )
    for frame in (ended, sse("error", **error, param=None, sequence_number=1)):
        failed = await responses_wire.error(stream(*responses_open(StubReply(text=("x",))), frame))
        assert failed.kind == kind
        assert error["message"] in str(failed)
        assert failed.usage is not None


async def test_arguments_without_a_call_are_malformed(responses_wire: Wire) -> None:
    lost = sse("response.function_call_arguments.delta", output_index=3, delta="{}")
    assert (await responses_wire.error(stream(lost, DONE))).kind == "malformed_reply"


async def test_unknown_events_are_passed_over(responses_wire: Wire) -> None:
    new = sse("response.sparkle.delta", output_index=0, delta={"x": 1})
    text = sse("response.output_text.delta", output_index=0, delta="ok")
    assert (await responses_wire.reply(stream(new, text, DONE))).parts == (Text(text="ok"),)
