"""Headers of runs and activities: a trace context that cannot be read is dropped before tracing decodes it.

Anybody who starts or signals a run may write headers. An error while one is decoded would fail every workflow task.
"""

from collections.abc import Mapping
from typing import Any, Final, cast

from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadConverter
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    ExecuteWorkflowInput,
    HandleQueryInput,
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

_TRACE: Final = "_tracer-data"
"""Header in which the SDK's OpenTelemetry interceptor passes the trace context."""


class ReadableHeaders(Interceptor):
    """Interceptor that stands before those that decode headers."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Check the headers of an activity."""
        return _ActivityHeaders(next)

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[WorkflowInboundInterceptor]:
        """Check the headers of a run, and of all that it is sent."""
        return _RunHeaders


def readable(headers: Mapping[str, Payload]) -> Mapping[str, Payload]:
    """Return the headers, without a trace context that is none."""
    if _TRACE not in headers or _is_trace_context(headers[_TRACE]):
        return headers
    return {name: payload for name, payload in headers.items() if name != _TRACE}


def _is_trace_context(payload: Payload) -> bool:
    try:
        carrier = PayloadConverter.default.from_payloads([payload])[0]
    except Exception:  # whatever a converter raises, it is no trace context
        return False
    if not isinstance(carrier, dict):
        return False
    return all(isinstance(value, str) for value in cast("dict[str, Any]", carrier).values())


class _ActivityHeaders(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        input.headers = readable(input.headers)
        return await super().execute_activity(input)


class _RunHeaders(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        input.headers = readable(input.headers)
        return await super().execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:  # noqa: A002
        input.headers = readable(input.headers)
        await super().handle_signal(input)

    async def handle_query(self, input: HandleQueryInput) -> Any:  # noqa: A002
        input.headers = readable(input.headers)
        return await super().handle_query(input)

    def handle_update_validator(self, input: HandleUpdateInput) -> None:  # noqa: A002
        input.headers = readable(input.headers)
        super().handle_update_validator(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:  # noqa: A002
        input.headers = readable(input.headers)
        return await super().handle_update_handler(input)
