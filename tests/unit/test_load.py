"""Agent files, and what is said about those that cannot be loaded."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import Agent
from perdure.errors import DefinitionError
from perdure.wire.spec import ResolvedAgent
from perdure.workers.load import load_file, load_files, main
from perdure.workers.plugin import members_by_name
from perdure.workers.worker import check_models, served_names

Write = Callable[..., str]

HEAD = "from perdure import Agent, tool\n"
SCRIPTED = "from perdure.testing import ScriptedModel, says\n"
AGENT = HEAD + 'one = Agent(name="one", model="scripted:x")\n'


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a file into the working directory; what it imports is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def put(text: str, name: str = "desk_of_test.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    yield put
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def names(target: str) -> list[str]:
    return [agent.name for agent in load_file(target).agents]


def refusal(*targets: str) -> str:
    with pytest.raises(DefinitionError) as caught:
        load_files(targets)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_agent_is_found_once(write: Write) -> None:
    file = write(AGENT + 'two = Agent(name="two", model="scripted:x")\nboth = [one, two]\nagain = one\n')
    assert names(file) == ["one", "two"]


def test_name_after_file_selects_it(write: Write) -> None:
    file = write(AGENT + 'two = Agent(name="two", model="scripted:x")\nlist_ = (two,)\n')
    assert names(f"{file}:one") == ["one"]
    assert names(f"{file}:list_") == ["two"]
    assert refusal(f"{file}:three") == f"{file} has no 'three'"
    assert refusal(f"{file}:tool").startswith(f"{file}:tool is no Agent, Swarm, Graph or Pattern; write one")


def test_module_is_imported_from_working_directory(write: Write) -> None:
    write("", "pack_of_test/__init__.py")
    write(AGENT, "pack_of_test/agents.py")
    assert names("pack_of_test.agents") == ["one"]


def test_file_imports_its_neighbours(write: Write) -> None:
    write(HEAD + 'theirs = Agent(name="theirs", model="scripted:x")\n', "folder/neighbour_of_test.py")
    file = write("from neighbour_of_test import theirs\n" + AGENT, "folder/desk_of_test.py")
    assert names(file) == ["theirs", "one"]


def test_file_named_like_library_hides_nothing(write: Write) -> None:
    assert names(write(AGENT, "json.py")) == ["one"]
    assert sys.modules["json"] is json


def test_agent_in_two_files_is_one(write: Write) -> None:
    file = write(AGENT)
    other = write("from desk_of_test import one\n", "other_of_test.py")
    assert [agent.name for agent in load_files([file, other]).agents] == ["one"]


def test_agents_with_same_name_are_refused(write: Write) -> None:
    file, other = write(AGENT), write(AGENT, "other_of_test.py")
    assert (
        refusal(file, other)
        == "two different agents, swarms, graphs or patterns are called 'one'; rename one"
    )


def test_providers_of_file_are_loaded(write: Write) -> None:
    file = write(
        AGENT
        + 'from perdure.testing import ScriptedModel, says\nmodels = {"mine": ScriptedModel([says("hi")])}\n'
    )
    assert list(load_file(file).models) == ["mine"]


def test_unrelated_models_variable_is_ignored(write: Write) -> None:
    assert load_file(write(AGENT + 'models = {"small": "anthropic:x"}\n')).models == {}


def test_invalid_provider_is_refused(write: Write) -> None:
    file = write(AGENT + SCRIPTED + 'models = {"a": ScriptedModel([says("hi")]), "b": 3}\n')
    assert "models['b'] is no Model" in refusal(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nosuchthing\n", "1: does not import: ModuleNotFoundError: No module named 'nosuchthing'"),
        ("from perdure import nothing\n", "1: does not import: ImportError: cannot import name 'nothing'"),
        ("x = (\n", "1: SyntaxError: '(' was never closed"),
        ("import json\n\njson.loads('{')\n", "3: does not import: JSONDecodeError: Expecting property name"),
        ("def f():\n    raise SystemExit(3)\nf()\n", "2: does not import: SystemExit: 3"),
        (
            HEAD + "@tool\ndef f(x: int) -> str:\n    return ''\n",
            "2: tool 'f' has no docstring: the model chooses tools by their description",
        ),
        (HEAD + "@tool\ndef f(x) -> str:\n    'It.'\n", "2: tool 'f': parameter 'x' has no type hint"),
        (
            HEAD + "class C: pass\n@tool\ndef f(x: C) -> str:\n    'It.'\n",
            "3: tool 'f': parameter 'x' has a type no JSON value can fill",
        ),
        (
            HEAD + "@tool\ndef f(*x: int) -> str:\n    'It.'\n",
            "2: tool 'f': parameter 'x' is variadic positional; a model can only fill parameters that",
        ),
        (
            HEAD
            + "@tool\ndef f(x: int) -> str:\n    'It.'\na = Agent(name='a', model='m:x',\n  tools=[f, f])\n",
            "5: agent 'a': two tools are called 'f'; rename one",
        ),
        (
            HEAD + "a = Agent(name='a', model='gpt')\n",
            "2: agent 'a': model 'gpt': write it as \"provider:model\"",
        ),
    ],
)
def test_error_names_line_of_file(write: Write, text: str, said: str) -> None:
    assert refusal(write(text)).startswith(f"desk_of_test.py:{said}")


def test_error_in_neighbour_names_its_line(write: Write) -> None:
    write("\n1 / 0\n", "neighbour_of_test.py")
    told = refusal(write("import neighbour_of_test\n"))
    assert told == "neighbour_of_test.py:2: does not import: ZeroDivisionError: division by zero"


def test_corrected_file_can_be_loaded(write: Write) -> None:
    refusal(write("import nosuchthing\n"))
    assert names(write(AGENT)) == ["one"]


def test_file_without_agent_is_refused(write: Write) -> None:
    assert refusal(write("x = 1\n")) == (
        "desk_of_test.py defines no Agent, Swarm, Graph or Pattern; write one at its top level, such as "
        'support = Agent(name="support", model="anthropic:claude-sonnet-5-5")'
    )


def test_missing_file_is_explained(write: Write) -> None:
    write("", "folder/x.py")
    assert refusal("nosuch.py") == (
        "nosuch.py: there is no such file; give the Python file that defines the agent"
    )
    assert "it is a folder" in refusal("./folder")
    assert "No module named 'nosuch_of_test'" in refusal("nosuch_of_test")
    assert "names no file" in refusal("")


def test_command_lists_definitions(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write(AGENT), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["name"], told["model"], told["tools"]) == ("one", "scripted:x", [])
    assert main(["nosuch.py"]) == 2
    assert capsys.readouterr().err.startswith("error: nosuch.py")


TEAM = """
from perdure import Agent, Graph, Swarm
from perdure.tools import as_tool

