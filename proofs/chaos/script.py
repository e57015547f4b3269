"""The scripted model: from the conversation alone it knows the task, the turn, and which gold call is next.

It keeps no state, so an answer that was lost is given again, word by word, by whoever is asked next. As a
real model would, it makes a call again whose result was not the tool's answer but the word of something on
the way.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .catalogue import Catalogue, GoldCall, Task, Turn

_NAMED = re.compile(r"\[(\w+)\] ")
_TOGETHER = 0.5
"""Share of groups whose calls are asked for in one step; the others one a step."""
_WAS_DONE = "has done its work"
"""By these words Perdure says that only a call's result is lost: no model makes such a call again."""


@dataclass(frozen=True)
class Say:
    """What the model says: calls, or the words that end the turn."""

    task: str
    turn: int
    calls: tuple[GoldCall, ...] = ()
    text: str = ""
    errors: int = 0
    """Results of this turn that were no answers of a tool."""
    surprises: int = 0
    """Answers of tools in this turn that are not those of the gold replay."""


def closing(task: str, turn: int) -> str:
    """The words that end a turn."""
    return f"Turn {turn + 1} of {task} is done."


def answer(messages: Sequence[Mapping[str, Any]], catalogue: Catalogue, seed: int) -> Say:
    """What the model says to these messages, which are those of a chat completions request.

    Raises:
        ValueError: they do not begin with a message that names a task.

    """
    asked = [n for n, message in enumerate(messages) if message["role"] == "user"]
    named = _NAMED.match(_text(messages[asked[0]])) if asked else None
    if named is None or named[1] not in catalogue.by_id:
        raise ValueError("the first message of the user names no task")
    task, turn = catalogue.by_id[named[1]], len(asked) - 1
    done = _Done(messages[asked[-1] + 1 :], task.turns[turn])
    for number, group in enumerate(task.turns[turn].groups):
        left = done.left(group)
        if left:
            calls = left if together(task, turn, number, seed) else left[:1]
            return Say(task.id, turn, calls=tuple(calls), errors=done.errors, surprises=done.surprises)
    return Say(task.id, turn, text=closing(task.id, turn), errors=done.errors, surprises=done.surprises)


def together(task: Task, turn: int, group: int, seed: int) -> bool:
    """Whether the calls of this group are asked for at once."""
    return random.Random(f"{seed} {task.id} {turn} {group}").random() < _TOGETHER


def steps(task: Task, seed: int) -> int:
    """The fewest model calls that play the task."""
    count = 0
    for turn, said in enumerate(task.turns):
        count += 1
        for number, group in enumerate(said.groups):
            count += 1 if together(task, turn, number, seed) else len(group)
    return count


class _Done:
    """The calls of a turn that have been answered; each stands for one gold call only."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], turn: Turn) -> None:
        self._answered: list[tuple[str, dict[str, Any]]] = []
        self.errors = 0
        self.surprises = 0
        gold = [call for group in turn.groups for call in group]
        results = {one["tool_call_id"]: _text(one) for one in messages if one["role"] == "tool"}
        for message in messages:
            for call in message.get("tool_calls") or ():
                self._take(call, results.get(call["id"]), gold)

    def _take(self, call: Mapping[str, Any], result: str | None, gold: list[GoldCall]) -> None:
        name, arguments = call["function"]["name"], _object(call["function"]["arguments"])
        answered = _answer(result)
        if answered is None or arguments is None:
            self.errors += 1
            if arguments is not None and _WAS_DONE in (result or ""):
                self._answered.append((name, arguments))
            return
        same = [one for one in gold if one.name == name and one.arguments == arguments]
        self.surprises += answered not in [one.result for one in same]
        self._answered.append((name, arguments))

    def left(self, group: Sequence[GoldCall]) -> list[GoldCall]:
        """The calls of the group that were not answered yet."""
        left: list[GoldCall] = []
        for call in group:
            if (call.name, call.arguments) in self._answered:
                self._answered.remove((call.name, call.arguments))
            else:
                left.append(call)
        return left


def _answer(result: str | None) -> str | None:
    """What the tool answered; None when the result is the word of something else."""
    plain = _object(result or "")
    return None if plain is None else plain.get("result")


def _object(text: str) -> dict[str, Any] | None:
    try:
        plain = json.loads(text)
    except ValueError:
        return None
    return cast("dict[str, Any]", plain) if isinstance(plain, dict) else None


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
