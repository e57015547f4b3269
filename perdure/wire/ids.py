"""Ids within a run: of its model and tool calls, and of the runs that it starts. Pure."""

import re
from hashlib import sha256
from typing import Final

_MOST_ID_BYTES: Final = 900
"""Temporal accepts workflow ids of 1000 bytes."""
_PARENT_BYTES_KEPT: Final = 400
RESERVED: Final = "/~"
"""Mark of the ids of child runs. No id that a user chooses may contain it, so the two can never meet."""
_CHILD_KEY: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*-\d+(\.\d+)?")
"""Agent or node, then step and position or visit; after a dot, the attempt of a node that is run again."""


def model_call_id(step: int) -> str:
    """Return the id of a step's model call, such as "step-3"."""
    return f"step-{step}"


def step_of(call_id: str) -> int | None:
    """Return the step of a model call's id, or None for the id of anything else."""
    number = call_id.removeprefix("step-")
    # A node of a graph may be named "step-one": only digits make it a model call.
    return int(number) if number != call_id and number.isdecimal() else None


def tool_call_id(step: int, position: int) -> str:
    """Return the id of a step's tool call, such as "call-3-1"; positions count from 1."""
    return f"call-{step}-{position}"


def child_key(agent: str, call_id: str) -> str:
    """Return the key of the run that a tool call starts: "call-3-1" of researcher is "researcher-3-1"."""
    # Readable for people, and its reverse needs no table: watchers of a run have only the keys.
    return f"{agent}-{call_id.removeprefix('call-')}"


def call_id_of(key: str) -> str:
    """Return the id of the tool call that started the run of this key; the reverse of `child_key`."""
    return "-".join(["call", *key.rsplit("-", 2)[1:]])


def child_run_id(parent_id: str, key: str) -> str:
    """Return the workflow id of a child run: its parent's id, "/~" and its key."""
    run_id = f"{parent_id}{RESERVED}{key}"
    if len(run_id.encode()) <= _MOST_ID_BYTES:
        return run_id
    # Deep trees would pass Temporal's limit. The digest keeps shortened ids of different parents apart.
    digest = sha256(parent_id.encode()).hexdigest()[:32]
    return f"{parent_id.encode()[:_PARENT_BYTES_KEPT].decode(errors='ignore')}~{digest}{RESERVED}{key}"


def parent_id_of(run_id: str) -> str:
    """Return the part of a child's workflow id that names its parent; empty for a root."""
    return run_id.rpartition(RESERVED)[0]


def has_child_form(run_id: str) -> bool:
    """Check whether the id could be that of a child run: nobody may choose such an id."""
    return RESERVED in run_id


def is_child_of(parent_id: str, run_id: str) -> bool:
    """Check whether the id is one that `child_run_id` gives a run of that parent."""
    key = run_id.rpartition(RESERVED)[2]
    return _CHILD_KEY.fullmatch(key) is not None and run_id == child_run_id(parent_id, key)
