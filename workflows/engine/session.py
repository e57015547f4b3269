"""Session: turns of a conversation around any program.

Rules
1. One turn at a time. It begins with the first message of the queue. Where a run would end, the turn ends, and its
   reply is kept under the ids of all messages that it answered.
2. A message is in one place: queued, unread, in the turn, or answered. None is dropped: a message that steers a
   turn which ends before reading it gets the next turn.
3. A message with a known id changes nothing.
4. Limits of a turn are those of the agent or team, counted from the turn's start. Those of the session are counted
   from its own start. The smaller of both stands in `limits` while the turn goes on.
5. A turn that fails, or is interrupted, ends as a turn. The session ends when it is stopped, cancelled, idle for
   too long, or has used up its limits; the current turn gets its reply first.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from perdure.limits import MOST_COST_USD, MOST_COUNT, Limits
from perdure.model import canonical_json
from perdure.wire.requests import RunRequest, SessionRequest
from perdure.wire.results import RunResult, RunStatus, StopReason, TurnReply

from .account import spent
from .amounts import bounds_of, minus, missing, usage_since
from .budget import short_of
from .clocks import counted_session_deadline, turn_deadline
from .commands import CloseTurn, Command, Finish, OpenTurn, Wait
from .events import (
    EndRequested,
    Event,
    IdleChecked,
    MessageSent,
    Said,
    StepBegan,
    TurnBegan,
    TurnEnded,
    TurnExtended,
    TurnInterrupted,
    Upgraded,
)
from .extension import amounts_needed, calls_needed, deadline_after, past_after, with_granted
from .leftovers import cut_lines, unread_lines
from .past import Extension
from .program import Program
from .questions import has_question
from .report import cost_of
from .state import AnsweredTurn, End, Origin, RunState, Session, TurnStart, Utterance
from .turn_extension import begin_extended_turn, has_lost_turn, with_usual_limits
from .upgrade import apply_next_agent, take_agent, with_upgrades

MOST_ANSWERED: Final = 512
"""Turns whose replies are kept for a message that comes again."""
MOST_ANSWERED_BYTES: Final = 1024 * 1024
_LONG_TEXT: Final = 2048
"""A reply with more characters is not kept beside the transcript."""
NO_PROMPT: Final = "(a session)"


def run_request(request: SessionRequest) -> RunRequest:
    """Return the request of the run inside a session."""
    optional = {
        "user": request.user,
        "roles": request.roles,
        "context": request.context,
        "limits": _limits_of_turns(request),
    }
    # Unset fields stay unset: a request is written to history as it was given.
    set_fields = {name: value for name, value in optional.items() if value}
    return RunRequest.model_validate(
        {"agent": request.agent, "prompt": NO_PROMPT, "stream": request.stream, **set_fields}
    )


def _limits_of_turns(request: SessionRequest) -> Limits | None:
    """Return the requested limits of each turn. Identical calls are counted in a turn, so their bound is a turn's."""
    session, turn = request.session_limits, request.limits
    if session is None or session.identical_calls is None:
        return turn
    if turn is None:
        return Limits(identical_calls=session.identical_calls)
    most = min(session.identical_calls, turn.identical_calls or session.identical_calls)
    return turn.model_copy(update={"identical_calls": most})


def priced_request(session_request: SessionRequest) -> RunRequest:
    """Return the request with the session's limits, for the check that a bound in money has prices."""
    request, limits = run_request(session_request), session_request.session_limits
    bounded = limits is not None and limits.cost_usd is not None
    return request.model_copy(update={"limits": limits}) if bounded else request


def session_of(state: RunState) -> Session:
    """Return the session's part of its state."""
    assert state.session is not None, "only sessions have turns"
    return state.session


