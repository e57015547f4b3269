"""What a run takes with it when it continues as new, as payloads that stay the same where they can.

The transcript is cut into chunks, greedily from the start: since it only grows at its end, all
chunks but the last are the same bytes each time, so a content-addressed store keeps them once.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from perdure.messages import Message, size_bytes

from .state import State

CHUNK_BYTES = 256 * 1024


@cache
def _state() -> "TypeAdapter[State]":
    # Made on first use: this file is imported anew for each run, and few runs get this far.
    return TypeAdapter(State)


@cache
def _chunk() -> "TypeAdapter[list[Message]]":
    return TypeAdapter(list[Message])


def pack(state: State, search_attributes: bool) -> list[Any]:
    """The run's further arguments, all plain JSON values: the state, then the transcript's chunks."""
    bare = _state().dump_python(replace(state, messages=()), mode="json")
    carried = {"version": 1, "search_attributes": search_attributes, "state": bare}
    return [carried, *(_chunk().dump_python(chunk, mode="json") for chunk in chunks(state.messages))]


def unpack(carried: dict[str, Any], parts: Sequence[Any]) -> tuple[State, bool]:
    """What `pack` was given."""
    state = _state().validate_python(carried["state"])
    messages = tuple(message for part in parts for message in _chunk().validate_python(part))
    return replace(state, messages=messages), bool(carried["search_attributes"])


def chunks(messages: Sequence[Message]) -> list[list[Message]]:
    """The messages in order, in pieces of about `CHUNK_BYTES`; a longer message stands alone."""
    made: list[list[Message]] = []
    room = 0
    for message in messages:
        size = size_bytes(message)
        if size > room:
            made.append([])
            room = CHUNK_BYTES
        made[-1].append(message)
        room -= size
    return made
