"""Requests that a provider takes, whatever came from a model or a user: a row for each kind, on each adapter."""

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
    Usage,
)
from perdure.model import ModelConfig, ModelRequest, ToolDefinition
from perdure.providers import capabilities_of, make_sendable
from tests.pictures import PDF, PNG, png

from .bodies import taken_body
from .conftest import Wire
from .dialects import StubCall, StubReply, delta, openai_close
from .refusals import Refused, refuse_anthropic

SEARCH = ToolDefinition(name="search", description="Search.", input_schema={"type": "object"})
CLAUDE = "anthropic:claude-x"
NOVA = "bedrock:amazon.nova-pro-v1:0"
LLAMA = "bedrock:meta.llama3-1-70b-instruct-v1:0"
GPT = "openai:gpt-5"
EACH = (
    CLAUDE,
    "bedrock:anthropic.claude-x",
    NOVA,
    LLAMA,
    GPT,
    "vllm:mistral-small",
    "ollama:llama3.2",
    "gemini:gemini-2.5-pro",
    "responses:gpt-5",
    "azure:own",
)


def reply(*parts: Part, model: str = "", stop: str = "") -> Message:
    return Message(role="assistant", parts=list(parts), meta=ReplyMeta(step=1, model=model, stop=stop))


def result(call_id: str = "call-1-1", name: str = "search", *content: Any) -> Message:
    return Message(
        role="tool",
        parts=[ToolResult(call_id=call_id, name=name, content=list(content) or [Text(text="one")])],
    )


def request(model: str | ModelConfig, *messages: Message, **fields: Any) -> ModelRequest:
    config = model if isinstance(model, ModelConfig) else ModelConfig(name=model)
    return ModelRequest(config=config, messages=messages, **fields)


def step(model: str, name: str = "search", **fields: Any) -> tuple[Message, Message, Message]:
    """A question, a call by that model, and its result."""
    call = ToolCall(id="call-1-1", name=name, **fields)
    return Message.user("a"), reply(call, model=model, stop="tool_calls"), result(name=name)


# -- names and ids


@pytest.mark.parametrize("model", EACH)
@pytest.mark.parametrize("name", ["shelf.find", "", "größe", "a" * 200, "functions.search:0", "9 lives\n"])
def test_unheard_of_names_are_sendable(model: str, name: str) -> None:
    """A model called a tool that there is not, by a name that its own provider refuses."""
    body = taken_body(request(model, *step(model, name), tools=(SEARCH,)))
    listed = str(body.get("tools") or body["toolConfig"])
    assert "search" in listed
    assert "lives" not in listed


def test_long_names_stay_apart() -> None:
    names = ["a" * 100 + end for end in "xy"]
    calls = [ToolCall(id=f"call-1-{n}", name=name) for n, name in enumerate(names)]
    sent = make_sendable(
        request(GPT, Message.user("a"), reply(*calls)), capabilities_of(ModelConfig(name=GPT))
    )
    assert len({call.name for message in sent.messages for call in message.tool_calls}) == 2


@pytest.mark.parametrize("model", ["vllm:mistral-small", "openai:mistral-large", "vllm:own", "gateway:own"])
def test_ids_become_nine_letters(model: str) -> None:
    """Mistral's models take no other ids; behind a server of one's own may stand one of them."""
    config = ModelConfig(name=model)
    messages = [
        m for n in range(1, 300) for m in (reply(ToolCall(id=f"call-{n}-1", name="x")), result(f"call-{n}-1"))
    ]
    sent = make_sendable(request(config, Message.user("a"), *messages), capabilities_of(config)).messages
    called = [call.id for message in sent for call in message.tool_calls]
    assert called == [found.call_id for message in sent for found in message.tool_results]
    assert len(set(called)) == 299
    assert {len(call_id) for call_id in called} == {9}


