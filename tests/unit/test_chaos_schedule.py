"""A seed gives one schedule, and the schedule holds what its kind promises."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from proofs.chaos.schedule import KINDS, Kind, Size, schedule

FULL = Size(tasks=200, effects=1142, models=1768)
SMALL = Size(tasks=36, effects=200, models=310)
SCRIPT = """
import json
from dataclasses import asdict
from proofs.chaos.schedule import KINDS, Size, schedule
size = Size(tasks=200, effects=1142, models=1768)
print(json.dumps([[asdict(fault) for fault in schedule(kind, 7, size)] for kind in KINDS]))
"""


@pytest.mark.parametrize("seed", ["0", "1"])
def test_schedule_is_same_in_every_process(seed: str) -> None:
    """A seed gives the same schedule in another process, whatever its hash seed."""
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
    ).stdout
    assert json.loads(printed) == [[asdict(fault) for fault in schedule(kind, 7, FULL)] for kind in KINDS]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("none", "disk_slow")])
def test_other_seed_moves_same_faults(kind: Kind) -> None:
    """Another seed places the same faults at other calls."""
    first, second = schedule(kind, 1, FULL), schedule(kind, 2, FULL)
    assert first != second
    assert Counter((f.where, f.what, f.target) for f in first) == Counter(
        (f.where, f.what, f.target) for f in second
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [FULL, SMALL, Size(tasks=1, effects=2, models=4)])
def test_each_fault_has_own_reachable_call(kind: Kind, size: Size) -> None:
    """No two faults share a call, and a run reaches the call of each."""
    faults = schedule(kind, 3, size)
    assert len({fault.id for fault in faults}) == len(faults)
    for where, calls in (("tool", size.effects), ("model", size.models)):
        places = [fault.at for fault in faults if fault.where == where]
        assert len(set(places)) == len(places)
        if size.tasks > 1:
            assert all(1 <= at < calls for at in places)


def test_workers_die_at_every_moment() -> None:
    """Workers are killed at each moment of tool calls and of model calls."""
    moments = Counter((fault.where, fault.moment) for fault in schedule("workers", 1, FULL))
    assert set(moments) == {(w, m) for w in ("tool", "model") for m in ("before", "during", "after")}
    assert all(
        fault.drop
        for fault in schedule("workers", 1, FULL)
        if (fault.where, fault.moment) == ("tool", "before")
    )


def test_server_dies_ten_times() -> None:
    assert [fault.target for fault in schedule("server", 1, FULL)] == ["server"] * 10
