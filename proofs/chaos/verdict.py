"""Verdict on a run: its counts, and the promises that they must keep."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .catalogue import Task
from .script import steps
from .subjects import TaskOutcome

_REFUSED = frozenset({"429", "500", "529"})
"""Faults whose answer no provider bills."""
_BROKEN = _REFUSED | {"cut", "garbled", "stall"}
"""Faults whose answer brings a run no further."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Result of a run of a subject under a kind of fault."""

    subject: str
    kind: str
    seed: int
    tasks: int
    finished: int = 0
    """Tasks whose caller got the right last words of each turn, and whose run then ended."""
    lost: int = 0
    """Tasks that ended otherwise, or not at all."""
    right: int = 0
    """Tasks whose final state and results are right by the set's own checkers."""
    equal: int = 0
    """Tasks whose final state equals that of the run without faults, private attributes included."""
    effects: int = 0
    needed_effects: int = 0
    flagged_repeats: int = 0
    """Calls repeated under the key of an earlier effect: answered from the journal."""
    unflagged_duplicates: int = 0
    """Effects beyond the gold calls: carried out twice, and the tools could not tell."""
    missing: int = 0
    """Gold calls that were never carried out."""
    models: int = 0
    """Model calls that a provider would bill."""
    needed_models: int = 0
    stall_seconds: float = 0.0
    """The longest time between two steps of one task."""
    resumes: int = 0
    """Parked runs without a retry timer that the conductor resumed."""
    errors: int = 0
    """Results in the model's requests that were no answers of a tool."""
    surprises: int = 0
    """Answers of tools in the model's requests that differ from the gold replay."""
    faults: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of faults that happened, by name."""
    unfired: int = 0
    """Faults of the schedule whose moment never came."""
    deaths: int = 0
    """Workers that ended by themselves."""
    seconds: float = 0.0
    notes: Sequence[str] = ()
    """Errors and differences of the first tasks that were lost or wrong."""
    runs: int = 1
    """Number of runs of this seed in a row with the same outcome."""

    def line(self) -> str:
        """Return the record as a line of JSON."""
        return json.dumps(asdict(self))

    def same(self, other: "Record") -> bool:
        """Return whether the same tasks met the same faults and had the same outcome."""
        outcome = ("finished", "lost", "right", "equal", "effects", "unflagged_duplicates")
        names = ("tasks", "faults", "unfired", *outcome)
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @property
    def holds(self) -> bool:
        """True when every promise was kept."""
        all_of_them = self.finished == self.right == self.equal == self.tasks
        return all_of_them and not (self.unflagged_duplicates or self.missing or self.lost or self.unfired)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Evidence at the end of a run: outcomes, the tools' verdict and the provider's log."""

    tasks: Sequence[Task]
    seed: int
    outcomes: Sequence[TaskOutcome]
    verdict: Mapping[str, Any]
    """Answer of the tools: their counts, and by task the checkers' verdict, a digest, effects and times."""
    provider_log: Sequence[Mapping[str, Any]]
    """Requests that the provider answered."""
    expected: Mapping[str, str] | None
    """Digests of the final states of the run without faults; None: this is that run."""


def count_results(evidence: Evidence) -> dict[str, Any]:
    """Return the fields of a record that follow from the evidence."""
    tasks, log = evidence.tasks, evidence.provider_log
    judged: Mapping[str, Any] = evidence.verdict["tasks"]
    actual = digests(evidence.verdict)
    expected = actual if evidence.expected is None else evidence.expected
    excess, missing = _compare_with_gold(tasks, judged)
    right = [task.id for task in tasks if _is_right(judged.get(task.id), task)]
    wrong = [verdict["differences"] for name, verdict in judged.items() if name not in right]
    errors = [(outcome.task, outcome.error) for outcome in evidence.outcomes if outcome.error]
    finished = len(evidence.outcomes) - len(errors)
    return {
        "tasks": len(tasks),
        "finished": finished,
        "lost": len(tasks) - finished,
        "right": len(right),
        "equal": sum(expected.get(task.id) == actual.get(task.id) for task in tasks),
        "effects": evidence.verdict["effects"],
        "needed_effects": sum(task.calls for task in tasks),
        "flagged_repeats": evidence.verdict["flagged_repeats"],
        "unflagged_duplicates": excess,
        "missing": missing,
        "models": sum(request["fault"] not in _REFUSED for request in log),
        "needed_models": sum(steps(task, evidence.seed) for task in tasks),
        "stall_seconds": round(_longest_stall(judged, log), 1),
        "errors": sum(_most_per_turn(log, "errors").values()),
        "surprises": sum(_most_per_turn(log, "surprises").values()),
        "notes": [f"{task}: {error}"[:400] for task, error in errors[:3]] + wrong[:3],
    }


def digests(verdict: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each task's final state."""
    return {name: judged["digest"] for name, judged in verdict["tasks"].items()}


def _is_right(judged: Mapping[str, Any] | None, task: Task) -> bool:
    if judged is None:  # the tools know no task without calls
        return task.calls == 0
    return bool(judged["state"] and judged["responses"])


def _compare_with_gold(tasks: Iterable[Task], judged: Mapping[str, Any]) -> tuple[int, int]:
    """Count effects beyond the gold calls, and gold calls without an effect; their keys do not matter."""
    excess = missing = 0
    for task in tasks:
        calls = (call for turn in task.turns for group in turn.groups for call in group)
        gold = Counter(_spelled(json.dumps([call.name, call.arguments])) for call in calls)
        # By name and arguments, not by key: a duplicate under a new key must count too.
        done = Counter[str]()
        counted: Mapping[str, int] = judged[task.id]["done"] if task.id in judged else {}
        for call, times in counted.items():
            done[_spelled(call)] += times
        excess += (done - gold).total()
        missing += (gold - done).total()
    return excess, missing


def _spelled(call: str) -> str:
    """Return a call's JSON in one spelling: 5.0 is 5, because some subjects make arguments canonical."""
    return json.dumps(json.loads(call, parse_float=_number), sort_keys=True)


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _longest_stall(judged: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> float:
    times: dict[str, list[float]] = {name: list(verdict["times"]) for name, verdict in judged.items()}
    for request in log:
        if request["fault"] not in _BROKEN:
            times.setdefault(request["task"], []).append(request["at"])
    longest = 0.0
    for moments in times.values():
        moments.sort()
        longest = max([longest, *(later - sooner for sooner, later in itertools.pairwise(moments))])
    return longest


def _most_per_turn(log: Sequence[Mapping[str, Any]], what: str) -> dict[tuple[str, int], int]:
    """Return the maximum of each turn, because each request repeats the whole turn."""
    most: dict[tuple[str, int], int] = {}
    for request in log:
        turn = (request["task"], request["turn"])
        most[turn] = max(most.get(turn, 0), request[what])
    return most
