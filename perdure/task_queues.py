"""Task queues: the workers that poll one, and the versions that its new runs go to. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from .versions import Routing, routing_of, version_of

ACTIVE_WITHIN: Final = timedelta(seconds=90)
"""Time since its last poll after which a worker counts as gone.

A worker polls once a minute or more often; the server lists it for five minutes.
"""


MOST_NAMES: Final = 50
"""Names of agents in the words for one that is not among them."""
_SERVES: Final = "perdure serves "
_MOST_CHARACTERS: Final = 8000
"""Length of the words in which a worker names its agents; more are left out, with their number."""
_SILENT_AFTER: Final = timedelta(minutes=3)
"""Time since the last heartbeat after which a worker counts as gone. It sends one each minute or more often."""


def plugin_name(served: Iterable[str]) -> str:
    """Return the name of a worker's plugin, which its heartbeats to the server carry: it names what is served."""
    names = sorted(served)
    words = " ".join(names)
    if len(words) > _MOST_CHARACTERS:
        kept = words[:_MOST_CHARACTERS].rpartition(" ")[0]
        words = f"{kept} +{len(names) - len(kept.split())}"
    return f"{_SERVES}{words}" if names else "perdure"


@dataclass(frozen=True, kw_only=True)
class Poller:
    """A worker that polls a task queue."""

    identity: str
    version: str | None
    """`deployment:build`; None for a worker without a version."""
    last_poll: datetime
    """By the server's clock, in UTC."""


@dataclass(frozen=True, kw_only=True)
class ServingWorker:
    """A worker of a task queue, as its heartbeats to the server describe it."""

    identity: str
    served: tuple[str, ...] | None
    """Names of all agents, swarms, graphs and patterns that it serves; None for a worker that does not say."""
    is_ending: bool
    heartbeat: datetime
    """By the worker's clock, in UTC."""


def parse_workers(response: Any, task_queue: str) -> list[ServingWorker]:
    """Return what a `ListWorkersResponse` says of the workers of this task queue."""
    beats = [info.worker_heartbeat for info in response.workers_info]
    return [
        ServingWorker(
            identity=beat.worker_identity,
            served=_served(plugin.name for plugin in beat.plugins),
            is_ending=beat.status in (_SHUTTING_DOWN, _SHUT_DOWN),
            heartbeat=beat.heartbeat_time.ToDatetime(tzinfo=UTC),
        )
        for beat in beats
        if beat.task_queue == task_queue
    ]


_SHUTTING_DOWN, _SHUT_DOWN = 2, 3
"""Values of Temporal's `WorkerStatus`."""


def _served(plugins: Iterable[str]) -> tuple[str, ...] | None:
    for name in plugins:
        if name.startswith(_SERVES):
            return tuple(name.removeprefix(_SERVES).split())
    return None


def running_workers(workers: Iterable[ServingWorker], now: datetime) -> list[ServingWorker]:
    """Return the workers that tell what they serve, and that run as far as their heartbeats say."""
    return [
        worker
        for worker in workers
        if worker.served is not None and not worker.is_ending and now - worker.heartbeat < _SILENT_AFTER
    ]


def served_names(
    pollers: Iterable[Poller], workers: Sequence[ServingWorker], now: datetime
) -> set[str] | None:
    """Return all names that the workers of a queue serve, or None unless every one that polls has told all of its own.

    A worker that has just started has not, and neither has one without Perdure's plugin.
    """
    told = {worker.identity for worker in workers if worker.served is not None}
    running = running_workers(workers, now)
    names = {name for worker in running for name in worker.served or ()}
    if not running or any(name.startswith("+") for name in names):
        return None
    return names if all(poller.identity in told for poller in pollers) else None


def unserved_message(agent: str, task_queue: str, names: Iterable[str]) -> str:
    """Return the words for an agent that no worker of the queue serves."""
    known = sorted(names)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    served = ", ".join(known[:MOST_NAMES]) or "none"
    return (
        f"no worker serves {agent!r} on queue {task_queue!r}; these agents are served there: {served}{more}"
    )


def served_differently(
    workers: Iterable[ServingWorker], now: datetime, own: Iterable[str] | None = None
) -> str | None:
    """Return in words how the workers that run now differ in what they serve, or None when they do not.

    `own` is what a worker serves that has sent no heartbeat yet.
    """
    by_names: dict[tuple[str, ...], list[str]] = {}
    if own is not None:
        by_names[_served([plugin_name(own)]) or ()] = ["this worker"]
    for worker in running_workers(workers, now):
        by_names.setdefault(worker.served or (), []).append(worker.identity)
    if len(by_names) < 2:
        return None
    common = set[str].intersection(*(set(names) for names in by_names))
    groups = [
        f"{', '.join(sorted(set(identities)))}: {', '.join(name for name in names if name not in common) or 'none'}"
        for names, identities in by_names.items()
    ]
    return (
        f"the workers of this task queue serve different agents ({'; '.join(groups)}). Each call is tried on one after "
        "the other until one serves it; give workers with other agents a task queue of their own"
    )


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
