"""Tool call: an activity that runs a function or calls an MCP server, and turns its failures into text for the model.

Theory of operation. An activity attempt is `call_tool`. Bound arguments, admission (circuit and rate limits)
and the tool's timeout surround the user's function, and heartbeats run until the result is stored. The tool of an MCP
server takes the place of a function: `mcp.calls` makes that call, and everything around it is the same.
A transient failure is raised, so that Temporal retries within the tool's `ToolRetry`. Every other failure
becomes an error result that the model reads.

`CallProgress` passes two facts from attempt to attempt in the heartbeat. A write whose result is lost may have had
its effect, from the moment at which its function begins: no fallback repeats it. And the failures so far: Temporal
counts attempts, and an attempt whose worker died is no failure of the tool.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from perdure.agent import Agent
from perdure.blobs import BlobStore
from perdure.delays import sensible_delay
from perdure.errors import ErrorKind, FatalToolError, RetryableToolError
from perdure.hooks import HookedRun
from perdure.messages import Text, ToolCall, ToolResult
from perdure.texts import describe_error
from perdure.tools import Tool, ToolContext
from perdure.user_credentials import CredentialRequest
from perdure.wire.effects import CheckedCall, ToolInput, ToolOutcome, most_attempts
from perdure.wire.names import CALL_TOOL, MAY_HAVE_EFFECT, NOT_CALLED, READ_RESULT
from perdure.wire.uncertain import mark_uncertain

from .call_progress import CallProgress, FunctionClock
from .content.last_results import LastResults
from .content.redact import redact_and_cut
from .content.results import ResultContent, read_more, to_content
from .content.transcripts import Transcripts
from .credentials import WorkerCredentials
from .elsewhere import not_served
from .function_errors import log_function_error
from .heartbeat import Heartbeats, was_cancelled, worker_is_ending
from .hooks import HOOK_FAILED, HookFailed, HookRunner
from .mcp.calls import McpArgumentsRefused, McpCallee, McpCalls, may_repeat
from .mcp.errors import McpConnectionLost, McpNotRepeated, McpToolFailed
from .resources import WorkerResources
from .telemetry import tool_span
from .threads import FunctionThreads, NoThreadLeft, call_function
from .traffic.admission import Traffic
from .traffic.circuit import CircuitOpen
from .traffic.rates import Throttled
from .traffic.transient_errors import is_timeout, is_transient

_QUIET_BEAT = timedelta(seconds=1)
"""Heartbeat interval of a call whose progress nobody streams."""

_SHORTEST_BEAT = timedelta(milliseconds=150)
"""Shortest heartbeat interval of a tool, whose note changes rarely; model calls follow the settings."""


_Callee = Tool | McpCallee


class ArgumentsRefused(Exception):
    """Arguments that do not fit the tool's signature; the message is for the model."""


