"""Circuit breakers: opening, probes, forced calls, and delays that a provider names."""

from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from perdure.activities.traffic.circuit import CircuitOpen, Circuits
from perdure.errors import RULES, ErrorKind

KEY = "anthropic:x"


@dataclass
class Clock:
    """Time that passes when a test says so."""

    now: float = 0.0
    opened: list[str] = field(default_factory=list[str])

    def circuits(self, **changed: float) -> Circuits:
        return Circuits(
            threshold=int(changed.get("threshold", 3)),
            first_wait=timedelta(seconds=10),
            longest_wait=timedelta(seconds=40),
            clock=lambda: self.now,
            chance=lambda: 0.0,
            on_open=self.opened.append,
        )


def fail(circuits: Circuits, kind: ErrorKind = "overloaded", after: float | None = None) -> None:
    ticket = circuits.admit(KEY)
    circuits.record_failure(ticket, kind, None if after is None else timedelta(seconds=after))


def refused(circuits: Circuits, key: str = KEY) -> float:
    with pytest.raises(CircuitOpen) as refusal:
        circuits.admit(key)
    return refusal.value.retry_after.total_seconds()


def test_failures_in_a_row_open() -> None:
    """A success in between starts the count anew, and other models are not blocked."""
    clock = Clock()
    circuits = clock.circuits()
    fail(circuits)
    fail(circuits)
    circuits.record_success(circuits.admit(KEY))
    for _ in range(3):
        fail(circuits)
    assert refused(circuits) == 10
    circuits.admit("anthropic:y")
    assert (clock.opened, dict(circuits.states())) == ([KEY], {KEY: "open"})


def test_half_open_admits_one_probe() -> None:
    """All calls after the wait are blocked until the probe's success closes the circuit."""
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    fail(circuits)
    clock.now = 10
    assert circuits.states() == {KEY: "half_open"}
    probe = circuits.admit(KEY)
    assert refused(circuits) > 0
    circuits.record_success(probe)
    circuits.admit(KEY)
    circuits.admit(KEY)
    assert circuits.states() == {}


def test_failed_probe_doubles_the_wait() -> None:
    """The wait grows up to `longest_wait`."""
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    waits: list[float] = []
    for _ in range(5):
        fail(circuits)
        waits.append(refused(circuits))
        clock.now += waits[-1]
    assert waits == [10, 20, 40, 40, 40]


def test_forced_call_probes_early() -> None:
    """Forced calls come half a first wait apart, and their failures make nobody wait longer."""
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    fail(circuits)
    probe = circuits.admit(KEY, force_once=True)
    for force_once in (True, False):
        with pytest.raises(CircuitOpen) as refusal:
            circuits.admit(KEY, force_once=force_once)
        assert refusal.value.retry_after == timedelta(seconds=5), "it will soon be known"
    circuits.record_failure(probe, "overloaded")
    assert refused(circuits) == 10, "nobody else waits longer for it"
    with pytest.raises(CircuitOpen):
        circuits.admit(KEY, force_once=True)
    clock.now = 5
    circuits.record_success(circuits.admit(KEY, force_once=True))
    assert circuits.states() == {}, "what it found out is true for all"


def test_retry_after_of_forced_call_blocks_all() -> None:
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    fail(circuits)
    circuits.record_failure(circuits.admit(KEY, force_once=True), "overloaded", timedelta(seconds=60))
    with pytest.raises(CircuitOpen) as refusal:
        circuits.admit(KEY, force_once=True)
    assert (refusal.value.by_provider, refusal.value.retry_after) == (True, timedelta(seconds=60))


def test_many_forced_calls_are_spaced() -> None:
    """Hundreds of resumed runs may force a call at the same moment."""
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    fail(circuits)
    asked = 0
    for tenth in range(1, 100):
        clock.now = tenth / 10
        for _ in range(300):
            try:
                probe = circuits.admit(KEY, force_once=True)
            except CircuitOpen:
                continue
            asked += 1
            circuits.record_failure(probe, "overloaded")
    assert asked == 2, "one each half of the first wait"


def test_pending_probe_tells_how_long_to_park() -> None:
    """A run that parks waits as long as the circuit stays open if the probe fails."""
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    fail(circuits)
    clock.now = 10
    circuits.admit(KEY)
    with pytest.raises(CircuitOpen) as refusal:
        circuits.admit(KEY)
    assert (refusal.value.retry_after.total_seconds(), refusal.value.park_for.total_seconds()) == (5, 20)


