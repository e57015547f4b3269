"""The model call: one activity, streaming, with heartbeats that carry the partial text."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from perdure.agent import Agent
from perdure.blobs import BlobStore
from perdure.errors import RULES, ErrorKind, ModelError
from perdure.messages import Message, ReplyMeta, Text, Usage, estimate_tokens, estimated_tokens
from perdure.model import (
    Model,
    ModelEvent,
    ModelRequest,
    Reply,
    TextDelta,
    ThinkingDelta,
    ToolDefinition,
    UsageSoFar,
)
from perdure.planning import PLAN_TOOL
from perdure.swarm import HANDOFF_TOOL
from perdure.texts import fix_surrogates, truncate_middle
from perdure.wire.effects import ModelFailure, ModelInput, ModelOutcome, Progress
from perdure.wire.names import CALL_MODEL
from perdure.wire.spec import AgentSpec, ModelSpec

from .content.redact import redact
from .content.reply import FINAL_ANSWER_TOOL, READ_RESULT_TOOL, checked
from .content.transcripts import Sight, Transcripts
from .heartbeat import Heart, last_progress, worker_is_ending
from .telemetry import model_span
from .traffic.admission import Traffic
from .traffic.circuit import CircuitOpen
from .traffic.rates import Throttled

MOST_PATIENCE = timedelta(minutes=10)
"""A provider that asks for a longer wait is treated as out of order: fall back or park."""


@dataclass(frozen=True, kw_only=True)
class ModelCalls:
    """The models this worker can reach."""

    models: Mapping[str, Model]
    agents: Mapping[str, Agent]
    transcripts: Transcripts
    blobs: BlobStore
    traffic: Traffic = field(default_factory=Traffic)
    progress_interval: timedelta = timedelta(milliseconds=150)
    first_nap: timedelta = timedelta(seconds=30)
    """About so long after a failure that may pass, a parked run tries again."""

    @activity.defn(name=CALL_MODEL)
    async def call_model(self, want: ModelInput) -> ModelOutcome:
        """Ask the model once. A stop from outside ends it early and keeps what was said.

        Raises:
            ApplicationError: its type is an ErrorKind, its detail a ModelFailure.

        """
        before = _spent_before()
        call: _Call | None = None

        def progress(seq: int, window: int) -> Progress:
            return _progress(want, seq, spent=before) if call is None else call.progress(seq, window)

        # From the first moment: what is to be sent may have to be fetched, from a worker or a store.
        async with Heart(progress, self.progress_interval if want.stream else timedelta(seconds=1)):
            try:
                spec = await self.transcripts.spec(want.spec_digest)
                sight = await self.transcripts.view(want)
            except ApplicationError as error:
                raise _with_what_was_spent(error, before) from None
            chosen = spec.models[want.model]
            call = _Call(want=want, spec=spec, chosen=chosen, before=before, first_nap=self.first_nap)
            return await self._made(call, sight)

    async def _made(self, call: "_Call", sight: Sight) -> ModelOutcome:
        try:
            request = await self._request(call, sight)
            return await self._answer(call, request)
        except ApplicationError:
            raise
        except asyncio.CancelledError:
            if not worker_is_ending():
                raise
            # Said as it is: the last attempt's error decides what becomes of the run.
            raise call.failure(ModelError("connection", "the worker was stopped in mid-call")) from None
        except ModelError as error:
            # Not "from error": with a provider's whole chain of causes the failure passes the
            # server's size limit, and the server then keeps nothing of it.
            raise call.failure(error) from None
        except Exception as error:
            activity.logger.exception("model call failed in a way not foreseen")
            raise call.failure(ModelError("bug", f"{type(error).__name__}: {error}")) from None

    async def _request(self, call: "_Call", sight: Sight) -> ModelRequest:
        want, spec = call.want, call.spec
        instructions = spec.instructions
        if want.note:
            instructions = f"{instructions}\n\n{want.note}".strip()
        return ModelRequest(
            config=call.chosen.config,
            instructions=instructions,
            messages=sight.messages,
            tools=_definitions(spec, want),
            tool_choice=want.tool_choice,
            max_tokens=want.max_tokens,
            step=want.step,
            user=want.user,
            blobs={name: await self._blob(name) for name in sight.blobs},
        )

    async def _blob(self, name: str) -> bytes:
        try:
            return await self.blobs.get(name)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise ModelError("storage", f"a picture or document cannot be read ({why})") from None

    async def _answer(self, call: "_Call", request: ModelRequest) -> ModelOutcome:
        model = self.models.get(request.config.provider)
        if model is None:
            known = ", ".join(sorted(self.models))
            raise ModelError("not_found", f"no provider {request.config.provider!r}; there are: {known}")
        with model_span(call.chosen.config, call.want, request) as span:
            try:
                reply = await self._asked(call, model, request)
            except asyncio.CancelledError:
                if not _asked_to_stop():
                    raise  # the worker is shutting down, or we were given up for dead: try again
                reply = call.partial()
            outcome = self._outcome(call, request, reply)
            span.done(outcome)
            return outcome

    async def _asked(self, call: "_Call", model: Model, request: ModelRequest) -> Reply:
        """Ask, when it is this call's turn; and let others know how it went."""
        name, circuits = request.config.name, self.traffic.circuits
        limits = (request.config.provider, name)
        model.check(request.config)
        try:
            waits = not call.can_fall_back("circuit_open")
            # Once, and where nobody else could answer: then the outage is what it was.
            force_once = waits and call.want.force_once and activity.info().attempt == 1
            ticket = await self.traffic.admit(
                name, limits, lambda: _reads(request), waits=waits, force_once=force_once
            )
        except CircuitOpen as refusal:
            kind: ErrorKind = "rate_limited" if refusal.asked_for else "circuit_open"
            raise ModelError(kind, str(refusal), retry_after=refusal.known_after) from None
        except Throttled as refusal:
            raise ModelError("throttled", str(refusal), retry_after=refusal.retry_after) from None
        try:
            reply = await call.listen(model, request)
        except ModelError as error:
            circuits.failed(ticket, error.kind, error.retry_after)
            raise
        except BaseException:
            circuits.left(ticket)
            raise
        circuits.succeeded(ticket)
        await self.traffic.rates.spent(limits, reply.usage.output_tokens)
        return reply

    def _outcome(self, call: "_Call", request: ModelRequest, reply: Reply) -> ModelOutcome:
        want = call.want
        read = checked(reply, want.step, call.spec, request.tools, self.agents.get(want.agent))
        cost = call.chosen.price.cost_microusd(reply.usage) if call.chosen.price else None
        meta = ReplyMeta(
            step=want.step,
            model=call.chosen.config.name,
            usage=reply.usage,
            cost_microusd=cost,
            stop=reply.stop,
            duration_ms=round((time.monotonic() - call.began) * 1000),
            attempts=activity.info().attempt,
            request_id=reply.request_id,
            request_digest=reply.request_digest,
        )
        message = Message(role="assistant", parts=read.parts, meta=meta)
        self.transcripts.add_reply(want.view.length, message)
        return ModelOutcome(
            message=message,
            stop=reply.stop,
            output=read.output,
            output_problem=read.problem,
            wasted=call.before,
            wasted_microusd=call.wasted_microusd(call.before),
        )


