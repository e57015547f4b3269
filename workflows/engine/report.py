"""Reports of a run that do not depend on its program: status, people to wait for, report to the parent."""

from typing import Final

from perdure.messages import ToolCall
from perdure.shown import call_text, cut, visible
from perdure.wire.names import RESOLVE_APPROVAL, SEND
from perdure.wire.results import Approval, Failure, Parked, Question, RunStatus, Status, StopReason, Waiting
from perdure.wire.tree import BudgetRequest, Report, Spent

from .account import bounded_calls, limits_of, spent
from .approvals import approval_for
from .events import ParentInformed
from .state import Call, End, RunState
from .tree import idle_lease, waiting_below

_BY_KIND: Final[dict[str, Status]] = {
    "approval": "waiting_approval",
    "question": "waiting_person",
    "parked": "parked",
}
"""Status for each kind of waiting; of several kinds the first counts."""
_IDLE: Final[frozenset[Status]] = frozenset({"waiting_approval", "waiting_person", "paused", "parked"})

MOST_SHOWN: Final = 1000
"""Most characters of what a person is asked, on the UI page."""
BACKTICK: Final = "\\u0060"
"""A backtick as JSON writes it, where it would end a piece of code."""

STATUS_WORDS: Final[dict[Status, str]] = {
    "thinking": "waiting for the model",
    "acting": "calling tools",
    "waiting_approval": "waiting for a person to approve",
    "waiting_person": "waiting for a person to answer",
    "paused": "paused: resume it to go on",
    "idle": "waiting for the next message",
    "parked": "parked: mend the cause, then resume it, or stop it",
    "stopping": "stopping: cancelling pending work",
    "completed": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}


def status_of(state: RunState) -> Status:
    """Return the run's status."""
    # The order is the precedence: a parked run that waits for a person too is parked.
    if state.end is not None:
        return _status_of_end(state.end)
    if state.ending is not None:
        return "stopping"
    if state.parking.parked is not None:
        return "parked"
    if state.paused:
        return "paused"
    kinds = [waiting.kind for waiting in waiting_of(state)]
    if kinds:
        return next(status for kind, status in _BY_KIND.items() if kind in kinds)
    if state.session is not None and not state.session.turn_is_open:
        return "idle"
    return state.activity


def _status_of_end(end: End) -> Status:
    if end.failure is not None and not end.answers:
        return "failed"
    return "cancelled" if end.stop_reason == "cancelled" else "completed"


def waiting_of(state: RunState) -> list[Waiting]:
    """Return who waits for a person: the run's own calls, then those of the runs below it."""
    own: list[Waiting] = [waiting_for(state, call) for call in state.open_calls if call.state == "asking"]
    return [*own, *waiting_below(state.tree)]


def waiting_for(state: RunState, call: Call) -> Approval | Question:
    """Return the approval or question that a call asks of a person."""
    if call.kind != "person":
        return approval_for(state, call)
    text = str(call.call.arguments.get("question", ""))
    return Question(call_id=call.call.id, text=text, since=call.since, run_id=state.id)


def cost_of(state: RunState) -> int | None:
    """Return the cost so far, or None when the price of a used model is not known."""
    return None if state.ledger.cost_unknown else state.ledger.cost_microusd


def report_due(state: RunState, request: BudgetRequest | None) -> tuple[Report | None, ParentInformed]:
    """Return the report due to the parent, or None, and the event that records it.

    A run that only waits for people gives back what it does not need; it asks again when it goes on.
    """
    lineage, lease = state.tree.lineage, state.tree.lease
    assert lineage is not None, "only a child has a parent"
    waiting = waiting_of(state)
    outage = state.parking.outage
    parked = state.parking.parked or outage
    if parked is not None:
        # The parent hears of an outage once, and again when it is over: not of every retry.
        waiting.append(Parked(failure=parked, run_id=state.id))
    ids = tuple(_id_of(entry) for entry in waiting)
    # A report that says nothing new is not sent: each is a signal, with events on both sides.
    is_new = request is not None
    if request is None and lease.is_asking:
        request = lease.request  # it stands until it is answered
    # An outage may end by itself at any time, so a run that waits for its end keeps its lease.
    idle = request is None and outage is None and not state.works_itself and status_of(state) in _IDLE
    spare = idle_lease(state.tree, limits_of(state), spent(state)) if idle else None
    people_since = state.people.since
    ids = (*ids, *(["idle"] if idle else []), *(["people"] if people_since else []))
    informed = ParentInformed(waiting=ids, returned=spare)
    if not is_new and spare is None and informed.waiting == state.tree.reported:
        return None, informed
    report = Report(
        key=lineage.key,
        parent_execution_id=lineage.parent_execution_id,
        waiting=waiting,
        request=request,
        idle=idle,
        people_since=people_since,
        returned=spare,
        spent=spent_so_far(state),
    )
    return report, informed


