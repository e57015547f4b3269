"""A blob store of your own: a table of SQLite. docs/blob_stores.md explains it."""

import asyncio
import hashlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from perdure import BlobStore, StoredBlob


class SqliteBlobs:
    def __init__(self, file: Path) -> None:
        self._file = file

    async def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        await asyncio.to_thread(self._write, name, data)
        return name

    async def get(self, name: str) -> bytes:
        return await asyncio.to_thread(self._read, name)

    def _write(self, name: str, data: bytes) -> None:
        with closing(self._connect()) as database, database:
            # Written anew if it is there: that renews its date, and repairs it.
            database.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (name, data, time.time()))

    def _read(self, name: str) -> bytes:
        with closing(self._connect()) as database:
            row = database.execute("SELECT data FROM blobs WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(f"no blob {name!r} in {self._file}")
        data = bytes(row[0])
        if hashlib.sha256(data).hexdigest() != name:
            raise OSError(f"blob {name} is damaged in {self._file}")
        return data

    def _connect(self) -> sqlite3.Connection:
        # The timeout is the retry: SQLite waits so long while another process writes.
        database = sqlite3.connect(self._file, timeout=30)
        database.execute(
            "CREATE TABLE IF NOT EXISTS blobs (name TEXT PRIMARY KEY, data BLOB, stored_at REAL)"
        )
        return database


class DatedSqliteBlobs(SqliteBlobs):
    async def list_blobs(self) -> AsyncIterator[StoredBlob]:
        for name, size, date in await asyncio.to_thread(
            self._query, "SELECT name, length(data), stored_at FROM blobs"
        ):
            yield StoredBlob(name=name, size_bytes=size, stored_at=datetime.fromtimestamp(date, UTC))

    async def renew(self, name: str) -> None:
        await self.put(await self.get(name))

    async def delete(self, name: str, *, before: datetime) -> bool:
        statement = "DELETE FROM blobs WHERE name = ? AND stored_at < ? RETURNING name"
        return bool(await asyncio.to_thread(self._query, statement, name, before.timestamp()))

    def _query(self, statement: str, *values: object) -> list[tuple[str, int, float]]:
        with closing(self._connect()) as database, database:
            return database.execute(statement, values).fetchall()


def open_blobs() -> BlobStore:
    return DatedSqliteBlobs(Path(os.environ["BLOBS_FILE"]))
