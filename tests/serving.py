"""A worker for tests of the package itself: on the queue that the test chose, and with runs that may park."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from perdure.members import Member
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.testing import running as running_apart


def running(
    agents: Sequence[Member], *, settings: Settings | None = None, **more: Any
) -> AbstractAsyncContextManager[Client]:
    """Return `perdure.testing.running` on the settings' own queue; what parks waits for the test."""
    queue = None if settings is None else settings.task_queue
    return running_apart(agents, settings=settings, task_queue=queue, parked="wait", **more)
