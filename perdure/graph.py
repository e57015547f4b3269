"""Graph: nodes that run agents, swarms, graphs or functions, and edges that lead from node to node."""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import date, timedelta
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast, get_args

from pydantic import Field

from perdure.agent import Agent
from perdure.definitions import Definition, check_types
from perdure.errors import DefinitionError
from perdure.limits import GraphLimits
from perdure.members import Member, collect_members, unknown_tool_limit
from perdure.messages import Part, Value
from perdure.prices import PriceTable
from perdure.wire.results import NodeResult
from perdure.wire.spec import AnySpec, EdgeSpec, GraphSpec, NodeKind, NodeSpec, OnError
from perdure.wiring import Join, Wiring, wiring_problem

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,63}")


class NodeInput(Value):
    """Argument of a function that is a node."""

    task: str
    """Text of the graph's prompt."""
    inputs: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Outputs of the nodes that led to this node, by name."""
    prompt: Any = ""
    """Prompt that an agent would get in this place: text or parts."""
    node: str
    visit: int = 1
    """Number of this visit of the node, from 1."""
    idempotency_key: str = ""
    """Key that all attempts of this visit share, and no other visit has."""
    attempt: int = 1
    """Number of the attempt, from 1. Above 1, an earlier attempt may have had its effect."""
    user: str | None = None
    context: dict[str, Any] = Field(default_factory=dict[str, Any])
    resources: Any = Field(default=None, exclude=True, repr=False)
    """Value of the worker's `lifespan`; None without one."""


@dataclass(frozen=True, kw_only=True)
class GraphState:
    """Progress of a graph, as conditions and input builders see it."""

    task: str
    """Text of the prompt."""
    results: Mapping[str, NodeResult] = field(default_factory=dict[str, NodeResult])
    """Latest finished visit of each node that has run."""
    visits: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of visits of each node, without retries; 0 for a node that never started."""

    def output(self, name: str) -> Any:
        """Return the node's latest output; None when it has not run."""
        result = self.results.get(name)
        return None if result is None else result.output

    def text(self, name: str) -> str:
        """Return the node's latest output as text."""
        return as_text(self.output(name))


def as_text(output: Any) -> str:
    """Return an output as text for a model: text as it is, None as empty text, the rest as compact JSON."""
    if output is None:
        return ""
    if isinstance(output, str):
        return output
    return json.dumps(output, separators=(",", ":"), ensure_ascii=False, default=str)


Condition = Callable[[GraphState], bool]
InputBuilder = Callable[[GraphState], str | list[Part]]
NodeFunction = Callable[[NodeInput], Any]


Executor = Agent | Member | NodeFunction


@dataclass(frozen=True)
class Edge(Definition):
    """Edge from `source` to `target`, taken once `source` has run and `when` returns True."""

    source: str
    target: str
    when: Condition | None = None
    """None: the edge is always taken."""

    def __post_init__(self) -> None:
        check_types(self, f"edge {self.source!r} -> {self.target!r}")
        _check_synchronous(self.when, f"edge {self.source!r} -> {self.target!r}: when")


@dataclass(frozen=True)
class Node(Definition):
    """Node of a graph: what it runs, its join, and the treatment of its failures."""

    run: Executor
    """Agent, swarm or graph, or a function that takes a `NodeInput` and returns JSON."""
    _: KW_ONLY
    join: Join = "all"
    """Incoming edges that must deliver before the node runs: "all", "any", or their number."""
    on_error: OnError = "fail"
    """Effect of a failure after all retries: the graph fails, or goes on as if no edge left the node."""
    retries: int = 0
    timeout: timedelta | None = None
    """Wall clock of one run of the node."""
    input: InputBuilder | None = None
    """Builder of its prompt. None: the graph's task, with the outputs of the nodes that led to it."""
    description: str = ""
    kind: NodeKind = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", _kind(self.run))
        what = f"Node({getattr(self.run, 'name', None) or getattr(self.run, '__name__', '')!r})"
        check_types(self, what)
        if self.join not in ("all", "any") and not _at_least(self.join, 1):
            raise DefinitionError(f"{what}: join must be 'all', 'any' or 1 and more, not {self.join!r}")
        if self.on_error not in get_args(OnError):
            raise DefinitionError(f"{what}: on_error must be 'fail' or 'skip', not {self.on_error!r}")
        if not _at_least(self.retries, 0):
            raise DefinitionError(f"{what}: retries must be 0 or more, not {self.retries!r}")
        if self.timeout is not None and not _positive(self.timeout):
            raise DefinitionError(f"{what}: timeout must be a positive timedelta, not {self.timeout!r}")
        _check_synchronous(self.input, f"{what}: input")

    @property
    def member(self) -> Agent | Member | None:
        """Agent, swarm or graph that it runs; None for a function."""
        return None if self.kind == "function" else cast("Agent | Member", self.run)


