"""What a run takes with it when it continues as new, as payloads that stay the same where they can.

The transcript is cut into chunks, greedily from the start: since it only grows at its end, all
chunks but the last are the same bytes each time, so a content-addressed store keeps them once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from perdure.messages import Message, size_bytes
from perdure.wire.spec import ResolvedAgent

from .state import State
from .team import Team

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What a run writes of itself into its history, fixed at its start."""

    search_attributes: bool = True
    layout: int = 1
    """See `ResolvedAgent`."""


def writing_of(resolved: ResolvedAgent) -> Writing:
    """As the worker that resolved the agent said."""
    return Writing(search_attributes=resolved.search_attributes, layout=resolved.layout)


@cache
def _states() -> "dict[str, TypeAdapter[Any]]":
    # Made on first use: few runs get this far.
    return {"agent": TypeAdapter(State), "team": TypeAdapter(Team)}


@cache
def _chunk() -> "TypeAdapter[list[Message]]":
    return TypeAdapter(list[Message])


def pack(state: State | Team, writing: Writing) -> list[Any]:
    """The run's further arguments, all plain JSON values: the state, then the transcript's chunks."""
    kind = "agent" if isinstance(state, State) else "team"
    bare = replace(state, messages=()) if isinstance(state, State) else state
    carried = {
        "version": 1,
        "search_attributes": writing.search_attributes,
        "layout": writing.layout,
        "kind": kind,
        "state": _states()[kind].dump_python(bare, mode="json"),
    }
    messages = state.messages if isinstance(state, State) else ()
    return [carried, *(_chunk().dump_python(chunk, mode="json") for chunk in chunks(messages))]


def unpack(carried: dict[str, Any], parts: Sequence[Any]) -> tuple[State | Team, Writing]:
    """What `pack` was given."""
    state: State | Team = _states()[carried.get("kind", "agent")].validate_python(carried["state"])
    if isinstance(state, State):
        messages = tuple(message for part in parts for message in _chunk().validate_python(part))
        state = replace(state, messages=messages)
    return state, Writing(
        search_attributes=bool(carried["search_attributes"]), layout=carried.get("layout", 1)
    )


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
