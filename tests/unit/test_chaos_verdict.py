"""What a run came to: repeats are counted by what was done, whatever keys were sent."""

import json
from typing import Any

from proofs.chaos import report
from proofs.chaos.catalogue import GoldCall, Task, Turn
from proofs.chaos.results import Head, keep, load
from proofs.chaos.subjects import Played
from proofs.chaos.verdict import Record, Seen, counted

CD = GoldCall("cd", {"folder": "a"}, "None")
LS = GoldCall("ls", {}, "[]")
TASK = Task(id="task_1", classes=("Files",), turns=(Turn("go", ((CD,), (CD,), (LS,))),))


def judged(*done: GoldCall, times: tuple[float, ...] = (1.0, 2.0)) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for call in done:
        key = json.dumps([call.name, call.arguments], sort_keys=True)
        counts[key] = counts.get(key, 0) + 1
    one = {
        "state": True,
        "responses": True,
        "differences": "",
        "digest": "d",
        "times": list(times),
        "done": counts,
    }
    return {"told": 0, "effects": len(done), "tasks": {"task_1": one}}


def seen(found: dict[str, Any], **more: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "tasks": [TASK],
        "seed": 1,
        "played": [Played(task="task_1")],
        "judged": found,
        "asked": [],
        "expected": {"task_1": "d"},
    }
    return counted(Seen(**{**usual, **more}))


def asked(at: float, fault: str = "", **more: int) -> dict[str, Any]:
    return {"at": at, "task": "task_1", "turn": 0, "fault": fault, "errors": 0, "surprises": 0, **more}


def test_calls_that_the_gold_answer_makes_twice_may_be_done_twice() -> None:
    found = seen(judged(CD, CD, LS))
    assert (found["untold"], found["missing"], found["right"], found["equal"]) == (0, 0, 1, 1)


def test_an_effect_beyond_the_gold_calls_is_one_that_nobody_was_told_of() -> None:
    assert seen(judged(CD, CD, LS, LS))["untold"] == 1
    assert seen(judged(CD, LS))["missing"] == 1


def test_a_final_state_that_is_another_than_without_faults_is_seen() -> None:
    assert seen(judged(CD, CD, LS), expected={"task_1": "other"})["equal"] == 0


def test_only_what_a_provider_bills_is_counted_as_paid_for() -> None:
    found = seen(judged(CD, CD, LS), asked=[asked(1, "429"), asked(2, "500"), asked(3, "cut"), asked(4)])
    assert found["models"] == 2


def test_the_longest_stall_is_between_two_things_that_brought_the_task_on() -> None:
    found = judged(CD, CD, LS, times=(10.0, 11.0))
    assert seen(found, asked=[asked(2.0), asked(9.0, "500"), asked(12.0)])["stall_seconds"] == 8.0


def test_errors_are_counted_once_though_each_request_shows_them_again() -> None:
    found = seen(judged(CD, CD, LS), asked=[asked(1, errors=1), asked(2, errors=1), asked(3, errors=2)])
    assert found["errors"] == 2


def record(**more: Any) -> Record:
    whole: dict[str, Any] = {"tasks": 1, "finished": 1, "right": 1, "equal": 1}
    named: dict[str, Any] = {"subject": "perdure", "kind": "workers", "seed": 1}
    return Record(**{**named, **whole, **more})


def test_a_promise_is_kept_only_when_all_of_it_is() -> None:
    assert record().holds
    for broken in ("untold", "missing", "lost", "unfired"):
        assert not record(**{broken: 1}).holds
    for less in ("finished", "right", "equal"):
        assert not record(**{less: 0}).holds


def test_results_are_kept_by_kind_and_seed_and_shown(tmp_path: Any) -> None:
    head = Head.now({"bfcl-eval": "1"})
    for one in (record(told=1), record(kind="server", faults={"kill server": 10}), record(told=7)):
        keep(tmp_path, head, one)
    kept = [one for _, one in load(tmp_path)]
    assert [(one.kind, one.told) for one in kept] == [("workers", 7), ("server", 0)]
    report.write(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "in 2 of 2 runs" in page
    assert "| server | 1 | 10 | 1 of 1 |" in page


def test_a_seed_that_comes_out_the_same_is_counted_and_one_that_does_not_begins_anew(tmp_path: Any) -> None:
    head = Head.now({"bfcl-eval": "1"})
    counts = list[int]()
    for faults, right in (({"kill": 2}, 1), ({"kill": 2}, 1), ({"kill": 3}, 1), ({"kill": 3}, 0)):
        keep(tmp_path, head, record(faults=faults, right=right))
        counts += [one.runs for _, one in load(tmp_path)]
    assert counts == [1, 2, 1, 1]
