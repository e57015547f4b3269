"""Graphs on a real server: when nodes start, what they get, what bounds them, and how it all ends."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import pytest

from perdure import InvalidRequest, Limits, RetryableToolError, RunFailed, tool
from perdure.graph import Edge, Graph, GraphState, Node, NodeInput
from perdure.limits import GraphLimits
from perdure.messages import Image, Text
from perdure.model import ModelRequest
from perdure.starter.client.run import Run
from perdure.swarm import Swarm
from perdure.testing import calls, fails, says
from perdure.wire.results import Approval, RunResult
from tests.conftest import HANGS, Gate, Serve, until, until_queried

from .test_swarm_runs import (
    PICTURE,
    Answer,
    Cast,
    ServeTeam,
    agent,
    details,
    keys,
    reached,
    sum_of,
    to,
)

BIG = "0123456789abcdef" * 196_608  # 3 MiB


@pytest.fixture(params=["warm", pytest.param("cold", marks=pytest.mark.cold)])
def serve(serve: Serve, request: pytest.FixtureRequest) -> ServeTeam:
    """Cold: each workflow task replays the whole history, so what is not deterministic fails."""
    cold: dict[str, Any] = {} if request.param == "warm" else {"worker": {"max_cached_workflows": 0}}
    return partial(serve, **cold)


@dataclass
class Works:
    """Functions for nodes: each writes down that it was called, and waits where it has a gate."""

    called: list[NodeInput] = field(default_factory=list[NodeInput])
    gates: dict[str, Gate] = field(default_factory=dict[str, Gate])
    running: int = 0
    most: int = 0

    async def work(self, given: NodeInput) -> str:
        self.called.append(given)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if given.node in self.gates:
                await self.gates[given.node].wait()
        finally:
            self.running -= 1
        return f"{given.node} {given.visit}"

    @property
    def order(self) -> list[str]:
        return [given.node for given in self.called]

    def given(self, node: str) -> NodeInput:
        return next(given for given in reversed(self.called) if given.node == node)


def graph(nodes: dict[str, Any], *edges: Edge | str, entry: Any = "a", **settings: Any) -> Graph:
    """A graph called "graph"; an edge "ab" leads from a to b."""
    made = [(edge[0], edge[1]) if isinstance(edge, str) else edge for edge in edges]
    return Graph(name="graph", nodes=nodes, edges=made, entry=entry, **settings)


async def finished(run: Run) -> RunResult:
    async with asyncio.timeout(HANGS):
        return await run.result()


async def failed(run: Run) -> tuple[RunFailed, RunResult]:
    """The error of a run that fails, and what it had until then."""
    with pytest.raises(RunFailed) as caught:
        await finished(run)
    assert caught.value.result is not None
    return caught.value, caught.value.result


async def node_states(run: Run) -> dict[str, str]:
    return {node.key: node.state for node in (await run.status()).nodes}


async def broken(given: NodeInput) -> str:
    raise ValueError("no such thing")


# -- when nodes start


async def test_node_starts_when_join_is_met(serve: ServeTeam) -> None:
    """A node starts as soon as its join is met, and waits for no other node."""
    slow = Gate()
    works = Works(gates={"b": slow})

    async def free(given: NodeInput) -> str:
        slow.opened.set()  # b, of an earlier batch, ends only after this has run
        return "freed"

    nodes = {"a": works.work, "b": works.work, "c": works.work, "d": free}
    async with serve(graph(nodes, "ab", "ac", "cd")) as client:
        result = await finished(await client.start("graph", "go"))
    assert [key for key, _, _ in keys(result)][:2] == ["a-1", "c-1"]
    assert result.output == {"b": "b 1", "d": "freed"}, "b could not have ended before d began"


@pytest.mark.parametrize("voters", ["one", "two of three"])
async def test_join_in_loop_takes_one_round(serve: ServeTeam, voters: str) -> None:
    """A slow branch of an earlier round is not joined with this round, whether all or some must arrive."""
    slow = Gate()
    published: list[dict[str, Any]] = []

    async def draft(given: NodeInput) -> str:
        return f"draft {given.visit}"

    async def style(given: NodeInput) -> str:
        if given.visit == 3:
            slow.opened.set()  # law has read the first draft all the while
        return "good" if given.visit == 3 else "again"

    async def law(given: NodeInput) -> str:
        if given.visit == 1:
            await slow.wait()
        return f"law on {given.inputs['draft']}"

    async def publish(given: NodeInput) -> str:
        published.append(given.inputs)
        return "published"

    nodes: dict[str, Any] = {"draft": Node(draft, join="any"), "style": style, "law": law, "publish": publish}
    edges: list[Edge | tuple[str, str]] = [
        ("draft", "style"),
        ("draft", "law"),
        ("law", "publish"),
        Edge("style", "draft", when=lambda state: state.text("style") == "again"),
        Edge("style", "publish", when=lambda state: state.text("style") == "good"),
    ]
    if voters == "two of three":
        nodes |= {"taste": law, "publish": Node(publish, join=2)}
        edges += [("draft", "taste"), Edge("taste", "publish", when=lambda state: False)]
    review = Graph(
        name="graph", nodes=nodes, edges=edges, entry="draft", limits=GraphLimits(max_node_executions=30)
    )
    async with serve(review) as client:
        result = await finished(await client.start("graph", "go"))
    assert published == [{"style": "good", "law": "law on draft 3"}]
    assert (result.stop_reason, result.output) == ("end_turn", "published")


@pytest.mark.parametrize(("join", "needed"), [("any", 1), (2, 2), ("all", 3)])
async def test_join_needs_its_count(serve: ServeTeam, join: Any, needed: int) -> None:
    works = Works(gates={name: Gate() for name in "abc"})
    nodes = dict.fromkeys("abc", works.work) | {"d": Node(works.work, join=join)}
    async with serve(graph(nodes, "ad", "bd", "cd", entry=["a", "b", "c"])) as client:
        run = await client.start("graph", "go")
        for number, name in enumerate("bca", start=1):
            await reached(works.gates[name])
            works.gates[name].opened.set()

            async def ended(key: str = f"{name}-1") -> bool:
                return (await node_states(run))[key] == "done"

            await until_queried(ended)
            assert ("d-1" in await node_states(run)) == (number >= needed)
        result = await finished(run)
    assert list(works.given("d").inputs) == sorted("bca"[:needed]), "in the order of the edges"
    assert works.order.count("d") == 1, "who comes late does not make it run again"
    assert result.output == "d 1"


async def test_conditions_choose_edges_by_state(serve: ServeTeam) -> None:
    """Conditions choose the edges by the whole state."""

    def urgent(state: GraphState) -> bool:
        return state.task == "urgent" and state.output("a")["level"] > 3 and "level" in state.text("a")

    def calm(state: GraphState) -> bool:
        return not urgent(state)

    async def look(given: NodeInput) -> dict[str, int]:
        return {"level": 5}

    works = Works()
    nodes = {"a": look, "b": works.work, "c": works.work}
    made = graph(nodes, Edge("a", "b", urgent), Edge("a", "c", calm))
    async with serve(made) as client:
        first = await finished(await client.start("graph", "urgent"))
        second = await finished(await client.start("graph", "later"))
    assert (first.output, first.unmet) == ("b 1", {"c": "no edge to it was taken"})
    assert (second.output, second.unmet) == ("c 1", {"b": "no edge to it was taken"})


async def test_condition_may_be_lambda_or_closure(serve: ServeTeam) -> None:
    works = Works()

    def above(bound: int) -> Callable[[GraphState], bool]:
        def condition(state: GraphState) -> bool:
            return len(state.task) > bound

        return condition

    nodes = dict.fromkeys("abc", works.work)
    made = graph(nodes, Edge("a", "b", above(5)), Edge("a", "c", lambda state: len(state.task) <= 5))
    async with serve(made) as client:
        assert (await finished(await client.start("graph", "a long task"))).output == "b 1"
        assert (await finished(await client.start("graph", "short"))).output == "c 1"


async def test_entries_start_together_with_task(serve: ServeTeam) -> None:
    works = Works(gates={name: Gate() for name in "ab"})
    nodes = {"a": works.work, "b": works.work, "c": works.work}
    async with serve(graph(nodes, "ac", "bc", entry=["a", "b"])) as client:
        run = await client.start("graph", "the task", user="ann", context={"k": 1})
        for gate in works.gates.values():
            await reached(gate)
        for gate in works.gates.values():
            gate.opened.set()
        await finished(run)
    first, last = works.given("a"), works.given("c")
    assert (first.task, first.prompt, first.inputs) == ("the task", "the task", {})
    assert (first.user, first.context, first.visit) == ("ann", {"k": 1}, 1)
    assert (last.task, last.inputs) == ("the task", {"a": "a 1", "b": "b 1"})
    assert last.prompt == (
        "Original task: the task\n\nInputs from earlier nodes:\n\nFrom a:\na 1\n\nFrom b:\nb 1"
    )


@pytest.mark.parametrize("reset", [False, True])
async def test_revisited_agent_remembers_unless_reset(serve: ServeTeam, reset: bool) -> None:
    cast = Cast({"a": lambda request: says(f"draft {len(request.messages)}"), "b": says("not yet")})
    made = graph(
        {"a": agent("a"), "b": agent("b")},
        "ab",
        Edge("b", "a", lambda state: state.visits["a"] < 2),
        limits=GraphLimits(max_node_executions=10),
        reset_on_revisit=reset,
    )
    async with serve(made, models=cast.models) as client:
        result = await finished(await client.start("graph", "write it"))
    assert [key for key, _, _ in keys(result)] == ["a-1", "b-1", "a-2", "b-2"]
    seen = [message.text for message in cast.asked[2].messages]
    again = "Original task: write it\n\nInputs from earlier nodes:\n\nFrom b:\nnot yet"
    assert seen == ([again] if reset else ["write it", "draft 1", again])
    assert len(cast.asked[3].messages) == (1 if reset else 3), "each remembers its own"


async def test_revisited_node_usage_counts_once(serve: ServeTeam) -> None:
    # Strands B1-10: 75 instead of 60.
    cast = Cast({"a": says("draft"), "b": says("not yet")})
    made = graph(
        {"a": agent("a"), "b": agent("b")},
        "ab",
        Edge("b", "a", lambda state: state.visits["a"] < 2),
        limits=GraphLimits(max_node_executions=10),
    )
    async with serve(made, models=cast.models) as client:
        run = await client.start("graph", "write it")
        result = await finished(run)
        steps = [step for key, _, _ in keys(result) for step in await client.get(f"{run.id}/~{key}").steps()]
    assert len(steps) == result.steps == 4
    assert result.usage == sum_of(result)
    assert result.usage.total_tokens == sum(step.usage.total_tokens for step in steps)
    assert result.cost_microusd == sum(step.cost_microusd or 0 for step in steps)


async def test_concurrency_cap_holds(serve: ServeTeam) -> None:
    # Strands B1-10: no cap.
    both = Gate()
    works = Works()

    async def gated(given: NodeInput) -> str:
        works.running += 1
        works.most = max(works.most, works.running)
        works.called.append(given)
        if works.running == 2:
            both.opened.set()
        await both.wait()
        works.running -= 1
        return given.node

    nodes = dict.fromkeys("abcdefg", gated)
    async with serve(graph(nodes, entry=list("abcdefg"), concurrency=2)) as client:
        result = await finished(await client.start("graph", "go"))
    assert works.most == 2, "as many as the cap allows, and no more"
    assert result.output == {name: name for name in "abcdefg"}


# -- limits inside a batch


async def test_max_executions_is_exact_in_batch(serve: ServeTeam) -> None:
    # Strands B1-9: a bound of 2 with 4 entries ran all 4, and completed.
    works = Works()
    nodes = dict.fromkeys("abcd", works.work)
    made = graph(nodes, entry=list("abcd"), limits=GraphLimits(max_node_executions=2))
    async with serve(made) as client:
        result = await finished(await client.start("graph", "go"))
    assert sorted(works.order) == ["a", "b"]
    assert (result.stop_reason, result.output) == ("max_node_executions", {"a": "a 1", "b": "b 1"})
    assert result.unmet == dict.fromkeys("cd", "it could have run, but the graph ended first")


@pytest.mark.parametrize("kind", ["function", "agent"])
async def test_graph_timeout_holds_in_batch(serve: ServeTeam, kind: str) -> None:
    # Strands B1-9: a timeout of 0.3 s ran 1.0 s.
    gate = Gate()

    async def hang(given: NodeInput) -> str:
        await gate.wait()
        return "never"

    async def a(request: ModelRequest) -> Answer:
        await gate.wait()
        return says("never")

    works, cast = Works(), Cast({"a": a})
    nodes = {"a": agent("a") if kind == "agent" else hang, "b": works.work, "c": works.work}
    made = graph(nodes, "ac", entry=["a", "b"], limits=GraphLimits(timeout=timedelta(seconds=1)))
    async with serve(made, models=cast.models) as client:
        run = await client.start("graph", "go")
        async with asyncio.timeout(HANGS):
            result = await run.result()
            await gate.left.wait()
    assert (result.stop_reason, result.error) == ("deadline", None)
    assert ("b-1", "done", "end_turn") in keys(result)
    assert {key for key, _, _ in keys(result)} == {"a-1", "b-1"}
    assert works.order == ["b"], "nothing was started after it"


@pytest.mark.parametrize("kind", ["function", "agent"])
@pytest.mark.parametrize("own", [True, False], ids=["of the node", "of the graph"])
async def test_node_timeout_ends_graph(serve: ServeTeam, kind: str, own: bool) -> None:
    """A node's timeout holds inside a batch and ends the graph."""
    gate, span, begun = Gate(), timedelta(seconds=0.7), 0

    async def hang(given: NodeInput) -> str:
        nonlocal begun
        begun += 1
        await gate.wait()
        return "never"

    async def a(request: ModelRequest) -> Answer:
        nonlocal begun
        begun += 1
        await gate.wait()
        return says("never")

    works, cast = Works(), Cast({"a": a})
    run_a: Any = agent("a") if kind == "agent" else hang
    nodes = {"a": Node(run_a, timeout=span) if own else run_a, "b": works.work, "c": works.work}
    limits = GraphLimits() if own else GraphLimits(node_timeout=span)
    async with serve(graph(nodes, "ac", entry=["a", "b"], limits=limits), models=cast.models) as client:
        result = await finished(await client.start("graph", "go"))
    assert (result.stop_reason, result.error) == ("node_timeout", None)
    states = {key: (state, reason) for key, state, reason in keys(result)}
    assert states["b-1"] == ("done", "end_turn")
    assert states["a-1"][1] == "node_timeout"
    assert works.order == ["b"]
    assert begun == 1, "its time is that of one run of it, whatever is tried again"


