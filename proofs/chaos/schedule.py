"""Schedule of faults: a pure function of the kind of fault, the seed and the size of the run.

A fault happens at the n-th new call that reaches the tools, or at the n-th request that reaches the provider.
So a seed gives the same schedule on every machine; the race of the day decides which task's call is the n-th.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Where = Literal["tool", "model"]
Moment = Literal["before", "during", "after"]
"""Moment within a call.

A tool's call: before its effect, between effect and answer, after the answer.
A model's call: before its first word, in the middle of the words, after the last.
"""
Kind = Literal[
    "none",
    "workers",
    "server",
    "tools",
    "duplicates",
    "provider",
    "arguments",
    "temporal_line",
    "provider_line",
    "disk_full",
    "disk_slow",
    "clock",
    "together",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEANING: dict[Kind, str] = {
    "none": "no faults: the base for comparison with the other kinds",
    "workers": "`kill -9` of one worker, or all: before, during, after a tool's effect or a model's answer",
    "server": "`kill -9` of the Temporal server, started again on its database",
    "tools": "`kill -9` of the tools' process, before an effect, between effect and answer, after the answer",
    "duplicates": "the effect is done, then the connection is reset, or the answer is later than the timeout",
    "provider": "429 with retry-after, 500, 529, a cut stream, a stalled one, broken JSON in the stream",
    "arguments": "the model asks for a call whose arguments are not JSON",
    "temporal_line": "workers to Temporal: slow for 20 s, reset, silent (half-open) for 15 s, cut for 30 s",
    "provider_line": "workers to the provider: the same",
    "disk_full": "no worker can write a byte to a file, for some seconds; all results go to the blob store",
    "disk_slow": "each `fsync` of a worker takes 250 ms; all results go to the blob store",
    "clock": "the workers' wall clock jumps by minutes, hours, a day, forward and back",
    "together": "some of each kind",
}
_FIRST, _LAST = 0.04, 0.85
"""Shares of the expected calls between which faults fall: the run is under way, with time to recover."""
_FULL_SET = 200


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Fault that happens once."""

    id: int
    where: Where
    at: int
    """Number of the call, from 1."""
    moment: Moment
    what: str
    """Sort of fault. The conductor causes "kill", "line", "disk" and "clock", the called process the rest."""
    target: str = ""
    seconds: float = 0.0
    drop: bool = False
    """True when a tool's call is lost before its effect, as if the request had never arrived."""


@dataclass(frozen=True, kw_only=True)
class _UnplacedFault:
    """Fault without its place among the calls."""

    where: Where
    moment: Moment
    what: str
    target: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """Numbers of tasks, effects and model calls of a run."""

    tasks: int
    effects: int
    models: int

    def scale(self, full: int) -> int:
        """Return as many for this run as `full` are for the full set; at least 1."""
        return max(1, round(full * self.tasks / _FULL_SET))


def schedule(kind: Kind, seed: int, size: Size) -> tuple[Fault, ...]:
    """Return the faults of a run, in order of their calls."""
    chance = random.Random(f"{kind} {seed}")
    unplaced = _unplaced_faults(kind, size)
    chance.shuffle(unplaced)  # else equal faults would come in blocks
    placed: list[Fault] = []
    for where, calls in (("tool", size.effects), ("model", size.models)):
        mine = [fault for fault in unplaced if fault.where == where]
        # Even a run of a few calls has a place for each fault.
        places = range(max(1, round(calls * _FIRST)), max(len(mine) + 2, round(calls * _LAST)))
        for fault, at in zip(mine, sorted(chance.sample(places, len(mine))), strict=True):
            drop = fault.what == "kill" and fault.target.startswith("worker") and fault.moment == "before"
            placed.append(Fault(id=len(placed) + 1, at=at, drop=drop and where == "tool", **vars(fault)))
    return tuple(placed)


