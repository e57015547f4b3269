"""The benchmarks' report: its arithmetic, its failures, and its verdicts on targets."""

import json
from pathlib import Path
from typing import Any

import pytest

from proofs.benchmarks.bench import Record
from proofs.benchmarks.report import (
    DASH,
    TARGETS,
    Found,
    Notes,
    Results,
    Target,
    against_best,
    against_floor,
    load,
    number,
    page,
    shorten,
    spread_of,
    verdict,
    watched_history,
    worst,
    write,
)

HEAD = {
    "suite": "steps",
    "at": "2026-01-02T03:04:05+00:00",
    "machine": {"cpu": "a CPU", "cores": 2, "system": "Linux", "python": "3.11.7"},
    "versions": {"floor": {"temporalio": "1.35.0"}, "perdure": {"temporalio": "1.35.0", "perdure": "0.2.0"}},
    "command": "python -m proofs.benchmarks run steps",
}
CASE: dict[str, Any] = {"steps": 10, "size": 2048}


def success(subject: str, turn: int = 1, case: dict[str, Any] | None = None, **values: float) -> Record:
    return Record(suite="steps", subject=subject, case=case or CASE, round=turn, values=values)


def failure(subject: str, error: str, *, turn: int = 1, **case: Any) -> Record:
    return Record(suite="steps", subject=subject, case={**CASE, **case}, round=turn, error=error)


def results(*records: Record, suite: str = "steps") -> Results:
    return Results({**HEAD, "suite": suite}, list(records))


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (-0.0001, "0"),
        (0.0153, "0.015"),
        (0.3, "0.30"),
        (1, "1"),
        (1.1, "1.10"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (-2.5, "-2.50"),
    ],
)
def test_number_has_three_significant_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_spread_is_shown_when_visible() -> None:
    assert spread_of([1.2, 1.0, 1.1]) == f"1.10 (1{DASH}1.20)"
    assert spread_of([1.101, 1.102]) == "1.10"
    assert spread_of([-0.2, -0.1]) == "-0.15 (-0.20 to -0.10)"


def test_ratio_is_within_round() -> None:
    """The machine was ten times slower in the second round, for both: the ratio of medians would say 5.5."""
    found = results(
        success("floor", 1, wall_ms=10),
        success("perdure", 1, wall_ms=11),
        success("floor", 2, wall_ms=100),
        success("perdure", 2, wall_ms=120),
        success("perdure", 3, wall_ms=999),  # a round without a floor does not count
    )
    assert found.ratios("perdure", "floor", "wall_ms", CASE) == pytest.approx([1.1, 1.2])
    assert verdict(target(1.15), against_floor("wall_ms", **CASE)(found)) == "met"
    assert f"| **perdure** | 1.15 (1.10{DASH}1.20) |" in page({"steps": found})


def test_ratio_is_within_case() -> None:
    other = {"steps": 10, "size": 10_240}
    found = results(success("floor", case=other, wall_ms=10), success("perdure", wall_ms=11))
    assert found.ratios("perdure", "floor", "wall_ms", {"steps": 10}) == []


def test_nan_is_not_measured() -> None:
    found = results(success("floor", wall_ms=float("nan")), success("floor", 2, wall_ms=3))
    assert list(found.values("floor", "wall_ms", CASE).values()) == [3]


def target(limit: float, *, least: bool = False, unit: str = "", slack: float = 0) -> Target:
    return Target(
        suite="steps", what="it", limit=limit, least=least, unit=unit, slack=slack, of=lambda _: Found()
    )


@pytest.mark.parametrize(
    ("wanted", "values", "expected"),
    [
        (target(1.1), [1.1], "met"),
        (target(1.1), [1.0, 1.2, 1.3], "**missed** by 0.10"),
        (target(0.9, least=True), [0.9], "met"),
        (target(3, least=True), [2.5], "**missed** by 0.50"),
        (target(60, unit="ms"), [62.5], "**missed** by 2.50 ms"),
        (target(0, slack=1, unit="KB"), [-0.9], "met"),
        (target(0, slack=1, unit="KB"), [-1.5], "**missed** by 1.50 KB"),
        (target(1.1), [], "not measured"),
    ],
)
def test_verdict_has_size_of_miss(wanted: Target, values: list[float], expected: str) -> None:
    assert verdict(wanted, Found(values)) == expected


