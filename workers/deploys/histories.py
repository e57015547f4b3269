"""Histories of runs, from a server or from files. They are read one at a time: a history may have 50 MB."""

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

_MAX_LISTED: Final = 20_000
"""Number of the newest executions from which those to replay are chosen."""
_REFERENCE: Final = ExternalStorageReference.DESCRIPTOR.full_name.encode()
"""Message type of a payload that refers to one in the blob store."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Selection of histories on a server."""

    temporal: Client
    task_queue: str
    query: str | None = None
    """Visibility query; None selects all open runs."""
    limit: int = 200


@dataclass(frozen=True)
class Unread:
    """A history that could not be read."""

    id: str
    problem: str


async def histories_on_server(source: Source) -> AsyncIterator[WorkflowHistory | Unread]:
    """Yield histories of runs and sessions of the task queue, children included, fetched one by one.

    Raises:
        DefinitionError: the server refuses the query.

    """
    for execution in await _choose_executions(source):
        handle = source.temporal.get_workflow_handle(execution.id, run_id=execution.run_id)
        try:
            yield await handle.fetch_history()
        except RPCError as error:
            # A run may end, and leave its retention time, after it was listed.
            if error.status != RPCStatusCode.NOT_FOUND:
                yield Unread(execution.id, error.message)


@dataclass(frozen=True, kw_only=True)
class _Execution:
    id: str
    run_id: str


async def _choose_executions(source: Source) -> list[_Execution]:
    """Return the newest executions, spread evenly over agents, statuses and levels of the tree.

    Many runs of a kind take the same path through the code, so variety finds more than number.
    """
    groups: dict[tuple[object, ...], deque[_Execution]] = {}
    listed = 0
    try:
        async for execution in source.temporal.list_workflows(_query(source), page_size=1000):
            group = groups.setdefault(_group_key(execution), deque())
            if len(group) < source.limit:
                group.append(_Execution(id=execution.id, run_id=execution.run_id))
            listed += 1
            if listed >= _MAX_LISTED:
                break
    except RPCError as error:
        raise DefinitionError(f"Temporal refused the query: {error.message}") from error
    return list(_round_robin(list(groups.values()), source.limit))


def _query(source: Source) -> str:
    kinds = ", ".join(f'"{kind}"' for kind in WORKFLOWS)
    wanted = f"({source.query})" if source.query else 'ExecutionStatus = "Running"'
    return f'WorkflowType IN ({kinds}) AND TaskQueue = "{source.task_queue}" AND {wanted}'


def _group_key(execution: WorkflowExecution) -> tuple[object, ...]:
    attributes = execution.typed_search_attributes
    is_root = execution.parent_id is None
    return execution.workflow_type, attributes.get(AGENT_NAME), attributes.get(AGENT_STATUS), is_root


def _round_robin(groups: Sequence[deque[_Execution]], limit: int) -> Iterator[_Execution]:
    """Yield executions from each group in turn, until `limit` is reached or all groups are empty."""
    count = 0
    while count < limit and any(groups):
        for group in groups:
            if group and count < limit:
                count += 1
                yield group.popleft()


async def histories_in_files(folder: Path, limit: int) -> AsyncIterator[WorkflowHistory | Unread]:
    """Yield the histories in the JSON files of a folder and its subfolders, as Temporal's tools write them.

    Raises:
        DefinitionError: the folder holds no JSON file.

    """
    paths = sorted(await asyncio.to_thread(lambda: list(folder.rglob("*.json"))))
    if not paths:
        raise DefinitionError(
            f"{folder}: no histories there; record some: perdure replay-check FILE --record DIR"
        )
    for path in paths[:limit]:
        try:
            text = path.read_text(encoding="utf-8")
            yield _with_own_id(WorkflowHistory.from_json(path.stem, text))
        except Exception as error:
            yield Unread(str(path), f"no history: {' '.join(str(error).split())[:200]}")


def _with_own_id(history: WorkflowHistory) -> WorkflowHistory:
    """Return the history under the run's own id: ids of its child runs begin with that id."""
    started = history.events[0].workflow_execution_started_event_attributes
    return WorkflowHistory(started.workflow_id or history.workflow_id, history.events)


# -- recording


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Writes histories into a folder, from which they can be read without the blob store."""

    folder: Path

    def keep(self, history: WorkflowHistory) -> None:
        """Write a history that `histories_in_files` can read; `inline_blobs` must have been called on it.

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
    """Replace references to the blob store in the history by the payloads that they refer to.

    Raises:
        Exception: the store's own error, when it does not have a payload.

    """
    storage = converter.external_storage
    drivers = {driver.name(): driver for driver in storage.drivers} if storage else {}
    for payload in [payload for event in history.events for payload in iter_payloads(event)]:
        if payload.metadata.get("messageType") == _REFERENCE:
            reference = Parse(payload.data, ExternalStorageReference())
            claim = StorageDriverClaim(claim_data=dict(reference.claim_data))
            driver = drivers[reference.driver_name]
            [stored] = await driver.retrieve(StorageDriverRetrieveContext(), [claim])
            payload.CopyFrom(stored)


def iter_payloads(message: Any) -> Iterator[Payload]:
    """Yield every payload anywhere in a protobuf message."""
    if isinstance(message, Payload):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue  # a number or a text
        if descriptor.message_type.GetOptions().map_entry:
            values = value.values() if descriptor.message_type.fields_by_name["value"].message_type else ()
        else:
            values = value if descriptor.is_repeated else (value,)
        for nested in values:
            yield from iter_payloads(nested)
