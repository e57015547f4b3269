"""Extension: a run that a limit has ended is given more, and goes on from where it stood.

Rules
1. Only the end by a limit is taken back. Every other end is an answer, a failure, or a person's word.
2. Granted bounds are totals and replace those of the same name: what the run has used counts. None is made smaller.
3. An extension is refused unless the run can go on with it. The refusal names each bound and its least value. It
   names no bound that the run does not have: granting what it names is never refused.
4. The clock stands still while the run is closed: `timeout` counts the time for which it was open.
5. Transcript, ledger, plan, inbox, known message ids and identity stay. Calls that were not run keep their results.
"""

import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import ValidationError

from perdure.definitions import explain
from perdure.limits import Limits
from perdure.wire.requests import ExtendRequest
from perdure.wire.results import ExtensionRecord, StopReason
from perdure.wire.spec import AnySpec
from perdure.wire.tree import Amount, ChildInput

from .account import spent
from .amounts import bounds_of, fields_of, minus, missing, of
from .clocks import clock_of, counted_deadline, run_due, session_due
from .past import Extension, Past
from .program import RunningProgram
from .state import AgentState, RunState

FIELDS_BY_REASON: Final[dict[StopReason, tuple[str, ...]]] = {
    "max_steps": ("steps",),
    "max_tool_calls": ("tool_calls", "per_tool", "identical_calls"),
    "token_budget": ("input_tokens", "output_tokens", "total_tokens"),
    "cost_budget": ("cost_usd",),
    "deadline": ("timeout",),
    "node_timeout": ("node_timeout",),
    "max_handoffs": ("max_handoffs",),
    "max_iterations": ("max_iterations",),
    "repetitive_handoff": (
        "repetitive_handoff_detection_window",
        "repetitive_handoff_min_unique_agents",
    ),
    "max_node_executions": ("max_node_executions",),
}
"""Limits that end a run with each reason. No other end can be taken back."""
_FREE_FIELDS: Final = FIELDS_BY_REASON["repetitive_handoff"]
"""Settings of a check, not bounds: a smaller value may allow more."""
_IN_SPEC: Final = (
    *("node_timeout", "max_handoffs", "max_iterations", "repetitive_handoff"),
    "max_node_executions",
)
"""Ends by bounds that only teams have. Their scheduler reads them from the spec."""
_WHY_NOT: Final[dict[StopReason, str]] = {
    "end_turn": "it has given its answer; start a new run, or hold a session",
    "stopped": "a person has stopped it; start a new run",
    "cancelled": "it was cancelled; start a new run",
    "error": "it failed; start a new run",
    "max_tokens": "its reply was cut by the agent's `max_tokens`, which is a setting of the model",
    "context_overflow": "its conversation does not fit the model's context, which no limit can change",
    "idle": "nobody has said anything for too long; open the session anew with reopen=True",
    "unmet_join": "a join waits for edges that nothing will take",
}


