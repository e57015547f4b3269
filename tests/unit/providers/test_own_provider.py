"""The provider of examples/http_provider.py against a real HTTP server, and the page that shows it."""

import asyncio
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

import perdure.providers
from perdure.errors import DefinitionError, ModelError
from perdure.messages import Image, Message, Text, Thinking, ToolCall, ToolResult, Usage
from perdure.model import (
    Model,
    ModelConfig,
    ModelEvent,
    ModelRequest,
    Reply,
    TextDelta,
    ThinkingDelta,
    ToolDefinition,
)
from perdure.workers.load import load_file

from .server import Answer, Stub

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "http_provider.py"
SEARCH = ToolDefinition(name="search", description="Finds.", input_schema={"type": "object"})


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("http_provider", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def model(server: Stub) -> AsyncIterator[Any]:
    own = _load().OllamaModel(server.url)
    yield own
    await own.aclose()


def _request(**fields: Any) -> ModelRequest:
    return ModelRequest(config=fields.pop("config", ModelConfig(name="own:m")), **fields)


def _line(done: bool = False, **message: Any) -> bytes:
    counts = {"done_reason": "stop", "prompt_eval_count": 11, "eval_count": 7} if done else {}
    return json.dumps({"message": message, "done": done, **counts}).encode() + b"\n"


def _answer(*lines: bytes, **how: Any) -> Answer:
    return Answer(headers={"x-request-id": "req-1"}, chunks=lines, **how)


async def _ask(model: Model, request: ModelRequest | None = None) -> list[ModelEvent]:
    return [event async for event in model.stream(request or _request())]


async def _error(model: Model, request: ModelRequest | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await _ask(model, request)
    return caught.value


def test_example_is_a_model(model: Any) -> None:
    assert isinstance(model, Model)


async def test_text_streams_into_a_counted_reply(server: Stub, model: Any) -> None:
    server.script(
        _answer(_line(thinking="Hm."), _line(content="Aisle "), _line(content="4."), _line(done=True))
    )
    *deltas, reply = await _ask(model)
    assert deltas == [ThinkingDelta(text="Hm."), TextDelta(text="Aisle "), TextDelta(text="4.")]
    assert isinstance(reply, Reply)
    assert reply.parts == (Thinking(text="Hm."), Text(text="Aisle 4."))
    assert reply.stop == "end_turn"
    assert reply.usage == Usage(input_tokens=11, output_tokens=7)
    assert reply.request_id == "req-1"


async def test_tool_calls_make_a_round_trip(server: Stub, model: Any) -> None:
    call = {"function": {"name": "search", "arguments": {"query": "tea"}}}
    server.script(_answer(_line(tool_calls=[call, call]), _line(done=True)))
    reply = (await _ask(model, _request(tools=(SEARCH,))))[-1]
    assert isinstance(reply, Reply)
    assert reply.stop == "tool_calls"
    assert reply.parts == (ToolCall(id="", name="search", arguments={"query": "tea"}),) * 2
    (function,) = server.requests[0].body["tools"]
    assert function["function"] == {
        "name": "search",
        "description": "Finds.",
        "parameters": {"type": "object"},
    }

    result = ToolResult(call_id="call-1-1", name="search", content=[Text(text="Aisle 4.")])
    messages = (
        Message.user("Where is the tea?"),
        Message(role="assistant", parts=[ToolCall(id="call-1-1", name="search", arguments={"query": "tea"})]),
        Message(role="tool", parts=[result]),
    )
    server.script(_answer(_line(content="Aisle 4."), _line(done=True)))
    await _ask(model, _request(messages=messages, instructions="Be brief."))
    sent = server.requests[1].body["messages"]
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "tool"]
    assert sent[2]["tool_calls"] == [call]
    assert sent[3] == {"role": "tool", "tool_name": "search", "content": "Aisle 4."}


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (429, "slow down", "rate_limited"),
        (404, "model 'm' not found", "not_found"),
        (400, "input length exceeds the context length", "context_overflow"),
        (500, "the runner crashed", "overloaded"),
    ],
)
async def test_refusal_has_its_kind(server: Stub, model: Any, status: int, words: str, kind: str) -> None:
    server.script(Answer(status=status, headers={"retry-after": "7"}, chunks=(words.encode(),)))
    error = await _error(model)
    assert (error.kind, error.retry_after, error.usage) == (kind, timedelta(seconds=7), None)
    assert words in str(error)


