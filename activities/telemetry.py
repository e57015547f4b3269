"""Telemetry of model and tool calls: a span and metrics for each attempt, and names on its log lines."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from structlog.contextvars import bound_contextvars
from temporalio import activity

from perdure.messages import Message, ToolResult, Usage
from perdure.model import ModelConfig, ModelRequest
from perdure.wire.effects import ModelInput, ModelOutcome, ToolInput
from perdure.wire.spec import ModelSpec

from . import genai

CAPTURE_CONTENT: Final[ContextVar[bool]] = ContextVar("perdure_capture_content", default=False)
"""True if spans may hold messages, arguments and results; set by the worker for each activity."""


class ModelSpan:
    """Open span of a model call."""

    def __init__(self, span: genai.CallSpan, call: ModelInput) -> None:
        self._span = span
        self._call = call

    def record_failure(self, usage: Usage, cost_microusd: int) -> None:
        """Record what an attempt has spent that gave no answer: the provider counts it as well."""
        if usage.total_tokens:
            genai.record_usage(
                self._span.labels,
                self._call.agent,
                self._span.labels["gen_ai.request.model"],
                usage,
                cost_microusd,
            )

    def record(self, outcome: ModelOutcome) -> None:
        """Record the answer, complete or partial: its tokens and cost, and its content where allowed."""
        meta = outcome.message.meta
        if meta is not None:
            genai.record_answer(
                self._span,
                agent=self._call.agent,
                model=meta.model.partition(":")[2] or meta.model,
                request_id=meta.request_id,
                finish=outcome.stop,
                usage=meta.usage,
                cost_microusd=meta.cost_microusd,
            )
        if self._span.recording and CAPTURE_CONTENT.get():
            self._span.set_content("gen_ai.output.messages", [_without_media(outcome.message)])


class ToolSpan:
    """Open span of a tool call."""

    def __init__(self, span: genai.CallSpan) -> None:
        self._span = span

    def record(self, result: ToolResult) -> None:
        """Record the result; an error result counts as a failed call."""
        if result.is_error:
            self._span.set_error("tool_error", "the tool failed, and the model got an error result")
        if self._span.recording and CAPTURE_CONTENT.get():
            self._span.set_content("gen_ai.tool.call.result", result.text)


def record_usage(model: ModelSpec, agent: str, usage: Usage, cost_microusd: int) -> None:
    """Record what an attempt has spent that was cut off before it could record it itself."""
    config = model.config
    labels = genai.model_labels(config.provider, config.model) | {"error.type": "unheard"}
    genai.record_usage(labels, agent, config.model, usage, cost_microusd)


@contextmanager
def model_span(config: ModelConfig, call: ModelInput, request: ModelRequest) -> Generator[ModelSpan]:
    """Open the span of an attempt of a model call; an exception ends it as failed."""
    settings = {
        "max_tokens": request.max_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "stop_sequences": config.stop_sequences or None,
    }
    with (
        bound_contextvars(agent=call.agent, step=call.step, model=config.name),
        genai.model_call(
            config.provider, config.model, agent=call.agent, run_id=_run_id(), settings=settings
        ) as span,
    ):
        span.set({"perdure.step": call.step, "perdure.attempt": _attempt()})
        if span.recording and CAPTURE_CONTENT.get():
            span.set_content("gen_ai.system_instructions", request.instructions)
            span.set_content(
                "gen_ai.input.messages", [_without_media(message) for message in request.messages]
            )
        yield ModelSpan(span, call)


@contextmanager
def tool_span(call: ToolInput) -> Generator[ToolSpan]:
    """Open the span of an attempt of a tool call; an exception ends it as failed."""
    with (
        bound_contextvars(agent=call.agent, call_id=call.call_id, tool=call.tool),
        genai.tool_call(call.tool, call_id=call.call_id, agent=call.agent, run_id=_run_id()) as span,
    ):
        span.set({"perdure.attempt": _attempt()})
        if span.recording and CAPTURE_CONTENT.get():
            span.set_content("gen_ai.tool.call.arguments", call.arguments)
        yield ToolSpan(span)


def _run_id() -> str:
    return (activity.info().workflow_id or "") if activity.in_activity() else ""


def _attempt() -> int:
    return activity.info().attempt if activity.in_activity() else 1


def _without_media(message: Message) -> dict[str, Any]:
    """Return the message in the conventions' form, without the bytes of attachments."""
    return message.model_dump(
        mode="json",
        include={"role", "parts"},
        exclude={"parts": {"__all__": {"data", "signature", "redacted"}}},
    )
