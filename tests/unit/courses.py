"""Graphs that are played: a shell of no effects, random graphs, and an oracle of what may start."""

from collections.abc import Callable, Sequence
from itertools import combinations
from random import Random
from typing import Any
from zlib import crc32

from pydantic import TypeAdapter

from perdure.graph import Edge, Graph, GraphCode, GraphState, Node, NodeInput
from perdure.limits import GraphLimits
from perdure.messages import Part
from perdure.scheduling import Over, Start
from perdure.wire.results import Failure, NodeResult, StopReason
from perdure.wire.spec import GraphSpec
from perdure.workflows.engine.graph import GraphScheduler
from perdure.workflows.engine.joins import GraphProgress

ADAPTER = TypeAdapter(GraphProgress)
BOUND = GraphLimits(max_node_executions=50)


def begin(spec: GraphSpec, task: str | list[Part]) -> GraphProgress:
    return GraphScheduler(spec).begin(task, {})


def startable(progress: GraphProgress, spec: GraphSpec, code: GraphCode) -> tuple[Start, ...]:
    return GraphScheduler(spec, code).startable(progress)


def started(progress: GraphProgress, spec: GraphSpec, starts: Sequence[Start]) -> GraphProgress:
    return GraphScheduler(spec).record_start(progress, starts)


def ended(progress: GraphProgress, spec: GraphSpec, code: GraphCode, result: NodeResult) -> GraphProgress:
    return GraphScheduler(spec, code).record_end(progress, result)


def over(progress: GraphProgress, spec: GraphSpec, code: GraphCode) -> Over | None:
    return GraphScheduler(spec, code).over(progress)


def partial(progress: GraphProgress, spec: GraphSpec) -> Any:
    return GraphScheduler(spec).partial(progress)


def work(given: NodeInput) -> str:
    return given.task


def answer(start: Start, output: Any = None, **changed: Any) -> NodeResult:
    done = NodeResult(
        key=start.key,
        node=start.node,
        kind=start.kind,
        state="done",
        stop_reason="end_turn",
        output=start.key if output is None else output,
    )
    return done.model_copy(update=changed)


class Play:
    """Plays the loop: starts what can start, and ends what it is told to."""

    def __init__(self, graph: Graph, task: str | list[Part] = "the task") -> None:
        self.spec, self.code = graph.spec(), graph.code()
        self.progress = begin(self.spec, task)
        self.running: dict[str, Start] = {}
        self.starts: dict[str, Start] = {}
        self.order: list[str] = []
        self.go()

    def go(self) -> list[str]:
        """Start what can be started; the keys of it."""
        before = repr(self.progress)
        starts = startable(self.progress, self.spec, self.code)
        after = started(self.progress, self.spec, starts)
        assert repr(self.progress) == before, "a progress is never changed, only followed by another"
        self.progress = after
        assert startable(after, self.spec, self.code) == (), "all that can start starts at once"
        fresh = {start.key: start for start in starts}
        assert len(fresh) == len(starts)
        assert not fresh.keys() & self.starts.keys(), "a key is of one run only"
        self.running.update(fresh)
        self.starts.update(fresh)
        self.order += fresh
        return list(fresh)

    def end(self, key: str, output: Any = None, **changed: Any) -> list[str]:
        """One run ends; the keys of what starts then."""
        before = repr(self.progress)
        after = ended(self.progress, self.spec, self.code, answer(self.running.pop(key), output, **changed))
        assert repr(self.progress) == before
        self.progress = after
        return self.go()

    def fail(self, key: str, message: str = "no", **changed: Any) -> list[str]:
        error = Failure(kind="bad_request", message=message)
        return self.end(key, **{"state": "failed", "stop_reason": "error", "error": error, **changed})

    @property
    def over(self) -> Over | None:
        return over(self.progress, self.spec, self.code)

    @property
    def reason(self) -> StopReason | None:
        found = self.over
        return found.stop_reason if found else None


def wired(names: str, *edges: str | Edge, **changed: Any) -> Graph:
    """Function nodes by letter, edges such as "ab"; entry "a" if nothing else is said."""
    nodes: dict[str, Any] = dict.fromkeys(names, work) | changed.pop("nodes", {})
    pairs = [edge if isinstance(edge, Edge) else (edge[0], edge[1]) for edge in edges]
    given: dict[str, Any] = {"name": "g", "nodes": nodes, "edges": pairs, "entry": "a", "limits": BOUND}
    return Graph(**given | changed)


def times(node: str, most: int) -> Callable[[GraphState], bool]:
    """A condition: until the node has been visited so often."""

    def fewer(state: GraphState) -> bool:
        return state.visits[node] < most

    return fewer


def decided(seed: int, source: str, target: str, visit: int) -> bool:
    return crc32(f"{seed} {source} {target} {visit}".encode()) % (2 + seed % 20) > 0


