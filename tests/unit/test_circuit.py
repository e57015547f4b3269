"""Circuits: what fails is left alone for a while, and then asked once."""

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


def test_it_opens_after_so_many_failures_in_a_row_and_only_for_that_model() -> None:
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


def test_after_the_wait_one_call_is_let_in_and_the_others_wait_for_what_it_finds() -> None:
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


def test_a_probe_that_fails_makes_the_next_wait_twice_as_long_up_to_a_bound() -> None:
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    waits: list[float] = []
    for _ in range(5):
        fail(circuits)
        waits.append(refused(circuits))
        clock.now += waits[-1]
    assert waits == [10, 20, 40, 40, 40]


def test_who_insists_is_let_in_to_see_one_at_a_time() -> None:
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


def test_what_the_provider_asks_of_one_who_insists_is_heeded_by_all() -> None:
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    fail(circuits)
    circuits.record_failure(circuits.admit(KEY, force_once=True), "overloaded", timedelta(seconds=60))
    with pytest.raises(CircuitOpen) as refusal:
        circuits.admit(KEY, force_once=True)
    assert (refusal.value.by_provider, refusal.value.retry_after) == (True, timedelta(seconds=60))


def test_hundreds_who_insist_do_not_storm_what_is_still_down() -> None:
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


def test_while_one_is_out_to_see_the_others_know_for_how_long_it_may_be_shut() -> None:
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    fail(circuits)
    clock.now = 10
    circuits.admit(KEY)
    with pytest.raises(CircuitOpen) as refusal:
        circuits.admit(KEY)
    assert (refusal.value.retry_after.total_seconds(), refusal.value.park_for.total_seconds()) == (5, 20)


def test_a_delay_that_the_provider_asks_for_holds_who_insists_too() -> None:
    circuits = Clock().circuits()
    fail(circuits, "rate_limited", after=30)
    with pytest.raises(CircuitOpen) as refusal:
        circuits.admit(KEY, force_once=True)
    assert refusal.value.by_provider


def test_a_probe_that_ends_without_telling_anything_lets_another_look() -> None:
    clock = Clock()
    circuits = clock.circuits(threshold=1)
    fail(circuits)
    clock.now = 10
    circuits.release(circuits.admit(KEY))
    circuits.record_failure(circuits.admit(KEY), "authentication")
    circuits.admit(KEY)


def test_what_was_under_way_before_is_not_taken_for_the_probe() -> None:
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


def test_a_delay_that_the_provider_asks_for_holds_all_calls_and_then_none() -> None:
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


def test_a_delay_of_hours_holds_no_longer_than_ten_minutes() -> None:
    clock = Clock()
    circuits = clock.circuits()
    fail(circuits, "rate_limited", after=12 * 3600)
    assert refused(circuits) == 600


def test_one_that_nobody_asks_for_long_is_forgotten() -> None:
    clock = Clock()
    circuits = clock.circuits(threshold=2)
    fail(circuits)
    fail(circuits)
    clock.now = 10 + 41
    assert circuits.states() == {}
    fail(circuits)
    circuits.admit(KEY)


@pytest.mark.parametrize("kind", [kind for kind, rule in RULES.items() if not rule.counts_for_circuit])
def test_what_says_nothing_about_the_other_side_never_opens_it(kind: ErrorKind) -> None:
    circuits = Clock().circuits(threshold=1)
    fail(circuits, kind)
    circuits.admit(KEY)
    assert circuits.states() == {}


def test_failures_that_come_in_late_do_not_prolong_the_wait() -> None:
    clock = Clock()
    circuits = clock.circuits()
    under_way = [circuits.admit(KEY) for _ in range(20)]
    for ticket in under_way:
        circuits.record_failure(ticket, "timeout")
    assert (refused(circuits), len(clock.opened)) == (10, 1)


def test_who_was_let_in_before_the_trouble_says_nothing_about_it() -> None:
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


def test_an_answer_that_comes_in_late_does_not_end_the_delay_that_was_by_provider() -> None:
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
def test_a_failure_that_names_a_delay_is_a_failure(after: float) -> None:
    clock = Clock()
    circuits = clock.circuits()
    for _ in range(3):
        fail(circuits, "overloaded", after)
        clock.now += after
    assert refused(circuits) > 5
    assert clock.opened == [KEY]