async def test_late_node_may_be_skipped(serve: ServeTeam) -> None:
    gate = Gate()

    async def a(request: ModelRequest) -> Answer:
        await gate.wait()
        return says("never")

    cast, works = Cast({"a": a}), Works()
    late = Node(agent("a"), timeout=timedelta(seconds=0.7), on_error="skip")
    nodes = {"a": late, "b": works.work, "c": Node(works.work, join="any")}
    async with serve(graph(nodes, "ac", "bc", entry=["a", "b"]), models=cast.models) as client:
        result = await finished(await client.start("graph", "go"))
    assert (result.stop_reason, result.output) == ("end_turn", "c 1")


# -- failures


async def test_failure_cancels_siblings(serve: ServeTeam) -> None:
    """A failure cancels the siblings and keeps finished results."""
    # Strands B1-11: a graph raises on some failures, and returns on others.
    gate, failing = Gate(), Gate()

    async def fail(given: NodeInput) -> str:
        await failing.wait()
        raise ValueError("no such thing")

    async def hang(given: NodeInput) -> str:
        await gate.wait()
        return "never"

    works = Works()
    nodes = {"a": works.work, "b": fail, "c": hang, "d": works.work}
    async with serve(graph(nodes, "ab", "ac", "cd")) as client:
        run = await client.start("graph", "go")
        await reached(gate)
        failing.opened.set()
        error, result = await failed(run)
        await asyncio.wait_for(gate.left.wait(), 8)
        status = await run.status()
    assert error.kind == "ValueError"
    assert "node 'b' failed: ValueError: no such thing" in str(error)
    states = {key: state for key, state, _ in keys(result)}
    assert states == {"a-1": "done", "b-1": "failed", "c-1": "cancelled"}
    assert result.nodes[0].output == "a 1"
    assert result.unmet == {"d": "no edge to it was taken"}
    assert status.status == "failed"


