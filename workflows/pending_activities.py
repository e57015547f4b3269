"""Pending activities of a run: its model call and its tool calls."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json
from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    TimeoutError,
    TimeoutType,
    is_cancelled_exception,
)

from perdure.messages import Usage
from perdure.prices import Price
from perdure.wire.effects import (
    FUNCTION_ATTEMPTS,
    MODEL_ATTEMPTS,
    MODEL_HEARTBEAT,
    HookInput,
    ModelFailure,
    ModelInput,
    ModelOutcome,
    Progress,
    RemoteArguments,
    RemoteContext,
    ToolInput,
    most_attempts,
)
from perdure.wire.names import (
    BLOB_STORE_FAILED,
    CALL_MODEL,
    CALL_TOOL,
    HANDOFF,
    READ_RESULT,
    RUN_HOOKS,
    STALE_TRANSCRIPT,
    TOO_LARGE,
    TOO_LARGE_TYPES,
    WORKER_SHUTDOWN,
)
from perdure.wire.spec import ModelSpec, ToolSpec

from .answers import hook_answer, model_answer, tool_answer
from .elsewhere import ONCE, SoughtActivity
from .engine.commands import CallModel, RunHooks, Summarize
from .engine.events import CallReturned, Event, HooksAnswered, HooksFailed, ModelFailed, Replied, Summarized
from .engine.remote import remote_result
from .engine.report import signature
from .engine.state import AgentState, Call
from .failed_calls import count_attempts, failed_result, unreadable_result
from .identity import call_key, earlier_attempts
from .model_inputs import model_input, model_summary, summary_input
from .payloads import read_json, read_payload

_REMOTE_BYTES = 2_000_000
"""Bytes of arguments that the remote calls of one step have in history, where any worker can read them. Temporal ends a
run whose workflow task starts more than 4 MB of them."""

NOT_KEPT_ALIVE = "no worker kept the model call alive to its end"
_MODEL_SLACK = timedelta(minutes=3)
"""The activity keeps the model's own timeout, and may wait for its turn before that; Temporal's timeout comes
later, for a worker that keeps none. A dead one is noticed by its heartbeat."""
_TOOL_SLACK = timedelta(seconds=50)
"""As above: a call may wait for its turn."""

_SUMMARY_ATTEMPTS = 2
"""A summary that fails costs little: the window slides without it. So the step must not wait for it long."""
_SUMMARY_WITHIN = timedelta(minutes=2)
"""Time for all attempts at a summary, the wait for a worker's slot and for the provider's limits included."""
_HOOKS_TIMEOUT = timedelta(minutes=2)
"""Time for all rounds of hooks of an activity: a round has a minute."""
_LONGEST_HOOK_DELAY = timedelta(seconds=10)
"""Between attempts: deaths of workers in a row must not leave a run waiting for a hook that is well."""

_READ = ToolSpec(
    kind="function", name=READ_RESULT, description="", input_schema={}, heartbeat=timedelta(seconds=10)
)


class PendingActivities:
    """Starts activities, keeps them while they are pending, and reports the end of each as an event."""

    def __init__(self, report: Callable[[Event], None]) -> None:
        self._report = report
        self._has_called_model = False
        self._activities: dict[str, SoughtActivity] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """Number of activities that have not ended."""
        return len(self._activities)

    def call_model(self, state: AgentState, command: CallModel) -> None:
        """Start the step's model call."""
        chosen = state.spec.models[state.chain.model]
        activity = self._start_model(
            model_input(state, command),
            chosen,
            MODEL_ATTEMPTS,
            model_summary(state, chosen),
            time_for_hooks=_time_for_hooks(state),
        )
        self._launch("model", activity, self._model_event(activity, state, chosen), _model_bug)

    def summarize(self, state: AgentState, command: Summarize) -> None:
        """Start the model call that summarizes what leaves the window."""
        chosen = state.spec.summary_model or state.spec.models[state.chain.model]
        call = summary_input(state, command)
        line = f"summary before step {state.ledger.steps + 1} · {chosen.config.name}"
        activity = self._start_model(call, chosen, _SUMMARY_ATTEMPTS, line, within=_SUMMARY_WITHIN)
        self._launch("model", activity, self._summary_event(activity, chosen), _summary_bug)

    def _start_model(
        self,
        call: ModelInput,
        chosen: ModelSpec,
        attempts: int,
        summary: str,
        *,
        time_for_hooks: timedelta = timedelta(),
        within: timedelta | None = None,
    ) -> SoughtActivity:
        # The worker moves its copy of the transcript to the new run id, once.
        if not self._has_called_model:
            call = call.model_copy(update={"previous_run_id": workflow.info().continued_run_id})
        self._has_called_model = True
        start = partial(
            workflow.start_activity,
            CALL_MODEL,
            call,
            result_type=RawValue,
            start_to_close_timeout=chosen.config.timeout + _MODEL_SLACK + time_for_hooks,
            schedule_to_close_timeout=within,
            heartbeat_timeout=MODEL_HEARTBEAT,
            retry_policy=RetryPolicy(
                initial_interval=timedelta(seconds=1),
                maximum_interval=timedelta(minutes=1),
                # Few: a provider's own trouble is retried inside the activity, and then by parking.
                maximum_attempts=attempts,
                non_retryable_error_types=[TOO_LARGE],
            ),
            # A stop must bring back the text so far, and its cost.
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=summary,
        )
        return SoughtActivity(start, attempts)

    def call_tools(self, state: AgentState, calls: Sequence[Call]) -> None:
        """Start these calls."""
        room = _REMOTE_BYTES
        for call in calls:
            if call.stand_in is not None:
                call = replace(call, call=call.call.model_copy(update={"name": call.stand_in}))  # noqa: PLW2901
            # `read_result` is ours and in no spec.
            tool = state.spec.tool(call.call.name) or _READ
            if tool.kind == "remote":
                arguments = _remote_arguments(state, call)
                room -= sum(len(to_json(argument)) for argument in arguments)
                activity = _start_remote(arguments if room >= 0 else _as_stored(arguments), call, tool)
            else:
                activity = _start_function(state, call, tool)
            event = self._tool_event(activity, state, call, tool)
            self._launch(call.call.id, activity, event, partial(unreadable_result, call, tool))

    def run_hooks(self, state: AgentState, command: RunHooks) -> None:
        """Ask hooks by an activity of their own."""
        start = partial(
            workflow.start_activity,
            RUN_HOOKS,
            hook_input(state, command),
            result_type=RawValue,
            start_to_close_timeout=_HOOKS_TIMEOUT,
            # A run that is to end does not wait longer for its hooks than for anything else.
            schedule_to_close_timeout=state.tree.grace if state.ending is not None else None,
            heartbeat_timeout=MODEL_HEARTBEAT,
            # Hooks are the user's code and may have effects: few failures, which the activity counts itself.
            retry_policy=RetryPolicy(
                maximum_attempts=most_attempts(FUNCTION_ATTEMPTS),
                maximum_interval=_LONGEST_HOOK_DELAY,
                non_retryable_error_types=[TOO_LARGE],
            ),
            summary=f"hooks {command.point}",
        )
        activity = SoughtActivity(start, most_attempts(FUNCTION_ATTEMPTS))
        self._launch("hooks", activity, self._hook_event(activity, command), partial(_hook_bug, command))

    def cancel(self) -> None:
        """Ask every pending activity to end."""
        for activity in list(self._activities.values()):
            activity.cancel()

    def abandon(self) -> None:
        """Forget what is pending: a late end of it reports nothing. A turn's work must not reach the next turn."""
        for activity in self._activities.values():
            activity.give_up()
        self._activities.clear()

    def _launch(
        self,
        key: str,
        activity: SoughtActivity,
        outcome: Coroutine[Any, Any, Event],
        bug: Callable[[Exception], Event],
    ) -> None:
        self._activities[key] = activity

        async def report() -> None:
            try:
                event = await outcome
            # Raised in a task of its own: no workflow task would fail, and nobody would notice.
            except Exception as error:  # an answer that nobody can read must not leave the run waiting
                event = bug(error)
            # Not so after `abandon`: the turn that started it is over.
            if self._activities.get(key) is activity:
                del self._activities[key]
                self._report(event)

        task = asyncio.create_task(report())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _model_event(self, activity: SoughtActivity, state: AgentState, chosen: ModelSpec) -> Event:
        try:
            answer = model_answer(await activity.result(), state.ledger.steps)
            return Replied(outcome=answer, at=workflow.now())
        except (ActivityError, asyncio.CancelledError) as error:
            failure = await _counted_failure(error, chosen.price, MODEL_ATTEMPTS)
            return ModelFailed(failure=failure, at=workflow.now())

    async def _summary_event(self, activity: SoughtActivity, chosen: ModelSpec) -> Event:
        try:
            return Summarized(outcome=read_payload(await activity.result(), ModelOutcome))
        except (ActivityError, asyncio.CancelledError) as error:
            return Summarized(failure=await _counted_failure(error, chosen.price, _SUMMARY_ATTEMPTS))

    async def _hook_event(self, activity: SoughtActivity, command: RunHooks) -> Event:
        try:
            return HooksAnswered(point=command.point, outcome=hook_answer(await activity.result(), command))
        except (ActivityError, asyncio.CancelledError) as error:
            cause = error.cause if isinstance(error, ActivityError) else error
            message = cause.message if isinstance(cause, ApplicationError) else str(cause or error)
            return HooksFailed(point=command.point, message=message, at=workflow.now())

    async def _tool_event(
        self, activity: SoughtActivity, state: AgentState, call: Call, tool: ToolSpec
    ) -> Event:
        began = workflow.now()
        try:
            value: RawValue = await activity.result()
        except (ActivityError, asyncio.CancelledError) as error:
            result = await failed_result(call, tool, error, repeated=earlier_attempts(state) > 0)
            return CallReturned(result=result)
        if tool.kind != "remote":
            outcome = tool_answer(value, call)
            return CallReturned(
                result=outcome.result, arguments=outcome.arguments, ask=outcome.ask, end_turn=outcome.end_turn
            )
        took = round((workflow.now() - began).total_seconds() * 1000)
        result = remote_result(read_json(value), call.call, state.spec.result_preview_bytes, took)
        return CallReturned(result=result)


