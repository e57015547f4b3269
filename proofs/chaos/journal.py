"""Journal of the tools: each effect is on disk before it is answered, so `kill -9` loses nothing."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Effect that was carried out once."""

    at: float
    """Seconds since 1970."""
    task: str
    key: str | None
    """Idempotency key of the caller, or None."""
    name: str
    arguments: dict[str, Any]
    result: str


class Journal:
    """Effects in the order they were carried out, and the number of repeated keys."""

    def __init__(self, path: Path) -> None:
        """Read the file; drop a last line that a kill cut, because it was never answered."""
        self.entries: list[Entry] = []
        self.repeats = 0
        self._by_key: dict[str, Entry] = {}
        complete = _read_complete_lines(path)
        for line in complete.splitlines():
            self._remember(json.loads(line))
        # The next entry follows the last complete line; appended to half a line, it would be lost too.
        self._file = path.open("ab")
        self._file.truncate(len(complete))

    def find(self, key: str | None) -> Entry | None:
        """Return the effect of that key, or None."""
        return None if key is None else self._by_key.get(key)

    def add(self, entry: Entry) -> None:
        """Store an effect; it is on disk when this returns."""
        self._write(asdict(entry))

    def add_repeat(self, key: str) -> None:
        """Store that a key came again."""
        self._write({"repeat": key})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, plain: dict[str, Any]) -> None:
        self._file.write(json.dumps(plain).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._remember(plain)

    def _remember(self, plain: dict[str, Any]) -> None:
        if "repeat" in plain:
            self.repeats += 1
            return
        entry = Entry(**plain)
        self.entries.append(entry)
        if entry.key is not None:
            self._by_key[entry.key] = entry


def _read_complete_lines(path: Path) -> bytes:
    """Return the lines that were written to their end."""
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]
