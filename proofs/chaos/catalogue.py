"""Tasks as JSON: questions, gold calls with their results, and the tools' schemas.

Made from the installed set by `tools/prepare.py`, read by everything else. It holds text of the set,
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
"""Python types for the schemas' type names, for subjects whose tools are made from type hints."""


@dataclass(frozen=True)
class GoldCall:
    """Call of the gold answer, with its result."""

    name: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True)
class Turn:
    """Message of the user, with the gold calls that answer it."""

    question: str
    groups: tuple[tuple[GoldCall, ...], ...]
    """Gold calls in order. The calls of a group commute: every order was tried and gave the same."""


@dataclass(frozen=True)
class Task:
    """Conversation with a user."""

    id: str
    classes: tuple[str, ...]
    """APIs that the conversation uses."""
    turns: tuple[Turn, ...]

    @property
    def calls(self) -> int:
        """Number of gold calls."""
        return sum(len(group) for turn in self.turns for group in turn.groups)

    def message(self, turn: int) -> str:
        """Return the user's message; the first names the task, so that the scripted model recognizes it."""
        question = self.turns[turn].question
        return f"[{self.id}] {question}" if turn == 0 else question


@dataclass(frozen=True)
class Catalogue:
    """Tasks of the set, and the tools of each API."""

    tasks: tuple[Task, ...]
    tools: Mapping[str, tuple[dict[str, Any], ...]]
    """`name`, `description` and `schema` of each tool, by the class that has it."""
    versions: Mapping[str, str]

    @cached_property
    def by_id(self) -> dict[str, Task]:
        """Tasks by their ids."""
        return {task.id: task for task in self.tasks}

    @cached_property
    def combinations(self) -> tuple[tuple[str, ...], ...]:
        """Sets of APIs that tasks use; each gets an agent."""
        return tuple(sorted({task.classes for task in self.tasks}))

    def tools_of(self, classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return the tools of an agent for these APIs."""
        return [tool for name in classes for tool in self.tools[name]]


def agent_name(classes: tuple[str, ...]) -> str:
    """Return the name of the agent for these APIs."""
    return "_".join(classes)


def load(path: Path) -> Catalogue:
    """Read the catalogue that `tools/prepare.py` wrote."""
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