print("imported")
members = {name: Agent(name=name, model="scripted:x", description="d") for name in ("finder", "writer")}
crew = Swarm(name="crew", agents=list(members.values()))
nodes = {"crew": crew, "done": lambda given: given.task}
review = Graph(name="review", nodes=nodes, edges=[("crew", "done")], entry="crew", description="d")
boss = Agent(name="boss", model="scripted:x", tools=[as_tool(review)])
"""


def test_swarms_and_graphs_are_found(write: Write) -> None:
    assert names(write(TEAM)) == ["crew", "review", "boss"]


def test_listing_has_kind_and_members(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write(TEAM), "--json"]) == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out.splitlines()[-1])}
    assert [(one["kind"], one["members"]) for one in told.values()] == [
        ("swarm", ["finder", "writer"]),
        ("graph", ["crew"]),
        ("agent", ["review"]),
    ]
    assert (told["crew"]["model"], told["crew"]["tools"]) == ("", [])
    assert len({one["spec_hash"] for one in told.values()}) == 3


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("boss", {"review", "crew", "finder", "writer"}),
        ("crew", {"finder", "writer"}),
        ("finder", set[str]()),
    ],
)
def test_spec_of_member_is_printed_last(
    write: Write, capsys: pytest.CaptureFixture[str], name: str, members: set[str]
) -> None:
    assert main([write(TEAM), "--spec", name]) == 0
    resolved = ResolvedAgent.model_validate_json(capsys.readouterr().out.splitlines()[-1])
    assert resolved.spec.name == name
    assert {one.name for one in resolved.members} == members


def test_unknown_spec_lists_known_names(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write(TEAM), "--spec", "nobody"]) == 2
    assert capsys.readouterr().err == (
        "error: nothing is called 'nobody' here; there are: crew, review, boss, finder, writer\n"
    )


def test_members_with_same_name_are_refused(write: Write) -> None:
    file = write(TEAM)
    other = write(HEAD + 'finder = Agent(name="finder", model="scripted:x")\n', "other_of_test.py")
    assert refusal(file, other) == (
        "two different agents, swarms, graphs or patterns are called 'finder'; rename one"
    )


def test_names_of_roots_come_first(write: Write) -> None:
    members = load_file(write(TEAM)).agents
    assert served_names(members) == ("boss", "crew", "review", "finder", "writer")


def test_models_of_all_members_are_checked(write: Write) -> None:
    members = members_by_name(load_file(write(TEAM)).agents)
    agents: list[Agent[Any]] = [one for one in members.values() if isinstance(one, Agent)]
    with pytest.raises(DefinitionError, match="no provider 'scripted'"):
        check_models([agent for agent in agents if agent.name == "writer"], {})
