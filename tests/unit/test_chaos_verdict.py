"""Verdicts on runs: duplicates are counted by their effects, whatever keys were sent."""

import json
from typing import Any

from proofs.chaos import report
from proofs.chaos.catalogue import GoldCall, Task, Turn
from proofs.chaos.results import Head, keep, load
from proofs.chaos.subjects import TaskOutcome
from proofs.chaos.verdict import Evidence, Record, count_results

CD = GoldCall("cd", {"folder": "a"}, "None")
LS = GoldCall("ls", {}, "[]")
TASK = Task(id="task_1", classes=("Files",), turns=(Turn("go", ((CD,), (CD,), (LS,))),))


def verdict_of(*done: GoldCall, times: tuple[float, ...] = (1.0, 2.0)) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for call in done:
        key = json.dumps([call.name, call.arguments], sort_keys=True)
        counts[key] = counts.get(key, 0) + 1
    task = {
        "state": True,
        "responses": True,
        "differences": "",
        "digest": "d",
        "times": list(times),
        "done": counts,
    }
    return {"flagged_repeats": 0, "effects": len(done), "tasks": {"task_1": task}}


def count(found: dict[str, Any], **more: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "tasks": [TASK],
        "seed": 1,
        "outcomes": [TaskOutcome(task="task_1")],
        "verdict": found,
        "provider_log": [],
        "expected": {"task_1": "d"},
    }
    return count_results(Evidence(**{**usual, **more}))


def request(at: float, fault: str = "", **more: int) -> dict[str, Any]:
    return {"at": at, "task": "task_1", "turn": 0, "fault": fault, "errors": 0, "surprises": 0, **more}


def test_repeated_gold_call_is_no_duplicate() -> None:
    """A call that the gold answer makes twice may be carried out twice."""
    found = count(verdict_of(CD, CD, LS))
    assert (found["unflagged_duplicates"], found["missing"], found["right"], found["equal"]) == (0, 0, 1, 1)


def test_extra_effect_is_unflagged_duplicate() -> None:
    """An extra effect is an unflagged duplicate, and a gold call without an effect is missing."""
    assert count(verdict_of(CD, CD, LS, LS))["unflagged_duplicates"] == 1
    assert count(verdict_of(CD, LS))["missing"] == 1


def test_other_final_state_is_not_equal() -> None:
    """A final state that differs from the run without faults is not equal."""
    assert count(verdict_of(CD, CD, LS), expected={"task_1": "other"})["equal"] == 0


def test_only_billed_calls_count() -> None:
    """Model calls that no provider bills are not counted."""
    found = count(
        verdict_of(CD, CD, LS),
        provider_log=[request(1, "429"), request(2, "500"), request(3, "cut"), request(4)],
    )
    assert found["models"] == 2


def test_stall_is_between_useful_steps() -> None:
    """The longest stall lies between two steps that brought the task on; a failed answer is none."""
    found = verdict_of(CD, CD, LS, times=(10.0, 11.0))
    assert (
        count(found, provider_log=[request(2.0), request(9.0, "500"), request(12.0)])["stall_seconds"] == 8.0
    )


def test_errors_are_counted_once() -> None:
    """An error counts once, though each later request of its turn contains it again."""
    found = count(
        verdict_of(CD, CD, LS),
        provider_log=[request(1, errors=1), request(2, errors=1), request(3, errors=2)],
    )
    assert found["errors"] == 2


def record(**more: Any) -> Record:
    kept: dict[str, Any] = {"tasks": 1, "finished": 1, "right": 1, "equal": 1}
    named: dict[str, Any] = {"subject": "perdure", "kind": "workers", "seed": 1}
    return Record(**{**named, **kept, **more})


def test_record_holds_only_without_failures() -> None:
    """A record holds only when no count shows a broken promise."""
    assert record().holds
    for broken in ("unflagged_duplicates", "missing", "lost", "unfired"):
        assert not record(**{broken: 1}).holds
    for less in ("finished", "right", "equal"):
        assert not record(**{less: 0}).holds


def test_results_stored_by_kind_and_seed(tmp_path: Any) -> None:
    """The newest result of each kind and seed is stored, and the report shows it."""
    head = Head.now({"bfcl-eval": "1"})
    keep(tmp_path, head, record(flagged_repeats=1))
    keep(tmp_path, head, record(kind="server", faults={"kill server": 10}))
    keep(tmp_path, head, record(flagged_repeats=7))
    stored = [result for _, result in load(tmp_path)]
    assert [(result.kind, result.flagged_repeats) for result in stored] == [("workers", 7), ("server", 0)]
    report.write(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "in 2 of 2 runs" in page
    assert f"| server | 1 | {head.at[:10]} | {head.versions['perdure']} | 10 | 1 of 1 |" in page


def test_runs_counts_equal_outcomes_in_row(tmp_path: Any) -> None:
    """`runs` counts equal outcomes of a seed in a row, and begins at 1 after a different one."""
    head = Head.now({"bfcl-eval": "1"})
    counts = list[int]()
    for faults, right in (({"kill": 2}, 1), ({"kill": 2}, 1), ({"kill": 3}, 1), ({"kill": 3}, 0)):
        keep(tmp_path, head, record(faults=faults, right=right))
        counts += [result.runs for _, result in load(tmp_path)]
    assert counts == [1, 2, 1, 1]
