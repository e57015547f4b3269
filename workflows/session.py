"""SessionWorkflow: a conversation that outlives a turn. The loop is AgentWorkflow's; `turns` decides.

One workflow is one session, however long: it holds the transcript, so a turn carries nothing. What
waits for a reply never holds it up: a `say` that would is answered with `done: false`, and whoever
said it goes on asking with the same message id.
"""

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from perdure.wire.names import INTERRUPT, REPLY, SAY, SESSION_OVER, SESSION_WORKFLOW
from perdure.wire.requests import SessionRequest
from perdure.wire.results import RunResult, TurnReply
from perdure.wire.spec import AgentSpec

from .agent import AgentWorkflow
from .display import Display
from .engine import session as turns
from .engine.carry import Writing, writing_of
from .engine.decide import CloseTurn, Command, OpenTurn, Wait
from .engine.fold import Birth
from .engine.state import EndAsked, Event, IdleNoticed, Interrupted, Session, State, TurnBegan, TurnEnded
from .inputs import refuse, said_of, session_request_of
from .pending_activities import Flights

MOST_WAITING: Final = 5
"""Messages whose senders are kept waiting. The server allows ten at a time, and others must get in."""
IDLE_EVENTS: Final = 1000
"""An idle session with more events continues as new: whoever picks it up again reads few."""
_MOVES: Final = "session-moves"
"""Patch: sessions that ran before there was one have seen a new version and stayed where they were."""


