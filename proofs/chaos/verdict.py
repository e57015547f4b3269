"""What a run came to: the counts, and which of them must be what."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .catalogue import Task
from .script import steps
from .subjects import Played

_REFUSED = frozenset({"429", "500", "529"})
"""Answers that no provider bills."""
_BROKEN = _REFUSED | {"cut", "garbled", "stall"}
"""Answers that bring a run no further."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of one subject under one kind of fault."""

    subject: str
    kind: str
    seed: int
    tasks: int
    finished: int = 0
    """Tasks whose caller got the right last word of each turn, and whose run then ended."""
    lost: int = 0
    """Tasks that ended otherwise, or not at all."""
    right: int = 0
    """Final states, and all results, right by the set's own checkers."""
    equal: int = 0
    """Final states equal to those of the run without faults, private attributes included."""
    effects: int = 0
    needed_effects: int = 0
    told: int = 0
    """Calls that came again under a key that was done: answered from the journal."""
    untold: int = 0
    """Effects beyond the gold calls: done twice without the tools being able to tell."""
    missing: int = 0
    """Gold calls that were never done."""
    models: int = 0
    """Model calls that a provider would bill."""
    needed_models: int = 0
    stall_seconds: float = 0.0
    """The longest time between two steps of one task."""
    resumes: int = 0
    """How often a parked run that does not try again by itself was resumed by the one on duty."""
    errors: int = 0
    """Results the model was shown that were no answers of a tool."""
    surprises: int = 0
    """Answers of tools the model was shown that are not those of the gold replay."""
    faults: Mapping[str, int] = field(default_factory=dict[str, int])
    """What was done, and how often."""
    unfired: int = 0
    """Faults of the schedule whose moment never came."""
    deaths: int = 0
    """Workers that ended by themselves."""
    seconds: float = 0.0
    notes: Sequence[str] = ()
    """What the first tasks that were lost, or wrong, say of it."""
    runs: int = 1
    """How often in a row this seed came out the same."""

    def line(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    def same(self, other: "Record") -> bool:
        """Whether the same tasks met the same faults, and ended the same."""
        names = ("tasks", "faults", "unfired", "finished", "lost", "right", "equal", "effects", "untold")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @property
    def holds(self) -> bool:
        """Whether everything that is promised was kept."""
        all_of_them = self.finished == self.right == self.equal == self.tasks
        return all_of_them and not (self.untold or self.missing or self.lost or self.unfired)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known when a run is over."""

    tasks: Sequence[Task]
    seed: int
    played: Sequence[Played]
    judged: Mapping[str, Any]
    """What the tools say: `told`, and by task the checkers' word, a digest, and what was done when."""
    asked: Sequence[Mapping[str, Any]]
    """The provider's log."""
    expected: Mapping[str, str] | None
    """Digests of the final states of the run without faults; None: this is that run."""


def counted(seen: Seen) -> dict[str, Any]:
    """The counts of a record that follow from what was seen."""
    judged: Mapping[str, Any] = seen.judged["tasks"]
    finished = [one.task for one in seen.played if not one.error]
    expected = digests(seen.judged) if seen.expected is None else seen.expected
    excess, missing = _beside_gold(seen.tasks, judged)
    right = [task.id for task in seen.tasks if _is_right(judged.get(task.id), task)]
    wrong = [one["differences"] for name, one in judged.items() if name not in right]
    billed = [one for one in seen.asked if one["fault"] not in _REFUSED]
    return {
        "tasks": len(seen.tasks),
        "finished": len(finished),
        "lost": len(seen.tasks) - len(finished),
        "right": len(right),
        "equal": sum(expected.get(task.id) == digests(seen.judged).get(task.id) for task in seen.tasks),
        "effects": seen.judged["effects"],
        "needed_effects": sum(task.calls for task in seen.tasks),
        "told": seen.judged["told"],
        "untold": excess,
        "missing": missing,
        "models": len(billed),
        "needed_models": sum(steps(task, seen.seed) for task in seen.tasks),
        "stall_seconds": round(_longest_stall(judged, seen.asked), 1),
        "errors": sum(_at_most(seen.asked, "errors").values()),
        "surprises": sum(_at_most(seen.asked, "surprises").values()),
        "notes": [f"{one.task}: {one.error}"[:400] for one in seen.played if one.error][:3] + wrong[:3],
    }


def digests(judged: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each task's final state."""
    return {name: one["digest"] for name, one in judged["tasks"].items()}


def _is_right(one: Mapping[str, Any] | None, task: Task) -> bool:
    if one is None:
        return task.calls == 0
    return bool(one["state"] and one["responses"])


def _beside_gold(tasks: Iterable[Task], judged: Mapping[str, Any]) -> tuple[int, int]:
    """Effects beyond the gold calls, and gold calls without an effect, whatever their keys were."""
    excess = missing = 0
    for task in tasks:
        calls = (call for turn in task.turns for group in turn.groups for call in group)
        gold = Counter(json.dumps([call.name, call.arguments], sort_keys=True) for call in calls)
        done = Counter(judged[task.id]["done"] if task.id in judged else {})
        excess += (done - gold).total()
        missing += (gold - done).total()
    return excess, missing


def _longest_stall(judged: Mapping[str, Any], asked: Sequence[Mapping[str, Any]]) -> float:
    times: dict[str, list[float]] = {name: list(one["times"]) for name, one in judged.items()}
    for one in asked:
        if one["fault"] not in _BROKEN:
            times.setdefault(one["task"], []).append(one["at"])
    longest = 0.0
    for each in times.values():
        each.sort()
        longest = max([longest, *(later - sooner for sooner, later in itertools.pairwise(each))])
    return longest


def _at_most(asked: Sequence[Mapping[str, Any]], what: str) -> dict[tuple[str, int], int]:
    """Of each turn the most that was seen at once: each request shows all of its turn again."""
    most: dict[tuple[str, int], int] = {}
    for one in asked:
        turn = (one["task"], one["turn"])
        most[turn] = max(most.get(turn, 0), one[what])
    return most
