"""Reading on and back: what the transcript holds and the model is not shown, read by tools that the run answers itself.

Rules
1. `read_result` reads the rest of a result of which the model was shown the beginning.
2. `read_back` reads messages that have left the window. It is offered once some have, where the strategy says so.
3. Both answers are bounded as any result is. They need no activity: the state holds every message.
"""

from collections.abc import Sequence
from typing import Any, Final

from perdure.fitting import text_of_result
from perdure.messages import Message, ToolCall
from perdure.texts import first_bytes, next_piece
from perdure.withheld import without_withheld
from perdure.written import written_message

from .state import AgentState

_EXCERPT_CHARS: Final = 400
"""Characters of a message on either side of the first word that was found in it."""
_WHOLE: Final = 10**9
_NEWEST: Final = 20
"""Messages that are read when the call names neither words nor numbers."""


def rest_of_result(state: AgentState, call: ToolCall) -> str | None:
    """Return the next piece of the result that a call of `read_result` names, or None if it is none of the run's.

    Texts that were too long for the transcript stand in the blob store: those are read by an activity.
    """
    text = text_of_result(reversed(state.messages), str(call.arguments.get("result", "")))
    if text is None:
        return None
    start = _number(call.arguments.get("offset"), 0)
    return next_piece(text.encode(errors="replace"), start, state.spec.result_preview_bytes)


def offers_read_back(state: AgentState) -> bool:
    """Return whether the model gets the tool `read_back`: messages have left its window."""
    transcript = state.transcript
    return state.spec.context.read_back and transcript.window_start > (transcript.pinned is not None)


def read_back(state: AgentState, call: ToolCall) -> str:
    """Return the messages that a call of `read_back` asks for, of those that have left the window."""
    transcript, most = state.transcript, state.spec.result_preview_bytes
    left = dict(enumerate(without_withheld(transcript.messages)[: transcript.window_start], 1))
    if transcript.pinned is not None:
        left.pop(transcript.pinned + 1, None)
    head = f"Messages 1 to {transcript.window_start} are no longer shown."
    words = str(call.arguments.get("words") or "").casefold().split()
    if words:
        return _join(head, _excerpts(left, words), most, "search for other words, or read by number")
    end = _number(call.arguments.get("last"), transcript.window_start)
    start = _number(call.arguments.get("first"), max(end - _NEWEST + 1, 1))
    pieces = [(n, f"[{n}] {written_message(m, most)}") for n, m in left.items() if start <= n <= end]
    return _join(head, pieces, most, "go on with first={}")


def _excerpts(messages: dict[int, Message], words: Sequence[str]) -> list[tuple[int, str]]:
    """Return excerpts of the messages that hold any of the words: those with most of them, then the newest, first."""
    found: list[tuple[int, int, str]] = []
    for number, message in messages.items():
        text = written_message(message, _WHOLE)
        folded = text.casefold()
        held = [word for word in words if word in folded]
        if held:
            at = max(folded.find(held[0]) - _EXCERPT_CHARS, 0)
            excerpt = text[at : at + 2 * _EXCERPT_CHARS]
            found.append((len(set(held)), number, f"[{number}] {'...' if at else ''}{excerpt}"))
    found.sort(key=lambda item: item[:2], reverse=True)
    return [(number, excerpt) for _, number, excerpt in found]


def _join(head: str, pieces: Sequence[tuple[int, str]], most: int, advice: str) -> str:
    """Return the pieces that fit, and what to do about the rest."""
    if not pieces:
        return f"{head} None of them is what you asked for."
    text, room = head, most
    for position, (number, piece) in enumerate(pieces):
        size = len(piece.encode(errors="replace"))
        if size > room and position:
            return f"{text}\n[{len(pieces) - position} more; {advice.format(number)}]"
        fits = size <= room
        text += "\n" + (piece if fits else f"{first_bytes(piece.encode(errors='replace'), room)}[cut here]")
        room -= size
    return text


def _number(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default
