"""DBOS as the harness sees it."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSClient, EnqueueOptions, error

from proofs.benchmarks.kit import Job, Where, result

from .workflow import MODEL, TEXT, look_up, look_up_aloud, lookup

_STORED = (
    ("workflow_status", "inputs"),
    ("workflow_status", "output"),
    ("workflow_input", "inputs"),
    ("workflow_output", "output"),
    ("operation_outputs", "output"),
    ("streams", "value"),
)
"""Columns with the inputs, outputs and streams of a run; a run's id is `workflow_uuid` in each table."""


@dataclass(frozen=True)
class _Database:
    """Database of the runs."""

    url: str
    schema: str
    """Schema, for Postgres only."""

    @classmethod
    def of(cls, where: Where) -> "_Database":
        folder = Path(where.folder).resolve()
        schema = "bench_" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        url = os.environ.get("PERDURE_BENCH_POSTGRES") or f"sqlite:///{folder / 'dbos.sqlite'}"
        return cls(url, schema)

    @property
    def is_postgres(self) -> bool:
        return not self.url.startswith("sqlite")

    def migrate(self) -> None:
        """Create the tables unless they exist."""
        DBOS.migrate(self.url, schema=self.schema)

    def bytes_of(self, run: str) -> int:
        """Return the length of everything that is serialized for the run."""
        url = sqlalchemy.make_url(self.url)
        if self.is_postgres:
            url = url.set(drivername="postgresql+psycopg")
        engine = sqlalchemy.create_engine(url)
        try:
            with engine.connect() as connection:
                return sum(connection.scalar(self._length(*place, run)) or 0 for place in _STORED)
        finally:
            engine.dispose()

    def _length(self, table: str, column: str, run: str) -> sqlalchemy.Select[tuple[int]]:
        value = sqlalchemy.column(column, sqlalchemy.Text)
        of = sqlalchemy.column("workflow_uuid", sqlalchemy.Text)
        kept = sqlalchemy.table(table, value, of, schema=self.schema if self.is_postgres else None)
        length = sqlalchemy.func.sum(sqlalchemy.func.length(value))
        return sqlalchemy.select(length).select_from(kept).where(of == run)


class Dbos:
    """DBOS with Pydantic AI."""

    workflow = ""
    model = MODEL
    tool = lookup.__qualname__
    stream = True

    @asynccontextmanager
    async def worker(self, where: Where) -> AsyncIterator[None]:
        """Launch DBOS in this process, and register its queue."""
        database = _Database.of(where)
        DBOS(
            config={
                "name": "bench",
                "system_database_url": database.url,
                "dbos_system_schema": database.schema,
            }
        )
        DBOS.launch()
        try:
            await DBOS.register_queue_async(where.queue)
            yield
        finally:
            await asyncio.to_thread(DBOS.destroy)

    async def connect(self, where: Where) -> Any:
        """Connect a client."""
        self.queue = where.queue
        self.database = _Database.of(where)
        await asyncio.to_thread(self.database.migrate)
        return DBOSClient(
            system_database_url=self.database.url,
            dbos_system_schema=self.database.schema,
            use_listen_notify=self.database.is_postgres,
        )

    async def run(self, client: DBOSClient, job: Job) -> str:
        """Start a run, and wait for its answer."""
        await self.start(client, job)
        return await self.finish(client, job)

    async def start(self, client: DBOSClient, job: Job) -> None:
        """Start a run."""
        function: Any = look_up_aloud if job.tokens else look_up
        options: EnqueueOptions = {
            "queue_name": self.queue,
            "workflow_name": function.__qualname__,
            "workflow_id": job.id,
        }
        await client.enqueue_async(options, job.prompt)

    async def finish(self, client: DBOSClient, job: Job) -> str:
        """Wait for the answer of a run."""
        handle: Any = await client.retrieve_workflow_async(job.id)
        return str(await handle.get_result())

    async def watch(self, client: DBOSClient, job: Job) -> AsyncIterator[str]:
        """Yield the text as a watcher of the run's stream sees it."""
        while True:
            try:
                async for piece in client.read_stream_async(job.id, TEXT):
                    yield piece
                return
            except error.DBOSNonExistentWorkflowError:  # not started yet
                await asyncio.sleep(0.01)

    async def evidence(self, client: DBOSClient, job: Job) -> str:
        """Return what DBOS recorded of a run, as JSON; the seconds are from its first step to its last.

        The run's own start and end would include a little more, but on SQLite they are full seconds.
        """
        steps = await client.list_workflow_steps_async(job.id)
        good = [step for step in steps if step["error"] is None]
        outputs = [step["output"] for step in good if step["function_name"] == self.tool]
        wanted = {
            result(step, call, job.size)
            for step in range(1, job.steps + 1)
            for call in range(1, job.calls + 1)
        }
        began = min(step["started_at_epoch_ms"] or 0 for step in steps)
        ended = max(step["completed_at_epoch_ms"] or 0 for step in steps)
        return json.dumps(
            {
                "models": sum("__model.request" in step["function_name"] for step in good),
                "tools": len(outputs),
                "results": len(wanted.intersection(outputs)),
                "bytes": await asyncio.to_thread(self.database.bytes_of, job.id),
                "seconds": (ended - began) / 1000,
            }
        )
