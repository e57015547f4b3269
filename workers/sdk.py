"""Temporal's SDK in this process: its runtime, and its log in words.

The SDK's core is written in Rust. By default it prints its warnings on stderr itself: a line for each call that it
repeats, with the transport's own error in it, as long as a server is away. Here they become records of the logger
`temporalio.core`: in words, without the errors' innards, and one in half a minute for a server that is away.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    OpenTelemetryConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)

SDK_LOGGER: Final = "temporalio.core"
_REPEATED: Final = re.compile(r"gRPC call \w+ retried \d+ times|^Network error while ")
_SLOW_TASK: Final = re.compile(r"Workflow task duration exceeded (.+?)\.?$")
_AWAY: Final = 30.0
"""Seconds for which a server that is away is not reported again."""
_HEARTBEAT: Final = timedelta(seconds=5)
"""Interval at which a worker tells the server what it serves: `doctor` and starting workers read it there."""
_CAUSES: Final = {
    "Connection refused": "connection refused",
    "dns error": "no such host",
    "timed out": "timed out",
    "Timeout expired": "no answer in time",
    "ResourceExhausted": "it is busy",
    "Unavailable": "not available",
}


def make_runtime(metrics: PrometheusConfig | OpenTelemetryConfig | None = None) -> Runtime:
    """Return a runtime whose warnings go to the logger `temporalio.core`, in words.

    Raises:
        RuntimeError, ValueError: the metrics cannot be served.

    """
    logger = logging.getLogger(SDK_LOGGER)
    if not any(isinstance(known, _InWords) for known in logger.filters):
        logger.addFilter(_InWords())
    forwarding = LogForwardingConfig(
        logger,
        append_target_to_name=False,
        prepend_target_on_message=False,
        append_log_fields_to_message=False,  # errors in them quote payloads
    )
    logs = LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding=forwarding)
    telemetry = TelemetryConfig(logging=logs, metrics=metrics)
    return Runtime(telemetry=telemetry, worker_heartbeat_interval=_HEARTBEAT)


class _DefaultRuntime:
    """The process's default runtime, which the first connection without one of its own would make."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False

    def ensure(self) -> None:
        """Make it ours, unless the program has set one."""
        with self._lock:
            if self._is_set:
                return
            self._is_set = True
            try:
                Runtime.set_default(make_runtime())
            except RuntimeError:
                return  # the program's own, with the logs that it wants


_default = _DefaultRuntime()


def ensure_default_runtime() -> None:
    """Have the SDK's warnings go to Python's logs in this process, unless the program has set a runtime."""
    _default.ensure()


class _InWords(logging.Filter):
    """Filter that puts the core's records into words, and drops repetitions."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._away_at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; return False for one that says nothing new."""
        log: Any = getattr(record, "temporal_log", None)
        if log is None:
            return True
        message = str(log.message)
        if _REPEATED.search(message):
            now = self._clock()
            if now - self._away_at < _AWAY:
                return False
            self._away_at = now
            record.msg = f"the Temporal server does not answer ({_cause(log)}); calls to it are tried again"
        elif slow := _SLOW_TASK.search(message):
            record.msg = (
                f"a workflow task took more than {slow[1]}: the worker's event loop is held, or has no time"
            )
        else:
            record.msg = f"Temporal's SDK: {message.splitlines()[0][:300] if message else record.levelname}"
        record.args = ()
        return True


def _cause(log: Any) -> str:
    text = str(getattr(log, "fields", ""))
    return next((words for sign, words in _CAUSES.items() if sign in text), "no answer")