async def test_siblings_may_finish(serve: ServeTeam) -> None:
    """Siblings may be left to finish, and their results are kept."""
    gate = Gate()
    works = Works(gates={"c": gate})
    nodes = {"a": works.work, "b": broken, "c": works.work, "d": works.work}
    async with serve(graph(nodes, "ab", "ac", "cd", siblings="finish")) as client:
        run = await client.start("graph", "go")
        await reached(gate)

        async def b_has_failed() -> bool:
            return (await node_states(run)).get("b-1") == "failed"

        await until_queried(b_has_failed)
        assert (await run.status()).status == "acting"
        gate.opened.set()
        _, result = await failed(run)
    assert {key: state for key, state, _ in keys(result)} == {"a-1": "done", "b-1": "failed", "c-1": "done"}
    assert result.output == "c 1"
    assert "d" not in works.order, "nothing new was started"


async def test_failed_node_may_be_skipped(serve: ServeTeam) -> None:
    """A failed node may be skipped, and a join that needs it is reported."""
    works = Works()
    nodes = {
        "a": works.work,
        "b": Node(broken, on_error="skip"),
        "c": works.work,
        "d": Node(works.work, join="any"),
        "e": works.work,
    }
    async with serve(graph(nodes, "ab", "ac", "bd", "cd", "be", "ce")) as client:
        result = await finished(await client.start("graph", "go"))
    assert (result.stop_reason, result.output) == ("end_turn", "d 1")
    [b] = [node for node in result.nodes if node.node == "b"]
    assert b.error is not None
    assert b.error.kind == "ValueError"
    assert result.unmet == {"e": "1 of 2 edges arrived: c; nothing from b (skipped)"}