@dataclass(frozen=True)
class SessionProgram:
    """Program of a session: the turns of this file around the program of its agent or team."""

    inner: Program[Any]

    @property
    def state_type(self) -> type[RunState]:
        """Type of the state: the inner program's."""
        return self.inner.state_type

    def open(self, request: SessionRequest, now: datetime, origin: Origin) -> RunState:
        """Return the state of a session that has just been given its agent or team."""
        state: RunState = self.inner.empty(run_request(request), now, origin)
        limits = Limits(steps=None).tightened_by(request.session_limits)
        limits = limits.model_copy(update={"identical_calls": None})
        deadline = None if limits.timeout is None else now + limits.timeout
        session = Session(
            turn_limits=state.limits,
            limits=limits,
            max_idle=request.max_idle,
            deadline_at=deadline,
            start=TurnStart(at=now),
            upgrades_each_turn=request.upgrade == "each_turn",
        )
        # The clocks are the turns' and the session's, not the run's.
        return replace(state, session=session, deadline_at=counted_session_deadline(session), clock=None)

    def restore(self, state: Any) -> RunState:
        """Return the carried state, as the inner program restores it."""
        restored: RunState = self.inner.restore(state)
        return restored

    def go_on(self, state: RunState, extension: Extension) -> RunState:
        """Return the closed session, open again. Messages that wait get their turns now."""
        session, past = session_of(state), past_after(state, extension)
        limits = with_granted(session.limits, extension.limits)
        deadline = deadline_after(state, limits, past)
        session = replace(
            session,
            limits=limits,
            deadline_at=deadline,
            closing=None,
            start=replace(session.start, at=extension.at),
        )
        return replace(
            state,
            session=session,
            deadline_at=counted_session_deadline(session),
            past=past,
            paused=False,
            ending=None,
            end=None,
        )

    def needs(self, state: RunState, reason: StopReason) -> list[str]:
        """Return each bound of the session that leaves no room for another turn."""
        limits, steps = session_of(state).limits, state.ledger.steps
        at_end = limits.steps is not None and steps >= limits.steps
        return [
            *([f"steps to {steps + 1} or more"] if at_end else []),
            *calls_needed(state, limits, reason),
            *amounts_needed(limits, state, self.inner.least_turn(state)),
        ]

    def decide(self, state: RunState) -> Command:
        """Return the next command."""
        session = session_of(state)
        if session.turn_is_open:
            # The inner program knows nothing of sessions: its end is the turn's.
            command = self.inner.decide(state)
            return CloseTurn(end=command.end) if isinstance(command, Finish) else command
        if session.closing is not None:
            return Finish(end=End(stop_reason=session.closing, output=_newest_output(state)))
        waiting = session.queue or session.extension is not None
        return OpenTurn() if waiting and not state.paused else Wait()

    def fold(self, state: RunState, event: Event) -> RunState:  # noqa: C901 - one case an event
        """Return the state after the event."""
        match event:
            case Said():
                return self._take_message(state, event)
            case MessageSent():
                return self._take_unnamed(state, event)
            case TurnBegan():
                return self._begin_turn(state, event.at)
            case TurnEnded():
                return self._end_turn(state, event)
            case TurnInterrupted():
                return self._interrupt(state, event)
            case TurnExtended():
                return _take_extension(state, event)
            case Upgraded():
                return take_agent(state, event.agent)
            case IdleChecked():
                return _close_when_idle(state, event.at)
            case EndRequested():
                return self._begin_closing(state, event)
            case StepBegan():
                return self._fold_turn(_mark_read(state), event)
            case _:
                return self._fold_turn(state, event)

    def _fold_turn(self, state: RunState, event: Event) -> RunState:
        changed: RunState = self.inner.fold(state, event)
        return changed

    def status(self, state: RunState) -> RunStatus:
        """Return the status."""
        status: RunStatus = self.inner.status(state)
        return with_upgrades(state, status)

    def result(self, state: RunState, end: End) -> RunResult:
        """Return the result."""
        result: RunResult = self.inner.result(state, end)
        session = session_of(state)
        waiting = [utterance.message for utterance in (*session.unread, *session.queue)]
        return result.model_copy(update={"missing": cut_lines([*result.missing, *unread_lines(waiting)])})

    def details(self, state: RunState) -> str:
        """Return the page in the Temporal UI."""
        return self.inner.details(state)

    # -- messages

    def _take_message(self, state: RunState, event: Said) -> RunState:
        if _is_known(state, event.utterance.id):
            return state
        session = session_of(state)
        if event.delivered:
            return _with(state, _join_turn(session, event))
        steers = event.when_busy == "steer" or has_question(state, event.call_id)
        if not (steers and session.turn_is_open) or state.ending is not None or session.closing is not None:
            return _with(state, replace(session, queue=(*session.queue, event.utterance)))
        return self._steer(state, event.utterance, event.call_id)

    def _steer(self, state: RunState, utterance: Utterance, call_id: str | None) -> RunState:
        """Give the message to the turn: it answers the agent's question, or the model reads it at its next step."""
        before = state.unread_count
        steered = self._fold_turn(state, MessageSent(message=utterance.message, call_id=call_id))
        session = session_of(steered)
        if steered is state:  # a team reads nothing between its nodes: the message gets its own turn
            return _with(state, replace(session, queue=(*session.queue, utterance)))
        if steered.unread_count == before:
            return _with(steered, replace(session, ids=(*session.ids, utterance.id)))
        return _with(steered, replace(session, unread=(*session.unread, utterance)))

    def _take_unnamed(self, state: RunState, event: MessageSent) -> RunState:
        """Take a message whose sender waits for no reply, as `say` would."""
        number = session_of(state).unnamed + 1
        utterance = Utterance(id=event.id or f"sent-{number}", message=event.message)
        state = _with(state, replace(session_of(state), unnamed=number))
        as_said = Said(utterance=utterance, when_busy="steer", call_id=event.call_id)
        return self._take_message(state, as_said)

    # -- turns

    def _begin_turn(self, state: RunState, at: datetime) -> RunState:
        session = session_of(state)
        if session.extension is not None and not session.turn_is_open:
            opened = begin_extended_turn(self.inner, state, at)
            return replace(opened, limits=turn_limits(opened))
        if session.turn_is_open or not session.queue:
            return state
        first, *rest = session.queue
        # The time that messages wait in the queue is not the turn's.
        start = TurnStart(at=at, people=state.people.total, messages=len(state.messages), ledger=state.ledger)
        session = replace(
            session,
            turn=session.turn + 1,
            turn_is_open=True,
            ids=(first.id,),
            queue=tuple(rest),
            start=start,
        )
        state = replace(state, session=session, deadline_at=turn_deadline(session))
        state = replace(state, limits=turn_limits(state))
        begun: RunState = self.inner.begin_turn(state, first.message)
        return begun

    def _end_turn(self, state: RunState, event: TurnEnded) -> RunState:
        session = session_of(state)
        if not session.turn_is_open:
            return state
        # Before the inner program forgets the turn: the reply is made of its parts.
        answered = self._answered_turn(state, event.end)
        closing = session.closing or self._used_up(state, event.end)
        # What runs below have not read gets the next turn, as what the run itself has not read does.
        below = tuple(
            Utterance(id=f"unread-{session.turn}-{number}", message=message)
            for number, message in enumerate(state.unread_below, 1)
        )
        state = self.inner.end_turn(state, event.end)
        session = replace(
            session,
            turn_is_open=False,
            ids=(),
            unread=(),
            # Unread messages were meant for this turn, so they are answered before the queue.
            queue=(*session.unread, *below, *session.queue),
            answered=_newest_answers((*session.answered, answered)),
            start=replace(session.start, at=event.at),
            closing=closing,
        )
        state = replace(state, session=session, deadline_at=counted_session_deadline(session))
        return apply_next_agent(with_usual_limits(state))

    def _answered_turn(self, state: RunState, end: End) -> AnsweredTurn:
        session = session_of(state)
        now, before = state.ledger, session.start.ledger
        text, at = self.inner.newest_words(state, end)
        reply = TurnReply(
            turn=session.turn,
            output=end.output,
            text=text,
            stop_reason=end.stop_reason,
            error=end.failure,
            steps=now.steps - before.steps,
            tool_calls=now.tool_calls - before.tool_calls,
            usage=usage_since(now.usage, before.usage, estimated=now.estimates > before.estimates),
            cost_microusd=None if cost_of(state) is None else now.cost_microusd - before.cost_microusd,
            messages=len(state.messages),
            missing=self.inner.result(state, end).missing,
        )
        # The state is carried at each continue-as-new, so long texts are kept once, in the transcript.
        if len(text) <= _LONG_TEXT or at is None:
            return AnsweredTurn(ids=session.ids, reply=reply)
        output = "" if end.output == text else end.output
        short = reply.model_copy(update={"text": "", "output": output})
        return AnsweredTurn(ids=session.ids, reply=short, text_at=at)

    def _used_up(self, state: RunState, end: End) -> StopReason | None:
        """Return the limit of the session that forbids another turn, or None."""
        limits, ledger = session_of(state).limits, state.ledger
        if limits.steps is not None and ledger.steps >= limits.steps:
            return "max_steps"
        # Without calls left a session can still answer; it ends only when a turn was cut short by that.
        out_of_calls = limits.tool_calls is not None and ledger.tool_calls >= limits.tool_calls
        if out_of_calls and end.stop_reason == "max_tool_calls":
            return "max_tool_calls"
        return short_of(missing(self.inner.least_turn(state), minus(bounds_of(limits), spent(state))))

    def _interrupt(self, state: RunState, event: TurnInterrupted) -> RunState:
        session = session_of(state)
        if not session.turn_is_open or event.turn not in (None, session.turn):
            return state
        return self._fold_turn(state, EndRequested(reason=event.reason))

    def _begin_closing(self, state: RunState, event: EndRequested) -> RunState:
        session = session_of(state)
        reason = "cancelled" if event.reason == "cancelled" else session.closing or event.reason
        state = _with(state, replace(session, closing=reason))
        return self._fold_turn(state, event) if session.turn_is_open else state


