"""Fixtures of all tests: a real Temporal server for the session, and a worker for each test."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
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
from perdure.wire.attributes import AGENT_STATUS
from perdure.workers.dev.server import DevServer
from tests.serving import running

from .waiting import next_poll

_QUERIED_ONLY = {"thinking", "acting"}
"""Statuses that only a query tells apart: the search attribute calls both working."""

os.environ["TEMPORAL_DISABLE_CLI_UPDATE_CHECK"] = "1"


@pytest.fixture(scope="session")
def server() -> Iterator[DevServer]:
    """The embedded server, in memory, for all tests of the session."""
    yield from own_server({})


@pytest.fixture(scope="session")
def impatient() -> Iterator[DevServer]:
    """A server that wants runs to continue as new after sixty events, for all tests of the session."""
    yield from own_server({"limit.historyCount.suggestContinueAsNew": "60"})


def own_server(config: Mapping[str, str]) -> Iterator[DevServer]:
    """Yield an embedded server, in memory, with this dynamic configuration."""
    with asyncio.Runner() as runner:
        starting = DevServer.start(db=None, ui_port=False, dynamic_config=config)
        started = runner.run(starting.__aenter__())
        try:
            yield started
        finally:
            runner.run(starting.__aexit__(None, None, None))


class Serve(Protocol):
    """Start a worker for these agents on the session's server, on a task queue of its own."""

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
def strict_sandbox() -> bool:
    """Whether the sandbox checks our own workflow files too. It costs 40 ms a run, half of a short one.

    All recorded histories replay under it (tests/replay), and the modules that override this fixture reach the
    handlers that no history holds.
    """
    return False


@pytest.fixture
def serve(settings: Settings, server: DevServer, strict_sandbox: bool) -> Serve:
    @asynccontextmanager
    async def start(
        *agents: Member,
        models: Mapping[str, Model] | None = None,
        worker: Mapping[str, Any] | None = None,
        **changed: Any,
    ) -> AsyncGenerator[Client]:
        mine = settings.model_copy(update={"strict_sandbox": strict_sandbox, **changed})
        async with running(
            agents, models=models, address=server.address, settings=mine, worker=worker
        ) as client:
            yield client

    return start


@dataclass
class Gate:
    """Gate at which a tool or a script waits until the test opens it: no test sleeps."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Report the arrival, and wait until the gate is opened or the call is cancelled."""
        self.reached.set()
        try:
            await self.opened.wait()
        finally:
            self.left.set()


HANGS = 60.0
"""Seconds after which a test counts something as hanging; not a measure of anything."""


async def until(true: Callable[[], Awaitable[bool]], *, within: float = HANGS, every: float = 0.02) -> None:
    """Poll until the condition is true; raise TimeoutError when it does not become so.

    The longer it takes, the rarer the polls: many conditions take a query to the worker, which then does little else.
    """
    start = time.monotonic()
    async with asyncio.timeout(within):
        while not await true():
            await asyncio.sleep(next_poll(time.monotonic() - start, every))


async def until_queried(true: Callable[[], Awaitable[bool]]) -> None:
    """Poll a condition that takes a query to the worker, at a lower rate.

    The SDK of a worker without a cache now and then loses a task that meets a query, and the run then stands
    still until the task times out.
    """
    await until(true, every=0.25)


async def until_status(client: Client, run_id: str, *wanted: str, every: float = 0.02) -> None:
    """Wait until the run has one of these statuses; ask the server where it knows, else the worker."""
    run = client.get(run_id)

    async def is_listed() -> bool:
        try:
            described = await run.describe()
        except RunNotFound:
            return False
        return described.typed_search_attributes.get(AGENT_STATUS) in wanted

    async def is_queried() -> bool:
        return (await run.status()).status in wanted

    await (until(is_listed, every=every) if _QUERIED_ONLY.isdisjoint(wanted) else until_queried(is_queried))


async def check_rows(checks: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Check the rows of a table together, on one worker, and report every row that fails, by its name."""
    outcomes = await asyncio.gather(*checks.values(), return_exceptions=True)
    failures: list[BaseException] = []
    for name, outcome in zip(checks, outcomes, strict=True):
        if outcome is not None:
            outcome.add_note(f"row {name}")
            failures.append(outcome)
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} of {len(checks)} rows fail", failures)


def texts(messages: Sequence[Any]) -> list[str]:
    """Return the texts of the messages, in order."""
    return [message.text for message in messages]