async def test_overflow_of_a_node_is_a_failure(serve: ServeTeam) -> None:
    """A node that does not fit its model has failed: it is retried and skipped, and its words are no output.

    An agent that answers in spite of failures has answered.
    """
    works = Works()
    cast = Cast({"a": fails("context_overflow", "too long"), "b": fails("context_overflow", "too long")})
    nodes = {
        "a": Node(agent("a"), retries=1, on_error="skip"),
        "b": agent("b", on_failure="answer", fallback_message="sorry"),
        "c": works.work,
        "d": works.work,
    }
    async with serve(graph(nodes, "ac", "bd", entry=["a", "b"]), models=cast.models) as client:
        result = await finished(await client.start("graph", "go"))
    assert sorted(keys(result)) == [
        ("a-1", "failed", "context_overflow"),
        ("a-1.1", "failed", "context_overflow"),
        ("b-1", "done", "context_overflow"),
        ("d-1", "done", "end_turn"),
    ]
    assert works.given("d").inputs == {"b": "sorry"}
    assert result.unmet == {"c": "no edge to it was taken: a skipped"}


async def test_unmet_join_is_the_reason(serve: ServeTeam) -> None:
    """An unmet join is the reason when it leaves the graph without output."""
    works = Works()
    nodes = {"a": works.work, "b": works.work, "c": works.work}
    made = graph(nodes, "ac", Edge("b", "c", lambda state: False), entry=["a", "b"])
    async with serve(made) as client:
        result = await finished(await client.start("graph", "go"))
    assert result.stop_reason == "unmet_join"
    assert result.unmet == {"c": "1 of 2 edges arrived: a; nothing from b"}
    assert {key for key, _, _ in keys(result)} == {"a-1", "b-1"}


