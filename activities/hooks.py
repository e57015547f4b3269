"""Hooks of agents: asked beside the call, in their order, and checked.

Theory of operation. `HookRunner.ask` asks every hook of an agent that overrides the point. Proceed and Replace let
the next hook see the value; any other verdict ends the round. A hook that raises, or gives a verdict that its point
does not take, raises HookFailed: the call is not made, or its result is withheld. So a broken guard never lets
anything pass.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError

from perdure.agent import Agent
from perdure.hooks import (
    ALLOWED,
    Ask,
    Deny,
    EndTurn,
    Hook,
    HookedCall,
    HookedRun,
    HookPoint,
    HookRecord,
    Proceed,
    Replace,
    Retry,
    Verdict,
)
from perdure.messages import Text, ToolCall, ToolResult
from perdure.wire.effects import FUNCTION_ATTEMPTS, CheckedCall, HookInput, HookOutcome, Progress
from perdure.wire.names import RUN_HOOKS
from perdure.wire.plain import problem_as_json

from .content.redact import mask_value, redact_and_cut, redact_error
from .elsewhere import not_served
from .function_errors import log_function_error
from .heartbeat import Heartbeats, last_progress, was_cancelled, worker_is_ending
from .resources import WorkerResources
from .threads import FunctionThreads, call_function

_LONGEST_ROUND = timedelta(minutes=1)
"""Time of one round of hooks. It is less than an activity has left for them, so that no tool runs twice for it."""

_BEAT = timedelta(seconds=1)
"""Heartbeat interval. A round that is shorter sends none."""

HOOK_FAILED = "hook_failed"
"""Error type, and kind in `perdure.errors`."""

Subject = TypeVar("Subject")


class HookFailed(Exception):
    """A hook raised an error, or gave a verdict that its point does not take."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """Verdict of an agent's hooks at one point, with the records of all that changed something."""

    verdict: Verdict = field(default_factory=Proceed)
    records: list[HookRecord] = field(default_factory=list[HookRecord])
    replaced: Any = None
    """Newest value that a hook has set; `is_replaced` tells whether one has."""
    is_replaced: bool = False


