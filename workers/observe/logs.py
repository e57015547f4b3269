"""Logs: one line an event on stderr, JSON or text, ours, Temporal's and every library's alike."""

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
_NOISE: Final = ("httpx", "httpcore", "httpx2", "httpcore2", "botocore", "urllib3", "asyncio")
"""Libraries that tell each request at info or debug; their warnings are heard."""


def configure_logs(settings: Settings, stream: TextIO | None = None) -> None:
    """Send everything logged in this process to stderr, in one form. May be called again."""
    target = stream or sys.stderr
    shared = _shared(settings)
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(), _flatten_temporal],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(settings, target),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _NOISE:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _shared(settings: Settings) -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _rendering(settings: Settings, target: TextIO) -> list[Processor]:
    """The end of the chain: exceptions become text first, so that they are redacted too."""
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
    """The settings' secrets: a `.env` file's are in no environment variable."""
    values = (getattr(settings, name) for name in type(settings).model_fields)
    return tuple(value.get_secret_value() for value in values if isinstance(value, SecretStr) and value)


class _Redaction:
    """Masks our own secrets and whatever looks like one, in every text of an event."""

    def __init__(self, own: tuple[str, ...]) -> None:
        self._own = own

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        return cast("EventDict", self._masked(event))

    def _masked(self, value: Any) -> Any:
        match value:
            case str():
                for secret in self._own:
                    value = value.replace(secret, _MASK)
                return redact(value)
            case Mapping():
                items = cast("Mapping[str, Any]", value).items()
                return {key: self._masked(inner) for key, inner in items}
            case list() | tuple():
                return [self._masked(inner) for inner in cast("list[Any]", value)]
            case None | bool() | int() | float():
                return value
            case _:
                return self._masked(str(value))


_NAMES: Final = {
    "workflow_id": "run_id",
    "run_id": "temporal_run_id",
    "workflow_run_id": "temporal_run_id",
    "workflow_type": "workflow",
    "activity_type": "activity",
    "activity_id": "activity_id",
    "attempt": "attempt",
    "task_queue": "task_queue",
}
"""Temporal's words, and ours: what they call a workflow id is our run's id."""


def _flatten_temporal(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Temporal's SDK puts what it knows into one dict; here it stands as our activities put it."""
    for key in ("temporal_workflow", "temporal_activity"):
        known = event.pop(key, None)
        if isinstance(known, MutableMapping | Mapping):
            for theirs, value in cast("Mapping[str, Any]", known).items():
                if theirs in _NAMES:
                    event.setdefault(_NAMES[theirs], value)
    event.pop("temporal_log", None)
    return event