async def test_node_retries_as_configured(serve: ServeTeam) -> None:
    tries = 0

    def a(request: ModelRequest) -> Answer:
        nonlocal tries
        tries += 1
        return fails("bad_request", f"no {tries}") if tries < 3 else says("at last")

    cast = Cast({"a": a})
    async with serve(graph({"a": Node(agent("a"), retries=2)}), models=cast.models) as client:
        run = await client.start("graph", "go")
        result = await finished(run)
    assert keys(result) == [
        ("a-1", "failed", "error"),
        ("a-1.1", "failed", "error"),
        ("a-1.2", "done", "end_turn"),
    ]
    assert result.output == "at last"
    assert [request.messages[0].text for request in cast.asked] == ["go"] * 3


async def test_exhausted_retries_fail_graph(serve: ServeTeam) -> None:
    """Exhausted retries fail the graph, and the error has every attempt."""
    cast = Cast({"a": fails("bad_request", "no")})
    async with serve(graph({"a": Node(agent("a"), retries=1)}), models=cast.models) as client:
        error, result = await failed(await client.start("graph", "go"))
    assert error.kind == "bad_request"
    assert [key for key, _, _ in keys(result)] == ["a-1", "a-1.1"]


def _raises(state: GraphState) -> Any:
    return state.output("b")["missing"]


def _no_text(state: GraphState) -> Any:
    return 3


def _nothing(state: GraphState) -> str:
    return "  "


def _no_bool(state: GraphState) -> Any:
    return "yes"


@pytest.mark.parametrize(
    ("what", "function", "kind", "says_why"),
    [
        ("condition", _raises, "condition", "the condition '_raises' of edge 'a' -> 'c' raised TypeError"),
        ("condition", _no_bool, "condition", "must give True or False, not a str"),
        ("input", _raises, "input", "the input '_raises' of node 'c' raised TypeError"),
        ("input", _no_text, "input", "must give text or a list of parts"),
        ("input", _nothing, "input", "gave nothing to ask"),
    ],
)
async def test_failing_graph_function_fails_graph(
    serve: ServeTeam, what: str, function: Any, kind: str, says_why: str
) -> None:
    works = Works()
    node = Node(works.work, input=function) if what == "input" else works.work
    edge = Edge("a", "c", function) if what == "condition" else "ac"
    async with serve(graph({"a": works.work, "c": node}, edge)) as client:
        run = await client.start("graph", "go")
        error, result = await failed(run)
        assert not await run.is_stuck()
    assert error.kind == kind
    assert says_why in str(error)
    assert keys(result) == [("a-1", "done", "end_turn")]
    assert works.order == ["a"]


# -- what nodes run


async def test_teams_are_nodes(serve: ServeTeam) -> None:
    """Swarms, graphs and agents with agents are nodes like any other."""
    helper = agent("helper")
    boss = agent("boss", tools=[helper.as_tool()])
    swarm = Swarm(name="swarm", agents=[agent("a"), agent("b")])
    inner = Graph(
        name="inner", nodes={"one": agent("one"), "two": agent("two")}, edges=[("one", "two")], entry="one"
    )
    cast = Cast(
        {
            "a": to("b", "please"),
            "b": says("of the swarm"),
            "one": says("1"),
            "two": says("of the graph"),
            "helper": says("helped"),
            "boss": [
                calls("helper", input="help"),
                lambda request: says(f"boss {request.messages[-1].text}"),
            ],
        }
    )
    nodes = {"s": swarm, "g": inner, "x": boss}
    async with serve(graph(nodes, "sg", "gx", entry="s"), models=cast.models) as client:
        run = await client.start("graph", "go")
        result = await finished(run)
        below = ["s-1/~a-1", "s-1/~b-1", "g-1/~one-1", "g-1/~two-1", "x-1/~helper-1-1", "x-1"]
        steps = [step for key in below for step in await client.get(f"{run.id}/~{key}").steps()]
    assert result.output == "boss helped"
    assert [(node.key, node.kind, node.output) for node in result.nodes] == [
        ("s-1", "swarm", "of the swarm"),
        ("g-1", "graph", "of the graph"),
        ("x-1", "agent", "boss helped"),
    ]
    assert len(steps) == 7
    assert result.usage.total_tokens == sum(step.usage.total_tokens for step in steps)
    assert result.usage == sum_of(result)
    assert "From s:\nof the swarm" in cast.told("one")


