"""The tasks as JSON: questions, gold calls with their results, and the tools' schemas.

Made from the installed set by `tools/prepare.py`, read by everything else. It holds the set's own words,
so it is kept beside the environment it was made in, and never committed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

PLAIN: Final[dict[str, Any]] = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "object": dict[str, Any],
}
"""What the schemas' type names are in Python, for subjects whose tools are made from type hints."""


@dataclass(frozen=True)
class GoldCall:
    """One call of the gold answer, and what it gives."""

    name: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True)
class Turn:
    """One message of the user."""

    question: str
    groups: tuple[tuple[GoldCall, ...], ...]
    """The gold calls in order. Those of one group give the same in every order: all orders were tried."""


@dataclass(frozen=True)
class Task:
    """One conversation."""

    id: str
    classes: tuple[str, ...]
    """The APIs it works on."""
    turns: tuple[Turn, ...]

    @property
    def calls(self) -> int:
        """How many gold calls it has."""
        return sum(len(group) for turn in self.turns for group in turn.groups)

    def message(self, turn: int) -> str:
        """What the user says. The first message names the task, by which the scripted model knows it."""
        question = self.turns[turn].question
        return f"[{self.id}] {question}" if turn == 0 else question


@dataclass(frozen=True)
class Catalogue:
    """All tasks, and the tools of each API."""

    tasks: tuple[Task, ...]
    tools: Mapping[str, tuple[dict[str, Any], ...]]
    """By class: `name`, `description` and `schema` of each tool."""
    versions: Mapping[str, str]

    @cached_property
    def by_id(self) -> dict[str, Task]:
        """The tasks by their ids."""
        return {task.id: task for task in self.tasks}

    @cached_property
    def combinations(self) -> tuple[tuple[str, ...], ...]:
        """The sets of APIs that tasks work on: one agent is made for each."""
        return tuple(sorted({task.classes for task in self.tasks}))

    def tools_of(self, classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """The tools of an agent for these APIs."""
        return [tool for name in classes for tool in self.tools[name]]


def agent_name(classes: tuple[str, ...]) -> str:
    """What the agent for these APIs is called."""
    return "_".join(classes)


def load(path: Path) -> Catalogue:
    """The catalogue that `tools/prepare.py` wrote."""
    plain = json.loads(path.read_text())
    return Catalogue(
        tasks=tuple(_task(task) for task in plain["tasks"]),
        tools={name: tuple(tools) for name, tools in plain["tools"].items()},
        versions=plain["versions"],
    )


def _task(plain: dict[str, Any]) -> Task:
    turns = tuple(
        Turn(turn["question"], tuple(tuple(GoldCall(**call) for call in group) for group in turn["groups"]))
        for turn in plain["turns"]
    )
    return Task(id=plain["id"], classes=tuple(plain["classes"]), turns=turns)
