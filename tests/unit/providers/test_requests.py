"""Requests: a conversation in the format of each provider."""

import base64
from dataclasses import replace
from typing import Any

import pytest

from perdure.messages import (
    Document,
    Image,
    Message,
    Opaque,
    Part,
    ReplyMeta,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
)
from perdure.model import ModelConfig, ModelRequest, Reply, ToolDefinition
from tests.pictures import PDF as PDF64
from tests.pictures import PNG as PNG64
from tests.pictures import png

from .conftest import Wire
from .dialects import StubCall, StubReply, anthropic_block, anthropic_close, anthropic_open, sse

SEARCH = ToolDefinition(name="search", description="Search.", input_schema={"type": "object"})
FETCH = ToolDefinition(name="fetch", description="", input_schema={"type": "object"})
PNG = png()
MARK = {"cache_control": {"type": "ephemeral"}}
POINT = {"cachePoint": {"type": "default"}}
UNMARKED = {"options": {"cache": False}}


def assistant(*parts: Part, model: str | None = None) -> Message:
    meta = ReplyMeta(step=1, model=model) if model else None
    return Message(role="assistant", parts=list(parts), meta=meta)


def results(*found: ToolResult) -> Message:
    return Message(role="tool", parts=list(found))


def text_result(call_id: str, text: str, **more: Any) -> ToolResult:
    return ToolResult(call_id=call_id, name="search", content=[Text(text=text)], **more)


# A step with three calls and files among the results, then a word of the user's.
CONVERSATION = (
    Message.user([Text(text="look"), Image(blob="b1"), Document(data=PDF64, name="a_report.pdf")]),
    assistant(
        Text(text="On it."),
        ToolCall(id="c1", name="search", arguments={"q": 1}),
        ToolCall(id="c2", name="search", arguments={"_raw": "{"}, problem="not JSON"),
        ToolCall(id="c3", name="fetch"),
    ),
    results(
        text_result("c1", "one"),
        text_result("c2", "not JSON", is_error=True),
        ToolResult(call_id="c3", name="fetch", content=[Text(text="pic"), Image(data=PNG64)]),
    ),
    Message.user("go on"),
)


def conversation(wire: Wire, config: dict[str, Any] | None = None) -> ModelRequest:
    return wire.request(config, messages=CONVERSATION, tools=(SEARCH, FETCH), blobs={"b1": PNG})


async def test_anthropic_results_come_first(
    anthropic_wire: Wire,
) -> None:
    """All results stand in order in the same user message."""
    body = await anthropic_wire.body_of(conversation(anthropic_wire, UNMARKED))
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG64}}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": PDF64}
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                image,
                {"type": "document", "source": pdf, "title": "a_report.pdf"},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "On it."},
                {"type": "tool_use", "id": "c1", "name": "search", "input": {"q": 1}},
                {"type": "tool_use", "id": "c2", "name": "search", "input": {"_raw": "{"}},
                {"type": "tool_use", "id": "c3", "name": "fetch", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "one"}]},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "content": [{"type": "text", "text": "not JSON"}],
                    "is_error": True,
                },
                {
                    "type": "tool_result",
                    "tool_use_id": "c3",
                    "content": [{"type": "text", "text": "pic"}, image],
                },
                {"type": "text", "text": "go on"},
            ],
        },
    ]
    assert body["tools"][1] == {"name": "fetch", "input_schema": {"type": "object", "properties": {}}}
    assert "tool_choice" not in body