def hook_input(state: AgentState, command: RunHooks) -> HookInput:
    """Return the input of an activity that asks hooks."""
    calls = [
        call.call.model_copy(update={"name": call.stand_in}) if call.stand_in else call.call
        for call in command.calls
    ]
    first = state.messages[state.first_message] if command.point == "on_start" else None
    return HookInput(
        agent=state.spec.name,
        point=command.point,
        step=state.ledger.steps,
        user=state.request.user,
        context=dict(state.request.context),
        calls=calls,
        carriers=["handoff" if call.call.name == HANDOFF else call.kind for call in command.calls],
        unpinned=command.point not in state.spec.hooks,
        results=[call.unreviewed for call in command.calls if call.unreviewed is not None],
        message=first,
        output=command.end.output if command.end else None,
        stop_reason=command.end.stop_reason if command.end else "",
    )


def _time_for_hooks(state: AgentState) -> timedelta:
    """Return the time that a call's activity has for the hooks before and after it."""
    return _HOOKS_TIMEOUT if state.spec.hooks else timedelta()


def _hook_bug(command: RunHooks, error: Exception) -> Event:
    message = f"the hooks' answer cannot be read: {type(error).__name__}: {error}"
    return HooksFailed(point=command.point, message=message[:1000], at=workflow.now())


