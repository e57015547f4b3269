"""Loop of a run, for any program: it carries out what the program decides, and folds what happens.

Nothing is decided here. The loop starts activities and child runs, keeps their handles, and puts what happens
(results, messages, timers) into one queue, in the order in which Temporal delivers it. It folds the queue into the
state and asks the program again. That order is in history, so a replay repeats it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, assert_never, cast

from temporalio import workflow

from perdure.errors import rule_for
from perdure.wire.names import PAUSE, RESUME
from perdure.wire.results import ChildResult, RunResult, StopReason
from perdure.wire.spec import AnySpec
from perdure.wire.tree import Lineage, Report

from .child_runs import ChildRuns
from .display import Display
from .ending import Ending, requested_end
from .engine.carry import HistoryFormat, pack, unpack
from .engine.clocks import people_event
from .engine.commands import (
    CallModel,
    CallTools,
    CancelPending,
    CloseTurn,
    Command,
    Finish,
    GrantChildren,
    MoveWindow,
    OpenTurn,
    RequestBudget,
    RunHooks,
    StartNodes,
    Summarize,
    SwitchModel,
    Wait,
)
from .engine.events import (
    BudgetRequested,
    CallsStarted,
    ChildGranted,
    EndRequested,
    Event,
    GraceExpired,
    HooksStarted,
    ModelFailed,
    ModelSwitched,
    NodesStarted,
    Paused,
    Resumed,
    StepBegan,
    SummaryBegan,
    TurnBegan,
    TurnEnded,
    WindowMoved,
)
from .engine.parking import with_sensible_wait
from .engine.program import RunningProgram
from .engine.report import report_due
from .engine.state import AgentState, End, RunState
from .engine.team_state import TeamState
from .identity import resets
from .outcome import return_or_raise
from .pending_activities import PendingActivities
from .renewal import Renewal, renew_blobs
from .timers import RetryTimer, RunClocks

_FIRST_RETRY = timedelta(seconds=30)
"""Wait before the first retry of an outage that only Temporal noticed: nobody named a delay."""
_BETWEEN_ENDS = timedelta(milliseconds=300)
"""Time without an end of a child after which no other is waited for, once the grace is over."""
_MOST_WAITS = 5


class Loop:
    """The loop of one run. Handlers of the workflow put events into `events`, and read `state`."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.program: RunningProgram[Any] | None = None
        self.state: RunState | None = None
        self.bind: Callable[[AnySpec], RunningProgram[Any]] | None = None
        """Maker of the program of another spec, for runs whose spec may change."""
        self.ending = Ending(lambda: self.is_ending)
        self.renewal = Renewal()
        self.retry_timer = RetryTimer(self.events.append)
        self._clocks = RunClocks(self.events.append, lambda: self._now)
        self._pending = PendingActivities(self.events.append)
        self._children = ChildRuns(self.events.append, self.ending)
        self._written = HistoryFormat()
        self._is_new = True
        self._renews_blobs = False
        self._blob_renewal: asyncio.Task[None] | None = None
        self._woken = False
        self._waited_in: RunState | None = None
        """State at the last wait for an event."""
        self._is_finishing = False
        self._cancelled_once = False
        self._cancelled_for: StopReason | None = None

    def begin(self, program: RunningProgram[Any], state: RunState, written: HistoryFormat) -> None:
        """Set the program and the state of a run that begins."""
        self.program, self.state, self._written = program, state, written

    def restore(self, program: RunningProgram[Any], carried: dict[str, Any], chunks: Any) -> None:
        """Set the program, and the state that continue-as-new has carried."""
        self.program, self._is_new, self._renews_blobs = program, False, True
        state, self._written = unpack(program, carried, chunks)
        self.state = with_sensible_wait(state, workflow.now())

    def go_on(self, program: RunningProgram[Any], state: RunState, written: HistoryFormat) -> None:
        """Set the program and the state of a run that goes on from a closed execution."""
        self.begin(program, state, written)
        self._renews_blobs = True

    def pack_state(self, state: RunState) -> list[Any]:
        """Return the arguments with which the run would continue as new, were this its state."""
        return pack(self._program, state, self._written)

    async def run(self, request: Any) -> RunResult:
        """Run to the end. `request` is the run's first argument, which continue-as-new hands on."""
        display = Display(self._now, self._written, fresh=self._is_new)
        display.show(self._program, self._now)
        self._clocks.start()
        if self._renews_blobs:
            self._blob_renewal = renew_blobs(self._now.messages)
        try:
            end = await self._loop(display, request)
        finally:
            self._clocks.cancel()
            self.retry_timer.cancel()
        result: RunResult = self._program.result(self._now, end)
        return await self.end_with(end, result, self._now.tree.lineage)

    async def end_with(self, end: End, result: RunResult, lineage: Lineage | None) -> RunResult:
        """Return the result as the workflow's, or raise its error, once the parent and all senders know."""
        await self._report_final(end, result, lineage)
        with suppress(asyncio.CancelledError):  # it is over already, with this result
            await workflow.wait_condition(workflow.all_handlers_finished)
        if lineage is not None:
            result = ChildResult.model_construct(**dict(result))
        return return_or_raise(end, result)

    @property
    def is_ending(self) -> bool:
        """True from the moment at which an end of the run, or of a session's turn, is known."""
        state = self.state
        if self._is_finishing or requested_end(self.events) is not None:
            return True
        if state is None:
            return False
        is_closing = state.session is not None and state.session.closing is not None
        return is_closing or state.ending is not None or state.end is not None

    def wake(self) -> None:
        """Decide again. A run that has nothing new to do goes on waiting."""
        self._woken = True

    @property
    def _now(self) -> RunState:
        assert self.state is not None, "the run has been given its agent"
        return self.state

    @property
    def _program(self) -> RunningProgram[Any]:
        assert self.program is not None, "the run has been given its agent"
        return self.program

    async def _loop(self, display: Display, request: Any) -> End:
        while True:
            self._fold_events()
            command = self._program.decide(self._now)
            self._note_people(command)
            match command:
                # Asked before the command is carried out: the new execution decides it again.
                case _ if self.renewal.may_renew(command, self._now):
                    await self._renew_or_drain(display, request)
                case Wait():
                    self._report_to_parent()
                    self._clocks.set_for(self._now)
                    self.retry_timer.set_for(self._now)
                    display.show(self._program, self._now)
                    await self._wait_for_event()
                case CancelPending():
                    await self._cancel_pending(display)
                case Finish():
                    await self._wait_for_handlers()
                    if not self.events:  # else a message came while the run was ending
                        self.state = replace(self._now, end=command.end)
                        display.show(self._program, self._now)
                        return command.end
                case _:
                    self._carry_out(command)
                    if isinstance(command, StartNodes) and command.more:
                        await self._next_task()

    def _note_people(self, command: Command) -> None:
        """Fold since when, or until when, the run waits for people alone: its clocks stand still meanwhile."""
        waits = isinstance(command, Wait)
        event = people_event(self._waited_in, self._now, workflow.now(), waits=waits)
        if event is not None:
            self._apply(event)
        if waits:
            self._waited_in = self._now

    async def _wait_for_handlers(self) -> None:
        """Let handlers end: what they wait for beside the loop is given up, see `ending`."""
        self._is_finishing = True
        with suppress(asyncio.CancelledError):  # it is over: what it had is its result
            # A handler may itself wait until its event is folded: waiting for both would never end.
            await workflow.wait_condition(lambda: bool(self.events) or workflow.all_handlers_finished())
        self._is_finishing = False

    async def _next_task(self) -> None:
        """Let this workflow task end, and go on in another."""
        try:
            await workflow.sleep(timedelta(milliseconds=1), summary="start the others")
        except asyncio.CancelledError:
            self.events.append(EndRequested(reason="cancelled"))

    def _carry_out(self, command: Command) -> None:  # noqa: C901 - one case a command
        match command:
            case CallModel():
                # Folded first, because the call's input is made of the state after it.
                self._apply(StepBegan(clamped_by=command.allowance.limited_by))
                self._pending.call_model(self._agent_state, command)
            case CallTools():
                self._call_tools(command)
            case RunHooks():
                ids = tuple(call.call.id for call in command.calls)
                self._apply(HooksStarted(point=command.point, ids=ids, end=command.end))
                self._pending.run_hooks(self._agent_state, command)
            case StartNodes():
                self._apply(NodesStarted(starts=command.starts, at=workflow.now()))
                self._children.start_nodes(cast("TeamState", self._now), command.starts)
            case GrantChildren():
                for key, grant in command.grants:
                    self._apply(ChildGranted(key=key, grant=grant))
                    self._children.grant(key, grant)
            case RequestBudget():
                self._report_to_parent(command)
                self._apply(BudgetRequested(request=command.request))
            case MoveWindow():
                self._apply(WindowMoved(start=command.start))
            case Summarize():
                self._apply(SummaryBegan(stop=command.stop))
                self._pending.summarize(self._agent_state, command)
            case SwitchModel():
                self._apply(ModelSwitched(model=command.model))
            case OpenTurn():
                self._apply(TurnBegan(at=workflow.now()))
                self._clocks.set_for(self._now)
            case CloseTurn():
                self._apply(TurnEnded(end=command.end, at=workflow.now()))
                self._forget_turn()
            case Wait() | CancelPending() | Finish():
                raise AssertionError(f"{command!r} is carried out by the loop")
            case _:
                assert_never(command)

    def _call_tools(self, command: CallTools) -> None:
        self._apply(CallsStarted(ids=tuple(call.call.id for call in command.calls)))
        tools = [call for call in command.calls if call.kind != "agent"]
        self._pending.call_tools(self._agent_state, tools)
        for call in command.calls:
            if call.kind == "agent":
                self._children.call_agent(self._agent_state, call)

    def _forget_turn(self) -> None:
        """Forget work that was given up in a turn: it must not come back in another."""
        self._cancelled_once = False
        self._clocks.set_for(self._now)
        self._pending.abandon()
        self._children.abandon()

    @property
    def _agent_state(self) -> AgentState:
        return cast("AgentState", self._now)

    def _apply(self, event: Event) -> None:
        spec = self._now.spec
        state: RunState = self._program.fold(self._now, event)
        self.state = state
        # A program is bound to its spec, and a scheduler to its functions.
        if self.bind is not None and state.spec is not spec:
            self.program = self.bind(state.spec)

    def _fold_events(self) -> None:
        while self.events:
            event = _with_retry(self.events.popleft())
            self._apply(event)
            if isinstance(event, Paused | Resumed):
                self._children.forward(PAUSE if isinstance(event, Paused) else RESUME)

    async def _wait_for_event(self) -> None:
        self._woken = False
        try:
            await workflow.wait_condition(
                # The server may come to suggest it without any event of ours, such as by answers given twice.
                lambda: bool(self.events) or self._woken or self.renewal.is_due_while_waiting(self._now)
            )
        except asyncio.CancelledError:
            # Not swallowed: the run cancels what is pending and then ends as cancelled.
            self.events.append(EndRequested(reason="cancelled"))
        self.renewal.has_waited = True

    # -- the parent

    def _report_to_parent(self, command: RequestBudget | None = None) -> None:
        """Tell the parent who waits for people, and what is needed; give back what is not."""
        lineage = self._now.tree.lineage
        if lineage is None:
            return
        report, informed = report_due(self._now, command.request if command else None)
        if report is not None:
            self._apply(informed)
            self._children.report_to_parent(lineage, report)

    async def _report_final(self, end: End, result: RunResult, lineage: Lineage | None) -> None:
        """Tell the parent what a cancelled run has used: Temporal keeps no result of it."""
        if lineage is not None and end.stop_reason == "cancelled":
            final = Report(key=lineage.key, parent_execution_id=lineage.parent_execution_id, final=result)
            await self._children.report_final(lineage, final)
        with suppress(asyncio.CancelledError):  # it is over already, with this result
            await self._children.flush_reports()

    # -- the end, and continue-as-new

    async def _cancel_pending(self, display: Display) -> None:
        """Cancel pending work, and wait a moment for its last values."""
        ending = self._now.ending
        if self._cancelled_once and (self._cancelled_for == ending or ending != "cancelled"):
            self._cancelled_once = False
            return self._apply(GraceExpired())
        self._cancelled_once, self._cancelled_for = True, ending
        display.show(self._program, self._now)
        # A timer of its own, not that of `wait_condition`: results that arrive together with it still count.
        grace = asyncio.create_task(workflow.sleep(self._now.tree.grace))
        known = len(self.events)
        self._pending.cancel()
        self._children.cancel(ending)
        try:
            await workflow.wait_condition(lambda: grace.done() or not self._has_pending)
            await self._let_ends_arrive(known)
        except asyncio.CancelledError:  # work that was asked to stop is to be cancelled by now
            self.events.append(EndRequested(reason="cancelled"))
        finally:
            grace.cancel()
        return None

    async def _let_ends_arrive(self, known: int) -> None:
        """Wait, for a bounded time, while ends and last reports of children keep coming.

        The server refuses an end of the run that an event overtakes, and the worker then replays the run: while many
        ends arrive, closing is slower than waiting. Children that do report need not be booked with their leases.
        Only the root waits: all others must report before the grace of the run above is over.
        """
        for _ in range(0 if self._now.tree.lineage else _MOST_WAITS):
            if not self._children.count or len(self.events) == known:  # none has come since the last look
                return
            known = len(self.events)
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: not self._has_pending, timeout=_BETWEEN_ENDS, timeout_summary="ends keep coming"
                )

    @property
    def _has_pending(self) -> bool:
        return bool(self._pending.count or self._children.count)

    async def _renew_or_drain(self, display: Display, request: Any) -> None:
        """Continue as new when nothing is pending; else wait until pending work has ended."""
        if not self._now.is_busy:
            await self._continue_as_new(request)
        if self.events:
            return
        self._report_to_parent()
        self._clocks.set_for(self._now)
        display.show(self._program, self._now)
        await self._wait_for_event()

    async def _continue_as_new(self, request: Any) -> None:
        """Continue as new with the whole state: nothing is pending."""
        self.renewal.is_renewing = True
        try:
            # A handler may itself wait until its event is folded: waiting for both would never end.
            await workflow.wait_condition(
                lambda: bool(self.events) or (self._children.is_flushed and workflow.all_handlers_finished())
            )
        except asyncio.CancelledError:
            self.events.append(EndRequested(reason="cancelled"))
        finally:
            self.renewal.is_renewing = False
        if self.events:
            return
        carried = replace(self._now, resets=resets(self._now))
        workflow.continue_as_new(
            args=[request, *pack(self._program, carried, self._written)],
            initial_versioning_behavior=self.renewal.versioning(self._now),
        )


def _with_retry(event: Event) -> Event:
    """Give a transient failure that only Temporal noticed a time for its retry."""
    if not isinstance(event, ModelFailed) or event.failure.retry_in is not None:
        return event
    if not rule_for(event.failure.kind).transient:
        return event
    after = _FIRST_RETRY * (0.5 + workflow.random().random())
    return replace(event, failure=event.failure.model_copy(update={"retry_in": after}))