@dataclass(frozen=True, kw_only=True)
class ToolCalls:
    """Activity `call_tool`, with the tools of the agents that this worker serves."""

    agents: Mapping[str, Agent]
    blobs: BlobStore
    threads: FunctionThreads
    transcripts: Transcripts
    traffic: Traffic = field(default_factory=Traffic)
    last_results: LastResults = field(default_factory=LastResults)
    hooks: HookRunner = field(default_factory=lambda: HookRunner(agents={}))
    mcp: McpCalls = field(default_factory=McpCalls)
    resources: WorkerResources = field(default_factory=WorkerResources)
    credentials: WorkerCredentials = field(default_factory=WorkerCredentials)
    progress_interval: timedelta = timedelta(milliseconds=150)

    @activity.defn(name=CALL_TOOL)
    async def call_tool(self, call: ToolInput) -> ToolOutcome:
        """Run the tool once; every failure that a retry would not mend becomes an error result.

        Raises:
            ApplicationError: retryable; the tool's retry policy decides how often.

        """
        began = time.monotonic()
        progress = CallProgress(call.call_id)
        interval = max(self.progress_interval if call.stream else _QUIET_BEAT, _SHORTEST_BEAT)
        with tool_span(call) as span:
            # Heartbeats go on until the result is stored and the hooks have seen it: the tool has run by then,
            # and a heartbeat timeout while a slow store writes would make Temporal run it again.
            async with Heartbeats(progress.heartbeat, interval):
                checked = await self._ask_before(call, progress)
                call = _with_arguments(call, checked)
                refusal = _refusal(checked)
                content, error_kind = refusal or await self._execute(call, progress)
                result = ToolResult(
                    call_id=call.call_id,
                    name=call.tool,
                    content=content.parts,
                    is_error=refusal is not None or error_kind is not None,
                    error_kind=error_kind,
                    spilled=content.spilled,
                    stand_in=content.stand_in,
                    duration_ms=round((time.monotonic() - began) * 1000),
                    attempts=activity.info().attempt,
                )
                if content.may_have_effect:
                    result = mark_uncertain(result)
                after = None if refusal else await self._ask_after(call, result, progress)
            result = _with_verdicts(result, checked, after)
            if checked is None or checked.ask is None:  # else the call waits for a person, and has no result
                self.transcripts.add_result(result)
            span.record(result)
            return ToolOutcome(
                result=result,
                arguments=checked.arguments if checked else None,
                ask=checked.ask if checked else None,
                end_turn=next(
                    (found.end_turn for found in (checked, after) if found and found.end_turn), None
                ),
            )

    async def _ask_before(self, call: ToolInput, progress: CallProgress) -> CheckedCall | None:
        """Ask the hooks before the call, once for all its attempts; None when there are none to ask.

        Raises:
            ApplicationError: type "hook_failed", while the tool has attempts left.

        """
        if call.tool == READ_RESULT or call.checked or "before_tool" not in call.hooks:
            return None
        if progress.checked is not None:
            return progress.checked
        self._find_tool(call, progress)  # a worker without the tool does not have its hooks either
        try:
            progress.checked = await self.hooks.check_call(
                _tool_call(call), _carrier(call), _hooked_run(call, self.resources)
            )
        except HookFailed as error:
            progress.failures += 1
            if progress.failures < call.attempts:
                activity.heartbeat(progress.last_word())
                raise ApplicationError(str(error), type=HOOK_FAILED) from None
            return CheckedCall(call_id=call.call_id, deny=f"not run: {error}")
        except asyncio.CancelledError as error:
            raise _interruption(error, progress) from None
        # The next attempt must find the verdict, so that no hook is asked twice.
        activity.heartbeat(progress.heartbeat(0, 0))
        return progress.checked

    async def _ask_after(
        self, call: ToolInput, result: ToolResult, progress: CallProgress
    ) -> CheckedCall | None:
        """Ask the hooks after the call; None when there are none to ask.

        The tool has run: a hook that fails must not run it again, so the result is withheld instead.
        """
        if call.tool == READ_RESULT or "after_tool" not in call.hooks:
            return None
        try:
            return await self.hooks.check_result(
                _tool_call(call), _carrier(call), _hooked_run(call, self.resources), result
            )
        except HookFailed as error:
            return CheckedCall(
                call_id=call.call_id, deny=f"the tool has run, but its result is withheld: {error}"
            )
        except asyncio.CancelledError as error:
            raise _interruption(error, progress) from None

    async def _execute(
        self, call: ToolInput, progress: CallProgress
    ) -> tuple[ResultContent, ErrorKind | None]:
        """Return the content for the model, and the kind of error it tells of, or None for a success."""
        if call.tool == READ_RESULT:
            return await read_more(self.blobs, call), None
        tool = self._find_tool(call, progress)
        try:
            value = await self._admit_and_run(tool, call, progress)
        except (ArgumentsRefused, McpArgumentsRefused) as error:
            return _failure_content(call, progress, error, name=""), "invalid_arguments"
        except FatalToolError as error:
            progress.mark_failed(error)
            _log(error, call)
            return self._fall_back(tool, call, _failure_content(call, progress, error, name=""), "tool_error")
        except (CircuitOpen, Throttled) as error:
            kind: ErrorKind = "circuit_open" if isinstance(error, CircuitOpen) else "throttled"
            return self._fall_back(tool, call, _failure_content(call, progress, error, name=""), kind)
        except BaseException as error:
            if was_cancelled(error):
                raise _interruption(error, progress) from None
            failure = (
                error  # `sys.exit` in a tool too: it is neither the worker's end nor another attempt's start
            )
        else:
            return await self._store(call, progress, value), None
        progress.mark_failed(failure)
        _log(failure, call)
        retry = _retry_error(failure, call, progress)
        if retry is not None:
            activity.heartbeat(progress.last_word())
            raise retry
        kind = "tool_timeout" if is_timeout(failure) else "tool_error"
        return self._fall_back(tool, call, _failure_content(call, progress, failure), kind)

    async def _store(self, call: ToolInput, progress: CallProgress, value: Any) -> ResultContent:
        """Return the tool's value as content for the transcript.

        Outside the tool's error handling: the tool has run, and no failure here may run it again.
        """
        try:
            content = await to_content(value, self.blobs, call.preview_bytes)
        except asyncio.CancelledError as error:
            raise _interruption(error, progress) from None
        self.last_results.add(call, content)
        return content

    def _fall_back(
        self, tool: _Callee, call: ToolInput, failure: ResultContent, kind: ErrorKind
    ) -> tuple[ResultContent, ErrorKind | None]:
        """Return the last result of the same call, if the tool allows that; else the failure."""
        last = self.last_results.find(call)
        if last is not None:
            return last.stand_in_for(tool.name, failure), None
        # An earlier attempt of the node, or the time before a reset, may have made the same call.
        uncertain = failure.may_have_effect or (call.writes and call.earlier_attempts > 0)
        return replace(failure, may_have_effect=uncertain), kind

    async def _admit_and_run(self, tool: _Callee, call: ToolInput, progress: CallProgress) -> Any:
        if tool.circuit:
            return await self._with_circuit(tool, call, progress)
        return await self._rate_limited(tool, call, progress)

    async def _rate_limited(self, tool: _Callee, call: ToolInput, progress: CallProgress) -> Any:
        """Run the tool once its rate limit has room."""
        await self.traffic.rates.acquire((tool_key(tool.name),), lambda: 0)
        return await self._run_with_timeout(tool, call, progress)

    async def _with_circuit(self, tool: _Callee, call: ToolInput, progress: CallProgress) -> Any:
        """Run the tool once circuit and rate limit admit it, and record the result with the circuit."""
        circuits = self.traffic.circuits
        ticket = await self.traffic.admit(tool_key(tool.name), (tool_key(tool.name),))
        try:
            value = await self._run_with_timeout(tool, call, progress)
        except FatalToolError:
            # The service answered, if only with a refusal: it is healthy.
            circuits.record_success(ticket)
            raise
        except (ArgumentsRefused, McpArgumentsRefused, NoThreadLeft):
            # The tool was not called.
            circuits.release(ticket)
            raise
        except BaseException as error:
            if was_cancelled(error):
                circuits.release(ticket)
            else:
                circuits.record_failure(ticket, "tool_error")
            raise
        circuits.record_success(ticket)
        return value

    def _find_tool(self, call: ToolInput, progress: CallProgress) -> _Callee:
        agent = self.agents.get(call.agent)
        found = _tool_of(agent, call) if agent else None
        if found is not None:
            return found
        raise not_served(
            f"the tool {call.tool!r} of agent {call.agent!r} is not on this worker",
            progress.last_word(),
            type=MAY_HAVE_EFFECT if progress.may_have_effect else NOT_CALLED,
        )

    async def _run_with_timeout(self, tool: _Callee, call: ToolInput, progress: CallProgress) -> Any:
        """Run the tool within its timeout.

        Raises:
            ArgumentsRefused, McpArgumentsRefused: the arguments do not fit; the tool was not called.
            TimeoutError: no result in time. A function in a thread goes on running.

        """
        clock = FunctionClock(call.timeout)

        def begin() -> None:
            progress.mark_started()
            clock.start()

        try:
            async with clock.timeout:
                if isinstance(tool, McpCallee):
                    return await self.mcp.call(tool, call, progress, begin)
                return await self._run_function(tool, call, progress, begin)
        except TimeoutError as error:
            # Only our own timeout is renamed. One that the tool raised keeps its message.
            if clock.timeout.expired():
                raise TimeoutError(f"no result within {call.timeout}") from error
            raise

    def _context_of(
        self, call: ToolInput, progress: CallProgress, cancelled: threading.Event
    ) -> Callable[[], ToolContext]:
        """Return what makes the context of a call, for the moment at which its function begins."""
        info, loop = activity.info(), asyncio.get_running_loop()
        resources = self.resources.of(call.agent)
        asked = CredentialRequest(
            user=call.user,
            tool=call.tool,
            agent=call.agent,
            run_id=str(info.workflow_id),
            context=call.context,
            resources=resources,
        )

        async def ask(fresh: bool) -> Any:
            return await self.credentials.ask(asked, fresh=fresh)

        return lambda: ToolContext(
            run_id=asked.run_id,
            call_id=call.call_id,
            idempotency_key=call.idempotency_key,
            attempt=call.earlier_attempts + info.attempt,
            # From now, as the function begins, and not from the activity's start: the call may have waited.
            deadline=datetime.now(UTC) + call.timeout,
            agent=call.agent,
            user=call.user,
            context=call.context,
            resources=resources,
            report=progress.report,
            cancelled=cancelled,
            ask_credentials=ask,
            loop=loop,
        )

    async def _run_function(
        self, tool: Tool, call: ToolInput, progress: CallProgress, begin: Callable[[], None]
    ) -> Any:
        """Bind the arguments and run the function; raises as `_run_with_timeout`."""
        try:
            arguments = tool.signature.bind(call.arguments)
            _check_resource(tool, call)
        except ValueError as error:
            raise ArgumentsRefused(f"the arguments do not fit: {error}") from None
        cancelled = threading.Event()
        context = self._context_of(call, progress, cancelled)

        def function() -> Any:
            if tool.signature.context is not None:
                arguments[tool.signature.context] = context()
            return tool.function(**arguments)

        try:
            return await call_function(
                self.threads, tool_key(tool.name), function, is_async=tool.is_async, begins=begin
            )
        finally:
            # A thread cannot be stopped. A tool that watches this event can stop itself.
            cancelled.set()


