"""Refusals: calls that a limit forbids, each with a result in words that lets the model go on.

Rules
1. A bound of a single tool, and the bound of identical calls, refuse the call and nothing else. The run goes on.
   With `Limits.per_tool_ends` the bound of a tool ends the run, as the bound of all calls always does: the model
   has one last call.
2. The tool stays in the list that the model is offered. A shorter list would make each provider read the whole
   conversation anew, because its prompt cache begins with the tools.
3. A refused call is no call: no bound counts it. A model that asks for nothing else, `MOST_INVALID_STEPS` times in a
   row, gets its last call.
4. Identical calls have the same tool and the same canonical arguments. They are counted over the run, or the turn of
   a session, whatever lies between them. Counts are kept for the newest `MOST_COUNTED` different calls, and only
   where the bound is set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from perdure.messages import ToolCall, ToolResult
from perdure.wire.tree import Amount

from .amounts import bounds_of, calls_of, least, minus, missing
from .state import AgentState
from .tree import held_by_children

MOST_COUNTED: Final = 256
"""Different calls that are counted. A loop of more different calls is left to the other limits."""
_REFUSED: Final = "not run: limit of "
"""Beginning of every refusal of rule 1."""
_DO_NOT_REPEAT: Final = "it will not be run again in this {}: go on without it"
_NO_CALLS_ABOVE: Final = "not run: all tool calls of the runs that this one belongs to are used up"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Words for the model, in place of a call's result."""

    words: str
    ends: bool = False
    """True: the run gets one last call, and ends."""


@dataclass(frozen=True, kw_only=True)
class CallsMade:
    """Calls that count: those of the run and its ended children, those of this step included."""

    tool_calls: int
    per_tool: Mapping[str, int]
    unpaid: Sequence[str] = ()
    """Tools of the calls of this step that wait for the lender."""

    @property
    def amount(self) -> Amount:
        """Amount that is used up."""
        return Amount(tool_calls=self.tool_calls, per_tool=dict(self.per_tool))


def refusal_of(state: AgentState, call: ToolCall, made: CallsMade, identical: int) -> Refusal | None:
    """Return the limit that forbids the call, or None. `identical`: such calls before it, as far as they count."""
    limit = state.limits.tool_calls
    if limit is not None and made.tool_calls + len(made.unpaid) >= limit:
        return Refusal(words=f"not run: all {limit} tool calls of this run are used up", ends=True)
    # A call that the lender may still pay is not refused: it waits. It counts all the same.
    bound = state.limits.per_tool.get(call.name)
    if bound is not None and made.per_tool.get(call.name, 0) + made.unpaid.count(call.name) >= bound:
        return _own_refusal(state, call.name, bound)
    most = state.limits.identical_calls
    if most is not None and identical >= most:
        return Refusal(
            words=f"{_REFUSED}{most} identical calls reached: {call.name!r} was called {identical} times with "
            "these arguments; go on with the results that you have, or call it with other arguments"
        )
    return hopeless_refusal(state, call.name, made)


def hopeless_refusal(state: AgentState, name: str, made: CallsMade) -> Refusal | None:
    """Return the refusal of a call that nobody will pay, or None: it is paid, or may be paid later."""
    short = shortfall(state, name, made)
    if short is None:
        return None
    own = missing(calls_of(name), minus(bounds_of(state.limits), made.amount))
    if own is None and state.tree.children:
        return None  # they may give something back
    lease = state.tree.lease
    if own is None and not lease.refused and name not in lease.refused_tools:
        return None
    # `missing` leaves out what suffices: what is left of `tool_calls` is short.
    if (own or short).tool_calls:
        return Refusal(words=_NO_CALLS_ABOVE, ends=True)
    if own is not None:
        return _own_refusal(state, name, state.limits.per_tool[name])
    return Refusal(
        words=f"{_REFUSED}calls of {name!r} reached in the runs that this one belongs to; {_do_not_repeat(state)}",
        ends=lease.per_tool_ends,
    )


def shortfall(state: AgentState, name: str, made: CallsMade) -> Amount | None:
    """Return what is missing for one more call of the tool without asking the lender, or None."""
    own = least(bounds_of(state.limits), state.tree.lease.amount)
    return missing(calls_of(name), minus(own, held_by_children(state.tree), made.amount))


def _own_refusal(state: AgentState, name: str, bound: int) -> Refusal:
    session = state.session
    # In a session the bound counts the earlier turns too; the model must read what this turn may do.
    before = (session.start.counted_from or session.start.ledger) if session else None
    allowed = bound - (before.per_tool.get(name, 0) if before else 0)
    calls = "1 call" if allowed == 1 else f"{allowed} calls"
    return Refusal(
        words=f"{_REFUSED}{calls} of {name!r} reached; {_do_not_repeat(state)}",
        ends=state.limits.per_tool_ends,
    )


def _do_not_repeat(state: AgentState) -> str:
    return _DO_NOT_REPEAT.format("turn" if state.session else "run")


def count_identical(counts: dict[str, int], key: str) -> None:
    """Count a call under its digest; forget the oldest of too many different calls."""
    counts[key] = counts.pop(key, 0) + 1
    if len(counts) > MOST_COUNTED:
        del counts[next(iter(counts))]


def is_refused(result: ToolResult) -> bool:
    """Return whether a limit of a single tool, or of identical calls, has refused the call."""
    # A tool's own error may begin with the same words.
    return result.not_run and result.text.startswith(_REFUSED)