def test_user_never_follows_results_at_once() -> None:
    """Mistral's models and most of Bedrock's refuse a user's words directly behind results."""
    messages = (*step("x:y"), Message.user("hurry"))
    for model in ("vllm:mistral-small", LLAMA, "bedrock:mistral.mistral-large-2407-v1:0"):
        assert "hurry" in str(taken_body(request(model, *messages, tools=(SEARCH,))))


# -- files

SVG = Image(media_type="image/svg+xml", data="PHN2Zy8+")
LARGE = Image(data=base64.b64encode(png(b"x" * (6 * 2**20))).decode())
WIDE = Image(data=base64.b64encode(png().replace(b"IHDR\0\0\0\1", b"IHDR\0\0\xff\xff")).decode())
UNREADABLE: dict[str, tuple[Image | Document, str]] = {
    "svg": (SVG, "svg"),
    "tiff": (Image(media_type="image/tiff", data="SUkqAAgAAAA="), "tiff"),
    "heic as png": (Image(data="AAAAGGZ0eXBoZWlj"), "not image/png"),
    "cut": (Image(data=base64.b64encode(png()[:40]).decode()), "was cut"),
    "no base64": (Image(data="!"), "not base64"),
    "pdf as image": (Image(data=PDF), "send it as a Document"),
    "text as pdf": (Document(data="aGk="), "not application/pdf"),
    "image as text": (Document(data=PNG, media_type="text/plain"), "send it as an Image"),
    "binary as text": (Document(data="AAECAwA=", media_type="text/csv"), "no text"),
    "blank text": (Document(data="IA==", media_type="text/plain"), "empty"),
    "text as office": (Document(data="aGk=", media_type="application/msword"), "not application/msword"),
    "odd": (Document(data="aGk=", media_type="application/x-odd"), "x-odd"),
}


@pytest.mark.parametrize("model", EACH)
@pytest.mark.parametrize("file", UNREADABLE)
def test_unreadable_files_are_shown_in_words(model: str, file: str) -> None:
    """From a user, and from a tool: the model reads that there is a file, and why it cannot be shown."""
    part, why = UNREADABLE[file]
    for messages in ((Message.user([part]),), (*step("x:y")[:2], result("call-1-1", "search", part))):
        body = str(taken_body(request(model, *messages, tools=(SEARCH,))))
        assert "cannot be shown to you" in body
        assert why in body


@pytest.mark.parametrize(("model", "file"), [(CLAUDE, LARGE), (NOVA, LARGE), (CLAUDE, WIDE), (NOVA, WIDE)])
def test_too_large_images_are_shown_in_words(model: str, file: Image) -> None:
    body = str(taken_body(request(model, Message.user([file]))))
    assert "reads at most" in body


@pytest.mark.parametrize(
    ("model", "part"),
    [
        *((model, Image(data=PNG)) for model in ("openai:deepseek-chat", LLAMA, "openai:gpt-3.5-turbo")),
        *((model, Document(data=PDF)) for model in ("vllm:qwen3", "ollama:llama3.2", "openai:deepseek-chat")),
    ],
)
def test_models_without_eyes_read_words(model: str, part: Part) -> None:
    assert "cannot be shown to you" in str(taken_body(request(model, Message.user([part]))))


def test_each_provider_reads_its_own_types() -> None:
    heic = Message.user([Image(media_type="image/heic", data="AAAAGGZ0eXBoZWlj")])
    shown = [model for model in EACH if "cannot be shown" not in str(taken_body(request(model, heic)))]
    assert shown == ["gemini:gemini-2.5-pro"]


def test_real_type_is_sent() -> None:
    """The bytes decide, and not what somebody has written beside them."""
    body = taken_body(request(CLAUDE, Message.user([Image(media_type="image/jpeg", data=PNG)])))
    assert body["messages"][0]["content"][0]["source"]["media_type"] == "image/png"


@pytest.mark.parametrize(("model", "most"), [(NOVA, 20), (CLAUDE, 100)])
def test_newest_images_are_shown(model: str, most: int) -> None:
    """Beyond the provider's bound the oldest stand in words, some at a time: the cache must not break each time."""
    turns = [
        turn for n in range(most + 5) for turn in (Message.user([Image(data=PNG)]), reply(Text(text=str(n))))
    ]
    first, second = (str(taken_body(request(model, *turns[:end], Message.user("?")))) for end in (-2, None))
    assert first.count("newer ones leave no room") == second.count("newer ones leave no room") == most // 4


