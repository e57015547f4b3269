"""Uncertain results: calls of writes that failed and may have had their effect all the same. Pure.

The fact is `ToolResult.may_have_effect`, whatever carried the call: a function, a remote tool, an agent. Whoever
makes the result of a failed call sets the fact here, together with the words that tell the model. The engine lets
no stand-in repeat such a call.
"""

from typing import Final

from perdure.messages import ResultPart, Text, ToolResult

MAY_HAVE_TAKEN_EFFECT: Final = "It may or may not have taken effect."


def mark_uncertain(result: ToolResult, words: str = MAY_HAVE_TAKEN_EFFECT) -> ToolResult:
    """Return the result with the fact that the call may have had its effect; the words are added once."""
    content: list[ResultPart] = list(result.content)
    if words and "taken effect" not in result.text:
        last = content[-1] if content else None
        if isinstance(last, Text):
            content[-1] = Text(text=join_sentences(last.text, words))
        else:
            content.append(Text(text=words))
    return result.model_copy(update={"content": content, "may_have_effect": True})


def join_sentences(text: str, sentence: str) -> str:
    """Return the text followed by a sentence, with a full stop and a space between them where they are missing."""
    text = text.rstrip()
    if not text:
        return sentence
    return f"{text}{'' if text.endswith(('.', '!', '?')) else '.'} {sentence}"