def test_target_is_missed_when_perdure_fails() -> None:
    found = against_floor("wall_ms", **CASE)(
        results(success("floor", wall_ms=10), failure("perdure", "Failed: x"))
    )
    assert verdict(target(1.1), found) == "**missed**"
    assert found.note == "perdure fails: 10 steps, 2 KB"


def test_best_peer_is_fastest_finished() -> None:
    found = results(
        success("perdure", wall_ms=10),
        success("strands", wall_ms=30),
        success("langgraph", wall_ms=20),
        success("floor", wall_ms=5),
        failure("pydantic_ai", "Failed: too large"),
    )
    best = against_best("wall_ms", ["strands", "langgraph", "pydantic_ai"], **CASE)(found)
    assert (best.values, best.note) == ([2.0], "langgraph")
    most = against_best("wall_ms", ["strands", "langgraph"], more=True, **CASE)(found)
    assert (most.values, most.note) == ([10 / 30], "strands")


def test_target_without_finished_peer() -> None:
    """When all peers fail the target is met; without any peer it is not measured."""
    found = results(success("perdure", wall_ms=10), failure("strands", "Failed: too large"))
    assert verdict(target(3, least=True), against_best("wall_ms", ["strands"], **CASE)(found)) == "met"
    assert verdict(target(3, least=True), against_best("wall_ms", ["dbos"], **CASE)(found)) == "not measured"


def test_worst_case_counts() -> None:
    long = {"steps": 1000, "size": 2048}
    found = results(
        success("floor", worker_cpu_ms=10),
        success("perdure", worker_cpu_ms=11),
        success("floor", case=long, worker_cpu_ms=10),
        success("perdure", case=long, worker_cpu_ms=13),
    )
    got = worst(lambda of, case: of.ratios("perdure", "floor", "worker_cpu_ms", case))(found)
    assert (got.values, got.note) == ([1.3], "worst at 1,000 steps, 2 KB")


def test_failure_is_worst_case() -> None:
    found = results(success("perdure", bytes=4000), failure("perdure", "Failed: x", steps=1000))
    got = worst(lambda of, case: list(of.values("perdure", "bytes", case).values()))(found)
    assert (got.met, got.note) == (False, "perdure fails: 1,000 steps, 2 KB")


def test_history_counts_beyond_tool_result() -> None:
    found = results(success("floor", bytes=3000), success("perdure", bytes=2048 + 2560 + 512))
    [row] = lines(page({"steps": found}), "| History a step beyond")
    assert row.endswith("| ≤ 2.50 KB | 3 KB, worst at 10 steps, 2 KB | **missed** by 0.50 KB |")


def test_watched_history_against_none() -> None:
    case = {"watchers": 100, "words": 5}
    alone = {**case, "watchers": 0}
    found = results(
        success("perdure", case=alone, history_bytes=9000),
        success("perdure", case=case, history_bytes=9000 + 2048),
        success("perdure", 2, case=alone, history_bytes=5000),
        success("perdure", 2, case=case, history_bytes=5000),
        suite="streaming",
    )
    got = watched_history(found)
    assert (got.values, got.note) == ([2.0, 0.0], "against 0 watchers")


def test_watched_history_against_fewest() -> None:
    each = [
        success("perdure", case={"watchers": n, "words": 5}, history_bytes=9000.0 + n) for n in (10, 1, 100)
    ]
    got = watched_history(results(*each, suite="streaming"))
    assert (got.values, got.note) == ([99 / 1024], "against 1 watcher")


