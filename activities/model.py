"""Model call: an activity that streams the reply and reports the partial text in heartbeats.

Theory of operation. An activity attempt is `call_model`. It resolves the run's spec and messages from the
worker's cache (`Transcripts`), builds the provider's request, waits for admission (`Traffic`), and reads the
stream. Only a `Reply` event is an answer. The reply is checked once, here, so that replay reads the result of
the check instead of judging again.

Usage is never lost: each attempt reports what it has spent in its heartbeats, and the next attempt, or the
failure, adds it up. Every exception leaves as an ApplicationError whose type is an `ErrorKind`.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from perdure.agent import Agent
from perdure.blobs import BlobStore, DamagedBlobError
from perdure.errors import ErrorKind, ModelError
from perdure.fitting import fit_results, most_result_tokens
from perdure.hooks import Deny, EndTurn, HookedModelCall, HookedRun, Retry
from perdure.messages import (
    Message,
    Part,
    ReplyMeta,
    Text,
    ToolCall,
    Usage,
    estimated_tokens,
)
from perdure.model import (
    Model,
    ModelRequest,
    Reply,
    ToolDefinition,
)
from perdure.planning import PLAN_TOOL
from perdure.swarm import HANDOFF_TOOL
from perdure.texts import fix_surrogates
from perdure.wire.effects import ModelFailure, ModelInput, ModelOutcome, Progress
from perdure.wire.names import CALL_MODEL
from perdure.wire.spec import AgentSpec, ModelSpec
from perdure.withheld import without_withheld

from .attempt import (
    EarlierAttempts,
    ModelAttempt,
    ReservationSpent,
    as_model_error,
    earlier_attempts,
    progress_before,
    stopped_call,
)
from .content.attachments import readable_messages
from .content.plain import overflow_of, plain_request
from .content.reply import FINAL_ANSWER_TOOL, READ_BACK_TOOL, READ_RESULT_TOOL, CheckedReply, check_reply
from .content.summary import checked_summary, summary_request, with_summary
from .content.transcripts import ModelView, Transcripts
from .heartbeat import Heartbeats, worker_is_ending
from .hooks import HookFailed, HookRunner
from .providers.addresses import KnownAddresses, known_addresses
from .reply_bound import MOST_SHORTENINGS, shorter_bound
from .resources import WorkerResources
from .telemetry import model_span
from .traffic.admission import Traffic
from .traffic.circuit import CircuitOpen, Ticket
from .traffic.rates import Throttled

_QUIET_BEAT = timedelta(seconds=1)
"""Heartbeat interval of a call whose text nobody streams."""


@dataclass(frozen=True, kw_only=True)
class ModelCalls:
    """Activity `call_model`, with the models that this worker can reach."""

    models: Mapping[str, Model]
    agents: Mapping[str, Agent]
    transcripts: Transcripts
    blobs: BlobStore
    traffic: Traffic = field(default_factory=Traffic)
    progress_interval: timedelta = timedelta(milliseconds=150)
    model_hosts: tuple[str, ...] = ()
    """Addresses, beside those of the agents, to which the worker's keys may go."""
    hooks: HookRunner = field(default_factory=lambda: HookRunner(agents={}))
    parked_retry: timedelta = timedelta(seconds=30)
    """Mean delay before a parked run retries after a transient failure."""

    @cached_property
    def addresses(self) -> KnownAddresses:
        """Addresses to which the worker's keys may go."""
        return known_addresses(self.agents.values(), self.model_hosts)

    @activity.defn(name=CALL_MODEL)
    async def call_model(self, call: ModelInput) -> ModelOutcome:
        """Call the model once; a stop request ends the call early and keeps the partial text.

        Raises:
            ApplicationError: its type is an ErrorKind, its detail a ModelFailure.

        """
        before = earlier_attempts()
        attempt: ModelAttempt | None = None

        def progress(seq: int, window: int) -> Progress:
            if attempt is None:
                # The call may be sent after this, and the worker may die then: this attempt is unheard until it tells.
                return progress_before(call, seq, replace(before, unheard=before.unheard + 1))
            return attempt.progress(seq, window)

        # Heartbeats begin before the request is built: its messages and blobs may have to be fetched
        # from the run or from a store, and a stop request must arrive meanwhile.
        async with Heartbeats(progress, self.progress_interval if call.stream else _QUIET_BEAT):
            try:
                spec = await self.transcripts.get_spec(call.spec)
                view = await self.transcripts.get_view(call)
                view = replace(view, messages=_fit_messages(spec, call, view))
            except ApplicationError as error:
                raise _add_usage(call, error, before) from None
            except asyncio.CancelledError:
                if not _stop_was_requested():
                    raise
                raise stopped_call(before) from None
            attempt = ModelAttempt(
                call=call,
                spec=spec,
                model=_model_for(spec, call),
                before=before,
                parked_retry=self.parked_retry,
            )
            lack = self._find_lack(attempt)
            if lack is not None:
                raise attempt.not_served(lack)
            try:
                return await self._run(attempt, view)
            finally:
                self.transcripts.count_kept()

    def _find_lack(self, attempt: ModelAttempt) -> ModelError | None:
        """Return what this worker does not have of the call: its provider, or the agent whose hooks must see it."""
        provider, agent = attempt.model.config.provider, attempt.call.agent
        if provider not in self.models:
            known = ", ".join(sorted(self.models))
            return ModelError("not_found", f"no provider {provider!r} on this worker; there are: {known}")
        is_hooked = {"before_model", "after_model"}.intersection(attempt.spec.hooks)
        if is_hooked and not attempt.call.summarize and not self.hooks.serves(agent):
            return ModelError("hook_failed", f"the agent {agent!r} and its hooks are not on this worker")
        return None

    async def _run(self, attempt: ModelAttempt, view: ModelView) -> ModelOutcome:
        """Build the request and call the model; every error leaves as an ApplicationError of its kind."""
        try:
            if attempt.call.summarize:
                config = attempt.model.config
                request = attempt.admit(summary_request(attempt.spec, config, attempt.call, view))
                return await self._call_with_room(attempt, request)
            request = attempt.admit(await self._build_request(attempt, view))
            hooked = await self._ask_before(attempt, request)
            if isinstance(hooked, Reply):
                return self._outcome(attempt, request, hooked)
            return await self._call_with_room(attempt, hooked)
        except ApplicationError:
            raise
        except ReservationSpent:
            raise attempt.reservation_spent() from None
        except asyncio.CancelledError:
            if _stop_was_requested():
                raise attempt.stop_error() from None
            if not worker_is_ending():
                raise
            # A failure and not a cancellation: the run judges a call by its last attempt's error.
            raise attempt.failure(ModelError("connection", "the worker was stopped in mid-call")) from None
        except Exception as error:
            if not isinstance(error, ModelError):
                activity.logger.exception("model call failed with an unexpected exception")
            # Not "from error": with a provider's whole chain of causes the failure passes the
            # server's size limit, and the server then keeps nothing of it.
            raise attempt.failure(as_model_error(error)) from None

    async def _call_with_room(self, attempt: ModelAttempt, request: ModelRequest) -> ModelOutcome:
        """Call the model; with a smaller bound of the reply where the provider says that it is too large."""
        for _ in range(MOST_SHORTENINGS):
            try:
                return await self._call_or_use_words(attempt, request)
            except ModelError as error:
                bound = shorter_bound(error, request.max_tokens)
                if bound is None:
                    raise
                attempt.note_refusal(f"max_tokens {request.max_tokens} made {bound}", error)
                request = attempt.admit_again(replace(request, max_tokens=bound), error)
        return await self._call_or_use_words(attempt, request)

    async def _call_or_use_words(self, attempt: ModelAttempt, request: ModelRequest) -> ModelOutcome:
        """Call the model; once more in plain form if the provider refuses the request.

        A later model of the chain, which may take it as it is, goes first.
        """
        try:
            return await self._call_with_span(attempt, request)
        except ModelError as error:
            if error.kind == "bad_request" and request.tool_choice == "required":
                # Some models cannot be forced, or not while they think. The request lists nothing else to call.
                free = attempt.admit_again(replace(request, tool_choice="auto"), error)
                return await self._call_or_use_words(attempt, free)
            # A bound of the reply that is too large is no fault of the messages.
            is_about_bound = shorter_bound(error, request.max_tokens) is not None
            refused = error.kind in ("bad_request", "too_large")
            if not refused or is_about_bound or attempt.can_fall_back(error.kind):
                raise
            plain = plain_request(request, str(error))
            if plain is None:
                raise overflow_of(error) from None
            attempt.note_refusal("asked once more in plain form", error)
            request = attempt.admit_again(plain.request, error)
        attempt.refused = plain.refused
        try:
            return await self._call_with_span(attempt, request)
        except ModelError as error:
            attempt.refused = ()  # it was refused for something else
            raise overflow_of(error) from None

    async def _build_request(self, attempt: ModelAttempt, view: ModelView) -> ModelRequest:
        call, spec = attempt.call, attempt.spec
        own = attempt.model.instructions
        instructions = spec.instructions if own is None else own
        if call.note:
            instructions = f"{instructions}\n\n{call.note}".strip()
        blobs = await self._read_blobs(view.blobs)
        return ModelRequest(
            config=attempt.model.config,
            instructions=instructions,
            messages=readable_messages(with_summary(call, view), blobs, call.refused),
            tools=_tool_definitions(spec, call),
            tool_choice=call.tool_choice,
            max_tokens=call.max_tokens,
            step=call.step,
            user=call.user,
            blobs=blobs,
        )

    async def _read_blobs(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the blobs by name, without those that are gone or damaged; the model is told of these in words."""
        found: dict[str, bytes] = {}
        for name in names:
            try:
                found[name] = await self.blobs.get(name)
            except KeyError:
                continue
            except DamagedBlobError as error:
                activity.logger.error("%s", error)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                raise ModelError("storage", f"a picture or document cannot be read ({why})") from None
        return found

    async def _call_with_span(self, attempt: ModelAttempt, request: ModelRequest) -> ModelOutcome:
        """Call the model within its span; a call that a person stopped gives its partial text."""
        model = self.models[request.config.provider]
        with model_span(attempt.model.config, attempt.call, request) as span:
            try:
                reply = await self._read_reply(attempt, model, request)
                reply = await self._ask_after(attempt, request, reply)
                outcome = self._outcome(attempt, request, reply)
            except asyncio.CancelledError:
                # An attempt that the server gave up is booked, and recorded, by the next one.
                if _stop_was_requested() or worker_is_ending():
                    span.record_failure(*attempt.spending())
                raise
            except Exception as error:
                span.record_failure(*attempt.spending(as_model_error(error)))
                raise
            span.record(outcome)
            return outcome

    async def _read_reply(self, attempt: ModelAttempt, model: Model, request: ModelRequest) -> Reply:
        """Return the model's reply; what there is of it when a person stops the call, or its refusal by a filter."""
        try:
            return await self._call_guarded(attempt, model, request)
        except asyncio.CancelledError:
            # Otherwise the worker shuts down, or the server gave this attempt up: it is made again.
            if not _stop_was_requested():
                raise
            return attempt.partial_reply()
        except ModelError as error:
            if error.kind != "filtered" or attempt.can_fall_back("filtered"):
                raise
            return attempt.filtered_reply(error)

    async def _ask_before(self, attempt: ModelAttempt, request: ModelRequest) -> ModelRequest | Reply:
        """Ask the hooks before the call; return the request to send, or the reply that ends the turn."""
        agent = attempt.call.agent
        if "before_model" not in attempt.spec.hooks:
            return request
        hooked = HookedModelCall(run=_hooked_run(attempt.call, self.hooks.resources), request=request)
        try:
            round_ = await self.hooks.ask(agent, "before_model", hooked, _with_instructions)
        except HookFailed as error:
            raise ModelError("hook_failed", str(error)) from None
        attempt.records += round_.records
        if isinstance(round_.verdict, EndTurn):
            return Reply(parts=(Text(text=round_.verdict.text),), stop="guardrail", usage=Usage())
        if not round_.is_replaced:
            return request
        return replace(request, instructions=str(round_.replaced))

    async def _ask_after(self, attempt: ModelAttempt, request: ModelRequest, reply: Reply) -> Reply:
        """Ask the hooks after the call; return the reply of which the rest takes effect."""
        agent = attempt.call.agent
        # A summary is no answer: it takes no effect, and shows nothing that the model has not seen.
        is_theirs = reply.withheld and not reply.usage.output_tokens  # the provider's own words
        skipped = reply.stop in ("cancelled", "context_overflow") or bool(attempt.call.summarize) or is_theirs
        if skipped or "after_model" not in attempt.spec.hooks:
            return reply
        hooked = HookedModelCall(
            run=_hooked_run(attempt.call, self.hooks.resources),
            request=request,
            text="".join(part.text for part in reply.parts if isinstance(part, Text)),
            calls=tuple(part for part in reply.parts if isinstance(part, ToolCall)),
        )
        try:
            round_ = await self.hooks.ask(agent, "after_model", hooked, _with_text)
        except HookFailed as error:
            raise ModelError("hook_failed", str(error), usage=reply.usage) from None
        attempt.records += round_.records
        if round_.is_replaced:
            reply = replace(reply, parts=_replace_text(reply.parts, str(round_.replaced)))
        match round_.verdict:
            case EndTurn():
                return replace(reply, parts=(Text(text=round_.verdict.text),), stop="guardrail")
            case Deny():
                attempt.problem = f"Your answer was refused: {round_.verdict.reason}"
                reply = replace(reply, parts=_replace_text(reply.parts, "(withheld)"))
            case Retry():
                attempt.problem = round_.verdict.guidance
            case _:
                return reply
        # A reply that takes no effect ends nothing, whatever it stopped for: the model tries again.
        return replace(reply, parts=_with_problem(reply.parts, attempt.problem), stop="end_turn")

    async def _call_guarded(self, attempt: ModelAttempt, model: Model, request: ModelRequest) -> Reply:
        """Wait for admission, read the reply, and record the result with the circuit and the rate limits."""
        circuits = self.traffic.circuits
        limits = (request.config.provider, request.config.name)
        self.addresses.check(request.config)
        # Settings are checked before admission: a call that is never sent must not occupy a probe.
        model.check(request.config)
        ticket = await self._admit(attempt, request, limits)
        try:
            reply = await attempt.stream_reply(model, request)
        except ModelError as error:
            circuits.record_failure(ticket, error.kind, error.retry_after)
            raise
        except BaseException:
            # A cancelled call says nothing about the provider's health.
            circuits.release(ticket)
            raise
        circuits.record_success(ticket)
        await self.traffic.rates.count_tokens(limits, reply.usage.output_tokens)
        return reply

    async def _admit(self, attempt: ModelAttempt, request: ModelRequest, limits: tuple[str, ...]) -> Ticket:
        """Wait until circuit and rate limits admit the call; a refusal becomes a ModelError."""
        is_last_model = not attempt.can_fall_back("circuit_open")
        # Only the first attempt is forced, and only where no other model could answer. A second one
        # would press on a provider that the first has just seen fail.
        force_once = is_last_model and attempt.call.force_once and activity.info().attempt == 1
        try:
            return await self.traffic.admit(
                request.config.name,
                limits,
                lambda: sum(map(estimated_tokens, request.messages)),
                wait_out_outage=is_last_model,
                force_once=force_once,
            )
        except CircuitOpen as refusal:
            kind: ErrorKind = "rate_limited" if refusal.by_provider else "circuit_open"
            raise ModelError(kind, str(refusal), retry_after=refusal.park_for) from None
        except Throttled as refusal:
            raise ModelError("throttled", str(refusal), retry_after=refusal.retry_after) from None

    def _outcome(self, attempt: ModelAttempt, request: ModelRequest, reply: Reply) -> ModelOutcome:
        """Return the checked reply as the activity's result, and remember it for the next step."""
        call, model = attempt.call, attempt.model
        if call.summarize:
            text = "".join(part.text for part in reply.parts if isinstance(part, Text))
            summary = checked_summary(fix_surrogates(text), is_cut=reply.stop == "max_tokens")
            checked = CheckedReply(parts=[Text(text=summary)])
        else:
            agent = self.agents.get(call.agent)
            checked = check_reply(reply, call.step, attempt.spec, request.tools, agent)
        meta = ReplyMeta(
            step=call.step,
            model=model.config.name,
            usage=reply.usage,
            cost_microusd=model.price.cost_microusd(reply.usage) if model.price else None,
            stop=reply.stop,
            duration_ms=round((time.monotonic() - attempt.began) * 1000),
            attempts=activity.info().attempt,
            request_id=reply.request_id,
            request_digest=reply.request_digest,
            errors=attempt.refusals,
            hooks=attempt.records,
            withheld=reply.withheld,
        )
        message = Message(role="assistant", parts=checked.parts, meta=meta)
        if call.summarize:
            self.transcripts.add_summary(message.text.strip())
        else:
            self.transcripts.add_reply(call.view.length, message)
        return ModelOutcome(
            message=message,
            stop=reply.stop,
            output=None if attempt.problem else checked.output,
            output_problem=attempt.problem or checked.problem,
            wasted=attempt.before,
            wasted_microusd=attempt.cost_microusd(attempt.before),
            refused=attempt.refused,
        )


def _model_for(spec: AgentSpec, call: ModelInput) -> ModelSpec:
    model = spec.models[call.model]
    return spec.summary_model or model if call.summarize else model


def _add_usage(call: ModelInput, error: ApplicationError, before: EarlierAttempts) -> ApplicationError:
    """Return the error with the usage of earlier attempts added: this one never reached the model."""
    failure = next((detail for detail in error.details if isinstance(detail, ModelFailure)), None)
    failure = failure or ModelFailure(kind=error.type or "bug", message=error.message)
    # The next attempt adds up from here.
    activity.heartbeat(progress_before(call, 0, before))
    return ApplicationError(
        error.message,
        failure.model_copy(update={"wasted": failure.wasted + before.spent, "unheard": before.unheard}),
        type=error.type,
        non_retryable=error.non_retryable,
        next_retry_delay=error.next_retry_delay,
        category=error.category,
    )


def _hooked_run(call: ModelInput, resources: WorkerResources) -> HookedRun:
    run_id = str(activity.info().workflow_id)
    return HookedRun(
        run_id=run_id,
        agent=call.agent,
        user=call.user,
        resources=resources.of(call.agent),
        step=call.step,
    )


def _with_instructions(call: HookedModelCall, value: Any) -> HookedModelCall:
    return replace(call, request=replace(call.request, instructions=str(value)))


def _with_text(call: HookedModelCall, value: Any) -> HookedModelCall:
    return replace(call, text=str(value))


def _replace_text(parts: tuple[Part, ...], text: str) -> tuple[Part, ...]:
    """Return the parts with one text in place of all their texts."""
    return (Text(text=text), *(part for part in parts if not isinstance(part, Text)))


def _with_problem(parts: tuple[Part, ...], problem: str) -> tuple[Part, ...]:
    """Return the parts with their tool calls refused: none of them is made."""
    return tuple(
        part.model_copy(update={"problem": problem}) if isinstance(part, ToolCall) else part for part in parts
    )


def _fit_messages(spec: AgentSpec, call: ModelInput, view: ModelView) -> tuple[Message, ...]:
    config = spec.models[call.model].config
    return fit_results(
        without_withheld(view.messages),
        most_result_tokens(spec.context, config, call.result_tokens),
        keep=True,
    )


def _stop_was_requested() -> bool:
    details = activity.cancellation_details()
    return details is not None and details.cancel_requested


def _tool_definitions(spec: AgentSpec, call: ModelInput) -> tuple[ToolDefinition, ...]:
    """Return the agent's tools in their fixed order, then ours: the provider's prompt cache counts on it.

    A call that must give the output lists the final answer alone: a provider may be unable to force one of several.
    """
    tools = [tool.definition for tool in spec.tools]
    if spec.output_schema is not None:
        final_answer = FINAL_ANSWER_TOOL.model_copy(update={"input_schema": spec.output_schema})
        if call.tool_choice == "required":
            return (final_answer,)
        tools.append(final_answer)
    if spec.planning:
        tools.append(PLAN_TOOL)
    if call.offer_handoff:
        tools.append(HANDOFF_TOOL)
    if call.offer_read_result:
        tools.append(READ_RESULT_TOOL)
    if call.offer_read_back:
        tools.append(READ_BACK_TOOL)
    return tuple(tools)