async def test_bedrock_results_come_first(bedrock_wire: Wire) -> None:
    """All results stand in order in the same user message."""
    body = await bedrock_wire.body_of(conversation(bedrock_wire, UNMARKED))
    image = {"image": {"format": "png", "source": {"bytes": PNG64}}}
    pdf = {"format": "pdf", "source": {"bytes": PDF64}, "name": "a report pdf"}
    assert body["messages"] == [
        {"role": "user", "content": [{"text": "look"}, image, {"document": pdf}]},
        {
            "role": "assistant",
            "content": [
                {"text": "On it."},
                {"toolUse": {"toolUseId": "c1", "name": "search", "input": {"q": 1}}},
                {"toolUse": {"toolUseId": "c2", "name": "search", "input": {"_raw": "{"}}},
                {"toolUse": {"toolUseId": "c3", "name": "fetch", "input": {}}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"toolResult": {"toolUseId": "c1", "content": [{"text": "one"}]}},
                {"toolResult": {"toolUseId": "c2", "content": [{"text": "not JSON"}], "status": "error"}},
                {"toolResult": {"toolUseId": "c3", "content": [{"text": "pic"}, image]}},
                {"text": "go on"},
            ],
        },
    ]


async def test_openai_results_are_messages(openai_wire: Wire) -> None:
    """Each result is a message; its images follow as the user's."""
    body = await openai_wire.body_of(conversation(openai_wire))
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG64}"}}
    pdf = {"filename": "a_report.pdf", "file_data": f"data:application/pdf;base64,{PDF64}"}

    def call(id_: str, name: str, arguments: str) -> dict[str, Any]:
        return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}

    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "look"}, image, {"type": "file", "file": pdf}]},
        {
            "role": "assistant",
            "content": "On it.",
            "tool_calls": [
                call("c1", "search", '{"q": 1}'),
                call("c2", "search", '{"_raw": "{"}'),
                call("c3", "fetch", "{}"),
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "Error: not JSON"},
        {"role": "tool", "tool_call_id": "c3", "content": "pic"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Attached to the result of fetch (c3):"},
                image,
                {"type": "text", "text": "go on"},
            ],
        },
    ]
    assert body["stream_options"] == {"include_usage": True}
    assert body["max_completion_tokens"] == 8192


async def test_neighbours_of_a_role_are_merged(wire: Wire) -> None:
    conversation = (
        Message.user("a"),
        Message.user("b"),
        assistant(Text(text="c")),
        assistant(Text(text="d")),
    )
    body = await wire.body_of(
        wire.request(UNMARKED if wire.dialect.name != "openai" else {}, messages=conversation)
    )
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert "b" in str(body["messages"][0])
    assert "d" in str(body["messages"][1])


async def test_blank_content_is_never_sent(wire: Wire) -> None:
    blank = ToolResult(call_id="c1", name="search", content=[Text(text=" ")])
    conversation = (
        Message.user([Text(text="a"), Text(text="\n")]),
        assistant(Text(text="\n\n"), ToolCall(id="c1", name="search")),
        results(blank),
        assistant(),
        Message.user(""),
    )
    written = str(await wire.body_of(wire.request(messages=conversation)))
    assert "\\n" not in written
    assert "' '" not in written
    assert written.count("(empty)") == 3


async def test_user_message_never_parts_calls_from_results(wire: Wire) -> None:
    mixed = Message(role="tool", parts=[Text(text="by the way"), text_result("c1", "one")])
    conversation = (Message.user("a"), assistant(ToolCall(id="c1", name="search")), mixed)
    body = await wire.body_of(wire.request(messages=conversation))
    written = str(body["messages"])
    assert written.index("one") < written.index("by the way")


async def test_user_text_follows_the_results(wire: Wire) -> None:
    """A person wrote while the tools ran."""
    conversation = (
        Message.user("a"),
        assistant(ToolCall(id="c1", name="search")),
        Message.user("hurry"),
        results(text_result("c1", "one")),
    )
    messages = (await wire.body_of(wire.request(messages=conversation)))["messages"]
    assert str(messages).index("one") < str(messages).index("hurry")
    assert len(messages) == (4 if wire.dialect.name == "openai" else 3)


