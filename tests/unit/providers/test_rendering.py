"""Requests joined from kept pieces: the same bytes as a plain rendering, and a digest that tells them apart."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import botocore.session
import pytest
from botocore.serialize import create_serializer
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.activities.providers import (
    _anthropic_request,
    _bedrock_request,
    _gemini_request,
    _openai_request,
    _responses_request,
)
from perdure.activities.providers.scripted import ScriptedModel, says
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
from perdure.providers import rendering
from perdure.providers.rendering import Body, encode_json
from tests.pictures import PDF, PNG

NAMES = {
    "anthropic": ("anthropic:claude-a", "anthropic:claude-b"),
    "openai": ("openai:gpt-a", "openai:gpt-b"),
    "bedrock": ("bedrock:anthropic.a", "bedrock:meta.b"),
    "gemini": ("gemini:gemini-2.5-a", "gemini:gemini-3-b"),
    "responses": ("responses:gpt-5-a", "responses:gpt-4-b"),
}
ARRAYS = {
    "anthropic": "messages",
    "openai": "messages",
    "bedrock": "messages",
    "gemini": "contents",
    "responses": "input",
}
"""The field of a request that holds the conversation."""
SEARCH = ToolDefinition(name="search", description="Search.", input_schema={"type": "object"})


def rendered(request: ModelRequest) -> Body:
    config = request.config
    match config.provider:
        case "anthropic":
            return _anthropic_request.render_body(request, _anthropic_request.read_config(config))
        case "openai":
            return _openai_request.render_body(request, _openai_request.read_config(config), "openai")
        case "gemini":
            return _gemini_request.render_body(request, _gemini_request.read_config(config))
        case "responses":
            return _responses_request.render_body(request, _responses_request.read_config(config))
        case _:
            return _bedrock_request.render_body(request, _bedrock_request.read_config(config))[1]


def plain(request: ModelRequest) -> dict[str, Any]:
    config = request.config
    match config.provider:
        case "anthropic":
            anthropic = _anthropic_request.read_config(config)
            return _anthropic_request.build_body(request, anthropic) | anthropic.extra_body
        case "openai":
            openai = _openai_request.read_config(config)
            return _openai_request.build_body(request, openai, "openai") | openai.extra_body
        case "gemini":
            gemini = _gemini_request.read_config(config)
            body = _gemini_request.build_body(request, gemini)
            return _gemini_request.merge_fields(body, gemini.extra_body)
        case "responses":
            responses = _responses_request.read_config(config)
            return _responses_request.build_body(request, responses) | responses.extra_body
        case _:
            body = _bedrock_request.build_body(request, _bedrock_request.read_config(config))
            return {name: value for name, value in body.items() if name != "modelId"}


def sets_messages(request: ModelRequest) -> bool:
    extra = request.config.options.get("extra_body")
    return isinstance(extra, dict) and ARRAYS[request.config.provider] in extra


def fresh(request: ModelRequest) -> ModelRequest:
    """Return an equal request of which nothing is kept."""
    return replace(request, messages=tuple(message.model_copy() for message in request.messages))


WORDS = st.sampled_from(["", " ", "yes", 'a "quoted" \\ line\n', "Grüße 世界 🎉", "\u2028", "x" * 300])
ARGUMENTS = st.dictionaries(
    WORDS, st.one_of(st.none(), st.integers(), WORDS, st.lists(WORDS, max_size=2)), max_size=2
)
MEDIA = st.sampled_from(
    [
        Image(data=PNG),
        Document(data=PDF, name="a b.pdf"),
        Document(media_type="text/plain", data="aGVsbG8=", name="n"),
        Document(media_type="application/x-odd", data="aGVsbG8="),
    ]
)
RESULT = st.builds(
    ToolResult,
    call_id=st.just("c1"),
    name=st.just("search"),
    content=st.lists(st.one_of(st.builds(Text, text=WORDS), MEDIA), max_size=2),
    is_error=st.booleans(),
)
SPOKEN: st.SearchStrategy[Part] = st.one_of(
    st.builds(Text, text=WORDS),
    st.builds(
        Thinking, text=WORDS, signature=st.sampled_from([None, "s"]), redacted=st.sampled_from([None, "eA=="])
    ),
    st.builds(ToolCall, id=st.just("c1"), name=st.just("search"), arguments=ARGUMENTS),
    st.sampled_from(
        [
            Opaque(provider="anthropic", data={"type": "server_tool_use", "id": "x"}),
            Opaque(provider="bedrock", data={"text": "opaque"}),
        ]
    ),
)
MODELS = st.sampled_from([name for names in NAMES.values() for name in names])
USER = st.lists(st.one_of(st.builds(Text, text=WORDS), MEDIA), max_size=2)
MESSAGE = st.one_of(
    st.builds(Message, role=st.just("user"), parts=USER),
    st.builds(
        Message,
        role=st.just("assistant"),
        parts=st.lists(SPOKEN, max_size=3),
        meta=st.builds(ReplyMeta, step=st.just(1), model=MODELS),
    ),
    st.builds(Message, role=st.just("tool"), parts=st.lists(RESULT, min_size=1, max_size=2)),
)


@st.composite
def requests(draw: st.DrawFn, provider: str) -> ModelRequest:
    options: dict[str, Any] = {}
    if provider in ("anthropic", "bedrock"):
        options["cache"] = draw(st.booleans())
    if provider != "bedrock" and draw(st.booleans()):
        bodies: list[dict[str, Any]] = [{"top_k": 5}, {ARRAYS[provider]: []}, {"stream": False}]
        options["extra_body"] = draw(st.sampled_from(bodies))
    config = ModelConfig(name=draw(st.sampled_from(NAMES[provider])), options=options)
    return ModelRequest(
        config=config,
        instructions=draw(WORDS),
        messages=tuple(draw(st.lists(MESSAGE, max_size=8))),
        tools=draw(st.sampled_from([(), (SEARCH,)])),
        tool_choice=draw(st.sampled_from(["auto", "none", "required"])),
    )


def prefixes(request: ModelRequest) -> Iterator[ModelRequest]:
    """Yield the request as a run makes it: message by message, with the pieces that it keeps."""
    for length in range(1, len(request.messages) + 1):
        yield replace(request, messages=request.messages[:length])


@pytest.mark.parametrize("provider", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_joined_bytes_equal_plain_rendering(provider: str, data: st.DataObject) -> None:
    """They do at each step of a run, for each model of its chain, and whatever was kept before."""
    request = data.draw(requests(provider))
    other = replace(request, config=request.config.model_copy(update={"name": NAMES[provider][1]}))
    for step in prefixes(request):
        for asked in (step, replace(other, messages=step.messages), step):
            body = rendered(asked)
            assert json.loads(body.json) == json.loads(encode_json(plain(asked)))
            if not sets_messages(asked):
                inner = encode_json({ARRAYS[provider]: plain(asked)[ARRAYS[provider]]})[1:-1]
                assert body.json.endswith(inner + b"}")
            assert rendered(fresh(asked)) == body


@pytest.mark.parametrize("provider", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_digests_are_equal_as_bodies_are(provider: str, data: st.DataObject) -> None:
    first = data.draw(requests(provider))
    changed = data.draw(requests(provider))
    mixed = replace(first, messages=data.draw(st.sampled_from([first.messages, changed.messages])))
    merged = replace(first, messages=_merge_users(first.messages))
    for second in (fresh(first), changed, mixed, merged):
        if sets_messages(first) or sets_messages(second):
            continue  # the user's own messages are a field, and no turns
        one, two = rendered(first), rendered(second)
        assert (one.digest == two.digest) == (one.json == two.json)


def _merge_users(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return messages that may be sent as the same bytes, from other pieces."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role == "user":
            merged[-1] = Message(role="user", parts=[*merged[-1].parts, *message.parts])
        else:
            merged.append(message)
    return tuple(merged)


SERVICE = botocore.session.get_session().get_service_model("bedrock-runtime")
BOTOCORE: Any = create_serializer(SERVICE.metadata["protocol"], include_validation=False)


@settings(max_examples=100, deadline=None)
@given(request=requests("bedrock"))
def test_bedrock_bytes_are_botocores(request: ModelRequest) -> None:
    """The library would send the same values; it would only write them otherwise."""
    arguments = _bedrock_request.build_body(request, _bedrock_request.read_config(request.config))
    written = BOTOCORE.serialize_to_request(arguments, SERVICE.operation_model("ConverseStream"))
    assert json.loads(written["body"]) == json.loads(rendered(request).json)


def conversation(steps: int) -> tuple[Message, ...]:
    messages = [Message.user("the task")]
    for n in range(steps):
        call = ToolCall(id=f"call-{n}-1", name="search", arguments={"n": n})
        result = ToolResult(call_id=call.id, name="search", content=[Text(text=f"{n} " + "x" * 2000)])
        messages += [Message(role="assistant", parts=[call]), Message(role="tool", parts=[result])]
    return tuple(messages)


@pytest.mark.parametrize("provider", NAMES)
def test_step_renders_only_what_is_new(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step encodes as many bytes after two hundred steps as after ten."""
    encoded = 0
    write: Callable[[Any], bytes] = rendering.encode_json

    def counting(value: Any) -> bytes:
        nonlocal encoded
        text = write(value)
        encoded += len(text)
        return text

    monkeypatch.setattr(rendering, "encode_json", counting)
    messages = conversation(200)
    request = ModelRequest(config=ModelConfig(name=NAMES[provider][0]), tools=(SEARCH,))
    by_step: list[int] = []
    for steps in range(1, 201):
        encoded = 0
        rendered(replace(request, messages=messages[: 2 * steps + 1]))
        by_step.append(encoded)
    assert max(by_step[10:]) < 10_000
    assert by_step[199] <= by_step[10] + 64, "digits of the steps' numbers are all that grows"


async def test_scripted_request_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted model counts a request as if each message were new, and reads the new ones only."""
    model = ScriptedModel(lambda _: says("ok"))
    messages = conversation(20)
    config = ModelConfig(name="scripted:x")

    async def ask(messages: tuple[Message, ...]) -> Reply:
        last = [event async for event in model.stream(ModelRequest(config=config, messages=messages))][-1]
        assert isinstance(last, Reply)
        return last

    whole, again = await ask(messages), await ask(tuple(message.model_copy() for message in messages))
    assert (whole.usage, whole.request_digest) == (again.usage, again.request_digest)
    assert (await ask(messages[:-1])).request_digest != whole.request_digest

    def refuse(*_: Any, **__: Any) -> str:
        raise AssertionError("a message was written once more")

    monkeypatch.setattr(Message, "model_dump_json", refuse)
    assert (await ask(messages)).usage == whole.usage
