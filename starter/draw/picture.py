"""Pictures of graphs, swarms, patterns and agents: boxes, arrows and their live state, free of any format. Pure.

A Picture is built from a pinned spec and, when there is a run, from its status. Names come from the
authors of the agents. They are sanitized here, once; each format escapes them as it needs.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

from .. import display

if TYPE_CHECKING:
    from perdure.wire.results import NodeStatus, RunStatus, Status
    from perdure.wire.spec import (
        AgentSpec,
        AnySpec,
        GraphSpec,
        NodeKind,
        NodeSpec,
        PatternSpec,
        ResolvedAgent,
        SwarmSpec,
    )

BoxState = Literal["pending", "running", "waiting", "done", "failed", "skipped", "cancelled"]
"""State of a box: that of its node's newest visit; "waiting" means for a person."""

SYMBOLS: Final[Mapping[BoxState, str]] = {
    "pending": "○",
    "running": "▸",
    "waiting": "?",
    "done": "✓",
    "failed": "✗",
    "skipped": "»",
    "cancelled": "■",
}

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
_NOTES: Final[Mapping[str, tuple[str, ...]]] = {
    "swarm": ("any agent may hand off to any other",),
    "pattern": ("its scheduler chooses who runs next",),
}
_NAME_LIMIT: Final = 200
_VISIT: Final = re.compile(r"([0-9]{1,9})(?:\.[0-9]{1,9})?")
"""A visit's number and, after a dot, that of a retry."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A node of the drawing, with its state in words."""

    name: str
    kind: "NodeKind"
    member: str = ""
    """Name of the agent, swarm or graph that the node runs, when it differs from the node's."""
    state: BoxState = "pending"
    live: str = ""
    """State in words; empty without a run."""
    spent: str = ""
    """Visits, steps and cost."""
    entry: bool = False
    join: str = ""
    """Number of incoming edges that it waits for, when there are several."""

    @property
    def what(self) -> str:
        """Kind and member of the node."""
        return f"{self.kind} {self.member}".rstrip()

    @property
    def lines(self) -> tuple[str, ...]:
        """Lines below the name."""
        return tuple(line for line in (self.what, self.live, self.spent, self.join) if line)