async def test_each_adapter_makes_its_request_sendable(wire: Wire) -> None:
    """Whatever the conversation holds: tests of `make_sendable` show what."""
    conversation = (
        Message.user([Text(text="half \ud83d"), Image(media_type="image/svg+xml", data="PHN2Zy8+")]),
        assistant(ToolCall(id="c 1", name="shelf.find"), model="other:model"),
        results(ToolResult(call_id="c 1", name="shelf.find", content=[Text(text="no such tool")])),
    )
    written = str(await wire.body_of(wire.request(messages=conversation, tools=(SEARCH,))))
    assert "shelf_find" in written
    assert "'c 1'" not in written
    assert "cannot be shown to you" in written


async def test_past_calls_keep_tools_listed(wire: Wire) -> None:
    """The agent has no tools now."""
    conversation = (
        Message.user("a"),
        assistant(ToolCall(id="c1", name="gone")),
        results(text_result("c1", "one")),
    )
    body = await wire.body_of(wire.request(messages=conversation))
    match wire.dialect.name:
        case "anthropic":
            assert body["tools"][0]["name"] == "gone"
            assert body["tool_choice"] == {"type": "none"}
        case "bedrock":
            assert body["toolConfig"]["tools"][0]["toolSpec"]["name"] == "gone"
            assert "call no tool" in body["system"][-1]["text"]
        case _:
            assert "tools" not in body


async def test_tools_can_be_forbidden(wire: Wire) -> None:
    request = wire.request(
        messages=(Message.user("a"),), instructions="Hi.", tools=(SEARCH,), tool_choice="none"
    )
    body = await wire.body_of(request)
    match wire.dialect.name:
        case "anthropic":
            assert body["tool_choice"] == {"type": "none"}
        case "bedrock":
            assert body["system"] == [{"text": "Hi."}, POINT, {"text": "Answer in words now: call no tool."}]
            assert "toolChoice" not in body["toolConfig"]
        case _:
            assert body["tool_choice"] == "none"


@pytest.mark.parametrize("thinking", [None, "adaptive"])
async def test_tool_is_forced_where_possible(wire: Wire, thinking: Any) -> None:
    """A model must call a tool when it is told so; the providers refuse to force one that thinks."""
    is_claude = wire.dialect.name in ("anthropic", "bedrock")
    config = {"thinking": thinking} if is_claude and thinking else {}
    request = wire.request(
        config, messages=(Message.user("a"),), tools=(SEARCH,), tool_choice="required", max_tokens=4000
    )
    body = await wire.body_of(request)
    match wire.dialect.name:
        case "anthropic":
            assert body.get("tool_choice") == (None if thinking else {"type": "any"})
        case "bedrock":
            assert body["toolConfig"].get("toolChoice") == (None if thinking else {"any": {}})
            assert "call no tool" not in str(body.get("system", ""))
        case _:
            assert body["tool_choice"] == "required"


async def test_signed_thinking_goes_back_unchanged(claude_wire: Wire) -> None:
    """Tool calls do, too."""
    scripted = StubReply(
        thinking="Hmm.", signature="s1==", redacted="c2VjcmV0", text=("On it.",), calls=(StubCall(id="c1"),)
    )
    reply = await claude_wire.reply(scripted)
    before = assistant(*reply.parts, model=claude_wire.dialect.model_name)
    request = claude_wire.request(
        UNMARKED, messages=(Message.user("a"), before, results(text_result("c1", "x")))
    )
    content = (await claude_wire.body_of(request))["messages"][1]["content"]
    if claude_wire.dialect.name == "anthropic":
        assert content == [
            {"type": "thinking", "thinking": "Hmm.", "signature": "s1=="},
            {"type": "redacted_thinking", "data": "c2VjcmV0"},
            {"type": "text", "text": "On it."},
            {"type": "tool_use", "id": "c1", "name": "search", "input": {"query": "x"}},
        ]
    else:
        assert content == [
            {"reasoningContent": {"reasoningText": {"text": "Hmm.", "signature": "s1=="}}},
            {"reasoningContent": {"redactedContent": "c2VjcmV0"}},
            {"text": "On it."},
            {"toolUse": {"toolUseId": "c1", "name": "search", "input": {"query": "x"}}},
        ]