def _with(state: RunState, session: Session) -> RunState:
    return replace(state, session=session)


def _join_turn(session: Session, event: Said) -> Session:
    """Return the session with a message that a run below has: it only needs an id that the turn's reply answers.

    The turn may be over by now. A message of a turn whose reply is no longer kept gets a turn of its own.
    """
    if session.turn_is_open and session.turn == event.turn:
        return replace(session, ids=(*session.ids, event.utterance.id))
    answered = tuple(
        replace(turn, ids=(*turn.ids, event.utterance.id)) if turn.reply.turn == event.turn else turn
        for turn in session.answered
    )
    if answered != session.answered:
        return replace(session, answered=answered)
    return replace(session, queue=(*session.queue, event.utterance))


def _take_extension(state: RunState, event: TurnExtended) -> RunState:
    session = session_of(state)
    idle = not (session.turn_is_open or session.queue or session.extension or session.closing)
    # A version that came at the same time goes first; the caller is refused.
    can_go_on = idle and not has_lost_turn(state)
    return _with(state, replace(session, extension=event.extension)) if can_go_on else state


def is_pending(state: RunState, message_id: str) -> bool:
    """Return whether the message waits for its reply."""
    session = session_of(state)
    if session.extension is not None and session.extension.request.id == message_id:
        return True
    waiting = (*session.queue, *session.unread)
    return message_id in session.ids or any(utterance.id == message_id for utterance in waiting)


