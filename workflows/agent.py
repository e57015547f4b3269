"""AgentWorkflow: carries out what `decide` says, and feeds what happens back through `fold`.

Nothing is decided here. The shell starts activities, keeps their handles, and puts what happens
(results, messages, timers) into one queue, in the order Temporal delivers it; the main loop folds
the queue into the state and asks `decide` again. That order is in history, so replay repeats it.
"""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Any

from temporalio import workflow
from temporalio.exceptions import is_cancelled_exception

from perdure.effects import SPEC_QUERY
from perdure.spec import AgentSpec, ResolvedAgent
from perdure.wire import (
    DECIDE,
    PAUSE,
    RESULT,
    RESUME,
    SEND,
    STATUS,
    STOP,
    TRANSCRIPT,
    WORKFLOW,
    RunRequest,
    RunResult,
    RunStatus,
    Status,
    TranscriptPage,
    TranscriptQuery,
)

from .carry import pack, unpack
from .decide import CallModel, CallTools, Finish, Recall, Slide, Wait, decide
from .display import Display
from .flights import Flights
from .fold import GRACE, fold, initial
from .inputs import check_decision, decision_of, message_of, refuse, request_of
from .outcome import ended
from .pages import page
from .report import result_of, starting_report, status_report
from .resolve import resolve
from .state import (
    CallsStarted,
    Decided,
    End,
    EndAsked,
    Event,
    GraceOver,
    Paused,
    Resumed,
    Sent,
    Slid,
    State,
    StepBegan,
)