class Course:
    """A random graph, run in a random order with random failures, beside an oracle of what may start."""

    def __init__(self, seed: int, size: int, written_at: int | None = None) -> None:
        self.random = Random(seed)
        self.seed = seed
        self.written_at = written_at
        graph = self.made(size)
        self.spec, self.code = graph.spec(), graph.code()
        self.play = Play(graph)
        self.oracle = Oracle(self.spec)

    def made(self, size: int) -> Graph:
        names = [f"n{index}" for index in range(size)]
        entries = names[: self.random.randint(1, min(3, size))]
        forward = {
            (names[self.random.randrange(index)], names[index])
            for index in range(len(entries), size)
            for _ in range(self.random.randint(1, 3))
        }
        back = {
            (names[index], names[self.random.randint(0, index)])
            for index in self.random.sample(range(size), self.random.randint(0, size // 6))
        }
        edges = sorted(forward | back)
        self.random.shuffle(edges)
        return Graph(
            name="g",
            nodes={name: self.node(name, forward, edges) for name in names},
            edges=[self.edge(*pair) for pair in edges],
            entry=entries,
            limits=GraphLimits(max_node_executions=self.random.randint(1, 3 * size)),
            concurrency=self.random.randint(1, 9),
            siblings=self.random.choice(["cancel", "finish"]),
        )

    def node(self, name: str, forward: set[tuple[str, str]], edges: Sequence[tuple[str, str]]) -> Node:
        before = sum(target == name for _, target in forward)
        alone = before == sum(target == name for _, target in edges)
        join: Any = self.random.choice(["any", max(1, self.random.randint(1, max(1, before)))])
        if before == 0 or (alone and self.random.random() < 0.6):
            join = "all"
        fatal = self.random.random() < 0.05
        return Node(work, join=join, retries=self.random.randint(0, 1), on_error="fail" if fatal else "skip")

    def edge(self, source: str, target: str) -> Edge:
        def when(state: GraphState) -> bool:
            return decided(self.seed, source, target, state.visits[source])

        return Edge(source, target, when)

    def run(self) -> list[str]:
        """Run it to its end, checking each step; the order of starts."""
        play = self.play
        self.check(play.order)
        for step in range(10_000):
            found = play.over
            if found is not None and (not play.running or not found.cancel_running):
                break
            if step == self.written_at:
                play.progress = ADAPTER.validate_json(ADAPTER.dump_json(play.progress))
            key = self.random.choice(list(play.running))
            fresh = self.end(key)
            self.check(fresh)
        assert not play.running, "what is over has nothing in flight"
        assert play.over is not None
        assert startable(play.progress, self.spec, self.code) == ()
        return play.order

    def end(self, key: str) -> list[str]:
        start = self.play.running[key]
        if self.random.random() < 0.1:
            return self.play.fail(key)
        if self.play.progress.end is None:
            for edge in self.spec.edges:
                if edge.source == start.node and decided(self.seed, edge.source, edge.target, start.visit):
                    self.oracle.bring(edge.source, edge.target)
        return self.play.end(key, f"{start.node}-{start.visit}")

    def check(self, fresh: Sequence[str]) -> None:
        play = self.play
        for key in fresh:
            if "." not in key:
                assert play.starts[key].inputs == self.oracle.visit(play.starts[key].node)
        assert len(play.order) <= (self.spec.limits.max_node_executions or 0) == self.oracle.most
        assert len(play.running) <= self.spec.concurrency
        nodes = [start.node for start in play.running.values()]
        assert len(nodes) == len(set(nodes)), "no node overlaps itself"
        room = len(play.running) < self.spec.concurrency and len(play.order) < self.oracle.most
        if room and play.progress.end is None:
            waiting = [node.name for node in self.spec.nodes if self.oracle.met(node.name)]
            assert set(waiting) <= set(nodes), "a node starts as soon as its join is met"


def loops_of(edges: set[tuple[str, str]], entries: set[str]) -> list[tuple[set[str], set[str]]]:
    """All loops, each with its heads: worked out from the pairs of nodes that lead to each other."""
    targets = {source: {b for a, b in edges if a == source} for source, _ in edges}
    leads: dict[str, set[str]] = {}
    for name, first in targets.items():
        reached, fresh = set[str](), first
        while fresh:
            reached |= fresh
            fresh = {b for a in fresh for b in targets.get(a, ())} - reached
        leads[name] = reached
    found: list[tuple[set[str], set[str]]] = []
    for name in (name for name in leads if name in leads[name]):
        body = {other for other in leads[name] if name in leads.get(other, ())}
        if name != min(body):
            continue
        heads = {b for a, b in edges if b in body and a not in body} | (body & entries)
        found.append((body, heads))
        found += loops_of({(a, b) for a, b in edges if {a, b} <= body and b not in heads}, set())
    return found


class Oracle:
    """What each node holds, worked out from whole sets of ancestors."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self.most = spec.limits.max_node_executions or 0
        self.visits = {node.name: 0 for node in spec.nodes}
        self.joins = {node.name: node.join for node in spec.nodes}
        self.incoming = {name: sum(edge.target == name for edge in spec.edges) for name in self.visits}
        self.ancestors: dict[tuple[str, int], frozenset[tuple[str, int]]] = {}
        self.rounds: dict[tuple[str, int], dict[str, int]] = {}
        pairs = {(edge.source, edge.target) for edge in spec.edges}
        loops = loops_of(pairs, {*spec.entries})
        # What each head of a loop begins anew, and what comes into a loop from before it.
        self.inside = {head: body - heads for body, heads in loops for head in heads}
        self.entering = {(a, b) for a, b in pairs for body, _ in loops if b in body and a not in body}
        self.kept: dict[str, dict[str, int]] = {name: {} for name in self.visits}
        self.held: dict[str, dict[str, int]] = {name: {} for name in self.visits}
        self.ready: dict[str, dict[str, int]] = {name: {} for name in self.visits}

    def bring(self, source: str, target: str) -> None:
        """The source's latest visit ended, and its edge to the target was taken."""
        came = (source, self.visits[source])
        ready, waiting, kept = self.ready[target], self.held[target], self.kept[target]
        others = [visit for held in (ready, waiting, kept) for visit in held.items() if visit[0] != source]
        if any(self.is_older(came, other) for other in others):
            return
        if not self.counts(source, target):
            if (source, target) in self.entering:
                kept[source] = came[1]
                if ready and self.is_one_round(came, ready):
                    ready[source] = came[1]
            return
        self.kept[target] = kept = self.without_older(kept, came)
        if ready and not any(self.is_older(other, came) for other in ready.items() if other[0] != source):
            ready[source] = came[1]
            return
        fresh = self.without_older(waiting, came) | {source: came[1]}
        beside = {
            name: number
            for name, number in kept.items()
            if name not in fresh and self.is_one_round((name, number), fresh)
        }
        self.held[target] = fresh
        if self.is_enough(target, beside | fresh):
            self.ready[target], self.held[target] = beside | fresh, {}

    def without_older(self, held: dict[str, int], came: tuple[str, int]) -> dict[str, int]:
        return {
            name: number
            for name, number in held.items()
            if name != came[0] and not self.is_older((name, number), came)
        }

    def is_one_round(self, visit: tuple[str, int], held: dict[str, int]) -> bool:
        """Whether the visit knows the same visits as all others, of the nodes that both know."""
        return not any(
            self.is_older(visit, other) or self.is_older(other, visit)
            for other in held.items()
            if other[0] != visit[0]
        )

    def is_older(self, first: tuple[str, int], second: tuple[str, int]) -> bool:
        """Whether the first comes from an earlier round: it knows an older visit of a node that both know."""
        known, other = self.rounds[first], self.rounds[second]
        return any(known[name] < other[name] for name in known.keys() & other.keys())

    def is_enough(self, name: str, held: dict[str, int]) -> bool:
        join = self.joins[name]
        enough = {"all": self.incoming[name], "any": 1}.get(join) if isinstance(join, str) else join
        return enough is not None and 0 < enough <= len(held)

    def counts(self, source: str, target: str) -> bool:
        visits = self.visits[target]
        if visits == 0:
            return target not in self.spec.entries
        came = self.ancestors[source, self.visits[source]]
        last = self.ancestors[target, visits]
        if (target, visits) in came:
            return True
        newest_of_last = dict(sorted(last))
        return any(
            number > newest_of_last[name]
            for name, number in came
            if name != target and name in newest_of_last
        )

    def met(self, name: str) -> bool:
        if self.visits[name] == 0 and name in self.spec.entries:
            return True
        return bool(self.ready[name])

    def visit(self, name: str) -> dict[str, str]:
        """The node starts; what it must have been given: the keys of those that led to it."""
        assert self.met(name), "no node starts before its join is met"
        taken, self.ready[name] = self.ready[name], {}
        self.visits[name] += 1
        here = (name, self.visits[name])
        self.check_round(taken)
        known = dict(sorted({pair for visit in taken.items() for pair in self.rounds[visit].items()}))
        before = {source: at for source, at in taken.items() if (source, name) in self.entering}
        self.kept[name] = before | self.kept[name]
        inside = self.inside.get(name, set[str]())
        self.rounds[here] = {node: at for node, at in known.items() if node not in inside} | {name: here[1]}
        sources = [self.ancestors[visit] for visit in taken.items()]
        self.ancestors[here] = frozenset({here}).union(*sources)
        return {source: self.key(source, number) for source, number in taken.items()}

    def check_round(self, taken: dict[str, int]) -> None:
        """What a visit is given is of one round: two of them know the same visit of each node that both know."""
        for first, second in combinations(taken.items(), 2):
            known, other = self.rounds[first], self.rounds[second]
            for name in known.keys() & other.keys():
                assert known[name] == other[name], f"{taken} mixes two visits of {name}"

    def key(self, source: str, number: int) -> str:
        return f"{source}-{number}"
