"""Parking: a run stands still while a cause lasts, and goes on by itself, by a person, or changed.

Rules
1. A failure that parks leads to the next model of the chain first; only without one the run is parked.
2. A transient cause sets `resumes_at`: the retry timer wakes the run. Else it waits for a person.
3. Each retry doubles the wait, up to a bound. A call blocked by our circuit does not increase the wait: nobody
   was asked, so nothing was learnt.
4. A person who resumes a run may know that the cause has passed: its next call passes an open circuit once.
5. No wait is longer than `MOST_WAIT`, whatever a failure asks for: histories hold delays of years, and dates beyond the
   last that there is.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from perdure.delays import LONGEST_DELAY
from perdure.errors import rule_for
from perdure.limits import Limits
from perdure.wire.effects import ModelFailure

from .budget import exhausted_limit
from .chain import next_model, use_model
from .ends import fail, failure_of
from .events import Redriven
from .state import AgentState, Chain, Parking, RunState
from .step import offer_rest_if_cut

LONGEST_WAIT: Final = timedelta(minutes=5)
"""Longest wait between two retries, unless the provider itself asks for more."""
MOST_WAIT: Final = 2 * LONGEST_DELAY
"""Longest wait at all. The activity adds chance to the provider's delay, at most the delay once more."""
MOST_DOUBLINGS: Final = 3


def fall_back_or_park(state: AgentState, failure: ModelFailure, at: datetime | None) -> AgentState:
    """Return the state after a failed model call: with the next model, parked, or failed."""
    changed = with_next_model(state, failure.kind, failure.message)
    if changed is not None:
        return changed
    # What the attempts have spent may leave nothing for another: then a limit ends the run, not this failure.
    if failure.wasted.total_tokens and exhausted_limit(state) is not None:
        return state
    rule = rule_for(failure.kind)
    if not (rule.parks and state.spec.on_failure == "park"):
        return fail(state, failure.kind, failure.message, answers=rule.parks)
    # A parked run that retries in vain is still in the same outage.
    since = state.parking.outage.since if state.parking.outage else at
    parked = failure_of(state, failure.kind, failure.message).model_copy(
        update={"since": since, "resumes_at": _retry_at(state, failure, at)}
    )
    outage = parked if parked.resumes_at else None
    # The forced retry is used up, whatever it has found.
    parking = replace(state.parking, parked=parked, outage=outage, force_once=False)
    return replace(state, parking=parking)


def with_next_model(state: AgentState, kind: str, message: str) -> AgentState | None:
    """Return the state with the next model in use, or None when no model takes over on such an error."""
    index = next_model(state, kind)
    if index is None:
        return None
    name = state.spec.models[state.chain.model].config.name
    tried = (*state.chain.tried, f"{name}: {kind}: {message}")
    return use_model(replace(state, chain=replace(state.chain, tried=tried)), index)


def _retry_at(state: AgentState, failure: ModelFailure, at: datetime | None) -> datetime | None:
    """Return the time of the next retry, or None when only a person can help.

    The wait doubles up to a bound: without one, a run would sleep for as long again after an outage is over.
    """
    if failure.retry_in is None or at is None:
        return None
    # What is senseless is no delay of a provider: the wait is our own then.
    wait = failure.retry_in if timedelta() <= failure.retry_in <= MOST_WAIT else LONGEST_WAIT
    if rule_for(failure.kind).blocked_locally:
        return at + min(wait, LONGEST_WAIT)
    doubled: timedelta = wait * 2 ** min(state.parking.auto_retries, MOST_DOUBLINGS)
    return at + min(doubled, max(LONGEST_WAIT, wait))


def with_sensible_wait(state: RunState, now: datetime) -> RunState:
    """Return a state that was carried here; a run that would wait for years tries again soon: see rule 5."""
    parked = state.parking.parked
    if parked is None or parked.resumes_at is None or parked.resumes_at - now <= MOST_WAIT:
        return state
    sooner = parked.model_copy(update={"resumes_at": now + LONGEST_WAIT})
    return replace(state, parking=replace(state.parking, parked=sooner))


def resume(state: AgentState) -> AgentState:
    """Return the state after a person resumed the run."""
    parked = state.parking.parked
    # Where no circuit can be open, there is nothing to pass.
    forced = parked is not None and (
        parked.resumes_at is not None or rule_for(parked.kind).counts_for_circuit
    )
    force_once = forced or state.parking.force_once
    state = _unpark(state)
    return replace(state, paused=False, parking=replace(state.parking, force_once=force_once))


def _unpark(state: AgentState) -> AgentState:
    """Return the state as if the step began: the whole chain of models is tried again."""
    if state.parking.parked is None:
        return state
    return replace(
        state,
        chain=Chain(),
        step=replace(state.step, stale_retries=0, overflow_cuts=0),
        parking=Parking(force_once=state.parking.force_once),
    )


def retry(state: AgentState, at: datetime) -> AgentState:
    """Return the state after the retry timer fired. A run that was resumed and parked anew meanwhile stays parked."""
    parking = state.parking
    parked = parking.parked
    if parked is None or parked.resumes_at is None or at < parked.resumes_at:
        return state
    blocked = rule_for(parked.kind).blocked_locally
    retries = parking.auto_retries if blocked else parking.auto_retries + 1
    state = _unpark(state)
    return replace(state, parking=replace(state.parking, auto_retries=retries, outage=parking.outage))


def redrive(state: AgentState, event: Redriven) -> AgentState:
    """Return the state as another agent, or with other limits. The transcript and the ledger stay."""
    if state.parking.parked is None:
        return state
    # A redrive does not end a pause: another person may have asked for it.
    paused = state.paused
    if event.limits is not None:
        state = replace(state, new_limits=(state.new_limits or Limits()).replaced_by(event.limits))
    limits = state.limits
    if event.spec is not None:
        # The request's limits are the caller's, so they hold for the new agent as well.
        limits = event.spec.limits.tightened_by(state.request.limits)
        # An answer of the old agent need not fit the new one's type.
        step = replace(state.step, kept_output=None)
        state = replace(state, spec=event.spec, members=event.members, step=step)
        state = offer_rest_if_cut(replace(state, chain=Chain()))
    if state.session is None:
        state = replace(state, limits=limits.replaced_by(state.new_limits))
    elif event.spec is not None:
        usual = state.session.usual
        # After an extended turn, the usual limits and spec come back: those of the new agent.
        usual = None if usual is None else replace(usual, limits=limits, spec=event.spec)
        state = replace(state, session=replace(state.session, turn_limits=limits, usual=usual))
    return replace(resume(state), paused=paused)
