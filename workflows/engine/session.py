"""Turns: what makes a session of a run's loop. Pure; the loop itself is `decide` and `fold`.

Rules
1. One turn at a time. It begins with the first message of the queue; where a run would end, the turn
   ends, and its reply is kept under the ids of all messages that it answered.
2. A message is in one place: queued, unread, in the turn, or answered. None is dropped: what steers a
   turn that ends before reading it has the next turn.
3. An id that is known says nothing new.
4. Limits of a turn are the agent's, counted from the turn's start; those of the session are counted
   from its own. The smaller of both stands in `State.limits` while the turn goes on.
5. A turn that fails, or is interrupted, ends as a turn. The session ends when it is stopped,
   cancelled, idle for too long, or has used up its limits; the turn in hand has its reply first.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final

from perdure.limits import Limits
from perdure.messages import Usage
from perdure.model import canonical_json
from perdure.wire.requests import RunRequest, SessionRequest
from perdure.wire.results import StopReason, TurnReply
from perdure.wire.spec import AgentSpec

from . import decide as loop
from . import fold as events
from .account import spent
from .amounts import bounds_of, minus, missing
from .budget import LEAST_REPLY_TOKENS, call_amount, short_of
from .decide import CloseTurn, Command, Finish, OpenTurn, Wait, partial_answer
from .fold import Birth, append, speechless
from .report import cost_of
from .state import (
    Answered,
    End,
    EndAsked,
    Event,
    IdleNoticed,
    Interrupted,
    Mark,
    Sent,
    Session,
    Spoke,
    Spoken,
    State,
    StepBegan,
    TurnBegan,
    TurnEnded,
)

MOST_ANSWERED: Final = 512
"""Turns whose replies are kept for a message that comes again."""
MOST_ANSWERED_BYTES: Final = 1024 * 1024
_LONG: Final = 2048
"""Characters of a reply that are not kept beside the transcript."""
NO_PROMPT: Final = "(a session)"


def run_request(asked: SessionRequest) -> RunRequest:
    """What a session is asked, as the request of the run in it."""
    kept = {"user": asked.user, "roles": asked.roles, "context": asked.context, "limits": asked.limits}
    given = {name: value for name, value in kept.items() if value}
    return RunRequest.model_validate(
        {"agent": asked.agent, "prompt": NO_PROMPT, "stream": asked.stream, **given}
    )


def priced_request(asked: SessionRequest) -> RunRequest:
    """The same, for whoever checks that what is bounded in money has a price."""
    request = run_request(asked)
    bounded = asked.session_limits is not None and asked.session_limits.cost_usd is not None
    return request.model_copy(update={"limits": asked.session_limits}) if bounded else request


def initial(asked: SessionRequest, spec: AgentSpec, now: datetime, birth: Birth) -> State:
    """The state of a session that has just been given its agent."""
    state = speechless(run_request(asked), spec, now, birth)
    whole = Limits(steps=None).tightened_by(asked.session_limits)
    deadline = None if whole.timeout is None else now + whole.timeout
    session = Session(
        turn_limits=state.limits,
        limits=whole,
        max_idle=asked.max_idle,
        deadline_at=deadline,
        mark=Mark(at=now),
    )
    return replace(state, session=session, deadline_at=deadline)


def session_of(state: State) -> Session:
    """The session's part of its state."""
    assert state.session is not None, "only sessions have turns"
    return state.session


def decide(state: State) -> Command:
    """The next command."""
    session = session_of(state)
    if session.is_open:
        command = loop.decide(state)
        return CloseTurn(end=command.end) if isinstance(command, Finish) else command
    if session.closing is not None:
        return Finish(end=End(stop_reason=session.closing, output=_newest_output(state)))
    return OpenTurn() if session.queue and not state.paused else Wait()


def fold(state: State, event: Event) -> State:
    """The state after the event."""
    match event:
        case Spoke():
            return _spoke(state, event)
        case Sent():
            return _sent(state, event)
        case TurnBegan():
            return _began(state, event.at)
        case TurnEnded():
            return _ended(state, event)
        case Interrupted():
            return _interrupted(state, event)
        case IdleNoticed():
            return _idle(state, event.at)
        case EndAsked():
            return _closing(state, event)
        case StepBegan():
            return events.fold(_read(state), event)
        case _:
            return events.fold(state, event)