async def test_deep_failure_keeps_partial_results(serve: ServeTeam) -> None:
    """A failure deep below fails each run above it, with its partial results."""
    swarm = Swarm(name="swarm", agents=[agent("a"), agent("b")])
    inner = Graph(name="inner", nodes={"s": swarm}, entry="s")
    works = Works()
    cast = Cast({"a": to("b"), "b": fails("bad_request", "no such thing")})
    async with serve(graph({"a": works.work, "g": inner}, "ag"), models=cast.models) as client:
        run = await client.start("graph", "go")
        error, result = await failed(run)
        _, below = await failed(client.get(f"{run.id}/~g-1/~s-1"))
    assert error.kind == "bad_request"
    assert "no such thing" in str(error)
    assert keys(result) == [("a-1", "done", "end_turn"), ("g-1", "failed", "error")]
    assert keys(below) == [("a-1", "done", "handoff"), ("b-1", "failed", "error")]
    assert result.usage == below.usage


async def test_functions_may_be_sync_or_async(serve: ServeTeam) -> None:
    """Functions may be sync or async, and return any JSON."""

    def sync(given: NodeInput) -> dict[str, Any]:
        return {"task": given.task, "list": [1, None, True]}

    async def later(given: NodeInput) -> Any:
        return given.inputs["a"]["list"]

    def nothing(given: NodeInput) -> None:
        pass

    nodes = {"a": sync, "b": later, "c": nothing}
    async with serve(graph(nodes, "ab", "bc")) as client:
        result = await finished(await client.start("graph", "go"))
    assert [node.output for node in result.nodes] == [
        {"task": "go", "list": [1, None, True]},
        [1, None, True],
        None,
    ]
    assert result.cost_microusd == 0
    assert result.output is None


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_function_retries_share_key(serve: ServeTeam, sync: bool) -> None:
    """A function is retried under the same key when the failure is transient."""
    seen: list[str] = []

    def flaky(given: NodeInput) -> str:
        seen.append(given.idempotency_key)
        if len(seen) == 1:
            raise ConnectionError("reset")
        return "ok"

    async def flaky_later(given: NodeInput) -> str:
        return flaky(given)

    made = graph({"a": flaky if sync else flaky_later, "b": Works().work}, "ab")
    async with serve(made) as client:
        result = await finished(await client.start("graph", "go"))
    assert keys(result) == [("a-1", "done", "end_turn"), ("b-1", "done", "end_turn")]
    assert len(seen) == 2
    assert len(set(seen)) == 1


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (lambda: RetryableToolError("busy", after=timedelta(milliseconds=10)), 3),
        (lambda: KeyError("x"), 1),
        (lambda: ValueError("token=abcdefghijklmnop " + "x" * 10_000), 1),
    ],
)
async def test_function_error_is_graph_error(
    serve: ServeTeam, error: Callable[[], Exception], tries: int
) -> None:
    seen: list[str] = []

    async def broken_function(given: NodeInput) -> str:
        seen.append(given.idempotency_key)
        raise error()

    async with serve(graph({"a": broken_function})) as client:
        caught, result = await failed(await client.start("graph", "go"))
    assert caught.kind == type(error()).__name__
    assert type(error()).__name__ in str(caught)
    assert "abcdefghijklmnop" not in str(caught)
    assert len(str(caught)) < 4500
    assert (len(seen), len(set(seen))) == (tries, 1)
    assert keys(result) == [("a-1", "failed", "error")]


async def test_visits_have_own_keys(serve: ServeTeam) -> None:
    """Each visit, and each retry of a node, has a key of its own."""
    works = Works()
    made = graph(
        {"a": works.work, "b": works.work},
        "ab",
        Edge("b", "a", lambda state: state.visits["a"] < 3),
        limits=GraphLimits(max_node_executions=10),
    )
    async with serve(made) as client:
        await finished(await client.start("graph", "go"))
    assert [(given.node, given.visit) for given in works.called] == [
        (node, visit) for visit in (1, 2, 3) for node in "ab"
    ]
    assert len({given.idempotency_key for given in works.called}) == 6


