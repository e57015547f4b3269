"""Clocks of a run: when its time is over, and how they stand still while people decide.

Rules
1. A run has at most two deadlines of its own. `deadline_at` counts all time. `clock` counts no time in which the run
   waits for people alone. Both are the earliest of what the run's limits and the run above set.
2. A run waits for people alone while an approval or a question waits, in it or below it, and nothing else is pending
   there. A parked run, a budget request and work that a pause holds back are nothing that people are asked.
3. Time comes with events: `PeopleAwaited` and `PeopleAnswered` say when such a wait began and ended. A child reports
   since when it waits, so the clock of its parent stands still from the same moment.
4. A node, a turn and an agent that another run called have clocks that stand still. The `timeout` of a root, a swarm,
   a graph and a pattern counts all time. The limits may say otherwise, by `timeout_excludes_people` and
   `node_timeout_excludes_people`.
5. A run keeps its own clock. The runs below get only deadlines that count all time: they cannot know whether their
   parent waits for people alone.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from perdure.limits import Limits
from perdure.shown import call_text, cut, visible
from perdure.wire.results import Approval, Parked, Question, StopReason
from perdure.wire.spec import AgentSpec, AnySpec
from perdure.wire.tree import ChildInput

from .events import PeopleAnswered, PeopleAwaited
from .people import Clock, PeopleTime
from .state import Call, CallState, RunState, Session
from .tree import Child

AnyState = TypeVar("AnyState", bound=RunState)

_STARTABLE: frozenset[CallState] = frozenset(
    {"unpaid", "unchecked", "checking", "ready", "unreviewed", "reviewing"}
)
"""States of calls for which something else than a person is awaited."""
_MOST_TEXT = 200
"""Characters of an approval or a question in a result."""


# -- deadlines of a run that begins


def deadline_of(limits: Limits, now: datetime, child: ChildInput | None) -> datetime | None:
    """Return the earliest deadline of a run that begins: nobody has been asked anything yet."""
    own = None if limits.timeout is None else now + limits.timeout
    above = (child.deadline_at, child.clock_at) if child else ()
    return _earliest((own, *above))


def counted_deadline(
    spec: AnySpec, limits: Limits, now: datetime, child: ChildInput | None
) -> datetime | None:
    """Return the deadline of a run that counts all time, or None."""
    own = None if limits.timeout is None or excludes_people(spec, limits, child) else now + limits.timeout
    return _earliest((own, child.deadline_at if child else None))


def clock_of(
    spec: AnySpec, limits: Limits, now: datetime, child: ChildInput | None, *, before: timedelta = timedelta()
) -> Clock | None:
    """Return the deadline of a run that counts no time in which it waits for people alone, or None.

    `before`: waits that are over, when the run above gives it a new deadline.
    """
    node = (
        Clock(at=child.clock_at, reason="node_timeout", before=before) if child and child.clock_at else None
    )
    if limits.timeout is None or not excludes_people(spec, limits, child):
        return node
    own = Clock(at=now + limits.timeout, reason="deadline")
    return own if node is None or own.at < node.at else node


def excludes_people(spec: AnySpec, limits: Limits, child: ChildInput | None) -> bool:
    """Return whether the run's own `timeout` counts no time in which it waits for people alone."""
    if limits.timeout_excludes_people is not None:
        return limits.timeout_excludes_people
    return child is not None and isinstance(spec, AgentSpec)


def node_clock_stands(spec: AnySpec) -> bool:
    """Return whether the time given to a run below counts no time in which that run waits for people alone."""
    return isinstance(spec, AgentSpec) or spec.limits.node_timeout_excludes_people


def _earliest(times: Iterable[datetime | None]) -> datetime | None:
    return min((at for at in times if at is not None), default=None)


def counted_session_deadline(session: Session) -> datetime | None:
    """Return the deadline of a session that counts all time, or None."""
    return None if session.limits.timeout_excludes_people else session.deadline_at


def turn_deadline(session: Session) -> datetime | None:
    """Return the deadline of the turn that counts all time, or None. Runs below the turn get it."""
    limits = session.turn_limits
    own = (
        None if limits.timeout is None or turn_excludes_people(limits) else session.start.at + limits.timeout
    )
    return _earliest((own, counted_session_deadline(session)))


# -- the wait for people


def waits_for_people(state: RunState) -> bool:
    """Return whether the run, with all runs below it, waits for people alone."""
    if state.end is not None or state.ending is not None or _has_other_cause(state):
        return False
    if any(call.state in _STARTABLE for call in state.open_calls):
        return False
    children = state.tree.children
    if any(child.people_since is None for child in children):
        return False
    return bool(children) or any(call.state == "asking" for call in state.open_calls)


def _has_other_cause(state: RunState) -> bool:
    """Return whether the run waits for something of its own that is no person's word."""
    is_parked = state.parking.parked is not None or state.parking.outage is not None
    return is_parked or state.works_itself or state.tree.lease.is_asking


