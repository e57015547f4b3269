"""Peculiarities of each provider: keys, addresses, errors in streams, missing usage."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.activities.providers._openai_servers import SERVERS, address_of, ollama_address
from perdure.activities.providers.anthropic import AnthropicModel
from perdure.activities.providers.bedrock import BedrockModel
from perdure.activities.providers.openai import OpenAIModel
from perdure.activities.providers.registry import BUILT_IN, LazyModel, default_models
from perdure.errors import DefinitionError, ModelError
from perdure.messages import Image, Message, Text, Thinking, ToolCall
from perdure.model import Model, ModelConfig, ModelRequest, Reply
from perdure.providers import CallDeadline, kind_of_status, parse_retry_after

from .conftest import Wire
from .dialects import StubReply, chunk, delta, frame, openai_finish, sse
from .server import Stub

# -- the models by name


def test_built_in_providers_are_named() -> None:
    models = default_models()
    assert list(models) == list(BUILT_IN)
    assert all(isinstance(model, Model) for model in models.values())


def test_registry_imports_no_library() -> None:
    code = (
        "import sys; from perdure.activities.providers.registry import default_models; default_models();"
        "print([m for m in ('anthropic', 'boto3', 'botocore', 'openai', 'httpx2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_lazy_model_does_as_its_model(server: Stub, openai_wire: Wire) -> None:
    model = default_models()["vllm"]
    assert isinstance(model, LazyModel)
    openai_wire.will_say(StubReply(text=("ok",)))
    config = ModelConfig(name="vllm:m", options={"base_url": f"{server.url}/v1"})
    model.check(config)
    events = [event async for event in model.stream(ModelRequest(config=config))]
    assert isinstance(events[-1], Reply)
    with pytest.raises(DefinitionError):
        model.check(ModelConfig(name="vllm:m", options={"x": 1}))
    assert isinstance(model._model, OpenAIModel)
    await model._model.aclose()


# -- keys and addresses


@pytest.mark.parametrize(
    ("model", "name", "variable"),
    [
        (AnthropicModel(), "anthropic:m", "ANTHROPIC_API_KEY"),
        (OpenAIModel(), "openai:m", "OPENAI_API_KEY"),
    ],
)
async def test_missing_key_says_what_to_do(model: Model, name: str, variable: str) -> None:
    """The message is one line, and names the variable to set."""
    config = ModelConfig(name=name)
    with pytest.raises(ModelError, match=f"^[^\n]*{variable}[^\n]*restart[^\n]*$") as caught:
        model.check(config)
    assert caught.value.kind == "authentication"
    with pytest.raises(ModelError, match=variable):
        await anext(aiter(model.stream(ModelRequest(config=config))))


@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
async def test_anthropic_reads_key_from_environment(
    variable: str, server: Stub, anthropic_wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "from-env")
    model = AnthropicModel(base_url=server.url)
    anthropic_wire.will_say(StubReply(text=("ok",)))
    request = ModelRequest(config=ModelConfig(name="anthropic:m"))
    assert [event async for event in model.stream(request)]
    assert server.requests[0].headers["authorization"] == "Bearer from-env"
    await model.aclose()


def test_bedrock_check_needs_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(ModelError, match="no AWS credentials") as caught:
        BedrockModel(region="eu-central-1").check(ModelConfig(name="bedrock:m"))
    assert caught.value.kind == "authentication"


async def test_bedrock_call_needs_credentials(server: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    model = BedrockModel(region="eu-central-1", endpoint_url=server.url)
    with pytest.raises(ModelError) as caught:
        [e async for e in model.stream(ModelRequest(config=ModelConfig(name="bedrock:m")))]
    assert caught.value.kind == "authentication"
    await model.aclose()


def test_bedrock_says_where_to_set_region() -> None:
    with pytest.raises(DefinitionError, match="AWS_REGION"):
        BedrockModel().check(ModelConfig(name="bedrock:m"))


def test_bedrock_names_unknown_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ModelError, match="nobody") as caught:
        BedrockModel().check(ModelConfig(name="bedrock:m"))
    assert caught.value.kind == "authentication"


def test_guardrail_needs_an_id() -> None:
    config = ModelConfig(name="bedrock:m", options={"guardrail": {"version": "1"}})
    with pytest.raises(DefinitionError, match=r"option 'guardrail\.id'"):
        BedrockModel(region="eu-central-1").check(config)


@pytest.mark.parametrize("setting", [{"temperature": 0.5}, {"top_p": 0.5}])
def test_anthropic_refuses_dropped_settings(setting: dict[str, Any]) -> None:
    """The message names `extra_body`, for older models that still know the setting."""
    with pytest.raises(DefinitionError, match="extra_body"):
        AnthropicModel("k").check(ModelConfig(name="anthropic:m", **setting))


@pytest.mark.parametrize("settings", [{"thinking": "adaptive"}, {"thinking": 2048}])
def test_thinking_is_refused_where_unknown(settings: dict[str, Any]) -> None:
    """The message says which setting to use in its place."""
    with pytest.raises(DefinitionError, match="effort"):
        OpenAIModel("k").check(ModelConfig(name="openai:m", **settings))
    with pytest.raises(DefinitionError, match="extra_body"):
        BedrockModel(region="x").check(ModelConfig(name="bedrock:meta.llama", **settings))


def test_missing_openai_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(DefinitionError, match=r'pip install "perdure\[openai\]"'):
        OpenAIModel("k").check(ModelConfig(name="openai:m"))


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://localhost:11434/v1"),
        ("0.0.0.0", "http://localhost:11434/v1"),
        (":8080", "http://localhost:8080/v1"),
        ("box:1234", "http://box:1234/v1"),
        ("http://box", "http://box:80/v1"),
        ("https://box/", "https://box:443/v1"),
        ("http://box:11434", "http://box:11434/v1"),
        ("http://box/shop", "http://box:80/shop/v1"),
        ("box/shop/", "http://box:11434/shop/v1"),
        ("https://box:9/a/b", "https://box:9/a/b/v1"),
        ("[::1]", "http://[::1]:11434/v1"),
        ("::1", "http://[::1]:11434/v1"),
        ("[::1]:99", "http://[::1]:99/v1"),
        ("http://[fe80::2]/x", "http://[fe80::2]:80/x/v1"),
        ("[::]:11434", "http://localhost:11434/v1"),
        (" 'box:1' ", "http://box:1/v1"),
        ("box:99999", "http://box:11434/v1"),
        ("box:x", "http://box:11434/v1"),
        ("ollama.com", "https://ollama.com:443/v1"),
    ],
)
def test_ollama_host_gives_the_address(host: str, url: str) -> None:
    """It is read as Ollama itself reads it."""
    assert ollama_address(host) == url


def test_unknown_provider_needs_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in ("mine", "compatible"):
        with pytest.raises(DefinitionError, match="base_url"):
            OpenAIModel(provider=provider).check(ModelConfig(name=f"{provider}:m"))
        monkeypatch.setenv(f"{provider.upper()}_BASE_URL", "https://box/v1")
        OpenAIModel(provider=provider).check(ModelConfig(name=f"{provider}:m"))
    assert address_of("vllm") == "http://localhost:8000/v1"
    monkeypatch.setenv("VLLM_BASE_URL", "http://gpu/v1")
    assert address_of("vllm") == "http://gpu/v1"


@pytest.mark.parametrize("name", [name for name, server in SERVERS.items() if server.needs_key])
def test_named_servers_need_their_own_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other provider's key stands in for it, and their addresses are on TLS."""
    config = ModelConfig(name=f"{name}:m")
    if name != "openai":
        monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
        assert str(address_of(name)).startswith("https://")
    with pytest.raises(ModelError, match=f"{name.upper()}_API_KEY") as caught:
        OpenAIModel(provider=name).check(config)
    assert caught.value.kind == "authentication"
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "own")
    OpenAIModel(provider=name).check(config)


