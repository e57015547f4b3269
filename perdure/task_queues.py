"""Task queues: the workers that poll one, and the versions that its new runs go to. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from .versions import Routing, routing_of, version_of

ACTIVE_WITHIN: Final = timedelta(seconds=90)
"""Time since its last poll after which a worker counts as gone.

A worker polls once a minute or more often; the server lists it for five minutes.
"""


@dataclass(frozen=True, kw_only=True)
class Poller:
    """A worker that polls a task queue."""

    identity: str
    version: str | None
    """`deployment:build`; None for a worker without a version."""
    last_poll: datetime
    """By the server's clock, in UTC."""


@dataclass(frozen=True, kw_only=True)
class TaskQueueInfo:
    """A task queue as the server describes it."""

    routing: Routing
    pollers: Sequence[Poller]

    def active_pollers(self, now: datetime) -> list[Poller]:
        """Return the pollers that have polled recently enough to be taken as running."""
        return [poller for poller in self.pollers if now - poller.last_poll < ACTIVE_WITHIN]


def parse_task_queue(description: Any) -> TaskQueueInfo:
    """Return what a `DescribeTaskQueueResponse` says."""
    pollers = [
        Poller(
            identity=poller.identity,
            version=version_of(poller.deployment_options),
            last_poll=poller.last_access_time.ToDatetime(tzinfo=UTC),
        )
        for poller in description.pollers
    ]
    return TaskQueueInfo(routing=routing_of(description), pollers=pollers)
