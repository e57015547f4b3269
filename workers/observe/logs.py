"""Logs: a line for each event on stderr, as JSON or text, for us, Temporal and all libraries alike."""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO, cast

import structlog
from pydantic import SecretStr
from structlog.typing import EventDict, Processor

from perdure.settings import Settings

from ...activities.content.redact import redact

_MASK: Final = "[redacted]"
_NOISY_LIBRARIES: Final = ("httpx", "httpcore", "httpx2", "httpcore2", "botocore", "urllib3", "asyncio")
"""Libraries that log each request at info or debug; only their warnings are kept."""


def configure_logs(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all logs of this process to stderr in the same format; a later call replaces an earlier one."""
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
    redaction = _Redaction(secrets(settings))
    if as_json:
        return [
            structlog.processors.format_exc_info,
            redaction,
            structlog.processors.JSONRenderer(default=str),
        ]
    console = structlog.dev.ConsoleRenderer(colors=target.isatty())
    return [structlog.processors.format_exc_info, redaction, console]


def secrets(settings: Settings) -> tuple[str, ...]:
    """Return the secrets in the settings; those from a `.env` file are in no environment variable."""
    values = (getattr(settings, name) for name in type(settings).model_fields)
    return tuple(value.get_secret_value() for value in values if isinstance(value, SecretStr) and value)


class _Redaction:
    """Processor that masks our own secrets, and text that looks like a secret, anywhere in an event."""

    def __init__(self, own: tuple[str, ...]) -> None:
        self._own = own

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        return cast("EventDict", self._mask(event))

    def _mask(self, value: Any) -> Any:
        match value:
            case str():
                for secret in self._own:
                    value = value.replace(secret, _MASK)
                return redact(value)
            case Mapping():
                items = cast("Mapping[str, Any]", value).items()
                return {key: self._mask(inner) for key, inner in items}
            case list() | tuple():
                return [self._mask(inner) for inner in cast("list[Any]", value)]
            case None | bool() | int() | float():
                return value
            case _:
                # Any other object is masked as text: its `repr` may hold a secret.
                return self._mask(str(value))


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