async def test_options_are_honoured(server: Stub) -> None:
    server.script(_answer(_line(done=True)))
    options: dict[str, Any] = {"base_url": server.url, "extra_body": {"keep_alive": "5m"}}
    config = ModelConfig(name="own:m", options=options)
    own = _load().OllamaModel("http://127.0.0.1:1")
    await _ask(own, _request(config=config))
    assert server.requests[0].body["keep_alive"] == "5m"
    await own.aclose()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (_answer(_line(content="half")), "stream_cut"),
        (_answer(_line(content="half"), end="cut"), "stream_cut"),
        (_answer(_line(content="half"), b'{"error": "out of memory"}\n'), "stream_cut"),
        (_answer(b"not json\n"), "malformed_reply"),
        (_answer(_line(content=3)), "malformed_reply"),
    ],
)
async def test_error_in_answer_carries_cost(server: Stub, model: Any, answer: Answer, kind: str) -> None:
    server.script(answer)
    error = await _error(model)
    assert error.kind == kind
    assert error.usage is not None
    assert error.usage.estimated


async def test_server_sent_events_are_read(server: Stub, model: Any) -> None:
    """Frames, comments, blank lines and the mark behind the last event carry no data."""
    events = (
        b": hello\n\nevent: piece\ndata: " + _line(content="Aisle 4.") + b"\nid: 2\ndata: " + _line(done=True)
    )
    server.script(_answer(events, b"\ndata: [DONE]\n\n"))
    reply = (await _ask(model))[-1]
    assert isinstance(reply, Reply)
    assert reply.parts == (Text(text="Aisle 4."),)


async def test_picture_is_refused(model: Any) -> None:
    """A picture that the provider cannot see does not vanish unnoticed."""
    picture = Message(role="user", parts=[Image(data="aaaa", media_type="image/png")])
    with pytest.raises(ModelError, match="does not read images") as refused:
        await _ask(model, _request(messages=(picture,)))
    assert refused.value.kind == "bad_request"


async def test_missing_server_is_connection_error() -> None:
    assert (await _error(_load().OllamaModel("http://127.0.0.1:1"))).kind == "connection"


@pytest.mark.parametrize("limit", [{"timeout": timedelta(seconds=1)}, {"read_timeout": timedelta(seconds=1)}])
async def test_silent_server_is_a_timeout(server: Stub, model: Any, limit: dict[str, Any]) -> None:
    server.script(_answer(_line(content="half"), end="hang"))
    assert (await _error(model, _request(config=ModelConfig(name="own:m", **limit)))).kind == "timeout"
    await asyncio.wait_for(server.disconnected.wait(), 60)


async def test_closing_the_stream_closes_the_connection(server: Stub, model: Any) -> None:
    server.script(_answer(_line(content="half"), end="hang"))
    events = cast("AsyncGenerator[ModelEvent]", model.stream(_request()))
    assert await anext(events) == TextDelta(text="half")
    await events.aclose()
    await asyncio.wait_for(server.disconnected.wait(), 60)


def test_unknown_settings_are_refused(model: Any) -> None:
    model.check(ModelConfig(name="own:m", options={"base_url": "http://localhost"}))
    for setting in ({"effort": "low"}, {"temperature": 0.0}, {"stop_sequences": ("x",)}, {"thinking": "off"}):
        with pytest.raises(DefinitionError, match=next(iter(setting))):
            model.check(ModelConfig.model_validate({"name": "own:m", **setting}))
    with pytest.raises(DefinitionError, match="'wings'"):
        model.check(ModelConfig(name="own:m", options={"wings": 2}))


def test_page_shows_the_example() -> None:
    page = (ROOT / "docs" / "providers.md").read_text().partition("## The interface")[2]
    code = EXAMPLE.read_text()
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown
    assert all(block in code for block in shown)
    assert max(len(block.splitlines()) for block in shown) <= 40


def test_interface_is_lazy() -> None:
    """Temporal's sandbox imports parent packages; a provider's library there would stop the worker."""
    heavy = ("temporalio", "anthropic", "boto3", "openai", "httpx2")
    code = (
        f"import sys, perdure.providers as p; p.ReplyDraft; print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_example_is_an_agent_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    definitions = load_file(str(EXAMPLE))
    sys.modules.pop("http_provider")
    assert list(definitions.models) == ["own"]
    assert [agent.name for agent in definitions.agents] == ["clerk"]


def test_page_names_every_export() -> None:
    page = (ROOT / "docs" / "providers.md").read_text()
    for name in perdure.providers.__all__:
        assert getattr(perdure.providers, name) is not None
        assert f"`{name}" in page, name
    assert dir(perdure.providers) == sorted(perdure.providers.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        perdure.providers.Modle  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue, reportUnusedExpression]
