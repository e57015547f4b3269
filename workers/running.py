"""Server and worker in the caller's own process, for tests, notebooks and scripts."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker

from perdure.blobs import BlobStore
from perdure.members import Member
from perdure.model import Model
from perdure.settings import Settings, load_settings
from perdure.user_credentials import CredentialsProvider

from .connection import connect_temporal
from .dev.server import DevServer
from .plugin import PerdurePlugin


@asynccontextmanager
async def serving(
    agents: Sequence[Member],
    *,
    models: Mapping[str, Model] | None = None,
    address: str | None = None,
    settings: Settings | None = None,
    blobs: BlobStore | None = None,
    worker: Mapping[str, Any] | None = None,
    task_queue: str | None = None,
    parks: bool = True,
    resources: Any = None,
    credentials: CredentialsProvider | None = None,
) -> AsyncGenerator[tuple[Client, str]]:
    """Serve the agents while the block runs; yield a Temporal client and the worker's task queue.

    Without `address` an embedded server runs, in memory, until the block ends. Blobs are in a temporary
    folder, unless `settings` or `blobs` name a store.

    Args:
        agents: agents, swarms and graphs to serve.
        models: providers by name, such as {"scripted": ScriptedModel(script)}.
        address: of a running server.
        settings: used in place of the environment's.
        blobs: a blob store used in place of the settings'.
        worker: more arguments of Temporal's Worker, such as {"max_cached_workflows": 0}.
        task_queue: used in place of the settings'.
        parks: see `PerdurePlugin`.
        resources: see `PerdurePlugin`.
        credentials: see `PerdurePlugin`.

    """
    async with AsyncExitStack() as stack:
        if settings is None:
            # The user's own folder must not fill with the blobs of tests.
            home = Path(
                stack.enter_context(TemporaryDirectory(prefix="perdure-", ignore_cleanup_errors=True))
            )
            settings = load_settings(home=home)
        if address is None:
            server = await stack.enter_async_context(DevServer.start(db=None, ui_port=False))
            address = server.address
        queue = task_queue or settings.task_queue
        settings = settings.model_copy(update={"address": address, "task_queue": queue})
        plugin = PerdurePlugin(
            agents,
            models=models,
            settings=settings,
            blobs=blobs,
            parks=parks,
            resources=resources,
            credentials=credentials,
        )
        temporal = await connect_temporal(settings, [plugin])
        # First here, so that an error of theirs is raised before the block begins.
        await stack.enter_async_context(plugin.resources.entered())
        await stack.enter_async_context(Worker(temporal, task_queue=settings.task_queue, **(worker or {})))
        yield temporal, settings.task_queue
