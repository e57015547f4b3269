"""Fitting: what a model is shown of the results of one step, so that together they fit its context.

Theory of operation
1. The transcript keeps every result whole. Only what a model is shown of it is shortened, here, for tools, remote tools
   and agents alike.
2. A step's results are those between two replies of the model: its tool message, and answers that came later.
3. Small results are shown whole. The large ones are all cut to the same number of tokens.
4. A cut names the call, and the byte from which `read_result` reads on. The run itself answers that.
5. It is pure, and decides by the texts alone, so the run reserves what the worker sends.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from perdure.context import SlidingWindow, Summary
from perdure.messages import Message, Part, ResultPart, Text, ToolResult
from perdure.model import ModelConfig
from perdure.texts import first_bytes, read_on_call
from perdure.tokens import text_tokens

USUAL_CONTEXT_TOKENS: Final = 150_000
"""Context that is assumed where neither the strategy nor the model's settings bound it."""
RESULTS_SHARE: Final = 2
"""One step's results have this part of the context: a half. The rest is for the conversation and the reply."""
LEAST_SHOWN_TOKENS: Final = 192
"""Tokens that are shown of each result at least, its mark included."""


def window_tokens(context: SlidingWindow | Summary, config: ModelConfig) -> int | None:
    """Return the most tokens that the model may see: the strategy's bound, and what a known context leaves it."""
    bounds = [context.tokens]
    if config.context_tokens is not None:
        bounds.append(config.context_tokens - config.max_tokens)
    return min((bound for bound in bounds if bound is not None), default=None)


def most_result_tokens(context: SlidingWindow | Summary, config: ModelConfig, learnt: int) -> int:
    """Return the tokens that the results of one step may have together, for that model.

    `learnt` is the bound that an overflow has shown; 0: there was none.
    """
    usual = (window_tokens(context, config) or USUAL_CONTEXT_TOKENS) // RESULTS_SHARE
    return min(usual, learnt) if learnt else usual


def fit_results(messages: Sequence[Message], most: int, *, keep: bool = False) -> tuple[Message, ...]:
    """Return the messages as a model is shown them: the results of each step fit `most` tokens together.

    With `keep` a message that was cut stays with the whole one, so that the next call gets the same object.
    """
    fitted = list(messages)
    start = size = 0
    # Each model call fits all that it shows: a step that is small in bytes takes no more than a sum.
    for at, message in enumerate(messages):
        if message.role != "assistant":
            size += message.result_bytes
            continue
        if size > most:
            fitted[start:at] = _fit_step(messages[start:at], most, keep=keep)
        start, size = at + 1, 0
    if size > most:
        fitted[start:] = _fit_step(messages[start:], most, keep=keep)
    return tuple(fitted)


def must_cut(messages: Sequence[Message], most: int) -> bool:
    """Return whether something of the messages, which belong to one step, is not shown."""
    return _fair_share(messages, most) is not None


def any_is_cut(messages: Sequence[Message], most: int) -> bool:
    """Return whether something of the messages of several steps is not shown."""
    return any(
        fitted is not message for fitted, message in zip(fit_results(messages, most), messages, strict=True)
    )


def text_of_result(messages: Iterable[Message], name: str) -> str | None:
    """Return the text of the newest result of that call or run below, or None."""
    for message in messages:
        if message.answer_of == name:
            return _text(message.parts)
        for result in message.tool_results:
            if result.call_id == name:
                return result.text
    return None


def _fit_step(messages: Sequence[Message], most: int, *, keep: bool) -> Sequence[Message]:
    share = _fair_share(messages, most)
    if share is None:
        return messages
    if not keep:
        return [_fit_message(message, share) for message in messages]
    return [_keep_fitted(message, share) for message in messages]


def _keep_fitted(message: Message, share: int) -> Message:
    """Return the message within its share, from what is kept of it if it was cut before."""
    if not message.result_bytes or all(size <= share for size in message.result_tokens):
        return message
    found: tuple[Message] | None = message.cache.find("fitted", share)
    if found is None:
        found = (_fit_message(message, share),)
        message.cache.add_copies("fitted", share, found)
    return found[0]


def _fair_share(messages: Sequence[Message], most: int) -> int | None:
    """Return the tokens to which each large result is cut, or None when all fit together."""
    answering = [message for message in messages if message.role == "tool" or message.answer_of]
    # No text has more tokens than bytes, so most steps need no count.
    if sum(message.result_bytes for message in answering) <= most:
        return None
    sizes = sorted(size for message in answering for size in message.result_tokens)
    if sum(sizes) <= most:
        return None
    left, share = most, 0
    for count, size in zip(range(len(sizes), 0, -1), sizes, strict=True):
        share = left // count
        if size > share:
            break
        left -= size
    return max(share, LEAST_SHOWN_TOKENS)


def _fit_message(message: Message, share: int) -> Message:
    if message.answer_of:
        if message.result_tokens[0] <= share:
            return message
        media = [part for part in message.parts if not isinstance(part, Text)]
        return _exchange(message, [_cut(_text(message.parts), share, message.answer_of), *media])
    if message.role != "tool" or all(size <= share for size in message.result_tokens):
        return message
    sizes = iter(message.result_tokens)
    parts = [
        _fit_result(part, share) if isinstance(part, ToolResult) and next(sizes) > share else part
        for part in message.parts
    ]
    return _exchange(message, parts)


def _exchange(message: Message, parts: list[Part]) -> Message:
    # Not a copy: it would take the counts of the whole message along.
    return Message(role=message.role, parts=parts, meta=message.meta, answer_of=message.answer_of)


def _fit_result(result: ToolResult, share: int) -> ToolResult:
    media = [part for part in result.content if not isinstance(part, Text)]
    content: list[ResultPart] = [_cut(result.text, share, result.call_id), *media]
    return result.model_copy(update={"content": content})


def _cut(text: str, share: int, name: str) -> Text:
    """Return the beginning of the text within its share, with a mark that says how to read on."""
    data = text.encode(errors="replace")
    length = len(data) * share // text_tokens(text)
    # The mark takes its part, and the beginning may be denser than the whole.
    while text_tokens(shown := _with_mark(data, length, name)) > share and length:
        length = length * 7 // 8
    return Text(text=shown)


def _with_mark(data: bytes, length: int, name: str) -> str:
    shown = first_bytes(data, length)
    end = len(shown.encode())
    return (
        f"{shown}\n[{end} of {len(data)} bytes: this step's results are long together; "
        f"read on with {read_on_call(name, end)}]"
    )


def _text(parts: Iterable[Part]) -> str:
    return "\n".join(part.text for part in parts if isinstance(part, Text))
