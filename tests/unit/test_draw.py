"""Drawings say what there is, the same each time, and nothing in a name is taken for syntax."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.model import ModelConfig
from perdure.starter.draw.mermaid import fence, render_mermaid
from perdure.starter.draw.order import find_back_edges, topological_order
from perdure.starter.draw.picture import SYMBOLS, BoxState, Picture, build_picture, one_line
from perdure.starter.draw.text import COLOURS, render_text
from perdure.wire.results import Approval, Failure, NodeStatus, RunStatus
from perdure.wire.spec import (
    AgentSpec,
    EdgeSpec,
    GraphSpec,
    ModelSpec,
    NodeSpec,
    ResolvedAgent,
    SwarmSpec,
    ToolSpec,
)

NOW = datetime(2026, 11, 20, tzinfo=UTC)
HOSTILE = '"><script>alert(1)</script>\n- **b** `c` #35; ]] %% --> end & \u202e\x1b[2J\ud800'


def graph(*nodes: str | NodeSpec, edges: Sequence[tuple[str, ...]] = (), entry: str = "") -> ResolvedAgent:
    """A graph of agents; edges are (source, target) or (source, target, condition)."""
    made = [
        one if isinstance(one, NodeSpec) else NodeSpec(name=one, kind="agent", member=one) for one in nodes
    ]
    spec = GraphSpec(
        name="review",
        nodes=tuple(made),
        edges=tuple(
            EdgeSpec(source=edge[0], target=edge[1], when=edge[2] if edge[2:] else None) for edge in edges
        ),
        entries=(entry or made[0].name,),
    )
    return ResolvedAgent(spec=spec)


def ran(node: str, state: Any = "done", *, visit: str = "1", **changed: Any) -> NodeStatus:
    return NodeStatus(key=f"{node}-{visit}", node=node, state=state, **changed)


def status(*nodes: NodeStatus, **changed: Any) -> RunStatus:
    given: dict[str, Any] = {"agent": "review", "status": "acting", "doing": "", "nodes": list(nodes)}
    return RunStatus(**{**given, **changed})


def waits(*path: str) -> Approval:
    return Approval(call_id="call-1-1", tool="sign", arguments={}, digest="d", since=NOW, path=list(path))


def box_of(drawn: Picture, name: str) -> dict[str, Any]:
    found = next(one for one in drawn.boxes if one.name == name)
    return {"state": found.state, "live": found.live, "spent": found.spent}


REVIEW = graph(
    "draft",
    "facts",
    NodeSpec(name="legal", kind="agent", join="any"),
    NodeSpec(name="publish", kind="function", join=2),
    edges=[
        ("draft", "facts"),
        ("draft", "legal"),
        ("facts", "publish"),
        ("legal", "publish", "approved"),
        ("legal", "draft", "needs_work"),
        ("legal", "legal", "unsure"),
    ],
)
LIVE = status(
    ran("draft", steps=3, cost_microusd=12_000),
    ran("facts", "running"),
    ran("legal", "running"),
    waiting=[waits("legal-1")],
    cost_microusd=12_300,
)


# -- what there is to draw


def test_text_lists_nodes_with_edges() -> None:
    """Text lists nodes in order, with their state and their outgoing edges."""
    assert render_text(build_picture(REVIEW, LIVE, run_id="review-1")).plain.splitlines() == [
        "graph review",
        "review-1 · acting · $0.0123",
        "",
        "✓ draft (entry)  agent     done · 3 steps · $0.0120",
        "    → facts",
        "    → legal",
        "▸ facts          agent     running",
        "    → publish",
        "? legal          agent     waits for a person · waits for any of 2",
        "    → publish [approved]",
        "    ↑ draft [needs_work]",
        "    ↑ legal [unsure]",
        "○ publish        function  not yet run · waits for 2 of 2",
    ]


def test_picture_without_run_has_no_states() -> None:
    drawn = build_picture(REVIEW)
    assert {one.state for one in drawn.boxes} == {"pending"}
    assert {one.live for one in drawn.boxes} == {""}
    assert drawn.subtitle == ""
    assert {one.live for one in build_picture(REVIEW, status()).boxes} == {"not yet run"}
    assert {one.live for one in build_picture(REVIEW, status(status="completed")).boxes} == {"never ran"}


@pytest.mark.parametrize("join", ["all", "any", 1])
def test_join_is_shown_at_meeting_edges(join: Any) -> None:
    node = NodeSpec(name="c", kind="function", join=join)
    drawn = build_picture(graph("a", "b", node, edges=[("a", "b"), ("a", "c"), ("b", "c")]))
    told = {"all": "all 2", "any": "any of 2", 1: "1 of 2"}[join]
    assert [one.join for one in drawn.boxes] == ["", "", f"waits for {told}"]


def test_newest_visit_sets_state() -> None:
    """The newest visit sets the state of a node; all visits are counted."""
    runs = [
        ran("draft", "failed", visit="1", steps=2, error=Failure(kind="timeout", message="x")),
        ran("draft", visit="1.1", steps=1, cost_microusd=5_000),
        ran("draft", visit="2", steps=1, stop_reason="max_steps"),
    ]
    drawn = build_picture(REVIEW, status(*runs))
    assert box_of(drawn, "draft") == {
        "state": "done",
        "live": "done (max_steps)",
        "spent": "2 visits · 1 tried again · 4 steps · $0.0050",
    }
    failed = build_picture(REVIEW, status(runs[0]))
    assert box_of(failed, "draft")["live"] == "failed: timeout"


def test_dropped_visits_give_lower_bound() -> None:
    """Visits that a long run no longer reports make the count a lower bound."""
    drawn = build_picture(REVIEW, status(ran("draft", visit="250", steps=3, cost_microusd=None)))
    assert box_of(drawn, "draft")["spent"] == "250 visits · ≥ 3 steps · ≥ cost unknown"


@pytest.mark.parametrize("path", [("legal-2", "call-1-1"), ("legal",)])
def test_waiting_node_matches_key_or_name(path: tuple[str, ...]) -> None:
    """A node that waits for a person is found by its key or name."""
    live = status(ran("legal"), ran("legal", "running", visit="2"), waiting=[waits(*path)])
    assert box_of(build_picture(REVIEW, live), "legal")["state"] == "waiting"
    over = status(ran("legal"), waiting=[waits("legal")])
    assert box_of(build_picture(REVIEW, over), "legal")["state"] == "done"


def test_swarm_shows_handoffs_in_order() -> None:
    """A swarm shows its handoffs in their order."""
    swarm = ResolvedAgent(spec=SwarmSpec(name="desk", agents=("triage", "billing", "boss"), entry="triage"))
    turns = ["triage", "billing", "triage", "billing"]
    runs = [ran(name, visit=str(at // 2 + 1), stop_reason="handoff") for at, name in enumerate(turns[:3])]
    drawn = build_picture(swarm, status(*runs, ran("billing", "running", visit="2")))
    assert [(one.source, one.target, one.label) for one in drawn.arrows] == [(0, 1, "1, 3"), (1, 0, "2")]
    assert [one.entry for one in drawn.boxes] == [True, False, False]
    assert box_of(drawn, "triage")["live"] == "done"
    assert build_picture(swarm).arrows == ()


def test_agent_shows_callable_agents() -> None:
    """An agent shows the agents that it may call, and those that they may call."""

    def calls(agent: str, name: str) -> ToolSpec:
        return ToolSpec(kind="agent", name=name, description="", input_schema={}, agent=agent)

    def agent(name: str, *tools: ToolSpec) -> AgentSpec:
        model = ModelSpec(config=ModelConfig(name="scripted:x"))
        return AgentSpec(name=name, instructions="", models=(model,), tools=tools)

    research = agent("research", calls("search", "look"), calls("lead", "lead"))
    lead = agent("lead", calls("research", "research"), calls("unknown", "unknown"))
    drawn = build_picture(
        ResolvedAgent(spec=lead, members=(research, agent("search"))),
        status(ran("research", "running", visit="3-1"), status="waiting_person", step=2),
    )
    assert [(one.name, one.state, one.live) for one in drawn.boxes] == [
        ("lead", "waiting", "waiting_person"),
        ("research", "running", "running"),
        ("unknown", "pending", "not yet run"),
        ("search", "pending", ""),
    ]
    assert [(one.source, one.target, one.label) for one in drawn.arrows] == [
        (0, 1, ""),
        (0, 2, ""),
        (1, 3, "look"),
        (1, 0, ""),
    ]


# -- formats


EVERY = [
    ("pending", status()),
    ("running", status(ran("draft", "running"))),
    ("waiting", status(ran("draft", "running"), waiting=[waits("draft-1")])),
    ("done", status(ran("draft"))),
    ("failed", status(ran("draft", "failed"))),
    ("skipped", status(ran("draft", "skipped"))),
    ("cancelled", status(ran("draft", "cancelled"))),
]


def test_every_state_has_own_sign() -> None:
    states = set(get_args(BoxState))
    assert {state for state, _ in EVERY} == states == set(SYMBOLS) == set(COLOURS)
    assert len(set(SYMBOLS.values())) == len(states)


@pytest.mark.parametrize(("state", "live"), EVERY)
def test_every_format_draws_every_state(state: BoxState, live: RunStatus) -> None:
    """Every format draws every state by sign and colour."""
    drawn = build_picture(graph("draft"), live)
    assert f"{SYMBOLS[state]} draft" in render_text(drawn).plain
    chart = render_mermaid(drawn)
    assert f":::{state}\n" in chart
    assert f"classDef {state} fill:" in chart
    sign = "#63;" if state == "waiting" else SYMBOLS[state]  # a question mark, by its number
    assert f'"{sign}\u00a0draft' in chart


def test_drawing_is_deterministic() -> None:
    """The same picture gives the same drawing."""
    drawn, again = (
        build_picture(REVIEW, LIVE),
        build_picture(REVIEW.model_copy(deep=True), LIVE.model_copy(deep=True)),
    )
    assert drawn == again
    assert (render_mermaid(drawn), render_text(drawn)) == (render_mermaid(again), render_text(again))


def test_mermaid_names_conditions_joins_and_entries() -> None:
    lines = [line.strip() for line in render_mermaid(build_picture(REVIEW, LIVE)).splitlines()]
    assert lines[:4] == ["---", 'title: "graph review · acting · $0.0123"', "---", "flowchart TD"]
    assert 'n3["○\u00a0publish<br/>function<br/>not yet run<br/>waits for 2 of 2"]:::pending' in lines
    assert 'e0((" ")):::entry --> n0' in lines
    assert {"n0 --> n1", 'n2 -->|"approved"| n3', 'n2 -->|"needs#95;work"| n0'} <= set(lines)


def test_markdown_chart_is_fenced_block() -> None:
    chart = render_mermaid(hostile())
    block = fence(chart)
    assert block == f"```mermaid\n{chart}```\n"
    assert block.count("```") == 2


def hostile() -> Picture:
    spec = graph(HOSTILE, "end", "1. x", edges=[(HOSTILE, "end", HOSTILE), ("end", "1. x")])
    return build_picture(
        spec, status(ran(HOSTILE, "failed", error=Failure(kind=HOSTILE, message="x"))), run_id=HOSTILE
    )


def test_hostile_name_is_harmless_line() -> None:
    assert one_line(HOSTILE) == '"><script>alert(1)</script> - **b** `c` #35; ]] %% --> end & [2J'
    assert one_line("\x00\u200b") == "(no name)"
    assert len(one_line("x" * 10_000)) == 200
    assert re.search(r"[\x00-\x09\x0b-\x1f\u202e]", render_text(hostile()).plain) is None


def test_hostile_name_is_no_mermaid_syntax() -> None:
    lines = render_mermaid(hostile()).splitlines()
    assert lines[1].startswith('title: "')
    assert "<" not in lines[1]
    labels = re.findall(r'"([^"]*)"', "\n".join(lines[4:]))
    assert len(labels) == 3 + 1 + 1  # boxes, the entry's mark, the edge
    for label in labels:
        assert re.fullmatch(r"(\w|[ \u00a0○✗]|<br/>|#\d+;)+", label)
    skeleton = re.sub(r'"[^"]*"', "", "\n".join(lines[4:]))
    assert re.search(r"\bend\b|script", skeleton) is None


@pytest.mark.parametrize("count", [0, 1])
def test_the_smallest_pictures_are_drawn(count: int) -> None:
    drawn = Picture(title="t", boxes=build_picture(graph("a")).boxes[:count])
    assert render_mermaid(drawn)
    assert render_text(drawn).plain.startswith("t\n")


# -- reading order


@st.composite
def wirings(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    count = draw(st.integers(1, 12))
    box = st.integers(0, count - 1)
    return count, draw(st.lists(st.tuples(box, box), max_size=30))


@given(wirings())
def test_forward_edges_have_no_cycle(wiring: tuple[int, list[tuple[int, int]]]) -> None:
    """Without its back edges, no wiring has a cycle."""
    count, ends = wiring
    back = find_back_edges(count, ends, [0])
    forward = [pair for at, pair in enumerate(ends) if at not in back]
    order = topological_order(count, forward)
    assert sorted(order) == list(range(count))
    assert all(order.index(source) < order.index(target) for source, target in forward)
    assert {at for at, (source, target) in enumerate(ends) if source == target} <= back


def test_edge_to_root_may_be_forward() -> None:
    """A box that no root reaches may lead to a root without closing a cycle."""
    assert find_back_edges(2, [(1, 0)], [0]) == frozenset()


def test_long_chains_need_no_recursion() -> None:
    count = 3000
    ends = [(at, at + 1) for at in range(count - 1)]
    assert find_back_edges(count, [*ends, (count - 1, 0)], [0]) == {count - 1}
    assert topological_order(count, ends) == list(range(count))