def _log(error: BaseException, call: ToolInput) -> None:
    log_function_error(error, f"tool {call.tool!r} of agent {call.agent!r}", call_id=call.call_id)


def _tool_of(agent: Agent, call: ToolInput) -> _Callee | None:
    """Return what the call names, as this worker defines it, or None."""
    if call.mcp is None:
        return next((tool for tool in agent.tools if isinstance(tool, Tool) and tool.name == call.tool), None)
    server = next((server for server in agent.mcp_servers if server.name == call.mcp.server), None)
    return None if server is None else McpCallee(name=call.tool, server=server, source=call.mcp)


def _carrier(call: ToolInput) -> str:
    return "function" if call.mcp is None else "mcp"


def _tool_call(call: ToolInput) -> ToolCall:
    return ToolCall(id=call.call_id, name=call.tool, arguments=call.arguments)


def _hooked_run(call: ToolInput, resources: WorkerResources) -> HookedRun:
    run_id = str(activity.info().workflow_id)
    return HookedRun(
        run_id=run_id,
        agent=call.agent,
        user=call.user,
        context=call.context,
        resources=resources.of(call.agent),
    )


def _with_arguments(call: ToolInput, checked: CheckedCall | None) -> ToolInput:
    if checked is None or checked.arguments is None:
        return call
    return call.model_copy(update={"arguments": checked.arguments})


