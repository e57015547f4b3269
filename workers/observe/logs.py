"""Logs: a line for each event on stderr, as JSON or text, for us, Temporal and all libraries alike."""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor

from perdure.settings import Settings

from ...activities.content.redact import redact, register_secrets

_NOISY_LIBRARIES: Final = ("httpx", "httpcore", "httpx2", "httpcore2", "botocore", "urllib3", "asyncio")
"""Libraries that log each request at info or debug; only their warnings are kept."""
_QUOTING_LIBRARIES: Final = (
    "temporalio",
    "anthropic",
    "openai",
    "boto3",
    "s3transfer",
    "google",
    "mcp",
    "aiohttp",
)
"""Libraries that quote whole requests, activations and heartbeats at debug: no payload is to stand in a log."""
_OF_USERS_CODE: Final = ("temporalio.activity", "temporalio.workflow")
"""Loggers of the SDK by which the user's own code writes."""


def configure_logs(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all logs of this process to stderr in the same format; a later call replaces an earlier one."""
    register_secrets(settings)
    target = stream or sys.stderr
    common = _common_processors(settings)
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.ExtraAdder(), _flatten_temporal],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering_processors(settings, target),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    quoting = logging.NOTSET if settings.capture_content else max(root.level, logging.INFO)
    for name in _QUOTING_LIBRARIES:
        logging.getLogger(name).setLevel(quoting)
    for name in _OF_USERS_CODE:
        logging.getLogger(name).setLevel(root.level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a later call must reach loggers that exist already
    )


def _common_processors(settings: Settings) -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _rendering_processors(settings: Settings, target: TextIO) -> list[Processor]:
    """Return the last processors: exceptions become text, then secrets are redacted, then a line is made."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not target.isatty())
    if as_json:
        return [
            structlog.processors.format_exc_info,
            _redact_event,
            structlog.processors.JSONRenderer(default=str),
        ]
    console = structlog.dev.ConsoleRenderer(colors=target.isatty())
    return [structlog.processors.format_exc_info, _redact_event, console]


def _redact_event(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Mask our own secrets, and text that looks like a secret, anywhere in an event."""
    return cast("EventDict", _redact_value(event))


def _redact_value(value: Any) -> Any:
    match value:
        case str():
            return redact(value)
        case Mapping():
            items = cast("Mapping[str, Any]", value).items()
            return {key: _redact_value(inner) for key, inner in items}
        case list() | tuple():
            return [_redact_value(inner) for inner in cast("list[Any]", value)]
        case None | bool() | int() | float():
            return value
        case _:
            # Any other object is masked as text: its `repr` may hold a secret.
            return redact(str(value))


_OUR_NAMES: Final = {
    "workflow_id": "run_id",
    "run_id": "temporal_run_id",
    "workflow_run_id": "temporal_run_id",
    "workflow_type": "workflow",
    "activity_type": "activity",
    "activity_id": "activity_id",
    "attempt": "attempt",
    "task_queue": "task_queue",
}
"""Names of Temporal's log fields in our logs: Temporal's workflow id is our run id."""


def _flatten_temporal(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Move the fields that Temporal's SDK logs as a dict to the top level, under our names."""
    for key in ("temporal_workflow", "temporal_activity"):
        fields = event.pop(key, None)
        if isinstance(fields, MutableMapping | Mapping):
            for theirs, value in cast("Mapping[str, Any]", fields).items():
                if theirs in _OUR_NAMES:
                    event.setdefault(_OUR_NAMES[theirs], value)
    event.pop("temporal_log", None)
    return event
