"""People in a run's state: what they have decided and answered below it. Plain values, without rules."""

from dataclasses import dataclass

from perdure.messages import ApprovalRecord


@dataclass(frozen=True, kw_only=True)
class RelayedDecision:
    """A decision that went to a run below, kept to answer the same one again."""

    run_id: str
    call_id: str
    record: ApprovalRecord


@dataclass(frozen=True, kw_only=True)
class RelayedAnswer:
    """An answer that went to a question of a run below, kept to recognise the same one when it comes again."""

    run_id: str
    call_id: str
    content: str
    """Digest of its content."""
    message_id: str = ""
