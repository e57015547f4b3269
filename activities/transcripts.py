"""The worker's copy of transcripts: a bounded cache, filled from the run itself by paged queries.

Queries leave nothing in history. A transcript only grows at its end, so a cached beginning never
goes stale; a run that continued as new, or was reset, has another run id and so another entry.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import activity
from temporalio.client import WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError

from perdure.effects import SPEC_QUERY, STALE, ModelInput, tail_digest
from perdure.messages import Message, ToolResult, size_bytes
from perdure.spec import AgentSpec
from perdure.wire import TRANSCRIPT, TranscriptPage, TranscriptQuery

_Answer = TypeVar("_Answer")
_QUERY_TIMEOUT = timedelta(seconds=10)
_MOST_SPECS = 256


class Stale(ApplicationError):
    """The run does not have what this call was scheduled for; trying the same call again is no use."""

    def __init__(self, what: str) -> None:
        super().__init__(what, type=STALE, non_retryable=True)


@dataclass(kw_only=True)
class _Entry:
    """Messages `first` and following of one run's transcript, without a hole."""

    first: int = 0
    messages: list[Message] = field(default_factory=list[Message])
    bytes: int = 0
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
        self._pinned: dict[tuple[str, str], list[Message]] = {}
        self._specs: OrderedDict[str, AgentSpec] = OrderedDict()
        self._bytes = 0

    async def view(self, want: ModelInput) -> tuple[Message, ...]:
        """The messages the model is to see.

        Raises:
            Stale: the run's transcript is not as long as the call says.

        """
        key = _key()
        entry = self._entry(key, want.view.start)
        base = want.view.length - len(want.fresh)
        self._remember(entry, want)
        await self._fill(entry, base)
        # A retried attempt finds some of what is fresh in the cache already.
        self._add(entry, want.fresh[max(entry.end - base, 0) :])
        seen = entry.messages[want.view.start - entry.first : want.view.length - entry.first]
        return (*await self._pins(key, want.view.pinned), *seen)

    async def spec(self, spec_hash: str) -> AgentSpec:
        """The pinned spec of that hash; asked of the run once a worker."""
        known = self._specs.get(spec_hash)
        if known is None:
            known = await self._ask(SPEC_QUERY, None, AgentSpec)
            self._specs[spec_hash] = known
            if len(self._specs) > _MOST_SPECS:
                self._specs.popitem(last=False)
        self._specs.move_to_end(spec_hash)
        return known

    def add_reply(self, length: int, message: Message) -> None:
        """Remember the answer that becomes message `length`, so that the next step need not ask."""
        entry = self._entries.get(_key())
        if entry is not None and entry.end == length:
            self._add(entry, [message])

    def add_result(self, result: ToolResult) -> None:
        """Remember a tool's result, so that the next step need not ask for it."""
        entry = self._entries.get(_key())
        if entry is not None:
            entry.results[result.call_id] = result

    def _remember(self, entry: _Entry, want: ModelInput) -> None:
        """Put the newest tool message together from results that were made here, if they are those."""
        last = entry.messages[-1] if entry.messages else None
        results, entry.results = entry.results, {}
        if want.tail is None or last is None or entry.end + 1 != want.view.length:
            return
        if all(call.id in results for call in last.tool_calls):
            message = Message(role="tool", parts=[results[call.id] for call in last.tool_calls])
            if tail_digest([message]) == want.tail:
                self._add(entry, [message])

    def _entry(self, key: tuple[str, str], start: int) -> _Entry:
        entry = self._entries.get(key)
        if entry is None or start < entry.first or start > entry.end:
            self._drop(key)
            entry = self._entries[key] = _Entry(first=start)
        self._entries.move_to_end(key)
        return entry

    def _add(self, entry: _Entry, messages: list[Message]) -> None:
        grown = sum(size_bytes(message) for message in messages)
        entry.messages.extend(messages)
        entry.bytes += grown
        self._bytes += grown
        while self._bytes > self.most_bytes and len(self._entries) > 1:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: tuple[str, str]) -> None:
        dropped = self._entries.pop(key, None)
        self._pinned.pop(key, None)
        if dropped is not None:
            self._bytes -= dropped.bytes

    async def _fill(self, entry: _Entry, stop: int) -> None:
        while entry.end < stop:
            start = entry.end
            page = await self._page(start, stop)
            if entry.end == start:  # else an attempt given up for dead was faster
                self._add(entry, page)

    async def _pins(self, key: tuple[str, str], count: int) -> list[Message]:
        """The first messages, which stay visible when the window has moved on."""
        pins = self._pinned.get(key, [])
        while len(pins) < count:
            pins = pins + await self._page(len(pins), count)
            self._pinned[key] = pins
        return pins[:count]

    async def _page(self, start: int, stop: int) -> list[Message]:
        page = await self._ask(TRANSCRIPT, TranscriptQuery(start=start, stop=stop), TranscriptPage)
        if not page.messages:
            raise Stale(f"the transcript has {page.length} messages, not {stop}")
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
            raise Stale(f"the run does not answer {query!r}: {error}") from error


def _key() -> tuple[str, str]:
    info = activity.info()
    return str(info.workflow_id), str(info.workflow_run_id)