def _with(state: State, **changed: object) -> State:
    return replace(state, session=replace(session_of(state), **changed))  # type: ignore[arg-type]


def is_pending(state: State, message_id: str) -> bool:
    """Whether the message waits for its reply."""
    session = session_of(state)
    waiting = (*session.queue, *session.unread)
    return message_id in session.ids or any(one.id == message_id for one in waiting)


def reply_to(state: State, message_id: str) -> TurnReply | None:
    """The reply that the message got, if its turn is over."""
    found = next((one for one in session_of(state).answered if message_id in one.ids), None)
    return None if found is None else _whole(state, found).model_copy(update={"message_id": message_id})


def _whole(state: State, answered: Answered) -> TurnReply:
    reply = answered.reply
    if answered.at is None:
        return reply
    text = state.messages[answered.at].text
    same = reply.output == ""
    return reply.model_copy(update={"text": text, "output": text if same else reply.output})


def _newest_output(state: State) -> object:
    answered = session_of(state).answered
    return _whole(state, answered[-1]).output if answered else None


def _is_known(state: State, message_id: str) -> bool:
    answered = any(message_id in one.ids for one in session_of(state).answered)
    return answered or is_pending(state, message_id)


def _spoke(state: State, event: Spoke) -> State:
    if _is_known(state, event.spoken.id):
        return state
    session = session_of(state)
    steers = event.when_busy == "steer" and session.is_open
    if not steers or state.ending is not None or session.closing is not None:
        return _with(state, queue=(*session.queue, event.spoken))
    return _steered(state, event.spoken)


def _steered(state: State, spoken: Spoken) -> State:
    """It answers the agent's question, if there is one; else the model reads it before its next step."""
    unread = len(state.inbox)
    state = events.fold(state, Sent(message=spoken.message))
    session = session_of(state)
    if len(state.inbox) == unread:
        return _with(state, ids=(*session.ids, spoken.id))
    return _with(state, unread=(*session.unread, spoken))


def _sent(state: State, event: Sent) -> State:
    """`send` is `say` to those who wait for no reply."""
    said = session_of(state).said + 1
    spoken = Spoken(id=event.id or f"sent-{said}", message=event.message)
    return _spoke(_with(state, said=said), Spoke(spoken=spoken, when_busy="steer"))


def _read(state: State) -> State:
    """The model reads what came in meanwhile."""
    session = session_of(state)
    return _with(state, ids=(*session.ids, *(one.id for one in session.unread)), unread=())


def _began(state: State, at: datetime) -> State:
    session = session_of(state)
    if session.is_open or not session.queue:
        return state
    first, *others = session.queue
    mark = Mark(
        at=at,
        messages=len(state.messages),
        step=state.step,
        tool_calls=state.tool_calls,
        usage=state.usage,
        cost_microusd=state.cost_microusd,
    )
    limits = limits_from(state, session)
    own = None if session.turn_limits.timeout is None else at + session.turn_limits.timeout
    deadline = min((one for one in (own, session.deadline_at) if one is not None), default=None)
    state = replace(append(state, first.message), limits=limits, deadline_at=deadline)
    return _with(state, turn=session.turn + 1, is_open=True, ids=(first.id,), queue=tuple(others), mark=mark)


def limits_from(state: State, session: Session) -> Limits:
    """The bounds of a turn that begins now, in the session's own counts."""
    turn = session.turn_limits
    used = state.usage
    of_turn = Limits(
        steps=_more(turn.steps, state.step),
        tool_calls=_more(turn.tool_calls, state.tool_calls),
        per_tool={name: bound + state.per_tool.get(name, 0) for name, bound in turn.per_tool.items()},
        input_tokens=_more(turn.input_tokens, used.all_input_tokens),
        output_tokens=_more(turn.output_tokens, used.output_tokens),
        total_tokens=_more(turn.total_tokens, used.total_tokens),
        cost_usd=None if turn.cost_usd is None else turn.cost_usd + state.cost_microusd / 1_000_000,
        timeout=turn.timeout,
    )
    return of_turn.tightened_by(session.limits)


def _more(bound: int | None, used: int) -> int | None:
    return None if bound is None else bound + used