def test_failed_cell_has_footnote() -> None:
    text = page(
        {
            "steps": results(
                success("floor", wall_ms=10),
                success("floor", case={**CASE, "steps": 50}, wall_ms=10),
                failure("strands", "Failed: too\n`large`"),
                failure("strands", "as with 10 steps: Failed: too\n`large`", steps=50),
                failure("dbos", "Failed: other"),
            )
        }
    )
    assert "| strands | fails[^1] | fails[^1] |" in text
    assert f"| dbos | fails[^2] | {DASH} |" in text
    assert lines(text, "[^") == [
        "[^1]: steps: strands, 10 steps, 2 KB: `Failed: too 'large'`",
        "[^2]: steps: dbos, 10 steps, 2 KB: `Failed: other`",
    ]


def test_failures_in_some_rounds_are_counted() -> None:
    text = page({"steps": results(success("strands", wall_ms=10), failure("strands", "Failed: x", turn=2))})
    assert "| strands | 10, 1 of 2 fail[^1] |" in text


def test_skipped_shorter_run_did_not_fail(tmp_path: Path) -> None:
    """A subject that failed at 50 steps is not tried in the next round, not even with 10."""
    records = [
        success("strands", wall_ms=10),
        failure("strands", "Failed: x", steps=50),
        failure("strands", "as with 50 steps: Failed: x", turn=2),
        failure("strands", "as with 50 steps: Failed: x", turn=2, steps=50),
    ]
    text = "\n".join([json.dumps(HEAD), *(record.line() for record in records)])
    (tmp_path / "steps.jsonl").write_text(f"{text}\n")
    write(tmp_path)
    assert "| strands | 10 | fails[^1] |" in (tmp_path / "README.md").read_text()


def test_footnote_error_is_short() -> None:
    assert len(shorten("word " * 100)) <= 200
    assert Notes().mark(failure("strands", "x" * 500)) == "[^1]"


def test_missing_measure_has_no_row() -> None:
    found = results(success("floor", server_cpu_ms=3), success("dbos", wall_ms=2, waited_ms=2.5))
    text = page({"steps": found})
    assert "| dbos | 2 |" in text
    assert "| dbos, for its client | 2.50 |" in text
    assert text.count("| dbos |") == 1


def test_each_table_has_its_command() -> None:
    small, large = success("floor", wall_ms=1), success("floor", case={**CASE, "size": 10_240}, wall_ms=1)
    again = lines(page({"steps": results(small, large)}), "Again:")
    assert again == [
        "Again: `python -m proofs.benchmarks run --all`",
        "Again: `python -m proofs.benchmarks run steps --sizes 2048`",
        "Again: `python -m proofs.benchmarks run steps --sizes 10240`",
    ]


def test_page_of_folder(tmp_path: Path) -> None:
    for suite in ("throughput", "steps", "unheard_of"):
        record = Record(suite=suite, subject="perdure", case={"n": 3}, values={"wall_ms": 2.5, "seen": 1})
        head = {**HEAD, "suite": suite, "command": f"python -m proofs.benchmarks run {suite} --rounds 1"}
        (tmp_path / f"{suite}.jsonl").write_text(f"{json.dumps(head)}\n{record.line()}\n")
    assert [*load(tmp_path)] == ["steps", "throughput", "unheard_of"]
    write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    run = "python -m proofs.benchmarks run"
    assert f"{run} steps --rounds 1\n{run} throughput --rounds 1\n" in text
    assert "| **perdure** | temporalio 1.35.0, perdure 0.2.0 |" in text
    assert "2026-01-02 03:04:05 UTC | a CPU, 2 cores, Linux, Python 3.11.7" in text
    assert "(steps-wall.svg)" in text
    assert "(streaming.svg)" not in text
    assert "**seen**\n\n|  | n 3 |\n| :-- | --: |\n| **perdure** | 1 |" in text


def test_no_results_meet_no_target(tmp_path: Path) -> None:
    write(tmp_path)
    assert (tmp_path / "README.md").read_text().count("| not measured |") == len(TARGETS)
