"""Fixtures: adapters that talk to the stub server by their real libraries."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from perdure.activities.providers._openai_servers import SERVERS
from perdure.errors import ModelError
from perdure.model import ModelEvent, ModelRequest, Reply

from .dialects import DIALECTS, Closable, Dialect, StubReply
from .more_dialects import GEMINI, MORE_DIALECTS, RESPONSES
from .server import Answer, Stub, stub_server


@dataclass(frozen=True)
class Wire:
    """Adapter, its dialect, and the server at the other end."""

    dialect: Dialect
    model: Closable
    server: Stub

    def request(self, config: dict[str, Any] | None = None, **fields: Any) -> ModelRequest:
        return ModelRequest(config=self.dialect.config(**(config or {})), **fields)

    def will_say(self, reply: StubReply) -> None:
        self.server.script(self.dialect.answer(reply))

    async def ask(
        self, *answers: Answer | StubReply, request: ModelRequest | None = None
    ) -> list[ModelEvent]:
        """Return all events of a call."""
        for answer in answers:
            self.server.script(self.dialect.answer(answer) if isinstance(answer, StubReply) else answer)
        return [event async for event in self.model.stream(request or self.request())]

    async def reply(self, *answers: Answer | StubReply, request: ModelRequest | None = None) -> Reply:
        last = (await self.ask(*answers, request=request))[-1]
        assert isinstance(last, Reply)
        return last

    async def error(self, *answers: Answer | StubReply, request: ModelRequest | None = None) -> ModelError:
        with pytest.raises(ModelError) as caught:
            await self.ask(*answers, request=request)
        return caught.value

    async def body_of(self, request: ModelRequest) -> dict[str, Any]:
        """Return the JSON that the server gets for a request."""
        await self.reply(StubReply(text=("ok",)), request=request)
        return self.server.requests[-1].body


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep keys and addresses of the machine out of a test."""
    for name in (
        *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS"),
        *("OPENAI_API_KEY", "OPENAI_BASE_URL", "OLLAMA_HOST", "VLLM_BASE_URL", "VLLM_API_KEY"),
        *("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "AZURE_OPENAI_ENDPOINT"),
        *("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        *(f"{name.upper()}_API_KEY" for name in SERVERS),
        *(f"{name.upper()}_BASE_URL" for name in SERVERS),
        *("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_BEARER_TOKEN_BEDROCK"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")


@pytest.fixture
async def server() -> AsyncIterator[Stub]:
    async with stub_server() as stub:
        yield stub


async def _wire(dialect: Dialect, server: Stub) -> AsyncIterator[Wire]:
    model = dialect.make(server.url)
    yield Wire(dialect, model, server)
    await model.aclose()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `wire` each adapter in turn; those with requests of their own shape only where no request is looked into."""
    if "wire" in metafunc.fixturenames:
        is_for_all = metafunc.definition.path.stem in ("test_contract", "test_garbled", "test_streams")
        dialects = (*DIALECTS, *MORE_DIALECTS) if is_for_all else DIALECTS
        metafunc.parametrize("wire", dialects, ids=[dialect.name for dialect in dialects], indirect=True)


@pytest.fixture
async def wire(request: pytest.FixtureRequest, server: Stub) -> AsyncIterator[Wire]:
    async for each in _wire(request.param, server):
        yield each


@pytest.fixture
async def anthropic_wire(server: Stub) -> AsyncIterator[Wire]:
    async for each in _wire(DIALECTS[0], server):
        yield each


@pytest.fixture
async def bedrock_wire(server: Stub) -> AsyncIterator[Wire]:
    async for each in _wire(DIALECTS[1], server):
        yield each


@pytest.fixture
async def openai_wire(server: Stub) -> AsyncIterator[Wire]:
    async for each in _wire(DIALECTS[2], server):
        yield each


@pytest.fixture
async def gemini_wire(server: Stub) -> AsyncIterator[Wire]:
    async for each in _wire(GEMINI, server):
        yield each


@pytest.fixture
async def responses_wire(server: Stub) -> AsyncIterator[Wire]:
    async for each in _wire(RESPONSES, server):
        yield each


@pytest.fixture(params=DIALECTS[:2], ids=lambda dialect: dialect.name)
async def claude_wire(request: pytest.FixtureRequest, server: Stub) -> AsyncIterator[Wire]:
    """Both ways to Claude: they know signed thinking and caching marks."""
    async for each in _wire(request.param, server):
        yield each