async def test_non_json_result_fails_once(serve: ServeTeam) -> None:
    calls_made: list[str] = []

    async def odd(given: NodeInput) -> Any:
        calls_made.append(given.node)
        return object()

    async with serve(graph({"a": odd})) as client:
        _, result = await failed(await client.start("graph", "go"))
    assert calls_made == ["a"], "it has had its effect; once more would not help"
    assert keys(result) == [("a-1", "failed", "error")]


async def test_own_input_replaces_default(serve: ServeTeam) -> None:
    def brief(state: GraphState) -> str:
        return f"Judge this: {state.text('a')} ({state.visits['a']}, {state.task})"

    def shown(state: GraphState) -> list[Any]:
        return [Text(text="look"), Image(data=PICTURE)]

    cast = Cast({"a": says("draft"), "b": says("good"), "c": says("seen")})
    nodes = {"a": agent("a"), "b": Node(agent("b"), input=brief), "c": Node(agent("c"), input=shown)}
    async with serve(graph(nodes, "ab", "bc"), models=cast.models) as client:
        await finished(await client.start("graph", "write"))
    assert cast.told("b") == "Judge this: draft (1, write)"
    third = cast.asked[2].messages[0]
    assert [part.kind for part in third.parts] == ["text", "image"]


async def test_task_pictures_reach_every_agent(serve: ServeTeam) -> None:
    cast = Cast({"a": says("a cat"), "b": says("yes")})
    async with serve(graph({"a": agent("a"), "b": agent("b")}, "ab"), models=cast.models) as client:
        await finished(await client.start("graph", [Text(text="What?"), Image(data=PICTURE)]))
    for request in cast.asked:
        assert [p.kind for p in request.messages[0].parts if p.kind == "image"] == ["image"]


@pytest.mark.parametrize("kind", ["agent", "function"])
async def test_large_output_passes_complete(serve: ServeTeam, kind: Literal["agent", "function"]) -> None:
    """An output of 3 MB passes in full; an agent is shown its beginning, and can read on."""

    async def large(given: NodeInput) -> str:
        return BIG

    async def length(given: NodeInput) -> int:
        return len(given.inputs["a"])

    def long(state: GraphState) -> bool:
        return len(state.output("a")) == len(BIG)

    def b(request: ModelRequest) -> Answer:
        begins = request.messages[0].text.startswith(f"From a:\n{BIG[:1000]}")
        return says(str(begins and any(offered.name == "read_result" for offered in request.tools)))

    cast = Cast({"a": says(BIG), "b": b})
    nodes = {"a": agent("a") if kind == "agent" else large, "b": agent("b"), "c": length}
    async with serve(graph(nodes, "ab", Edge("a", "c", long)), models=cast.models) as client:
        result = await finished(await client.start("graph", "go"))
    assert result.output == {"b": "True", "c": len(BIG)}
    assert next(node for node in result.nodes if node.node == "a").output == BIG


async def test_many_inputs_are_cut_and_read_on(serve: ServeTeam) -> None:
    """Inputs that do not fit an agent's model together are each shown in part, and read on as results are."""
    sources = "bcdef"

    def a(request: ModelRequest) -> Answer:
        if sum(len(message.text) for message in request.messages) > 80_000:
            return fails("context_overflow", "the prompt is too long")
        if not any(message.tool_results for message in request.messages):
            return calls("read_result", result="d-1", offset=29_000)
        shown = [name for name in sources if any(f"From {name}:" in m.text for m in request.messages)]
        rest = request.messages[-1].tool_results[0].text
        return says(f"{''.join(shown)}, {rest[-5:]}")

    def writes(name: str) -> Answer:
        return says(f"{name} says " * 5000 + f"end {name}")

    cast = Cast({"a": a, **{name: writes(name) for name in sources}})
    nodes = {name: agent(name) for name in ["a", *sources]}
    edges = [f"{name}a" for name in sources]
    async with serve(graph(nodes, *edges, entry=[*sources]), models=cast.models) as client:
        result = await finished(await client.start("graph", "go"))
    assert (result.stop_reason, result.output, result.missing) == ("end_turn", "bcdef, end d", [])


