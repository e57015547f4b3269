"""The worker's copy of transcripts: a bounded cache, filled from the run itself by paged queries.

Queries leave nothing in history. A transcript only grows at its end, so a cached beginning never
goes stale; a run that continued as new, or was reset, has another run id and so another entry.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import activity
from temporalio.client import WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from perdure.messages import Message, ToolResult, size_bytes
from perdure.wire.effects import SPEC_DIGEST_CHARS, ModelFailure, ModelInput, tail_digest, tail_of
from perdure.wire.names import SPEC_QUERY, STALE, TRANSCRIPT
from perdure.wire.requests import TranscriptQuery
from perdure.wire.results import TranscriptPage
from perdure.wire.spec import AgentSpec, ResolvedAgent

_Answer = TypeVar("_Answer")
_QUERY_TIMEOUT = timedelta(seconds=10)
_SOON = timedelta(seconds=30)
_MOST_SPECS = 256


class StaleTranscript(ApplicationError):
    """The run does not have what this call was scheduled for; trying the same call again is no use."""

    def __init__(self, what: str) -> None:
        super().__init__(what, type=STALE, non_retryable=True)


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """What the model is to see."""

    messages: tuple[Message, ...]
    blobs: tuple[str, ...]
    """Names of the blobs that hold the images and documents in them."""


@dataclass(kw_only=True)
class _Entry:
    """Messages `first` and following of one run's transcript, without a hole."""

    key: tuple[str, str]
    first: int = 0
    messages: list[Message] = field(default_factory=list[Message])
    pins: list[Message] = field(default_factory=list[Message])
    """The run's first messages, for when the window has moved on."""
    pictured: list[int] = field(default_factory=list[int])
    """Indices, in the run, of those messages that have blobs: they are few, and no step looks at all."""
    size: int = 0
    """In bytes."""
    asked_by: bytes = b""
    """The attempt that saw it last: the only one whose reply may be the transcript's next message."""
    results: dict[str, ToolResult] = field(default_factory=dict[str, ToolResult])
    """Of tool calls that ran here, until their message is in the transcript."""

    @property
    def end(self) -> int:
        return self.first + len(self.messages)