@workflow.defn(name=WORKFLOW)
class AgentWorkflow:
    """One run of an agent."""

    def __init__(self) -> None:
        self._state: State | None = None
        self._events: deque[Event] = deque()
        self._flights = Flights(self._events.append)
        self._recalled = False
        self._agent = ""
        self._begun: Status = "thinking"

    @workflow.run
    async def run(self, request: Any, carried: Any = None, *chunks: Any) -> RunResult:
        """Run an agent to its end.

        `request` is a RunRequest as JSON. The further arguments are ours: what a run that
        continued as new has taken with it.
        """
        if carried is None:
            asked = request_of(request)
            self._agent = asked.agent
            resolved = await self._resolved(asked)
            self._state = initial(asked, resolved.spec, workflow.now())
            search_attributes = resolved.search_attributes
        else:
            self._state, search_attributes = unpack(carried, chunks)
        display = Display(self._state, search_attributes, fresh=carried is None)
        deadline = asyncio.create_task(self._deadline())
        try:
            end = await self._loop(display, request)
        finally:
            deadline.cancel()
        return ended(end, result_of(self._now, end))

    async def _resolved(self, asked: RunRequest) -> ResolvedAgent:
        try:
            return await resolve(asked)
        except BaseException as error:
            self._begun = "cancelled" if is_cancelled_exception(error) else "failed"
            raise

    async def _loop(self, display: Display, request: Any) -> End:
        while True:
            self._fold_events()
            command = decide(self._now)
            match command:
                case CallModel():
                    if workflow.info().is_continue_as_new_suggested():
                        await self._continue(display, request)
                    self._apply(StepBegan(clamped_by=command.allowance.by))
                    self._flights.ask_model(self._now, command)
                case CallTools():
                    self._apply(CallsStarted(ids=tuple(call.call.id for call in command.calls)))
                    self._flights.call_tools(self._now, command.calls)
                case Slide():
                    self._apply(Slid(start=command.start))
                case Recall():
                    await self._recall(display)
                case Wait():
                    display.show(self._now)
                    await self._something_happens()
                case Finish():
                    await workflow.wait_condition(workflow.all_handlers_finished)
                    if not self._events:  # else somebody spoke while it was ending
                        self._state = replace(self._now, end=command.end)
                        display.show(self._now)
                        return command.end

    @property
    def _now(self) -> State:
        assert self._state is not None, "the run has been given its agent"
        return self._state

    def _apply(self, event: Event) -> None:
        self._state = fold(self._now, event)

    def _fold_events(self) -> None:
        while self._events:
            self._apply(self._events.popleft())

    async def _something_happens(self) -> None:
        try:
            await workflow.wait_condition(lambda: bool(self._events))
        except asyncio.CancelledError:
            # Not swallowed: the run calls back what is in flight and then ends as cancelled.
            self._events.append(EndAsked(reason="cancelled"))

    async def _recall(self, display: Display) -> None:
        """Call back what is in flight, and wait a moment for its last words."""
        if self._recalled:
            return self._apply(GraceOver())
        self._recalled = True
        display.show(self._now)
        self._flights.recall()
        # Out of patience, or told again: either way the run ends now.
        with suppress(TimeoutError, asyncio.CancelledError):
            await workflow.wait_condition(lambda: not self._flights.aloft, timeout=GRACE)
        return None

    async def _continue(self, display: Display, request: Any) -> None:
        """Continue as new, with everything: nothing is in flight between two steps."""
        await workflow.wait_condition(workflow.all_handlers_finished)
        self._fold_events()
        workflow.continue_as_new(args=[request, *pack(self._now, display.search_attributes)])

    async def _deadline(self) -> None:
        """Durable: the timer is in history, and survives every worker."""
        if self._now.deadline_at is None:
            return
        left = self._now.deadline_at - workflow.now()
        if left.total_seconds() > 0:
            await workflow.sleep(left, summary="deadline of the run")
        self._events.append(EndAsked(reason="deadline"))

    @workflow.update(
        name=SEND, description="Say something to the agent: a JSON string. It reads it before its next step."
    )
    async def send(self, message: Any) -> int:
        """Give the agent a message; returns how many are waiting to be read."""
        update = workflow.current_update_info()
        self._events.append(Sent(message=message_of(message), id=update.id if update else None))
        return (len(self._state.inbox) if self._state else 0) + 1

    @send.validator
    def _check_send(self, message: Any) -> None:
        message_of(message)
        self._refuse_when_over()

    @workflow.update(
        name=DECIDE,
        description='Decide about a tool call that waits: {"call_id": "...", "allow": true, "by": "you"}.',
    )
    async def decide(self, decision: Any) -> None:
        """Allow a held call, with other arguments if you wish, or refuse it with a reason."""
        self._events.append(Decided(decision=decision_of(decision)))

    @decide.validator
    def _check_decide(self, decision: Any) -> None:
        wanted = decision_of(decision)
        self._refuse_when_over()
        earlier = [event.decision.call_id for event in self._events if isinstance(event, Decided)]
        if wanted.call_id in earlier:
            raise refuse(f"call {wanted.call_id!r} has been decided already")
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

    @workflow.signal(name=STOP, description="Finish now, gracefully, with what there is.")
    def stop(self, _: Any = None) -> None:
        """End as completed, with the best partial answer."""
        self._events.append(EndAsked(reason="stopped"))

    @workflow.query(name=STATUS, description="Where the run is: status, step, cost, what it waits for.")
    def status(self) -> RunStatus:
        """Where the run is."""
        if self._state is None:
            return starting_report(self._agent, self._begun)
        return status_report(self._state)

    @workflow.query(name=RESULT, description="The result so far; final once the run is over.")
    def result(self) -> RunResult:
        """The result as it stands."""
        state = self._ready()
        return result_of(state, state.end or End(stop_reason=state.ending or "stopped"))

    @workflow.query(name=TRANSCRIPT, description="Messages of the run, a page at a time.")
    def transcript(self, want: Any = None) -> TranscriptPage:
        """Messages from `start` on."""
        asked = TranscriptQuery.model_validate(want or {})
        return page(self._ready().messages, asked)

    @workflow.query(name=SPEC_QUERY, description="The agent as this run keeps it.")
    def spec(self) -> AgentSpec:
        """The pinned spec."""
        return self._ready().spec

    def _ready(self) -> State:
        if self._state is None:
            raise refuse("the run has not started yet: no worker has resolved its agent")
        return self._state
