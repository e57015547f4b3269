"""Collection of blobs that nothing names any more, for `perdure blobs gc`.

Theory of operation. Mark: every run that the namespaces still have, open or retained, and every schedule is read, and
each text in them that has the form of a blob's name counts as a name. Blobs that are named are read in turn, because
a chunk of a transcript names pictures. Sweep: what was not named and is older than the grace is deleted.

1. A blob may be stored before any history names it. Whoever stores it gives it a date of the last day, so the grace
   must be longer than a day by the time of the longest such gap.
2. The date is read again at the deletion: a run may have stored the blob again since it was listed.
3. A payload that cannot be read may name any blob. Then nothing is deleted.
4. The lists of runs are read again until they show no new one: visibility is late, and pages shift.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from temporalio.api.common.v1 import Payload
from temporalio.api.sdk.v1.external_storage_pb2 import ExternalStorageReference
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.common import RawValue
from temporalio.service import RPCError, RPCStatusCode

from perdure.blobs import RENEW_AFTER, DatedBlobStore, StoredBlob
from perdure.errors import DefinitionError

from ..activities.content.coded_blobs import CodedBlobs
from .deploys.histories import iter_payloads

SHORTEST_GRACE: Final = 2 * RENEW_AFTER
_NAME: Final = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_READABLE: Final = frozenset(
    {b"json/plain", b"json/protobuf", b"binary/plain", b"binary/null", b"binary/protobuf"}
)
_REFERENCE: Final = ExternalStorageReference.DESCRIPTOR.full_name.encode()
_REFERENCE_MARK: Final = "__temporal_external_storage_reference"
"""Mark of Temporal's SDK on a reference that a codec has encoded."""
_AT_ONCE: Final = 16
_MOST_PROBLEMS: Final = 20
"""Problems that a report keeps."""


@dataclass(kw_only=True)
class Collection:
    """Report of a collection."""

    runs: int = 0
    schedules: int = 0
    stored: int = 0
    """Blobs in the store."""
    named: int = 0
    """Of these, the ones that a run or a schedule names."""
    young: int = 0
    """Of the rest, the ones that are younger than the grace."""
    garbage: int = 0
    garbage_bytes: int = 0
    deleted: int = 0
    unreadable: list[str] = field(default_factory=list[str])
    """Payloads that could not be read, a line each: with any, nothing is deleted."""
    damaged: list[str] = field(default_factory=list[str])
    """Blobs that runs name and that are missing or damaged, a line each."""