def test_retry_after_blocks_forced_calls() -> None:
    circuits = Clock().circuits()
    fail(circuits, "rate_limited", after=30)
    with pytest.raises(CircuitOpen) as refusal:
        circuits.admit(KEY, force_once=True)
    assert refusal.value.by_provider


def test_released_probe_admits_another() -> None:
    """A cancelled probe, or one that failed for a reason of ours, says nothing of the provider."""
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    fail(circuits)
    clock.now = 10
    circuits.release(circuits.admit(KEY))
    circuits.record_failure(circuits.admit(KEY), "authentication")
    circuits.admit(KEY)


def test_only_the_probe_decides() -> None:
    """Calls that began before the circuit opened neither close it nor open it again."""
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    old = [circuits.admit(KEY) for _ in range(20)]
    fail(circuits)
    clock.now = 10
    probe = circuits.admit(KEY)
    for ticket in old[:10]:
        circuits.release(ticket)
    for ticket in old[10:]:
        circuits.record_failure(ticket, "timeout")
    assert refused(circuits) > 0, "the probe is still out"
    circuits.record_failure(probe, "timeout")
    assert refused(circuits) == 20, "and it alone counts"
    assert len(clock.opened) == 2


def test_retry_after_blocks_all_then_none() -> None:
    """The longest delay holds. It is no outage: afterwards nobody waits for a probe."""
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    under_way = [circuits.admit(KEY) for _ in range(50)]
    for n, ticket in enumerate(under_way):
        circuits.record_failure(ticket, "rate_limited", timedelta(seconds=7 if n else 30))
    with pytest.raises(CircuitOpen) as refusal:
        circuits.admit(KEY)
    assert refusal.value.retry_after == timedelta(seconds=30), "the longest"
    assert refusal.value.by_provider
    assert circuits.states() == {KEY: "open"}
    clock.now = 30
    assert [circuits.admit(KEY) for _ in range(50)], "it is no outage: nobody waits for a probe"
    assert clock.opened == []


def test_retry_after_is_bounded() -> None:
    clock = Clock()
    circuits = clock.circuits()
    fail(circuits, "rate_limited", after=12 * 3600)
    assert refused(circuits) == 600


def test_unused_open_circuit_closes() -> None:
    clock = Clock()
    circuits = clock.circuits(threshold=2)
    fail(circuits)
    fail(circuits)
    clock.now = 10 + 41
    assert circuits.states() == {}
    fail(circuits)
    circuits.admit(KEY)


@pytest.mark.parametrize("kind", [kind for kind, rule in RULES.items() if not rule.counts_for_circuit])
def test_uncounted_kinds_never_open(kind: ErrorKind) -> None:
    circuits = Clock().circuits(threshold=1)
    fail(circuits, kind)
    circuits.admit(KEY)
    assert circuits.states() == {}


def test_late_failures_do_not_lengthen_the_wait() -> None:
    clock = Clock()
    circuits = clock.circuits()
    under_way = [circuits.admit(KEY) for _ in range(20)]
    for ticket in under_way:
        circuits.record_failure(ticket, "timeout")
    assert (refused(circuits), len(clock.opened)) == (10, 1)


def test_late_success_does_not_close() -> None:
    clock = Clock()
    circuits = clock.circuits()
    old = circuits.admit(KEY)
    for _ in range(3):
        fail(circuits)
    circuits.record_success(old)
    assert refused(circuits) == 10
    clock.now = 10
    probe = circuits.admit(KEY)
    circuits.record_success(old)
    assert refused(circuits) == 5, "the probe is still out"
    circuits.record_success(probe)
    circuits.admit(KEY)


def test_late_success_keeps_retry_after() -> None:
    clock = Clock()
    circuits = clock.circuits()
    old = circuits.admit(KEY)
    fail(circuits, "rate_limited", 60)
    clock.now = 1
    circuits.record_success(old)
    assert refused(circuits) == 59
    clock.now = 60
    circuits.record_success(circuits.admit(KEY))
    assert not circuits.states()


@pytest.mark.parametrize("after", [0.0, 1.0])
def test_failure_with_retry_after_counts(after: float) -> None:
    clock = Clock()
    circuits = clock.circuits()
    for _ in range(3):
        fail(circuits, "overloaded", after)
        clock.now += after
    assert refused(circuits) > 5
    assert clock.opened == [KEY]