class _Call:
    """One attempt: what it has heard so far, and what it and those before it have cost."""

    def __init__(
        self,
        *,
        want: ModelInput,
        spec: AgentSpec,
        chosen: ModelSpec,
        before: Usage,
        first_nap: timedelta,
    ) -> None:
        self.first_nap = first_nap
        self.want = want
        self.spec = spec
        self.chosen = chosen
        self.before = before
        self.began = time.monotonic()
        self.text = ""
        self.usage: Usage | None = None

    async def listen(self, model: Model, request: ModelRequest) -> Reply:
        """Hear the model out. Only a Reply is an answer."""
        try:
            async with asyncio.timeout(request.config.timeout.total_seconds()):
                return await self._heard(model.stream(request))
        except TimeoutError:
            raise ModelError("timeout", f"no whole answer within {request.config.timeout}") from None

    async def _heard(self, events: AsyncIterator[ModelEvent]) -> Reply:
        try:
            async for event in events:
                match event:
                    case TextDelta():
                        self.text += fix_surrogates(event.text)
                    case UsageSoFar():
                        self.usage = event.usage
                    case Reply():
                        return event
                    case ThinkingDelta():
                        pass
        finally:
            await _close(events)
        raise ModelError("stream_cut", "the answer stopped before its end")

    def progress(self, seq: int, window: int) -> Progress:
        """What to tell those who watch."""
        offset = max(len(self.text) - window, 0)
        text = self.text[offset:] if self.want.stream else ""
        return _progress(self.want, seq, offset=offset, text=text, spent=self.before + self.estimate())

    def estimate(self) -> Usage:
        """What this attempt has cost up to now: a cut call has been paid for all the same."""
        if self.usage is None:
            return Usage()
        heard = estimate_tokens(len(self.text.encode()))
        output = max(self.usage.output_tokens, heard)
        return self.usage.model_copy(update={"output_tokens": output, "estimated": True})

    def partial(self) -> Reply:
        """What was said when the call was stopped, as an answer."""
        parts = (Text(text=self.text),) if self.text else ()
        return Reply(parts=parts, stop="cancelled", usage=self.estimate())

    def wasted_microusd(self, usage: Usage) -> int:
        return self.chosen.price.cost_microusd(usage) if self.chosen.price else 0

    def can_fall_back(self, kind: ErrorKind) -> bool:
        """Whether another model of the chain is taken on such an error."""
        others = self.spec.models[self.want.model + 1 :]
        return any(RULES[kind].falls_back if one.on is None else kind in one.on for one in others)

    def failure(self, error: ModelError) -> ApplicationError:
        """The error as Temporal is to take it. Also leaves the cost where the next attempt finds it."""
        spent = self.before + (error.usage or self.estimate())
        activity.heartbeat(_progress(self.want, 0, spent=spent))
        message = truncate_middle(redact(str(error)))
        failure = ModelFailure(
            kind=error.kind,
            message=message,
            wasted=spent,
            wasted_microusd=self.wasted_microusd(spent),
            retry_in=_heals_after(error, self.first_nap),
        )
        activity.logger.warning("model call failed: %s: %s", error.kind, message)
        too_long = error.retry_after is not None and error.retry_after > MOST_PATIENCE
        return ApplicationError(
            message,
            failure,
            type=error.kind,
            non_retryable=too_long or not RULES[error.kind].retried,
            # Said in one line below; Temporal would log its own traceback of it.
            category=ApplicationErrorCategory.UNSPECIFIED
            if error.kind == "bug"
            else ApplicationErrorCategory.BENIGN,
            next_retry_delay=None if too_long else error.retry_after,
        )


