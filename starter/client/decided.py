"""Decisions of a run that has ended: its answer to a decision may have been lost while it went on to its end."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from perdure.errors import PerdureError
from perdure.messages import Message
from perdure.wire.results import ApprovalAnswer


async def find_decision(
    run_id: str, read: Callable[[], Awaitable[Sequence[Message]]], decision: dict[str, Any]
) -> ApprovalAnswer | None:
    """Read the run's transcript, and return the answer to a decision that it took before it ended.

    None: it took none, or another one.
    """
    try:
        messages = await read()
    except PerdureError:
        return None  # the caller knows what to say of a run that is over
    for message in reversed(messages):
        for result in message.tool_results:
            made = result.approval
            if made is None or result.call_id != decision["call_id"]:
                continue
            is_same = made.digest == decision.get("digest", made.digest) and made.allow == decision["allow"]
            if is_same and (not made.allow or made.arguments == decision.get("arguments")):
                return ApprovalAnswer(
                    call_id=result.call_id,
                    run_id=run_id,
                    allow=made.allow,
                    by=made.by,
                    at=made.at,
                    repeated=True,
                    words=f"already {'approved' if made.allow else 'denied'} before the run ended",
                )
    return None
