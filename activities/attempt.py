"""Attempt of a model call: its text and usage so far, and the failure that Temporal gets.

Usage is never lost: heartbeats carry it to the next attempt, and the failure adds it up.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeGuard

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from perdure.delays import sensible_delay
from perdure.errors import RULES, ErrorKind, ModelError
from perdure.messages import (
    HookRecord,
    Text,
    Usage,
)
from perdure.model import (
    ArgumentsDelta,
    Model,
    ModelEvent,
    ModelRequest,
    Reply,
    TextDelta,
    ThinkingDelta,
    UsageSoFar,
)
from perdure.prices import Price
from perdure.providers.count import CallCount
from perdure.texts import fix_surrogates
from perdure.wire.effects import ModelFailure, ModelInput, Progress
from perdure.wire.ids import model_call_id
from perdure.wire.spec import AgentSpec, ModelSpec

from .content.redact import mask_own, mask_stream, redact_error
from .elsewhere import not_served
from .heartbeat import last_progress, was_cancelled
from .telemetry import record_usage
from .traffic.transient_errors import is_transient, may_have_taken_effect

_LONGEST_MESSAGE = 700
"""Characters of a failure's message in history."""
LONGEST_RETRY_AFTER = timedelta(minutes=10)
"""Longest delay of a provider that the activity's own retries wait for. Beyond it the call fails at once, and
the run falls back to another model or parks."""
_LONGEST_SUMMARY_RETRY_AFTER = timedelta(seconds=5)
"""As above, for a summary: the window slides without it, so no step waits long for it."""

_LOST_ANSWERS: frozenset[ErrorKind] = frozenset({"connection", "stream_cut", "timeout", "malformed_reply"})
"""Kinds of errors that may come after the provider has read the request. Others are refusals, of its or of ours."""
_LEAST_REPLY_TOKENS = 16
"""Fewest output tokens with which another attempt is worth its input, as in the engine."""