def _with_what_was_spent(error: ApplicationError, before: Usage) -> ApplicationError:
    """The last attempt may not even reach the run: what those before it had cost is told all the same."""
    failure = error.details[0] if error.details else None
    if not isinstance(failure, ModelFailure):
        return error
    return ApplicationError(
        error.message,
        failure.model_copy(update={"wasted": failure.wasted + before}),
        type=error.type,
        non_retryable=error.non_retryable,
        next_retry_delay=error.next_retry_delay,
        category=error.category,
    )


def _progress(want: ModelInput, seq: int, **more: Any) -> Progress:
    return Progress(call=f"step-{want.step}", attempt=activity.info().attempt, seq=seq, **more)


def _reads(request: ModelRequest) -> int:
    return sum(estimated_tokens(message) for message in request.messages)


def _heals_after(error: ModelError, first_nap: timedelta) -> timedelta | None:
    """When to look again, for what may pass: never before the provider says, and not all at once."""
    if not RULES[error.kind].transient:
        return None
    chance = random.random()  # noqa: S311 - no secret
    if error.kind == "circuit_open" and error.retry_after is not None:
        # By then this worker lets one in to see; and another may know better.
        return max(error.retry_after, first_nap / 2) * (1 + chance / 2)
    if error.retry_after is not None:
        return max(error.retry_after, first_nap) * (1 + chance)
    return first_nap * (0.5 + chance)


async def _close(events: AsyncIterator[ModelEvent]) -> None:
    """Close the provider's connection. What goes wrong in that changes nothing that was said."""
    if isinstance(events, AsyncGenerator):
        try:
            await events.aclose()
        except Exception:
            activity.logger.warning("a model's stream could not be closed", exc_info=True)


def _asked_to_stop() -> bool:
    details = activity.cancellation_details()
    return details is not None and details.cancel_requested


def _spent_before() -> Usage:
    progress = last_progress()
    return progress.spent if progress else Usage()


def _definitions(spec: AgentSpec, want: ModelInput) -> tuple[ToolDefinition, ...]:
    """The agent's tools, in their fixed order, then ours: the provider's prompt cache counts on it."""
    tools = [tool.definition for tool in spec.tools]
    if spec.output_schema is not None:
        tools.append(FINAL_ANSWER_TOOL.model_copy(update={"input_schema": spec.output_schema}))
    if spec.planning:
        tools.append(PLAN_TOOL)
    if want.offer_handoff:
        tools.append(HANDOFF_TOOL)
    if want.offer_read_result:
        tools.append(READ_RESULT_TOOL)
    return tuple(tools)
