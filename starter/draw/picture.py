"""Pictures of graphs, swarms and agents: what there is to draw, and nothing about how. Pure.

A Picture is made of a pinned spec and, when there is a run, of its status. Names come from whoever
wrote the agents: they are made harmless here, once, and escaped where each format wants it.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

from ..cli import tables as show

if TYPE_CHECKING:
    from perdure.wire.results import NodeStatus, RunStatus, Status
    from perdure.wire.spec import AgentSpec, AnySpec, GraphSpec, NodeKind, NodeSpec, ResolvedAgent, SwarmSpec

BoxState = Literal["pending", "running", "waiting", "done", "failed", "skipped", "cancelled"]
"""State of a node of a drawing: that of its newest visit; "waiting" is for a person."""

_OF_RUN: Final[Mapping["Status", BoxState]] = {
    "waiting_approval": "waiting",
    "waiting_person": "waiting",
    "parked": "waiting",
    "paused": "waiting",
    "idle": "waiting",
    "completed": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}
_LONG: Final = 200
_VISIT: Final = re.compile(r"([0-9]{1,9})(?:\.[0-9]{1,9})?")
"""Number of a visit, and of the attempt at it."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A node of the drawing."""

    name: str
    kind: "NodeKind"
    member: str = ""
    """What it runs, when that has another name."""
    state: BoxState = "pending"
    live: str = ""
    """The state in words; empty without a run."""
    spent: str = ""
    """Visits, steps and cost."""
    entry: bool = False
    join: str = ""
    """What it waits for, when several edges lead to it."""

    @property
    def what(self) -> str:
        """Its kind and what it runs."""
        return f"{self.kind} {self.member}".rstrip()

    @property
    def lines(self) -> tuple[str, ...]:
        """What stands below the name."""
        return tuple(line for line in (self.what, self.live, self.spent, self.join) if line)