class ModelAttempt:
    """Attempt of a model call: the text and usage read so far, and the usage of earlier attempts."""

    def __init__(
        self,
        *,
        call: ModelInput,
        spec: AgentSpec,
        model: ModelSpec,
        before: "EarlierAttempts",
        parked_retry: timedelta,
    ) -> None:
        self.call = call
        self.spec = spec
        self.model = model
        self.before = before.spent
        self.unheard = before.unheard
        self.unrecorded = before.unrecorded
        self.parked_retry = parked_retry
        self.began = time.monotonic()
        self.text = ""
        self.count: CallCount | None = None
        """Running count of what this attempt costs; None before it is sent."""
        self.has_answered = False
        """True once the provider has sent anything."""
        self.records: list[HookRecord] = []
        self.refused: tuple[str, ...] = ()
        """Keys of attachments that the provider has refused in this call."""
        self.refusals: list[str] = []
        """Refusals of the provider after which the call was made once more, for the reply's record."""
        self.problem: str | None = None
        """Guidance for the model, of a hook that does not let the reply take effect."""

    def admit(self, request: ModelRequest) -> ModelRequest:
        """Return the request with the length of reply that earlier attempts have left.

        Earlier attempts of which nothing was heard are booked first, with all that each may have spent.

        Raises:
            ReservationSpent: they have left too little for another attempt.

        """
        self._record_lost()
        request = self._book_unheard(request)
        longest = self._longest_reply(self.before)
        if longest is not None and longest < _LEAST_REPLY_TOKENS and self.before.total_tokens:
            raise ReservationSpent
        return request if longest is None else _with_reply(request, longest)

    def admit_again(self, request: ModelRequest, error: ModelError) -> ModelRequest:
        """Book the call that this attempt made and that was refused, and return the request for the next one.

        Raises:
            ReservationSpent: it has left too little for another call.

        """
        self.before = self.before + self.usage_of(error)
        self.count, self.has_answered, self.text = None, False, ""
        return self.admit(request)

    def _record_lost(self) -> None:
        """Record what an attempt has spent whose worker died before it could."""
        lost, self.unrecorded = self.unrecorded, Usage()
        if lost.total_tokens:
            record_usage(self.model, self.call.agent, lost, self.cost_microusd(lost))

    def _book_unheard(self, request: ModelRequest) -> ModelRequest:
        for _ in range(self.unheard):
            longest = self._longest_reply(self.before)
            lost = CallCount(request if longest is None else _with_reply(request, longest)).upper_bound()
            self.before = self.before + lost
            record_usage(self.model, self.call.agent, lost, self.cost_microusd(lost))
        self.unheard = 0
        return request

    def _longest_reply(self, spent: Usage) -> int | None:
        """Return the longest reply that the reservation pays for after this usage, or None without a bound."""
        reservation = self.call.reservation
        if reservation is None:
            return None
        longest = reservation.longest_reply(spent, self.cost_microusd(spent), self.model.price)
        return None if longest is None else longest[0]

    async def stream_reply(self, model: Model, request: ModelRequest) -> Reply:
        """Read the model's stream to its Reply, within the configured timeout.

        Raises:
            ModelError: the provider's own; "timeout"; "stream_cut" when the stream ends without a Reply, or by a
                cancellation that nobody asked for.

        """
        self.count = CallCount(request)
        try:
            async with asyncio.timeout(request.config.timeout.total_seconds()) as limit:
                return await self._read_stream(model.stream(request), limit)
        except TimeoutError:
            raise ModelError("timeout", f"no complete answer within {request.config.timeout}") from None

    async def _read_stream(self, events: AsyncIterator[ModelEvent], limit: asyncio.Timeout) -> Reply:
        try:
            async for event in events:
                self.has_answered = True
                if self._take(event):
                    return _mask_reply(replace(event, usage=self.reply_usage()))
        except BaseException as error:
            if isinstance(error, Exception) or was_cancelled(error) or limit.expired():
                raise
            # A task within the adapter was cancelled, or its code ends the process: neither is this attempt's end.
            kind: ErrorKind = "stream_cut" if isinstance(error, asyncio.CancelledError) else "bug"
            raise ModelError(kind, f"the model's adapter raised {type(error).__name__}") from None
        finally:
            await _close(events)
        # Text without a Reply is no answer: without the provider's own end mark it may be cut anywhere.
        raise ModelError("stream_cut", "the answer stopped before its end")

    def _take(self, event: ModelEvent) -> TypeGuard[Reply]:
        """Count what the event tells; return whether it is the reply."""
        assert self.count is not None, "events come after the request was sent"
        match event:
            case TextDelta():
                self.text += fix_surrogates(event.text)
                self.count.write(event.text)
            case ThinkingDelta():
                self.count.write(event.text)
            case ArgumentsDelta():
                self.count.write(event.text, begins_call=event.begins)
            case UsageSoFar():
                self.count.count(event.usage, final=False)
            case Reply():
                self.count.count(event.usage, final=True)
        return isinstance(event, Reply)

    def progress(self, seq: int, window: int) -> Progress:
        """Return the heartbeat for watchers: the last `window` characters of the text, and the usage."""
        shown = mask_stream(self.text) if self.call.stream else ""
        offset = max(len(shown) - window, 0)
        text = shown[offset:]
        at_most = None if self.count is None else self.before + self.count.upper_bound()
        return progress_of(
            self.call,
            seq,
            offset=offset,
            text=text,
            spent=self.before + (Usage() if self.count is None else self.count.cost()),
            at_most=at_most,
            unrecorded=self.unrecorded + (Usage() if self.count is None else self.count.upper_bound()),
            # Before the call is sent, this attempt itself is unheard: nothing may be heard of it after it.
            unheard=self.unheard + (self.count is None),
        )

    def reply_usage(self) -> Usage:
        """Return the usage of the whole reply, within the bounds of what can be."""
        assert self.count is not None, "the reply came after the request"
        return self.count.cost(is_whole=True)

    def usage_of(self, error: ModelError) -> Usage:
        """Return the usage of this attempt, which has ended with an error: never below what the provider bills.

        A call that was refused or not sent costs nothing. One that was read, and of which nothing came, may have
        been answered to its full length.
        """
        if self.count is None or not (self.has_answered or may_be_billed(error)):
            return self._sensible(error.usage) if error.usage else Usage()
        if error.usage is None or (error.usage.estimated and not self.has_answered):
            return self.lost_usage()
        return self._sensible(error.usage)

    def lost_usage(self) -> Usage:
        """Return the usage of this attempt so far: providers bill for calls that were cut or stopped too."""
        if self.count is None:
            return Usage()
        return self.count.cost() if self.has_answered else self.count.upper_bound()

    def _sensible(self, usage: Usage) -> Usage:
        """Return a usage that a provider of the user's counted, with an estimate for what makes no sense in it."""
        counted = CallCount(self.count.request) if self.count is not None else None
        if counted is None:
            return usage
        counted.count(usage, final=True)
        return counted.cost()

    def filtered_reply(self, error: ModelError) -> Reply:
        """Return the reply of a call that a filter of the provider has refused: its words, as a refusal.

        The run, or turn, ends as with a refusal of the model, and what was refused is not sent again.
        """
        text = redact_error(error, _LONGEST_MESSAGE)
        return Reply(parts=(Text(text=text),), stop="refusal", usage=self.usage_of(error), withheld=True)

    def partial_reply(self) -> Reply:
        """Return the text read so far as a reply whose stop is "cancelled"."""
        parts = (Text(text=mask_own(self.text)),) if self.text else ()
        return Reply(parts=parts, stop="cancelled", usage=self.lost_usage())

    def spending(self, error: ModelError | None = None) -> tuple[Usage, int]:
        """Return what this attempt alone has spent, and its cost."""
        usage = self.lost_usage() if error is None else self.usage_of(error)
        return usage, self.cost_microusd(usage)

    def note_refusal(self, change: str, error: ModelError) -> None:
        """Keep the provider's words for the record of the reply, with what was changed after them."""
        words = redact_error(error, _LONGEST_MESSAGE)
        self.refusals.append(f"{self.model.config.name}: {error.kind}: {words} ({change})")

    def stop_error(self) -> ApplicationError:
        """Return the error of a call that a person stopped while it was not being sent."""
        earlier = EarlierAttempts(spent=self.before + self.lost_usage(), unheard=self.unheard)
        return stopped_call(earlier, self.model.price)

    def reservation_spent(self) -> ApplicationError:
        """Return the error of a call whose earlier attempts have left too little: the run reserves anew."""
        earlier = EarlierAttempts(spent=self.before, unheard=self.unheard)
        message = "earlier attempts have spent what was reserved"
        return _given_up("reservation_spent", message, earlier, self.model.price)

    def cost_microusd(self, usage: Usage) -> int:
        """Return the cost of the usage at the model's pinned price; 0 where the price is unknown."""
        return self.model.price.cost_microusd(usage) if self.model.price else 0

    def can_fall_back(self, kind: ErrorKind) -> bool:
        """Check whether a later model of the chain takes over on an error of this kind."""
        if self.call.summarize:
            return True  # plain sliding takes over, so the call does not wait out an outage
        later = self.spec.models[self.call.model + 1 :]
        return any(RULES[kind].falls_back if model.on is None else kind in model.on for model in later)

    def not_served(self, lack: ModelError) -> ApplicationError:
        """Return the error of a call that this worker cannot make, and heartbeat what the next attempt needs."""
        before = EarlierAttempts(spent=self.before, unheard=self.unheard, unrecorded=self.unrecorded)
        failure = ModelFailure(
            kind=lack.kind,
            message=str(lack),
            wasted=self.before,
            wasted_microusd=self.cost_microusd(self.before),
            unheard=self.unheard,
        )
        progress = progress_before(self.call, 0, before)
        return not_served(str(lack), progress, failure, type=lack.kind)

    def failure(self, error: ModelError) -> ApplicationError:
        """Return the error for Temporal, and heartbeat the usage for the next attempt to add up."""
        spent = self.before + self.usage_of(error)
        unrecorded = self.unrecorded
        activity.heartbeat(
            progress_of(self.call, 0, spent=spent, unheard=self.unheard, unrecorded=unrecorded)
        )
        message = redact_error(error, _LONGEST_MESSAGE)
        failure = ModelFailure(
            kind=error.kind,
            message=message,
            wasted=spent,
            wasted_microusd=self.cost_microusd(spent),
            unheard=self.unheard,
            retry_in=_auto_retry_delay(error, self.parked_retry),
        )
        # Also what was set on the error after it was made.
        delay = sensible_delay(error.retry_after)
        longest = self._longest_reply(spent)
        is_spent = longest is not None and longest < _LEAST_REPLY_TOKENS
        activity.logger.warning("model call failed: %s: %s", error.kind, message)
        too_long = delay is not None and delay > LONGEST_RETRY_AFTER
        return ApplicationError(
            message,
            failure,
            type=error.kind,
            non_retryable=too_long or is_spent or not RULES[error.kind].retried,
            # The line above says it already. Temporal would log a traceback too, which only a bug needs.
            category=ApplicationErrorCategory.UNSPECIFIED
            if error.kind == "bug"
            else ApplicationErrorCategory.BENIGN,
            next_retry_delay=None if too_long else delay,
        )


