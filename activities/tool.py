"""The tool call: one activity a call. What a tool does wrong becomes text for the model."""

import asyncio
import contextvars
import functools
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from perdure.agent import Agent
from perdure.blobs import BlobStore
from perdure.errors import ErrorKind, FatalToolError, RetryableToolError
from perdure.messages import Text, ToolResult
from perdure.texts import fix_surrogates, truncate_middle
from perdure.tools import Tool, ToolContext
from perdure.wire.effects import Progress, ToolInput, ToolOutcome
from perdure.wire.names import CALL_TOOL, MAY_BE_DONE, READ_RESULT

from .content.last_results import Remembered
from .content.redact import redact
from .content.results import Kept, keep, read_more
from .content.transcripts import Transcripts
from .heartbeat import Heart, last_progress, worker_is_ending
from .telemetry import tool_span
from .traffic.admission import Traffic
from .traffic.circuit import CircuitOpen
from .traffic.rates import Throttled
from .traffic.transient_errors import is_timeout, may_have_reached, may_pass

_BEAT = timedelta(seconds=1)


class Refused(Exception):
    """The call cannot be made as asked; the message is for the model."""


@dataclass(frozen=True, kw_only=True)
class ToolCalls:
    """The tools of the agents this worker serves."""

    agents: Mapping[str, Agent]
    blobs: BlobStore
    executor: Executor
    transcripts: Transcripts
    traffic: Traffic = field(default_factory=Traffic)
    remembered: Remembered = field(default_factory=Remembered)
    progress_interval: timedelta = timedelta(milliseconds=150)

    @activity.defn(name=CALL_TOOL)
    async def call_tool(self, want: ToolInput) -> ToolOutcome:
        """Make the call once. Gives a result in every case that trying again would not mend.

        Raises:
            ApplicationError: retryable; the tool's retry policy decides how often.

        """
        began = time.monotonic()
        note = _Note(want.call_id)
        interval = self.progress_interval if want.stream else _BEAT
        # To the very end: what a store takes its time to keep has been done, and must not be done again.
        with tool_span(want) as span:
            async with Heart(note.progress, max(interval, timedelta(milliseconds=150))):
                kept, error_kind = await self._kept(want, note)
            result = ToolResult(
                call_id=want.call_id,
                name=want.tool,
                content=kept.content,
                is_error=error_kind is not None,
                error_kind=error_kind,
                spilled=kept.spilled,
                stand_in=kept.stand_in,
                duration_ms=round((time.monotonic() - began) * 1000),
                attempts=activity.info().attempt,
            )
            self.transcripts.add_result(result)
            span.done(result)
            return ToolOutcome(result=result)

    async def _kept(self, want: ToolInput, note: "_Note") -> tuple[Kept, ErrorKind | None]:
        """What the model gets, and of which kind the error is, if it is one."""
        if want.tool == READ_RESULT:
            return await read_more(self.blobs, want), None
        tool = self._tool(want, note)
        try:
            value = await self._in_turn(tool, want, note)
        except Refused as error:
            return _said(error, name=""), "invalid_arguments"
        except FatalToolError as error:
            note.ended(error)
            return self._given_up(tool, want, note, _said(error, name=""), "tool_error")
        except (CircuitOpen, Throttled) as error:
            kind: ErrorKind = "circuit_open" if isinstance(error, CircuitOpen) else "throttled"
            return self._given_up(tool, want, note, _said(error, name=""), kind)
        except BaseException as error:
            if not _is_the_tools_own(error):
                raise _cut_short(error, note) from None
            failed = error
        else:
            # Outside the try: the tool has done its work, and nothing here may have it done again.
            try:
                kept = await keep(value, self.blobs, want.preview_bytes)
            except asyncio.CancelledError as error:
                raise _cut_short(error, note) from None
            self.remembered.keep(tool, want, kept)
            return kept, None
        note.ended(failed)
        again = _again(failed, tool.retry.attempts)
        if again is not None:
            activity.heartbeat(note.progress(0, 0))  # the next attempt must know
            raise again
        kind = "tool_timeout" if is_timeout(failed) else "tool_error"
        return self._given_up(tool, want, note, _said(failed), kind)

    def _given_up(
        self, tool: Tool, want: ToolInput, note: "_Note", said: Kept, kind: ErrorKind
    ) -> tuple[Kept, ErrorKind | None]:
        """The failure; or what the same call gave a while ago, where the tool says that this will do."""
        earlier = self.remembered.find(tool, want)
        if earlier is not None:
            return earlier.told(tool.name, said), None
        if tool.effect == "write" and note.may_have_effect:
            # Of this kind, whatever the last attempt met: nothing else may do it in its place.
            said = Kept(content=[*said.content, Text(text="It may or may not have taken effect.")])
            return said, "tool_timeout"
        return said, kind

    async def _in_turn(self, tool: Tool, want: ToolInput, note: "_Note") -> Any:
        """Run the tool when it is this call's turn."""
        if tool.circuit:
            return await self._watched(tool, want, note)
        await self.traffic.rates.enter((tool_key(tool.name),), lambda: 0)
        return await self._run(tool, want, note)

    async def _watched(self, tool: Tool, want: ToolInput, note: "_Note") -> Any:
        """Run the tool if its circuit lets it, and let others know how it went."""
        circuits = self.traffic.circuits
        ticket = await self.traffic.admit(tool_key(tool.name), (tool_key(tool.name),))
        try:
            value = await self._run(tool, want, note)
        except FatalToolError:
            circuits.succeeded(ticket)  # it answers; what it says is another matter
            raise
        except Refused:
            circuits.left(ticket)  # it was not even asked
            raise
        except BaseException as error:
            circuits.failed(ticket, "tool_error") if _is_the_tools_own(error) else circuits.left(ticket)
            raise
        circuits.succeeded(ticket)
        return value

    def _tool(self, want: ToolInput, note: "_Note") -> Tool:
        agent = self.agents.get(want.agent)
        tool = next((t for t in agent.tools if t.name == want.tool), None) if agent else None
        if isinstance(tool, Tool):
            return tool
        # Another worker may have it: a deploy is under way.
        activity.heartbeat(note.progress(0, 0))
        raise ApplicationError(
            f"the tool {want.tool!r} of agent {want.agent!r} is not on this worker",
            type=MAY_BE_DONE if note.may_have_effect else None,
        )

    async def _run(self, tool: Tool, want: ToolInput, note: "_Note") -> Any:
        context = _context(tool, want, note)
        try:
            arguments = tool.signature.bind(want.arguments)
        except ValueError as error:
            raise Refused(f"the arguments do not fit: {error}") from None
        if tool.signature.context is not None:
            arguments[tool.signature.context] = context
        clock = asyncio.timeout(tool.timeout.total_seconds())
        note.begins()
        try:
            async with clock:
                return await self._called(tool, arguments)
        except TimeoutError as error:
            if clock.expired():
                raise TimeoutError(f"no result within {tool.timeout}") from error
            raise
        finally:
            context.cancelled.set()  # a thread cannot be stopped, only told

    async def _called(self, tool: Tool, arguments: dict[str, Any]) -> Any:
        if tool.is_async:
            return await tool.function(**arguments)
        call = functools.partial(contextvars.copy_context().run, tool.function, **arguments)
        value = await asyncio.get_running_loop().run_in_executor(self.executor, call)
        return await value if asyncio.iscoroutine(value) else value


