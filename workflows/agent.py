"""AgentWorkflow: carries out what `decide` says, and feeds what happens back through `fold`.

Nothing is decided here. The shell starts activities and child runs, keeps their handles, and puts
what happens (results, messages, timers) into one queue, in the order Temporal delivers it; the main
loop folds the queue into the state and asks `decide` again. That order is in history, so replay
repeats it. An agent, a swarm and a graph differ in their state and its `decide` and `fold` only.
"""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

from perdure.errors import rule_for
from perdure.graph import GraphCode
from perdure.members import for_member
from perdure.wire.effects import Relay
from perdure.wire.names import (
    GRANT,
    PAUSE,
    REDRIVE,
    RELAY,
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
    WORKFLOW,
)
from perdure.wire.requests import Redrive, RunRequest, TranscriptQuery
from perdure.wire.results import RunResult, RunStatus, Status, StopReason, TranscriptPage
from perdure.wire.spec import AgentSpec, AnySpec, GraphSpec, ResolvedAgent
from perdure.wire.tree import Branch, Grant, Report

from .child_runs import Runs
from .display import Display
from .engine import fold, team
from .engine.carry import Writing, pack, unpack, writing_of
from .engine.decide import (
    Answer,
    Ask,
    CallModel,
    CallTools,
    Command,
    Finish,
    Recall,
    Slide,
    StartNodes,
    Switch,
    Wait,
    decide,
)
from .engine.fold import Birth
from .engine.pages import page
from .engine.report import report_due, result_of, starting_report, status_report
from .engine.state import (
    Asked,
    CallsStarted,
    ChildAnswered,
    ChildReported,
    Decided,
    End,
    EndAsked,
    Event,
    GraceOver,
    Granted,
    ModelFailed,
    NapOver,
    NodesStarted,
    Paused,
    Redriven,
    Resumed,
    Sent,
    Slid,
    State,
    StepBegan,
    Switched,
)
from .engine.team import Team
from .engine.tree import grace_of
from .inputs import (
    addressed,
    check_decision,
    check_prices,
    check_redrive,
    decision_of,
    held_below,
    listener,
    message_of,
    redrive_of,
    refuse,
    request_of,
    run_below,
)
from .outcome import ended
from .pending_activities import NOT_KEPT_ALIVE, Flights, unbilled
from .resolve import resolve, resolve_anew
from .retry_timer import Alarm

_RELAYED_WITHIN = timedelta(seconds=10)
_FIRST_NAP = timedelta(seconds=30)


