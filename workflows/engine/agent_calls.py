"""Agents called as tools: keys of their runs, and their answers in words for the model."""

from collections.abc import Sequence
from typing import Final

from perdure.graph import as_text
from perdure.messages import Document, Image, Part, Text, ToolResult
from perdure.wire.results import RunResult

from .report import shorten

_MOST_LEFT_CHARS: Final = 2000


def receipt(key: str) -> str:
    """Return the result of a call whose answer comes later."""
    return f"started as {key!r}; its answer will be given to you as soon as it is there"


def late_answer(key: str, result: ToolResult) -> Sequence[Part]:
    """Return an answer that came later, as parts of a message to the model."""
    outcome = "failed" if result.is_error else "answered"
    media = [part for part in result.content if isinstance(part, Image | Document)]
    return [Text(text=f"[{key} {outcome}]\n{result.text}"), *media]


def result_text(outcome: RunResult) -> str:
    """Return a child's answer for the model, why it ended if not by itself, and what it has left undone."""
    # First, because the end of a long text is cut.
    left = _left_text(outcome)
    return f"{left}\n{_answer_text(outcome)}" if left else _answer_text(outcome)


def with_left_undone(result: ToolResult, outcome: RunResult) -> ToolResult:
    """Return a child's answer with what the child has left undone, which was not known when it was written."""
    left = _left_text(outcome)
    if not left or result.text.startswith(left):
        return result
    return result.model_copy(update={"content": [Text(text=left), *result.content]})


def _left_text(outcome: RunResult) -> str:
    if not outcome.missing:
        return ""
    return f"[it left undone: {shorten('; '.join(outcome.missing), _MOST_LEFT_CHARS)}]"


def _answer_text(outcome: RunResult) -> str:
    text = as_text(outcome.output)
    if outcome.error is not None and not outcome.answered:
        why = f"{outcome.agent} failed: {outcome.error.kind}: {outcome.error.message}"
        return f"{why}\nUntil then it had: {text}" if text else why
    if outcome.stop_reason == "end_turn":
        # Some providers refuse an empty result. And a run that said nothing has not said that it is done.
        return text if text.strip() else f"[{outcome.agent} ended without an answer, after {_calls(outcome)}]"
    why = outcome.stop_reason if text or outcome.error is None else outcome.error.message
    return f"{text}\n[it ended early: {why}]".lstrip()


def _calls(outcome: RunResult) -> str:
    return "1 tool call" if outcome.tool_calls == 1 else f"{outcome.tool_calls} tool calls"


def may_have_effect(outcome: RunResult) -> bool:
    """Return whether a child that ended in an error may have had effects by then."""
    if not is_error(outcome):
        return False
    # A child that was cut off says nothing about its calls. Functions of a graph count as no calls.
    was_cut_off = outcome.usage.estimated and not outcome.steps
    return bool(outcome.tool_calls) or was_cut_off or any(node.kind == "function" for node in outcome.nodes)


def is_error(outcome: RunResult) -> bool:
    """Return whether a child's end is an error to its caller."""
    if outcome.answered:
        return False
    return outcome.error is not None or outcome.stop_reason in ("cancelled", "error")