class _Note:
    """A tool's own word on how far it is, written from any thread; and whether it may have had its effect."""

    def __init__(self, call_id: str) -> None:
        self.call_id = call_id
        self.text = ""
        self.may_have_effect = self._before = _touched_before()

    def begins(self) -> None:
        """The tool is called."""
        self.may_have_effect = True

    def ended(self, error: BaseException) -> None:
        """It failed with that."""
        self.may_have_effect = self._before or may_have_reached(error)

    def report(self, text: str) -> None:
        self.text = truncate_middle(fix_surrogates(str(text)), 500)

    def progress(self, seq: int, window: int) -> Progress:
        return Progress(
            call=self.call_id,
            attempt=activity.info().attempt,
            seq=seq,
            note=self.text[:window],
            may_have_effect=self.may_have_effect,
        )


def _touched_before() -> bool:
    """Whether an earlier attempt may have had the effect: one of which nothing was heard may have, too."""
    progress, attempt = last_progress(), activity.info().attempt
    return attempt > 1 and (progress is None or progress.attempt < attempt - 1 or progress.may_have_effect)


def tool_key(name: str) -> str:
    """By what circuits and rate limits know a tool."""
    return f"tool:{name}"


def _context(tool: Tool, want: ToolInput, note: _Note) -> ToolContext:
    info = activity.info()
    return ToolContext(
        run_id=str(info.workflow_id),
        call_id=want.call_id,
        idempotency_key=want.idempotency_key,
        attempt=info.attempt,
        deadline=datetime.now(UTC) + tool.timeout,  # it may have waited for its turn
        agent=want.agent,
        user=want.user,
        context=want.context,
        report=note.report,
    )


def _is_the_tools_own(error: BaseException) -> bool:
    """Whether the tool failed; else the call was cancelled, or the process is to end."""
    if isinstance(error, asyncio.CancelledError):
        return not activity.is_cancelled()
    return not isinstance(error, SystemExit | KeyboardInterrupt)


def _cut_short(error: BaseException, note: _Note) -> BaseException:
    """The call ends because the worker does: whoever reads the last attempt's error must know that much."""
    if not worker_is_ending():
        return error
    activity.heartbeat(note.progress(0, 0))
    said = "The worker was stopped before the tool "
    said += "returned; the call may or may not have taken effect." if note.may_have_effect else "was called."
    kind = MAY_BE_DONE if note.may_have_effect else None
    return ApplicationError(said, type=kind, category=ApplicationErrorCategory.BENIGN)


def _again(error: BaseException, attempts: int) -> ApplicationError | None:
    """What makes Temporal try again, while the tool's policy allows and it may help."""
    asked_for = isinstance(error, ApplicationError) and not error.non_retryable
    if activity.info().attempt >= attempts or not (asked_for or may_pass(error)):
        return None
    delay = None
    if isinstance(error, RetryableToolError):
        delay = error.after
    elif isinstance(error, ApplicationError):
        delay = error.next_retry_delay
    return ApplicationError(_words(error), type=type(error).__name__, next_retry_delay=delay)


def _said(error: BaseException, *, name: str | None = None) -> Kept:
    tried = activity.info().attempt
    after = f" (after {tried} attempts)" if tried > 1 else ""
    return Kept(content=[Text(text=f"{_words(error, name=name)}{after}")])


def _words(error: BaseException, *, name: str | None = None) -> str:
    """What the error says, without secrets, in bounded length. Never an error itself."""
    plain = isinstance(error, RetryableToolError | ApplicationError)
    kind = ("" if plain else type(error).__name__) if name is None else name
    try:
        said = str(error)
    except Exception:
        said = "(an error that cannot say what it is)"
    return truncate_middle(redact(f"{kind}: {said}" if kind else said))
