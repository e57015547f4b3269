"""Cache of transcripts and specs on the worker, filled from the run itself by paged queries.

Theory of operation. A model call names its messages instead of carrying them: history stays small however
long the transcript grows. The worker that makes the call needs their text. It has most of it already, because
it made the calls before. The rest it queries from the run, page by page. Queries leave nothing in history.

1. A transcript only grows at its end, so a cached beginning never becomes wrong. A run that continued as
   new, or was reset, has another run id and so another entry.
2. The end can be wrong. A worker that was given up for dead may have cached a reply, or a tool result, that
   the run did not take. `ModelInput.tail` proves the end; where it differs, the entry is filled anew.
3. The cache is bounded in bytes and may drop an entry at any time. An entry that is being filled lives as
   long as the call that fills it.
4. A message is rendered once for a provider, and what was made of it is kept with it. The bound counts that too.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from cachetools import LRUCache
from temporalio import activity
from temporalio.client import WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from perdure.messages import Message, ToolResult, size_bytes
from perdure.wire.effects import (
    SPEC_DIGEST_CHARS,
    ModelFailure,
    ModelInput,
    summary_digest,
    tail_digest,
    tail_of,
)
from perdure.wire.names import SPEC_QUERY, STALE_TRANSCRIPT, TRANSCRIPT
from perdure.wire.requests import TranscriptQuery
from perdure.wire.results import TranscriptPage
from perdure.wire.spec import AgentSpec, ResolvedAgent
from perdure.withheld import without_unsent

_Answer = TypeVar("_Answer")
_QUERY_TIMEOUT = timedelta(seconds=10)
_PARKED_RETRY = timedelta(seconds=30)
"""Delay before a parked run retries, when its worker could not reach the server."""
_SPEC_CAPACITY = 256
_SUMMARY_CAPACITY = 256


class StaleTranscript(ApplicationError):
    """Error for a call that the run's transcript no longer fits; the run schedules the call anew."""

    def __init__(self, message: str) -> None:
        super().__init__(message, type=STALE_TRANSCRIPT, non_retryable=True)


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """Messages that a model call sends."""

    messages: tuple[Message, ...]
    blobs: tuple[str, ...]
    """Names of the blobs that hold the images and documents of these messages."""
    summary: str = ""
    """Summary of messages that are no longer shown."""


@dataclass(kw_only=True)
class _Entry:
    """Messages `first` and following of a run's transcript, without a gap."""

    key: tuple[str, str]
    first: int = 0
    messages: list[Message] = field(default_factory=list[Message])
    pin: tuple[int, Message] | None = None
    """The request that stays visible after the window has moved past it, if it is not among `messages`."""
    with_blobs: list[int] = field(default_factory=list[int])
    """Positions, in the transcript, of the messages that name blobs; few, so that no step reads them all."""
    size_bytes: int = 0
    """Bytes of the messages as JSON, of the results, and of what is kept with the messages."""
    kept_bytes: int = 0
    """Part of `size_bytes` that is kept with the messages, as it was counted last."""
    reader: bytes = b""
    """Task token of the attempt that read the entry last.

    Only its reply may become the next message; the reply of an attempt given up for dead may not.
    """
    results: dict[str, ToolResult] = field(default_factory=dict[str, ToolResult])
    """Results of tool calls that ran here, by call id, until their message is in the transcript."""

    @property
    def end(self) -> int:
        """Position after the last cached message."""
        return self.first + len(self.messages)


