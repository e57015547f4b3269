"""Extension of a turn: the last turn of an open session, which a limit has ended, goes on with larger limits.

Rules
1. Only the last turn goes on, and only if a limit of a turn has ended it. It keeps its number, and so its keys.
2. Granted bounds are totals of the turn, counted from its first start. Its clock begins anew.
3. The grant holds for this turn alone: the next one has the usual limits.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from perdure.limits import Limits
from perdure.wire.requests import ExtendTurn
from perdure.wire.results import ExtensionRecord, StopReason
from perdure.wire.spec import AnySpec

from .amounts import usage_since
from .clocks import turn_deadline
from .extension import (
    FIELDS_BY_REASON,
    bounded,
    bounds_before,
    bounds_below,
    check_larger,
    check_raised,
    flat,
    granted_limits,
    raised_by,
    with_granted,
)
from .past import Extension, TurnExtension, UsualTurn
from .program import RunningProgram
from .state import Ledger, RunState, Session, TurnStart


def checked_turn_extension(
    state: RunState,
    request: ExtendTurn,
    at: datetime,
    bind: Callable[[AnySpec], RunningProgram[Any]],
    executions: Mapping[str, str],
) -> TurnExtension:
    """Return the extension of the session's last turn. `bind` makes the program of a turn.

    Raises:
        ValueError: the turn cannot go on so; in words.

    """
    session = _session(state)
    ended = _limit_that_ended(session)
    if has_lost_turn(state):
        raise ValueError("the session has taken another version of its team since; say what is next")
    wanted = TurnExtension(request=request, ended=ended, executions=dict(executions))
    extension = _extension(state, wanted, at)
    before = bounds_before(replace(state, session=None, limits=session.turn_limits))
    above = flat(bounds_before(state))
    adds = not state.counts_steps
    check_larger(before, extension, may_add=lambda name: adds or above.get(name) is not None)
    # In the counts of the turn, so that the least values are those of the turn too.
    counted = replace(state, limits=session.turn_limits, ledger=_since(state.ledger, _first_counts(session)))
    extended: RunState = bind(state.spec).go_on(counted, extension)
    raisable = {**bounds_below(state), **bounded(before)}
    _check_session_has_room(state, extension, raisable)
    check_raised(bind(extended.spec).needs(extended, ended), before, raisable, extension)
    return wanted


def _check_session_has_room(state: RunState, extension: Extension, raisable: Mapping[str, Any]) -> None:
    """Check that the turn may make the calls of a tool that it is granted: no other bound leaves a session open."""
    if extension.ended_by != "max_tool_calls":
        return
    made, bounds = state.ledger.per_tool, _session(state).limits.per_tool
    used_up = {name for name, bound in bounds.items() if made.get(name, 0) >= bound}
    own = any(raisable.get(name) for name in FIELDS_BY_REASON["max_tool_calls"])
    hopeless = used_up.intersection(extension.limits.per_tool) if own else used_up
    if hopeless:
        name = min(hopeless)
        raise ValueError(
            f"the session's own limit per_tool.{name}={bounds[name]} is used up, and holds as long as it is open"
        )


def begin_extended_turn(program: RunningProgram[Any], state: RunState, at: datetime) -> RunState:
    """Return the session with its last turn open again. Its limits are still to be counted."""
    session = _session(state)
    assert session.extension is not None, "the turn is to go on"
    extension = _extension(state, session.extension, at)
    limits = (with_granted if state.counts_steps else raised_by)(session.turn_limits, extension.limits)
    start = TurnStart(
        at=at,
        people=state.people.total,
        messages=session.start.messages,
        ledger=state.ledger,
        counted_from=_first_counts(session),
    )
    opened = replace(
        session,
        turn_is_open=True,
        ids=(session.extension.request.id,),
        start=start,
        turn_limits=limits,
        usual=UsualTurn(limits=session.turn_limits, spec=state.spec),
        extension=None,
    )
    extended: RunState = program.go_on(state, extension)
    return replace(extended, session=opened, deadline_at=turn_deadline(opened), clock=None)


def has_lost_turn(state: RunState) -> bool:
    """Return whether the last turn cannot go on: a team has taken another version since."""
    session = _session(state)
    upgraded = bool(session.upgrades) and session.upgrades[-1].turn >= session.turn
    return upgraded and not state.reads_messages


def with_usual_limits(state: RunState) -> RunState:
    """Return the session, whose turn is over, without what was granted to that turn."""
    session = _session(state)
    if session.usual is None:
        return state
    usual = session.usual
    return replace(state, spec=usual.spec, session=replace(session, turn_limits=usual.limits, usual=None))


def _session(state: RunState) -> Session:
    assert state.session is not None, "only sessions have turns"
    return state.session


def _limit_that_ended(session: Session) -> StopReason:
    if session.turn_is_open or session.queue or session.extension is not None:
        raise ValueError("a turn is under way; wait for its end, or interrupt it")
    if not session.answered:
        raise ValueError("the session has had no turn yet")
    reply = session.answered[-1].reply
    if reply.error is not None or reply.stop_reason not in FIELDS_BY_REASON:
        raise ValueError(
            f"the last turn has ended with {reply.stop_reason!r}, and not by a limit; say what is next"
        )
    return reply.stop_reason


def _first_counts(session: Session) -> Ledger:
    return session.start.counted_from or session.start.ledger


def _extension(state: RunState, wanted: TurnExtension, at: datetime) -> Extension:
    request = wanted.request
    kind: type[Limits] = type(state.spec.limits)
    # Nothing may be granted where the session has been given more, and the turn itself needs nothing.
    limits = granted_limits(kind, request.limits)
    record = ExtensionRecord(
        at=at,
        by=request.by,
        reason=request.reason,
        limits=limits.model_dump(mode="json", include=limits.model_fields_set),
        ended=wanted.ended,
    )
    return Extension(limits=limits, record=record, closed_at=at, executions=wanted.executions)


def _since(ledger: Ledger, before: Ledger) -> Ledger:
    return Ledger(
        usage=usage_since(ledger.usage, before.usage, estimated=ledger.usage.estimated),
        cost_microusd=ledger.cost_microusd - before.cost_microusd,
        tool_calls=ledger.tool_calls - before.tool_calls,
        per_tool={name: calls - before.per_tool.get(name, 0) for name, calls in ledger.per_tool.items()},
        steps=ledger.steps - before.steps,
    )