async def test_unsigned_thinking_is_dropped(claude_wire: Wire) -> None:
    """No message ends in thinking."""
    conversation = (
        Message.user("a"),
        assistant(Thinking(text="unsigned")),
        Message.user("b"),
        assistant(Thinking(text="signed", signature="s")),
        Message.user("c"),
    )
    messages = (await claude_wire.body_of(claude_wire.request(UNMARKED, messages=conversation)))["messages"]
    assert "unsigned" not in str(messages[1])
    assert "signed" in str(messages[3]["content"][0])
    assert "(empty)" in str(messages[3]["content"][-1])


# -- prompt caching


async def test_anthropic_sets_four_cache_marks(
    anthropic_wire: Wire,
) -> None:
    """At the tools, the instructions, and the ends of two turns."""
    request = replace(conversation(anthropic_wire), instructions="Hi.")
    body = await anthropic_wire.body_of(request)
    assert body["system"] == [{"type": "text", "text": "Hi.", **MARK}]
    assert [tool.get("cache_control") for tool in body["tools"]] == [None, MARK["cache_control"]]
    marked = [[block.get("cache_control") is not None for block in m["content"]] for m in body["messages"]]
    assert marked == [[False, False, True], [False] * 4, [False, False, False, True]]
    assert str(body).count("cache_control") == 4


async def test_anthropic_marks_no_thinking_or_opaque(anthropic_wire: Wire) -> None:
    paused = assistant(
        Text(text="x"), Opaque(provider="anthropic", data={"type": "server_tool_use", "id": "s"})
    )
    body = await anthropic_wire.body_of(anthropic_wire.request(messages=(Message.user("a"), paused)))
    assert body["messages"][-1]["content"] == [
        {"type": "text", "text": "x", **MARK},
        {"type": "server_tool_use", "id": "s"},
    ]


@pytest.mark.parametrize("options", [{"cache": False}, {"cache_ttl": "1h"}])
async def test_cache_marks_are_configurable(claude_wire: Wire, options: dict[str, Any]) -> None:
    request = claude_wire.request({"options": options}, messages=(Message.user("a"),), tools=(SEARCH,))
    written = str(await claude_wire.body_of(request))
    assert written.count("'ttl': '1h'") == (2 if "cache_ttl" in options else 0)
    assert ("cache" in written) == ("cache_ttl" in options)


@pytest.mark.parametrize(
    ("model", "options", "tools", "messages"),
    [
        ("eu.anthropic.claude-x", {}, True, True),
        ("amazon.nova-pro-v1:0", {}, False, True),
        ("cohere.command-r-x", {}, False, False),
        ("arn:aws:bedrock:eu-central-1:1:application-inference-profile/x", {"cache": True}, True, True),
    ],
)
async def test_bedrock_marks_known_models_only(
    bedrock_wire: Wire, model: str, options: dict[str, Any], tools: bool, messages: bool
) -> None:
    config = ModelConfig(name=f"bedrock:{model}", options=options)
    request = ModelRequest(config=config, messages=(Message.user("a"),), tools=(SEARCH,))
    body = await bedrock_wire.body_of(request)
    assert (body["toolConfig"]["tools"][-1] == POINT) == tools
    assert (body["messages"][-1]["content"][-1] == POINT) == messages


async def test_openai_cache_key_is_optional(openai_wire: Wire) -> None:
    assert "prompt_cache_key" not in await openai_wire.body_of(openai_wire.request())
    request = openai_wire.request({"options": {"prompt_cache_key": "k"}})
    assert (await openai_wire.body_of(request))["prompt_cache_key"] == "k"


