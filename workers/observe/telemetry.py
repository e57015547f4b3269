"""Telemetry of a process: the run's interceptors, traces, metrics and the Temporal runtime.

`interceptors` belong to every worker and cost next to nothing while no provider is set.
`report_telemetry` is for processes that are ours: it sets the providers up and takes them down.
"""

import asyncio
import contextlib
import logging
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
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    OpenTelemetryConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)
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
from ...activities.telemetry import CAPTURE_CONTENT
from .logs import configure_logs

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource

SERVICE: Final = "perdure"
_SENT_WITHIN: Final = 3.0
"""Seconds for what is pending at the end of the process."""


def interceptors(settings: Settings) -> list[Interceptor]:
    """What every worker gets: context across processes, a span a run, names on log lines."""
    return [_Propagation(), _Reporting(settings.capture_content)]


def _replay_safe() -> bool:
    return isinstance(trace.get_tracer_provider(), ReplaySafeTracerProvider)


class _Propagation(OpenTelemetryInterceptor):
    """Hands the trace's context on: client, run, activities. Makes no spans of its own."""

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> Any:  # noqa: A002
        # Another tracer provider would repeat a run's spans at every replay: then runs have none.
        return super().workflow_interceptor_class(input) if _replay_safe() else None


class _Reporting(Interceptor):
    def __init__(self, capture_content: bool) -> None:
        self._capture_content = capture_content

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _ReportedActivity(next, self._capture_content)

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[WorkflowInboundInterceptor]:
        return _ReportedRun


class _ReportedActivity(ActivityInboundInterceptor):
    """Every log line of an activity, a library's included, says which run it belongs to."""

    def __init__(self, next: ActivityInboundInterceptor, capture_content: bool) -> None:  # noqa: A002
        super().__init__(next)
        self._capture_content = capture_content

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        info = activity.info()
        CAPTURE_CONTENT.set(self._capture_content)
        with bound_contextvars(
            run_id=info.workflow_id,
            temporal_run_id=info.workflow_run_id,
            activity=info.activity_type,
            activity_id=info.activity_id,
            attempt=info.attempt,
        ):
            return await super().execute_activity(input)


class _ReportedRun(WorkflowInboundInterceptor):
    """The span of a run, and the count of ended ones. A replay reports nothing again."""

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        info = workflow.info()
        if info.workflow_type not in WORKFLOWS:
            return await super().execute_workflow(input)
        agent = _agent_of(input)
        span = genai.run_span(agent, info.workflow_id) if _replay_safe() else trace.INVALID_SPAN
        # Never detached: this coroutine's context ends with it. A `finally` would also run when
        # the run is evicted from the cache, in a context that is not the run's.
        context.attach(trace.set_span_in_context(span))
        try:
            result = await super().execute_workflow(input)
        except workflow.ContinueAsNewError:
            span.end()
            raise
        except (Exception, asyncio.CancelledError) as error:
            if workflow.is_failure_exception(error):  # else the task failed, and the run goes on
                _close(span, agent, {"stop_reason": genai.error_kind(error)}, error)
            raise
        _close(span, agent, _fields(result), None)
        return result


def _agent_of(asked: ExecuteWorkflowInput) -> str:
    request = asked.args[0] if asked.args else None
    return str(_fields(request).get("agent", ""))


def _fields(value: Any) -> Mapping[str, Any]:
    """Requests and results come as JSON or as models; telemetry must not care, nor fail."""
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value)
    return getattr(value, "__dict__", {})


def _close(span: Span, agent: str, result: Mapping[str, Any], error: BaseException | None) -> None:
    reason = str(result.get("stop_reason", "unknown"))
    steps, cost = result.get("steps", 0), result.get("cost_microusd")
    span.set_attributes({genai.STOP_REASON: reason, "perdure.steps": steps})
    if error is not None:
        span.set_attribute("error.type", reason)
        span.set_status(StatusCode.ERROR, reason)
    span.end()
    if not workflow.unsafe.is_replaying_history_events():
        genai.count_run(agent, reason, steps=steps, cost_microusd=cost)