@dataclass(frozen=True, kw_only=True)
class Arrow:
    """An edge of the drawing, from box number `source` to box number `target`."""

    source: int
    target: int
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Everything that a format draws."""

    title: str
    subtitle: str = ""
    boxes: tuple[Box, ...] = ()
    arrows: tuple[Arrow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[int, ...]:
        """Numbers of the boxes where execution begins."""
        return tuple(number for number, box in enumerate(self.boxes) if box.entry)


def build_picture(
    resolved: "ResolvedAgent", status: "RunStatus | None" = None, *, run_id: str = ""
) -> Picture:
    """Build the picture of a spec, with the live state of a run when its status is given."""
    spec = resolved.spec
    live = _LiveState(status)
    match spec.kind:
        case "graph":
            boxes, arrows = _graph_parts(spec, live)
        case "swarm":
            boxes, arrows = _swarm_parts(spec, live)
        case "pattern":
            boxes, arrows = _pattern_boxes(spec, live), []
        case "agent":
            boxes, arrows = _agent_parts(spec, resolved.members, live)
    return Picture(
        title=f"{_kind_word(spec)} {one_line(spec.name)}",
        subtitle=_subtitle(status, run_id),
        boxes=tuple(boxes),
        arrows=tuple(arrows),
        notes=_NOTES.get(spec.kind, ()),
    )


def _kind_word(spec: "AnySpec") -> str:
    return one_line(spec.pattern) if spec.kind == "pattern" else spec.kind


def one_line(text: str) -> str:
    """Return the text as one short line that is safe to hand to any format.

    Unicode's category C goes: control characters, unpaired surrogates, and marks that reverse or hide text.
    """
    plain = "".join(sign for sign in text if sign.isspace() or unicodedata.category(sign)[0] != "C")
    return display.short(plain, _NAME_LIMIT) or "(no name)"


def _subtitle(status: "RunStatus | None", run_id: str) -> str:
    if status is None:
        return ""
    state = f"{status.status} ({status.stop_reason})" if status.stop_reason else status.status
    calls = [display.plural(status.tool_calls, "tool call")] if status.tool_calls else []
    # None is not 0: an unknown price is told, a run without costs has nothing to tell.
    cost = [display.cost(status.cost_microusd)] if status.cost_microusd != 0 else []
    return " · ".join([*([one_line(run_id)] if run_id else []), state, *calls, *cost])


# -- boxes and arrows, by kind of program


def _graph_parts(spec: "GraphSpec", live: "_LiveState") -> tuple[list[Box], list[Arrow]]:
    number = {node.name: at for at, node in enumerate(spec.nodes)}
    incoming = [sum(edge.target == node.name for edge in spec.edges) for node in spec.nodes]
    boxes = [
        Box(
            name=one_line(node.name),
            kind=node.kind,
            member="" if node.member in (None, node.name) else one_line(str(node.member)),
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
            label=one_line(edge.when) if edge.when else "",
        )
        for edge in spec.edges
    ]
    return boxes, arrows


def _join(node: "NodeSpec", edges: int) -> str:
    # With one edge there is nothing to join.
    if edges < 2:
        return ""
    match node.join:
        case "all":
            return f"waits for all {edges}"
        case "any":
            return f"waits for any of {edges}"
        case count:
            return f"waits for {count} of {edges}"


def _swarm_parts(spec: "SwarmSpec", live: "_LiveState") -> tuple[list[Box], list[Arrow]]:
    boxes = [
        Box(
            name=one_line(name),
            kind="agent",
            state=live.state(name),
            live=live.words(name),
            spent=live.spent(name),
            entry=name == spec.entry,
        )
        for name in spec.agents
    ]
    number = {name: at for at, name in enumerate(spec.agents)}
    # An arrow for each pair, whose label counts the handoffs: many turns between two agents stay readable.
    numbers: dict[tuple[int, int], list[str]] = {}
    for count, (source, target) in enumerate(live.handoffs, start=1):
        if source in number and target in number:
            numbers.setdefault((number[source], number[target]), []).append(str(count))
    arrows = [
        Arrow(source=source, target=target, label=", ".join(counts))
        for (source, target), counts in numbers.items()
    ]
    return boxes, arrows


def _pattern_boxes(spec: "PatternSpec", live: "_LiveState") -> list[Box]:
    # Only its scheduler knows the course, so there are no arrows. Nodes have the names of their members as a rule.
    return [
        Box(
            name=one_line(name),
            kind=kind,
            state=live.state(name),
            live=live.words(name),
            spent=live.spent(name),
        )
        for name, kind in spec.members.items()
    ]


def _agent_parts(
    spec: "AgentSpec", members: "Sequence[AnySpec]", live: "_LiveState"
) -> tuple[list[Box], list[Arrow]]:
    """Return the agent, the agents that it may call as tools, and those that these may call."""
    known: dict[str, AnySpec] = {member.name: member for member in members}
    # Agents may call each other in a circle: a name is expanded once.
    number, arrows, unexpanded = {spec.name: 0}, list[Arrow](), [spec]
    boxes = [
        Box(
            name=one_line(spec.name),
            kind="agent",
            state=live.run_state,
            live=live.run_words,
            spent=live.run_spent,
            entry=True,
        )
    ]
    while unexpanded:
        caller = unexpanded.pop(0)
        for tool in (tool for tool in caller.tools if tool.kind == "agent" and tool.agent):
            name = str(tool.agent)
            if name not in number:
                number[name] = len(boxes)
                called = known.get(name)
                boxes.append(_callee_box(name, called, live, direct=caller is spec))
                unexpanded += [called] if called is not None and called.kind == "agent" else []
            label = "" if tool.name == name else one_line(tool.name)
            arrows.append(Arrow(source=number[caller.name], target=number[name], label=label))
    return boxes, arrows


def _callee_box(name: str, called: "AnySpec | None", live: "_LiveState", *, direct: bool) -> Box:
    """Return the box of an agent called as a tool.

    A run's status lists its direct children only, so deeper agents have no live state.
    """
    kind: NodeKind = called.kind if called is not None else "agent"
    if not direct:
        return Box(name=one_line(name), kind=kind)
    return Box(
        name=one_line(name),
        kind=kind,
        state=live.state(name),
        live=live.words(name),
        spent=live.spent(name),
    )


# -- the live state


class _LiveState:
    """State of a run by the names of its nodes."""

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
    def run_state(self) -> BoxState:
        """State of the run itself."""
        return "pending" if self._status is None else _OF_RUN.get(self._status.status, "running")

    @property
    def run_words(self) -> str:
        """State of the run itself in words; empty without a run."""
        return "" if self._status is None else self._status.status

    @property
    def run_spent(self) -> str:
        """Steps of the run itself; its cost stands in the subtitle."""
        steps = self._status.step if self._status is not None else 0
        return display.plural(steps, "step") if steps else ""

    @property
    def handoffs(self) -> list[tuple[str, str]]:
        """Handoffs in order, as source and target; of a long run only the newest."""
        visits = self._status.nodes if self._status is not None else []
        return [
            (visit.node, after.node) for visit, after in pairwise(visits) if visit.stop_reason == "handoff"
        ]

    def state(self, name: str) -> BoxState:
        """Return the state of that node."""
        visits = self._visits.get(name)
        if not visits:
            return "pending"
        # Visits of an agent as a tool may overlap: while any goes on, so does the node.
        newest: BoxState = "running" if any(v.state == "running" for v in visits) else visits[-1].state
        return "waiting" if newest == "running" and name in self._waiting else newest

    def words(self, name: str) -> str:
        """Return the state of that node in words; empty without a run."""
        if self._status is None:
            return ""
        visits = self._visits.get(name)
        if not visits:
            return (
                "never ran" if self._status.status in ("completed", "failed", "cancelled") else "not yet run"
            )
        return _describe(self.state(name), visits[-1])

    def spent(self, name: str) -> str:
        """Return the visits, steps and cost of that node, as far as there are any."""
        return " · ".join(_amounts(self._visits.get(name, [])))


def _describe(state: BoxState, newest: "NodeStatus") -> str:
    if state == "waiting":
        return "waits for a person"
    if newest.error is not None and state == "failed":
        return f"failed: {one_line(newest.error.kind)}"
    # Reasons that say no more than the state are left out.
    natural = newest.stop_reason in (None, "end_turn", "handoff", state) or state == "running"
    return state if natural else f"{state} ({newest.stop_reason})"


def _amounts(runs: "Sequence[NodeStatus]") -> list[str]:
    """Return visits, retries, steps and cost of a node's runs.

    A retry belongs to the same visit. The status of a long run lists its newest visits only: when
    their numbers show that older ones are missing, steps and cost are lower bounds.
    """
    numbers = [_visit_number(run) for run in runs]
    known = len({number or run.key for number, run in zip(numbers, runs, strict=True)})
    visits = max([known, *numbers])
    retries, steps = len(runs) - known, sum(run.steps for run in runs)
    costs = [run.cost_microusd for run in runs]
    # One unknown price makes the sum unknown.
    cost = None if None in costs else sum(filter(None, costs))
    mark = "≥ " if visits > known else ""
    parts = [display.plural(visits, "visit")] if visits > 1 else []
    parts += [f"{retries} tried again"] if retries else []
    parts += [f"{mark}{display.plural(steps, 'step')}"] if steps else []
    return parts + ([f"{mark}{display.cost(cost)}"] if cost != 0 else [])


def _visit_number(run: "NodeStatus") -> int:
    """Return the number of this visit of its node, or 0 when its key holds none."""
    found = _VISIT.fullmatch(run.key.removeprefix(f"{run.node}-"))
    return int(found[1]) if found else 0
