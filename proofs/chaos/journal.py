"""The tools' journal: what was done is on disk before it is answered, so `kill -9` loses nothing."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One effect, done once."""

    at: float
    """Seconds since 1970."""
    task: str
    key: str | None
    """The caller's idempotency key; None when it has none."""
    name: str
    arguments: dict[str, Any]
    result: str


class Journal:
    """Effects in the order they were done, and how often a key came again."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A last line that was cut by a kill was never answered: it is dropped."""
        self.entries: list[Entry] = []
        self.told = 0
        self._by_key: dict[str, Entry] = {}
        whole = _whole(path)
        for line in whole.splitlines():
            self._remember(json.loads(line))
        self._file = path.open("ab")
        self._file.truncate(len(whole))

    def done(self, key: str | None) -> Entry | None:
        """The effect of that key, if it was done."""
        return None if key is None else self._by_key.get(key)

    def add(self, entry: Entry) -> None:
        """Keep an effect; it is on disk when this returns."""
        self._write(asdict(entry))

    def add_told(self, key: str) -> None:
        """Keep that a key came again."""
        self._write({"told": key})

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _write(self, plain: dict[str, Any]) -> None:
        self._file.write(json.dumps(plain).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._remember(plain)

    def _remember(self, plain: dict[str, Any]) -> None:
        if "told" in plain:
            self.told += 1
            return
        entry = Entry(**plain)
        self.entries.append(entry)
        if entry.key is not None:
            self._by_key[entry.key] = entry


def _whole(path: Path) -> bytes:
    """The lines that were written to their end."""
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]