@workflow.defn(name=WORKFLOW)
class AgentWorkflow:
    """One run of an agent, a swarm or a graph."""

    def __init__(self) -> None:
        self._state: State | Team | None = None
        self._code = team.NO_CODE
        self._events: deque[Event] = deque()
        self._flights = Flights(self._events.append)
        self._runs = Runs(self._events.append)
        self._alarm = Alarm(self._events.append)
        self._recalled = False
        self._recalled_for: StopReason | None = None
        self._agent = ""
        self._begun: Status = "thinking"
        self._held_up = ""
        self._layout = 1
        self._woken = False

    @workflow.run
    async def run(self, request: Any, carried: Any = None, *chunks: Any) -> RunResult:
        """Run an agent, swarm or graph to its end.

        `request` is a RunRequest as JSON. The further arguments are ours: the Branch of a run that
        another started, or what a run that continued as new has taken with it.
        """
        if carried is None or "state" not in carried:
            writing = await self._begin(request, carried)
        else:
            self._state, writing = unpack(carried, chunks)
        self._layout = writing.layout
        self._code = _code_of(self._now.spec)
        display = Display(self._now, writing, fresh=carried is None or "state" not in carried)
        deadline = asyncio.create_task(self._deadline())
        try:
            end = await self._loop(display, request)
        finally:
            deadline.cancel()
            self._alarm.unset()
        result = result_of(self._now, end)
        await self._say_last_words(end, result)
        return ended(end, result)

    async def _begin(self, request: Any, carried: Any) -> Writing:
        """Fetch the agent, into history."""
        asked = request_of(request)
        self._agent = asked.agent
        branch = None if carried is None else Branch.model_validate(carried)
        resolved = await self._resolved(asked, branch)
        birth = Birth(id=workflow.info().workflow_id, members=resolved.members, branch=branch)
        spec, now = resolved.spec, workflow.now()
        if isinstance(spec, AgentSpec):
            self._state = fold.initial(asked, spec, now, birth)
        else:
            self._state = team.initial(asked, spec, now, birth)
        return writing_of(resolved)

    async def _resolved(self, asked: RunRequest, branch: Branch | None) -> ResolvedAgent:
        try:
            return await resolve(asked, branch, held_up=self._be_held_up)
        except BaseException as error:
            self._begun = "cancelled" if is_cancelled_exception(error) else "failed"
            raise

    def _be_held_up(self, why: str) -> None:
        self._held_up = why
        workflow.set_current_details(f"cannot begin: {why}")

    async def _loop(self, display: Display, request: Any) -> End:
        while True:
            self._fold_events()
            command = self._decided()
            match command:
                case _ if self._may_renew(command):
                    await self._continue_or_drain(display, request, command)
                case Wait():
                    self._tell_parent()
                    self._alarm.set_for(self._now)
                    display.show(self._now)
                    await self._something_happens()
                case Recall():
                    await self._recall(display)
                case Finish():
                    with suppress(asyncio.CancelledError):  # it is over: what it had is its result
                        await workflow.wait_condition(workflow.all_handlers_finished)
                    if not self._events:  # else somebody spoke while it was ending
                        self._state = replace(self._now, end=command.end)
                        display.show(self._now)
                        return command.end
                case _:
                    self._carry_out(command)
                    if isinstance(command, StartNodes) and command.more:
                        await self._next_task()

    async def _next_task(self) -> None:
        """Let this workflow task end, and go on in another."""
        try:
            await workflow.sleep(timedelta(milliseconds=1), summary="start the others")
        except asyncio.CancelledError:
            self._events.append(EndAsked(reason="cancelled"))

    def _decided(self) -> Command:
        state = self._now
        return decide(state) if isinstance(state, State) else team.decide(state, self._code)

    def _may_renew(self, command: Command) -> bool:
        """Whether to continue as new before that."""
        return isinstance(command, CallModel | StartNodes) and workflow.info().is_continue_as_new_suggested()

    def _renewed_at(self) -> "workflow.ContinueAsNewVersioningBehavior | None":
        """Which version goes on after a continue-as-new; None: the one that this run is pinned to."""
        return None

    def _carry_out(self, command: Command) -> None:
        match command:
            case CallModel():
                self._apply(StepBegan(clamped_by=command.allowance.by))
                self._flights.ask_model(self._agent_state, command)
            case CallTools():
                self._apply(CallsStarted(ids=tuple(call.call.id for call in command.calls)))
                self._flights.call_tools(
                    self._agent_state, [call for call in command.calls if call.kind != "agent"]
                )
                for call in command.calls:
                    if call.kind == "agent":
                        self._runs.call_agent(self._agent_state, call)
            case StartNodes():
                self._apply(NodesStarted(starts=command.starts, at=workflow.now()))
                assert isinstance(self._state, Team), "only teams have nodes"
                self._runs.start_nodes(self._state, command.starts)
            case Answer():
                for key, grant in command.grants:
                    self._apply(ChildAnswered(key=key, grant=grant))
                    self._runs.grant(key, grant)
            case Ask():
                self._tell_parent(need=command)
                self._apply(Asked(need=command.want.need, wish=command.want.wish))
            case Slide() | Switch():
                self._apply(_chosen(command))
            case _:
                raise AssertionError(f"{command!r} is carried out by the loop")

    @property
    def _now(self) -> State | Team:
        assert self._state is not None, "the run has been given its agent"
        return self._state

    @property
    def _agent_state(self) -> State:
        assert isinstance(self._state, State), "only an agent's loop asks for this"
        return self._state

    def _apply(self, event: Event) -> None:
        state = self._now
        changed = fold.fold(state, event) if isinstance(state, State) else team.fold(state, event, self._code)
        self._state = changed

    def _fold_events(self) -> None:
        while self._events:
            event = self._healing(self._events.popleft())
            self._apply(event)
            if isinstance(event, Paused | Resumed):
                self._runs.pass_on(PAUSE if isinstance(event, Paused) else RESUME)

    def _healing(self, event: Event) -> Event:
        """Of an outage that only Temporal noticed nobody has said when to look again."""
        if not isinstance(event, ModelFailed) or event.failure.retry_in is not None:
            return event
        if self._layout < 2:  # runs of 0.1 did not book what such a call had cost, and must not begin to
            lost = event.failure.message == NOT_KEPT_ALIVE
            return replace(event, failure=unbilled(event.failure)) if lost else event
        if not rule_for(event.failure.kind).transient:
            return event
        after = _FIRST_NAP * (0.5 + workflow.random().random())
        return replace(event, failure=event.failure.model_copy(update={"retry_in": after}))

    async def _something_happens(self) -> None:
        self._woken = False
        try:
            await workflow.wait_condition(lambda: bool(self._events) or self._woken)
        except asyncio.CancelledError:
            # Not swallowed: the run calls back what is in flight and then ends as cancelled.
            self._events.append(EndAsked(reason="cancelled"))

    def _tell_parent(self, need: Ask | None = None) -> None:
        """Tell the parent who waits for people, and what is needed; give back what is not."""
        branch = self._now.tree.branch
        if branch is None:
            return
        report, told = report_due(self._now, branch, need.want if need else None)
        if report is not None:
            self._apply(told)
            self._runs.tell_parent(branch, report)

    async def _say_last_words(self, end: End, result: RunResult) -> None:
        """Temporal keeps no result of a cancelled run: its parent is told what it has used."""
        branch = self._now.tree.branch
        if branch is not None and end.stop_reason == "cancelled":
            await self._runs.last_words(
                branch, Report(key=branch.key, parent_execution_id=branch.parent_execution_id, final=result)
            )
        with suppress(asyncio.CancelledError):  # it is over already, with this result
            await self._runs.settle()

    async def _recall(self, display: Display) -> None:
        """Call back what is in flight, and wait a moment for its last words."""
        if self._recalled and (self._recalled_for == self._now.ending or self._now.ending != "cancelled"):
            self._recalled = False
            return self._apply(GraceOver())
        self._recalled, self._recalled_for = True, self._now.ending
        display.show(self._now)
        self._flights.recall()
        self._runs.recall(self._now.ending)
        try:
            with suppress(TimeoutError):  # out of patience: the run goes on without them
                await workflow.wait_condition(
                    lambda: not self._flights.aloft and not self._runs.aloft,
                    timeout=grace_of(self._now.tree),
                )
        except asyncio.CancelledError:  # what was to stop is to be cancelled by now
            self._events.append(EndAsked(reason="cancelled"))
        return None

    async def _continue_or_drain(self, display: Display, request: Any, command: Command) -> None:
        """Continue as new when nothing is in flight; else wait until what is in flight has ended."""
        if not self._now.busy:
            await self._continue(display, request)
        if self._events:
            return
        self._tell_parent()
        display.show(self._now)
        await self._something_happens()

    async def _continue(self, display: Display, request: Any) -> None:
        """Continue as new, with everything: nothing is in flight between two steps."""
        try:
            await self._runs.settle()
            await workflow.wait_condition(workflow.all_handlers_finished)
        except asyncio.CancelledError:
            self._events.append(EndAsked(reason="cancelled"))
        if self._events:
            return
        workflow.continue_as_new(
            args=[request, *pack(self._now, display.writing)], initial_versioning_behavior=self._renewed_at()
        )

    async def _deadline(self) -> None:
        """Durable: the timer is in history, and survives every worker."""
        state = self._now
        if state.deadline_at is None:
            return
        left = state.deadline_at - workflow.now()
        if left.total_seconds() > 0:
            await workflow.sleep(left, summary="deadline of the run")
        branch = state.tree.branch
        from_above = branch is not None and branch.deadline_at == state.deadline_at
        reason = branch.deadline_reason if branch is not None and from_above else "deadline"
        self._events.append(EndAsked(reason=reason))

    @workflow.update(
        name=SEND, description="Say something to the agent: a JSON string. It reads it before its next step."
    )
    async def send(self, message: Any) -> int:
        """Give the agent a message; returns how many are waiting to be read."""
        below = self._listener(message)
        if below is not None:
            return int(await self._relayed(below, SEND, addressed(message)[1]))
        update = workflow.current_update_info()
        self._events.append(Sent(message=message_of(addressed(message)[1]), id=update.id if update else None))
        return (len(self._state.inbox) if isinstance(self._state, State) else 0) + 1

    @send.validator
    def _check_send(self, message: Any) -> None:
        message_of(addressed(message)[1])
        self._refuse_when_over()
        self._listener(message)

    def _listener(self, message: Any) -> str | None:
        """The run below that the message is for; None: this one."""
        run_id, _ = addressed(message)
        if self._state is None or run_id == self._state.id:
            return None
        return listener(self._state) if run_id is None else run_below(self._state, run_id)

    async def _relayed(self, run_id: str, update: str, argument: Any) -> Any:
        """Give an update to a run below; its answer, or its refusal, is the caller's."""
        try:
            return await workflow.execute_activity(
                RELAY,
                Relay(run_id=run_id, update=update, argument=argument),
                result_type=object,
                start_to_close_timeout=_RELAYED_WITHIN,
                retry_policy=RetryPolicy(maximum_attempts=3),
                summary=f"{update} to {run_id}",
            )
        except ActivityError as error:
            cause = error.cause
            raise refuse(cause.message if isinstance(cause, ApplicationError) else str(cause)) from None

    @workflow.update(
        name=RESOLVE_APPROVAL,
        description='Allow or deny a tool call that waits: {"call_id": "...", "allow": true, "by": "you"}.',
    )
    async def resolve_approval(self, decision: Any) -> None:
        """Allow a held call, with other arguments if you wish, or refuse it with a reason."""
        made = decision_of(decision)
        below = held_below(self._state, made)
        if below is not None:
            plain = made.model_dump(mode="json", exclude_unset=True, exclude={"run_id"})
            await self._relayed(below, RESOLVE_APPROVAL, plain)
        else:
            self._events.append(Decided(decision=made))

    @resolve_approval.validator
    def _check_resolve_approval(self, decision: Any) -> None:
        wanted = decision_of(decision)
        self._refuse_when_over()
        earlier = [event.decision.call_id for event in self._events if isinstance(event, Decided)]
        if wanted.call_id in earlier:
            raise refuse(f"call {wanted.call_id!r} has been decided already")
        if held_below(self._state, wanted) is None:
            check_decision(self._state, wanted)

    def _refuse_when_over(self) -> None:
        over = self._state is not None and (self._state.ending or self._state.end)
        if over or any(isinstance(event, EndAsked) for event in self._events):
            raise refuse("the run is ending")

    @workflow.signal(name=PAUSE, description="Start nothing new until resumed.")
    def pause(self, _: Any = None) -> None:
        """Let what is in flight finish, and start nothing new."""
        self._events.append(Paused())

    @workflow.signal(
        name=RESUME, description="Go on after a pause, or from the step at which the run was parked."
    )
    def resume(self, _: Any = None) -> None:
        """Go on."""
        self._events.append(Resumed())

    @workflow.update(
        name=REDRIVE,
        description='Let a parked run go on, changed: {"model": "...", "newest": true, "limits": {}}.',
    )
    async def redrive(self, how: Any = None) -> None:
        """Go on from where the run was parked, with what is to be changed."""
        wanted, state = redrive_of(how), self._agent_state
        if not wanted.newest and wanted.model is None:
            self._events.append(Redriven(limits=wanted.limits))
            return
        try:
            with self._alarm.held():
                self._events.append(await self._changed(state, wanted))
        finally:
            if not self._alarm.is_held:
                self._events.append(NapOver(at=workflow.now()))  # look at the clock anew

    async def _changed(self, state: State, wanted: Redrive) -> Redriven:
        """What a redrive makes of the run, once its agent is fetched."""
        limited = state.limits.cost_usd is not None or state.tree.lease.cost_microusd is not None
        limited = limited or (wanted.limits is not None and wanted.limits.cost_usd is not None)
        found = await resolve_anew(state.spec, wanted, cost_limited=limited)
        if not isinstance(found.spec, AgentSpec):
            raise refuse(f"redrive: {state.spec.name!r} is a {found.spec.kind} by now: only agents go on")
        check_prices(found.spec, limited=limited)
        if self._agent_state.parked is None:
            raise refuse("redrive: the run went on meanwhile; nothing was changed")
        members = found.members if wanted.newest else state.members
        return Redriven(spec=found.spec, members=members, limits=wanted.limits)

    @redrive.validator
    def _check_redrive(self, how: Any = None) -> None:
        wanted = redrive_of(how)
        self._refuse_when_over()
        check_redrive(self._state, wanted)

    @workflow.signal(name=STOP, description="Finish now, gracefully, with what there is.")
    def stop(self, _: Any = None) -> None:
        """End as completed, with the best partial answer."""
        self._events.append(EndAsked(reason="stopped"))

    @workflow.signal(name=WAKE, description="Look around: an idle session then moves to a new version.")
    def wake(self, _: Any = None) -> None:
        """Decide again. A run that has nothing new to do goes on waiting."""
        self._woken = True

    @workflow.query(name=STATUS, description="Where the run is: status, step, cost, what it waits for.")
    def status(self) -> RunStatus:
        """Where the run is."""
        if self._state is None:
            return starting_report(self._agent, self._begun, self._held_up)
        return status_report(self._state)

    @workflow.query(name=RESULT, description="The result so far; final once the run is over.")
    def result(self) -> RunResult:
        """The result as it stands."""
        state = self._ready()
        return result_of(state, state.end or End(stop_reason=state.ending or "stopped"))

    @workflow.query(name=TRANSCRIPT, description="Messages of the run, a page at a time.")
    def transcript(self, want: Any = None) -> TranscriptPage:
        """Messages from `start` on. A swarm or graph has none: its nodes' runs have."""
        asked = TranscriptQuery.model_validate(want or {})
        state = self._ready()
        return page(state.messages if isinstance(state, State) else (), asked)

    @workflow.query(name=SPEC_QUERY, description="The agent, and all it may start, as this run keeps it.")
    def spec(self, member: Any = None) -> ResolvedAgent:
        """The pinned specs: the run's own, or that of a member first."""
        state = self._ready()
        pinned = ResolvedAgent(spec=state.spec, members=state.members)
        found = pinned if member is None else for_member(pinned, str(member))
        if found is None:
            raise refuse(f"the run knows no {member!r}")
        return found

    @workflow.signal(name=REPORT, description="Of a run that this one started: who waits, what it needs.")
    def child_report(self, report: Report) -> None:
        """Take in what a child says."""
        if report.parent_execution_id == workflow.info().first_execution_run_id:
            self._events.append(ChildReported(report=report))

    @workflow.signal(name=GRANT, description="Of the run that started this one: what it may spend.")
    def grant(self, grant: Grant) -> None:
        """Take in what the parent says."""
        self._events.append(Granted(grant=grant))

    def _ready(self) -> State | Team:
        if self._state is None:
            raise refuse("the run has not started yet: no worker has resolved its agent")
        return self._state


def _code_of(spec: AnySpec) -> GraphCode:
    """The functions of a graph. What binds them is imported here: of our files it alone is each run's own."""
    if not isinstance(spec, GraphSpec):
        return team.NO_CODE
    with workflow.unsafe.sandbox_import_notification_policy(workflow.SandboxImportNotificationPolicy.SILENT):
        from .graph_code import code_of

    return code_of(spec)


def _chosen(command: Slide | Switch) -> Event:
    return Slid(start=command.start) if isinstance(command, Slide) else Switched(model=command.model)
