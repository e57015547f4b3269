"""OpenTelemetry's GenAI conventions: spans and metrics, and every `gen_ai.` name of this package.

The conventions are in development and have renamed things before, so their names stand in this module only.
Without a tracer or meter provider all of this is a few no-op calls.
Source: open-telemetry/semantic-conventions-genai.
"""

import asyncio
import json
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakSet

from opentelemetry import metrics, trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue
from temporalio.exceptions import ApplicationError

from perdure.errors import ModelError
from perdure.messages import Usage

from .content.redact import redact
from .providers.registry import telemetry_name
from .threads import FunctionThreads
from .traffic.circuit import Circuits

SCOPE: Final = "perdure"
RUN_ID: Final = "gen_ai.conversation.id"
AGENT: Final = "gen_ai.agent.name"
STOP_REASON: Final = "perdure.stop_reason"

# Buckets as the conventions ask for them.
_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS: Final = tuple(4**power for power in range(14))
_STEPS: Final = (1, 2, 3, 5, 8, 12, 20, 30, 50, 100, 200)
_USD: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)

# Proxies until a provider is set; they reach it from then on.
_tracer = trace.get_tracer(SCOPE)
_meter = metrics.get_meter(SCOPE)
_model_seconds = _meter.create_histogram(
    "gen_ai.client.operation.duration",
    unit="s",
    description="Duration of model calls.",
    explicit_bucket_boundaries_advisory=_SECONDS,
)
_model_tokens = _meter.create_histogram(
    "gen_ai.client.token.usage",
    unit="{token}",
    description="Tokens of model calls; input includes cached tokens.",
    explicit_bucket_boundaries_advisory=_TOKENS,
)
_tool_seconds = _meter.create_histogram(
    "gen_ai.execute_tool.duration",
    unit="s",
    description="Duration of tool calls.",
    explicit_bucket_boundaries_advisory=_SECONDS,
)
# No unit "USD": Prometheus' exporter would make a suffix of it.
_cost = _meter.create_counter("perdure.cost", unit="{usd}", description="Dollars spent on models.")
_outcomes = _meter.create_counter(
    "perdure.run.outcomes", unit="{run}", description="Ended runs by stop reason."
)
_openings = _meter.create_counter(
    "perdure.circuit.openings", unit="{opening}", description="Times a circuit of a worker opened."
)
_lost_threads = _meter.create_counter(
    "perdure.thread.losses",
    unit="{thread}",
    description="Threads that went on running a function whose call was given up.",
)
_held_loops = _meter.create_counter(
    "perdure.event_loop.held", unit="s", description="Time in which a function held the worker's event loop."
)
_refusals = _meter.create_counter(
    "perdure.call.refusals",
    unit="{call}",
    description="Tool calls of ended runs that a limit has refused, by tool.",
)
_run_steps = _meter.create_histogram(
    "perdure.run.steps",
    unit="{step}",
    description="Model calls of ended runs.",
    explicit_bucket_boundaries_advisory=_STEPS,
)
_run_cost = _meter.create_histogram(
    "perdure.run.cost",
    unit="{usd}",
    description="Dollars spent by ended runs.",
    explicit_bucket_boundaries_advisory=_USD,
)

Attributes = dict[str, AttributeValue]


class CallSpan:
    """Open span of a call; its `labels` also label its metrics."""

    def __init__(self, span: Span, labels: Attributes) -> None:
        self._span = span
        self.labels = labels

    @property
    def recording(self) -> bool:
        """False when no exporter listens; content then need not be built."""
        return self._span.is_recording()

    def set(self, attributes: Mapping[str, AttributeValue | None]) -> None:
        """Set the attributes that are not None."""
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def set_content(self, name: str, value: Any) -> None:
        """Set an attribute to content, as JSON with secrets masked."""
        self._span.set_attribute(name, redact(json.dumps(value, ensure_ascii=False, default=str)))

    def set_error(self, kind: str, message: str) -> None:
        """Mark the call as failed with an error of this kind."""
        self.labels["error.type"] = kind
        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR, redact(message))


@contextmanager
def model_call(
    provider: str, model: str, *, agent: str, run_id: str, settings: Mapping[str, AttributeValue | None]
) -> Generator[CallSpan]:
    """Open the span of an attempt of a model call, and record its duration."""
    labels = model_labels(provider, model)
    with _call(f"chat {model}", SpanKind.CLIENT, labels, _model_seconds) as span:
        span.set({AGENT: agent, RUN_ID: run_id})
        span.set({f"gen_ai.request.{name}": value for name, value in settings.items()})
        yield span


