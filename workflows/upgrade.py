"""Upgrade of a session: its agent or team, fetched as the workers have it now. The rules stand in `engine.upgrade`."""

from datetime import timedelta
from typing import Any, Final

from pydantic import ValidationError
from temporalio import workflow
from temporalio.exceptions import ActivityError

from perdure.definitions import explain
from perdure.wire.requests import Redrive, UpgradeRequest
from perdure.wire.results import UpgradeRecord
from perdure.wire.spec import AgentSpec, ResolvedAgent

from .ending import Ending, RunIsEndingError
from .engine.past import NextAgent
from .engine.session import session_of
from .engine.state import RunState
from .inputs import check_prices, check_tool_limits, refuse
from .resolve import resolve_anew

ASKED_WITHIN: Final = timedelta(minutes=1)
"""Time for an upgrade that somebody asks for, the wait for a worker's slot included."""
EACH_TURN_WITHIN: Final = timedelta(seconds=10)
"""Time by which a message may be held up in a session that looks for the newest version by itself."""


def upgrade_of(raw: Any) -> UpgradeRequest:
    """Return the checked argument of `upgrade`."""
    try:
        return UpgradeRequest.model_validate(raw or {})
    except ValidationError as error:
        raise refuse(f"upgrade: {explain(error)}") from None


async def fetch_newest(
    state: RunState, request: UpgradeRequest, ending: Ending, *, within: timedelta
) -> NextAgent:
    """Return the newest version of the session's agent or team.

    Raises:
        ApplicationError: for the caller; it does not fit the session, or could not be fetched. Nothing was changed.

    """
    session = session_of(state)
    bounds = (state.spec.limits, state.request.limits, session.limits)
    limited = any(limits is not None and limits.cost_usd is not None for limits in bounds)
    fetching = resolve_anew(
        state.spec, state.request, Redrive(newest=True), cost_limited=limited, within=within
    )
    try:
        resolved = await ending.race(fetching)
    except RunIsEndingError:
        raise refuse("the session is ending") from None
    except ActivityError:
        raise refuse("upgrade: no worker was free to fetch the agent in time; try again later") from None
    _check(state, resolved, request, limited=limited)
    record = UpgradeRecord(
        at=workflow.now(),
        by=request.by,
        reason=request.reason,
        before=state.spec.hash,
        after=resolved.spec.hash,
        turn=session.turn,
    )
    return NextAgent(spec=resolved.spec, members=resolved.members, record=record)


def _check(state: RunState, resolved: ResolvedAgent, request: UpgradeRequest, *, limited: bool) -> None:
    spec, wanted = resolved.spec, request.agent_version
    if spec.kind != state.spec.kind:
        raise refuse(
            f"upgrade: {spec.name!r} is a {spec.kind} by now, and the session is with a {state.spec.kind}"
        )
    if wanted is not None and not spec.hash.startswith(wanted):
        raise refuse(f"upgrade: the workers have version {spec.hash[:12]} of {spec.name!r}, not {wanted!r}")
    for member in (spec, *resolved.members):
        if isinstance(member, AgentSpec):
            check_prices(member, limited=limited or spec.limits.cost_usd is not None, what="upgrade")
    # A bound of a tool that is gone, or has another name now, would bound nothing.
    check_tool_limits(resolved, state.request.limits, session_of(state).limits)


def is_newer(state: RunState, agent: NextAgent) -> bool:
    """Return whether the version is another than the session has, or takes after its turn."""
    session = session_of(state)
    waiting, usual = session.next_agent, session.usual
    # In a turn that was given more, the spec has other limits than the version itself.
    present = usual.spec if usual else state.spec
    spec, members = (waiting.spec, waiting.members) if waiting else (present, state.members)
    had = [member.full_digest for member in (spec, *members)]
    return had != [member.full_digest for member in (agent.spec, *agent.members)]
