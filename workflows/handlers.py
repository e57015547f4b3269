"""Handlers that every run has: updates, signals and queries of people and of the runs around it."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError

from perdure.members import for_member
from perdure.wire.effects import BoundArguments
from perdure.wire.names import (
    BIND_ARGUMENTS,
    GRANT,
    PAUSE,
    REDRIVE,
    REPORT,
    RESOLVE_APPROVAL,
    RESULT,
    RESUME,
    SEND,
    SPEC_QUERY,
    STATUS,
    STOP,
    TRANSCRIPT,
    WAKE,
)
from perdure.wire.requests import ApprovalDecision, Redrive, RunRequest, TranscriptQuery
from perdure.wire.results import (
    ApprovalAnswer,
    ExtensionRecord,
    Failure,
    Receipt,
    RunResult,
    RunStatus,
    Status,
    TranscriptPage,
)
from perdure.wire.spec import AgentSpec, ResolvedAgent
from perdure.wire.tree import ChildInput, Grant, Report

from .ending import EndedBeforeBeginningError, RunIsEndingError, requested_end, result_before_beginning
from .engine.approvals import MadeDecision, made_decision, record_of
from .engine.events import (
    ApprovalRelayed,
    ApprovalResolved,
    BudgetGranted,
    ChildReported,
    EndRequested,
    MessageSent,
    Paused,
    Redriven,
    Resumed,
    RetryDue,
)
from .engine.pages import page
from .engine.people import RelayedDecision
from .engine.program import RunningProgram
from .engine.report import starting_status
from .engine.state import End, RunState
from .inputs import (
    answer_of,
    check_alone,
    check_decision,
    check_prices,
    check_redrive,
    check_repeated,
    check_tool_limits,
    decision_of,
    edit_to_bind,
    no_room,
    redrive_of,
    refuse,
    run_that_waits,
    signal_of,
)
from .loop import Loop
from .payloads import read_payload
from .questions import Delivery, Incoming, delivery_of, receipt, sent_message
from .relays import IS_ENDING, Relays
from .resolve import resolve, resolve_anew

_T = TypeVar("_T")
_BOUND_WITHIN = timedelta(seconds=10)


class RunHandlers:
    """Base of the workflows: the handlers that they share, around one loop."""

    def __init__(self) -> None:
        self._loop = Loop()
        self._agent = ""
        self._early_status: Status = "thinking"
        self._held_up: Failure | None = None
        """Cause for which it cannot begin yet."""
        self._relays = Relays(self._loop)
        self._redriving = False
        self._has_begun = False
        """True from the first line of `run` on. An update may come before that."""
        self._is_extension = False
        """True in an execution that goes on from a closed one."""
        self._asked: list[ExtensionRecord] = []
        """Extension by which the run is to go on, before it does."""
        self._early_result: RunResult | None = None
        """Result of a run that ended before it had its agent."""

    # -- the beginning

    async def _resolve(
        self, request: RunRequest, child: ChildInput | None, deadline: datetime | None
    ) -> ResolvedAgent:
        """Fetch the agent, into history.

        Raises:
            EndedBeforeBeginningError: a stop, a cancel or the deadline came first.

        """
        self._agent = request.agent

        async def resolve_checked() -> ResolvedAgent:
            resolved = await resolve(request, child, deadline=deadline, held_up=self._show_held_up)
            if child is None:
                check_tool_limits(resolved, request.limits)
            return resolved

        return await self._race_to_begin(resolve_checked(), child)

    async def _race_to_begin(self, work: Coroutine[Any, Any, _T], child: ChildInput | None) -> _T:
        """Return the value of work without which the run cannot begin.

        Raises:
            EndedBeforeBeginningError: a stop, a cancel or the deadline came first.

        """
        try:
            return await self._loop.ending.race(work)
        except EndedBeforeBeginningError as end:
            raise EndedBeforeBeginningError(end.reason, child) from None
        except RunIsEndingError:
            reason = requested_end(self._loop.events) or "stopped"
            raise EndedBeforeBeginningError(reason, child) from None
        except asyncio.CancelledError:
            raise EndedBeforeBeginningError("cancelled", child) from None
        except BaseException:
            self._early_status = "failed"
            raise

    async def _end_early(self, end: EndedBeforeBeginningError) -> RunResult:
        """End a run that has no agent yet: nothing was done, and nothing was spent."""
        self._early_status = "cancelled" if end.reason == "cancelled" else "completed"
        result = self._early_result = result_before_beginning(self._agent, end.reason, self._loop.events)
        self._loop.events.append(EndRequested(reason=end.reason))  # handlers refuse what comes from now on
        workflow.set_current_details(f"{end.reason} before it began")
        lineage = end.child.lineage if end.child else None
        return await self._loop.end_with(End(stop_reason=end.reason), result, lineage)

    def _show_held_up(self, why: Failure) -> None:
        self._held_up = why
        workflow.set_current_details(f"cannot begin: {why.message}")

    # -- updates

    @workflow.update(
        name=SEND,
        description="Say something to the agent: a JSON string, which it reads before its next step. "
        'Answer a question: {"call_id": "...", "text": "..."}.',
    )
    async def send(self, message: Any = None, *_more: Any) -> Receipt:
        """Give the agent a message, or the answer to a question; return what became of it."""
        await self._begin_update(lambda: self._check_send(message))
        incoming = self._read_sent(message)
        delivery = self._delivery(incoming)
        if delivery.run_id is not None:
            return await self._relays.deliver(delivery, incoming)
        unread = self._loop.state.unread_count if self._loop.state else 0
        if not delivery.is_repeated:
            sent = MessageSent(message=incoming.message, id=incoming.id, call_id=delivery.call_id)
            unread += delivery.call_id is None
            self._loop.events.append(sent)
        return receipt(self._loop.state, delivery, unread, self._loop.events)

    @send.validator
    def _check_send(self, message: Any = None, *more: Any) -> None:
        check_alone(SEND, more)
        incoming = self._read_sent(message)
        self._refuse_when_over()
        if not self._is_restoring:
            self._refuse_without_room(self._delivery(incoming))

    @property
    def _is_restoring(self) -> bool:
        """True while a run that goes on has no state yet: as a new execution, or after an extension."""
        goes_on = self._is_extension or workflow.info().continued_run_id is not None
        # Nothing says yet that it is no extension.
        return self._loop.state is None and (goes_on or not self._has_begun)

    async def _begin_update(self, check: Callable[[], None]) -> None:
        """Count the update; wait until a run that goes on has its state, and check what the validator could not.

        Raises:
            ApplicationError: for the caller; the check has refused the update.

        """
        self._loop.renewal.updates += 1
        if self._is_restoring:
            # A run that ends before it has its state refuses, by the check.
            await workflow.wait_condition(
                lambda: not self._is_restoring or self._early_status == "failed" or self._is_ending
            )
            check()

    def _read_sent(self, message: Any) -> Incoming:
        update = workflow.current_update_info()
        return sent_message(message, update.id if update else None)

    def _delivery(self, incoming: Incoming) -> Delivery:
        """Return where the message goes; refuse it where that is not clear."""
        return delivery_of(self._loop.state, incoming, self._loop.events, self._relays.questions)

    def _refuse_without_room(self, delivery: Delivery) -> None:
        """Refuse a message whose room is kept for decisions: see the rules of `renewal`."""
        # There are no more answers than questions, so they may use the room for decisions.
        answers = delivery.call_id is not None and not delivery.is_repeated
        if not answers and self._loop.renewal.is_short_of_room(self._loop.state):
            below = delivery.run_id
            way = f"; the run below takes it directly: {below}" if below else ""
            raise no_room(f"the run takes no more messages until its pending calls have ended{way}")
        if delivery.run_id is not None:
            self._relays.check_room()

    @workflow.update(
        name=RESOLVE_APPROVAL,
        description='Decide about a tool call that waits: {"call_id": "...", "allow": true, "by": "you"}.',
    )
    async def resolve_approval(self, decision: Any = None, *_more: Any) -> ApprovalAnswer:
        """Allow a waiting call, with other arguments if wanted, or deny it with a reason."""
        await self._begin_update(lambda: self._check_resolve_approval(decision))
        resolved = decision_of(decision)
        made = self._made_decision(resolved)
        if made is not None:
            return made.answer(repeated=True)
        below = run_that_waits(self._loop.state, resolved)
        if below is not None:
            return await self._relay_decision(below, resolved)
        if resolved.arguments is not None:
            resolved = await self._bind_edit(resolved)
            made = self._made_decision(resolved)
            if made is not None:  # another person was faster
                check_repeated(made, resolved)
                return made.answer(repeated=True)
        self._loop.events.append(ApprovalResolved(decision=resolved, at=workflow.now()))
        made = self._made_decision(resolved)
        assert made is not None, "it has just been made"
        return made.answer(repeated=False)

    async def _bind_edit(self, decision: ApprovalDecision) -> ApprovalDecision:
        """Return the decision with its arguments as the function reads them: the policy must see those.

        Raises:
            ApplicationError: for the caller; they do not fit, or the policy denies them. The call still waits.

        """
        request = edit_to_bind(self._loop.state, decision)
        if request is None:
            return decision
        binding = workflow.execute_activity(
            BIND_ARGUMENTS,
            request,
            result_type=RawValue,
            start_to_close_timeout=_BOUND_WITHIN,
            schedule_to_close_timeout=_BOUND_WITHIN,
            summary=f"arguments that {decision.by or 'a person'} has edited",
        )
        try:
            bound = read_payload(await self._loop.ending.race(binding), BoundArguments)
        except RunIsEndingError:
            raise refuse(IS_ENDING) from None
        except (ActivityError, ValueError):
            bound = BoundArguments(
                arguments=dict(decision.arguments or {})
            )  # the tool's worker compares once more
        if bound.problem:
            raise refuse(f"{bound.problem}; the call still waits")
        decision = decision.model_copy(update={"arguments": bound.arguments})
        if self._made_decision(decision) is None:
            check_decision(self._loop.state, decision)
        return decision

    def _made_decision(self, decision: ApprovalDecision) -> MadeDecision | None:
        return made_decision(self._loop.state, decision, self._loop.events)

    async def _relay_decision(self, run_id: str, decision: ApprovalDecision) -> ApprovalAnswer:
        """Give a decision to the run below that waits for it, and remember it."""
        plain = decision.model_dump(mode="json", exclude_unset=True, exclude={"run_id", "call_id"})
        plain["call_id"] = decision.call_id
        answer = answer_of(await self._relays.update(run_id, RESOLVE_APPROVAL, plain), decision, run_id)
        record = record_of(decision, decision.digest or "", answer.at).model_copy(update={"by": answer.by})
        relayed = RelayedDecision(run_id=run_id, call_id=decision.call_id, record=record)
        self._loop.events.append(ApprovalRelayed(decision=relayed))
        return answer

    @resolve_approval.validator
    def _check_resolve_approval(self, decision: Any = None, *more: Any) -> None:
        check_alone(RESOLVE_APPROVAL, more)
        resolved = decision_of(decision)
        self._refuse_when_over()
        if self._is_restoring:
            return
        made = self._made_decision(resolved)
        if made is not None:
            check_repeated(made, resolved)
            # A refusal costs no room, an answer does.
            if self._loop.renewal.is_short_of_room(self._loop.state):
                raise refuse(f"call {resolved.call_id!r} was already {made.words()}")
        elif run_that_waits(self._loop.state, resolved) is None:
            check_decision(self._loop.state, resolved)

    def _refuse_when_over(self) -> None:
        if self._is_over:
            raise refuse(IS_ENDING)

    @property
    def _is_over(self) -> bool:
        state = self._loop.state
        over = state is not None and (state.ending is not None or state.end is not None)
        return over or self._is_ending

    @property
    def _is_ending(self) -> bool:
        """True when the end was requested and is not folded yet."""
        return requested_end(self._loop.events) is not None

    @workflow.update(
        name=REDRIVE,
        description='Let a parked run go on, changed: {"model": "...", "newest": true, "limits": {}}.',
    )
    async def redrive(self, how: Any = None, *_more: Any) -> None:
        """Go on from where the run was parked, with what is to be changed."""
        await self._begin_update(lambda: self._check_redrive(how))
        wanted, state = redrive_of(how), self._ready()
        if not wanted.newest and wanted.model is None:
            self._loop.events.append(Redriven(limits=wanted.limits))
            return
        # Fetching the agent takes time, in which the retry timer must not let the old one go on.
        timer, self._redriving = self._loop.retry_timer, True
        try:
            with timer.hold():
                self._loop.events.append(await self._changed_agent(state, wanted))
        finally:
            self._redriving = False
            if not timer.is_on_hold:
                self._loop.events.append(RetryDue(at=workflow.now()))  # the retry may have come due meanwhile

    async def _changed_agent(self, state: RunState, wanted: Redrive) -> Redriven:
        """Fetch the agent with which the run is to go on."""
        limited = state.limits.cost_usd is not None or state.tree.lease.amount.cost_microusd is not None
        limited = limited or (wanted.limits is not None and wanted.limits.cost_usd is not None)
        fetching = resolve_anew(state.spec, state.request, wanted, cost_limited=limited)
        try:
            resolved = await self._loop.ending.race(fetching)
        except RunIsEndingError:
            raise refuse(IS_ENDING) from None
        except ActivityError:
            raise refuse("redrive: no worker was free to fetch the agent in time; try again later") from None
        # Not the run's own kind, but what the worker serves under that name by now.
        if not isinstance(resolved.spec, AgentSpec):
            raise refuse(f"redrive: {state.spec.name!r} is a {resolved.spec.kind} by now: only agents go on")
        check_prices(resolved.spec, limited=limited)
        check_tool_limits(resolved, wanted.limits)
        # The state may have changed while the agent was fetched.
        if self._ready().parking.parked is None:
            raise refuse("redrive: the run went on meanwhile; nothing was changed")
        members = resolved.members if wanted.newest else state.members
        return Redriven(spec=resolved.spec, members=members, limits=wanted.limits)

    @redrive.validator
    def _check_redrive(self, how: Any = None, *more: Any) -> None:
        check_alone(REDRIVE, more)
        wanted = redrive_of(how)
        self._refuse_when_over()
        if self._is_restoring:
            return
        check_redrive(self._loop.state, wanted)
        # It keeps its update open while the agent is fetched.
        if self._redriving:
            raise refuse("redrive: another redrive is under way; look at the run again")

    # -- signals: nobody hears a refusal, so a signal with a wrong argument is logged, and changes nothing

    @workflow.signal(name=PAUSE, description="Start nothing new until resumed.")
    def pause(self, *_: Any) -> None:
        """Let pending work finish, and start nothing new."""
        self._loop.events.append(Paused())

    @workflow.signal(
        name=RESUME, description="Go on after a pause, or from the step at which the run was parked."
    )
    def resume(self, *_: Any) -> None:
        """Go on."""
        self._loop.events.append(Resumed())

    @workflow.signal(name=STOP, description="Finish now, gracefully, with what there is.")
    def stop(self, *_: Any) -> None:
        """End as completed, with the best partial answer."""
        self._loop.events.append(EndRequested(reason="stopped"))

    @workflow.signal(name=WAKE, description="Look around: an idle session then moves to a new version.")
    def wake(self, *_: Any) -> None:
        """Decide again. A run that has nothing new to do goes on waiting."""
        self._loop.wake()

    @workflow.signal(name=REPORT, description="Of a run that this one started: who waits, what it needs.")
    def child_report(self, report: Any = None, *_more: Any) -> None:
        """Take in a child's report."""
        report = signal_of(Report, report)
        if report is None:
            return
        # A child of an earlier execution under this id reports to a parent that has ended.
        if report.parent_execution_id == workflow.info().first_execution_run_id:
            self._loop.events.append(ChildReported(report=report))

    @workflow.signal(name=GRANT, description="Of the run that started this one: what it may spend.")
    def grant(self, grant: Any = None, *_more: Any) -> None:
        """Take in the answer to a budget request."""
        grant = signal_of(Grant, grant)
        if grant is not None:
            self._loop.events.append(BudgetGranted(grant=grant))

    # -- queries

    @workflow.query(name=STATUS, description="Where the run is: status, step, cost, what it waits for.")
    def status(self, *_: Any) -> RunStatus:
        """Return where the run is."""
        if self._loop.state is None:
            reason = self._early_result.stop_reason if self._early_result else None
            starting = starting_status(self._agent, self._early_status, self._held_up, reason)
            return starting.model_copy(update={"extensions": self._asked})
        status: RunStatus = self._program.status(self._loop.state)
        return status

    @workflow.query(name=RESULT, description="The result so far; final once the run is over.")
    def result(self, *_: Any) -> RunResult:
        """Return the result as it stands."""
        if self._early_result is not None:
            return self._early_result
        state = self._ready()
        end = state.end or End(stop_reason=state.ending or "stopped")
        result: RunResult = self._program.result(state, end)
        return result

    @workflow.query(name=TRANSCRIPT, description="Messages of the run, a page at a time.")
    def transcript(self, want: Any = None, *_more: Any) -> TranscriptPage:
        """Return messages from `start` on. A team has them only in a session: its work is in the runs of its nodes."""
        query = TranscriptQuery.model_validate(want or {})
        if self._early_result is not None:
            return page((), query)
        state = self._ready()
        return page(state.messages, query, state.summary)

    @workflow.query(name=SPEC_QUERY, description="The agent, and all it may start, as this run keeps it.")
    def spec(self, member: Any = None, *_more: Any) -> ResolvedAgent:
        """Return the pinned specs: the run's own, or that of a member first."""
        state = self._ready()
        pinned = ResolvedAgent(spec=state.spec, members=state.members)
        found = pinned if member is None else for_member(pinned, str(member))
        if found is None:
            raise refuse(f"the run knows no {member!r}")
        return found

    @property
    def _program(self) -> RunningProgram[Any]:
        assert self._loop.program is not None, "a run with a state has a program"
        return self._loop.program

    def _ready(self) -> RunState:
        if self._loop.state is None:
            raise refuse("the run has not started yet: no worker has resolved its agent")
        return self._loop.state
