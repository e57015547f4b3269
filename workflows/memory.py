"""Memory: the transcript of an earlier run of the same team, fetched as a run begins."""

from dataclasses import replace
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError

from perdure.messages import Message, Part, Text
from perdure.scheduling import Start
from perdure.wire.effects import Remember, Remembered
from perdure.wire.ids import child_run_id
from perdure.wire.names import REMEMBER, TOO_LARGE_TYPES
from perdure.wire.requests import RunRequest
from perdure.wire.tree import ChildInput, EarlierRun

from .engine.handovers import prompt_with_notes
from .engine.state import RunState
from .payloads import read_payload

_ATTEMPT_WITHIN: Final = timedelta(minutes=1)
_WITHIN: Final = timedelta(minutes=3)
_ATTEMPTS: Final = 5
_LOST: Final = (
    "(What you did in your earlier visits can no longer be read. What follows is all that is known of it.)"
)


def earlier_run(state: RunState, start: Start) -> EarlierRun | None:
    """Return the earlier run that a starting run remembers, if it does."""
    memory = start.memory
    if memory is None:
        return None
    # What was done beside the handoff stands in neither transcript that the run knows.
    prompt = prompt_with_notes(replace(start, prompt=memory.prompt))
    return EarlierRun(run_id=child_run_id(state.id, memory.key), visit=memory.visit, prompt=prompt)


async def remember(request: RunRequest, child: ChildInput) -> tuple[RunRequest, ChildInput]:
    """Return request and input with the transcript of the earlier run before a prompt that builds on it.

    A run that cannot have its memory begins without it, with the whole prompt, and its model is told so.
    """
    earlier, info = child.remembers, workflow.info()
    assert earlier is not None, "the caller knows that there is an earlier run"
    parent_id = info.parent.workflow_id if info.parent else ""
    try:
        raw = await workflow.execute_activity(
            REMEMBER,
            Remember(run_id=earlier.run_id, visit=earlier.visit, parent_id=parent_id),
            result_type=RawValue,
            start_to_close_timeout=_ATTEMPT_WITHIN,
            # The history of the earlier run may be gone, or no worker able to replay it: the team must go on.
            schedule_to_close_timeout=_WITHIN,
            retry_policy=RetryPolicy(
                maximum_attempts=_ATTEMPTS, non_retryable_error_types=list(TOO_LARGE_TYPES)
            ),
            summary=f"transcript of {earlier.run_id}",
        )
        remembered = read_payload(raw, Remembered).messages
    except (ActivityError, ValueError):
        lost = [*child.history, Message.user(_LOST)]
        return request, child.model_copy(update={"history": lost})
    # The earlier transcript began with the same history.
    media = _attachments(request, earlier)
    history = [without for message in remembered if (without := _without(message, media)).parts]
    prompt = [*media, *_parts(earlier.prompt)] if media else earlier.prompt
    return request.model_copy(update={"prompt": prompt}), child.model_copy(update={"history": history})


def _attachments(request: RunRequest, earlier: EarlierRun) -> list[Part]:
    """Return the images and documents of the task. They stay visible in the prompt, as its text does."""
    if isinstance(request.prompt, str):
        return []
    beside = _parts(earlier.prompt)
    return [part for part in request.prompt if not isinstance(part, Text) and part not in beside]


def _parts(prompt: str | list[Part]) -> list[Part]:
    return [Text(text=prompt)] if isinstance(prompt, str) else prompt


def _without(message: Message, media: list[Part]) -> Message:
    """Return an earlier message without attachments that the prompt repeats: no model is to pay for them twice."""
    if not any(part in media for part in message.parts):
        return message
    return message.model_copy(update={"parts": [part for part in message.parts if part not in media]})