@pytest.mark.parametrize(("side", "shown"), [(1000, 30), (3000, 20)])
def test_many_large_images_are_too_many(side: int, shown: int) -> None:
    """Anthropic takes large images only where there are few."""
    image = png().replace(b"IHDR\0\0\0\1", b"IHDR" + side.to_bytes(4))
    images = [Image(data=PNG), Image(data=base64.b64encode(image).decode())] * 15
    body = taken_body(request(CLAUDE, Message.user([*images])))
    assert str(body).count("'type': 'image'") == shown


def test_files_fit_together() -> None:
    """The provider bounds the whole request: the oldest files stand in words."""
    large = [Image(blob=f"b{n}") for n in range(8)]
    blobs = {f"b{n}": png(bytes(3 * 2**20)) for n in range(8)}
    body = taken_body(request(CLAUDE, *(Message.user([image]) for image in large), blobs=blobs))
    kinds = [block["type"] for block in body["messages"][0]["content"]]
    assert kinds == ["text"] * 2 + ["image"] * 6


def test_files_follow_results_where_none_fit_in() -> None:
    """Chat completions, and most models of Bedrock, take only text as a tool's result."""
    messages = (*step("x:y")[:2], result("call-1-1", "search", Text(text="pic"), Image(data=PNG)))
    for model in (GPT, "bedrock:meta.llama4-scout-17b"):
        body = str(taken_body(request(model, *messages, tools=(SEARCH,))))
        assert body.index("pic") < body.index("Attached to the result of search (call-1-1):")


# -- texts


@pytest.mark.parametrize("model", EACH)
def test_halves_of_characters_are_replaced(model: str) -> None:
    half = "a\ud800\0b"
    call = ToolCall(id="call-1-1", name="search", arguments={half: [half]})
    messages = (
        Message.user(half),
        reply(Text(text=half), call),
        result("call-1-1", "search", Text(text=half)),
    )
    tool = SEARCH.model_copy(update={"description": half})
    body = taken_body(request(model, *messages, instructions=half, tools=(tool,)))
    assert "a\ufffd\ufffdb" in str(body)


def test_conversation_ends_with_the_user() -> None:
    for model in EACH:
        assert "Go on." in str(taken_body(request(model, Message.user("a"), reply(Text(text="b ")))))


# -- paused turns

