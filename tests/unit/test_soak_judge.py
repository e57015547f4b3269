"""The soak's verdict: growth is seen through noise; caches that fill up at the beginning are not growth."""

from random import Random
from typing import Any

import pytest

from proofs.soak.judge import Sample, findings, left_over, second_half, slope
from proofs.soak.report import Soak, page

HEAD: dict[str, Any] = {
    "at": "2026-01-02T03:04:05+00:00",
    "machine": {"cpu": "a CPU", "cores": 2, "system": "Linux", "python": "3.11.7"},
    "command": "make soak",
    "rate": 1.0,
    "every": 10.0,
    "sessions": 4,
    "continue_at": 400,
    "transcript_cache_mb": 4,
    "blob_cache_mb": 4,
    "cached": 60,
    "note": "",
}


def samples_of(an_hour: float, *, fills: float = 0.0, noise: float = 0.0, count: int = 240) -> list[Sample]:
    """Memory of a worker over 40 minutes."""
    chance = Random(1)
    samples: list[Sample] = []
    for n in range(count):
        hours = n * 10 / 3600
        value = 100 + an_hour * hours + fills * min(1.0, 3 * n / count) + chance.gauss(0, 1) * noise
        worker = {"rss_mb": value + (500 if n % 40 == 7 else 0), "cached": 3}
        samples.append({"seconds": n * 10.0, "loaded": True, "processes": {"worker 1": worker, "server": {}}})
    return samples


def test_outliers_do_not_move_slope() -> None:
    """The slope of a line is exact, and outliers do not move it."""
    line = [(float(x), 3.0 * x + 1) for x in range(20)]
    assert slope(line) == pytest.approx(3)
    assert slope([*line, (20.0, 9e9), (3.5, -9e9)]) == pytest.approx(3)
    assert slope([]) == slope([(1.0, 2.0)]) == 0


def test_only_second_half_counts() -> None:
    assert second_half([(0.0, 1), (1.0, 1), (4.0, 2), (8.0, 3)]) == [(4.0, 2), (8.0, 3)]


@pytest.mark.parametrize(
    ("samples", "fine"),
    [
        (samples_of(0.0, noise=2.0), True),
        (samples_of(0.0, fills=90.0, noise=2.0), True),
        (samples_of(10.0, noise=1.0), True),
        (samples_of(15.0, noise=1.0), True),  # 5 MB in twenty minutes: a step of the allocator
        (samples_of(30.0, noise=2.0), False),
        (samples_of(30.0, fills=90.0, noise=2.0), False),
    ],
)
def test_growth_differs_from_noise_and_caches(samples: list[Sample], fine: bool) -> None:
    """Growth is found, but noise and caches that fill up are not taken for it."""
    (memory,) = [finding for finding in findings(samples, ["worker 1"]) if finding.bound.key == "rss_mb"]
    assert memory.is_fine == fine


def test_left_over_is_counted_after_load() -> None:
    """Cached workflows are counted in the sample after the load."""
    after: Sample = {"seconds": 9.0, "loaded": False, "processes": {"worker 1": {"cached": 2}}}
    assert left_over([*samples_of(0.0), after], ["worker 1"]) == {"worker 1": 2}
    assert left_over(samples_of(0.0), ["worker 1"]) == {}


def test_soak_fails_for_each_reason() -> None:
    """Growth, errors, a short time and an uneven load each fail a soak."""

    def problems(samples: list[Sample], errors: list[str]) -> list[str]:
        return Soak(head=HEAD, samples=samples, tally={"done": {"runs": 3}, "errors": errors}).problems

    assert problems(samples_of(0.0), []) == []
    assert "resident memory" in problems(samples_of(99.0), [])[0]
    assert "1 operations" in problems(samples_of(0.0), ["runs: TimeoutError: "])[0]
    assert "too short" in problems(samples_of(0.0, count=20), [])[0]
    slow = Soak(head=HEAD, samples=samples_of(0.0), tally={"done": {"runs": 3}, "skipped": 2, "errors": []})
    assert "not steady" in slow.problems[0]


def test_page_has_duration_command_and_growth() -> None:
    text = page(Soak(head=HEAD, samples=samples_of(99.0), tally={"done": {"runs": 1234}, "errors": []}))
    assert "40 minutes of a steady load" in text
    assert "make soak" in text
    assert "**grows**" in text
    assert "| runs | 1,234 |" in text