# -- people


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_ended_graph_keeps_results(serve: ServeTeam, how: str) -> None:
    function_gate, model_gate = Gate(), Gate()

    async def hang(given: NodeInput) -> str:
        await function_gate.wait()
        return "never"

    async def c(request: ModelRequest) -> Answer:
        await model_gate.wait()
        return says("never")

    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    works = Works()
    cast = Cast({"c": [says("half of it") + calls("look"), c]})
    nodes = {"a": works.work, "b": hang, "c": agent("c", tools=[look]), "d": works.work}
    async with serve(graph(nodes, "ab", "ac", "bd"), models=cast.models) as client:
        run = await client.start("graph", "go")
        await reached(function_gate)
        await reached(model_gate)
        await (run.stop() if how == "stop" else run.cancel())
        async with asyncio.timeout(HANGS):
            result = await run.result()
            await function_gate.left.wait()
            await model_gate.left.wait()
        status = await run.status()
    assert result.stop_reason == ("stopped" if how == "stop" else "cancelled")
    assert status.status == ("completed" if how == "stop" else "cancelled")
    states = {key: state for key, state, _ in keys(result)}
    assert states["a-1"] == "done"
    assert set(states) == {"a-1", "b-1", "c-1"}
    [c_ended] = [node for node in result.nodes if node.key == "c-1"]
    assert c_ended.output == "half of it"
    assert c_ended.tool_calls == 1
    assert "b-1: function 'b' was under way; it may or may not have taken effect" in result.missing
    assert result.usage == sum_of(result)
    assert result.usage.total_tokens > 0
    assert works.order == ["a"]


async def test_paused_graph_starts_nothing(serve: ServeTeam) -> None:
    gate = Gate()
    works = Works(gates={"a": gate})
    async with serve(graph({"a": works.work, "b": works.work}, "ab")) as client:
        run = await client.start("graph", "go")
        await reached(gate)
        await run.pause()
        gate.opened.set()

        async def a_has_ended() -> bool:
            return await node_states(run) == {"a-1": "done"}

        await until_queried(a_has_ended)
        assert (await run.status()).status == "paused"
        await run.resume()
        result = await finished(run)
    assert (result.output, works.order) == ("b 1", ["a", "b"])


async def test_root_separates_approvals_of_nodes(serve: ServeTeam) -> None:
    paid: list[int] = []

    @tool(effect="write", approval=True)
    async def pay(cents: int) -> str:
        """Pay."""
        paid.append(cents)
        return f"paid {cents}"

    def part(request: ModelRequest) -> Answer:
        cents = 1 if request.config.model == "a" else 2
        return calls("pay", cents=cents) if request.step == 1 else says(request.messages[-1].text)

    cast = Cast({"a": part, "b": part})
    nodes = {"a": agent("a", tools=[pay]), "b": agent("b", tools=[pay])}
    async with serve(graph(nodes, entry=["a", "b"]), models=cast.models) as client:
        run = await client.start("graph", "go")

        async def both_wait() -> bool:
            return len((await run.status()).waiting) == 2

        await until_queried(both_wait)
        waiting = {one.path[0]: one for one in (await run.status()).waiting if isinstance(one, Approval)}
        page = await details(run)
        assert page.count("waits for a person") == 2
        with pytest.raises(InvalidRequest, match="say what you saw there"):
            await run.resolve_approval("call-1-1", allow=True)
        for key, allow in (("b-1", False), ("a-1", True)):
            decision = {"call_id": "call-1-1", "digest": waiting[key].digest, "allow": allow}
            await run.calls.update("resolve_approval", decision)
        result = await finished(run)
    assert paid == [1]
    assert result.output == {"a": "paid 1", "b": "This call was refused."}


# -- what it costs


async def test_waiting_graph_writes_no_history(serve: ServeTeam) -> None:
    # Strands B2-5: durable timers each 100 ms, 3,000 events for two nodes of 30 s.
    works = Works(gates={name: Gate() for name in "bcde"})
    nodes: dict[str, Any] = dict.fromkeys("abcdef", works.work)
    edges = [f"a{name}" for name in "bcde"] + [f"{name}f" for name in "bcde"]
    async with serve(graph(nodes, *edges)) as client:
        run = await client.start("graph", "go")
        for gate in works.gates.values():
            await reached(gate)
        loop = asyncio.get_running_loop()
        began, before = loop.time(), (await run.describe()).history_length

        async def waited_two_seconds() -> bool:
            return loop.time() - began > 2

        await until(waited_two_seconds)
        assert (await run.describe()).history_length == before
        for gate in works.gates.values():
            gate.opened.set()
        await finished(run)
        history = await run.handle.fetch_history()
    kinds = Counter(event.WhichOneof("attributes") for event in history.events)
    assert kinds["timer_started_event_attributes"] == 0
    assert kinds["activity_task_scheduled_event_attributes"] == 1 + 6
    assert len(history.events) <= 10 + 6 * 7, kinds


async def test_request_limits_bind_graph(serve: ServeTeam) -> None:
    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    def a(request: ModelRequest) -> Answer:
        return says("last word") if request.tool_choice == "none" else calls("look")

    cast = Cast({"a": a})
    nodes = {"a": agent("a", tools=[look], limits=Limits(steps=None))}
    async with serve(graph(nodes), models=cast.models) as client:
        result = await finished(await client.start("graph", "go", limits=Limits(tool_calls=3)))
    assert (result.stop_reason, result.tool_calls, result.output) == ("max_tool_calls", 3, "last word")