def model_labels(provider: str, model: str) -> Attributes:
    """Return the labels of a model call's metrics."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": telemetry_name(provider),
        "gen_ai.request.model": model,
    }


def record_usage(
    labels: Attributes, agent: str, model: AttributeValue, usage: Usage, cost_microusd: int | None
) -> None:
    """Count the tokens and dollars of an attempt, whether it answered or failed."""
    _model_tokens.record(usage.all_input_tokens, {**labels, "gen_ai.token.type": "input"})
    _model_tokens.record(usage.output_tokens, {**labels, "gen_ai.token.type": "output"})
    if cost_microusd:
        _cost.add(cost_microusd / 1_000_000, {AGENT: agent, "gen_ai.request.model": model})


def record_answer(
    span: CallSpan,
    *,
    agent: str,
    model: str,
    request_id: str | None,
    finish: str,
    usage: Usage,
    cost_microusd: int | None,
) -> None:
    """Record a model's answer on its span, and count its tokens and dollars, once an attempt."""
    record_usage(dict(span.labels), agent, model, usage, cost_microusd)
    span.set(
        {
            "gen_ai.response.model": model,
            "gen_ai.response.id": request_id,
            "gen_ai.response.finish_reasons": (finish,),
            "gen_ai.usage.input_tokens": usage.all_input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cache_read_tokens or None,
            "gen_ai.usage.cache_creation.input_tokens": usage.all_cache_write_tokens or None,
            "perdure.cost_microusd": cost_microusd,
        }
    )


@contextmanager
def tool_call(tool: str, *, call_id: str, agent: str, run_id: str) -> Generator[CallSpan]:
    """Open the span of an attempt of a tool call, and record its duration."""
    labels: Attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool}
    with _call(f"execute_tool {tool}", SpanKind.INTERNAL, labels, _tool_seconds) as span:
        span.set({"gen_ai.tool.type": "function", "gen_ai.tool.call.id": call_id})
        span.set({AGENT: agent, RUN_ID: run_id})
        yield span


@contextmanager
def _call(name: str, kind: SpanKind, labels: Attributes, seconds: metrics.Histogram) -> Generator[CallSpan]:
    began = time.perf_counter()
    # Not recorded by the tracer: messages of exceptions may hold content and secrets.
    with _tracer.start_as_current_span(
        name, kind=kind, attributes=labels, record_exception=False, set_status_on_exception=False
    ) as raw:
        span = CallSpan(raw, dict(labels))
        try:
            yield span
        except (Exception, asyncio.CancelledError) as error:
            span.set_error(error_kind(error), type(error).__name__)
            raise
        finally:
            seconds.record(time.perf_counter() - began, span.labels)


def error_kind(error: BaseException) -> str:
    """Return the `error.type` of an exception: a name, never a message."""
    match error:
        case ModelError():
            return error.kind
        case ApplicationError() if error.type:
            return error.type
        case asyncio.CancelledError():
            return "cancelled"
        case _:
            return type(error).__name__


def run_span(agent: str, run_id: str) -> Span:
    """Return the open span of a run, which the caller ends: only a workflow interceptor sees its end."""
    return _tracer.start_span(
        f"invoke_agent {agent}".strip(),
        attributes={"gen_ai.operation.name": "invoke_agent", AGENT: agent, RUN_ID: run_id},
    )


def count_run(
    agent: str, stop_reason: str, *, steps: int, cost_microusd: int | None, refused: Mapping[str, int]
) -> None:
    """Count a run that ended, its steps, its cost, and its calls that a limit has refused."""
    _outcomes.add(1, {AGENT: agent, STOP_REASON: stop_reason})
    for tool, calls in refused.items():
        _refusals.add(calls, {AGENT: agent, "gen_ai.tool.name": tool})
    _run_steps.record(steps, {AGENT: agent})
    if cost_microusd is not None:
        _run_cost.record(cost_microusd / 1_000_000, {AGENT: agent})


# Weak, because a process may run several workers in turn: the gauge must not keep their circuits alive.
_reported: "WeakSet[Circuits]" = WeakSet()


def watch_circuits(circuits: Circuits) -> None:
    """Report the states of these circuits as a gauge, for as long as they are in use."""
    _reported.add(circuits)


def count_circuit_opening(key: str) -> None:
    """Count the opening of the circuit of a model or tool."""
    _openings.add(1, {"perdure.circuit": key})


def _open_circuits(_: metrics.CallbackOptions) -> list[metrics.Observation]:
    # Called on the exporter's thread, while the event loop changes the set: hence the copy.
    states = [pair for circuits in list(_reported) for pair in circuits.states().items()]
    return [metrics.Observation(1, {"perdure.circuit": key, "perdure.state": state}) for key, state in states]


_meter.create_observable_gauge(
    "perdure.circuit.open",
    [_open_circuits],
    unit="{circuit}",
    description="Circuits of this worker that are open or half open.",
)


_watched_threads: "WeakSet[FunctionThreads]" = WeakSet()


def watch_threads(threads: FunctionThreads) -> None:
    """Report the number of lost threads as a gauge, for as long as these threads are in use."""
    _watched_threads.add(threads)


def count_lost_thread() -> None:
    """Count a thread that runs on after its call was given up."""
    _lost_threads.add(1)


def count_held_loop(function: str, seconds: float) -> None:
    """Count the time in which a function held the event loop."""
    _held_loops.add(seconds, {"perdure.function": function})


def _threads_lost_now(_: metrics.CallbackOptions) -> list[metrics.Observation]:
    return [metrics.Observation(sum(threads.lost_threads for threads in list(_watched_threads)))]


_meter.create_observable_gauge(
    "perdure.thread.lost",
    [_threads_lost_now],
    unit="{thread}",
    description="Threads of this worker that run a function whose call was given up.",
)
