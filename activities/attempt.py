"""Attempt of a model call: its text and usage so far, and the failure that Temporal gets.

Usage is never lost: heartbeats carry it to the next attempt, and the failure adds it up.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from perdure.errors import RULES, ErrorKind, ModelError
from perdure.messages import (
    HookRecord,
    Text,
    Usage,
    estimate_tokens,
)
from perdure.model import (
    Model,
    ModelEvent,
    ModelRequest,
    Reply,
    TextDelta,
    ThinkingDelta,
    UsageSoFar,
)
from perdure.texts import fix_surrogates
from perdure.wire.effects import ModelFailure, ModelInput, Progress
from perdure.wire.ids import model_call_id
from perdure.wire.spec import AgentSpec, ModelSpec

from .content.redact import mask_own, mask_stream, redact_error
from .heartbeat import last_progress

_LONGEST_MESSAGE = 700
"""Characters of a failure's message in history."""
LONGEST_RETRY_AFTER = timedelta(minutes=10)
"""Longest delay of a provider that the activity's own retries wait for. Beyond it the call fails at once, and
the run falls back to another model or parks."""


class ModelAttempt:
    """Attempt of a model call: the text and usage read so far, and the usage of earlier attempts."""

    def __init__(
        self,
        *,
        call: ModelInput,
        spec: AgentSpec,
        model: ModelSpec,
        before: Usage,
        parked_retry: timedelta,
    ) -> None:
        self.call = call
        self.spec = spec
        self.model = model
        self.before = before
        self.parked_retry = parked_retry
        self.began = time.monotonic()
        self.text = ""
        self.usage: Usage | None = None
        self.records: list[HookRecord] = []
        self.refused: tuple[str, ...] = ()
        """Keys of attachments that the provider has refused in this call."""
        self.problem: str | None = None
        """Guidance for the model, of a hook that does not let the reply take effect."""

    async def stream_reply(self, model: Model, request: ModelRequest) -> Reply:
        """Read the model's stream to its Reply, within the configured timeout.

        Raises:
            ModelError: the provider's own; "timeout"; "stream_cut" when the stream ends without a Reply.

        """
        try:
            async with asyncio.timeout(request.config.timeout.total_seconds()):
                return await self._read_stream(model.stream(request))
        except TimeoutError:
            raise ModelError("timeout", f"no complete answer within {request.config.timeout}") from None

    async def _read_stream(self, events: AsyncIterator[ModelEvent]) -> Reply:
        try:
            async for event in events:
                match event:
                    case TextDelta():
                        self.text += fix_surrogates(event.text)
                    case UsageSoFar():
                        self.usage = event.usage
                    case Reply():
                        return _mask_reply(event)
                    case ThinkingDelta():
                        pass
        finally:
            await _close(events)
        # Text without a Reply is no answer: without the provider's own end mark it may be cut anywhere.
        raise ModelError("stream_cut", "the answer stopped before its end")

    def progress(self, seq: int, window: int) -> Progress:
        """Return the heartbeat for watchers: the last `window` characters of the text, and the usage."""
        shown = mask_stream(self.text) if self.call.stream else ""
        offset = max(len(shown) - window, 0)
        text = shown[offset:]
        return progress_of(
            self.call, seq, offset=offset, text=text, spent=self.before + self.estimated_usage()
        )

    def estimated_usage(self) -> Usage:
        """Return the usage of this attempt so far, output estimated: providers bill for cut calls too."""
        if self.usage is None:
            return Usage()
        output = max(self.usage.output_tokens, estimate_tokens(len(self.text.encode())))
        return self.usage.model_copy(update={"output_tokens": output, "estimated": True})

    def partial_reply(self) -> Reply:
        """Return the text read so far as a reply whose stop is "cancelled"."""
        parts = (Text(text=mask_own(self.text)),) if self.text else ()
        return Reply(parts=parts, stop="cancelled", usage=self.estimated_usage())

    def cost_microusd(self, usage: Usage) -> int:
        """Return the cost of the usage at the model's pinned price; 0 where the price is unknown."""
        return self.model.price.cost_microusd(usage) if self.model.price else 0

    def can_fall_back(self, kind: ErrorKind) -> bool:
        """Check whether a later model of the chain takes over on an error of this kind."""
        if self.call.summarize:
            return True  # plain sliding takes over, so the call does not wait out an outage
        later = self.spec.models[self.call.model + 1 :]
        return any(RULES[kind].falls_back if model.on is None else kind in model.on for model in later)

    def failure(self, error: ModelError) -> ApplicationError:
        """Return the error for Temporal, and heartbeat the usage for the next attempt to add up."""
        spent = self.before + (error.usage or self.estimated_usage())
        activity.heartbeat(progress_of(self.call, 0, spent=spent))
        message = redact_error(error, _LONGEST_MESSAGE)
        failure = ModelFailure(
            kind=error.kind,
            message=message,
            wasted=spent,
            wasted_microusd=self.cost_microusd(spent),
            retry_in=_auto_retry_delay(error, self.parked_retry),
        )
        activity.logger.warning("model call failed: %s: %s", error.kind, message)
        too_long = error.retry_after is not None and error.retry_after > LONGEST_RETRY_AFTER
        return ApplicationError(
            message,
            failure,
            type=error.kind,
            non_retryable=too_long or not RULES[error.kind].retried,
            # The line above says it already. Temporal would log a traceback too, which only a bug needs.
            category=ApplicationErrorCategory.UNSPECIFIED
            if error.kind == "bug"
            else ApplicationErrorCategory.BENIGN,
            next_retry_delay=None if too_long else error.retry_after,
        )


def _mask_reply(reply: Reply) -> Reply:
    """Return the reply with this process's own secrets masked in its texts, as in its stream."""
    # Reasoning stays as it is: the provider has signed it. Arguments too: the tool is to see what the model wrote.
    parts = (
        part.model_copy(update={"text": mask_own(part.text)}) if isinstance(part, Text) else part
        for part in reply.parts
    )
    return replace(reply, parts=tuple(parts))


def progress_of(call: ModelInput, seq: int, **fields: Any) -> Progress:
    """Return a heartbeat of this attempt, with these fields."""
    return Progress(call=model_call_id(call.step), attempt=activity.info().attempt, seq=seq, **fields)


def usage_of_earlier_attempts() -> Usage:
    """Return the usage that earlier attempts have reported: it is billed with this one."""
    progress = last_progress()
    return progress.spent if progress else Usage()


def _auto_retry_delay(error: ModelError, parked_retry: timedelta) -> timedelta | None:
    """Return the delay after which a parked run retries, or None if the error is not transient.

    Never shorter than the provider's own delay. Spread by chance, so that parked runs do not return together.
    """
    if not RULES[error.kind].transient:
        return None
    chance = random.random()  # noqa: S311 - no secret
    if error.kind == "circuit_open" and error.retry_after is not None:
        # By then this worker's circuit admits a probe. Another worker's may admit the call sooner.
        return max(error.retry_after, parked_retry / 2) * (1 + chance / 2)
    if error.retry_after is not None:
        return max(error.retry_after, parked_retry) * (1 + chance)
    return parked_retry * (0.5 + chance)


async def _close(events: AsyncIterator[ModelEvent]) -> None:
    """Close the provider's connection; an error in closing never replaces the reply."""
    if isinstance(events, AsyncGenerator):
        try:
            await events.aclose()
        except Exception:
            activity.logger.warning("a model's stream could not be closed", exc_info=True)
