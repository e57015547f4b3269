"""Whatever a run was doing when its time was over: given more, it goes on, and nothing of it is lost."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perdure.limits import Limits
from perdure.wire.requests import ExtendRequest, RunOrigin
from perdure.workflows.engine.carry import HistoryFormat, pack, unpack
from perdure.workflows.engine.commands import CloseTurn, Finish, RunHooks
from perdure.workflows.engine.events import EndRequested, GraceExpired, HooksFailed, TurnEnded
from perdure.workflows.engine.extension import extend, extension_of
from perdure.workflows.engine.state import AgentState, RunState
from perdure.workflows.engine.team_state import TeamState
from tests.unit.runs import NOW, program_of

from .depth import examples
from .test_any_event import _after, _root, casts_of, events
from .test_trees import COURSE, LIMITS
from .world import Shell

SHORT, LONG = timedelta(minutes=1), timedelta(hours=9)
LATER = NOW + timedelta(days=1)


def _at_deadline(shell: Shell) -> RunState:
    """Return the state of the run once its deadline has ended it."""
    events: list[Any] = [EndRequested(reason="deadline"), GraceExpired()]
    for _ in range(40):
        for event in events:
            shell.state = shell.folded(event)
        match shell.decided():
            case Finish() as command:
                return replace(shell.state, end=command.end)
            case CloseTurn() as command:
                events = [TurnEnded(end=command.end, at=NOW)]
            case RunHooks() as command:
                events = [HooksFailed(point=command.point, message="no", at=NOW)]
            case _:
                events = [GraceExpired()]
    raise AssertionError("a run whose time is over comes to its end")


def _granted(limits: Limits) -> dict[str, Any]:
    """Return so much more of everything that is bounded that nothing is short."""
    plain = limits.model_dump(mode="json", exclude_none=True, exclude={"per_tool"})
    more = {name: 10**9 for name, value in plain.items() if isinstance(value, int | float)}
    tools = dict.fromkeys(limits.per_tool, 10**9)
    return {**more, "timeout": LONG.total_seconds(), **({"per_tool": tools} if tools else {})}


@examples(80)
@given(kind=casts_of, limits=LIMITS, course=COURSE, coming=st.lists(events, max_size=6))
def test_ended_run_goes_on(kind: str, limits: Any, course: Any, coming: list[Any]) -> None:
    """A run that its deadline has ended goes on with everything that it had, and can be carried."""
    shell = _root(kind, limits, course)
    session = shell.state.session
    bounds = (session.limits if session else shell.state.limits).model_copy(update={"timeout": SHORT})
    if session is not None:
        shell.state = replace(shell.state, session=replace(session, limits=bounds))
    else:
        shell.state = replace(shell.state, limits=bounds)
    for event in coming:
        shell.state = _after(shell, event)
    closed = _at_deadline(shell)
    assert closed.end is not None
    if closed.end.stop_reason != "deadline" or closed.end.failure is not None:
        return  # it had come to another end before
    held = closed.session.limits if closed.session else closed.limits
    request = ExtendRequest(
        origin=RunOrigin(workflow_id=closed.id or "x", execution_id="y"), limits=_granted(held), by="ann"
    )
    extension = extension_of(closed, request, at=LATER, closed_at=NOW)
    extended = extend(shell.program, closed, extension, lambda spec: program_of(closed, shell.code))
    assert extended.ledger == closed.ledger
    assert extended.past.extensions[-1].by == "ann"
    assert extended.messages[: len(closed.messages)] == closed.messages
    if isinstance(closed, AgentState) and isinstance(extended, AgentState):
        assert extended.inbox == closed.inbox
        assert extended.transcript.plan == closed.transcript.plan
    if isinstance(closed, TeamState) and isinstance(extended, TeamState):
        assert {start.key for start in extended.cut.again} == {start.key for start in closed.cut.nodes}
    assert not isinstance(program_of(extended, shell.code).decide(extended), Finish)
    carried = pack(shell.program, extended, HistoryFormat())
    assert unpack(shell.program, carried[0], carried[1:])[0] == extended