@contextlib.contextmanager
def report_telemetry(settings: Settings) -> Generator[Runtime]:
    """Logs, traces and metrics of this process, from here on; gives the runtime to connect with.

    Once a process: OpenTelemetry takes only one provider. What is pending is sent at the end, as
    far as the receiver takes it quickly: a process that is to end must not wait for it.

    Raises:
        DefinitionError: an exporter's extra is not installed, or its address is taken.

    """
    configure_logs(settings)
    with _closed_soon() as cleanup:
        tracers = tracer_provider(settings)
        if tracers is not None:
            trace.set_tracer_provider(tracers)
            cleanup.callback(tracers.shutdown)
        meters = _meter_provider(settings, cleanup)
        if meters is not None:
            metrics.set_meter_provider(meters)
            cleanup.callback(meters.shutdown)
        temporal = runtime(settings)  # held here: its metrics end with the last reference to it
        yield temporal


@contextlib.contextmanager
def _closed_soon() -> Generator[contextlib.ExitStack]:
    """A stack that is closed at the end, or left to itself when that takes long."""
    cleanup = contextlib.ExitStack()
    try:
        yield cleanup
    finally:
        closing = threading.Thread(target=cleanup.close, name="perdure-telemetry", daemon=True)
        closing.start()
        closing.join(_SENT_WITHIN)


def tracer_provider(settings: Settings) -> ReplaySafeTracerProvider | None:
    """Traces to `otlp_endpoint`, when there is one.

    Raises:
        DefinitionError: `perdure[otlp]` is not installed.

    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise _missing("PERDURE_OTLP_ENDPOINT", "otlp") from None
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = create_tracer_provider(resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(_signal(settings, "traces"))))
    return provider


def _meter_provider(settings: Settings, cleanup: contextlib.ExitStack) -> "MeterProvider | None":
    if settings.metrics == "off":
        return None
    from opentelemetry.sdk.metrics import MeterProvider

    reader = _otlp_reader(settings) if settings.metrics == "otlp" else _scraped(settings, cleanup)
    return MeterProvider([reader], resource=_resource(), shutdown_on_exit=False)


def _otlp_reader(settings: Settings) -> "MetricReader":
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError:
        raise _missing("PERDURE_METRICS=otlp", "otlp") from None
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    return PeriodicExportingMetricReader(OTLPMetricExporter(_signal(settings, "metrics")))


def _scraped(settings: Settings, cleanup: contextlib.ExitStack) -> "MetricReader":
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import start_http_server
    except ImportError:
        raise _missing("PERDURE_METRICS=prometheus", "prometheus") from None
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
    """Temporal's own runtime: its logs go to ours, its metrics where ours go. One a process.

    Raises:
        DefinitionError: metrics go by OTLP and no endpoint is set, or the address is taken.

    """
    forwarding = LogForwardingConfig(logging.getLogger("temporalio.core"))
    logs = LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding=forwarding)
    try:
        return Runtime(telemetry=TelemetryConfig(logging=logs, metrics=_core_metrics(settings)))
    except (RuntimeError, ValueError) as error:
        raise DefinitionError(f"Temporal's metrics cannot be served: {error}") from None


def _core_metrics(settings: Settings) -> PrometheusConfig | OpenTelemetryConfig | None:
    match settings.metrics:
        case "off":
            return None
        case "otlp":
            return OpenTelemetryConfig(_signal(settings, "metrics"), http=True, durations_as_seconds=True)
        case "prometheus":
            host, port = _host_and_port(settings)
            return PrometheusConfig(
                f"{host}:{port + 1}",
                counters_total_suffix=True,
                unit_suffix=True,
                durations_as_seconds=True,
            )


def _signal(settings: Settings, name: str) -> str:
    """The endpoint of one signal, below the base URL."""
    if settings.otlp_endpoint is None:
        raise DefinitionError("PERDURE_METRICS=otlp needs PERDURE_OTLP_ENDPOINT")
    return f"{settings.otlp_endpoint.rstrip('/')}/v1/{name}"


def _host_and_port(settings: Settings) -> tuple[str, int]:
    host, _, port = settings.metrics_address.rpartition(":")
    return host, int(port)


def _resource() -> "Resource":
    from opentelemetry.sdk.resources import Resource

    return Resource.create({"service.name": SERVICE})


def _missing(setting: str, extra: str) -> DefinitionError:
    return DefinitionError(f'{setting} needs an exporter: pip install "perdure[{extra}]"')
