"""The support desk example: what its shop guarantees, and that its script answers from the facts."""

import inspect
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from perdure import Agent, Client, Run, ToolContext
from perdure.activities.content.results import text_of
from perdure.messages import Message, Text, ToolResult
from perdure.model import ModelConfig, ModelRequest
from perdure.testing import Line, ScriptedModel, running
from perdure.tools import Tool
from perdure.wire.results import Approval
from perdure.workers.load import Definitions, load_file

AGENT_FILE = Path(__file__).parents[2] / "examples" / "support_desk" / "agent.py"
ORDER, TOTAL_CENTS = "W6081887", 26_750


@pytest.fixture(scope="module")
def loaded() -> Iterator[Definitions]:
    """The agent file, as a worker loads it."""
    neighbours = ("agent", "scripted", "seed", "shop")
    with pytest.MonkeyPatch.context() as patch:
        for name in neighbours:  # the other examples have a `scripted` too
            patch.delitem(sys.modules, name, raising=False)
        patch.delenv("ANTHROPIC_API_KEY", raising=False)
        patch.setenv("SUPPORT_DESK_PACE", "0")
        patch.setattr(sys, "path", [*sys.path])
        yield load_file(str(AGENT_FILE))
        for name in neighbours:
            sys.modules.pop(name, None)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "shop.db"
    monkeypatch.setenv("SUPPORT_DESK_DB", str(path))
    return path


@pytest.fixture
def support(loaded: Definitions, database: Path) -> Agent:
    [agent] = loaded.agents
    return cast("Agent[Any]", agent)


@pytest.fixture
async def client(loaded: Definitions, database: Path) -> AsyncIterator[Client]:
    script = cast("ScriptedModel", loaded.models["scripted"]).script
    async with running(loaded.agents, models={"scripted": ScriptedModel(script)}) as client:
        yield client


def rows(database: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(database)) as db:
        return db.execute(query).fetchall()


def ledger(database: Path) -> list[Any]:
    return rows(database, "SELECT tool, begun, changes FROM ledger ORDER BY rowid")


def called_with(key: str, attempt: int = 1) -> ToolContext:
    return ToolContext(
        run_id="run", call_id="call-1-1", idempotency_key=key, attempt=attempt, deadline=datetime.now(UTC)
    )


def tool_of(agent: Agent, name: str) -> Tool:
    return next(tool for tool in agent.tools if isinstance(tool, Tool) and tool.name == name)


# -- the shop


def test_repeated_refund_is_recognised(support: Agent, database: Path) -> None:
    """A refund that is repeated with its key is recognised and not made again."""
    refund_order = tool_of(support, "refund_order")
    first = refund_order(ORDER, "broken", called_with("one"), 2_750)
    second = refund_order(ORDER, "broken", called_with("one", attempt=2), 2_750)
    assert (first.amount_cents, first.already_made) == (2_750, False)
    assert (second.amount_cents, second.already_made) == (2_750, True)
    assert rows(database, "SELECT order_id, amount_cents FROM refunds") == [(ORDER, 2_750)]
    assert ledger(database) == [("refund_order", 2, 1)]


def test_concurrent_key_refunds_once(support: Agent, database: Path) -> None:
    """A key that many threads use at once refunds once."""
    refund_order = tool_of(support, "refund_order")
    with ThreadPoolExecutor(8) as threads:
        tried = [threads.submit(refund_order, ORDER, "broken", called_with("one")) for _ in range(8)]
    made = [attempt.result() for attempt in tried]
    assert [refund.already_made for refund in made].count(False) == 1
    assert rows(database, "SELECT amount_cents FROM refunds") == [(TOTAL_CENTS,)]
    assert ledger(database) == [("refund_order", 8, 1)]


def test_refunds_never_exceed_total(support: Agent, database: Path) -> None:
    """Refunds of different calls never exceed the order's total."""
    refund_order = tool_of(support, "refund_order")
    refund_order(ORDER, "broken", called_with("one"), 20_000)
    with pytest.raises(ValueError, match="6750 cents are left"):
        refund_order(ORDER, "broken", called_with("two"), 20_000)
    assert refund_order(ORDER, "the rest", called_with("three")).amount_cents == 6_750
    assert rows(database, "SELECT SUM(amount_cents) FROM refunds") == [(TOTAL_CENTS,)]
    assert ledger(database) == [("refund_order", 1, 1), ("refund_order", 1, 0), ("refund_order", 1, 1)]


def test_repeated_note_is_added_once(support: Agent, database: Path) -> None:
    add_note = tool_of(support, "add_note")
    said = [add_note(ORDER, "ring twice", called_with("one")) for _ in range(2)]
    assert said == ["noted", "noted already, by an earlier attempt"]
    assert rows(database, "SELECT text FROM notes") == [("ring twice",)]


