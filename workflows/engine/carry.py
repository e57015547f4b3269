"""Carry: arguments that a run takes with it when it continues as new, the same bytes where they can be.

The transcript is cut into chunks, greedily from the start. It only grows at its end, so all chunks but the last are
the same bytes each time, and a content-addressed store keeps them once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from perdure.messages import Message, size_bytes
from perdure.wire.spec import AnySpec, ResolvedAgent

from .program import RunningProgram
from .state import RunState

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class HistoryFormat:
    """Format in which a run writes its history, fixed at its start."""

    search_attributes: bool = True
    layout: int = 1
    """See `ResolvedAgent`."""


def format_of(resolved: ResolvedAgent) -> HistoryFormat:
    """Return the format that the worker which resolved the agent gave."""
    return HistoryFormat(search_attributes=resolved.search_attributes, layout=resolved.layout)


_adapters: dict[Any, "TypeAdapter[Any]"] = {}


def _adapter(state_type: Any) -> "TypeAdapter[Any]":
    # Built on first use: few runs continue as new, and building one takes milliseconds.
    if state_type not in _adapters:
        _adapters[state_type] = TypeAdapter(state_type)
    return _adapters[state_type]


def pack(program: RunningProgram[Any], state: RunState, written: HistoryFormat) -> list[Any]:
    """Return the run's further arguments, all plain JSON: the state, then the transcript's chunks."""
    messages, state = state.messages, state.with_messages(())
    carried = {
        "version": 1,
        "search_attributes": written.search_attributes,
        "layout": written.layout,
        "state": _adapter(program.state_type).dump_python(state, mode="json"),
    }
    return [carried, *(_adapter(list[Message]).dump_python(chunk, mode="json") for chunk in chunks(messages))]


def spec_in(carried: dict[str, Any]) -> AnySpec:
    """Return the spec of a carried state: it says which program goes on."""
    spec: AnySpec = _adapter(AnySpec).validate_python(carried["state"]["spec"])
    return spec


def unpack(
    program: RunningProgram[Any], carried: dict[str, Any], parts: Sequence[Any]
) -> tuple[RunState, HistoryFormat]:
    """Return the arguments of `pack`."""
    state = _adapter(program.state_type).validate_python(carried["state"])
    chunk = _adapter(list[Message])
    state = state.with_messages(tuple(m for part in parts for m in chunk.validate_python(part)))
    written = HistoryFormat(
        search_attributes=bool(carried["search_attributes"]), layout=carried.get("layout", 1)
    )
    return program.restore(state), written


def chunks(messages: Sequence[Message]) -> list[list[Message]]:
    """Return the messages in order, in pieces of about `CHUNK_BYTES`; a longer message stands alone."""
    pieces: list[list[Message]] = []
    # Filled from the start, never balanced: only so are all pieces but the last the same bytes each time.
    room = 0
    for message in messages:
        size = size_bytes(message)
        if size > room:
            pieces.append([])
            room = CHUNK_BYTES
        pieces[-1].append(message)
        room -= size
    return pieces