def _refusal(checked: CheckedCall | None) -> tuple[ResultContent, ErrorKind | None] | None:
    """Return the content of a call that its hooks do not let through, or None."""
    if checked is None or not (checked.deny or checked.ask or checked.end_turn):
        return None
    text = checked.deny or ("not run: the turn was ended" if checked.end_turn else "")
    # Without a kind: the tool did not fail, so no stand-in may do what the hooks refused.
    return ResultContent(parts=[Text(text=text)]), None


def _with_verdicts(result: ToolResult, before: CheckedCall | None, after: CheckedCall | None) -> ToolResult:
    """Return the result as the hooks let the model read it, with their records."""
    records = [record for checked in (before, after) if checked for record in checked.records]
    if after is not None and after.text is not None:
        result = result.model_copy(update={"content": [Text(text=after.text)], "spilled": None})
    if after is not None and after.deny is not None:
        # Without a kind, as above: a stand-in would do again what the tool has done.
        withheld = {
            "content": [Text(text=after.deny)],
            "is_error": True,
            "error_kind": None,
            "spilled": None,
        }
        result = result.model_copy(update=withheld)
    return result.model_copy(update={"hooks": records}) if records else result


def tool_key(name: str) -> str:
    """Return the key of a tool among circuits and rate limits."""
    return f"tool:{name}"