def _ended(state: State, event: TurnEnded) -> State:
    session = session_of(state)
    if not session.is_open:
        return state
    unread = [one.message for one in session.unread]
    answered = _answered(state, event.end)
    inbox = tuple(message for message in state.inbox if message not in unread)
    state = replace(_fresh(state), inbox=inbox, deadline_at=session.deadline_at)
    state = _with(
        state,
        is_open=False,
        ids=(),
        unread=(),
        queue=(*session.unread, *session.queue),
        answered=_bounded((*session.answered, answered)),
        mark=replace(session.mark, at=event.at),
    )
    return _with(state, closing=session.closing or _used_up(state, event.end))


def _fresh(state: State) -> State:
    """Without what no turn takes from the one before: its own troubles."""
    return replace(
        state,
        redo=False,
        model=0,
        settled=0,
        naps=0,
        outage=None,
        force_once=False,
        tried=(),
        stale=0,
        clamped_by=None,
        asking_model=False,
        calls=(),
        strikes=0,
        repairs=0,
        wrap_up=None,
        shrinks=0,
        handoff=None,
        resting=False,
        parked=None,
        ending=None,
        end=None,
    )


def _answered(state: State, end: End) -> Answered:
    session, mark = session_of(state), session_of(state).mark
    text = partial_answer(state.messages[mark.messages :])
    reply = TurnReply(
        turn=session.turn,
        output=end.output,
        text=text,
        stop_reason=end.stop_reason,
        error=end.failure,
        steps=state.step - mark.step,
        tool_calls=state.tool_calls - mark.tool_calls,
        usage=used_since(state.usage, mark.usage),
        cost_microusd=None if cost_of(state) is None else state.cost_microusd - mark.cost_microusd,
        messages=len(state.messages),
    )
    if len(text) <= _LONG:
        return Answered(ids=session.ids, reply=reply)
    at = max(i for i, m in enumerate(state.messages) if m.role == "assistant" and m.text == text)
    output = "" if end.output == text else end.output
    return Answered(ids=session.ids, reply=reply.model_copy(update={"text": "", "output": output}), at=at)


def used_since(usage: Usage, before: Usage) -> Usage:
    """What was used after `before`."""
    return Usage(
        input_tokens=usage.input_tokens - before.input_tokens,
        cache_read_tokens=usage.cache_read_tokens - before.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens - before.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens - before.cache_write_1h_tokens,
        output_tokens=usage.output_tokens - before.output_tokens,
        estimated=usage.estimated and not before.estimated,
    )


def _bounded(answered: tuple[Answered, ...]) -> tuple[Answered, ...]:
    """The newest replies: so many, and so many bytes of them; the newest in any case."""
    kept: list[Answered] = []
    room = MOST_ANSWERED_BYTES
    for one in reversed(answered[-MOST_ANSWERED:]):
        if not isinstance(one.reply.output, str):
            room -= len(canonical_json(one.reply.output))
        if kept and room < 0:
            break
        kept.append(one)
    return tuple(reversed(kept))


def _used_up(state: State, end: End) -> StopReason | None:
    """The limit of the session that forbids another turn, if one does."""
    bounds = session_of(state).limits
    if bounds.steps is not None and state.step >= bounds.steps:
        return "max_steps"
    out_of_calls = bounds.tool_calls is not None and state.tool_calls >= bounds.tool_calls
    if out_of_calls and end.stop_reason == "max_tool_calls":
        return "max_tool_calls"
    least = call_amount(state, LEAST_REPLY_TOKENS)
    return short_of(missing(least, minus(bounds_of(bounds), spent(state))))


def _interrupted(state: State, event: Interrupted) -> State:
    session = session_of(state)
    if not session.is_open or event.turn not in (None, session.turn):
        return state
    return events.fold(state, EndAsked(reason=event.reason))


def _idle(state: State, at: datetime) -> State:
    due = idle_at(state)
    return _with(state, closing="idle") if due is not None and at >= due else state


def idle_at(state: State) -> datetime | None:
    """When the session closes if nobody says anything; None while something goes on or is left to do."""
    session = session_of(state)
    if session.max_idle is None or session.is_open or session.queue or session.closing is not None:
        return None
    return session.mark.at + session.max_idle


def _closing(state: State, event: EndAsked) -> State:
    session = session_of(state)
    reason = "cancelled" if event.reason == "cancelled" else session.closing or event.reason
    state = _with(state, closing=reason)
    return events.fold(state, event) if session.is_open else state
