"""Drawings say what there is, the same each time, and nothing in a name is taken for syntax."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.starter.draw.layers import Line, Size, back_arrows, layout, topological
from perdure.starter.draw.picture import BoxState, Picture, harmless, picture
from perdure.starter.draw.svg import svg
from perdure.starter.draw.text import COLOURS, SYMBOLS, mermaid, text
from perdure.wire.results import Approval, Failure, NodeStatus, RunStatus
from perdure.wire.spec import AgentSpec, EdgeSpec, GraphSpec, NodeSpec, ResolvedAgent, SwarmSpec, ToolSpec

NOW = datetime(2026, 11, 20, tzinfo=UTC)
SVG = "{http://www.w3.org/2000/svg}"
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


def test_text_tells_nodes_in_order_with_state_and_the_edges_that_leave_them() -> None:
    assert text(picture(REVIEW, LIVE, run_id="review-1")).plain.splitlines() == [
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


def test_without_a_run_nothing_is_said_of_states() -> None:
    drawn = picture(REVIEW)
    assert {one.state for one in drawn.boxes} == {"pending"}
    assert {one.live for one in drawn.boxes} == {""}
    assert drawn.subtitle == ""
    assert {one.live for one in picture(REVIEW, status()).boxes} == {"not yet run"}
    assert {one.live for one in picture(REVIEW, status(status="completed")).boxes} == {"never ran"}


@pytest.mark.parametrize("join", ["all", "any", 1])
def test_a_join_is_told_where_several_edges_meet(join: Any) -> None:
    node = NodeSpec(name="c", kind="function", join=join)
    drawn = picture(graph("a", "b", node, edges=[("a", "b"), ("a", "c"), ("b", "c")]))
    told = {"all": "all 2", "any": "any of 2", 1: "1 of 2"}[join]
    assert [one.join for one in drawn.boxes] == ["", "", f"waits for {told}"]


def test_the_newest_visit_decides_and_all_of_them_count() -> None:
    runs = [
        ran("draft", "failed", visit="1", steps=2, error=Failure(kind="timeout", message="x")),
        ran("draft", visit="1.1", steps=1, cost_microusd=5_000),
        ran("draft", visit="2", steps=1, stop_reason="max_steps"),
    ]
    drawn = picture(REVIEW, status(*runs))
    assert box_of(drawn, "draft") == {
        "state": "done",
        "live": "done (max_steps)",
        "spent": "2 visits · 1 tried again · 4 steps · $0.0050",
    }
    failed = picture(REVIEW, status(runs[0]))
    assert box_of(failed, "draft")["live"] == "failed: timeout"


def test_what_a_long_run_does_not_tell_any_more_is_a_lower_bound() -> None:
    drawn = picture(REVIEW, status(ran("draft", visit="250", steps=3, cost_microusd=None)))
    assert box_of(drawn, "draft")["spent"] == "250 visits · ≥ 3 steps · ≥ cost unknown"


@pytest.mark.parametrize("path", [("legal-2", "call-1-1"), ("legal",)])
def test_a_node_that_waits_for_a_person_is_found_by_key_or_name(path: tuple[str, ...]) -> None:
    live = status(ran("legal"), ran("legal", "running", visit="2"), waiting=[waits(*path)])
    assert box_of(picture(REVIEW, live), "legal")["state"] == "waiting"
    over = status(ran("legal"), waiting=[waits("legal")])
    assert box_of(picture(REVIEW, over), "legal")["state"] == "done"


def test_a_swarm_shows_the_handoffs_that_happened_in_their_order() -> None:
    swarm = ResolvedAgent(spec=SwarmSpec(name="desk", agents=("triage", "billing", "boss"), entry="triage"))
    turns = ["triage", "billing", "triage", "billing"]
    runs = [ran(name, visit=str(at // 2 + 1), stop_reason="handoff") for at, name in enumerate(turns[:3])]
    drawn = picture(swarm, status(*runs, ran("billing", "running", visit="2")))
    assert [(one.source, one.target, one.label) for one in drawn.arrows] == [(0, 1, "1, 3"), (1, 0, "2")]
    assert [one.entry for one in drawn.boxes] == [True, False, False]
    assert box_of(drawn, "triage")["live"] == "done"
    assert picture(swarm).arrows == ()


def test_an_agent_shows_the_agents_that_it_may_call_and_those_they_may_call() -> None:
    def calls(agent: str, name: str) -> ToolSpec:
        return ToolSpec(kind="agent", name=name, description="", input_schema={}, agent=agent)

    def agent(name: str, *tools: ToolSpec) -> AgentSpec:
        return AgentSpec(name=name, instructions="", models=(), tools=tools)

    research = agent("research", calls("search", "look"), calls("lead", "lead"))
    lead = agent("lead", calls("research", "research"), calls("unknown", "unknown"))
    drawn = picture(
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


def test_every_state_has_a_sign_of_its_own() -> None:
    states = set(get_args(BoxState))
    assert {state for state, _ in EVERY} == states == set(SYMBOLS) == set(COLOURS)
    assert len(set(SYMBOLS.values())) == len(states)


@pytest.mark.parametrize(("state", "live"), EVERY)
def test_every_state_is_drawn_by_sign_and_colour_in_every_format(state: BoxState, live: RunStatus) -> None:
    drawn = picture(graph("draft"), live)
    assert f"{SYMBOLS[state]} draft" in text(drawn).plain
    chart = mermaid(drawn)
    assert f":::{state}\n" in chart
    assert f"classDef {state} fill:" in chart
    sign = "#63;" if state == "waiting" else SYMBOLS[state]  # a question mark, by its number
    assert f'"{sign}\u00a0draft' in chart
    document = ET.fromstring(svg(drawn))
    card = document.find(f".//{SVG}g[@class='{state}']")
    assert card is not None
    assert card.find(f"{SVG}path[@class='sign']") is not None
    assert f".{state} .box" in (document.findtext(f"{SVG}style") or "")


def test_the_same_picture_gives_the_same_drawing() -> None:
    drawn, again = picture(REVIEW, LIVE), picture(REVIEW.model_copy(deep=True), LIVE.model_copy(deep=True))
    assert drawn == again
    assert (svg(drawn), mermaid(drawn), text(drawn)) == (svg(again), mermaid(again), text(again))


def test_mermaid_names_conditions_joins_and_entries() -> None:
    lines = [line.strip() for line in mermaid(picture(REVIEW, LIVE)).splitlines()]
    assert lines[:4] == ["---", 'title: "graph review · acting · $0.0123"', "---", "flowchart TD"]
    assert 'n3["○\u00a0publish<br/>function<br/>not yet run<br/>waits for 2 of 2"]:::pending' in lines
    assert 'e0((" ")):::entry --> n0' in lines
    assert {"n0 --> n1", 'n2 -->|"approved"| n3', 'n2 -->|"needs#95;work"| n0'} <= set(lines)


def hostile() -> Picture:
    spec = graph(HOSTILE, "end", "1. x", edges=[(HOSTILE, "end", HOSTILE), ("end", "1. x")])
    return picture(
        spec, status(ran(HOSTILE, "failed", error=Failure(kind=HOSTILE, message="x"))), run_id=HOSTILE
    )


def test_a_hostile_name_is_one_line_of_harmless_characters() -> None:
    assert harmless(HOSTILE) == '"><script>alert(1)</script> - **b** `c` #35; ]] %% --> end & [2J'
    assert harmless("\x00\u200b") == "(no name)"
    assert len(harmless("x" * 10_000)) == 200
    assert re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text(hostile()).plain) is None


def test_a_hostile_name_is_no_syntax_of_mermaid() -> None:
    lines = mermaid(hostile()).splitlines()
    assert lines[1].startswith('title: "')
    assert "<" not in lines[1]
    labels = re.findall(r'"([^"]*)"', "\n".join(lines[4:]))
    assert len(labels) == 3 + 1 + 1  # boxes, the entry's mark, the edge
    for label in labels:
        assert re.fullmatch(r"(\w|[ \u00a0○✗]|<br/>|#\d+;)+", label)
    skeleton = re.sub(r'"[^"]*"', "", "\n".join(lines[4:]))
    assert re.search(r"\bend\b|script", skeleton) is None


def test_a_hostile_name_is_no_markup_of_svg() -> None:
    document = svg(hostile())
    root = ET.fromstring(document)  # well-formed, though the name holds what XML may not
    assert "<script" not in document
    assert {one.tag.removeprefix(SVG) for one in root.iter()} == {
        *("svg", "title", "style", "defs", "marker", "path", "rect", "text", "g", "circle")
    }
    assert "http" not in document.replace("http://www.w3.org/2000/svg", "")


def test_long_names_stay_within_their_boxes() -> None:
    names = ["summarize_customer_complaints_and_escalate_if_needed" * 3, "W" * 90, "顧客" * 40, "a b " * 40]
    for card in ET.fromstring(svg(picture(graph(*names)))).iter(f"{SVG}g"):
        frame = card.find(f"{SVG}rect[@class='box']")
        if frame is None:
            continue
        rows = [(one.text or "", float(one.get("y", 0))) for one in card.findall(f"{SVG}text")]
        assert len(rows) <= 5
        assert max(len(row) for row, _ in rows) <= 40
        assert max(y for _, y in rows) < float(frame.get("height", 0))
        assert float(frame.get("width", 0)) <= 280


@pytest.mark.parametrize("count", [0, 1])
def test_the_smallest_pictures_are_drawn(count: int) -> None:
    drawn = Picture(title="t", boxes=picture(graph("a")).boxes[:count])
    assert ET.fromstring(svg(drawn)).get("width") != "nan"
    assert mermaid(drawn)
    assert text(drawn).plain.startswith("t\n")


# -- layout


@st.composite
def wirings(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    count = draw(st.integers(1, 12))
    box = st.integers(0, count - 1)
    return count, draw(st.lists(st.tuples(box, box), max_size=30))


@given(wirings())
def test_without_its_back_edges_no_wiring_has_a_cycle(wiring: tuple[int, list[tuple[int, int]]]) -> None:
    count, ends = wiring
    back = back_arrows(count, ends, [0])
    forward = [pair for at, pair in enumerate(ends) if at not in back]
    order = topological(count, forward)
    assert sorted(order) == list(range(count))
    assert all(order.index(source) < order.index(target) for source, target in forward)
    assert {at for at, (source, target) in enumerate(ends) if source == target} <= back


@given(wirings())
def test_no_box_lies_on_another_and_every_edge_meets_its_boxes(
    wiring: tuple[int, list[tuple[int, int]]],
) -> None:
    count, ends = wiring
    sizes = [
        Size(width=60 + 15 * (at % 4), height=40 + 9 * (at % 3), left=at % 2 * 30) for at in range(count)
    ]
    lines = [Line(source=one, target=other, label=at % 3 * 30) for at, (one, other) in enumerate(ends)]
    plan = layout(sizes, lines, [0])
    for one, other in combinations(range(count), 2):
        (x, y), (to_x, to_y) = plan.places[one], plan.places[other]
        beside = abs(x - to_x) >= (sizes[one].width + sizes[other].width) / 2 - 0.01
        assert beside or abs(y - to_y) >= (sizes[one].height + sizes[other].height) / 2
    for (source, target), route in zip(ends, plan.routes, strict=True):
        assert (route is None) == (source == target)
        if route is not None:
            for box, (x, y) in ((source, route.points[0]), (target, route.points[-1])):
                assert abs(x - plan.places[box][0]) <= sizes[box].width / 2
                assert abs(y - plan.places[box][1]) == pytest.approx(sizes[box].height / 2)
            upward = route.points[0][1] > route.points[-1][1]
            assert upward == route.back


def test_long_chains_need_no_recursion() -> None:
    count = 3000
    ends = [(at, at + 1) for at in range(count - 1)]
    assert back_arrows(count, [*ends, (count - 1, 0)], [0]) == {count - 1}
    assert topological(count, ends) == list(range(count))
