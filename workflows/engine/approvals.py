"""Approvals of a run: what a person sees, and the decisions that were made about it.

Rules
1. The digest of an approval binds run, call, tool and arguments. So it is unique in a tree of runs, and a decision that
   names it can allow nothing else. A run that is started again under the same id has other digests.
2. A call that waits again, for its stand-in, is another approval with another digest.
3. Each call is decided once. The same decision again gets the first one as its answer; another one is refused.
4. A decision reaches a run below only by the digest of what the person saw there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from perdure.messages import ApprovalRecord
from perdure.model import digest
from perdure.wire.requests import ApprovalDecision
from perdure.wire.results import Approval, ApprovalAnswer

from .events import ApprovalResolved
from .people import RelayedDecision
from .state import Call, RunState
from .tree import waiting_below

MOST_RELAYED = 100
"""Decisions about calls below that a run remembers, to answer the same ones again."""


def digest_of(state: RunState, call: Call) -> str:
    """Return the digest of a call that waits: an approval holds for what the person saw, and nothing else."""
    run = [state.id, state.started_at.isoformat()]
    return digest([*run, call.call.id, tool_of(call), call.call.arguments])


def tool_of(call: Call) -> str:
    """Return the tool that runs once the call is allowed: its stand-in, if its own tool has failed."""
    return call.stand_in or call.call.name


def approval_for(state: RunState, call: Call) -> Approval:
    """Return the approval that a call waits for."""
    return Approval(
        run_id=state.id,
        call_id=call.call.id,
        tool=tool_of(call),
        arguments=call.call.arguments,
        digest=digest_of(state, call),
        since=call.since,
        reason=call.ask_reason,
    )


def record_of(decision: ApprovalDecision, digest: str, at: datetime | None) -> ApprovalRecord:
    """Return the record of a decision, for the call's result."""
    edited: Any = decision.arguments
    return ApprovalRecord(
        allow=decision.allow, by=decision.by, reason=decision.reason, at=at, digest=digest, arguments=edited
    )


def waits(call: Call) -> bool:
    """Return whether the call waits for an approval; a question is answered by a message instead."""
    return call.state == "asking" and call.kind != "person"


def approvals_below(state: RunState) -> list[Approval]:
    """Return the approvals for which runs below wait."""
    return [item for item in waiting_below(state.tree) if isinstance(item, Approval)]


@dataclass(frozen=True, kw_only=True)
class MadeDecision:
    """A decision that was made before about the same call."""

    record: ApprovalRecord
    call_id: str
    run_id: str

    def agrees_with(self, decision: ApprovalDecision) -> bool:
        """Return whether the other decision is the same one again."""
        same_call = decision.digest in (None, self.record.digest)
        same_edit = not decision.allow or decision.arguments == self.record.arguments
        return same_call and same_edit and decision.allow == self.record.allow

    def answer(self, *, repeated: bool) -> ApprovalAnswer:
        """Return the answer for the person who decided."""
        record = self.record
        return ApprovalAnswer(
            call_id=self.call_id,
            run_id=self.run_id,
            allow=record.allow,
            by=record.by,
            at=record.at,
            repeated=repeated,
            words=f"already {self.words()}" if repeated else self.words(),
        )

    def words(self) -> str:
        """Return the decision in words, such as "approved by lee at 2026-11-30 19:40:01 UTC"."""
        record = self.record
        verdict = "approved" if record.allow else "denied"
        edited = " with other arguments" if record.arguments is not None else ""
        by = f" by {record.by}" if record.by else ""
        at = f" at {record.at:%Y-%m-%d %H:%M:%S} UTC" if record.at else ""
        return f"{verdict}{edited}{by}{at}"


def made_decision(
    state: RunState | None, decision: ApprovalDecision, unfolded: Iterable[object] = ()
) -> MadeDecision | None:
    """Return the decision that was made before about the call that this one names, or None.

    `unfolded`: events that the state does not contain yet.
    """
    if state is None or _waits_here(state, decision, unfolded):
        return None
    if decision.run_id in (None, state.id):
        own = _own_record(state, decision, unfolded)
        if own is not None:
            return MadeDecision(record=own, call_id=decision.call_id, run_id=state.id)
    return next((_made_below(item) for item in reversed(state.relayed) if _is_about(item, decision)), None)


def _waits_here(state: RunState, decision: ApprovalDecision, unfolded: Iterable[object]) -> bool:
    """Return whether the run's own call waits, so that the decision is about it and not about an earlier one."""
    decided = {event.decision.call_id for event in unfolded if isinstance(event, ApprovalResolved)}
    own = decision.run_id in (None, state.id) and decision.call_id not in decided
    return own and any(waits(call) and call.call.id == decision.call_id for call in state.open_calls)


def _own_record(
    state: RunState, decision: ApprovalDecision, unfolded: Iterable[object]
) -> ApprovalRecord | None:
    for event in unfolded:
        if isinstance(event, ApprovalResolved) and event.decision.call_id == decision.call_id:
            call = next((call for call in state.open_calls if call.call.id == decision.call_id), None)
            return record_of(event.decision, digest_of(state, call) if call else "", event.at)
    record = state.decision_on(decision.call_id)
    # With the digest of something else it is not about this call, but about one below.
    return None if record is None or decision.digest not in (None, record.digest) else record


def _is_about(item: RelayedDecision, decision: ApprovalDecision) -> bool:
    if decision.digest is not None:
        return item.record.digest == decision.digest and item.call_id == decision.call_id
    return decision.run_id == item.run_id and item.call_id == decision.call_id


def _made_below(item: RelayedDecision) -> MadeDecision:
    return MadeDecision(record=item.record, call_id=item.call_id, run_id=item.run_id)


def remember_relayed(state: RunState, item: RelayedDecision) -> tuple[RelayedDecision, ...]:
    """Return the decisions about calls below with this one, the newest ones."""
    return (*state.relayed, item)[-MOST_RELAYED:]


def names_of(approvals: Sequence[Approval]) -> str:
    """Return the approvals as a list of `RUN_ID/CALL` for people."""
    return ", ".join(f"{item.run_id}/{item.call_id}" for item in approvals) or "none"