class Transcripts:
    """Cache of runs' transcripts, bounded by bytes, and of specs, bounded by number; both LRU."""

    def __init__(self, capacity_bytes: int = 64 * 1024 * 1024) -> None:
        self.capacity_bytes = capacity_bytes
        self.queries = 0
        """Number of queries sent to runs, which are the cache's misses; for tests."""
        # Not an LRUCache: entries grow after they are added, and it would not see that.
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._specs: LRUCache[str, AgentSpec] = LRUCache(_SPEC_CAPACITY)
        self._summaries: LRUCache[str, str] = LRUCache(_SUMMARY_CAPACITY)
        self._pending_specs: dict[str, asyncio.Future[AgentSpec]] = {}
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of all entries, as they were counted last."""
        return self._bytes

    async def get_view(self, call: ModelInput) -> ModelView:
        """Return the messages that the call sends, queried from the run where they are not cached.

        Raises:
            StaleTranscript: the run's transcript is not as long as the call says.
            ApplicationError: type "connection": the run was not reached.

        """
        self._adopt_previous(call.previous_run_id)
        entry = self._get_entry(_key(), call.view.start)
        await self._complete(entry, call)
        messages = _messages_in_view(entry, call)
        if call.tail is not None and tail_digest(tail_of(messages)) != call.tail:
            # The cached end is of an attempt that the run did not take: see rule 2 above.
            self._drop(entry.key)
            entry = self._get_entry(entry.key, call.view.start)
            entry.reader = activity.info().task_token
            await self._fill(entry, call.view.length)
            messages = _messages_in_view(entry, call)
        pins = await self._get_pins(entry, call.view.pinned)
        summary = await self._get_summary(call.summary)
        visible, unsent = range(call.view.start, call.view.length), call.view.unsent
        if unsent:
            messages = [*without_unsent(messages, unsent, call.view.start)]
            pins = [*without_unsent(pins, unsent, call.view.pinned - 1)]
        shown = (i for i in entry.with_blobs if i in visible and i not in unsent)
        with_blobs = [entry.messages[i - entry.first] for i in shown]
        blobs = {name: None for message in (*pins, *with_blobs) for name in message.blobs}
        return ModelView(messages=(*pins, *messages), blobs=tuple(blobs), summary=summary)

    async def _complete(self, entry: _Entry, call: ModelInput) -> None:
        """Bring the entry to the call's length, from memory as far as possible, else by queries."""
        entry.reader = activity.info().task_token
        # What is cached beyond the call's length never became part of the transcript.
        self._truncate(entry, call.view.length)
        base = call.view.length - len(call.newest)
        self._add_tool_message(entry, call)
        await self._fill(entry, base)
        # A retried attempt finds some of the new messages in the cache already.
        self._add(entry, call.newest[max(entry.end - base, 0) :])

    async def get_spec(self, digest: str) -> AgentSpec:
        """Return the pinned spec with that digest, queried from the run at most once a worker."""
        known = self._specs.get(digest)
        if known is None:
            # A hundred runs may begin at once with this spec. The first call queries its run, the rest wait.
            pending = self._pending_specs.get(digest)
            if pending is None:
                pending = self._pending_specs[digest] = asyncio.ensure_future(self._query_spec())
                pending.add_done_callback(lambda _: self._pending_specs.pop(digest, None))
            # Shielded: the waiting calls need the answer even if the call that began the query is cancelled.
            known = await asyncio.shield(pending)
            if not known.full_digest.startswith(digest):
                # The run was redriven meanwhile with another spec, which this digest does not name.
                return known
        self._specs[digest] = known
        return known

    async def _query_spec(self) -> AgentSpec:
        return _agent_spec(await self._query(SPEC_QUERY, None, ResolvedAgent))

    def add_spec(self, spec: AgentSpec) -> None:
        """Cache a spec that was resolved here, for the model calls of its runs."""
        self._specs[spec.full_digest[:SPEC_DIGEST_CHARS]] = spec

    def add_summary(self, text: str) -> None:
        """Cache a summary that was written here, for the model calls that name it."""
        self._summaries[summary_digest(text)] = text

    def add_reply(self, length: int, message: Message) -> None:
        """Cache the reply that becomes message `length`, so that the next step needs no query for it."""
        entry = self._entries.get(_key())
        if entry is not None and entry.end == length and entry.reader == activity.info().task_token:
            self._add(entry, [message])

    def count_kept(self) -> None:
        """Count what a call has kept with the messages of its run, against the cache's bound."""
        entry = self._entries.get(_key())
        if entry is not None:
            kept = sum([message.cached_bytes for message in entry.messages])
            kept += entry.pin[1].cached_bytes if entry.pin is not None else 0
            grown, entry.kept_bytes = kept - entry.kept_bytes, kept
            self._grow(entry, grown)

    def add_result(self, result: ToolResult) -> None:
        """Cache a tool's result, so that the next step needs no query for it."""
        entry = self._entries.get(_key())
        if entry is not None:
            before = entry.results.get(result.call_id)
            entry.results[result.call_id] = result
            self._grow(entry, size_bytes(result) - (size_bytes(before) if before else 0))

    def _add_tool_message(self, entry: _Entry, call: ModelInput) -> None:
        """Build the newest tool message from cached results, if all are here; `tail_digest` proves it."""
        last = entry.messages[-1] if entry.messages else None
        results, entry.results = entry.results, {}
        self._grow(entry, -sum(size_bytes(result) for result in results.values()))
        if call.newest or last is None or not last.tool_calls or entry.end + 1 != call.view.length:
            return
        if all(tool_call.id in results for tool_call in last.tool_calls):
            parts = [results[tool_call.id] for tool_call in last.tool_calls]
            self._add(entry, [Message(role="tool", parts=list(parts))])

    def _adopt_previous(self, previous_run_id: str | None) -> None:
        """Move the entry of the run before its continue-as-new to the new run id: nobody reads the old."""
        key = _key()
        if previous_run_id is not None and key not in self._entries:
            entry = self._entries.pop((key[0], previous_run_id), None)
            if entry is not None:
                entry.key = key
                self._entries[key] = entry

    def _get_entry(self, key: tuple[str, str], start: int) -> _Entry:
        entry = self._entries.get(key)
        if entry is None or start < entry.first or start > entry.end:
            self._drop(key)
            entry = self._entries[key] = _Entry(key=key, first=start)
        self._entries.move_to_end(key)
        return entry

    def _add(self, entry: _Entry, messages: list[Message]) -> None:
        entry.with_blobs.extend(entry.end + n for n, message in enumerate(messages) if message.blobs)
        entry.messages.extend(messages)
        self._grow(entry, sum(size_bytes(message) for message in messages))

    def _truncate(self, entry: _Entry, length: int) -> None:
        keep = max(length - entry.first, 0)
        self._grow(entry, -sum(size_bytes(message) for message in entry.messages[keep:]))
        del entry.messages[keep:]
        entry.with_blobs = [index for index in entry.with_blobs if index < entry.end]

    def _grow(self, entry: _Entry, grown_bytes: int) -> None:
        entry.size_bytes += grown_bytes
        if self._entries.get(entry.key) is not entry:
            return  # Dropped while it was being filled: see rule 3 above.
        self._bytes += grown_bytes
        # The last entry stays even if it alone exceeds the bound: a call is using it.
        while self._bytes > self.capacity_bytes and len(self._entries) > 1:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: tuple[str, str]) -> None:
        dropped = self._entries.pop(key, None)
        if dropped is not None:
            self._bytes -= dropped.size_bytes

    async def _fill(self, entry: _Entry, stop: int) -> None:
        while entry.end < stop:
            start = entry.end
            page = await self._query_page(start, stop)
            # Otherwise a concurrent attempt, perhaps of a worker given up for dead, has filled this page.
            if entry.end == start:
                self._add(entry, page)

    async def _get_pins(self, entry: _Entry, number: int) -> list[Message]:
        """Return the request that stays visible when the window has moved past it, if there is one."""
        if not number:
            return []
        index = number - 1
        if entry.first <= index < entry.end:
            return [entry.messages[index - entry.first]]
        if entry.pin is None or entry.pin[0] != index:
            [message] = await self._query_page(index, index + 1)
            before = 0 if entry.pin is None else size_bytes(entry.pin[1])
            entry.pin = (index, message)
            self._grow(entry, size_bytes(message) - before)
        return [entry.pin[1]]

    async def _get_summary(self, digest: str) -> str:
        """Return the summary that the call names: history holds its text once, with the call that wrote it."""
        if digest and digest not in self._summaries:
            query = TranscriptQuery(stop=0, summary=True)
            page = await self._query(TRANSCRIPT, query, TranscriptPage)
            if summary_digest(page.summary) != digest:
                raise StaleTranscript("the run has another summary by now")
            self.add_summary(page.summary)
        return self._summaries.get(digest, "")

    async def _query_page(self, start: int, stop: int) -> list[Message]:
        page = await self._query(TRANSCRIPT, TranscriptQuery(start=start, stop=stop), TranscriptPage)
        if not page.messages:
            raise StaleTranscript(f"the transcript has {page.length} messages, not {stop}")
        return page.messages

    async def _query(self, name: str, argument: Any, answer: type[_Answer]) -> _Answer:
        self.queries += 1
        info = activity.info()
        handle = activity.client().get_workflow_handle(str(info.workflow_id), run_id=info.workflow_run_id)
        args = [] if argument is None else [argument]
        try:
            result: _Answer = await handle.query(
                name, args=args, result_type=answer, rpc_timeout=_QUERY_TIMEOUT
            )
            return result
        except WorkflowQueryFailedError as error:
            raise StaleTranscript(f"the run does not answer {name!r}: {error}") from error
        except RPCError as error:
            # A network failure: Temporal retries the call, and then the run parks as for a lost provider.
            failure = ModelFailure(
                kind="connection", message=f"the run was not reached: {error}", retry_in=_PARKED_RETRY
            )
            raise ApplicationError(failure.message, failure, type=failure.kind) from error


def _agent_spec(resolved: ResolvedAgent) -> AgentSpec:
    assert isinstance(resolved.spec, AgentSpec), "only agents call models"
    return resolved.spec


def _key() -> tuple[str, str]:
    info = activity.info()
    return str(info.workflow_id), str(info.workflow_run_id)


def _messages_in_view(entry: _Entry, call: ModelInput) -> list[Message]:
    return entry.messages[call.view.start - entry.first : call.view.length - entry.first]