@workflow.defn(name=SESSION_WORKFLOW)
class SessionWorkflow(AgentWorkflow):
    """One session with an agent."""

    def __init__(self) -> None:
        super().__init__()
        self._era = 0
        self._flights = Flights(self._of_this_turn())
        self._timer: asyncio.Task[None] | None = None
        self._waiting = 0
        self._renewing = False
        self._has_waited = False
        self._refused: ApplicationError | None = None

    @workflow.run
    async def run(self, request: Any, carried: Any = None, *chunks: Any) -> RunResult:
        """Hold a session to its end. `request` is a SessionRequest as JSON; the rest is ours."""
        return await super().run(request, carried, *chunks)

    async def _begin(self, request: Any, carried: Any) -> Writing:
        try:
            return await self._opened(session_request_of(request))
        except ApplicationError as error:
            self._refused = error
            self._begun = "failed"
            await workflow.wait_condition(workflow.all_handlers_finished)
            raise

    async def _opened(self, asked: SessionRequest) -> Writing:
        self._agent = asked.agent
        resolved = await self._resolved(turns.priced_request(asked), None)
        if not isinstance(resolved.spec, AgentSpec):
            raise refuse(f"{asked.agent!r} is a {resolved.spec.kind}: sessions are held with agents")
        birth = Birth(id=workflow.info().workflow_id, members=resolved.members)
        self._state = turns.initial(asked, resolved.spec, workflow.now(), birth)
        return writing_of(resolved)

    # -- the loop

    def _decided(self) -> Command:
        return turns.decide(self._agent_state)

    def _apply(self, event: Event) -> None:
        self._state = turns.fold(self._agent_state, event)

    def _carry_out(self, command: Command) -> None:
        match command:
            case OpenTurn():
                self._apply(TurnBegan(at=workflow.now()))
                self._time_turn()
            case CloseTurn():
                self._apply(TurnEnded(end=command.end, at=workflow.now()))
                self._forget_turn()
            case _:
                super()._carry_out(command)

    def _of_this_turn(self) -> Any:
        """Reports what comes of a turn's flights while that turn goes on."""
        era = self._era

        def report(event: Event) -> None:
            if era == self._era:
                self._events.append(event)

        return report

    def _forget_turn(self) -> None:
        """What was given up in a turn must not come back in another."""
        self._recalled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flights.aloft:
            self._era += 1
            self._flights = Flights(self._of_this_turn())

    def _may_renew(self, command: Command) -> bool:
        """Also between two turns: to leave a long history behind, or for a new version of the worker."""
        if isinstance(command, OpenTurn | Wait) and self._moves():
            return True
        if isinstance(command, Wait) and not self._session.is_open and not self._session.queue:
            info = workflow.info()
            return info.is_continue_as_new_suggested() or info.get_current_history_length() > IDLE_EVENTS
        return super()._may_renew(command)

    def _moves(self) -> bool:
        """Whether new sessions go to another version than this one's, and no turn is in its way.

        Not before this part has waited once: one that stays where it is in spite of all, because
        somebody has pinned it by hand, must not continue as new for ever.
        """
        return (
            not self._session.is_open
            and self._has_waited
            and workflow.info().is_target_worker_deployment_version_changed()
            and workflow.patched(_MOVES)
        )

    def _renewed_at(self) -> "workflow.ContinueAsNewVersioningBehavior | None":
        return workflow.ContinueAsNewVersioningBehavior.AUTO_UPGRADE if self._moves() else None

    async def _something_happens(self) -> None:
        await super()._something_happens()
        self._has_waited = True

    async def _continue(self, display: Display, request: Any) -> None:
        """As a run; those who wait for a reply are sent away first, to ask again."""
        self._renewing = True
        try:
            await super()._continue(display, request)
        finally:
            self._renewing = False

    @property
    def _session(self) -> Session:
        return turns.session_of(self._agent_state)

    # -- clocks: timers are in history, so there are few

    async def _deadline(self) -> None:
        if self._timer is None:
            self._time_turn()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._session_deadline())
            group.create_task(self._idle_clock())

    async def _session_deadline(self) -> None:
        if self._session.deadline_at is not None:
            await _sleep_until(self._session.deadline_at, "deadline of the session")
            self._events.append(EndAsked(reason="deadline"))

    async def _idle_clock(self) -> None:
        """One timer, not one a turn: when it fires too early, it is set for the rest."""
        most = self._session.max_idle
        while most is not None:
            now = workflow.now()
            due = turns.idle_at(self._agent_state)
            await _sleep_until(due if due is not None and due > now else now + most, "idle")
            self._events.append(IdleNoticed(at=workflow.now()))

    def _time_turn(self) -> None:
        timeout = self._session.turn_limits.timeout
        if not self._session.is_open or timeout is None:
            return
        number, due = self._session.turn, self._session.mark.at + timeout

        async def ring() -> None:
            await _sleep_until(due, f"deadline of turn {number}")
            self._events.append(Interrupted(turn=number, reason="deadline"))

        self._timer = asyncio.create_task(ring())

    # -- what people say

    @workflow.update(
        name=SAY,
        description='Say something: {"id": "yours", "text": "...", "when_busy": "queue" or "steer"}. '
        "Answers with the turn's reply; the same id again, with the same one.",
    )
    async def say(self, message: Any) -> TurnReply:
        """Give the session a message; the reply when its turn is over, or `done: false` before that."""
        spoke = said_of(message)
        message_id = spoke.spoken.id
        if self._state is None or turns.reply_to(self._agent_state, message_id) is None:
            self._events.append(spoke)
        self._waiting += 1
        try:
            await workflow.wait_condition(lambda: self._is_heard(message_id))
            if self._waiting <= MOST_WAITING and self._refused is None:
                await workflow.wait_condition(lambda: self._renewing or self._is_settled(message_id))
            return self._reply(message_id)
        finally:
            self._waiting -= 1

    @say.validator
    def _check_say(self, message: Any) -> None:
        spoke = said_of(message)
        if isinstance(self._state, State) and turns.reply_to(self._state, spoke.spoken.id) is not None:
            return
        self._refuse_when_over()

    def _is_heard(self, message_id: str) -> bool:
        """Whether the state has it: only then may its sender be sent away."""
        if self._state is None:
            return self._refused is not None
        return turns.is_pending(self._agent_state, message_id) or self._is_settled(message_id)

    def _is_settled(self, message_id: str) -> bool:
        over = self._session.closing is not None and not self._session.is_open
        return over or turns.reply_to(self._agent_state, message_id) is not None

    def _reply(self, message_id: str) -> TurnReply:
        if self._refused is not None:
            raise self._refused
        reply = turns.reply_to(self._agent_state, message_id)
        if reply is not None:
            return reply
        if self._is_settled(message_id):
            raise ApplicationError(
                f"the session ended ({self._session.closing}) before it read this message",
                type=SESSION_OVER,
                non_retryable=True,
            )
        return TurnReply(message_id=message_id, done=False, turn=self._session.turn)

    @workflow.query(name=REPLY, description="The reply to the message of that id, as far as there is one.")
    def reply(self, message_id: str) -> TurnReply:
        """What became of a message; asking costs no history."""
        state = self._ready()
        assert isinstance(state, State), "a session is held with an agent"
        found = turns.reply_to(state, message_id)
        known = turns.is_pending(state, message_id)
        return found or TurnReply(message_id=message_id, done=False, known=known, turn=self._session.turn)

    @workflow.signal(name=INTERRUPT, description="End the turn, not the session, with what there is.")
    def interrupt(self, _: Any = None) -> None:
        """End the turn gracefully."""
        self._events.append(Interrupted())

    def _refuse_when_over(self) -> None:
        over = self._state is not None and self._session.closing is not None
        if over or any(isinstance(event, EndAsked) for event in self._events):
            raise ApplicationError("the session is over", type=SESSION_OVER, non_retryable=True)


async def _sleep_until(due: datetime, summary: str) -> None:
    left = due - workflow.now()
    if left > timedelta():
        await workflow.sleep(left, summary=summary)