def _retry(tool: ToolSpec) -> RetryPolicy:
    retry, attempts = tool.retry, tool.retry.attempts
    if tool.kind != "remote":
        # The activity counts the failures itself. Of a remote tool's, Temporal alone can count the attempts.
        attempts = most_attempts(attempts, repeatable=tool.effect == "read")
    return RetryPolicy(
        initial_interval=retry.initial_interval,
        backoff_coefficient=retry.backoff,
        maximum_interval=retry.maximum_interval,
        maximum_attempts=attempts,
        non_retryable_error_types=[TOO_LARGE],
    )


def _start_function(state: AgentState, call: Call, tool: ToolSpec) -> SoughtActivity:
    call_input = ToolInput(
        agent=state.spec.name,
        tool=call.call.name,
        call_id=call.call.id,
        arguments=call.call.arguments,
        idempotency_key=call_key(state, call.call),
        preview_bytes=state.spec.result_preview_bytes,
        user=state.request.user,
        context=dict(state.request.context),
        stream=state.request.stream,
        checked=call.checked,
        writes=tool.effect == "write",
        attempts=tool.retry.attempts,
        earlier_attempts=earlier_attempts(state),
        timeout=tool.timeout,
        remembered=tool.fallback.remembered if tool.fallback else None,
        hooks=tuple(point for point in state.spec.hooks if point in ("before_tool", "after_tool")),
        mcp=tool.mcp,
    )
    policy = _retry(tool)
    start = partial(
        workflow.start_activity,
        CALL_TOOL,
        call_input,
        result_type=RawValue,
        task_queue=tool.task_queue,
        # The worker keeps the tool's own timeout; this one is for a worker that keeps none.
        start_to_close_timeout=tool.timeout + _TOOL_SLACK + _time_for_hooks(state),
        heartbeat_timeout=tool.heartbeat,
        retry_policy=policy,
        summary=signature(call.call),
    )
    return SoughtActivity(start, policy.maximum_attempts)


def _remote_arguments(state: AgentState, call: Call) -> tuple[RemoteArguments, RemoteContext]:
    context = RemoteContext(
        run_id=workflow.info().workflow_id,
        call_id=call.call.id,
        idempotency_key=call_key(state, call.call),
        agent=state.spec.name,
        user=state.request.user,
        context=dict(state.request.context),
        earlier_attempts=earlier_attempts(state),
    )
    return RemoteArguments(call.call.arguments), context


def _as_stored(arguments: tuple[RemoteArguments, RemoteContext]) -> tuple[Any, ...]:
    """Return the arguments as plain values, which go to the blob store when they are large."""
    return tuple(from_json(to_json(argument)) for argument in arguments)


