"""What tests share: one real Temporal server for the session, and a worker of their own for each."""

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from perdure.errors import RunNotFound
from perdure.members import Member
from perdure.model import Model
from perdure.settings import Settings, load_settings
from perdure.starter.client.connect import Client
from perdure.testing import running
from perdure.wire.attributes import AGENT_STATUS
from perdure.workers.dev.server import DevServer

_ONLY_TOLD = {"thinking", "acting"}
"""Statuses that the search attribute does not tell apart."""

os.environ["TEMPORAL_DISABLE_CLI_UPDATE_CHECK"] = "1"


@pytest.fixture(scope="session")
def server() -> Iterator[DevServer]:
    """The embedded server, in memory, for all tests of the session."""
    with asyncio.Runner() as runner:
        starting = DevServer.start(db=None, ui_port=False)
        started = runner.run(starting.__aenter__())
        try:
            yield started
        finally:
            runner.run(starting.__aexit__(None, None, None))


class Serve(Protocol):
    """Starts a worker for these agents on the session's server, on a task queue of its own."""

    def __call__(
        self,
        *agents: Member,
        models: Mapping[str, Model] | None = None,
        worker: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AbstractAsyncContextManager[Client]: ...


@pytest.fixture
def settings(tmp_path: Path, server: DevServer) -> Settings:
    """Settings of this test alone: its own task queue and its own blobs."""
    return load_settings(home=tmp_path, address=server.address, task_queue=f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def serve(settings: Settings, server: DevServer) -> Serve:
    @asynccontextmanager
    async def start(
        *agents: Member,
        models: Mapping[str, Model] | None = None,
        worker: Mapping[str, Any] | None = None,
        **changed: Any,
    ) -> AsyncGenerator[Client]:
        # The sandbox checks our own workflow code here; in the cold runs, which begin anew at every task,
        # that would be most of the time, and they run as in production.
        cold = (worker or {}).get("max_cached_workflows") == 0
        mine = settings.model_copy(update={"strict_sandbox": not cold, **changed})
        async with running(
            agents, models=models, address=server.address, settings=mine, worker=worker
        ) as client:
            yield client

    return start


@dataclass
class Gate:
    """Something to wait at and for, in a tool or a script: no test sleeps."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Be seen here, and stay until it is opened or the call is cancelled."""
        self.reached.set()
        try:
            await self.opened.wait()
        finally:
            self.left.set()


HANGS = 60.0
"""Seconds after which a test takes something for hanging. Nothing is measured by it."""


async def until(true: Callable[[], Awaitable[bool]], *, within: float = HANGS, every: float = 0.02) -> None:
    """Wait for a condition that only polling can see; fails loudly when it does not come."""
    async with asyncio.timeout(within):
        while not await true():
            await asyncio.sleep(every)


async def until_told(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what only a worker can tell. One that caches nothing is not asked again and again: its
    SDK loses a task that meets a question, now and then, and the run stands still until that times out.
    """
    await until(true, every=0.25)


async def until_status(client: Client, run_id: str, *wanted: str) -> None:
    """Wait until the run has one of these statuses: as the server shows it, which asks no worker."""
    run = client.get(run_id)

    async def there() -> bool:
        try:
            described = await run.describe()
        except RunNotFound:
            return False
        return described.typed_search_attributes.get(AGENT_STATUS) in wanted

    async def is_told() -> bool:
        return (await run.status()).status in wanted

    await (until(there) if _ONLY_TOLD.isdisjoint(wanted) else until_told(is_told))


def texts(messages: Sequence[Any]) -> list[str]:
    """The messages' texts, in order."""
    return [message.text for message in messages]