def as_model_error(error: Exception) -> ModelError:
    """Return the error, or the bug that an exception is which a model, or we, let pass."""
    if isinstance(error, ModelError):
        return error
    bug = ModelError("bug", f"{type(error).__name__}: {error}")
    bug.__cause__ = error
    return bug


def may_be_billed(error: ModelError) -> bool:
    """Check whether the provider may bill a call that ended in this error before anything of its answer came.

    An unknown cause may have come after the request was sent: only a known one says that it was not.
    """
    if error.kind in _LOST_ANSWERS:
        return may_have_taken_effect(error)
    # A model that lets its library's error pass.
    cause = error.__cause__
    return error.kind == "bug" and cause is not None and is_transient(cause) and may_have_taken_effect(cause)


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


@dataclass(frozen=True)
class EarlierAttempts:
    """Usage of the attempts before this one: it is billed with this one."""

    spent: Usage = Usage()
    """What they reported. Of one that was cut off it is an upper bound."""
    unheard: int = 0
    """Attempts of which nothing was heard."""
    unrecorded: Usage = Usage()
    """Part of `spent` that no metric has: of an attempt whose worker died."""


def progress_before(call: ModelInput, seq: int, before: EarlierAttempts) -> Progress:
    """Return a heartbeat of an attempt that has sent nothing yet."""
    return progress_of(call, seq, spent=before.spent, unheard=before.unheard, unrecorded=before.unrecorded)