def _start_remote(arguments: tuple[Any, ...], call: Call, tool: ToolSpec) -> SoughtActivity:
    start = partial(
        workflow.start_activity,
        tool.activity or tool.name,
        args=arguments,
        result_type=RawValue,
        task_queue=tool.task_queue,
        start_to_close_timeout=tool.timeout,
        heartbeat_timeout=tool.heartbeat,
        retry_policy=_retry(tool),
        summary=signature(call.call),
    )
    return SoughtActivity(start, ONCE)


async def _counted_failure(error: BaseException, price: Price | None, attempts: int) -> ModelFailure:
    """Return why a model call failed. An error that is not our activity's tells nothing of any attempt."""
    failure = model_failure(error, price, attempts)
    cause = error.cause if isinstance(error, ActivityError) else None
    if not isinstance(error, ActivityError) or not isinstance(cause, ApplicationError):
        return failure
    if _report_of(cause) is not None:
        return failure
    counted = await count_attempts(error, "the model call")
    return failure.model_copy(update={"unheard": counted or attempts})


def model_failure(
    error: BaseException, price: Price | None = None, attempts: int = MODEL_ATTEMPTS
) -> ModelFailure:
    """Return why a model call failed: as the activity reported it, or as Temporal noticed it.

    The cost of a call that Temporal found dead is known from its last heartbeat, as an upper bound. An attempt of
    which nothing was heard is counted as unheard.
    """
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError):
        return _reported_failure(cause, price)
    if isinstance(cause, TimeoutError):
        spent, unheard = _last_reported(cause, attempts)
        return ModelFailure(
            kind="timeout",
            message=NOT_KEPT_ALIVE,
            wasted=spent,
            wasted_microusd=price.cost_microusd(spent) if price else 0,
            unheard=unheard,
        )
    if is_cancelled_exception(error):
        # A running attempt answers a stop with what it has spent. This one was cancelled by the server, between
        # two attempts, and what the first has spent went with its heartbeats.
        return ModelFailure(kind="cancelled", message="called back", unheard=1)
    return ModelFailure(kind="bug", message=str(cause or error), unheard=1)


def _reported_failure(cause: ApplicationError, price: Price | None) -> ModelFailure:
    kind, message = cause.type or "bug", cause.message
    if cause.type == STALE_TRANSCRIPT:
        kind = "stale"
    elif cause.type in TOO_LARGE_TYPES:
        kind = "too_large"
    elif cause.type == BLOB_STORE_FAILED:
        kind = "storage"
    elif cause.type == WORKER_SHUTDOWN:
        kind, message = "connection", "the worker was stopped in mid-call"
    elif not cause.details:
        kind, message = "bug", f"{cause.type}: {cause.message}"
    reported = _report_of(cause)
    if reported is not None:
        return with_price(reported.model_copy(update={"kind": kind}), price)
    # The SDK's own error: what the attempts have spent is not in it.
    return ModelFailure(kind=kind, message=message, unheard=1)


def _report_of(cause: ApplicationError) -> ModelFailure | None:
    """Return what our activity says of its failure, or None when the error is not its own."""
    for detail in cause.details:
        with suppress(ValidationError):
            return ModelFailure.model_validate(detail)
    return None


def with_price(failure: ModelFailure, price: Price | None) -> ModelFailure:
    """Add the price: an attempt that could not fetch the spec did not know it."""
    if price is None or failure.wasted_microusd or not failure.wasted.total_tokens:
        return failure
    return failure.model_copy(update={"wasted_microusd": price.cost_microusd(failure.wasted)})


def _last_reported(error: TimeoutError, attempts: int) -> tuple[Usage, int]:
    """Return the usage that the heartbeats told of, as an upper bound, and the number of attempts they did not."""
    if error.type == TimeoutType.SCHEDULE_TO_START:
        attempts = 0
    for detail in error.last_heartbeat_details:
        with suppress(ValidationError):
            progress = Progress.model_validate(detail)
            usage = progress.spent if progress.at_most is None else progress.at_most
            return usage, progress.unheard + max(attempts - progress.attempt, 0)
    return Usage(), attempts


def _model_bug(error: Exception) -> Event:
    message = f"the model call's answer cannot be read: {type(error).__name__}: {error}"
    # Not "bug", which would end the run: a worker of another version may read what this one cannot.
    return ModelFailed(
        failure=ModelFailure(kind="malformed_reply", message=message[:1000]), at=workflow.now()
    )


def _summary_bug(error: Exception) -> Event:
    message = f"the summary cannot be read: {type(error).__name__}: {error}"
    return Summarized(failure=ModelFailure(kind="bug", message=message[:1000]))
