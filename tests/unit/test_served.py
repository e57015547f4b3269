"""What the workers of a task queue serve, by their heartbeats to the server."""

from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any

import pytest

from perdure.task_queues import (
    Poller,
    ServingWorker,
    parse_workers,
    plugin_name,
    served_differently,
    served_names,
)

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def _worker(
    identity: str, *served: str, age: float = 1, is_ending: bool = False, tells: bool = True
) -> ServingWorker:
    heartbeat = NOW - timedelta(seconds=age)
    return ServingWorker(
        identity=identity,
        served=tuple(sorted(served)) if tells else None,
        is_ending=is_ending,
        heartbeat=heartbeat,
    )


def _poller(identity: str) -> Poller:
    return Poller(identity=identity, version=None, last_poll=NOW)


def _now(tzinfo: tzinfo) -> datetime:
    return NOW.astimezone(tzinfo)


def _parsed(names: list[str]) -> ServingWorker:
    time = SimpleNamespace(ToDatetime=_now)
    beat: dict[str, Any] = {"worker_identity": "1@a", "task_queue": "q", "status": 1, "heartbeat_time": time}
    plugins = [SimpleNamespace(name="other"), SimpleNamespace(name=plugin_name(names))]
    info = SimpleNamespace(worker_heartbeat=SimpleNamespace(**beat, plugins=plugins))
    [worker] = parse_workers(SimpleNamespace(workers_info=[info]), "q")
    assert parse_workers(SimpleNamespace(workers_info=[info]), "another") == []
    return worker


def test_plugin_names_what_is_served() -> None:
    """The names are read again from the plugin's; of very many, the rest is a number. A client's names none."""
    assert _parsed(["b", "a"]).served == ("a", "b")
    assert _parsed([]).served is None
    served = _parsed([f"agent-{number:05}" for number in range(2000)]).served
    assert served is not None
    assert len(" ".join(served)) < 8100
    assert (served[0], served[-1]) == ("agent-00000", f"+{2000 - len(served) + 1}")


@pytest.mark.parametrize(
    ("workers", "own", "words"),
    [
        ([], None, None),
        ([_worker("1@a", "x"), _worker("2@b", "x")], None, None),
        ([_worker("1@a", "x", "y"), _worker("2@b", "x")], None, "(1@a: y; 2@b: none)"),
        ([_worker("1@a", "x"), _worker("2@b", "y"), _worker("3@c", "y")], None, "(1@a: x; 2@b, 3@c: y)"),
        ([_worker("1@a", "x"), _worker("2@b", "y", age=600)], None, None),
        ([_worker("1@a", "x"), _worker("2@b", "y", is_ending=True)], None, None),
        ([_worker("1@a", "x"), _worker("2@b", tells=False)], None, None),
        ([_worker("1@a", "x")], ["x"], None),
        ([_worker("1@a", "x")], ["z", "x"], "(this worker: z; 1@a: none)"),
    ],
)
def test_difference_is_told(workers: list[ServingWorker], own: list[str] | None, words: str | None) -> None:
    """Only workers that run now, and tell what they serve, can differ."""
    told = served_differently(workers, NOW, own=own)
    assert told is None if words is None else words in str(told)


@pytest.mark.parametrize(
    ("pollers", "workers", "names"),
    [
        (["1@a"], [_worker("1@a", "x", "y")], {"x", "y"}),
        (["1@a", "2@b"], [_worker("1@a", "x"), _worker("2@b", "y")], {"x", "y"}),
        # Nobody polls, or one that polls has not told yet, or does not tell at all.
        ([], [], None),
        (["1@a", "2@b"], [_worker("1@a", "x")], None),
        (["1@a", "2@b"], [_worker("1@a", "x"), _worker("2@b", tells=False)], None),
        # One that has ended is listed as a poller for a while.
        (["1@a", "2@b"], [_worker("1@a", "x"), _worker("2@b", "y", is_ending=True)], {"x"}),
        (["1@a"], [_worker("1@a", "x", "+40")], None),
    ],
)
def test_names_are_known_once_all_have_told(
    pollers: list[str], workers: list[ServingWorker], names: set[str] | None
) -> None:
    assert served_names(map(_poller, pollers), workers, NOW) == names
