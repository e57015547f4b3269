"""What a model call and a tool call report of themselves: a span, metrics, and names on log lines."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from structlog.contextvars import bound_contextvars
from temporalio import activity

from perdure.messages import Message, ToolResult
from perdure.model import ModelConfig, ModelRequest
from perdure.wire.effects import ModelInput, ModelOutcome, ToolInput

from . import genai

CAPTURE_CONTENT: Final[ContextVar[bool]] = ContextVar("perdure_capture_content", default=False)
"""Whether messages, arguments and results may stand in spans; set by the worker for each activity."""


class ModelSpan:
    """A model call being reported."""

    def __init__(self, span: genai.CallSpan, want: ModelInput) -> None:
        self._span = span
        self._want = want

    def record(self, outcome: ModelOutcome) -> None:
        """The call gave an answer, a partial one included."""
        meta = outcome.message.meta
        if meta is not None:
            genai.record_answer(
                self._span,
                agent=self._want.agent,
                model=meta.model.partition(":")[2] or meta.model,
                request_id=meta.request_id,
                finish=outcome.stop,
                usage=meta.usage,
                cost_microusd=meta.cost_microusd,
            )
        if self._span.recording and CAPTURE_CONTENT.get():
            self._span.set_content("gen_ai.output.messages", [_plain(outcome.message)])


class ToolSpan:
    """A tool call being reported."""

    def __init__(self, span: genai.CallSpan) -> None:
        self._span = span

    def record(self, result: ToolResult) -> None:
        """The call gave something for the model; an error as text counts as a failed call."""
        if result.is_error:
            self._span.set_error("tool_error", "the model was told of an error")
        if self._span.recording and CAPTURE_CONTENT.get():
            self._span.set_content("gen_ai.tool.call.result", result.text)


@contextmanager
def model_span(config: ModelConfig, want: ModelInput, request: ModelRequest) -> Generator[ModelSpan]:
    """Report one attempt of a model call; an exception ends it as failed."""
    settings = {
        "max_tokens": request.max_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "stop_sequences": config.stop_sequences or None,
    }
    with (
        bound_contextvars(agent=want.agent, step=want.step, model=config.name),
        genai.model_call(
            config.provider, config.model, agent=want.agent, run_id=_run_id(), settings=settings
        ) as span,
    ):
        span.set({"perdure.step": want.step, "perdure.attempt": _attempt()})
        if span.recording and CAPTURE_CONTENT.get():
            span.set_content("gen_ai.system_instructions", request.instructions)
            span.set_content("gen_ai.input.messages", [_plain(message) for message in request.messages])
        yield ModelSpan(span, want)


@contextmanager
def tool_span(want: ToolInput) -> Generator[ToolSpan]:
    """Report one attempt of a tool call; an exception ends it as failed."""
    with (
        bound_contextvars(agent=want.agent, call_id=want.call_id, tool=want.tool),
        genai.tool_call(want.tool, call_id=want.call_id, agent=want.agent, run_id=_run_id()) as span,
    ):
        span.set({"perdure.attempt": _attempt()})
        if span.recording and CAPTURE_CONTENT.get():
            span.set_content("gen_ai.tool.call.arguments", want.arguments)
        yield ToolSpan(span)


def _run_id() -> str:
    return (activity.info().workflow_id or "") if activity.in_activity() else ""


def _attempt() -> int:
    return activity.info().attempt if activity.in_activity() else 1


def _plain(message: Message) -> dict[str, Any]:
    """A message as the conventions want it, without the bytes of attachments."""
    return message.model_dump(
        mode="json",
        include={"role", "parts"},
        exclude={"parts": {"__all__": {"data", "signature", "redacted"}}},
    )