class Collector:
    """Collector of one store, for the namespaces that share it.

    Args:
        clients: a client of each namespace whose runs use the store, with the payload codec that they use.
        store: the store.
        grace: age from which an unnamed blob is deleted.
        ignored_types: workflow types that never use the store, and whose payloads need not be readable.

    Raises:
        DefinitionError: the store has no dates, or the grace is shorter than two days.

    """

    def __init__(
        self,
        clients: Sequence[Client],
        store: object,
        *,
        grace: timedelta = timedelta(days=7),
        ignored_types: Sequence[str] = (),
    ) -> None:
        if not isinstance(store, DatedBlobStore):
            raise DefinitionError(
                f"{store!r} cannot be collected: it has no list_blobs, renew and delete; see docs/blob_stores.md"
            )
        if grace < SHORTEST_GRACE:
            raise DefinitionError(
                f"a grace of {grace} is too short: a blob in use may be {RENEW_AFTER} old unnamed"
            )
        self._clients = clients
        self._store = store
        self._grace = grace
        self._ignored = frozenset(ignored_types)
        self._names: set[str] = set()
        self._references: set[bytes] = set()
        """References to stored payloads that have been read. Not by name: a name alone is read without a codec."""
        self._stored: dict[str, StoredBlob] = {}
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self.report = Collection()

    async def collect(self, *, delete: bool) -> Collection:
        """Mark and sweep; without `delete`, only count what would be deleted."""
        before = datetime.now(UTC) - self._grace
        self._stored = {blob.name: blob async for blob in self._store.list_blobs()}
        for client in self._clients:
            await self._mark_runs(client)
            await self._mark_schedules(client)
        self.report.stored = len(self._stored)
        self.report.named = len(self._names & self._stored.keys())
        await self._sweep(before, delete=delete and not self.report.unreadable)
        return self.report

    # -- mark

    async def _mark_runs(self, client: Client) -> None:
        known: set[tuple[str, str]] = set()
        count = -1
        while len(known) > count:
            count = len(known)
            try:
                async with asyncio.TaskGroup() as group:
                    async for run in client.list_workflows():
                        key = (run.id, run.run_id)
                        if key not in known and run.workflow_type not in self._ignored:
                            known.add(key)
                            await self._limit.acquire()
                            group.create_task(self._mark_run(client, run))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        self.report.runs += len(known)

    async def _mark_run(self, client: Client, run: WorkflowExecution) -> None:
        try:
            handle = client.get_workflow_handle(run.id, run_id=run.run_id)
            async for event in handle.fetch_history_events():
                await self._mark_message(client, event, f"run {run.id!r}")
            if run.status == WorkflowExecutionStatus.RUNNING:
                # The heartbeats of pending activities are in no history.
                described = await handle.describe()
                await self._mark_message(client, described.raw_description, f"run {run.id!r}")
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:  # its retention has ended meanwhile
                raise
        finally:
            self._limit.release()

    async def _mark_schedules(self, client: Client) -> None:
        async for listed in await client.list_schedules():
            described = await client.get_schedule_handle(listed.id).describe()
            await self._mark_message(client, described.raw_description, f"schedule {listed.id!r}")
            self.report.schedules += 1

    async def _mark_message(self, client: Client, message: Any, where: str) -> None:
        for payload in iter_payloads(message):
            await self._mark_payload(client, payload, where)

    async def _mark_payload(self, client: Client, payload: Payload, where: str) -> None:
        named = self._new_names(payload.data)
        decoded: Payload | None = payload
        is_reference = (
            payload.metadata.get("messageType") == _REFERENCE or _REFERENCE_MARK in payload.metadata
        )
        if is_reference and payload.data in self._references:
            return
        # A codec changes the encoding. What no codec has seen, such as a search attribute, it could not decode.
        if is_reference or payload.metadata.get("encoding", b"") not in _READABLE:
            decoded = await self._decode(client, payload, where)
        if is_reference:
            self._references.add(payload.data)
            named = []  # the payload itself, which has been read now
        if decoded is None:
            return
        encoding = decoded.metadata.get("encoding", b"")
        if encoding not in _READABLE:
            _add(
                self.report.unreadable,
                f"{where}: a payload is encoded as {encoding.decode(errors='replace')!r}",
            )
            return
        await self._follow(client, [*named, *self._new_names(decoded.data)], where)

    async def _decode(self, client: Client, payload: Payload, where: str) -> Payload | None:
        """Return the payload as it was before storage and codec, or None if that cannot be."""
        try:
            [raw] = await client.data_converter.decode([payload], [RawValue])
        except (KeyError, OSError) as error:
            _add(self.report.damaged, f"{where}: {_first_line(error)}")
            return None
        except Exception as error:
            _add(self.report.unreadable, f"{where}: {type(error).__name__}: {_first_line(error)}")
            return None
        decoded: Payload = raw.payload
        return decoded

    def _new_names(self, data: bytes) -> list[str]:
        """Return what looks like a name and was not seen before, and count it as named."""
        found = {name.decode() for name in _NAME.findall(data)} - self._names
        self._names |= found
        return sorted(found)

    async def _follow(self, client: Client, names: Sequence[str], where: str) -> None:
        """Read the blobs of these names, and mark what they name."""
        content = CodedBlobs(self._store, client.data_converter.payload_codec)
        pending = [name for name in names if name in self._stored]
        while pending:
            try:
                data = await content.get(pending.pop())
            except (KeyError, OSError) as error:
                _add(self.report.damaged, f"{where}: {_first_line(error)}")
                continue
            except Exception as error:
                _add(self.report.unreadable, f"{where}: {type(error).__name__}: {_first_line(error)}")
                continue
            pending += [name for name in self._new_names(data) if name in self._stored]

    # -- sweep

    async def _sweep(self, before: datetime, *, delete: bool) -> None:
        garbage: list[StoredBlob] = []
        for blob in self._stored.values():
            if blob.name in self._names:
                continue
            if blob.stored_at >= before:
                self.report.young += 1
                continue
            garbage.append(blob)
        self.report.garbage = len(garbage)
        self.report.garbage_bytes = sum(blob.size_bytes for blob in garbage)
        if delete:
            for at in range(0, len(garbage), _AT_ONCE):
                few = garbage[at : at + _AT_ONCE]
                gone = await asyncio.gather(*(self._store.delete(blob.name, before=before) for blob in few))
                self.report.deleted += sum(gone)


def _add(problems: list[str], problem: str) -> None:
    if problem not in problems and len(problems) < _MOST_PROBLEMS:
        problems.append(problem)


def _first_line(error: Exception) -> str:
    return (str(error).strip("'\"").splitlines() or [""])[0][:300]