class Transcripts:
    """Transcripts and specs of runs, bounded by bytes, the least recently used out first."""

    def __init__(self, most_bytes: int = 64 * 1024 * 1024) -> None:
        self.most_bytes = most_bytes
        self.queries = 0
        """How often a run was asked: the misses, for metrics and tests."""
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._specs: OrderedDict[str, AgentSpec] = OrderedDict()
        self._asking: dict[str, asyncio.Future[AgentSpec]] = {}
        self._bytes = 0

    async def get_view(self, want: ModelInput) -> ModelView:
        """The messages the model is to see.

        Raises:
            StaleTranscript: the run's transcript is not as long as the call says.

        """
        self._adopt(want.previous_run_id)
        entry = self._entry(_key(), want.view.start)
        await self._complete(entry, want)
        seen = _seen(entry, want)
        if want.tail_digest is not None and tail_digest(tail_of(seen)) != want.tail_digest:
            # An answer was remembered that did not count, because its worker was given up for dead.
            self._drop(entry.key)
            entry = self._entry(entry.key, want.view.start)
            entry.asked_by = activity.info().task_token
            await self._fill(entry, want.view.length)
            seen = _seen(entry, want)
        pins = await self._pins(entry, want.view.pinned)
        shown = range(want.view.start, want.view.length)
        pictured = [entry.messages[i - entry.first] for i in entry.pictured if i in shown]
        blobs = {name: None for message in (*pins, *pictured) for name in message.blobs}
        return ModelView(messages=(*pins, *seen), blobs=tuple(blobs))

    async def _complete(self, entry: _Entry, want: ModelInput) -> None:
        """Bring the entry to the length asked for, from memory as far as possible."""
        entry.asked_by = activity.info().task_token
        # A reply that was remembered and did not become part of the transcript: it was given up.
        self._cut(entry, want.view.length)
        base = want.view.length - len(want.new_messages)
        self._remember(entry, want)
        await self._fill(entry, base)
        # A retried attempt finds some of what is fresh in the cache already.
        self._add(entry, want.new_messages[max(entry.end - base, 0) :])

    async def get_spec(self, pin: str) -> AgentSpec:
        """The pinned spec of that digest; asked of the run once a worker."""
        known = self._specs.get(pin)
        if known is None:
            # Of a hundred runs that begin at once one is asked; the others wait for its answer.
            asking = self._asking.get(pin)
            if asking is None:
                asking = self._asking[pin] = asyncio.ensure_future(self._asked_spec())
                asking.add_done_callback(lambda _: self._asking.pop(pin, None))
            known = await asyncio.shield(asking)
            if not known.pin.startswith(pin):
                return known  # of a run that was redriven meanwhile: this is no other's
        self._keep(pin, known)
        return known

    async def _asked_spec(self) -> AgentSpec:
        return _of_agent(await self._ask(SPEC_QUERY, None, ResolvedAgent))

    def add_spec(self, spec: AgentSpec) -> None:
        """Remember a spec that was made here: its runs' model calls will want it."""
        self._keep(spec.pin[:SPEC_DIGEST_CHARS], spec)

    def _keep(self, pin: str, spec: AgentSpec) -> None:
        self._specs[pin] = spec
        self._specs.move_to_end(pin)
        if len(self._specs) > _MOST_SPECS:
            self._specs.popitem(last=False)

    def add_reply(self, length: int, message: Message) -> None:
        """Remember the answer that becomes message `length`, so that the next step need not ask."""
        entry = self._entries.get(_key())
        if entry is not None and entry.end == length and entry.asked_by == activity.info().task_token:
            self._add(entry, [message])

    def add_result(self, result: ToolResult) -> None:
        """Remember a tool's result, so that the next step need not ask for it."""
        entry = self._entries.get(_key())
        if entry is not None:
            before = entry.results.get(result.call_id)
            entry.results[result.call_id] = result
            self._grow(entry, size_bytes(result) - (size_bytes(before) if before else 0))

    def _remember(self, entry: _Entry, want: ModelInput) -> None:
        """Put the newest tool message together from results that were made here; `tail_digest` proves it."""
        last = entry.messages[-1] if entry.messages else None
        results, entry.results = entry.results, {}
        self._grow(entry, -sum(size_bytes(result) for result in results.values()))
        if want.new_messages or last is None or not last.tool_calls or entry.end + 1 != want.view.length:
            return
        if all(call.id in results for call in last.tool_calls):
            made = [results[call.id] for call in last.tool_calls]
            self._add(entry, [Message(role="tool", parts=list(made))])

    def _adopt(self, previous_run_id: str | None) -> None:
        """Go on with what is here of the run's part before this one: nobody needs that any more."""
        key = _key()
        if previous_run_id is not None and key not in self._entries:
            entry = self._entries.pop((key[0], previous_run_id), None)
            if entry is not None:
                entry.key = key
                self._entries[key] = entry

    def _entry(self, key: tuple[str, str], start: int) -> _Entry:
        entry = self._entries.get(key)
        if entry is None or start < entry.first or start > entry.end:
            self._drop(key)
            entry = self._entries[key] = _Entry(key=key, first=start)
        self._entries.move_to_end(key)
        return entry

    def _add(self, entry: _Entry, messages: list[Message]) -> None:
        entry.pictured.extend(entry.end + n for n, message in enumerate(messages) if message.blobs)
        entry.messages.extend(messages)
        self._grow(entry, sum(size_bytes(message) for message in messages))

    def _cut(self, entry: _Entry, length: int) -> None:
        keep = max(length - entry.first, 0)
        self._grow(entry, -sum(size_bytes(message) for message in entry.messages[keep:]))
        del entry.messages[keep:]
        entry.pictured = [index for index in entry.pictured if index < entry.end]

    def _grow(self, entry: _Entry, grown: int) -> None:
        entry.size += grown
        if self._entries.get(entry.key) is not entry:
            return  # dropped while it was being filled: it lives as long as the call that fills it
        self._bytes += grown
        while self._bytes > self.most_bytes and len(self._entries) > 1:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: tuple[str, str]) -> None:
        dropped = self._entries.pop(key, None)
        if dropped is not None:
            self._bytes -= dropped.size

    async def _fill(self, entry: _Entry, stop: int) -> None:
        while entry.end < stop:
            start = entry.end
            page = await self._page(start, stop)
            if entry.end == start:  # else an attempt given up for dead was faster
                self._add(entry, page)

    async def _pins(self, entry: _Entry, count: int) -> list[Message]:
        """The first messages, which stay visible when the window has moved on."""
        while (start := len(entry.pins)) < count:
            page = await self._page(start, count)
            if len(entry.pins) == start:
                entry.pins.extend(page)
                self._grow(entry, sum(size_bytes(message) for message in page))
        return entry.pins[:count]

    async def _page(self, start: int, stop: int) -> list[Message]:
        page = await self._ask(TRANSCRIPT, TranscriptQuery(start=start, stop=stop), TranscriptPage)
        if not page.messages:
            raise StaleTranscript(f"the transcript has {page.length} messages, not {stop}")
        return page.messages

    async def _ask(self, query: str, want: Any, answer: type[_Answer]) -> _Answer:
        self.queries += 1
        info = activity.info()
        handle = activity.client().get_workflow_handle(str(info.workflow_id), run_id=info.workflow_run_id)
        args = [] if want is None else [want]
        try:
            given: _Answer = await handle.query(
                query, args=args, result_type=answer, rpc_timeout=_QUERY_TIMEOUT
            )
            return given
        except WorkflowQueryFailedError as error:
            raise StaleTranscript(f"the run does not answer {query!r}: {error}") from error
        except RPCError as error:
            # Not our bug, and nobody's fault but the network's: worth trying again, and to park for.
            failure = ModelFailure(
                kind="connection", message=f"the run was not reached: {error}", retry_in=_SOON
            )
            raise ApplicationError(failure.message, failure, type=failure.kind) from error


def _of_agent(found: ResolvedAgent) -> AgentSpec:
    assert isinstance(found.spec, AgentSpec), "only agents call models"
    return found.spec


def _key() -> tuple[str, str]:
    info = activity.info()
    return str(info.workflow_id), str(info.workflow_run_id)


def _seen(entry: _Entry, want: ModelInput) -> list[Message]:
    return entry.messages[want.view.start - entry.first : want.view.length - entry.first]
