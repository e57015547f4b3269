"""JSON of a request, joined from pieces that are rendered once. Pure.

Theory of operation
1. A conversation is a row of turns: the assistant's messages that follow each other, or those of the other side. No
   format has a rule that reaches over such a border. What marks the end of the conversation is rendered apart.
2. What becomes of a turn depends on its messages, which never change, and on few flags of the request. Both are the
   key of the turn's piece, which is kept on the turn's first message. So a step renders what is new.
3. The JSON of a request is that of its fields and its pieces, joined. Its digest is made of theirs.
4. The worker's cache of transcripts holds the messages, and counts what is kept on them.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from perdure.messages import Message

PIECE_BYTES: Final = 160
"""Bytes that a piece takes beside its JSON."""

Turn = Sequence[Message]
"""Messages of one side that follow each other."""


@dataclass(frozen=True, slots=True)
class Piece:
    """JSON of elements of an array, without its brackets, and its digest."""

    json: bytes
    digest: bytes

    @classmethod
    def of(cls, elements: Iterable[Any]) -> "Piece":
        """Render the elements."""
        text = encode_json(list(elements))[1:-1]
        return cls(text, sha256(text).digest())


@dataclass(frozen=True, slots=True)
class Body:
    """JSON of a request, as it is sent, and its digest: equal digests mean equal requests."""

    json: bytes
    digest: str


def encode_json(value: Any) -> bytes:
    """Return the value as the JSON that is sent: compact, in UTF-8, bytes as base64."""
    text = json.dumps(
        value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_encode_bytes
    )
    return text.encode()


def _encode_bytes(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is no JSON")


def split_turns(messages: Iterable[Message]) -> list[Turn]:
    """Return the turns of a sendable conversation, see `make_sendable`."""
    turns: list[Turn] = []
    turn: list[Message] = []
    was_assistant: bool | None = None
    for message in messages:
        is_assistant = message.role == "assistant"
        if is_assistant is was_assistant:
            turn.append(message)
        else:
            turn = [message]
            turns.append(turn)
            was_assistant = is_assistant
    return turns


def marked_turns(turns: Sequence[Turn]) -> tuple[int, ...]:
    """Return the positions of the turns whose ends get a caching mark: the last one, and the user's before it.

    A step of many parallel calls has more blocks than a provider looks back for an earlier mark.
    """
    last = len(turns) - 1
    previous = (n for n in range(last - 1, -1, -1) if turns[n][0].role != "assistant")
    return (next(previous, last), last)


def render_turn(turn: Turn, purpose: str, flags: object, render: Callable[[Turn], Iterable[Any]]) -> Piece:
    """Return the piece of a turn, rendered on first use for these flags; `purpose` names the format."""
    first = turn[0]
    key, has_attachments = flags, first.has_attachments
    if len(turn) > 1:
        key, has_attachments = (flags, *turn[1:]), any(message.has_attachments for message in turn)
    # Attachments depend on bytes beside the message, and some formats number them through the request.
    if has_attachments:
        return Piece.of(render(turn))
    found: Piece | None = first.cache.find(purpose, key)
    if found is None:
        found = Piece.of(render(turn))
        first.cache.add(purpose, key, found, len(found.json) + PIECE_BYTES)
    return found


def join_body(
    fields: Mapping[str, Any],
    name: str | None,
    pieces: Sequence[Piece] = (),
    extra: Mapping[str, Any] | None = None,
) -> Body:
    """Return the request: an object with the fields, the array of that name, and what `extra` sets instead."""
    extra = extra or {}
    head = encode_json({**fields, **extra})
    if name is None or name in extra:
        return Body(head, sha256(head).hexdigest())
    digest = sha256(head)
    digest.update(b"".join([piece.digest for piece in pieces]))
    array = [piece.json for piece in pieces if piece.json] or [b""]
    # One join of all: a request of a megabyte is copied once.
    comma = b"," if len(head) > len(b"{}") else b""
    array[0] = b"".join((head[:-1], comma, b'"', name.encode(), b'":[', array[0]))
    array[-1] += b"]}"
    return Body(b",".join(array), digest.hexdigest())