@dataclass(frozen=True, kw_only=True)
class GraphCode:
    """Functions of a graph by their place in it. Everything else is in its spec."""

    conditions: Mapping[tuple[str, str], Condition] = field(default_factory=dict[tuple[str, str], Condition])
    inputs: Mapping[str, InputBuilder] = field(default_factory=dict[str, InputBuilder])
    functions: Mapping[str, NodeFunction] = field(default_factory=dict[str, NodeFunction])


@dataclass(frozen=True, kw_only=True)
class Graph(Definition):
    """A graph.

    Entries start at once, whatever edges lead to them. A node starts as soon as its join is met. A graph with
    a cycle needs `limits.max_node_executions` or `limits.timeout`. Making a graph raises DefinitionError for
    everything that could not run.
    """

    member_kind: ClassVar[Literal["graph"]] = "graph"

    name: str
    nodes: Mapping[str, Executor | Node]
    """Nodes by name. A value that is not a Node becomes a Node with defaults."""
    edges: Sequence[Edge | tuple[str, str]] = ()
    """Edges, in the order in which their conditions are evaluated."""
    entry: str | Sequence[str]
    limits: GraphLimits = GraphLimits()
    concurrency: int = 8
    """Most nodes that run at the same time."""
    reset_on_revisit: bool = False
    """False: an agent that is visited again keeps the messages of its earlier visits."""
    siblings: Literal["cancel", "finish"] = "cancel"
    """Treatment of nodes in flight when another node fails the graph."""
    description: str = ""

    def __post_init__(self) -> None:
        check_types(self, f"graph {self.name!r}")
        if not _is_name(self.name):
            raise DefinitionError(f"graph name {self.name!r}: {_NAME_RULE}")
        # The dataclass is frozen, and these fields take shorter forms that are normalized here.
        object.__setattr__(self, "nodes", MappingProxyType(_build_nodes(self)))
        object.__setattr__(self, "edges", tuple(_build_edges(self)))
        object.__setattr__(self, "entry", _build_entries(self))
        _check_settings(self)
        _check_wiring(self)
        collect_members(self, *(node.member for node in self._nodes.values() if node.member is not None))

    @property
    def _edges(self) -> tuple[Edge, ...]:
        return cast("tuple[Edge, ...]", self.edges)

    @property
    def _nodes(self) -> Mapping[str, Node]:
        return cast("Mapping[str, Node]", self.nodes)

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of the entries."""
        return cast("tuple[str, ...]", self.entry)

    @property
    def members(self) -> dict[str, Agent | Member]:
        """Agents, swarms and graphs that its nodes run, by name, in the order of the nodes."""
        found = (node.member for node in self._nodes.values())
        return {member.name: member for member in found if member is not None}

    def spec(
        self, *, prices: PriceTable | None = None, today: date | None = None, cost_limited: bool = False
    ) -> GraphSpec:
        """Return the graph as data; its hash covers its members by their hashes.

        Raises:
            DefinitionError: the cost is bounded, and the price of a model below it is not known.

        """
        # One budget bounds all nodes, so each of them needs its prices.
        limited = cost_limited or self.limits.cost_usd is not None
        specs: list[AnySpec] = [
            member.spec(prices=prices, today=today, cost_limited=limited) for member in self.members.values()
        ]
        # Fields of the same name go over as they are; only what a spec states otherwise is named here.
        stated_otherwise = {
            "nodes": tuple(_node_spec(name, node) for name, node in self._nodes.items()),
            "edges": tuple(
                EdgeSpec(source=edge.source, target=edge.target, when=_function_name(edge.when, "condition"))
                for edge in self._edges
            ),
            "entries": self.entries,
            "member_hashes": tuple(spec.hash for spec in specs),
        }
        return GraphSpec.model_validate({**vars(self), **stated_otherwise})

    def code(self) -> GraphCode:
        """Return its functions, which no spec can hold."""
        return GraphCode(
            conditions={(e.source, e.target): e.when for e in self._edges if e.when is not None},
            inputs={name: node.input for name, node in self._nodes.items() if node.input is not None},
            functions={
                name: cast("NodeFunction", node.run)
                for name, node in self._nodes.items()
                if node.member is None
            },
        )


_NAME_RULE = "use letters, digits, '_', '-' and '.', starting with a letter"


def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _at_least(value: object, least: int) -> bool:
    # True and False are integers to Python; as a count they are a slip.
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _positive(span: object) -> bool:
    return isinstance(span, timedelta) and span > timedelta()


def _takes_one_argument(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:
        return True  # some functions written in C have no signature
    return True


def _kind(run: object) -> NodeKind:
    if isinstance(run, Agent):
        return "agent"
    # Swarms and graphs state their kind, so this file need not know their classes. The classes themselves
    # have a `member_kind` as well, but no `name`.
    kind = getattr(run, "member_kind", None) if hasattr(run, "name") else None
    if kind in get_args(NodeKind):
        return cast("NodeKind", kind)
    # Calling a generator function runs nothing of it.
    generates = inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run)
    if (inspect.isfunction(run) or inspect.ismethod(run)) and not generates and _takes_one_argument(run):
        return "function"
    raise DefinitionError(
        f"{run!r} cannot be a node: use an Agent, a Swarm, a Graph, "
        "or a function of one parameter (the NodeInput)"
    )


def _check_synchronous(function: object, what: str) -> None:
    """Check that a condition or input builder is a plain function of the GraphState."""
    # The workflow calls it while it decides, and must not wait for anything there.
    if function is None:
        return
    if not callable(function):
        raise DefinitionError(f"{what} must be a function, not {function!r}")
    call = getattr(function, "__call__", None)  # noqa: B004 - an object whose call is a coroutine
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
        raise DefinitionError(f"{what} is async; make it a plain function of the GraphState")
    if not _takes_one_argument(function):
        raise DefinitionError(f"{what} must take one parameter, the GraphState")


def _definition_error(graph: Graph, text: str) -> DefinitionError:
    return DefinitionError(f"graph {graph.name!r}: {text}")


def _build_nodes(graph: Graph) -> dict[str, Node]:
    if not isinstance(graph.nodes, Mapping) or not graph.nodes:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _definition_error(graph, f"nodes must map names to what they run, not {graph.nodes!r}")
    nodes: dict[str, Node] = {}
    for name, run in graph.nodes.items():
        if not _is_name(name):
            raise _definition_error(graph, f"node name {name!r}: {_NAME_RULE}")
        try:
            nodes[name] = run if isinstance(run, Node) else Node(run)
        except DefinitionError as error:
            raise _definition_error(graph, f"node {name!r}: {error}") from None
    return nodes


def _build_edges(graph: Graph) -> Iterator[Edge]:
    # Not any iterable: the order of edges is the order of their conditions, and a set has none.
    if not isinstance(graph.edges, list | tuple):
        raise _definition_error(graph, f"edges must be a list, not {graph.edges!r}")
    for edge in graph.edges:
        if isinstance(edge, Edge):
            yield edge
        elif isinstance(edge, tuple) and len(edge) == 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            yield Edge(*edge)
        else:
            raise _definition_error(graph, f'{edge!r} is not an edge; write Edge("a", "b") or ("a", "b")')


def _build_entries(graph: Graph) -> tuple[str, ...]:
    entries = (graph.entry,) if isinstance(graph.entry, str) else graph.entry
    if not isinstance(entries, list | tuple) or not entries:
        raise _definition_error(graph, "no entry; name the node or nodes with which it starts")
    return tuple(entries)


def _check_settings(graph: Graph) -> None:
    if not isinstance(graph.limits, GraphLimits):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _definition_error(graph, f"limits must be GraphLimits, not {graph.limits!r}")
    unknown = unknown_tool_limit(graph.limits, graph.members.values())
    if unknown is not None:
        raise _definition_error(
            graph, f"limits.per_tool names {unknown!r}, which is not a tool of its agents"
        )
    if not _at_least(graph.concurrency, 1):
        raise _definition_error(graph, f"concurrency must be 1 or more, not {graph.concurrency!r}")
    if graph.siblings not in ("cancel", "finish"):
        raise _definition_error(graph, f"siblings must be 'cancel' or 'finish', not {graph.siblings!r}")


def _check_wiring(graph: Graph) -> None:
    wiring = Wiring(
        joins={name: node.join for name, node in graph._nodes.items()},
        edges=tuple((edge.source, edge.target) for edge in graph._edges),
        entries=graph.entries,
    )
    bounded = graph.limits.max_node_executions is not None or graph.limits.timeout is not None
    problem = wiring_problem(wiring, bounded=bounded)
    if problem is not None:
        raise _definition_error(graph, problem)


def _function_name(function: Callable[..., Any] | None, lambda_name: str) -> str | None:
    """Return the function's name, for people who read the spec; `lambda_name` for a lambda."""
    if function is None:
        return None
    name = getattr(function, "__name__", type(function).__name__)
    return lambda_name if name == "<lambda>" else name


def _node_spec(name: str, node: Node) -> NodeSpec:
    stated_otherwise = {
        "name": name,
        "member": None if node.member is None else node.member.name,
        "input": _function_name(node.input, "input"),
    }
    return NodeSpec.model_validate({**vars(node), **stated_otherwise})