def people_event(
    before: RunState | None, state: RunState, now: datetime, *, waits: bool
) -> PeopleAwaited | PeopleAnswered | None:
    """Return the event by which a wait for people begins or ends now, or None.

    `before`: the state at the last wait for an event. `waits`: there is nothing to do but wait.
    """
    is_waiting = waits and waits_for_people(state)
    since = state.people.since
    if is_waiting and since is None:
        return PeopleAwaited(at=_began_at(before, state, now))
    return PeopleAnswered(at=now) if not is_waiting and since is not None else None


def _began_at(before: RunState | None, state: RunState, now: datetime) -> datetime:
    """Return when the wait began: the report of a run below may have been on its way for a while."""
    reported = [child.people_since for child in state.tree.children if child.people_since is not None]
    if before is None or not reported or _has_other_cause(before) or _own_part(before) != _own_part(state):
        return now
    # Never before the end of the last wait: no time counts twice.
    return min(now, max([*reported, *([state.people.until] if state.people.until else [])]))


def _own_part(state: RunState) -> tuple[object, ...]:
    """Return what the run itself has pending. Where it is the same, only runs below have changed."""
    children: tuple[Child, ...] = state.tree.children
    return tuple(child.key for child in children), tuple(
        (call.call.id, call.state) for call in state.open_calls
    )


def fold_people(state: AnyState, event: PeopleAwaited | PeopleAnswered) -> AnyState:
    """Return the state while the run waits for people alone, or after that."""
    people = state.people
    if isinstance(event, PeopleAwaited):
        return replace(state, people=replace(people, since=event.at))
    waited = timedelta() if people.since is None else max(event.at - people.since, timedelta())
    return replace(state, people=PeopleTime(total=people.total + waited, until=event.at))


# -- what is due


def due(clock: Clock, people: PeopleTime) -> datetime | None:
    """Return when the clock runs out, or None while it stands still."""
    return None if people.since is not None else clock.at + (people.total - clock.before)


def run_due(state: RunState) -> tuple[datetime, StopReason] | None:
    """Return when the time of a run is over, and the reason of its end; None while nothing is due."""
    found: list[tuple[datetime, StopReason]] = []
    if state.deadline_at is not None:
        # The reason of the level that set the time: a node's timeout is no deadline of the run.
        from_above = state.tree.deadline_at == state.deadline_at
        found.append((state.deadline_at, state.tree.deadline_reason if from_above else "deadline"))
    at = due(state.clock, state.people) if state.clock is not None else None
    if state.clock is not None and at is not None:
        found.append((at, state.clock.reason))
    return min(found, key=lambda item: item[0], default=None)


def session_due(state: RunState) -> datetime | None:
    """Return when the time of the whole session is over, or None."""
    session = state.session
    if session is None or session.deadline_at is None:
        return None
    if not session.limits.timeout_excludes_people:
        return session.deadline_at
    return due(Clock(at=session.deadline_at, reason="deadline"), state.people)


def turn_clock(state: RunState) -> Clock | None:
    """Return the deadline of the open turn, if it counts no time in which the session waits for people alone."""
    session = state.session
    if (
        session is None
        or session.turn_limits.timeout is None
        or not turn_excludes_people(session.turn_limits)
    ):
        return None
    at = session.start.at + session.turn_limits.timeout
    return Clock(at=at, reason="deadline", before=session.start.people)


def turn_excludes_people(limits: Limits) -> bool:
    """Return whether the `timeout` of a turn counts no time in which the session waits for people alone."""
    return limits.timeout_excludes_people is not False


def turn_due(state: RunState) -> datetime | None:
    """Return when the time of the open turn is over, or None."""
    session = state.session
    if session is None or not session.turn_is_open or session.turn_limits.timeout is None:
        return None
    clock = turn_clock(state)
    return session.start.at + session.turn_limits.timeout if clock is None else due(clock, state.people)


# -- what waited when the time was over


def waited_words(call: Call) -> str:
    """Return for whom the call waited, and since when, for the result of a run that ends meanwhile."""
    what = "answered the question" if call.kind == "person" else "approved or denied the call"
    return f"nobody had {what}, which waited since {_time(call.since)}"


def waited_lines(child: Child) -> list[str]:
    """Return what waited for people below, a line each, for a child of which nobody hears any more."""
    return [_waited_line(item) for item in child.waiting if not isinstance(item, Parked)]


def _waited_line(item: Approval | Question) -> str:
    place = f"{visible(' / '.join(item.path))}: " if item.path else ""
    if isinstance(item, Question):
        text = cut(visible(item.text), _MOST_TEXT)
        return f'{place}{item.call_id} "{text}": nobody had answered it, since {_time(item.since)}'
    call = call_text(item.tool, item.arguments, _MOST_TEXT)
    return f"{place}{call}: nobody had approved or denied it, since {_time(item.since)}"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