def reply_to(state: RunState, message_id: str) -> TurnReply | None:
    """Return the reply to the message, or None while its turn goes on."""
    answered = next((turn for turn in session_of(state).answered if message_id in turn.ids), None)
    if answered is None:
        return None
    return _whole_reply(state, answered).model_copy(update={"message_id": message_id})


def _whole_reply(state: RunState, answered: AnsweredTurn) -> TurnReply:
    reply = answered.reply
    if answered.text_at is None:
        return reply
    text = state.messages[answered.text_at].text
    is_same = reply.output == ""
    return reply.model_copy(update={"text": text, "output": text if is_same else reply.output})


def _newest_output(state: RunState) -> object:
    answered = session_of(state).answered
    return _whole_reply(state, answered[-1]).output if answered else None


def _is_known(state: RunState, message_id: str) -> bool:
    answered = any(message_id in turn.ids for turn in session_of(state).answered)
    return answered or is_pending(state, message_id)


def _mark_read(state: RunState) -> RunState:
    """Return the state with the unread messages in the turn: the model reads them now."""
    session = session_of(state)
    ids = (*session.ids, *(utterance.id for utterance in session.unread))
    return _with(state, replace(session, ids=ids, unread=()))


def turn_limits(state: RunState) -> Limits:
    """Return the bounds of a turn that begins now, in the session's own counts."""
    session = session_of(state)
    ledger = session.start.counted_from or state.ledger
    limits, used = session.turn_limits, ledger.usage
    of_turn = Limits(
        steps=_add(limits.steps, ledger.steps if state.counts_steps else 0),
        tool_calls=_add(limits.tool_calls, ledger.tool_calls),
        per_tool={
            name: min(bound + ledger.per_tool.get(name, 0), MOST_COUNT)
            for name, bound in limits.per_tool.items()
        },
        per_tool_ends=limits.per_tool_ends,
        identical_calls=limits.identical_calls,
        input_tokens=_add(limits.input_tokens, used.all_input_tokens),
        output_tokens=_add(limits.output_tokens, used.output_tokens),
        total_tokens=_add(limits.total_tokens, used.total_tokens),
        cost_usd=_add_cost(limits.cost_usd, ledger.cost_microusd),
        timeout=limits.timeout,
    )
    bounds = session.limits
    if bounds.steps is not None and not state.counts_steps:
        # A team's bound of steps holds for each run below: what the session has left is the most that one may use.
        bounds = bounds.model_copy(update={"steps": max(1, bounds.steps - state.ledger.steps)})
    return of_turn.tightened_by(bounds)


