"""Telemetry of a process: interceptors for runs, traces, metrics and the Temporal runtime.

Every worker has the `interceptors`; they cost next to nothing while no OpenTelemetry provider is set.
`report_telemetry` is for our own processes: it sets providers and shuts them down. A user's process sets
its own.
"""

import asyncio
import contextlib
import threading
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from opentelemetry import context, metrics, trace
from opentelemetry.trace import Span, StatusCode
from structlog.contextvars import bound_contextvars
from temporalio import activity, workflow
from temporalio.contrib.opentelemetry import (
    OpenTelemetryInterceptor,
    ReplaySafeTracerProvider,
    create_tracer_provider,
)
from temporalio.runtime import OpenTelemetryConfig, PrometheusConfig, Runtime
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    ExecuteWorkflowInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from perdure.errors import DefinitionError
from perdure.settings import Settings
from perdure.wire.names import WORKFLOWS

from ...activities import genai
from ...activities.loop_watch import pending_call
from ...activities.telemetry import CAPTURE_CONTENT
from ..sdk import make_runtime
from .headers import ReadableHeaders
from .logs import configure_logs

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource

SERVICE: Final = "perdure"
_FLUSH_SECONDS: Final = 3.0
"""Seconds to send pending spans and metrics at the end of the process."""


def interceptors(settings: Settings) -> list[Interceptor]:
    """Return the interceptors of every worker: trace context, a span for each run, run ids on log lines."""
    return [ReadableHeaders(), _ContextPropagation(), _RunReporting(settings.capture_content)]


def _is_replay_safe() -> bool:
    return isinstance(trace.get_tracer_provider(), ReplaySafeTracerProvider)


class _ContextPropagation(OpenTelemetryInterceptor):
    """Interceptor that passes the trace context from client to run to activities, without own spans."""

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> Any:  # noqa: A002
        # Any other tracer provider would repeat a run's spans at each replay. With it, runs have no spans.
        return super().workflow_interceptor_class(input) if _is_replay_safe() else None


class _RunReporting(Interceptor):
    """Interceptor for the spans and counts of runs, and the log fields of activities."""

    def __init__(self, capture_content: bool) -> None:
        self._capture_content = capture_content

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _ActivityLogging(next, self._capture_content)

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[WorkflowInboundInterceptor]:
        return _RunSpans


class _ActivityLogging(ActivityInboundInterceptor):
    """Interceptor that puts the run's ids on each log line of an activity, those of libraries included."""

    def __init__(self, next: ActivityInboundInterceptor, capture_content: bool) -> None:  # noqa: A002
        super().__init__(next)
        self._capture_content = capture_content

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        info = activity.info()
        CAPTURE_CONTENT.set(self._capture_content)
        fields = bound_contextvars(
            run_id=info.workflow_id,
            temporal_run_id=info.workflow_run_id,
            activity=info.activity_type,
            activity_id=info.activity_id,
            attempt=info.attempt,
        )
        with fields, pending_call(str(info.workflow_id), info.activity_type):
            return await super().execute_activity(input)


class _RunSpans(WorkflowInboundInterceptor):
    """Interceptor for the span of a run and the count of ended runs; a replay reports neither again."""

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        info = workflow.info()
        if info.workflow_type not in WORKFLOWS:
            return await super().execute_workflow(input)
        agent = _agent_name(input)
        span = genai.run_span(agent, info.workflow_id) if _is_replay_safe() else trace.INVALID_SPAN
        # Not detached: the context of this coroutine ends with it. A `finally` would also run when the run
        # is evicted from the cache, in a context that is not the run's.
        context.attach(trace.set_span_in_context(span))
        try:
            result = await super().execute_workflow(input)
        except workflow.ContinueAsNewError:
            span.end()
            raise
        except (Exception, asyncio.CancelledError) as error:
            # Any other error fails the workflow task only, which Temporal retries.
            if workflow.is_failure_exception(error):
                _end_span(span, agent, {"stop_reason": genai.error_kind(error)}, error)
            raise
        _end_span(span, agent, _fields(result), None)
        return result


def _agent_name(input: ExecuteWorkflowInput) -> str:  # noqa: A002
    request = input.args[0] if input.args else None
    return str(_fields(request).get("agent", ""))


def _fields(value: Any) -> Mapping[str, Any]:
    """Return the fields of a request or result, given as JSON or as a model; never raise."""
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value)
    return getattr(value, "__dict__", {})


def _end_span(span: Span, agent: str, result: Mapping[str, Any], error: BaseException | None) -> None:
    reason = str(result.get("stop_reason", "unknown"))
    steps, cost = result.get("steps", 0), result.get("cost_microusd")
    span.set_attributes({genai.STOP_REASON: reason, "perdure.steps": steps})
    if error is not None:
        span.set_attribute("error.type", reason)
        span.set_status(StatusCode.ERROR, reason)
    span.end()
    if not workflow.unsafe.is_replaying_history_events():
        refused: dict[str, int] = result.get("refused_calls") or {}
        genai.count_run(agent, reason, steps=steps, cost_microusd=cost, refused=refused)


