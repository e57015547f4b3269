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
from .team import Team

CHUNK_BYTES = 256 * 1024


@cache
def _states() -> "dict[str, TypeAdapter[Any]]":
    # Made on first use: this file is imported anew for each run, and few runs get this far.
    return {"agent": TypeAdapter(State), "team": TypeAdapter(Team)}


@cache
def _chunk() -> "TypeAdapter[list[Message]]":
    return TypeAdapter(list[Message])


def pack(state: State | Team, search_attributes: bool) -> list[Any]:
    """The run's further arguments, all plain JSON values: the state, then the transcript's chunks."""
    kind = "agent" if isinstance(state, State) else "team"
    bare = replace(state, messages=()) if isinstance(state, State) else state
    carried = {
        "version": 1,
        "search_attributes": search_attributes,
        "kind": kind,
        "state": _states()[kind].dump_python(bare, mode="json"),
    }
    messages = state.messages if isinstance(state, State) else ()
    return [carried, *(_chunk().dump_python(chunk, mode="json") for chunk in chunks(messages))]


def unpack(carried: dict[str, Any], parts: Sequence[Any]) -> tuple[State | Team, bool]:
    """What `pack` was given."""
    state: State | Team = _states()[carried.get("kind", "agent")].validate_python(carried["state"])
    if isinstance(state, State):
        messages = tuple(message for part in parts for message in _chunk().validate_python(part))
        state = replace(state, messages=messages)
    return state, bool(carried["search_attributes"])


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
