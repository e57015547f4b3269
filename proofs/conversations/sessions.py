"""Sessions made of tasks: what people say, which calls answer it, and which later task needs an earlier task's key.

A task's key stands in the result of its first call, among the result's own text, and nowhere else. The last message of
each later task asks to settle it with the key of an earlier one. How far back that is follows a fixed row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from proofs.chaos.catalogue import GoldCall, Task

DISTANCES = (1, 2, 3, 5, 8, 13)
"""Tasks between a task and the one whose key it needs, taken in turn."""


@dataclass(frozen=True)
class Part:
    """Message of the user, with the steps of calls that answer it."""

    session: int
    task: int
    """Number of the task in the session, from 1."""
    number: int
    text: str
    groups: tuple[tuple[GoldCall, ...], ...]
    needs: int = 0
    """Task whose key settles this one; 0: this message settles nothing."""

    @property
    def tag(self) -> str:
        """Name of the message, with which its text begins."""
        return f"s{self.session}.t{self.task}.m{self.number}"


@dataclass(frozen=True)
class LongSession:
    """Session of several tasks."""

    number: int
    parts: tuple[Part, ...]

    @property
    def settled(self) -> int:
        """Number of tasks that need an earlier key."""
        return sum(bool(part.needs) for part in self.parts)

    def part(self, tag: str) -> Part:
        """Return the message of that name."""
        return next(part for part in self.parts if part.tag == tag)


def make_sessions(tasks: Sequence[Task], length: int, count: int) -> list[LongSession]:
    """Return so many sessions of that many tasks each, in the order of the set."""
    return [
        _make_session(number, tasks[number * length : (number + 1) * length])
        for number in range(min(count, len(tasks) // length))
    ]


def key_of(session: int, task: int) -> str:
    """Return the key of a task: the same in every run, and nothing that could be guessed."""
    return "K-" + hashlib.sha256(f"{session} {task}".encode()).hexdigest()[:8]


def key_line(session: int, task: int) -> str:
    """Return the line by which a result tells its task's key."""
    return f"key of case {task}: {key_of(session, task)}"


def _make_session(number: int, tasks: Sequence[Task]) -> LongSession:
    parts: list[Part] = []
    for position, task in enumerate(tasks, 1):
        back = DISTANCES[position % len(DISTANCES)]
        needs = max(position - back, 1) if position > 1 else 0
        for turn_number, turn in enumerate(task.turns, 1):
            part = Part(number, position, turn_number, turn.question, turn.groups)
            text = f"[{part.tag}] {turn.question}"
            last = turn_number == len(task.turns)
            if last and needs:
                text += f"\nThen settle case {position} with the key of case {needs}."
            parts.append(Part(number, position, turn_number, text, turn.groups, needs if last else 0))
    return LongSession(number, tuple(parts))
