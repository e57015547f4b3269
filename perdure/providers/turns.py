"""Order of a conversation's messages, and turns that a provider has paused for tools of its own. Pure.

Rules
1. Results stand directly behind the message that made the calls, whatever a person has said meanwhile.
2. A provider takes a call of its own tool only together with the result, in the same turn of the assistant, or at the
   end of the conversation, where it goes on with it. So what a person said during the pause stands before that turn.
3. A call of the provider's own tool that never came to its result is left out, and so is a result without its call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perdure.messages import Message, Opaque

from .conversation import put_results_after_calls


@dataclass(frozen=True)
class OwnTools:
    """Calls and results of the provider's own tools in a message, by id."""

    calls: frozenset[str] = frozenset()
    results: frozenset[str] = frozenset()


_NONE = OwnTools()


def own_tools(message: Message, provider: str) -> OwnTools:
    """Return the provider's own calls and results in a message."""
    if message.role != "assistant":
        return _NONE
    blocks = [part.data for part in message.parts if isinstance(part, Opaque) and part.provider == provider]
    if not blocks:
        return _NONE
    return OwnTools(
        calls=frozenset(str(block["id"]) for block in blocks if _is_call(block)),
        results=frozenset(str(block["tool_use_id"]) for block in blocks if "tool_use_id" in block),
    )


def _is_call(block: dict[str, Any]) -> bool:
    return str(block.get("type", "")).endswith("tool_use") and "id" in block


def order_turns(messages: Sequence[Message], provider: str) -> tuple[list[Message], frozenset[str]]:
    """Return the messages in the order to send, and the ids of the provider's own calls to leave out."""
    ordered = put_results_after_calls(messages)
    if not any(message.has_opaque for message in ordered):
        return ordered, frozenset()
    tools = [own_tools(message, provider) for message in ordered]
    if not any(tool is not _NONE for tool in tools):
        return ordered, frozenset()
    left_out = _find_unpaired(ordered, tools)
    for at in range(len(ordered)):
        if tools[at].calls - tools[at].results - left_out:
            _move_users_before(ordered, tools, at)
    return ordered, left_out


def _find_unpaired(messages: list[Message], tools: list[OwnTools]) -> frozenset[str]:
    """Return the ids of calls that are neither answered nor open, and of results without a call before them."""
    last = max(at for at, message in enumerate(messages) if message.role == "assistant")
    # A turn that somebody stopped, or that was cut, is not gone on with.
    meta = messages[last].meta
    goes_on = meta is None or meta.stop in ("pause_turn", "tool_calls")
    called: set[str] = set()
    answered: set[str] = set()
    unpaired: set[str] = set()
    for tool in tools:
        called |= tool.calls
        answered |= tool.results & called
        unpaired |= tool.results - called
    open_calls = tools[last].calls if goes_on else frozenset[str]()
    return frozenset(unpaired | (called - answered - open_calls))


def _move_users_before(messages: list[Message], tools: list[OwnTools], at: int) -> None:
    """Move what a person said behind an open turn to the place before it."""
    end = at + 1
    while end < len(messages) and messages[end].role == "tool":
        end += 1
    stop = end
    while stop < len(messages) and messages[stop].role == "user":
        stop += 1
    begin = at
    while begin and _belongs(messages, tools, begin - 1):
        begin -= 1
    messages[begin:stop] = [*messages[end:stop], *messages[begin:end]]
    tools[begin:stop] = [*tools[end:stop], *tools[begin:end]]


def _belongs(messages: list[Message], tools: list[OwnTools], at: int) -> bool:
    """Check whether the message is of the turn that goes on behind it."""
    if messages[at].role != "tool":
        return messages[at].role == "assistant"
    return at > 0 and bool(tools[at - 1].calls - tools[at - 1].results)