def spent_so_far(state: RunState) -> Spent:
    """Return what the run has spent, for a parent that may hear nothing more."""
    ledger = state.ledger
    return Spent(
        usage=ledger.usage,
        cost_microusd=cost_of(state),
        tool_calls=ledger.tool_calls,
        per_tool=bounded_calls(state),
        steps=ledger.steps,
    )


def _id_of(waiting: Waiting) -> str:
    return f"{waiting.run_id}/{waiting.call_id or waiting.kind}"


def starting_status(
    agent: str, status: Status, held_up: Failure | None = None, reason: StopReason | None = None
) -> RunStatus:
    """Return the status of a run whose agent no worker has resolved yet, or never will.

    `held_up`: the cause for which it cannot begin yet. `reason`: of its end, if it ended before it began.
    """
    doing = "starting" if status == "thinking" else f"{reason or status} before it began"
    cause = held_up if status == "thinking" else None
    if cause is not None:
        doing = f"{doing}: {cause.message}; it tries again"
    return RunStatus(agent=agent, status=status, doing=doing, failure=cause)


def end_words(state: RunState, status: Status) -> str | None:
    """Return the end in one line for people, or None while the run goes on."""
    words, end = STATUS_WORDS[status], state.end
    if end is None:
        return None
    if status == "failed" and end.failure is not None:
        return f"{words} ({end.failure.kind}: {end.failure.message})"
    return f"{words} ({end.stop_reason})" if status == "completed" else None


def failure_shown(state: RunState) -> Failure | None:
    """Return the failure by which the run is parked or has ended."""
    return state.parking.parked or (state.end.failure if state.end else None)


def signature(call: ToolCall, most: int = 100) -> str:
    """Return a call as `search(query="...")`, in at most so many characters."""
    return call_text(call.name, call.arguments, most)


def shorten(text: str, most: int) -> str:
    """Return the text in at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def dollars(microusd: int | None) -> str:
    """Return an amount for people. An unknown one says so."""
    return "cost unknown" if microusd is None else f"${microusd / 1_000_000:.4f}"


def spent_words(state: RunState) -> str:
    """Return tokens and cost for people."""
    return f"{state.ledger.usage.total_tokens} tokens, {dollars(cost_of(state))}"


def turn_words(state: RunState) -> str:
    """Return the turn of a session for people, or an empty text."""
    if state.session is None:
        return ""
    queued = f" ({len(state.session.queue)} more messages wait)" if state.session.queue else ""
    return f"turn {state.session.turn}{queued}, "


def literal(text: str) -> str:
    """Return the text as Markdown code on one line, with all its characters visible."""
    # A backtick would end the code, and a message could then write Markdown of its own.
    return f"`{visible(text).replace('`', BACKTICK)}`"


def extension_lines(state: RunState) -> list[str]:
    """Return the lines of the UI page about extensions of the run."""
    return [
        f"- extended at {record.at:%Y-%m-%d %H:%M} UTC after `{record.ended}` by {literal(record.by or 'a person')}: "
        f"{literal(shorten(f'{record.limits} {record.reason}', 300))}"
        for record in state.past.extensions
    ]


def people_below(state: RunState) -> list[str]:
    """Return the lines of the UI page about people that runs below wait for."""
    lines: list[str] = []
    for waiting in waiting_below(state.tree):
        if isinstance(waiting, Parked):
            cause = literal(shorten(f"{waiting.failure.kind}: {waiting.failure.message}", 300))
            lines.append(f"- **parked**: {' / '.join(waiting.path)} {cause}")
            lines.append("  - mend the cause, then send the signal `resume`")
            continue
        if isinstance(waiting, Question):
            text = cut(waiting.text, MOST_SHOWN)
        else:
            text = call_text(waiting.tool, waiting.arguments, MOST_SHOWN)
        path = " / ".join(waiting.path)
        lines.append(f"- **waits for a person**: {path} `{waiting.call_id}` {literal(text)}")
        if isinstance(waiting, Question):
            lines.append(f"  - {_how_to_answer_question(waiting.call_id, waiting.run_id)}")
        else:
            lines.append(f"  - {_how_to_decide(waiting)}")
    return lines


def how_to_answer(state: RunState, call: Call) -> str:
    """Return the way in which a person answers a call, for the UI page."""
    if call.kind == "person":
        return _how_to_answer_question(call.call.id)
    return _how_to_decide(approval_for(state, call))


def _how_to_answer_question(call_id: str, run_id: str = "") -> str:
    run = f'"run_id": "{run_id}", ' if run_id else ""
    return f'answer with the update `{SEND}`: `{{{run}"call_id": "{call_id}", "text": "..."}}`'


def _how_to_decide(approval: Approval) -> str:
    return (
        f"allow or deny with the update `{RESOLVE_APPROVAL}`: "
        f'`{{"call_id": "{approval.call_id}", "digest": "{approval.digest}", "allow": true, "by": "you"}}`'
    )