def _check_resource(tool: Tool, call: ToolInput) -> None:
    """Check that the policy saw the resource as the function gets it.

    It did not if a person, or another version of this worker, wrote the resource in another form.

    Raises:
        ValueError: it saw another form; the message gives the right one.

    """
    if tool.resource is None or tool.resource not in call.arguments:
        return
    written = call.arguments[tool.resource]
    read = tool.signature.canonical(call.arguments, tool.resource)[tool.resource]
    if read != written:
        raise ValueError(
            f"{tool.resource}: write {read!r}, not {written!r}: the policy reads it as it is written"
        )


def _interruption(error: BaseException, progress: CallProgress) -> BaseException:
    """Return the error to raise for an interrupted call: when the worker ends, whether it may be done.

    The run reads it from the last attempt, and does not repeat a write that may be done.
    """
    if not worker_is_ending():
        return error
    activity.heartbeat(progress.last_word())
    if progress.may_have_effect:
        message = (
            "The worker was stopped before the tool returned; the call may or may not have taken effect."
        )
    else:
        message = "The worker was stopped before the tool was called."
    kind = MAY_HAVE_EFFECT if progress.may_have_effect else NOT_CALLED
    return ApplicationError(message, type=kind, category=ApplicationErrorCategory.BENIGN)


def _retry_error(error: BaseException, call: ToolInput, progress: CallProgress) -> ApplicationError | None:
    """Return the error that makes Temporal retry, or None if no attempt is left or a retry would not help."""
    # A tool that raises a retryable ApplicationError asks for the retry by Temporal's own means.
    is_requested = isinstance(error, ApplicationError) and not error.non_retryable
    most = most_attempts(call.attempts, repeatable=not call.writes)
    if progress.failures >= call.attempts or activity.info().attempt >= most:
        return None
    if progress.may_have_effect and not may_repeat(call):
        return None
    if not (is_requested or is_transient(error)):
        return None
    delay = None
    if isinstance(error, RetryableToolError):
        delay = error.after
    elif isinstance(error, ApplicationError):
        delay = error.next_retry_delay
    return ApplicationError(
        _error_text(error), type=type(error).__name__, next_retry_delay=sensible_delay(delay)
    )


def _failure_content(
    call: ToolInput, progress: CallProgress, error: BaseException, *, name: str | None = None
) -> ResultContent:
    """Return the error as content, with the fact that the call may have had its effect."""
    suffix = f" (after {progress.failures} attempts)" if progress.failures > 1 else ""
    return ResultContent(
        parts=[Text(text=f"{_error_text(error, name=name)}{suffix}")],
        may_have_effect=call.writes and progress.may_have_effect,
    )


def _error_text(error: BaseException, *, name: str | None = None) -> str:
    """Return the error's name and message, secrets masked, in bounded length. Never raises.

    `name` replaces the type's name; empty for errors whose message stands alone.
    """
    stands_alone = isinstance(
        error, RetryableToolError | ApplicationError | McpToolFailed | McpConnectionLost | McpNotRepeated
    )
    kind = ("" if stands_alone else type(error).__name__) if name is None else name
    message = describe_error(error)
    return redact_and_cut(f"{kind}: {message}" if kind else message)
