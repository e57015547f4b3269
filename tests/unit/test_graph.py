"""Graphs: what is refused when one is made, and what its spec and code hold."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from perdure.agent import Agent
from perdure.errors import DefinitionError
from perdure.graph import Edge, Graph, GraphState, Node, NodeInput, as_text
from perdure.limits import GraphLimits, Limits
from perdure.tools import tool
from perdure.wire.results import NodeResult
from perdure.wire.spec import GraphSpec


def agent(name: str = "writer", **changed: Any) -> Agent:
    return Agent(name=name, model="scripted:x", **changed)


def work(given: NodeInput) -> str:
    return given.task


async def work_later(given: NodeInput) -> str:
    return given.task


def yields(given: NodeInput) -> Any:
    yield given


def two(one: NodeInput, other: NodeInput) -> str:
    return one.task + other.task


def always(_state: GraphState) -> bool:
    return True


async def later(_state: GraphState) -> bool:
    return True


class Later:
    async def __call__(self, _state: GraphState) -> bool:
        return True


@tool
def a_tool(n: int) -> str:
    """Work."""
    return str(n)


LOOP = GraphLimits(max_node_executions=9)


def graph(**changed: Any) -> Graph:
    """a -> b, two functions."""
    settings: dict[str, Any] = {
        "name": "g",
        "nodes": {"a": work, "b": work},
        "edges": [("a", "b")],
        "entry": "a",
    }
    return Graph(**{**settings, **changed})


def chain(names: str, *edges: str, **changed: Any) -> Graph:
    """Nodes by letter, edges such as "ab"."""
    nodes = dict.fromkeys(names, work) | changed.pop("nodes", {})
    return graph(nodes=nodes, edges=[(edge[0], edge[1]) for edge in edges], **changed)


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"name": "a b"}, "graph name 'a b': use letters"),
    ({"name": 7}, "graph 7: name must be text, not 7"),
    ({"nodes": {}}, "nodes must map names to what they run"),
    ({"nodes": [work]}, "nodes must map names"),
    ({"nodes": {"a": work, "b c": work}}, "node name 'b c': use letters"),
    ({"nodes": {"a": work, "b": "work"}}, "node 'b': 'work' cannot be a node"),
    ({"nodes": {"a": work, "b": a_tool}}, "cannot be a node"),
    ({"nodes": {"a": work, "b": Agent}}, "cannot be a node"),
    ({"nodes": {"a": work, "b": yields}}, "cannot be a node"),
    ({"nodes": {"a": work, "b": lambda: 1}}, "a function of one parameter"),
    ({"nodes": {"a": work, "b": two}}, "a function of one parameter"),
    ({"edges": "ab"}, "edges must be a list"),
    ({"edges": ["ab"]}, "'ab' is not an edge; write Edge"),
    ({"edges": [("a", "b", always, 1)]}, "is not an edge"),
    ({"edges": [("a", "x")]}, "edge 'a' -> 'x': 'x' is not one of its nodes"),
    ({"edges": [("x", "b")]}, "edge 'x' -> 'b': 'x' is not one of its nodes"),
    ({"edges": [("a", "b"), Edge("a", "b", always)]}, "two edges lead from 'a' to 'b'; make them one"),
    ({"entry": ()}, "no entry; name"),
    ({"entry": ""}, "is not one of its nodes"),
    ({"entry": None}, "no entry; name"),
    ({"entry": 7}, "no entry; name"),
    ({"entry": "x"}, "entry 'x' is not one of its nodes"),
    ({"entry": ["a", "a"]}, "entry 'a' is named twice"),
    ({"edges": []}, "node 'b' cannot be reached; lead an edge to it or make it an entry"),
    ({"edges": [("b", "a")]}, "node 'b' cannot be reached"),
    ({"limits": Limits()}, "limits must be GraphLimits"),
    ({"concurrency": 0}, "concurrency must be 1 or more, not 0"),
    ({"concurrency": True}, "concurrency must be a whole number, not True"),
    ({"siblings": "stop"}, "siblings must be 'cancel' or 'finish'"),
    ({"edges": [("a", "b"), ("b", "a")]}, "the cycle (a -> b -> a|b -> a -> b) has no bound; set limits"),
    ({"edges": [("a", "b"), ("a", "a")]}, "the cycle a -> a has no bound"),
]


@pytest.mark.parametrize(("changed", "why"), IMPOSSIBLE)
def test_invalid_graph_is_rejected_at_construction(changed: dict[str, Any], why: str) -> None:
    """A graph that could not run is rejected when it is constructed."""
    with pytest.raises(DefinitionError, match=why):
        graph(**changed)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"join": True}, r"Node\('work'\): join must be 'all', 'any' or 1 and more, not True"),
        ({"join": 0}, "not 0"),
        ({"join": "some"}, "not 'some'"),
        ({"join": []}, r"not \[\]"),
        ({"on_error": "ignore"}, "on_error must be 'fail' or 'skip'"),
        ({"retries": -1}, "retries must be 0 or more"),
        ({"retries": True}, "retries must be a whole number, not True"),
        ({"timeout": timedelta()}, "timeout must be a positive timedelta"),
        ({"timeout": 5}, "timeout must be a timedelta or None, not 5"),
        ({"input": "text"}, "input must be a function, not 'text'"),
        ({"input": later}, "input is async; make it a plain function of the GraphState"),
        ({"input": lambda: ""}, "input must take one parameter, the GraphState"),
    ],
)
def test_invalid_node_is_rejected_at_construction(changed: dict[str, Any], why: str) -> None:
    """A node that could not run is rejected when it is constructed."""
    with pytest.raises(DefinitionError, match=why):
        Node(work, **changed)


@pytest.mark.parametrize("when", [7, later, Later(), partial(later), lambda: True])
def test_condition_is_plain_function(when: Any) -> None:
    with pytest.raises(DefinitionError, match="edge 'a' -> 'b': when"):
        Edge("a", "b", when)


def test_join_of_missing_edges_is_rejected() -> None:
    """A join of more edges than exist is rejected."""
    with pytest.raises(DefinitionError, match="join=2 of 'b' can never be met: it has 1 incoming edges"):
        graph(nodes={"a": work, "b": Node(work, join=2)})


def test_join_on_later_node_is_rejected() -> None:
    """A join that waits for a later node is rejected."""

    def looping(join: Any) -> Graph:
        return chain("abc", "ab", "bc", "cb", limits=LOOP, nodes={"b": Node(work, join=join)})

    for join in ("all", 2):
        with pytest.raises(DefinitionError, match=f"join {join!r} of 'b' can never be met: 'c' comes after"):
            looping(join)
    assert looping("any").spec().node("b").join == "any"
    assert looping(1).spec().node("b").join == 1


def test_mutual_waiting_is_rejected() -> None:
    """Nodes that wait for each other are rejected."""
    with pytest.raises(DefinitionError, match="join 'all' of 'b' can never be met: 'c' comes after it"):
        chain("abc", "ab", "ac", "bc", "cb", limits=LOOP)
    with pytest.raises(DefinitionError, match="join 'all' of 'b' can never be met: 'c' comes after it"):
        chain("axbc", "ax", "bx", "ab", "bc", "cb", limits=LOOP)


def test_self_waiting_is_rejected() -> None:
    """A node that waits for itself is rejected; an entry does not wait."""
    with pytest.raises(DefinitionError, match="'b' comes after it"):
        chain("ab", "ab", "bb", limits=LOOP)
    assert chain("ab", "ab", "ba", limits=LOOP).entries == ("a",)


def test_cycle_needs_executions_or_timeout() -> None:
    """A cycle may be bounded by executions or by time."""
    chain("ab", "ab", "ba", limits=LOOP)
    chain("ab", "ab", "ba", limits=GraphLimits(timeout=timedelta(minutes=1)))
    with pytest.raises(DefinitionError, match="has no bound"):
        chain("ab", "ab", "ba", limits=GraphLimits(node_timeout=timedelta(minutes=1)))


def test_names_are_unique_below_graph() -> None:
    """A name means the same member everywhere below a graph."""
    one, other = agent(), agent()
    graph(nodes={"a": one, "b": one})
    with pytest.raises(DefinitionError, match="called 'writer'; rename one"):
        graph(nodes={"a": one, "b": other})
    inner = graph(name="inner", nodes={"a": one, "b": work})
    graph(nodes={"a": one, "b": inner})
    with pytest.raises(DefinitionError, match="'writer'"):
        graph(nodes={"a": other, "b": inner})
    with pytest.raises(DefinitionError, match="'g'"):
        graph(nodes={"a": agent("g"), "b": work})


class Swarmlike:
    """What a graph knows of a swarm."""

    name = "team"
    member_kind = "swarm"

    def __init__(self, member: Agent) -> None:
        self.members = {member.name: member}

    def spec(self, **_given: Any) -> Any:
        return next(iter(self.members.values())).spec()


def test_members_are_nodes_by_name() -> None:
    """Members are what the nodes run, by name."""
    writer, inner = agent(), graph(name="inner")
    team: Any = Swarmlike(agent("clerk"))
    made = graph(
        nodes={"a": Node(writer), "b": inner, "c": team, "d": work_later, "e": writer},
        edges=[("a", "b"), ("a", "c"), ("a", "d"), ("a", "e")],
    )
    assert made.members == {"writer": writer, "inner": inner, "team": team}
    kinds = [(node.name, node.kind, node.member) for node in made.spec().nodes]
    assert kinds == [
        ("a", "agent", "writer"),
        ("b", "graph", "inner"),
        ("c", "swarm", "team"),
        ("d", "function", None),
        ("e", "agent", "writer"),
    ]
    assert made.spec().member_hashes == (writer.spec().hash, inner.spec().hash, team.spec().hash)
    with pytest.raises(DefinitionError, match="'clerk'"):
        graph(nodes={"a": agent("clerk"), "b": team})


def test_cost_limit_reaches_all_models() -> None:
    """A cost limit applies to every model below."""
    dear = Agent(name="dear", model="nobody:knows")
    inner = graph(name="inner", nodes={"a": dear, "b": work})
    assert graph(nodes={"a": inner, "b": work}).spec().member_hashes
    with pytest.raises(DefinitionError, match="the price of nobody:knows is not known"):
        graph(nodes={"a": inner, "b": work}, limits=GraphLimits(cost_usd=1)).spec()
    with pytest.raises(DefinitionError, match="not known"):
        graph(nodes={"a": inner, "b": work}).spec(cost_limited=True)


def test_spec_names_functions_by_place() -> None:
    """The spec names functions, and the code has them by place."""

    def unnamed(_state: GraphState) -> bool:
        return True

    unnamed.__name__ = "<lambda>"
    ask = Node(work, input=lambda state: state.task)
    made = graph(
        nodes={"a": work, "b": ask, "c": work}, edges=[Edge("a", "b", always), Edge("a", "c", unnamed)]
    )
    spec, code = made.spec(), made.code()
    assert [edge.when for edge in spec.edges] == ["always", "condition"]
    assert spec.node("b").input == "input"
    assert code.conditions == {("a", "b"): always, ("a", "c"): unnamed}
    assert code.inputs == {"b": ask.input}
    assert code.functions == {"a": work, "b": work, "c": work}


def test_a_spec_survives_being_written_down() -> None:
    spec = graph(
        nodes={"a": agent(), "b": Node(work, join="any", retries=2, timeout=timedelta(seconds=3))}
    ).spec()
    again = GraphSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.hash == spec.hash


@pytest.mark.parametrize(
    "changed",
    [
        {"description": "Other."},
        {"nodes": {"a": work, "b": agent()}},
        {"nodes": {"a": work, "b": Node(work, on_error="skip")}},
        {"nodes": {"b": work, "a": work}},
        {"edges": [Edge("a", "b", always)]},
        {"entry": ["a", "b"]},
        {"limits": LOOP},
        {"concurrency": 1},
        {"reset_on_revisit": True},
        {"siblings": "finish"},
    ],
)
def test_hash_covers_all_behaviour(changed: dict[str, Any]) -> None:
    """The hash differs for whatever shapes behaviour."""
    assert graph(**changed).spec().hash != graph().spec().hash
    assert graph(**changed).spec().hash == graph(**changed).spec().hash


def test_the_hash_covers_the_members() -> None:
    kind, unkind = (
        graph(nodes={"a": agent(instructions=said), "b": work}) for said in ("Be kind.", "Be brief.")
    )
    assert kind.spec().hash != unkind.spec().hash
    assert graph(nodes={"a": kind.nodes["a"], "b": work}).spec().hash == kind.spec().hash


def test_graph_does_not_share_its_parts() -> None:
    """The parts of a graph cannot change after its construction."""
    nodes: dict[str, Any] = {"a": work, "b": work}
    made = graph(nodes=nodes)
    nodes["c"] = work
    assert list(made.nodes) == ["a", "b"]
    with pytest.raises(TypeError):
        made.nodes["c"] = work  # type: ignore[index]  # pyright: ignore[reportIndexIssue]


def test_state_has_outputs_and_texts() -> None:
    """A state gives outputs as values and as text."""
    results = {
        "a": NodeResult(key="a-1", node="a", state="done", output={"n": [1, "é"]}),
        "b": NodeResult(key="b-1", node="b", state="done", output="said"),
    }
    state = GraphState(task="t", results=results, visits={"a": 1, "b": 1, "c": 0})
    assert state.output("a") == {"n": [1, "é"]}
    assert (state.text("a"), state.text("b"), state.text("c")) == ('{"n":[1,"é"]}', "said", "")
    assert state.output("c") is None
    assert as_text(False) == "false"