# -- settings on the wire


@pytest.mark.parametrize(
    ("left", "thinking"),
    [(1500, {"type": "enabled", "budget_tokens": 1499}), (1000, {"type": "disabled"})],
)
async def test_thinking_fits_into_max_tokens(
    anthropic_wire: Wire, left: int, thinking: dict[str, Any]
) -> None:
    request = anthropic_wire.request({"thinking": 2048}, messages=(Message.user("a"),), max_tokens=left)
    assert (await anthropic_wire.body_of(request))["thinking"] == thinking


async def test_anthropic_settings_are_sent(anthropic_wire: Wire) -> None:
    options: dict[str, Any] = {
        "extra_body": {"temperature": 0.2},
        "extra_headers": {"anthropic-beta": "b1"},
        "service_tier": "auto",
        "parallel_tool_calls": False,
    }
    config = {"thinking": 2048, "effort": "high", "stop_sequences": ("END",), "options": options}
    request = anthropic_wire.request(config, messages=(Message.user("a"),), tools=(SEARCH,), max_tokens=4000)
    body = await anthropic_wire.body_of(request)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 2048}
    assert body["output_config"] == {"effort": "high"}
    assert (body["stop_sequences"], body["temperature"], body["max_tokens"]) == (["END"], 0.2, 4000)
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert body["service_tier"] == "auto"
    assert body["stream"] is True
    assert anthropic_wire.server.requests[-1].headers["anthropic-beta"] == "b1"


@pytest.mark.parametrize(("thinking", "sent"), [("adaptive", "adaptive"), ("off", "disabled")])
async def test_thinking_modes_are_sent(claude_wire: Wire, thinking: str, sent: str) -> None:
    body = await claude_wire.body_of(claude_wire.request({"thinking": thinking}))
    assert body.get("additionalModelRequestFields", body)["thinking"] == {"type": sent}


async def test_bedrock_settings_are_sent(bedrock_wire: Wire) -> None:
    options: dict[str, Any] = {
        "extra_body": {"top_k": 5},
        "guardrail": {"id": "g1", "version": "2", "trace": "enabled"},
        "service_tier": "flex",
        "region": "us-west-2",
    }
    config = {
        "temperature": 0.5,
        "top_p": 0.9,
        "stop_sequences": ("END",),
        "effort": "high",
        "options": options,
    }
    body = await bedrock_wire.body_of(bedrock_wire.request(config, max_tokens=99))
    assert body["inferenceConfig"] == {
        "maxTokens": 99,
        "temperature": 0.5,
        "topP": 0.9,
        "stopSequences": ["END"],
    }
    assert body["guardrailConfig"] == {
        "guardrailIdentifier": "g1",
        "guardrailVersion": "2",
        "trace": "enabled",
    }
    assert body["additionalModelRequestFields"] == {"top_k": 5}
    assert body["serviceTier"] == {"type": "flex"}
    assert body["outputConfig"] == {"effort": "high"}
    assert "/us-west-2/bedrock/" in bedrock_wire.server.requests[-1].headers["authorization"]


async def test_bedrock_documents_have_unique_names(
    bedrock_wire: Wire,
) -> None:
    """The names use a small alphabet, and a text stands beside the documents."""
    files: list[Part] = [Document(data=PDF64, name=name) for name in ("a/b_c.pdf", "a/b_c.pdf", "é")]
    body = await bedrock_wire.body_of(bedrock_wire.request(UNMARKED, messages=(Message.user(files),)))
    content = body["messages"][0]["content"]
    assert [block["document"]["name"] for block in content[:3]] == ["a b c pdf", "a b c pdf (2)", "document"]
    assert content[3] == {"text": "(empty)"}


async def test_text_documents_become_text(wire: Wire) -> None:
    data = base64.b64encode(b"plain words").decode()
    notes = Document(data=data, name="notes", media_type="text/plain")
    written = str(await wire.body_of(wire.request(messages=(Message.user([notes]),))))
    assert (data if wire.dialect.name == "bedrock" else "plain words") in written


