"""A whole run with each of the newer providers: thoughts, two calls at once, an answer, over real HTTP."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import Agent, tool
from perdure.activities.providers.bedrock import BedrockModel
from perdure.model import Model
from perdure.settings import Settings
from tests.serving import running
from tests.unit.providers.dialects import StubCall, StubReply
from tests.unit.providers.more_dialects import AZURE, GEMINI, RESPONSES, gemini_piece
from tests.unit.providers.server import Answer, Stub, stub_server
from tests.unit.providers.test_bedrock_families import whole

CALLS = tuple(
    StubCall(id=f"c{n}", name="shelf", pieces=(f'{{"item": "{item}"}}',))
    for n, item in enumerate(("tea", "rice"))
)
DONE = StubReply(text=("Aisle 4.",))
SIGNED: list[dict[str, Any]] = [
    {"functionCall": {"name": "shelf", "args": {"item": "tea"}}, "thoughtSignature": "c2ln"},
    {"functionCall": {"name": "shelf", "args": {"item": "rice"}}},
]
WHOLE_CALLS: list[dict[str, Any]] = [
    {"toolUse": {"toolUseId": call.id, "name": "shelf", "input": {"item": "tea"}}} for call in CALLS
]


@tool
def shelf(item: str) -> str:
    """Where an item is kept."""
    return f"{item}: aisle 4"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A provider, what it answers, and what the second request must hold."""

    model: str
    answers: tuple[Answer, Answer]
    holds: tuple[str, ...]

    def make(self, url: str) -> Model:
        match self.model.partition(":")[0]:
            case "gemini":
                return GEMINI.make(url)
            case "responses":
                return RESPONSES.make(url)
            case "azure":
                return AZURE.make(url)
            case _:
                return BedrockModel(region="us-east-1", endpoint_url=url)


ROWS = (
    Row(
        model="gemini:gemini-3-pro",
        answers=(
            GEMINI.unfinished(StubReply(), gemini_piece(*SIGNED), *GEMINI.close(StubReply())),
            GEMINI.answer(DONE),
        ),
        holds=("'thoughtSignature': 'c2ln'", "'output': 'tea: aisle 4'", "'output': 'rice: aisle 4'"),
    ),
    Row(
        model="responses:gpt-test-1",
        answers=(
            RESPONSES.answer(StubReply(thinking="Hm.", signature="sealed", calls=CALLS)),
            RESPONSES.answer(DONE),
        ),
        holds=("'encrypted_content': 'sealed'", "'output': 'tea: aisle 4'", "'output': 'rice: aisle 4'"),
    ),
    Row(
        model="azure:my-deployment",
        answers=(AZURE.answer(StubReply(calls=CALLS)), AZURE.answer(DONE)),
        holds=("'content': 'tea: aisle 4'", "'content': 'rice: aisle 4'"),
    ),
    Row(
        model="bedrock:meta.llama3-3-70b-instruct-v1:0",
        answers=(whole(*WHOLE_CALLS, stop="tool_use"), whole({"text": "Aisle 4."})),
        holds=("'text': 'tea: aisle 4'",),
    ),
)


async def test_newer_providers_carry_a_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are carried out, and their results go back with what came with the calls."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    async with AsyncExitStack() as stack:
        servers: list[Stub] = []
        models: dict[str, Model] = {}
        agents: list[Agent] = []
        for row in ROWS:
            name = row.model.partition(":")[0]
            server = await stack.enter_async_context(stub_server())
            server.script(*row.answers)
            servers.append(server)
            models[name] = row.make(server.url)
            agents.append(Agent(name=name, model=row.model, tools=[shelf]))
        client = await stack.enter_async_context(
            running(agents, models=models, address=settings.address, settings=settings)
        )
        results = await asyncio.gather(*(client.run(agent.name, "Where is the tea?") for agent in agents))
        for row, server, result in zip(ROWS, servers, results, strict=True):
            assert result.output == "Aisle 4.", row.model
            assert len(server.requests) == 2, row.model
            sent: Any = str(server.requests[1].body)
            assert not [text for text in row.holds if text not in sent], row.model
            assert result.usage.output_tokens == 14, row.model
        for model in models.values():
            await model.aclose()  # type: ignore[attr-defined]