CALL = Opaque(
    provider="anthropic", data={"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
)
FOUND = Opaque(
    provider="anthropic", data={"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}
)


def test_message_during_a_pause_is_read() -> None:
    """The provider takes an open call of its own only at the end, so the message stands before that turn."""
    asked, meant = Message.user("tea?"), Message.user("green tea")
    paused = reply(Text(text="I search. "), CALL, model=CLAUDE, stop="pause_turn")
    before = taken_body(request(CLAUDE, asked, paused, meant))["messages"]
    assert [message["role"] for message in before] == ["user", "assistant"]
    assert "green tea" in str(before[0])
    answered = reply(FOUND, Text(text="3 EUR."), model=CLAUDE, stop="end_turn")
    after = taken_body(request(CLAUDE, asked, paused, meant, answered, Message.user("thanks")))["messages"]
    assert "green tea" in str(after[0])
    assert [block["type"] for block in after[1]["content"]][1:3] == [
        "server_tool_use",
        "web_search_tool_result",
    ]


@pytest.mark.parametrize("stop", ["cancelled", "max_tokens"])
def test_call_that_nobody_goes_on_with_is_left_out(stop: str) -> None:
    """A person stopped the turn, or it was cut: the search will never come to its result."""
    stopped = reply(Text(text="I search."), CALL, model=CLAUDE, stop=stop)
    body = taken_body(request(CLAUDE, Message.user("tea?"), stopped, Message.user("stop that")))
    assert "server_tool_use" not in str(body)


def test_pause_ends_with_its_model() -> None:
    """A fallback took over in the pause; the model that comes back does not search any more."""
    paused = reply(CALL, model=CLAUDE, stop="pause_turn")
    fallback = reply(Text(text="I do not know."), model=GPT, stop="end_turn")
    for model in (CLAUDE, GPT):
        body = taken_body(request(model, Message.user("tea?"), paused, fallback, Message.user("sure?")))
        assert "server_tool_use" not in str(body)
    taken_body(request(GPT, Message.user("tea?"), paused))


def test_own_tool_waits_for_results_of_ours() -> None:
    """A tool on the server calls ours: what a person says meanwhile stands before that turn."""
    call = ToolCall(id="call-1-1", name="search")
    both = reply(CALL, call, model=CLAUDE, stop="tool_calls")
    messages = (Message.user("tea?"), both, Message.user("hurry"), result())
    body = taken_body(request(CLAUDE, *messages, tools=(SEARCH,)))
    assert [block["type"] for block in body["messages"][-1]["content"]] == ["tool_result"]
    assert "hurry" in str(body["messages"][0])


# -- thinking

CLAUDES = ("anthropic:claude-b", "bedrock:anthropic.claude-b")


@pytest.mark.parametrize("model", CLAUDES)
def test_thinking_never_joins_in_mid_turn(model: str) -> None:
    """The provider wants a turn to begin with a thought of the same model; the next turn may think again."""
    config = ModelConfig(name=model, thinking=2048)
    turn = step("other:model")
    assert "enabled" not in str(taken_body(request(config, *turn, tools=(SEARCH,))))
    ended = (*turn, reply(Text(text="Aisle 4."), model=model), Message.user("thanks"))
    assert "enabled" in str(taken_body(request(config, *ended, tools=(SEARCH,))))
    own = reply(Thinking(text="hm", signature="c2ln"), ToolCall(id="call-1-1", name="search"), model=model)
    thought = (Message.user("a"), own, result())
    assert "enabled" in str(taken_body(request(config, *thought, tools=(SEARCH,))))


@pytest.mark.parametrize("model", CLAUDES)
@pytest.mark.parametrize(("left", "budget"), [(8192, 4096), (3000, 2999), (1024, None)])
def test_thinking_budget_fits(model: str, left: int, budget: int | None) -> None:
    """It is less than what is left for the reply and at least what the provider takes, or nothing."""
    config = ModelConfig(name=model, thinking=4096)
    body = taken_body(request(config, Message.user("a"), max_tokens=left))
    thinking = body.get("thinking") or body["additionalModelRequestFields"]["thinking"]
    assert thinking.get("budget_tokens") == budget


def test_forced_tool_needs_no_thought() -> None:
    """Where no budget is left for thinking, the model can be forced."""
    config = ModelConfig(name=CLAUDE, thinking=4096)
    ask = request(config, Message.user("a"), tools=(SEARCH,), tool_choice="required", max_tokens=1000)
    assert taken_body(ask)["tool_choice"] == {"type": "any"}


@pytest.mark.parametrize("model", ["openai:deepseek-reasoner", "vllm:deepseek-v3", "openai:kimi-k2-thinking"])
def test_reasoning_goes_back_with_its_calls(model: str) -> None:
    """Such a model refuses a call without it; a call of another model has a word in its place."""
    thought = reply(Thinking(text="I look."), ToolCall(id="call-1-1", name="search"), model=model)
    body = taken_body(request(model, Message.user("a"), thought, result()))
    assert body["messages"][1]["reasoning_content"] == "I look."
    body = taken_body(request(model, *step("other:model")))
    assert body["messages"][1]["reasoning_content"] == "(empty)"
    ended = reply(Thinking(text="Found."), Text(text="Aisle 4."), model=model)
    body = taken_body(request(model, Message.user("a"), thought, result(), ended, Message.user("b")))
    assert body["messages"][3]["reasoning_content"] == "Found."
    body = taken_body(request("vllm:qwen3", Message.user("a"), thought, result()))
    assert "reasoning_content" not in str(body)


def test_reasoning_goes_back_in_its_field() -> None:
    thought = reply(
        Thinking(text="hm"), ToolCall(id="call-1-1", name="search"), model="vllm:openai/gpt-oss-20b"
    )
    body = taken_body(request("vllm:openai/gpt-oss-20b", Message.user("a"), thought, result()))
    assert body["messages"][1]["reasoning"] == "hm"


SIGNED = {"extra_content": {"google": {"thought_signature": "c2lnbmVk", "b": 1, "a": [None]}}}


async def test_signature_of_a_call_goes_back(openai_wire: Wire) -> None:
    """It comes in a piece of the call, and goes back with it to the same model, byte for byte."""
    function = {"name": "search", "arguments": "{}"}
    frames = [
        delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": function, **SIGNED}]),
        *openai_close(StubReply(calls=(StubCall(id="c1"),))),
    ]
    found = await openai_wire.reply(openai_wire.dialect.unfinished(StubReply(), *frames))
    own = Message(
        role="assistant",
        parts=[
            part.model_copy(update={"id": "call-1-1"}) for part in found.parts if isinstance(part, ToolCall)
        ],
        meta=ReplyMeta(step=1, model=openai_wire.dialect.model_name, usage=Usage()),
    )
    sent = openai_wire.request(messages=(Message.user("a"), own, result()))
    body = await openai_wire.body_of(sent)
    assert body["messages"][1]["tool_calls"][0]["extra_content"] == SIGNED["extra_content"]
    assert list(body["messages"][1]["tool_calls"][0]["extra_content"]["google"]) == [
        "thought_signature",
        "b",
        "a",
    ]
    other = replace(sent, config=ModelConfig(name="openai:gpt-other"))
    assert "c2lnbmVk" not in str(await openai_wire.body_of(other))


@pytest.mark.parametrize("model", ["other:model", "openai:gemini-3-pro"])
def test_gemini_takes_unsigned_calls(model: str) -> None:
    """A call of another model, or of a server that sent no signature: of parallel calls, the first has a stand-in."""
    calls = [ToolCall(id=f"call-1-{n}", name="search") for n in (1, 2)]
    found = [ToolResult(call_id=call.id, name="search", content=[Text(text="x")]) for call in calls]
    messages = (Message.user("a"), reply(*calls, model=model), Message(role="tool", parts=[*found]))
    body = taken_body(request("openai:gemini-3-pro", *messages))
    assert "extra_content" in body["messages"][1]["tool_calls"][0]
    assert "extra_content" not in body["messages"][1]["tool_calls"][1]


# -- models that take less


@pytest.mark.parametrize("model", ["bedrock:mistral.mixtral-8x7b-v0:1", "bedrock:deepseek.r1-v1:0"])
def test_calls_are_words_without_tools(model: str) -> None:
    body = taken_body(
        request(model, *step("x:y", arguments={"q": 1}), instructions="Be kind.", tools=(SEARCH,))
    )
    assert "toolConfig" not in body
    assert '{"q":1}' in str(body)
    assert ("system" in body) == ("deepseek" in model)
    assert "Be kind." in str(body)


def test_nothing_changes_where_all_is_taken() -> None:
    """A request that its provider takes keeps its very messages."""
    for model in (CLAUDE, GPT, NOVA):
        ask = request(model, *step(model), Message.user("b"))
        sent = make_sendable(ask, capabilities_of(ask.config))
        assert all(a is b for a, b in zip(ask.messages, sent.messages, strict=True))


def test_checks_refuse_what_providers_refuse() -> None:
    """The checks of these tests tell a bad body from a good one."""
    good = taken_body(request(CLAUDE, *step(CLAUDE), tools=(SEARCH,)))
    bad = {**good, "messages": good["messages"][1:]}
    with pytest.raises(Refused):
        refuse_anthropic(bad)
