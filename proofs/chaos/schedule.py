"""What goes wrong, and when: a pure function of the kind of fault, the seed and the size of the run.

Moments are counted in calls: the n-th new call that reaches the tools, the n-th request that reaches the
provider. So a seed gives the same schedule on every machine; which task's call is the n-th is up to the
race of the day.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Where = Literal["tool", "model"]
Moment = Literal["before", "during", "after"]
"""Of a tool's call: before its effect, between effect and answer, after the answer. Of a model's: before
its first word, in the middle of them, after the last."""
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
    "none": "no faults: what the others are compared with",
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
    "together": "some of each",
}
_FIRST, _LAST = 0.04, 0.85
"""Between which shares of the expected calls faults fall: the run is under way, and has time to recover."""
_FULL_SET = 200


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong, once."""

    id: int
    where: Where
    at: int
    """Which call it is, from 1."""
    moment: Moment
    what: str
    """"kill", "line", "disk", "clock" are done by the conductor; the rest by whom the call reaches."""
    target: str = ""
    seconds: float = 0.0
    drop: bool = False
    """Of a tool's call, before its effect: it is lost, as if the request had never arrived."""


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """A fault without its place among the calls."""

    where: Where
    moment: Moment
    what: str
    target: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much there is to do in a run."""

    tasks: int
    effects: int
    models: int

    def share(self, of_full: int) -> int:
        """As many for this run as `of_full` are for the whole set; at least one."""
        return max(1, round(of_full * self.tasks / _FULL_SET))


def schedule(kind: Kind, seed: int, size: Size) -> tuple[Fault, ...]:
    """The faults of a run, in order of their calls."""
    chance = random.Random(f"{kind} {seed}")
    wishes = _wishes(kind, size)
    chance.shuffle(wishes)
    placed: list[Fault] = []
    for where, calls in (("tool", size.effects), ("model", size.models)):
        mine = [wish for wish in wishes if wish.where == where]
        places = range(max(1, round(calls * _FIRST)), max(len(mine) + 2, round(calls * _LAST)))
        for wish, at in zip(mine, sorted(chance.sample(places, len(mine))), strict=True):
            drop = wish.what == "kill" and wish.target.startswith("worker") and wish.moment == "before"
            placed.append(Fault(id=len(placed) + 1, at=at, drop=drop and where == "tool", **vars(wish)))
    return tuple(placed)


def _wishes(kind: Kind, size: Size) -> list[_Wish]:  # noqa: C901 - a case a kind
    match kind:
        case "none" | "disk_slow":
            return []
        case "workers":
            every = _kills("worker", 3, ("tool", "model")) + _kills("workers", 1, ("tool",))
            return _thinned(every, size)
        case "server":
            return _around(size.share(10), "kill", "server", ("tool", "model"))
        case "tools":
            return _thinned(_kills("tools", 7, ("tool",)), size)
        case "duplicates":
            cut = _Wish(where="tool", moment="during", what="cut")
            late = _Wish(where="tool", moment="during", what="late", seconds=8)
            return [cut] * size.share(45) + [late] * size.share(15)
        case "provider":
            quick = [what for what in ("429", "500", "529", "cut", "garbled") for _ in range(size.share(12))]
            return [_answered(what) for what in quick] + [_answered("stall", 15)] * size.share(6)
        case "arguments":
            return [_answered("arguments")] * size.share(60)
        case "temporal_line" | "provider_line":
            return _lines(kind.removesuffix("_line"), size)
        case "disk_full":
            return [_Wish(where="tool", moment="after", what="disk", seconds=6)] * size.share(5)
        case "clock":
            return [
                _Wish(where="model", moment="before", what="clock", seconds=seconds)
                for seconds in (3600, -3600, 86_400, -300, 90, -86_400)
            ]
        case "together":
            return _together(size)


def _together(size: Size) -> list[_Wish]:
    """Some of each, as a bad day brings them."""
    of_one: Sequence[Kind] = ("duplicates", "provider", "arguments")
    few = Size(tasks=max(1, size.tasks // 2), effects=size.effects, models=size.models)
    mixed = [wish for kind in of_one for wish in _wishes(kind, few)]
    mixed += _thinned(_kills("worker", 3, ("tool", "model")) + _kills("tools", 3, ("tool",)), size)
    mixed += _around(size.share(3), "kill", "server", ("tool", "model"))
    mixed.append(_Wish(where="model", moment="before", what="line", target="temporal reset"))
    mixed.append(_Wish(where="tool", moment="after", what="line", target="provider cut", seconds=3))
    return mixed


def _kills(target: str, each: int, wheres: Sequence[Where]) -> list[_Wish]:
    return [
        _Wish(where=where, moment=moment, what="kill", target=target)
        for where in wheres
        for moment in get_args(Moment)
        for _ in range(each)
    ]


def _thinned(of_full: Sequence[_Wish], size: Size) -> list[_Wish]:
    """So many of those for the whole set as a smaller run can take, from everywhere among them."""
    count = min(len(of_full), max(3, size.share(len(of_full))))
    return [of_full[n * len(of_full) // count] for n in range(count)]


def _around(count: int, what: str, target: str, wheres: Sequence[Where]) -> list[_Wish]:
    """So many, at all moments by turns."""
    moments: tuple[Moment, ...] = get_args(Moment)
    return [
        _Wish(where=wheres[n % len(wheres)], moment=moments[n % len(moments)], what=what, target=target)
        for n in range(count)
    ]


def _answered(what: str, seconds: float = 0.0) -> _Wish:
    return _Wish(where="model", moment="during", what=what, seconds=seconds)


def _lines(target: str, size: Size) -> list[_Wish]:
    outages = [("slow", 20.0)] * size.share(2) + [("silent", 15.0)] * size.share(2) + [("cut", 30.0)]
    outages += [("reset", 0.0)] * size.share(8)
    return [
        _Wish(where="tool", moment="after", what="line", target=f"{target} {line}", seconds=seconds)
        for line, seconds in outages
    ]