def _add(bound: int | None, used: int) -> int | None:
    return None if bound is None else min(bound + used, MOST_COUNT)


def _add_cost(bound: float | None, used_microusd: int) -> float | None:
    return None if bound is None else min(bound + used_microusd / 1_000_000, MOST_COST_USD)


def _newest_answers(answered: tuple[AnsweredTurn, ...]) -> tuple[AnsweredTurn, ...]:
    """Return the newest replies within both bounds; the newest one in any case."""
    kept: list[AnsweredTurn] = []
    room = MOST_ANSWERED_BYTES
    for turn in reversed(answered[-MOST_ANSWERED:]):
        reply = turn.reply
        room -= sum(len(line) for line in reply.missing)
        # A short text is bounded by its length; a long one stands in the transcript, or nowhere else.
        if not isinstance(reply.output, str) or len(reply.text) > _LONG_TEXT:
            room -= len(canonical_json([reply.output, reply.text]))
        if kept and room < 0:
            break
        kept.append(turn)
    return tuple(reversed(kept))


def _close_when_idle(state: RunState, at: datetime) -> RunState:
    due = idle_at(state)
    return (
        _with(state, replace(session_of(state), closing="idle")) if due is not None and at >= due else state
    )


def idle_at(state: RunState) -> datetime | None:
    """Return when the session closes if nobody says anything, or None while something goes on."""
    session = session_of(state)
    if session.max_idle is None or session.turn_is_open or session.queue or session.closing is not None:
        return None
    return session.start.at + session.max_idle