@dataclass(frozen=True, kw_only=True)
class HookRunner:
    """Activity `run_hooks`, and the rounds that other activities ask for."""

    agents: Mapping[str, Agent]
    threads: FunctionThreads = field(default_factory=FunctionThreads)
    resources: WorkerResources = field(default_factory=WorkerResources)

    def serves(self, agent: str) -> bool:
        """Return whether this worker has the agent, and so its hooks."""
        return agent in self.agents

    def _hooks(self, agent: str, point: HookPoint) -> list[Hook]:
        known = self.agents.get(agent)
        hooks: list[Hook] = list(known.hooks) if known else []
        return [hook for hook in hooks if getattr(type(hook), point) is not getattr(Hook, point)]

    async def ask(
        self,
        agent: str,
        point: HookPoint,
        subject: Subject,
        apply: Callable[[Subject, Any], Subject],
    ) -> Round:
        """Ask the agent's hooks. `apply` sets a replaced value in what the next hook sees.

        Raises:
            HookFailed: the message names the hook and the point; or no hook is here to ask. The run was started
                with one, and a deploy must not take its guard away.

        """
        if not self._hooks(agent, point):
            raise HookFailed(
                f"the agent {agent!r} has no hook at {point} on this worker, but the run was started with one"
            )
        try:
            async with asyncio.timeout(_LONGEST_ROUND.total_seconds()) as limit:
                return await self._ask(agent, point, subject, apply, limit)
        except TimeoutError:
            raise HookFailed(f"the hooks at {point} gave no verdict within {_LONGEST_ROUND}") from None

    async def _ask(
        self,
        agent: str,
        point: HookPoint,
        subject: Subject,
        apply: Callable[[Subject, Any], Subject],
        limit: asyncio.Timeout,
    ) -> Round:
        records: list[HookRecord] = []
        replaced, is_replaced = None, False
        for hook in self._hooks(agent, point):
            verdict = await _ask_one(self.threads, hook, point, subject, limit)
            if isinstance(verdict, Proceed):
                continue
            records.append(
                HookRecord(hook=hook.name, point=point, verdict=verdict.kind, reason=_reason(verdict))
            )
            if not isinstance(verdict, Replace):
                return Round(verdict=verdict, records=records, replaced=replaced, is_replaced=is_replaced)
            replaced, is_replaced = verdict.value, True
            subject = apply(subject, verdict.value)
        return Round(records=records, replaced=replaced, is_replaced=is_replaced)

    async def check_call(self, call: ToolCall, carrier: str, run: HookedRun) -> CheckedCall:
        """Ask the hooks before a tool call."""
        hooked = _hooked_call(call, carrier, run, None)
        round_ = await self.ask(run.agent, "before_tool", hooked, _with_arguments)
        changed = dict(round_.replaced) if round_.is_replaced else None
        return _checked_call(call.id, round_, arguments=changed)

    async def check_result(
        self, call: ToolCall, carrier: str, run: HookedRun, result: ToolResult
    ) -> CheckedCall:
        """Ask the hooks after a tool call."""
        hooked = _hooked_call(call, carrier, run, result)
        round_ = await self.ask(run.agent, "after_tool", hooked, _with_result_text)
        text = str(round_.replaced) if round_.is_replaced else None
        return _checked_call(call.id, round_, text=text)

    @activity.defn(name=RUN_HOOKS)
    async def run_hooks(self, request: HookInput) -> HookOutcome:
        """Ask the hooks about calls that no activity of ours makes, or about a run.

        Raises:
            ApplicationError: type "hook_failed", retryable; or the agent is not on this worker.

        """
        earlier = last_progress()
        failures = earlier.failures if earlier else 0

        def progress(seq: int, window: int) -> Progress:
            return Progress(call="hooks", attempt=activity.info().attempt, seq=seq, failures=failures)

        if not self.serves(request.agent):
            message = f"the agent {request.agent!r} and its hooks are not on this worker"
            raise not_served(message, progress(0, 0), type=HOOK_FAILED)
        try:
            # Heartbeats let the server notice that the worker died, and end hooks of a run that was stopped.
            async with Heartbeats(progress, _BEAT):
                return await self._outcome(request)
        except HookFailed as error:
            # An attempt whose worker died or was stopped is no failure of the hook, so the failures are counted here.
            failures += 1
            activity.heartbeat(progress(0, 0))
            last = failures >= FUNCTION_ATTEMPTS
            raise ApplicationError(str(error), type=HOOK_FAILED, non_retryable=last) from None
        except asyncio.CancelledError:
            if not worker_is_ending():
                raise
            # A failure and not a cancellation: another worker asks them.
            raise ApplicationError(
                "the worker was stopped while hooks were asked", type=HOOK_FAILED
            ) from None

    async def _outcome(self, request: HookInput) -> HookOutcome:
        run = HookedRun(
            run_id=str(activity.info().workflow_id),
            agent=request.agent,
            user=request.user,
            context=request.context,
            resources=self.resources.of(request.agent),
            step=request.step,
            message=request.message,
            output=request.output,
            stop_reason=request.stop_reason,
        )
        if request.point in ("on_start", "on_end"):
            round_ = await self.ask(request.agent, request.point, run, _with_output)
            end = round_.verdict.text if isinstance(round_.verdict, EndTurn) else None
            return HookOutcome(end_turn=end, is_replaced=round_.is_replaced, output=round_.replaced)
        results = {result.call_id: result for result in request.results}
        checked: list[CheckedCall] = []
        for call, carrier in zip(request.calls, request.carriers, strict=True):
            if request.unpinned:
                checked.append(CheckedCall(call_id=call.id))
            elif request.point == "after_tool":
                checked.append(await self.check_result(call, carrier, run, results[call.id]))
            else:
                checked.append(await self.check_call(call, carrier, run))
        return HookOutcome(calls=checked)