@dataclass(frozen=True, kw_only=True)
class Arrow:
    """An edge of the drawing, from box number `source` to box number `target`."""

    source: int
    target: int
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Everything to draw, and nothing about how."""

    title: str
    subtitle: str = ""
    boxes: tuple[Box, ...] = ()
    arrows: tuple[Arrow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[int, ...]:
        """Numbers of the boxes where it begins."""
        return tuple(number for number, box in enumerate(self.boxes) if box.entry)


def picture(resolved: "ResolvedAgent", status: "RunStatus | None" = None, *, run_id: str = "") -> Picture:
    """The picture of a spec, with the live state of a run when its status is given."""
    spec = resolved.spec
    live = _Live(status)
    match spec.kind:
        case "graph":
            boxes, arrows = _graph(spec, live)
        case "swarm":
            boxes, arrows = _swarm(spec, live)
        case "agent":
            boxes, arrows = _agent(spec, resolved.members, live)
    return Picture(
        title=f"{spec.kind} {harmless(spec.name)}",
        subtitle=_subtitle(status, run_id),
        boxes=tuple(boxes),
        arrows=tuple(arrows),
        notes=("any agent may hand off to any other",) if spec.kind == "swarm" else (),
    )


def harmless(text: str) -> str:
    """The text in one line, without characters that no format may hold or that reorder its neighbours."""
    plain = "".join(sign for sign in text if sign.isspace() or unicodedata.category(sign)[0] != "C")
    return show.short(plain, _LONG) or "(no name)"


def _subtitle(status: "RunStatus | None", run_id: str) -> str:
    if status is None:
        return ""
    how = f"{status.status} ({status.stop_reason})" if status.stop_reason else status.status
    calls = [show.plural(status.tool_calls, "tool call")] if status.tool_calls else []
    cost = [show.cost(status.cost_microusd)] if status.cost_microusd != 0 else []
    return " · ".join([*([harmless(run_id)] if run_id else []), how, *calls, *cost])


# -- what each kind is made of


def _graph(spec: "GraphSpec", live: "_Live") -> tuple[list[Box], list[Arrow]]:
    number = {node.name: at for at, node in enumerate(spec.nodes)}
    incoming = [sum(edge.target == node.name for edge in spec.edges) for node in spec.nodes]
    boxes = [
        Box(
            name=harmless(node.name),
            kind=node.kind,
            member="" if node.member in (None, node.name) else harmless(str(node.member)),
            state=live.state(node.name),
            live=live.words(node.name),
            spent=live.spent(node.name),
            entry=node.name in spec.entries,
            join=_join(node, edges),
        )
        for node, edges in zip(spec.nodes, incoming, strict=True)
    ]
    arrows = [
        Arrow(
            source=number[edge.source],
            target=number[edge.target],
            label=harmless(edge.when) if edge.when else "",
        )
        for edge in spec.edges
    ]
    return boxes, arrows


def _join(node: "NodeSpec", edges: int) -> str:
    if edges < 2:
        return ""
    match node.join:
        case "all":
            return f"waits for all {edges}"
        case "any":
            return f"waits for any of {edges}"
        case count:
            return f"waits for {count} of {edges}"


def _swarm(spec: "SwarmSpec", live: "_Live") -> tuple[list[Box], list[Arrow]]:
    boxes = [
        Box(
            name=harmless(name),
            kind="agent",
            state=live.state(name),
            live=live.words(name),
            spent=live.spent(name),
            entry=name == spec.entry,
        )
        for name in spec.agents
    ]
    number = {name: at for at, name in enumerate(spec.agents)}
    made: dict[tuple[int, int], list[str]] = {}
    for count, (source, target) in enumerate(live.handoffs, start=1):
        if source in number and target in number:
            made.setdefault((number[source], number[target]), []).append(str(count))
    arrows = [
        Arrow(source=source, target=target, label=", ".join(counts))
        for (source, target), counts in made.items()
    ]
    return boxes, arrows


def _agent(spec: "AgentSpec", members: "Sequence[AnySpec]", live: "_Live") -> tuple[list[Box], list[Arrow]]:
    """The agent and those it may call as tools, and what these may call."""
    known: dict[str, AnySpec] = {member.name: member for member in members}
    number, arrows, ahead = {spec.name: 0}, list[Arrow](), [spec]
    boxes = [
        Box(
            name=harmless(spec.name),
            kind="agent",
            state=live.whole,
            live=live.whole_words,
            spent=live.whole_spent,
            entry=True,
        )
    ]
    while ahead:
        caller = ahead.pop(0)
        for tool in (tool for tool in caller.tools if tool.kind == "agent" and tool.agent):
            name = str(tool.agent)
            if name not in number:
                number[name] = len(boxes)
                called = known.get(name)
                boxes.append(_called(name, called, live, direct=caller is spec))
                ahead += [called] if called is not None and called.kind == "agent" else []
            label = "" if tool.name == name else harmless(tool.name)
            arrows.append(Arrow(source=number[caller.name], target=number[name], label=label))
    return boxes, arrows


def _called(name: str, called: "AnySpec | None", live: "_Live", *, direct: bool) -> Box:
    """An agent called as a tool; of those that others call, this run knows nothing."""
    kind: NodeKind = called.kind if called is not None else "agent"
    if not direct:
        return Box(name=harmless(name), kind=kind)
    return Box(
        name=harmless(name),
        kind=kind,
        state=live.state(name),
        live=live.words(name),
        spent=live.spent(name),
    )


# -- the live state


class _Live:
    """The state of a run, asked by the names of its nodes."""

    def __init__(self, status: "RunStatus | None") -> None:
        self._status = status
        self._visits: dict[str, list[NodeStatus]] = {}
        for visit in status.nodes if status is not None else ():
            self._visits.setdefault(visit.node, []).append(visit)
        # A path begins with the key of a visit, or with the name of a node.
        keys = {visit.key: visit.node for visit in status.nodes} if status is not None else {}
        paths = [want.path[0] for want in status.waiting if want.path] if status is not None else []
        self._waiting = frozenset(keys.get(first, first) for first in paths)

    @property
    def whole(self) -> BoxState:
        """State of the run itself."""
        return "pending" if self._status is None else _OF_RUN.get(self._status.status, "running")

    @property
    def whole_words(self) -> str:
        """As `words`, of the run itself."""
        return "" if self._status is None else self._status.status

    @property
    def whole_spent(self) -> str:
        """As `spent`, of the run itself; its cost stands above the drawing."""
        return (
            show.plural(self._status.step, "step") if self._status is not None and self._status.step else ""
        )

    @property
    def handoffs(self) -> list[tuple[str, str]]:
        """Who handed on to whom, in order; of a long run, the newest of them."""
        nodes = self._status.nodes if self._status is not None else []
        return [(one.node, after.node) for one, after in pairwise(nodes) if one.stop_reason == "handoff"]

    def state(self, name: str) -> BoxState:
        """State of that node."""
        visits = self._visits.get(name)
        if not visits:
            return "pending"
        newest: BoxState = "running" if any(v.state == "running" for v in visits) else visits[-1].state
        return "waiting" if newest == "running" and name in self._waiting else newest

    def words(self, name: str) -> str:
        """State of that node in words; empty without a run."""
        if self._status is None:
            return ""
        visits = self._visits.get(name)
        if not visits:
            return (
                "never ran" if self._status.status in ("completed", "failed", "cancelled") else "not yet run"
            )
        return _how(self.state(name), visits[-1])

    def spent(self, name: str) -> str:
        """Visits, steps and cost of that node, as far as there are any."""
        return " · ".join(_amounts(self._visits.get(name, [])))


def _how(state: BoxState, newest: "NodeStatus") -> str:
    if state == "waiting":
        return "waits for a person"
    if newest.error is not None and state == "failed":
        return f"failed: {harmless(newest.error.kind)}"
    natural = newest.stop_reason in (None, "end_turn", "handoff", state) or state == "running"
    return state if natural else f"{state} ({newest.stop_reason})"


def _amounts(runs: "Sequence[NodeStatus]") -> list[str]:
    """What the runs of a node came to; a long run tells its newest only, so this may be a lower bound.

    A visit that was tried again is one visit.
    """
    numbers = [_number(run) for run in runs]
    known = len({number or run.key for number, run in zip(numbers, runs, strict=True)})
    visits = max([known, *numbers])
    retries, steps = len(runs) - known, sum(run.steps for run in runs)
    costs = [run.cost_microusd for run in runs]
    cost = None if None in costs else sum(filter(None, costs))
    mark = "≥ " if visits > known else ""
    parts = [show.plural(visits, "visit")] if visits > 1 else []
    parts += [f"{retries} tried again"] if retries else []
    parts += [f"{mark}{show.plural(steps, 'step')}"] if steps else []
    return parts + ([f"{mark}{show.cost(cost)}"] if cost != 0 else [])


def _number(run: "NodeStatus") -> int:
    """Which visit of its node it is, as far as its key says so; else 0."""
    found = _VISIT.fullmatch(run.key.removeprefix(f"{run.node}-"))
    return int(found[1]) if found else 0
