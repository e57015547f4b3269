"""Ways of Gemini's own API: signatures, calls without ids, filters, counts, thinking."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from perdure.activities.providers.gemini import GeminiModel
from perdure.errors import DefinitionError, ErrorKind, ModelError
from perdure.messages import Message, Opaque, ReplyMeta, Text, Thinking, ToolCall, ToolResult, Usage
from perdure.model import ModelConfig, ModelRequest, ModelStop, Reply, ToolDefinition, UsageSoFar

from .conftest import Wire
from .dialects import StubReply, json_answer
from .more_dialects import event, gemini_close, gemini_piece
from .server import Answer

SEARCH = ToolDefinition(
    name="search",
    description="Search.",
    input_schema={
        "type": "object",
        "properties": {"query": {"type": "string"}},
        "additionalProperties": False,
    },
)
NOW = ToolDefinition(name="now", description="", input_schema={"type": "object", "properties": {}})
DONE = gemini_close(StubReply())[0]


def stream(*frames: bytes) -> Answer:
    return Answer(headers={"content-type": "text/event-stream"}, chunks=frames)


def replied(reply: Reply, name: str = "gemini:gemini-test-1") -> Message:
    """Build the message of a reply as the transcript holds it: calls have ids of the run."""
    parts = [
        part.model_copy(update={"id": f"call-1-{at}"}) if isinstance(part, ToolCall) else part
        for at, part in enumerate(reply.parts)
    ]
    return Message(role="assistant", parts=parts, meta=ReplyMeta(step=1, model=name))


def results_of(message: Message) -> Message:
    found = [
        ToolResult(call_id=call.id, name=call.name, content=[Text(text=f"found {at}")])
        for at, call in enumerate(message.tool_calls)
    ]
    return Message(role="tool", parts=[*found])


async def test_signatures_go_back_as_they_came(gemini_wire: Wire) -> None:
    """Each stays with the part that it came with: a text, a call, or an empty end."""
    first: dict[str, Any] = {
        "functionCall": {"name": "search", "args": {"query": "x"}},
        "thoughtSignature": "c2lnMQ==",
    }
    second: dict[str, Any] = {"functionCall": {"name": "search", "args": {"query": "y"}}}
    said: list[dict[str, Any]] = [
        {"text": "Well, "},
        {"text": "let me see.", "thoughtSignature": "c2lnMA=="},
        {"text": " Now."},
        first,
        second,
        {"text": "", "thoughtSignature": "c2lnMg=="},
    ]
    reply = await gemini_wire.reply(stream(*(gemini_piece(part) for part in said), DONE))
    assert [part.text for part in reply.parts if isinstance(part, Text)] == ["Well, ", "let me see.", " Now."]
    message = replied(reply)
    request = gemini_wire.request(messages=(Message.user("a"), message, results_of(message)), tools=(SEARCH,))
    contents = (await gemini_wire.body_of(request))["contents"]
    calls = [
        {**sent, "functionCall": {**sent["functionCall"], "id": call.id}}
        for sent, call in zip((first, second), message.tool_calls, strict=True)
    ]
    assert contents[1] == {"role": "model", "parts": [*said[:3], *calls, said[5]]}
    assert [part["functionResponse"]["id"] for part in contents[2]["parts"]] == [
        call.id for call in message.tool_calls
    ]


async def test_calls_without_ids_are_apart(gemini_wire: Wire) -> None:
    """Two calls of one tool in one piece are two calls, in their order; so are two that are alike."""
    call = {"functionCall": {"name": "search", "args": {"query": "x"}}}
    other = {"functionCall": {"name": "search", "args": {"query": "y"}}}
    reply = await gemini_wire.reply(stream(gemini_piece(call, other), gemini_piece(call), DONE))
    assert [part.arguments["query"] for part in reply.parts if isinstance(part, ToolCall)] == ["x", "y", "x"]
    assert reply.stop == "tool_calls"


async def test_call_without_arguments_is_a_call(gemini_wire: Wire) -> None:
    reply = await gemini_wire.reply(stream(gemini_piece({"functionCall": {"name": "now"}}), DONE))
    assert reply.parts == (ToolCall(id="", name="now", arguments={}),)


async def test_foreign_calls_get_the_skipping_signature(gemini_wire: Wire) -> None:
    """The third generation demands one of each first call; calls of another model have none."""
    calls = [ToolCall(id=f"c{at}", name="search", arguments={}) for at in (1, 2)]
    message = Message(role="assistant", parts=[*calls], meta=ReplyMeta(step=1, model="other:model"))
    conversation = (Message.user("a"), message, results_of(message))
    request = gemini_wire.request(messages=conversation, tools=(SEARCH,))
    new = ModelConfig(name="gemini:gemini-3-pro")
    parts = (await gemini_wire.body_of(replace_config(request, new)))["contents"][1]["parts"]
    assert [part.get("thoughtSignature") for part in parts] == ["skip_thought_signature_validator", None]


def replace_config(request: ModelRequest, config: ModelConfig) -> ModelRequest:
    return replace(request, config=config)


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        ("SAFETY", "refusal"),
        ("RECITATION", "refusal"),
        ("BLOCKLIST", "refusal"),
        ("PROHIBITED_CONTENT", "refusal"),
        ("SPII", "refusal"),
        ("IMAGE_SAFETY", "refusal"),
        ("MAX_TOKENS", "max_tokens"),
        ("STOP", "end_turn"),
    ],
)
async def test_stop_reasons_of_gemini(gemini_wire: Wire, reason: str, stop: ModelStop) -> None:
    assert (await gemini_wire.reply(StubReply(text=("x",), stop=reason))).stop == stop


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("MALFORMED_FUNCTION_CALL", "malformed_reply"),
        ("UNEXPECTED_TOOL_CALL", "malformed_reply"),
        ("OTHER", "malformed_reply"),
        ("MISSING_THOUGHT_SIGNATURE", "bad_request"),
    ],
)
async def test_broken_output_is_no_answer(gemini_wire: Wire, reason: str, kind: ErrorKind) -> None:
    """The call is paid for all the same."""
    error = await gemini_wire.error(StubReply(text=("x",), stop=reason))
    assert error.kind == kind
    assert reason in str(error)
    assert error.usage is not None


async def test_cut_call_is_never_run(gemini_wire: Wire) -> None:
    call = gemini_piece({"functionCall": {"name": "search", "args": {"query": "x"}}})
    reply = await gemini_wire.reply(stream(call, *gemini_close(StubReply(stop="MAX_TOKENS"))))
    assert reply.stop == "max_tokens"
    (made,) = (part for part in reply.parts if isinstance(part, ToolCall))
    assert made.problem is not None


async def test_blocked_prompt_is_filtered(gemini_wire: Wire) -> None:
    blocked = event(
        {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 9}}
    )
    error = await gemini_wire.error(stream(blocked))
    assert error.kind == "filtered"
    assert "PROHIBITED_CONTENT" in str(error)


async def test_counts_are_disjoint(gemini_wire: Wire) -> None:
    """The first piece counts early; thoughts are output, and cached tokens are no input."""
    early = {"promptTokenCount": 100, "cachedContentTokenCount": 60, "totalTokenCount": 100}
    last = {**early, "candidatesTokenCount": 7, "thoughtsTokenCount": 30, "toolUsePromptTokenCount": 5}
    frames = (
        gemini_piece({"text": "x"}, usageMetadata=early),
        gemini_piece(finish="STOP", usageMetadata=last),
    )
    events = await gemini_wire.ask(stream(*frames))
    assert events[0] == UsageSoFar(usage=Usage(input_tokens=40, cache_read_tokens=60))
    reply = events[-1]
    assert isinstance(reply, Reply)
    assert reply.usage == Usage(input_tokens=45, cache_read_tokens=60, output_tokens=37)


async def test_thoughts_are_shown_and_stay(gemini_wire: Wire) -> None:
    """Words of thoughts are no text, and do not go back."""
    thought = gemini_piece({"text": "Hmm.", "thought": True})
    reply = await gemini_wire.reply(stream(thought, thought, gemini_piece({"text": "42"}), DONE))
    assert reply.parts == (Thinking(text="Hmm.Hmm."), Text(text="42"))
    request = gemini_wire.request(messages=(Message.user("a"), replied(reply), Message.user("b")))
    assert (await gemini_wire.body_of(request))["contents"][1]["parts"] == [{"text": "42"}]


async def test_unknown_parts_go_back_as_they_came(gemini_wire: Wire) -> None:
    code = {"executableCode": {"language": "PYTHON", "code": "1+1"}}
    result = {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}}
    reply = await gemini_wire.reply(stream(gemini_piece(code, result, {"text": "2"}), DONE))
    assert [part.data for part in reply.parts if isinstance(part, Opaque)] == [code, result]
    request = gemini_wire.request(messages=(Message.user("a"), replied(reply), Message.user("b")))
    assert (await gemini_wire.body_of(request))["contents"][1]["parts"] == [code, result, {"text": "2"}]


# -- requests


async def test_gemini_request_has_its_shape(gemini_wire: Wire) -> None:
    options: dict[str, Any] = {
        "seed": 7,
        "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}],
        "cached_content": "cachedContents/1",
        "extra_body": {"generationConfig": {"topK": 5}, "labels": {"team": "shop"}},
    }
    config = {"temperature": 0.5, "top_p": 0.9, "stop_sequences": ("END",), "options": options}
    request = gemini_wire.request(
        config, instructions="Hi.", messages=(Message.user("a"),), tools=(SEARCH, NOW), max_tokens=99
    )
    body = await gemini_wire.body_of(request)
    received = gemini_wire.server.requests[-1]
    assert received.path == "/v1beta/models/gemini-test-1:streamGenerateContent?alt=sse"
    assert received.headers["x-goog-api-key"] == "k"
    assert body["systemInstruction"] == {"parts": [{"text": "Hi."}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "a"}]}]
    assert body["generationConfig"] == {
        "maxOutputTokens": 99,
        "temperature": 0.5,
        "topP": 0.9,
        "stopSequences": ["END"],
        "seed": 7,
        "topK": 5,
    }
    assert (body["cachedContent"], body["labels"]) == ("cachedContents/1", {"team": "shop"})
    assert body["safetySettings"] == options["safety_settings"]
    search, now = body["tools"][0]["functionDeclarations"]
    assert search["parametersJsonSchema"]["properties"] == {"query": {"type": "string"}}
    assert now == {"name": "now"}, "an object without properties is refused"


@pytest.mark.parametrize(("choice", "mode"), [("auto", "AUTO"), ("none", "NONE"), ("required", "ANY")])
async def test_gemini_tool_choice_is_sent(gemini_wire: Wire, choice: Any, mode: str) -> None:
    request = gemini_wire.request(messages=(Message.user("a"),), tools=(SEARCH,), tool_choice=choice)
    body = await gemini_wire.body_of(request)
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": mode}}


@pytest.mark.parametrize(
    ("model", "settings", "sent"),
    [
        ("gemini-2.5-flash", {}, None),
        ("gemini-2.5-flash", {"thinking": "adaptive"}, {"includeThoughts": True, "thinkingBudget": -1}),
        ("gemini-2.5-flash", {"thinking": 2048}, {"includeThoughts": True, "thinkingBudget": 2048}),
        ("gemini-2.5-flash", {"thinking": "off"}, {"thinkingBudget": 0}),
        ("gemini-2.5-pro", {"thinking": "off"}, {"thinkingBudget": 128}),
        ("gemini-3-pro", {"thinking": "off"}, {"thinkingLevel": "low"}),
        ("gemini-3-flash", {"thinking": "off"}, {"thinkingLevel": "minimal"}),
        ("gemini-3-flash", {"thinking": "adaptive"}, {"includeThoughts": True}),
        ("gemini-3-flash", {"effort": "max"}, {"includeThoughts": True, "thinkingLevel": "high"}),
        ("gemini-flash-latest", {"effort": "low"}, {"includeThoughts": True, "thinkingLevel": "low"}),
    ],
)
async def test_gemini_thinking_is_set_by_generation(
    gemini_wire: Wire, model: str, settings: dict[str, Any], sent: dict[str, Any] | None
) -> None:
    config = ModelConfig(name=f"gemini:{model}", **settings)
    body = await gemini_wire.body_of(replace_config(gemini_wire.request(), config))
    assert body["generationConfig"].get("thinkingConfig") == sent


def test_gemini_refuses_effort_where_unknown() -> None:
    with pytest.raises(DefinitionError, match="budget"):
        GeminiModel("k").check(ModelConfig(name="gemini:gemini-2.5-flash", effort="low"))
    with pytest.raises(ModelError, match="GEMINI_API_KEY"):
        GeminiModel().check(ModelConfig(name="gemini:gemini-2.5-flash"))


async def test_digest_names_the_model(gemini_wire: Wire) -> None:
    """The body does not."""
    digests: set[str | None] = set()
    for model in ("gemini-3-a", "gemini-3-b"):
        request = replace_config(gemini_wire.request(), ModelConfig(name=f"gemini:{model}"))
        digests.add((await gemini_wire.reply(StubReply(text=("x",)), request=request)).request_digest)
    assert len(digests) == 2


# -- refusals


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"status": "INVALID_ARGUMENT", "message": "Invalid value at 'contents'"}, "bad_request"),
        (
            400,
            {"status": "INVALID_ARGUMENT", "message": "API key not valid. Please pass a valid API key."},
            "authentication",
        ),
        (
            400,
            {
                "status": "INVALID_ARGUMENT",
                "message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
            },
            "context_overflow",
        ),
        (401, {"status": "UNAUTHENTICATED", "message": "no"}, "authentication"),
        (403, {"status": "PERMISSION_DENIED", "message": "no"}, "authentication"),
        (404, {"status": "NOT_FOUND", "message": "models/x is not found"}, "not_found"),
        (429, {"status": "RESOURCE_EXHAUSTED", "message": "Resource has been exhausted"}, "rate_limited"),
        (500, {"status": "INTERNAL", "message": "An internal error has occurred."}, "overloaded"),
        (503, {"status": "UNAVAILABLE", "message": "The model is overloaded."}, "overloaded"),
        (504, {"status": "DEADLINE_EXCEEDED", "message": "late"}, "timeout"),
        (499, {"status": "CANCELLED", "message": "The operation was cancelled."}, "overloaded"),
    ],
)
@pytest.mark.parametrize("as_list", [False, True])
async def test_refusals_of_gemini_have_kinds(
    gemini_wire: Wire, status: int, error: dict[str, Any], kind: ErrorKind, as_list: bool
) -> None:
    """Also where the body is a list, as the API answers a stream that is none of events."""
    body: Any = {"error": {"code": status, **error}}
    answer = Answer(
        status=status,
        headers={"content-type": "application/json"},
        chunks=(json.dumps([body] if as_list else body).encode(),),
    )
    failed = await gemini_wire.error(answer)
    assert failed.kind == kind
    assert error["message"] in str(failed)


async def test_delay_stands_in_the_body(gemini_wire: Wire) -> None:
    detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"}
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota.", "details": [detail]}}
    error = await gemini_wire.error(json_answer(429, body, {}))
    assert (error.kind, error.retry_after) == ("rate_limited", timedelta(seconds=37))


async def test_answer_as_one_list_is_read(gemini_wire: Wire) -> None:
    """A gateway that loses `alt=sse` gives the pieces as one list."""
    pieces = [json.loads(frame.removeprefix(b"data: ")) for frame in (gemini_piece({"text": "ok"}), DONE)]
    answer = Answer(
        headers={"content-type": "application/json"}, chunks=(json.dumps(pieces, indent=1).encode(),)
    )
    assert (await gemini_wire.reply(answer)).parts == (Text(text="ok"),)