def _unplaced_faults(kind: Kind, size: Size) -> list[_UnplacedFault]:  # noqa: C901 - one case for each kind
    match kind:
        case "none" | "disk_slow":
            return []
        case "workers":
            every = _kills("worker", 3, ("tool", "model")) + _kills("workers", 1, ("tool",))
            return _thin_out(every, size)
        case "server":
            return _spread_over_moments(size.scale(10), "kill", "server", ("tool", "model"))
        case "tools":
            return _thin_out(_kills("tools", 7, ("tool",)), size)
        case "duplicates":
            cut = _UnplacedFault(where="tool", moment="during", what="cut")
            late = _UnplacedFault(where="tool", moment="during", what="late", seconds=8)
            return [cut] * size.scale(45) + [late] * size.scale(15)
        case "provider":
            quick = [what for what in ("429", "500", "529", "cut", "garbled") for _ in range(size.scale(12))]
            return [_provider_fault(what) for what in quick] + [_provider_fault("stall", 15)] * size.scale(6)
        case "arguments":
            return [_provider_fault("arguments")] * size.scale(60)
        case "temporal_line" | "provider_line":
            return _line_faults(kind.removesuffix("_line"), size)
        case "disk_full":
            return [_UnplacedFault(where="tool", moment="after", what="disk", seconds=6)] * size.scale(5)
        case "clock":
            return [
                _UnplacedFault(where="model", moment="before", what="clock", seconds=seconds)
                for seconds in (3600, -3600, 86_400, -300, 90, -86_400)
            ]
        case "together":
            return _together(size)


def _together(size: Size) -> list[_UnplacedFault]:
    """Return some faults of each kind, as a bad day brings them."""
    kinds: Sequence[Kind] = ("duplicates", "provider", "arguments")
    few = Size(tasks=max(1, size.tasks // 2), effects=size.effects, models=size.models)
    mixed = [fault for kind in kinds for fault in _unplaced_faults(kind, few)]
    mixed += _thin_out(_kills("worker", 3, ("tool", "model")) + _kills("tools", 3, ("tool",)), size)
    mixed += _spread_over_moments(size.scale(3), "kill", "server", ("tool", "model"))
    mixed.append(_UnplacedFault(where="model", moment="before", what="line", target="temporal reset"))
    mixed.append(_UnplacedFault(where="tool", moment="after", what="line", target="provider cut", seconds=3))
    return mixed


def _kills(target: str, each: int, wheres: Sequence[Where]) -> list[_UnplacedFault]:
    return [
        _UnplacedFault(where=where, moment=moment, what="kill", target=target)
        for where in wheres
        for moment in get_args(Moment)
        for _ in range(each)
    ]


def _thin_out(full: Sequence[_UnplacedFault], size: Size) -> list[_UnplacedFault]:
    """Return as many of the full set's faults as a smaller run can take, spread over all of them."""
    count = min(len(full), max(3, size.scale(len(full))))
    return [full[n * len(full) // count] for n in range(count)]


def _spread_over_moments(count: int, what: str, target: str, wheres: Sequence[Where]) -> list[_UnplacedFault]:
    """Return `count` faults that take turns at all moments and places."""
    moments: tuple[Moment, ...] = get_args(Moment)
    return [
        _UnplacedFault(
            where=wheres[n % len(wheres)], moment=moments[n % len(moments)], what=what, target=target
        )
        for n in range(count)
    ]


def _provider_fault(what: str, seconds: float = 0.0) -> _UnplacedFault:
    return _UnplacedFault(where="model", moment="during", what=what, seconds=seconds)


def _line_faults(target: str, size: Size) -> list[_UnplacedFault]:
    outages = [("slow", 20.0)] * size.scale(2) + [("silent", 15.0)] * size.scale(2) + [("cut", 30.0)]
    outages += [("reset", 0.0)] * size.scale(8)
    return [
        _UnplacedFault(where="tool", moment="after", what="line", target=f"{target} {line}", seconds=seconds)
        for line, seconds in outages
    ]
