"""Delays from outside: bounded before anything is computed with them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from perdure.activities.traffic.circuit import Circuits
from perdure.delays import LONGEST_DELAY, sensible_delay
from perdure.errors import ModelError
from perdure.wire.effects import ModelFailure
from perdure.workflows.engine.events import ModelFailed
from perdure.workflows.engine.fold import fold
from perdure.workflows.engine.parking import LONGEST_WAIT, MOST_WAIT, with_sensible_wait
from perdure.workflows.engine.state import AgentState

from .runs import NOW, asked, begun

ABSURD = [
    timedelta.max,
    timedelta(days=366),
    timedelta(seconds=10**11),
    1e300,
    10**400,
    float("inf"),
    float("nan"),
]


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (timedelta(hours=2), timedelta(hours=2)),
        (30, timedelta(seconds=30)),
        (0.5, timedelta(seconds=0.5)),
        (timedelta(days=30), LONGEST_DELAY),
        (-3, timedelta()),
        (timedelta.min, timedelta()),
        (None, None),
        (True, None),
        ("soon", None),
        *((value, None) for value in ABSURD),
    ],
)
def test_delay_is_bounded(delay: object, expected: timedelta | None) -> None:
    assert sensible_delay(delay) == expected
    # A provider of the user's passes on what it was given.
    assert ModelError("rate_limited", "x", retry_after=delay).retry_after == expected  # type: ignore[arg-type]


def test_circuit_takes_any_delay() -> None:
    circuits = Circuits()
    for delay in (timedelta.max, timedelta.min, timedelta(seconds=10**11)):
        circuits.record_failure(circuits.admit("m"), "rate_limited", delay)
    circuits.check("m")


@pytest.mark.parametrize("kind", ["rate_limited", "circuit_open"])
@pytest.mark.parametrize(
    "retry_in",
    [timedelta(seconds=10**11), timedelta.max, timedelta(days=-5), timedelta(days=6), timedelta(1e6)],
)
def test_fold_bounds_a_recorded_wait(kind: str, retry_in: timedelta) -> None:
    """A history that holds a wait of centuries folds to a retry that comes, however often it is tried in vain."""
    state = asked(begun())
    for tries in range(5):
        failure = ModelFailure(kind=kind, message="busy", retry_in=retry_in)
        parked = fold(
            replace(state, parking=replace(state.parking, auto_retries=tries)),
            ModelFailed(failure=failure, at=NOW),
        )
        found = parked.parking.parked
        assert found is not None
        assert found.resumes_at is not None
        assert NOW < found.resumes_at <= NOW + MOST_WAIT


def _parked() -> AgentState:
    failure = ModelFailure(kind="timeout", message="x", retry_in=timedelta(minutes=1))
    return fold(asked(begun()), ModelFailed(failure=failure, at=NOW))


@pytest.mark.parametrize(
    ("resumes_at", "sooner"),
    [
        (datetime.max.replace(tzinfo=UTC), True),
        (NOW + timedelta(hours=3), False),
        (NOW - timedelta(1), False),
    ],
)
def test_carried_wait_of_years_is_shortened(resumes_at: datetime, sooner: bool) -> None:
    state = _parked()
    assert state.parking.parked is not None
    parked = state.parking.parked.model_copy(update={"resumes_at": resumes_at})
    carried = with_sensible_wait(replace(state, parking=replace(state.parking, parked=parked)), NOW)
    assert carried.parking.parked is not None
    assert carried.parking.parked.resumes_at == (NOW + LONGEST_WAIT if sooner else resumes_at)
