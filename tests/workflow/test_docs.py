"""The documentation's own code runs, and its tables are the code's."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perdure import Agent
from perdure.errors import as_markdown
from perdure.members import resolve_member
from perdure.settings import Settings
from perdure.testing import ScriptedModel, calls, says
from tests.conftest import Serve, until_status

ROOT = Path(__file__).parents[2]


def blocks(name: str) -> list[str]:
    """Return the Python blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def run_blocks(name: str) -> dict[str, Any]:
    """Execute a page's blocks one after the other, as a reader would."""
    space: dict[str, Any] = {"__name__": "page"}
    for block in blocks(name):
        exec(compile(block, name, "exec"), space)
    return space


def test_first_agent_fits_in_15_lines() -> None:
    first = blocks("README.md")[0]
    lines = [line for line in first.splitlines() if line.strip()]
    assert len(lines) <= 15
    space: dict[str, Any] = {}
    exec(compile(first, "support.py", "exec"), space)
    assert isinstance(space["support"], Agent)


async def test_readme_code_runs(serve: Serve, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("support")
    exec(compile(blocks("README.md")[0], "support.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "support", module)
    space = run_blocks("README.md")
    await space["test_support"]()
    scripted = Agent(name="support", model="scripted:x", tools=list(space["support"].tools))
    script = [calls("order_status", order_id="W2378156"), says("This morning.")]
    async with serve(scripted, models={"scripted": ScriptedModel(script)}) as client:
        for name in ("address", "task_queue", "home"):
            monkeypatch.setenv(f"PERDURE_{name.upper()}", str(getattr(settings, name)))
        await space["main"]()
        assert (await client.get("ticket-77").result()).output == "This morning."


async def test_members_of_teams_page_are_served(serve: Serve) -> None:
    space = run_blocks("docs/teams.md")
    members = [space[name] for name in ("editor", "research", "review", "polish")]
    for member in members:
        assert resolve_member(member).spec.name == member.name
    async with serve(*members) as client:
        assert client.task_queue


async def test_pattern_of_teams_page_runs(serve: Serve) -> None:
    """The scheduler of the page runs: in the sandbox, and with two laps."""
    space = run_blocks("docs/teams.md")
    editors = [Agent(name=name, model=f"scripted:{name}") for name in ("grammar", "tone")]
    polish = replace(space["polish"], editors=editors)
    models = {
        "scripted": ScriptedModel(lambda asked: says(asked.messages[0].text[-1] + asked.config.model[0]))
    }
    async with serve(polish, models=models) as client:
        result = await client.run("polish", "x")
    assert [node.key for node in result.nodes] == ["grammar-1", "tone-2", "grammar-3", "tone-4"]
    assert result.output == "gt"


async def test_guide_code_runs(serve: Serve) -> None:
    space = run_blocks("docs/guide.md")
    assert space["buyer"].output_schema() is not None
    script = [calls("refund", order_id="W1", cents=5), says("done")]
    async with serve(space["clerk"], models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("clerk", "refund", id="guide")
        await until_status(client, run.id, "waiting_approval")
        while (await run.status()).waiting:
            await space["allow_everything"](client)
        assert (await run.result()).output == "done"
    async with serve(
        space["clerk"], models={"scripted": ScriptedModel([says("four"), says("none")])}
    ) as client:
        assert (await space["talk"](client)).text == "four"
        assert (await client.get("ticket-78").status()).turn == 2
    await space["test_fallbacks_answer"]()


def test_error_table_matches_code() -> None:
    assert (ROOT / "docs/errors.md").read_text() == as_markdown()
    assert "(errors.md)" in (ROOT / "docs/guide.md").read_text()
