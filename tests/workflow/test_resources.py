"""Resources of a worker: entered once, handed to all code of the user's, left at the end, and in no history."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_type

import pytest

from perdure import Agent, DefinitionError, Edge, Graph, Hook, NodeInput, ToolContext, lifespan, tool
from perdure.hooks import HookedCall, HookedModelCall, HookedRun
from perdure.model import ModelRequest
from perdure.resources import Lifespan
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.workers.load import load_files
from tests.serving import running


@dataclass
class Shelf:
    """What a worker's code shares, with notes of who has used it."""

    name: str = "shelf-of-the-worker"
    used: list[str] = field(default_factory=list[str])
    is_open: bool = True


made: list[Shelf] = []


@lifespan
async def shelves() -> AsyncGenerator[Shelf]:
    shelf = Shelf()
    made.append(shelf)
    try:
        yield shelf
    finally:
        shelf.is_open = False


@tool
async def look(title: str, context: ToolContext[Shelf]) -> str:
    """Look for a book."""
    assert_type(context.resources, Shelf)
    assert context.resources.is_open
    context.resources.used.append(f"tool {title}")
    return "here"


class Watch(Hook):
    async def on_start(self, run: HookedRun) -> None:
        run.resources.used.append("on_start")

    async def before_model(self, call: HookedModelCall) -> None:
        call.run.resources.used.append("before_model")

    async def before_tool(self, call: HookedCall) -> None:
        call.run.resources.used.append("before_tool")


def count(node: NodeInput) -> str:
    node.resources.used.append("node")
    return "counted"


def script(request: ModelRequest) -> Line:
    return calls("look", title="Emma") if request.step == 1 else says("found")


CLERK = Agent(name="clerk", model="scripted:x", tools=[look], hooks=[Watch()])
ROUND = Graph(
    name="round", nodes={"clerk": CLERK, "count": count}, edges=[Edge("clerk", "count")], entry="clerk"
)
MODELS = {"scripted": ScriptedModel(script)}
EVERYWHERE = ["on_start", "before_model", "before_tool", "tool Emma", "before_model", "node"]


async def test_lifespan_is_shared_by_all_code() -> None:
    """Tools, hooks and functions of graphs get the same value, which is made once and closed at the end."""
    made.clear()
    async with running([ROUND], models=MODELS, resources=shelves) as client:
        run = await client.start("round", "Find Emma.")
        await run.result()
        await client.run("clerk", "Find Emma.")
        executions = [run.handle, client.get(f"{run.id}/~clerk-1").handle]
        histories = [str((await handle.fetch_history()).to_json()) for handle in executions]
        [shelf] = made
        states = [shelf.is_open]
    assert [*states, shelf.is_open] == [True, False]
    assert shelf.used == [*EVERYWHERE, *EVERYWHERE[:-1]]
    assert not any(shelf.name in history for history in histories)


async def test_test_gives_a_value() -> None:
    """A test gives what the code is to get, such as a fake; without one it gets None."""
    fake = Shelf(name="fake")
    async with running([CLERK], models=MODELS, resources=fake) as client:
        await client.run("clerk", "Find Emma.")
    assert fake.used == EVERYWHERE[:-1]
    got: list[Any] = []

    @tool
    async def note(context: ToolContext) -> str:
        """Note what there is."""
        got.append(context.resources)
        return "noted"

    plain = Agent(name="plain", model="scripted:x", tools=[note])
    model = ScriptedModel(lambda request: calls("note") if request.step == 1 else says("ok"))
    async with running([plain], models={"scripted": model}) as client:
        await client.run("plain", "go")
    assert got == [None]


def _shelf_of_database() -> Shelf:
    raise ConnectionError("the database is away")


async def test_failed_lifespan_is_named() -> None:
    """A worker whose resources cannot be made takes no run, and says why; what was entered before is left."""

    @lifespan
    async def closed() -> AsyncGenerator[Shelf]:
        yield _shelf_of_database()

    with pytest.raises(
        DefinitionError, match="lifespan closed: ConnectionError: the database is away"
    ) as failed:
        async with running([CLERK], models=MODELS, resources=closed):
            pass
    assert isinstance(failed.value.__cause__, ConnectionError)


@asynccontextmanager
async def shelf_by_manager() -> AsyncGenerator[Shelf]:
    yield Shelf()


async def returns_shelf() -> Shelf:
    return Shelf()


async def needs_name(name: str) -> AsyncGenerator[Shelf]:
    yield Shelf(name)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (shelf_by_manager(), "give the function that makes the context"),
        (returns_shelf, "must yield the resources once"),
        (needs_name, "it needs 'name'"),
        (Shelf(), "give the function"),
    ],
)
def test_wrong_lifespan_is_refused(wrong: Any, why: str) -> None:
    with pytest.raises(DefinitionError, match=why):
        lifespan(wrong)


def test_lifespan_takes_maker_of_managers() -> None:
    made = lifespan(shelf_by_manager)
    assert_type(made, Lifespan[Shelf])
    assert made.name == "shelf_by_manager"


FILE = """
from perdure import Agent, lifespan

@lifespan
async def resources():
    yield "of {name}"

{name} = Agent(name="{name}", model="scripted:x")
"""


def test_each_file_has_its_own(tmp_path: Path) -> None:
    """The agents of a file get the lifespan that stands in it, or that it imports."""
    for name in ("ann", "bob"):
        (tmp_path / f"file_of_{name}.py").write_text(FILE.format(name=name))
    (tmp_path / "file_of_cid.py").write_text(
        'from file_of_ann import resources\nfrom perdure import Agent\ncid = Agent(name="cid", model="scripted:x")\n'
    )
    (tmp_path / "file_of_dan.py").write_text(
        'from perdure import Agent\ndan = Agent(name="dan", model="scripted:x")\n'
    )
    files = [str(tmp_path / f"file_of_{name}.py") for name in ("ann", "bob", "cid", "dan")]
    found = load_files(files).resources.lifespans
    assert sorted(found) == ["ann", "bob", "cid"]
    assert found["ann"] is found["cid"]
    assert found["ann"] is not found["bob"]
    (tmp_path / "both.py").write_text(
        "from file_of_ann import ann, resources as first\nfrom file_of_bob import resources as second\n"
    )
    with pytest.raises(DefinitionError, match="several lifespans"):
        load_files([str(tmp_path / "both.py")])
    (tmp_path / "taken.py").write_text("from file_of_ann import ann\nfrom file_of_bob import resources\n")
    with pytest.raises(DefinitionError, match="'ann' is in two files"):
        load_files([files[0], str(tmp_path / "taken.py")])