async def test_local_server_never_gets_openai_key(
    server: Stub, openai_wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server gets the older field name for the bound of a reply, too."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    model = OpenAIModel(provider="ollama")
    openai_wire.will_say(StubReply(text=("ok",)))
    assert [e async for e in model.stream(ModelRequest(config=ModelConfig(name="ollama:m")))]
    (received,) = server.requests
    assert received.path == "/v1/chat/completions"
    assert received.body["max_tokens"] == 8192
    assert "sk-secret" not in str(received.headers)
    await model.aclose()


# -- habits of servers that speak OpenAI's language


async def test_missing_usage_is_estimated(openai_wire: Wire) -> None:
    scripted = StubReply(text=("twelve bytes",))
    answer = openai_wire.dialect.unfinished(scripted, openai_finish(scripted), b"data: [DONE]\n\n")
    request = openai_wire.request(messages=(Message.user([Text(text="x" * 400), Image(data="aGk=")]),))
    usage = (await openai_wire.reply(answer, request=request)).usage
    assert usage.estimated
    assert 3 <= usage.output_tokens <= 12
    assert 4_784 < usage.input_tokens < 5_400  # a picture that cannot be read counts as the largest


async def test_calls_of_one_index_differ_by_id(openai_wire: Wire) -> None:
    """Some servers number all their calls 0, and end them with "stop"."""

    def call_chunk(id_: str, arguments: str) -> bytes:
        return delta(tool_calls=[{"index": 0, "id": id_, "function": {"name": "f", "arguments": arguments}}])

    frames = (call_chunk("a", '{"n": 1}'), call_chunk("b", '{"n": 2}'), openai_finish(StubReply(stop="stop")))
    reply = await openai_wire.reply(openai_wire.dialect.unfinished(StubReply(), *frames))
    assert [part.arguments for part in reply.parts if isinstance(part, ToolCall)] == [{"n": 1}, {"n": 2}]
    assert reply.stop == "tool_calls", 'servers that say "stop" for it are understood'


async def test_refusal_is_an_answer(openai_wire: Wire) -> None:
    frames = (delta(refusal="I can't."), openai_finish(StubReply()))
    reply = await openai_wire.reply(openai_wire.dialect.unfinished(StubReply(), *frames))
    assert (reply.stop, reply.parts) == ("refusal", (Text(text="I can't."),))


async def test_reasoning_has_two_field_names(openai_wire: Wire) -> None:
    frames = (delta(reasoning="hm"), delta(content="42"), openai_finish(StubReply()))
    reply = await openai_wire.reply(openai_wire.dialect.unfinished(StubReply(), *frames))
    assert reply.parts == (Thinking(text="hm"), Text(text="42"))


async def test_openai_usage_needs_no_details(openai_wire: Wire) -> None:
    counted = chunk(
        choices=[], usage={"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}
    )
    scripted = StubReply(text=("ok",))
    answer = openai_wire.dialect.unfinished(scripted, openai_finish(scripted), counted)
    usage = (await openai_wire.reply(answer)).usage
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (9, 0, 2)


# -- errors inside streams

IN_STREAM: dict[str, list[tuple[bytes, str]]] = {
    "anthropic": [
        (sse({"type": "error", "error": {"type": "api_error", "message": "x"}}), "overloaded"),
        (sse({"type": "error", "error": {"type": "rate_limit_error", "message": "x"}}), "rate_limited"),
        (sse({"type": "error", "error": {"type": "invalid_request_error", "message": "x"}}), "bad_request"),
        (
            sse(
                {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long"}}
            ),
            "context_overflow",
        ),
        (sse({"type": "error", "error": {"type": "brand_new_error", "message": "x"}}), "stream_cut"),
        (b"event: error\ndata: not json\n\n", "stream_cut"),
        (b"event: message_delta\ndata: {broken\n\n", "malformed_reply"),
    ],
    "bedrock": [
        (frame("modelStreamErrorException", {"message": "x"}, "exception"), "stream_cut"),
        (frame("internalServerException", {"message": "x"}, "exception"), "overloaded"),
        (frame("serviceUnavailableException", {"message": "x"}, "exception"), "overloaded"),
        (frame("validationException", {"message": "x"}, "exception"), "bad_request"),
        (frame("validationException", {"message": "Input is too long"}, "exception"), "context_overflow"),
        (frame("messageStop", {"stopReason": "end_turn"})[:-4] + b"\0\0\0\0", "malformed_reply"),
    ],
    "openai": [
        (b'data: {"error": {"message": "x", "type": "insufficient_quota"}}\n\n', "payment"),
        (b'data: {"error": {"message": "x", "type": "BadRequestError", "code": 400}}\n\n', "bad_request"),
        (b'data: {"error": {"message": "x", "type": "InternalServerError", "code": 500}}\n\n', "overloaded"),
        (b'data: {"error": {"message": "x", "code": "rate_limit_exceeded"}}\n\n', "rate_limited"),
        (b'data: {"error": {"message": "x", "code": "brand_new"}}\n\n', "stream_cut"),
        (b'data: {"error": {"message": "x"}}\n\n', "stream_cut"),
        (b"data: {broken\n\n", "malformed_reply"),
    ],
}


async def test_errors_in_streams_have_kinds(wire: Wire) -> None:
    for event, kind in IN_STREAM[wire.dialect.name]:
        error = await wire.error(wire.dialect.unfinished(StubReply(text=("half",)), event))
        assert error.kind == kind, event
        assert error.usage is not None, "a call that was answered has been paid"


@pytest.mark.parametrize("stop", ["malformed_model_output", "malformed_tool_use"])
async def test_bedrock_broken_output_is_malformed(bedrock_wire: Wire, stop: str) -> None:
    """The call is paid for all the same."""
    error = await bedrock_wire.error(StubReply(text=("x",), stop=stop))
    assert error.kind == "malformed_reply"
    assert error.usage is not None
    assert not error.usage.estimated


async def test_bedrock_needs_its_last_event(bedrock_wire: Wire) -> None:
    """Without it the stream was cut, also after the stop reason."""
    scripted = StubReply(text=("ok",))
    stop = bedrock_wire.dialect.close(scripted)[0]
    assert (await bedrock_wire.error(bedrock_wire.dialect.unfinished(scripted, stop))).kind == "stream_cut"


async def test_anthropic_cut_call_costs_counted_input(anthropic_wire: Wire) -> None:
    error = await anthropic_wire.error(anthropic_wire.dialect.unfinished(StubReply(text=("x" * 40,))))
    assert error.usage is not None
    assert (error.usage.input_tokens, error.usage.cache_read_tokens) == (11, 5)
    # Forty letters without a word, and what may have been in flight.
    assert 10 <= error.usage.output_tokens <= 40 + 65


async def test_bedrock_delay_header_is_milliseconds(bedrock_wire: Wire) -> None:
    answer = bedrock_wire.dialect.refusal(429, "ThrottlingException", "x", **{"x-amz-retry-after": "1500"})
    assert (await bedrock_wire.error(answer)).retry_after == timedelta(seconds=1.5)


async def test_bedrock_shares_a_client_among_timeouts(bedrock_wire: Wire) -> None:
    for seconds in (300, 400, 500.5):
        await bedrock_wire.reply(
            StubReply(), request=bedrock_wire.request({"timeout": timedelta(seconds=seconds)})
        )
    model = bedrock_wire.model
    assert isinstance(model, BedrockModel)
    assert list(model._clients._clients) == [("eu-central-1", bedrock_wire.server.url, 512)]


async def test_botocore_validation_is_bad_request(bedrock_wire: Wire) -> None:
    request = bedrock_wire.request(messages=(Message(role="assistant", parts=[ToolCall(id="a", name="")]),))
    assert (await bedrock_wire.error(request=request)).kind == "bad_request"


async def test_bedrock_calls_wait_in_own_threads(bedrock_wire: Wire) -> None:
    calls = 24  # more than the default executor of a small machine has threads
    for _ in range(calls):
        bedrock_wire.server.script(bedrock_wire.dialect.answer(StubReply(text=("ok",)), silent=True))
    asking = [asyncio.create_task(bedrock_wire.reply()) for _ in range(calls)]
    while len(bedrock_wire.server.requests) < calls:
        bedrock_wire.server.requested.clear()
        await bedrock_wire.server.requested.wait()
    bedrock_wire.server.speak.set()
    assert len(await asyncio.gather(*asking)) == calls


# -- shared rules

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "delay"),
    [
        ({"retry-after": "Fri, 20 Nov 2026 12:01:30 GMT"}, timedelta(seconds=90)),
        ({"retry-after": "Fri, 20 Nov 2026 11:00:00 GMT"}, timedelta()),
        ({"retry-after-ms": "x", "retry-after": "3"}, timedelta(seconds=3)),
        ({"retry-after": "-3"}, timedelta()),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e300"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 GMT"}, timedelta()),
        ({"retry-after": "Sun, 20 Dec 2026 12:00:00 GMT"}, timedelta(days=7)),
        # The time of the next try: in seconds since 1970, and in milliseconds.
        ({"retry-after": str(NOW.timestamp() + 20)}, timedelta(seconds=20)),
        ({"retry-after": str(NOW.timestamp() * 1000 + 20_000)}, timedelta(seconds=20)),
        ({"retry-after-ms": "1e15"}, None),
    ],
)
def test_odd_delays_are_parsed(headers: dict[str, str], delay: timedelta | None) -> None:
    assert parse_retry_after(headers, NOW) == delay


async def test_deadline_holds_without_a_wait() -> None:
    async def ready() -> int:
        return 1

    in_time = CallDeadline(ModelConfig(name="x:y", timeout=timedelta(seconds=60)))
    assert await in_time.wait_for(ready()) == await in_time.wait_for_data(ready()) == 1
    late = CallDeadline(ModelConfig(name="x:y", timeout=timedelta(seconds=-1)))
    with pytest.raises(TimeoutError):
        await late.wait_for(ready())
    with pytest.raises(TimeoutError):
        await late.wait_for_data(ready())


def test_no_status_is_a_bug() -> None:
    """What a server sends is never our mistake."""
    assert "bug" not in {kind_of_status(status) for status in range(-1, 1000)}
    assert [kind_of_status(status) for status in (204, 302, 418, 499, 599)] == [
        "malformed_reply",
        "malformed_reply",
        "bad_request",
        "overloaded",
        "overloaded",
    ]


async def test_unforeseen_exception_is_a_bug(openai_wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names its class."""

    def broken(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr("perdure.activities.providers.openai._fold", broken)
    error = await openai_wire.error(StubReply(text=("x",)))
    assert error.kind == "bug"
    assert "RuntimeError" in str(error)
