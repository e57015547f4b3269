"""Upgrade: a session takes another version of its agent or team, between two turns.

Rules
1. A turn ends with the version that it began with. Until then the next version waits, and a newer one replaces it.
2. Transcript, conversation, ledger and messages stay. Limits of a turn are those of the new version, tightened by the
   session's request; limits of the session stay.
3. A team forgets the course of its last turn, which only the old version can go on with.
4. What a provider counted of the old version says nothing of the new one: its instructions and tools are others.
"""

from dataclasses import replace
from typing import Final, TypeVar

from perdure.limits import Limits
from perdure.wire.results import RunStatus

from .input_tokens import count_anew
from .past import Cut, NextAgent
from .state import AgentState, Chain, RunState
from .step import offer_rest_if_cut
from .team_state import TeamState

AnyState = TypeVar("AnyState", bound=RunState)

MOST_UPGRADES: Final = 16
"""Newest changes of the version that a session remembers. History has all."""


def take_agent(state: AnyState, agent: NextAgent) -> AnyState:
    """Return the session with the version, or with its turn under way and the version next in line."""
    session = state.session
    if session is None:
        return state
    state = replace(state, session=replace(session, next_agent=agent))
    # A turn that is to go on was begun with the present version.
    is_free = not session.turn_is_open and session.extension is None
    return apply_next_agent(state) if is_free else state


def apply_next_agent(state: AnyState) -> AnyState:
    """Return the session, whose turn is over, with the version that was next in line."""
    session = state.session
    if session is None or session.next_agent is None:
        return state
    agent = session.next_agent
    tightened = agent.spec.limits.tightened_by(state.request.limits)
    limits = Limits.model_validate(tightened.model_dump(include=set(Limits.model_fields)))
    session = replace(
        session,
        turn_limits=limits,
        next_agent=None,
        upgrades=(*session.upgrades, agent.record)[-MOST_UPGRADES:],
    )
    changed = replace(state, spec=agent.spec, members=agent.members, session=session)
    if isinstance(changed, TeamState):
        # The course of the last turn names nodes that the new version need not have.
        return replace(changed, progress=None, cut=Cut(), running=(), starts=())
    return _count_anew(changed)


def _count_anew(state: AnyState) -> AnyState:
    assert isinstance(state, AgentState), "only an agent has a transcript to count"
    # With the new agent's first model, whose room decides what is cut. It may have no other.
    counted = offer_rest_if_cut(count_anew(replace(state, chain=Chain())))
    return replace(state, transcript=counted.transcript, chain=Chain())


def with_upgrades(state: RunState, status: RunStatus) -> RunStatus:
    """Return the status with the versions of the session's agent."""
    session = state.session
    if session is None or not (session.upgrades or session.next_agent):
        return status
    following = session.next_agent.spec.hash if session.next_agent else ""
    return status.model_copy(update={"upgrades": list(session.upgrades), "next_spec_hash": following})