def granted_limits(kind: type[Limits], granted: Mapping[str, Any]) -> Limits:
    """Return the granted bounds, as the kind of limits that the run has.

    Raises:
        ValueError: there is no such limit, or a value does not fit it; the message says which.

    """
    unknown = sorted(granted.keys() - kind.model_fields.keys())
    if unknown:
        raise ValueError(f"limits: no limit {unknown[0]!r} here; there are: {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(granted)
    except ValidationError as error:
        raise ValueError(f"limits: {explain(error)}") from None


def extension_of(
    state: RunState,
    request: ExtendRequest,
    *,
    at: datetime,
    closed_at: datetime,
    child: ChildInput | None = None,
    executions: Mapping[str, str] | None = None,
) -> Extension:
    """Return the extension that a request asks for.

    Raises:
        ValueError: the run has not ended by a limit, is another user's, or the limits do not fit; in words.

    """
    if request.user is not None and request.user != state.request.user:
        raise ValueError(f"the run acts on behalf of another user than {request.user!r}")
    # A run below goes on together with its team, whatever has ended it.
    reason = state.end.stop_reason if child and state.end else _limit_that_ended(state, request)
    kind: type[Limits] = Limits if state.session else type(state.spec.limits)
    granted = request.limits
    if child is not None:  # of what its team was given, a run below takes what it has itself
        granted = {name: value for name, value in granted.items() if name in kind.model_fields}
    limits = granted_limits(kind, granted)
    record = ExtensionRecord(
        at=at,
        by=request.by,
        reason=request.reason,
        limits=limits.model_dump(mode="json", include=limits.model_fields_set),
        ended=reason,
        execution_id=request.origin.execution_id,
    )
    return Extension(
        limits=limits, record=record, closed_at=closed_at, child=child, executions=executions or {}
    )


def _limit_that_ended(state: RunState, request: ExtendRequest) -> StopReason:
    if state.end is None:
        raise ValueError("the run is not over")
    reason = state.end.stop_reason
    if state.end.failure is None and reason in FIELDS_BY_REASON:
        return reason
    why = _WHY_NOT.get(reason, "no limit has ended it")
    words = {"by": request.by, "reason": request.reason}
    made_before = (x for x in reversed(state.past.extensions) if x.is_of(**words, limits=request.limits))
    before = next(made_before, None)
    made = f"it was extended so at {before.at:%Y-%m-%d %H:%M:%S} UTC, and has ended since. " if before else ""
    raise ValueError(f"{made}the run has ended with {reason!r}: {why}")


def extend(
    program: RunningProgram[Any],
    state: RunState,
    extension: Extension,
    bind: Callable[[AnySpec], RunningProgram[Any]],
) -> RunState:
    """Return the state with which the run goes on. `bind` makes the program of a spec.

    Raises:
        ValueError: the run cannot go on with these limits; the message names the least values.

    """
    if extension.child is not None:
        below: RunState = program.go_on(state, extension)
        return below
    before = bounds_before(state)
    adds = state.session is None and not state.counts_steps
    check_larger(before, extension, may_add=lambda name: adds)
    extended: RunState = program.go_on(state, extension)
    # The bounds of a swarm or graph stand in its spec.
    needs = [*bind(extended.spec).needs(extended, extension.ended_by), *_time_needed(extended, extension)]
    raisable = before if state.session else {**bounds_below(state), **bounded(before)}
    check_raised(needs, before, raisable, extension)
    return extended


def check_raised(
    needs: list[str], before: Mapping[str, Any], raisable: Mapping[str, Any], extension: Extension
) -> None:
    """Check that nothing is needed beside what is granted, and that a bound which may have ended the run is raised.

    `raisable`: bounds that a grant raises, by name. A team has those of its nodes too.
    """
    reason, granted = extension.ended_by, extension.limits
    fields = [name for name in FIELDS_BY_REASON[reason] if name in before]
    # A node, too, has bounds that only teams know, and its scheduler may have set them.
    bounded = [name for name in fields if reason in _IN_SPEC or _is_bound(raisable.get(name))]
    if not fields:
        raise ValueError(f"{reason!r} has ended a run below, by a limit that this run does not have")
    raised = any(name in granted.model_fields_set and _is_raised(name, before, granted) for name in bounded)
    is_named = any(re.split(r"[ .]", need)[0] in bounded for need in needs)
    if bounded and not raised and not is_named:
        now = [flat({name: raisable.get(name)}).items() for name in bounded]
        needs = [*needs, " or ".join(f"{name} (now {bound})" for bounds in now for name, bound in bounds)]
    if needs:
        raise ValueError(f"the run cannot go on: raise {', and '.join(needs)}")


def _is_raised(name: str, before: Mapping[str, Any], granted: Limits) -> bool:
    if name == "per_tool":
        return any(bound != before[name].get(tool) for tool, bound in granted.per_tool.items())
    value = getattr(granted, name)
    return value is None or value != before[name]


def _is_bound(value: Any) -> bool:
    return value is not None and value != {}


def bounded(bounds: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the bounds that bound something."""
    return {name: bound for name, bound in bounds.items() if _is_bound(bound)}


def bounds_before(state: RunState) -> dict[str, Any]:
    """Return the bounds of the run by name: those of its spec, and in their place those that hold now."""
    held = state.session.limits if state.session else state.limits
    own = {} if state.session else _all_of(state.spec.limits)
    return {**own, **_all_of(held)}


def bounds_below(state: RunState) -> dict[str, Any]:
    """Return the largest bound of each name that the members of a team have; nothing for an agent."""
    largest: dict[str, Any] = {}
    for bounds in () if state.counts_steps else (flat(_all_of(member.limits)) for member in state.members):
        for name, bound in bounds.items():
            if bound is not None:
                largest[name] = max(bound, largest.get(name, bound))
    tools = {name.removeprefix("per_tool."): bound for name, bound in largest.items() if "." in name}
    return {**{name: bound for name, bound in largest.items() if "." not in name}, "per_tool": tools}


def _all_of(limits: Limits) -> dict[str, Any]:
    """Return every field: a dump leaves out options that nobody has set."""
    return {name: getattr(limits, name) for name in type(limits).model_fields}


def check_larger(before: Mapping[str, Any], extension: Extension, *, may_add: Callable[[str], bool]) -> None:
    """Check that no bound becomes smaller.

    `may_add`: whether a bound may be granted that is none of `before`. It is meant for a run below that was cut short.
    """
    bounds, smaller = flat(before), list[str]()
    for name, value in flat({name: getattr(extension.limits, name) for name in _set_in(extension)}).items():
        if name in _FREE_FIELDS or value is None or isinstance(value, bool | str):
            continue
        bound = bounds.get(name)
        if bound is None and not may_add(name):
            smaller.append(f"{name}={value} is less than what the run has (no bound): leave it out")
        if bound is not None and value < bound:
            smaller.append(f"{name}={value} is less than what the run has ({bound})")
    if smaller:
        raise ValueError(f"limits: {'; '.join(smaller)}")


def _set_in(extension: Extension) -> list[str]:
    return sorted(extension.limits.model_fields_set)


def flat(bounds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bounds by name, with those of tools by names such as "per_tool.search"."""
    by_tool: Mapping[str, Any] = bounds.get("per_tool") or {}
    tools = {f"per_tool.{name}": bound for name, bound in by_tool.items()}
    return {**{name: bound for name, bound in bounds.items() if name != "per_tool"}, **tools}


def _time_needed(extended: RunState, extension: Extension) -> list[str]:
    run = run_due(extended)
    due = run[0] if run else session_due(extended)
    if due is None or due > extension.at:
        return []
    used = open_for(extended, extension.at)
    return [f"timeout to more than {timedelta(seconds=int(used.total_seconds()))}"]


def open_for(state: RunState, at: datetime) -> timedelta:
    """Return for how long the run has been open."""
    return at - state.started_at - state.past.closed_for


def amounts_needed(limits: Limits, state: RunState, wanted: Amount, named: Amount | None = None) -> list[str]:
    """Return each bound that leaves too little for the wanted amount, with its least value.

    `named`: larger amount for which the least values are enough.
    """
    used = spent(state)
    short = missing(wanted, minus(bounds_of(limits), used))
    if short is None:
        return []
    names = [name for name in fields_of(short) if of(short, name)]
    least = {name: (of(used, name) or 0) + (of(named or wanted, name) or 0) for name in names}
    return [_at_least(name, value) for name, value in least.items()]


def _at_least(name: str, value: int) -> str:
    if name == "cost_microusd":
        return f"cost_usd to {value / 1_000_000:.6f} or more"
    return f"{name.removeprefix('tool ')} to {value} or more"


def calls_needed(state: RunState, limits: Limits, reason: StopReason) -> list[str]:
    """Return the bounds of tool calls that have ended the run and leave no call."""
    if reason != "max_tool_calls":
        return []
    ledger = state.ledger
    if limits.tool_calls is not None and ledger.tool_calls >= limits.tool_calls:
        return [f"tool_calls to {ledger.tool_calls + 1} or more"]
    made: list[tuple[str, int, int]] = [
        (f"per_tool.{name}", ledger.per_tool.get(name, 0), bound) for name, bound in limits.per_tool.items()
    ]
    if isinstance(state, AgentState) and limits.identical_calls is not None:
        most = max(state.step.identical.values(), default=0)
        made.append(("identical_calls", most, limits.identical_calls))
    used_up = {name: calls for name, calls, bound in sorted(made) if calls >= bound}
    granted = flat(state.past.extensions[-1].limits).keys() - used_up.keys()
    # Any of them may have ended the run: one that is raised far enough lets it go on.
    if not used_up or any(name.partition(".")[0] in FIELDS_BY_REASON[reason] for name in granted):
        return []
    return [" or ".join(f"{name} to {calls + 1} or more" for name, calls in used_up.items())]


def past_after(state: RunState, extension: Extension) -> Past:
    """Return the run's past with this extension in it."""
    past = state.past
    return Past(
        extensions=(*past.extensions, extension.record),
        identity=extension.identity or past.identity,
        closed_for=past.closed_for + max(extension.at - extension.closed_at, timedelta()),
    )


def deadline_after(state: RunState, limits: Limits, past: Past) -> datetime | None:
    """Return the own deadline of a run that goes on, without the time for which it was closed."""
    return None if limits.timeout is None else state.started_at + past.closed_for + limits.timeout


def clocks_after(state: RunState, limits: Limits, past: Past, child: ChildInput | None) -> dict[str, Any]:
    """Return the deadlines of a run that goes on, as fields of its state: its own, or its parent's."""
    began = state.started_at + past.closed_for
    return {
        "deadline_at": counted_deadline(state.spec, limits, began, child),
        "clock": clock_of(state.spec, limits, began, child, before=state.people.total),
    }


def extension_note(record: ExtensionRecord) -> str:
    """Return the message by which the model learns that it was given more."""
    by = record.by or "a person"
    granted = ", ".join(f"{name}={value}" for name, value in sorted(flat(record.limits).items()))
    why = f" The reason: {record.reason}" if record.reason else ""
    more = f"{by} has granted more ({granted}), so you can go on" if granted else f"{by} lets you go on"
    return (
        f"You were stopped ({record.ended}). {more}.{why}\n"
        "Go on with the task from where you stopped. What is done stays done: do not repeat it."
    )


def limits_after(state: RunState, extension: Extension) -> Limits:
    """Return the limits of a run that goes on. Of a run below, only bounds of its own are raised."""
    below = extension.child is not None or not state.counts_steps
    return (raised_by if below else with_granted)(state.limits, extension.limits)


def team_limits_after(spec_limits: Limits, extension: Extension) -> dict[str, Any]:
    """Return the granted bounds that only teams have, and that replace those of the spec."""
    granted = {
        name: getattr(extension.limits, name)
        for name in extension.limits.model_fields_set - set(Limits.model_fields)
    }
    if extension.child is None:
        return granted
    # Of a team below, only bounds of its own are raised.
    own = {name: getattr(spec_limits, name) for name in granted}
    return {
        name: more
        for name, more in granted.items()
        if own[name] is not None and (more is None or more > own[name])
    }


def with_granted(limits: Limits, granted: Limits) -> Limits:
    """Return the limits with the granted bounds of the names that every run has."""
    return limits.replaced_by(_common(granted, granted.model_fields_set))


def raised_by(limits: Limits, granted: Limits) -> Limits:
    """Return the limits with those bounds raised that are smaller than the granted ones; none is added."""
    smaller = {
        name
        for name in granted.model_fields_set.intersection(Limits.model_fields) - {"per_tool"}
        if (own := getattr(limits, name)) is not None
        and ((more := getattr(granted, name)) is None or more > own)
    }
    tools = {
        name: max(bound, granted.per_tool.get(name, bound)) for name, bound in sorted(limits.per_tool.items())
    }
    return limits.replaced_by(_common(granted, smaller)).model_copy(update={"per_tool": tools})


def _common(limits: Limits, names: Collection[str]) -> Limits:
    included = set(names).intersection(Limits.model_fields)
    return Limits.model_validate(limits.model_dump(include=included))