def earlier_attempts() -> EarlierAttempts:
    """Return what the attempts before this one have spent."""
    earlier = activity.info().attempt - 1
    progress = last_progress()
    if progress is None:
        return EarlierAttempts(unheard=earlier)
    spent = progress.spent if progress.at_most is None else progress.at_most
    return EarlierAttempts(
        spent=spent,
        unheard=progress.unheard + max(earlier - progress.attempt, 0),
        unrecorded=progress.unrecorded,
    )


def stopped_call(earlier: EarlierAttempts, price: Price | None = None) -> ApplicationError:
    """Return the error of a call that a person stopped while it was not being sent.

    Without a price the run adds it: an attempt that has no spec yet does not know it.
    """
    return _given_up("cancelled", "called back", earlier, price)


def _given_up(kind: str, message: str, earlier: EarlierAttempts, price: Price | None) -> ApplicationError:
    failure = ModelFailure(
        kind=kind,
        message=message,
        wasted=earlier.spent,
        wasted_microusd=price.cost_microusd(earlier.spent) if price else 0,
        unheard=earlier.unheard,
    )
    return ApplicationError(
        message, failure, type=kind, non_retryable=True, category=ApplicationErrorCategory.BENIGN
    )


class ReservationSpent(Exception):
    """Earlier attempts have left too little for another one."""


def _with_reply(request: ModelRequest, longest: int) -> ModelRequest:
    return replace(request, max_tokens=max(min(request.max_tokens, longest), 0))


def _auto_retry_delay(error: ModelError, parked_retry: timedelta) -> timedelta | None:
    """Return the delay after which a parked run retries, or None if the error is not transient.

    Never shorter than the provider's own delay. Spread by chance, so that parked runs do not return together.
    """
    if not RULES[error.kind].transient:
        return None
    chance = random.random()  # noqa: S311 - no secret
    delay = sensible_delay(error.retry_after)
    if error.kind == "circuit_open" and delay is not None:
        # By then this worker's circuit admits a probe. Another worker's may admit the call sooner.
        return max(delay, parked_retry / 2) * (1 + chance / 2)
    if delay is not None:
        return max(delay, parked_retry) * (1 + chance)
    return parked_retry * (0.5 + chance)


async def _close(events: AsyncIterator[ModelEvent]) -> None:
    """Close the provider's connection; an error in closing never replaces the reply."""
    if isinstance(events, AsyncGenerator):
        try:
            await events.aclose()
        except Exception:
            activity.logger.warning("a model's stream could not be closed", exc_info=True)
