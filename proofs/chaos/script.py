"""Scripted model: it derives the task, the turn and the next gold calls from the conversation alone.

The model keeps no state, so a lost answer is repeated word by word at the next request. As a real model
would, it repeats a call whose result is an error message of something on the way, not the tool's answer.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .catalogue import Catalogue, GoldCall, Task, Turn

_NAMED = re.compile(r"\[(\w+)\] ")
_PARALLEL_SHARE = 0.5
"""Share of groups whose calls come in one step; other groups take a step for each call."""
_WAS_DONE = "has done its work"
"""Words of Perdure for a call whose result alone is lost: a model does not repeat such a call."""


@dataclass(frozen=True)
class Reply:
    """Reply of the model: calls, or the words that end the turn."""

    task: str
    turn: int
    calls: tuple[GoldCall, ...] = ()
    text: str = ""
    errors: int = 0
    """Number of results in this turn that were no answers of a tool."""
    surprises: int = 0
    """Number of answers of tools in this turn that differ from the gold replay."""


def closing(task: str, turn: int) -> str:
    """Return the words that end a turn."""
    return f"Turn {turn + 1} of {task} is done."


def answer(messages: Sequence[Mapping[str, Any]], catalogue: Catalogue, seed: int) -> Reply:
    """Return the model's reply to the messages of a chat completions request.

    Raises:
        ValueError: the first message of the user names no task.

    """
    questions = [n for n, message in enumerate(messages) if message["role"] == "user"]
    named = _NAMED.match(_text(messages[questions[0]])) if questions else None
    if named is None or named[1] not in catalogue.by_id:
        raise ValueError("the first message of the user names no task")
    task, turn = catalogue.by_id[named[1]], len(questions) - 1
    done = _AnsweredCalls(messages[questions[-1] + 1 :], task.turns[turn])
    for number, group in enumerate(task.turns[turn].groups):
        remaining = done.take_remaining(group)
        if remaining:
            calls = remaining if is_parallel(task, turn, number, seed) else remaining[:1]
            return Reply(task.id, turn, calls=tuple(calls), errors=done.errors, surprises=done.surprises)
    return Reply(task.id, turn, text=closing(task.id, turn), errors=done.errors, surprises=done.surprises)


def is_parallel(task: Task, turn: int, group: int, seed: int) -> bool:
    """Return whether the model asks for all calls of this group in one step."""
    return random.Random(f"{seed} {task.id} {turn} {group}").random() < _PARALLEL_SHARE


def steps(task: Task, seed: int) -> int:
    """Return the fewest model calls that play the task."""
    count = 0
    for turn, message in enumerate(task.turns):
        count += 1  # the closing words
        for number, group in enumerate(message.groups):
            count += 1 if is_parallel(task, turn, number, seed) else len(group)
    return count


class _AnsweredCalls:
    """Calls of a turn that were answered; each stands for a single gold call."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], turn: Turn) -> None:
        self._answered: list[tuple[str, dict[str, Any]]] = []
        self.errors = 0
        self.surprises = 0
        gold = [call for group in turn.groups for call in group]
        results = {result["tool_call_id"]: _text(result) for result in messages if result["role"] == "tool"}
        for message in messages:
            for call in message.get("tool_calls") or ():
                self._add(call, results.get(call["id"]), gold)

    def _add(self, call: Mapping[str, Any], result: str | None, gold: list[GoldCall]) -> None:
        name, arguments = call["function"]["name"], _object(call["function"]["arguments"])
        answer_of_tool = _answer_of_tool(result)
        if answer_of_tool is None or arguments is None:
            self.errors += 1
            # The effect happened and only its result is lost: a repeat would be a duplicate.
            if arguments is not None and _WAS_DONE in (result or ""):
                self._answered.append((name, arguments))
            return
        expected = [call.result for call in gold if call.name == name and call.arguments == arguments]
        self.surprises += answer_of_tool not in expected
        self._answered.append((name, arguments))

    def take_remaining(self, group: Sequence[GoldCall]) -> list[GoldCall]:
        """Use up the answered calls of the group; return the calls that were not answered yet."""
        remaining: list[GoldCall] = []
        for call in group:
            if (call.name, call.arguments) in self._answered:
                self._answered.remove((call.name, call.arguments))
            else:
                remaining.append(call)
        return remaining


def _answer_of_tool(result: str | None) -> str | None:
    """Return the tool's answer, or None if the result is a message of something else."""
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