async def _ask_one(
    threads: FunctionThreads, hook: Hook, point: HookPoint, subject: Any, limit: asyncio.Timeout
) -> Verdict:
    method = getattr(hook, point)
    is_async = inspect.iscoroutinefunction(method)
    try:
        # A plain hook in a thread: one that waits for a network must not hold up the whole worker.
        name, call = f"hook:{hook.name}.{point}", partial(method, subject)
        answer = await call_function(threads, name, call, is_async=is_async)
    except BaseException as error:  # `sys.exit` in a hook is its failure, and not the worker's end
        if was_cancelled(error) or limit.expired():
            raise
        log_function_error(error, f"hook {hook.name} at {point}", level=logging.ERROR)
        text = redact_error(error, 1000)
        raise HookFailed(f"hook {hook.name} failed at {point}: {type(error).__name__}: {text}") from None
    verdict: Any = Proceed() if answer is None else answer
    if not isinstance(verdict, Verdict):
        shown = redact_and_cut(repr(verdict), 1000)
        raise HookFailed(f"hook {hook.name} at {point} must return a verdict or None, not {shown}")
    if verdict.kind not in ALLOWED[point]:
        allowed = ", ".join(sorted(ALLOWED[point]))
        raise HookFailed(f"hook {hook.name} at {point} cannot {verdict.kind!r}; it can: {allowed}")
    checked: Verdict = verdict
    if isinstance(checked, Replace) and point == "before_tool":
        _check_replaced(hook, checked.value)
    return _mask_verdict(checked, point)


def _mask_verdict(verdict: Verdict, point: HookPoint) -> Verdict:
    """Return the verdict with this process's own secrets masked in what goes to the run."""
    if isinstance(verdict, Replace) and point in ("before_model", "before_tool"):
        return verdict  # instructions and arguments take effect as the hook wrote them
    return verdict.model_copy(update=mask_value(verdict.model_dump(exclude={"kind"})))


def _check_replaced(hook: Hook, arguments: Any) -> None:
    if not isinstance(arguments, dict):
        raise HookFailed(f"hook {hook.name} at before_tool must replace the arguments by an object")
    problem = problem_as_json(arguments)
    if problem is not None:
        raise HookFailed(f"hook {hook.name} at before_tool must replace the arguments by JSON: {problem}")


def _reason(verdict: Verdict) -> str:
    match verdict:
        case Deny() | Ask():
            return verdict.reason
        case Retry():
            return verdict.guidance
        case _:
            return ""


def _checked_call(call_id: str, round_: Round, **changes: Any) -> CheckedCall:
    verdict = round_.verdict
    refusal = None
    if isinstance(verdict, Deny):
        refusal = f"This call was refused: {verdict.reason}"
    elif isinstance(verdict, Retry):
        refusal = verdict.guidance
    return CheckedCall(
        call_id=call_id,
        deny=refusal,
        ask=verdict.reason if isinstance(verdict, Ask) else None,
        end_turn=verdict.text if isinstance(verdict, EndTurn) else None,
        records=round_.records,
        **changes,
    )


def _hooked_call(call: ToolCall, carrier: Any, run: HookedRun, result: ToolResult | None) -> HookedCall:
    return HookedCall(
        run=run, call_id=call.id, tool=call.name, arguments=call.arguments, carrier=carrier, result=result
    )


def _with_arguments(call: HookedCall, value: Any) -> HookedCall:
    return replace(call, arguments=dict(value))


def _with_result_text(call: HookedCall, value: Any) -> HookedCall:
    assert call.result is not None, "after a call there is a result"
    changed = call.result.model_copy(update={"content": [Text(text=str(value))]})
    return replace(call, result=changed)


def _with_output(run: HookedRun, value: Any) -> HookedRun:
    return replace(run, output=value)