@contextlib.contextmanager
def report_telemetry(settings: Settings) -> Generator[Runtime]:
    """Report logs, traces and metrics of this process; yield the Temporal runtime to connect with.

    It may be called once in a process: OpenTelemetry accepts a provider only once. At the end, pending
    spans and metrics are sent for a few seconds at most: a stopping process must not wait for a receiver.

    Raises:
        DefinitionError: an exporter's extra is not installed, or its address is taken.

    """
    configure_logs(settings)
    with _bounded_cleanup() as cleanup:
        tracers = tracer_provider(settings)
        if tracers is not None:
            trace.set_tracer_provider(tracers)
            cleanup.callback(tracers.shutdown)
        meters = _meter_provider(settings, cleanup)
        if meters is not None:
            metrics.set_meter_provider(meters)
            cleanup.callback(meters.shutdown)
        temporal = runtime(settings)  # referenced here: its metrics end with the last reference
        yield temporal


@contextlib.contextmanager
def _bounded_cleanup() -> Generator[contextlib.ExitStack]:
    """Yield a stack that is closed at the end, in a thread that is abandoned if it takes too long."""
    cleanup = contextlib.ExitStack()
    try:
        yield cleanup
    finally:
        closing = threading.Thread(target=cleanup.close, name="perdure-telemetry", daemon=True)
        closing.start()
        closing.join(_FLUSH_SECONDS)


def tracer_provider(settings: Settings) -> ReplaySafeTracerProvider | None:
    """Return a provider that sends traces to `otlp_endpoint`, or None without an endpoint.

    Raises:
        DefinitionError: `perdure[otlp]` is not installed.

    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise _missing_extra("PERDURE_OTLP_ENDPOINT", "otlp") from None
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = create_tracer_provider(resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(_signal_url(settings, "traces"))))
    return provider


def _meter_provider(settings: Settings, cleanup: contextlib.ExitStack) -> "MeterProvider | None":
    if settings.metrics == "off":
        return None
    from opentelemetry.sdk.metrics import MeterProvider

    use_otlp = settings.metrics == "otlp"
    reader = _otlp_reader(settings) if use_otlp else _prometheus_reader(settings, cleanup)
    return MeterProvider([reader], resource=_resource(), shutdown_on_exit=False)


def _otlp_reader(settings: Settings) -> "MetricReader":
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError:
        raise _missing_extra("PERDURE_METRICS=otlp", "otlp") from None
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    return PeriodicExportingMetricReader(OTLPMetricExporter(_signal_url(settings, "metrics")))


def _prometheus_reader(settings: Settings, cleanup: contextlib.ExitStack) -> "MetricReader":
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import start_http_server
    except ImportError:
        raise _missing_extra("PERDURE_METRICS=prometheus", "prometheus") from None
    host, port = _host_and_port(settings)
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        raise DefinitionError(f"PERDURE_METRICS_ADDRESS {settings.metrics_address}: {error}") from None
    cleanup.callback(thread.join)
    cleanup.callback(server.server_close)
    cleanup.callback(server.shutdown)
    return PrometheusMetricReader()


def runtime(settings: Settings) -> Runtime:
    """Return Temporal's runtime, with its logs and metrics sent where ours go; one for each process.

    Raises:
        DefinitionError: metrics go by OTLP and no endpoint is set, or the address is taken.

    """
    try:
        return make_runtime(_core_metrics(settings))
    except (RuntimeError, ValueError) as error:
        raise DefinitionError(f"Temporal's metrics cannot be served: {error}") from None


def _core_metrics(settings: Settings) -> PrometheusConfig | OpenTelemetryConfig | None:
    match settings.metrics:
        case "off":
            return None
        case "otlp":
            return OpenTelemetryConfig(_signal_url(settings, "metrics"), http=True, durations_as_seconds=True)
        case "prometheus":
            host, port = _host_and_port(settings)
            return PrometheusConfig(
                f"{host}:{port + 1}",  # our own metrics have the port itself
                counters_total_suffix=True,
                unit_suffix=True,
                durations_as_seconds=True,
            )


def _signal_url(settings: Settings, name: str) -> str:
    """Return the OTLP endpoint for "traces" or "metrics", below the base URL.

    Raises:
        DefinitionError: there is no base URL.

    """
    if settings.otlp_endpoint is None:
        raise DefinitionError("PERDURE_METRICS=otlp needs PERDURE_OTLP_ENDPOINT")
    return f"{settings.otlp_endpoint.rstrip('/')}/v1/{name}"


def _host_and_port(settings: Settings) -> tuple[str, int]:
    host, _, port = settings.metrics_address.rpartition(":")
    return host, int(port)


def _resource() -> "Resource":
    from opentelemetry.sdk.resources import Resource

    return Resource.create({"service.name": SERVICE})


def _missing_extra(setting: str, extra: str) -> DefinitionError:
    return DefinitionError(f'{setting} needs an exporter: pip install "perdure[{extra}]"')
