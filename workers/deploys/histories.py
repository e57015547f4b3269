"""Histories: of runs on a server, or from files; one at a time, because one may have 50 MB."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from google.protobuf.json_format import Parse
from temporalio.api.common.v1 import Payload
from temporalio.api.sdk.v1 import ExternalStorageReference
from temporalio.client import Client, WorkflowExecution, WorkflowHistory
from temporalio.converter import DataConverter, StorageDriverClaim, StorageDriverRetrieveContext
from temporalio.service import RPCError, RPCStatusCode

from perdure.errors import DefinitionError
from perdure.wire.attributes import AGENT_NAME, AGENT_STATUS
from perdure.wire.names import WORKFLOWS

_MOST_LISTED: Final = 20_000
"""Of the newest executions, among which those to be replayed are chosen."""
_REFERENCE: Final = ExternalStorageReference.DESCRIPTOR.full_name.encode()
"""Marks a payload that says where another one is kept."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where histories come from."""

    temporal: Client
    task_queue: str
    query: str | None = None
    """In place of all that is open."""
    limit: int = 200


@dataclass(frozen=True)
class Unread:
    """A history that could not be had."""

    id: str
    problem: str


async def histories_on_server(source: Source) -> AsyncIterator[WorkflowHistory | Unread]:
    """Histories of runs and sessions of the task queue, children included, each fetched in its turn.

    Raises:
        DefinitionError: the query is none.

    """
    for execution in await _chosen(source):
        handle = source.temporal.get_workflow_handle(execution.id, run_id=execution.run_id)
        try:
            yield await handle.fetch_history()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:  # it has ended, and been forgotten
                yield Unread(execution.id, error.message)


@dataclass(frozen=True, kw_only=True)
class _Found:
    id: str
    run_id: str


async def _chosen(source: Source) -> list[_Found]:
    """The newest, spread over agents, statuses and levels: a thousand alike say little more than one."""
    groups: dict[tuple[object, ...], deque[_Found]] = {}
    listed = 0
    try:
        async for execution in source.temporal.list_workflows(_query(source), page_size=1000):
            group = groups.setdefault(_kind(execution), deque())
            if len(group) < source.limit:
                group.append(_Found(id=execution.id, run_id=execution.run_id))
            listed += 1
            if listed >= _MOST_LISTED:
                break
    except RPCError as error:
        raise DefinitionError(f"Temporal refused the query: {error.message}") from error
    return list(_in_turn(list(groups.values()), source.limit))


def _query(source: Source) -> str:
    kinds = ", ".join(f'"{kind}"' for kind in WORKFLOWS)
    wanted = f"({source.query})" if source.query else 'ExecutionStatus = "Running"'
    return f'WorkflowType IN ({kinds}) AND TaskQueue = "{source.task_queue}" AND {wanted}'


def _kind(execution: WorkflowExecution) -> tuple[object, ...]:
    known = execution.typed_search_attributes
    return (
        execution.workflow_type,
        known.get(AGENT_NAME),
        known.get(AGENT_STATUS),
        execution.parent_id is None,
    )


def _in_turn(groups: Sequence[deque[_Found]], most: int) -> Iterator[_Found]:
    """One of each group, again and again, until there are enough."""
    taken = 0
    while taken < most and any(groups):
        for group in groups:
            if group and taken < most:
                taken += 1
                yield group.popleft()


async def histories_in_files(folder: Path, limit: int) -> AsyncIterator[WorkflowHistory | Unread]:
    """The histories in a folder's JSON files, and in its folders, as Temporal's own tools write them.

    Raises:
        DefinitionError: there are none.

    """
    found = sorted(await asyncio.to_thread(lambda: list(folder.rglob("*.json"))))
    if not found:
        raise DefinitionError(
            f"{folder}: no histories there; record some: perdure replay-check FILE --record DIR"
        )
    for path in found[:limit]:
        try:
            text = path.read_text(encoding="utf-8")
            yield _named(WorkflowHistory.from_json(path.stem, text))
        except Exception as error:
            yield Unread(str(path), f"no history: {' '.join(str(error).split())[:200]}")


def _named(history: WorkflowHistory) -> WorkflowHistory:
    """Under the id that the run had, which those below it begin with."""
    started = history.events[0].workflow_execution_started_event_attributes
    return WorkflowHistory(started.workflow_id or history.workflow_id, history.events)


# -- keeping them


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Writes histories into a folder: one that needs no blob store to be read again."""

    folder: Path

    def keep(self, history: WorkflowHistory) -> None:
        """Write it; `histories_in_files` reads it again. What it holds must be whole: see `inline_blobs`.

        Raises:
            DefinitionError: the folder cannot be written.

        """
        name = f"{quote(history.workflow_id, safe='')}@{history.run_id}.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(json.dumps(json.loads(history.to_json()), indent=1) + "\n")
        except OSError as error:
            raise DefinitionError(f"{self.folder}: {error.strerror or error}") from None


async def inline_blobs(history: WorkflowHistory, converter: DataConverter) -> None:
    """Put what is in the blob store into the history, in its place.

    Raises:
        Exception: whatever the store says when it does not have it.

    """
    storage = converter.external_storage
    drivers = {driver.name(): driver for driver in storage.drivers} if storage else {}
    for payload in [one for event in history.events for one in iter_payloads(event)]:
        if payload.metadata.get("messageType") == _REFERENCE:
            reference = Parse(payload.data, ExternalStorageReference())
            claim = StorageDriverClaim(claim_data=dict(reference.claim_data))
            driver = drivers[reference.driver_name]
            [whole] = await driver.retrieve(StorageDriverRetrieveContext(), [claim])
            payload.CopyFrom(whole)


def iter_payloads(message: Any) -> Iterator[Payload]:
    """Every payload anywhere in a message."""
    if isinstance(message, Payload):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if descriptor.message_type.GetOptions().map_entry:
            values = value.values() if descriptor.message_type.fields_by_name["value"].message_type else ()
        else:
            values = value if descriptor.is_repeated else (value,)
        for one in values:
            yield from iter_payloads(one)