async def test_openai_settings_are_sent(openai_wire: Wire) -> None:
    options: dict[str, Any] = {
        "extra_body": {"verbosity": "low"},
        "max_tokens_field": "max_tokens",
        "parallel_tool_calls": False,
        "seed": 7,
    }
    config = {"temperature": 0.0, "stop_sequences": ("END",), "effort": "max", "options": options}
    request = openai_wire.request(
        config, instructions="Hi.", messages=(Message.user("a"),), tools=(SEARCH,), max_tokens=99
    )
    body = await openai_wire.body_of(request)
    assert body["messages"][0] == {"role": "system", "content": "Hi."}
    assert (body["max_tokens"], body["temperature"], body["stop"], body["seed"]) == (99, 0.0, ["END"], 7)
    assert (body["reasoning_effort"], body["verbosity"]) == ("max", "low")
    assert body["parallel_tool_calls"] is False
    assert "max_completion_tokens" not in body
    off = await openai_wire.body_of(openai_wire.request({"thinking": "off"}))
    assert off["reasoning_effort"] == "none"


# -- blocks that only Anthropic has


async def test_paused_turn_keeps_opaque_blocks(
    anthropic_wire: Wire,
) -> None:
    """They go back to the provider unchanged."""
    use: dict[str, Any] = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"type": "x", "y": None}]}
    novel = {"type": "novelty", "content": None, "of": {"a": [1, None]}}
    scripted = StubReply(text=("Looking.",), stop="pause_turn")
    frames = [
        *anthropic_open(scripted),
        *anthropic_block(1, use, {"type": "input_json_delta", "partial_json": '{"query": "x"}'}),
        *anthropic_block(2, found),
        *anthropic_block(3, novel),
        *anthropic_close(scripted),
    ]
    reply = await anthropic_wire.reply(anthropic_wire.dialect.unfinished(StubReply(), *frames))
    assert reply.stop == "pause_turn"
    before = assistant(*reply.parts, model=anthropic_wire.dialect.model_name)
    request = anthropic_wire.request(UNMARKED, messages=(Message.user("a"), before))
    content = (await anthropic_wire.body_of(request))["messages"][1]["content"]
    assert content == [{"type": "text", "text": "Looking."}, {**use, "input": {"query": "x"}}, found, novel]


async def test_arguments_of_block_start_are_kept(anthropic_wire: Wire) -> None:
    use = {"type": "tool_use", "id": "c1", "name": "search", "input": {"q": 1}}
    frames = [
        *anthropic_open(StubReply()),
        *anthropic_block(0, use),
        *anthropic_close(StubReply(stop="tool_use")),
    ]
    reply = await anthropic_wire.reply(anthropic_wire.dialect.unfinished(StubReply(), *frames))
    assert isinstance(reply, Reply)
    assert reply.parts == (ToolCall(id="c1", name="search", arguments={"q": 1}),)


async def test_unknown_events_and_deltas_are_passed_over(anthropic_wire: Wire) -> None:
    """The API reserves the right to add them."""
    new_event = sse({"type": "novelty", "x": 1})
    scripted = StubReply(text=("ok",))
    frames = [*anthropic_open(scripted), new_event, *anthropic_close(scripted)]
    reply = await anthropic_wire.reply(anthropic_wire.dialect.unfinished(StubReply(), *frames))
    assert reply.parts == (Text(text="ok"),)
    odd = anthropic_block(0, {"type": "text", "text": ""}, {"type": "odd_delta", "x": 1})
    frames = [*anthropic_open(scripted), *odd, *anthropic_close(scripted)]
    assert (
        await anthropic_wire.reply(anthropic_wire.dialect.unfinished(StubReply(), *frames))
    ).parts == reply.parts
