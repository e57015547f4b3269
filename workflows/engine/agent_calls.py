"""Agents called as tools: what their runs are called, and what their answers are to the model. Pure."""

from collections.abc import Sequence

from perdure.graph import as_text
from perdure.messages import Document, Image, Part, Text, ToolResult
from perdure.wire.results import RunResult


def receipt(key: str) -> str:
    """The result of a call whose answer comes later."""
    return f"started as {key!r}; its answer will be given to you as soon as it is there"


def answer_of(key: str, result: ToolResult) -> Sequence[Part]:
    """An answer that comes later, as a message to the model."""
    what = "failed" if result.is_error else "answered"
    media = [part for part in result.content if isinstance(part, Image | Document)]
    return [Text(text=f"[{key} {what}]\n{result.text}"), *media]


def result_text(outcome: RunResult) -> str:
    """What the model gets of a child that has ended: its answer, and why it ended if not by itself."""
    said = as_text(outcome.output)
    if outcome.error is not None and not outcome.answered:
        why = f"{outcome.agent} failed: {outcome.error.kind}: {outcome.error.message}"
        return f"{why}\nUntil then it had: {said}" if said else why
    if outcome.stop_reason == "end_turn":
        return said or "done"
    return f"{said}\n[it ended early: {outcome.stop_reason}]".lstrip()


def is_error(outcome: RunResult) -> bool:
    """Whether a child's end is an error to the one who called it."""
    if outcome.answered:
        return False
    return outcome.error is not None or outcome.stop_reason in ("cancelled", "error")
