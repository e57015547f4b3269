"""A blob store of your own: a table of SQLite. docs/blob_stores.md explains it."""

import asyncio
import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from perdure import BlobStore


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
            database.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", (name, data))

    def _read(self, name: str) -> bytes:
        with closing(self._connect()) as database:
            row = database.execute("SELECT data FROM blobs WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(f"no blob {name!r} in {self._file}")
        return bytes(row[0])

    def _connect(self) -> sqlite3.Connection:
        # The timeout is the retry: SQLite waits so long while another process writes.
        database = sqlite3.connect(self._file, timeout=30)
        database.execute("CREATE TABLE IF NOT EXISTS blobs (name TEXT PRIMARY KEY, data BLOB) WITHOUT ROWID")
        return database


def open_blobs() -> BlobStore:
    return SqliteBlobs(Path(os.environ["BLOBS_FILE"]))
