"""Helpers for tests of agents: a scripted model, and a server and worker in the test's own process.

    script = [calls("order_status", order_id="1"), says("It is on its way.")]
    async with running(agents=[support], models={"scripted": ScriptedModel(script)}) as client:
        result = await client.run("support", "Where is 1?")

The agent names its model "scripted:" followed by any text.

`check_blob_store` tests a blob store of your own.
"""

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from perdure.activities.providers.scripted import Line, ScriptedModel, calls, fails, says
    from perdure.blobs import BlobStore
    from perdure.members import Member
    from perdure.model import Model
    from perdure.settings import Settings
    from perdure.starter.client.connect import Client
    from perdure.testing.blob_stores import (
        BLOB_STORE_CHECKS,
        DATED_BLOB_STORE_CHECKS,
        check_blob_store,
    )
    from perdure.user_credentials import CredentialsProvider

_HOME = {
    "BLOB_STORE_CHECKS": "perdure.testing.blob_stores",
    "DATED_BLOB_STORE_CHECKS": "perdure.testing.blob_stores",
    "Line": "perdure.activities.providers.scripted",
    "ScriptedModel": "perdure.activities.providers.scripted",
    "calls": "perdure.activities.providers.scripted",
    "check_blob_store": "perdure.testing.blob_stores",
    "fails": "perdure.activities.providers.scripted",
    "says": "perdure.activities.providers.scripted",
}

__all__ = [
    "BLOB_STORE_CHECKS",
    "DATED_BLOB_STORE_CHECKS",
    "Line",
    "ScriptedModel",
    "calls",
    "check_blob_store",
    "fails",
    "running",
    "says",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'perdure.testing' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


@asynccontextmanager
async def running(
    agents: "Sequence[Member]",
    *,
    models: "Mapping[str, Model] | None" = None,
    address: str | None = None,
    settings: "Settings | None" = None,
    blobs: "BlobStore | None" = None,
    worker: Mapping[str, Any] | None = None,
    task_queue: str | None = None,
    parked: Literal["raise", "wait"] = "raise",
    resources: Any = None,
    credentials: "CredentialsProvider | None" = None,
) -> "AsyncGenerator[Client]":
    """Run a worker that serves the agents, and yield a client of it while the body runs.

    Without `address`, an embedded server runs in memory for as long. The worker has a task queue of its own, so it
    takes no run of another worker, and no other takes its runs.

    Args:
        agents: the agents, swarms and graphs that the worker serves.
        models: providers by name, such as {"scripted": ScriptedModel(script)}.
        address: address of a running Temporal server, in place of the embedded server.
        settings: settings in place of those of the environment.
        blobs: a blob store in place of the one that the settings name.
        worker: further arguments of Temporal's Worker, such as {"max_cached_workflows": 0}.
        task_queue: task queue to share with other workers and clients, in place of one of its own.
        parked: "raise": a run that would park, which a person would have to resume, fails with the reason. "wait":
            it parks as it does elsewhere.
        resources: what tools get as `ToolContext.resources`: a `lifespan`, or a value such as a fake.
        credentials: what tools get by `ToolContext.credentials`: a function made by `credentials`.

    """
    # Imported by name: workers and starters must not import each other, and this module joins the two.
    serving = import_module("perdure.workers.running").serving
    client_type = import_module("perdure.starter.client.connect").Client
    async with serving(
        agents,
        models=models,
        address=address,
        settings=settings,
        blobs=blobs,
        worker=worker,
        task_queue=task_queue or f"test-{uuid.uuid4().hex[:12]}",
        parks=parked == "wait",
        resources=resources,
        credentials=credentials,
    ) as (temporal, queue):
        yield client_type(temporal, task_queue=queue)