def test_shop_copies_are_equal(support: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps: list[list[str]] = []
    for name in ("one.db", "two.db"):
        monkeypatch.setenv("SUPPORT_DESK_DB", str(tmp_path / name))
        tool_of(support, "order_details")("w2378156")
        with closing(sqlite3.connect(tmp_path / name)) as db:
            dumps.append(list(db.iterdump()))
    assert dumps[0] == dumps[1]
    assert rows(tmp_path / "one.db", "SELECT COUNT(*) FROM orders") == [(50,)]


# -- the script


async def converse(loaded: Definitions, prompt: str) -> str:
    """Play the script against the tools themselves, without a server."""
    script = cast("Any", loaded.models["scripted"]).script
    messages = [Message.user(prompt)]
    for _ in range(8):
        request = ModelRequest(config=ModelConfig(name="scripted:x"), messages=tuple(messages))
        line: Line = script(request)
        if not line.calls:
            return line.text
        messages.append(Message(role="assistant", parts=list(line.calls)))
        results = [
            await result_of(loaded, call.name, call.arguments, key=f"{len(messages)}-{number}")
            for number, call in enumerate(line.calls)
        ]
        messages.append(Message(role="tool", parts=list(results)))
    raise AssertionError(f"the script does not come to an end: {messages}")


async def result_of(loaded: Definitions, name: str, arguments: dict[str, Any], *, key: str) -> ToolResult:
    [agent] = loaded.agents
    tool = tool_of(cast("Agent[Any]", agent), name)
    bound = tool.signature.bind(arguments)
    if tool.signature.context is not None:
        bound[tool.signature.context] = called_with(key)
    try:
        value = tool(**bound)
        text, is_error = text_of(await value if inspect.isawaitable(value) else value), False
    except Exception as error:
        text, is_error = f"{type(error).__name__}: {error}", True
    return ToolResult(call_id=key, name=name, content=[Text(text=text)], is_error=is_error)


async def test_script_knows_every_order(loaded: Definitions, database: Path, support: Agent) -> None:
    """The script answers about every order from the database."""
    tool_of(support, "order_details")(ORDER)
    orders = rows(database, "SELECT id, status, city FROM orders JOIN customers USING (email)")
    assert len(orders) == 50
    for order_id, status, city in orders:
        said = await converse(loaded, f"Where is order {order_id.lower()}?")
        assert said.startswith("(scripted model)")
        assert f"Order {order_id}" in said
        assert f"is {status}." in said
        assert (f"depot in {city}" in said) == (status == "shipped")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Where is W9999999?", "I am sorry, there is no order 'W9999999'. Please check the number."),
        ("Refund W9999999, please.", "I am sorry, there is no order 'W9999999'. Please check the number."),
        ("Where is my parcel? nobody@example.com", "I find no orders under nobody@example.com."),
        ("Good morning!", "Please tell me an order number"),
        ("Refund W6081887, please.", "$267.50 are on their way back to you for W6081887."),
        ("Refund $1000 on W6081887.", "No refund was made: 100000 cents cannot be refunded"),
        ("A note on W6081887: ring twice, and thanks.", "On your order it says now: ring twice."),
    ],
)
async def test_script_repeats_tool_answers(
    loaded: Definitions, database: Path, prompt: str, expected: str
) -> None:
    """The script's answers are those of the tools."""
    assert expected in await converse(loaded, prompt)


# -- the agent, on a Temporal server


async def test_agent_admits_what_is_missing(client: Client) -> None:
    """The agent answers questions, and admits what it does not find."""
    found = await client.run("support", "I am ann.lindqvist@example.com. Where is my parcel?")
    assert found.stop_reason == "end_turn"
    assert "W2378156" in found.output
    assert "depot in Uppsala" in found.output
    missing = await client.run("support", "Where is W9999999?")
    assert missing.stop_reason == "end_turn"
    assert "there is no order 'W9999999'" in missing.output


async def held_refund(client: Client) -> tuple[Run, Approval]:
    run = await client.start("support", f"Please refund {ORDER}.")
    async for event in run.events():
        if event.kind == "approval_requested":
            return run, event.approval
    raise AssertionError("nobody was asked")


async def test_person_changes_refund(client: Client, database: Path) -> None:
    """A refund has the amount that a person approves."""
    refused, approval = await held_refund(client)
    assert approval.arguments["order_id"] == ORDER
    await refused.resolve_approval(approval.call_id, allow=False, by="ann", reason="too late")
    assert "No refund was made: too late." in (await refused.result()).output
    assert rows(database, "SELECT * FROM refunds") == []

    allowed, approval = await held_refund(client)
    less = {**approval.arguments, "amount_cents": 500}
    await allowed.resolve_approval(approval.call_id, allow=True, by="ann", arguments=less)
    assert "$5.00 are on their way" in (await allowed.result()).output
    assert rows(database, "SELECT amount_cents FROM refunds") == [(500,)]
