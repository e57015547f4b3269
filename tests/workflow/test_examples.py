"""The short examples: each under 60 lines, and does what it says."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perdure import Agent, connect
from perdure.settings import Settings
from perdure.testing import ScriptedModel, says
from perdure.wire.results import Approval
from tests.conftest import Serve, until_status
from tests.serving import running
from tests.unit.providers.server import Answer, stub_server

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ("guarded_desk", "research_swarm", "review_graph", "support_session")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports an example as a person does who stands beside it, without a key."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    known = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in (*SHORT, "http_provider", "scripted", "sqlite_blobs"):
        if name not in known:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("name", SHORT)
def test_short_examples_have_60_lines(name: str) -> None:
    """Each short example has fewer than 60 lines."""
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60


async def test_research_swarm_answers_its_question(serve: Serve, example: Any) -> None:
    """A research swarm hands a question round until it is answered."""
    research = example("research_swarm")
    async with serve(research.research, models=research.models) as client:
        result = await client.run("research", "What makes the tides, and when are they highest?")
    assert [node.node for node in result.nodes] == ["finder", "sceptic", "finder", "sceptic", "writer"]
    assert result.shared_context["finder"]["springs"] == "Full and new moon."
    assert result.output.startswith("The Moon makes the tides")
    assert result.stop_reason == "end_turn"
    assert sum(node.usage.total_tokens for node in result.nodes) == result.usage.total_tokens


async def test_review_graph_repeats_until_majority(serve: Serve, example: Any) -> None:
    """A review graph repeats until two of three agree."""
    review = example("review_graph")
    async with serve(review.review, models=review.models) as client:
        result = await client.run("review", "a note on tides")
    keys = [node.key for node in result.nodes]
    assert result.output == "published: Draft 2"
    assert keys.count("votes-1") == keys.count("votes-2") == 1, "the third vote of a round is late"
    assert keys.count("publish-1") == 1
    assert "votes-3" not in keys


async def test_support_session_resolves_refund(
    serve: Serve, example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A support session has a refund approved in its second turn."""
    support = example("support_session")
    async with serve(support.support, models=support.models) as client:
        await support.talk(client)
        session = await client.session("ticket-79")
        status = await session.status()
        transcript = await session.transcript()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "I looked: delivered on Monday, 49.00 dollars."
    assert said[1] == "I looked: 4900 cents are on their way back."
    assert (status.status, status.turn) == ("idle", 2)
    assert sum(message.role == "user" for message in transcript) == 2


async def test_guarded_desk_asks_masks_and_refuses(
    serve: Serve, example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A guarded desk masks card numbers, ends spam at once, and has a large refund decided by a person."""
    desk = example("guarded_desk")
    async with serve(desk.desk, models=desk.models) as client:
        await desk.main(client)
        run = await client.start("desk", "I want my money back.")
        await until_status(client, run.id, "waiting_approval")
        [approval] = (await run.status()).waiting
        assert isinstance(approval, Approval)
        assert approval.reason == "more than 10 dollars"
        await run.resolve_approval(approval.call_id, allow=True, by="lee")
        assert (await run.result()).output == "I looked: 4900 cents are on their way back."
    masked, spam = capsys.readouterr().out.splitlines()
    assert masked == "I looked: delivered on Monday, paid with **** 1111."
    assert spam == "We do not answer this."


async def test_http_provider_answers_run(serve: Serve, example: Any) -> None:
    counts = {"done_reason": "stop", "prompt_eval_count": 11, "eval_count": 7}
    messages = [
        {"message": {"content": "Aisle "}, "done": False},
        {"message": {"content": "4."}, "done": True, **counts},
    ]
    lines = tuple(json.dumps(message).encode() + b"\n" for message in messages)
    own = example("http_provider")
    async with stub_server() as server:
        server.script(Answer(status=503, headers={"retry-after": "0"}), Answer(chunks=lines))
        model = own.OllamaModel(server.url)
        async with serve(own.clerk, models={"own": model}) as client:
            result = await client.run("clerk", "Where is the tea?")
        await model.aclose()
    assert result.output == "Aisle 4."
    assert (result.usage.input_tokens, result.usage.output_tokens) == (11, 7)
    assert len(server.requests) == 2, "Temporal tried the refused call again"


async def test_own_store_gets_large_payloads(settings: Settings, example: Any, tmp_path: Path) -> None:
    store = example("sqlite_blobs").SqliteBlobs(tmp_path / "blobs.db")
    clerk = Agent(name="clerk", model="scripted:clerk")
    long = "tea " * 400_000  # more than any client reads from history
    models = {"scripted": ScriptedModel([says(long)], chunk=len(long))}
    async with running([clerk], models=models, address=settings.address, settings=settings, blobs=store):
        client = await connect(settings=settings, blobs=store)
        result = await client.run("clerk", long, id=f"blobs-{settings.task_queue}")
        elsewhere = await connect(settings=settings)
        with pytest.raises(KeyError, match="no blob"):
            await elsewhere.get(f"blobs-{settings.task_queue}").result()
    assert result.output == long
    assert not list(settings.home.rglob("blobs/*/*"))
