"""Remembering: the transcript of an earlier run of a team, for a run that comes after it.

Rules
1. The transcript comes from the server's history alone: a worker replays it to answer a query.
2. The earlier run has the parent of the run that remembers it, and is a run of ours.
3. Call ids are unique within a run only, and providers want them unique in a request: each gets the number of its run.
4. A reply's reasoning belongs to its own model and turn, and its bill to its own run: both are left out.
"""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from temporalio import activity
from temporalio.client import WorkflowQueryFailedError, WorkflowQueryRejectedError
from temporalio.service import RPCError, RPCStatusCode

from perdure.messages import Message, Opaque, Part, Thinking, ToolCall, ToolResult, size_bytes
from perdure.wire.effects import Remember, Remembered
from perdure.wire.names import REMEMBER, TRANSCRIPT, WORKFLOWS
from perdure.wire.requests import TranscriptQuery
from perdure.wire.results import TranscriptPage

from .refusal import refusal

MOST_REMEMBERED_BYTES: Final = 2 * 1024 * 1024
"""Most bytes that a run remembers: the newest messages. The whole stays in the transcripts of the earlier runs."""
_ANSWER_WITHIN: Final = timedelta(seconds=15)
_VISIT: Final = re.compile(r"v\d+-")
_LEFT_OUT: Final = "(Earlier messages are left out here: they are too long to be remembered.)"


@activity.defn(name=REMEMBER)
async def remember(request: Remember) -> Remembered:
    """Return the messages of the earlier run, those that it remembered itself included.

    Raises:
        ApplicationError: "InvalidRequest": there is no such run, or it is none of the same parent.

    """
    client = activity.client()
    try:
        described = await client.get_workflow_handle(request.run_id).describe()
        if described.parent_id != request.parent_id or described.workflow_type not in WORKFLOWS:
            raise refusal(f"{request.run_id!r} is no run of {request.parent_id!r}")
        handle = client.get_workflow_handle(request.run_id, run_id=described.run_id)
        messages = await _read_transcript(handle)
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise refusal(f"{request.run_id!r} is gone: the server no longer keeps its history") from None
        raise
    except (WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
        raise refusal(f"{request.run_id!r} does not answer: {error}") from None
    return Remembered(messages=as_memory(messages, request.visit))


async def _read_transcript(handle: Any) -> list[Message]:
    messages: list[Message] = []
    while True:
        page: TranscriptPage = await handle.query(
            TRANSCRIPT,
            TranscriptQuery(start=len(messages)),
            result_type=TranscriptPage,
            rpc_timeout=_ANSWER_WITHIN,
        )
        messages += page.messages
        if not page.messages or len(messages) >= page.length:
            return messages


def as_memory(messages: Sequence[Message], visit: int) -> list[Message]:
    """Return the newest messages within the bound, as another run may send them: see rules 3 and 4."""
    kept: list[Message] = []
    size = 0
    for message in reversed(messages):
        size += size_bytes(message)
        if size > MOST_REMEMBERED_BYTES:
            break
        kept.append(message)
    kept.reverse()
    # A conversation begins with a person: a result without its call is refused by every provider.
    while len(kept) < len(messages) and kept and kept[0].role != "user":
        del kept[0]
    left_out = [Message.user(_LEFT_OUT)] if len(kept) < len(messages) else []
    own = (_as_remembered(message, visit) for message in kept)
    return [*left_out, *(message for message in own if message.parts)]


def _as_remembered(message: Message, visit: int) -> Message:
    parts = [_with_own_id(part, visit) for part in message.parts if not isinstance(part, Thinking | Opaque)]
    # Names of calls and of late answers begin anew in each visit. Those of earlier visits have their number already.
    is_new = bool(message.answer_of) and _VISIT.match(message.answer_of) is None
    answer_of = f"v{visit}-{message.answer_of}" if is_new else message.answer_of
    return message.model_copy(update={"parts": parts, "meta": None, "answer_of": answer_of})


def _with_own_id(part: Part, visit: int) -> Part:
    match part:
        case ToolCall(id=id_) if id_.startswith("call-"):
            return part.model_copy(update={"id": f"v{visit}-{id_}"})
        case ToolResult(call_id=id_) if id_.startswith("call-"):
            return part.model_copy(update={"call_id": f"v{visit}-{id_}"})
        case _:
            return part
