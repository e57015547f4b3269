"""Scheduler of a graph: which nodes run next, and when it is over. The rules stand in `joins`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, ClassVar, cast

from pydantic import TypeAdapter, ValidationError

from perdure.graph import GraphCode, GraphState, as_text
from perdure.messages import Message, Part, Text
from perdure.scheduling import Notes, Over, Start
from perdure.texts import describe_error, fix_surrogates, mask_secrets, truncate_middle
from perdure.wire.results import Failure, NodeResult
from perdure.wire.spec import EdgeSpec, GraphSpec, NodeSpec

from .joins import (
    Arrival,
    Exchange,
    GraphPlan,
    Visit,
    add_arrival,
    arrivals_at,
    has_cycle,
    outgoing,
    record_visit,
    unmet,
)

_PROMPT = TypeAdapter[str | list[Part]](str | list[Part])


class MissingCode(LookupError):
    """The worker's code lacks a function that the run's graph names.

    It fails the workflow task, not the run: a worker with the right code goes on with it.
    """


def graph_state(plan: GraphPlan) -> GraphState:
    """Return the state that conditions and input builders see."""
    return GraphState(
        task=_text(plan.task),
        results=MappingProxyType(plan.results),
        visits=MappingProxyType(plan.visits),
    )


@dataclass(frozen=True)
class GraphScheduler:
    """Scheduler of one graph, with the functions that its conditions and inputs name."""

    spec: GraphSpec
    code: GraphCode = GraphCode()  # noqa: RUF009 - a frozen value
    plan_type: ClassVar[Any] = GraphPlan
    runs_alone: ClassVar[bool] = False

    def begin(self, task: str | list[Part], descriptions: Mapping[str, str]) -> GraphPlan:
        """Return the plan of a run that has just been given its task."""
        return GraphPlan(
            task=task, visits={node.name: 0 for node in self.spec.nodes}, ready=self.spec.entries
        )

    def startable(self, plan: GraphPlan) -> tuple[Start, ...]:
        """Return retries first, then nodes in the order in which their joins were met.

        Nothing, when an input builder fails; then `over` says so.
        """
        starts = _batch(plan, self.spec, self.code)
        return () if isinstance(starts, Failure) else starts

    def record_start(self, plan: GraphPlan, starts: Sequence[Start]) -> GraphPlan:
        """Return the plan once these nodes are running."""
        return _record_start(plan, starts)

    def record_end(self, plan: GraphPlan, result: NodeResult) -> GraphPlan:
        """Return the plan after a node ended; a result of no running node, or a repeated one, is ignored."""
        return _record_end(plan, self.spec, self.code, result)

    def over(self, plan: GraphPlan) -> Over | None:
        """Return the end, or None while something runs or can start.

        With siblings to be cancelled a failed graph is over at once, whatever still runs.
        """
        return _over(plan, self.spec, self.code)

    def partial(self, plan: GraphPlan) -> Any:
        """Return the outputs of the nodes that lead nowhere, or the newest output."""
        return _partial(plan, self.spec)

    def notes(self, plan: GraphPlan) -> Notes:
        """Return the nodes that never ran, and why."""
        return Notes(unmet=unmet(plan, self.spec))


def _record_start(plan: GraphPlan, starts: Sequence[Start]) -> GraphPlan:
    for start in starts:
        retry = next((visit for visit in plan.retries if visit.key == start.key), None)
        visit = retry or Visit(
            node=start.node, number=start.visit, prompt=start.prompt, inputs=dict(start.inputs)
        )
        plan = replace(
            # A retry goes on with what its first attempt consumed.
            record_visit(plan, visit) if retry is None else plan,
            retries=tuple(waiting for waiting in plan.retries if waiting != retry),
            running=(*plan.running, visit),
            executions=plan.executions + 1,
        )
    return plan


def _batch(plan: GraphPlan, spec: GraphSpec, code: GraphCode) -> tuple[Start, ...] | Failure:
    """Return everything that may start now, or the failure of an input builder."""
    starts: list[Start] = []
    while (waiting := _next(plan, spec)) is not None:
        visit = waiting if isinstance(waiting, Visit) else _visit(plan, spec, code, waiting)
        if isinstance(visit, Failure):
            return visit
        start = _start(plan, spec, visit)
        starts.append(start)
        # Each start uses up concurrency and executions that the next one must see.
        plan = _record_start(plan, [start])
    return tuple(starts)


def _fail_if_unaskable(plan: GraphPlan, spec: GraphSpec, code: GraphCode) -> GraphPlan:
    """Return the plan, failed when the input of a node to start cannot be built."""
    starts = _batch(plan, spec, code)
    if isinstance(starts, Failure):
        return replace(plan, end=Over(stop_reason="error", failure=starts))
    return plan


def _next(plan: GraphPlan, spec: GraphSpec) -> Visit | str | None:
    """Return a visit to retry, or else a node to visit, or None when nothing may start now."""
    if plan.end is not None or len(plan.running) >= spec.concurrency or _is_used_up(plan, spec):
        return None
    if plan.retries:
        return plan.retries[0]
    # A node that is ready again waits for its own running visit: it never overlaps itself.
    running = [visit.node for visit in plan.running]
    return next((name for name in plan.ready if name not in running), None)


def _is_used_up(plan: GraphPlan, spec: GraphSpec) -> bool:
    most = spec.limits.max_node_executions
    return most is not None and plan.executions >= most


def _start(plan: GraphPlan, spec: GraphSpec, visit: Visit) -> Start:
    node = spec.node(visit.node)
    return Start(
        key=visit.key,
        node=node.name,
        kind=node.kind,
        member=node.member,
        prompt=visit.prompt,
        timeout=_shorter(node.timeout, spec.limits.node_timeout),
        history=_history(plan.memory.get(node.name, ())),
        visit=visit.number,
        inputs=visit.inputs,
    )


def _shorter(first: timedelta | None, second: timedelta | None) -> timedelta | None:
    return min((span for span in (first, second) if span is not None), default=None)


def _history(exchanges: tuple[Exchange, ...]) -> tuple[Message, ...]:
    return tuple(
        message
        for exchange in exchanges
        for message in (
            Message.user(exchange.prompt),
            Message(role="assistant", parts=[Text(text=exchange.answer)]),
        )
    )


def _visit(plan: GraphPlan, spec: GraphSpec, code: GraphCode, name: str) -> Visit | Failure:
    """Return the node's next visit, or the failure of its input builder."""
    node, arrivals = spec.node(name), arrivals_at(plan, spec, name)
    prompt = _default_prompt(plan.task, arrivals) if node.input is None else _build_prompt(plan, code, node)
    if isinstance(prompt, Failure):
        return prompt
    inputs = {source: arrival.output for source, arrival in arrivals.items()}
    return Visit(
        node=name,
        number=plan.visits[name] + 1,
        prompt=prompt,
        inputs=inputs if node.kind == "function" else {},
    )


def _build_prompt(plan: GraphPlan, code: GraphCode, node: NodeSpec) -> str | list[Part] | Failure:
    """Return the prompt of the node's own input builder, or the failure."""
    what = f"the input {node.input!r} of node {node.name!r}"
    builder = code.inputs.get(node.name)
    if builder is None:
        raise MissingCode(
            f"{what} is not in the graph's code here: serve the run with the code it began with"
        )
    try:
        prompt = _PROMPT.validate_python(builder(graph_state(plan)))
    except ValidationError:
        return Failure(kind="input", message=f"{what} must give text or a list of parts")
    except BaseException as error:
        # BaseException, because a SystemExit in the user's code would end the worker.
        return Failure(kind="input", message=f"{what} raised {_describe(error)}")
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        return Failure(kind="input", message=f"{what} gave nothing to ask")
    if isinstance(prompt, str) and fix_surrogates(prompt) != prompt:
        return Failure(
            kind="input", message=f"{what} gave text with half characters, which cannot be written"
        )
    return prompt


def _describe(error: BaseException) -> str:
    """Return the name and message of an error of the user's code, masked and shortened. Never raises."""
    text = f"{type(error).__name__}: {describe_error(error)}"
    return truncate_middle(mask_secrets(fix_surrogates(text)), 1000)


def _text(prompt: str | list[Part]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "".join(part.text for part in prompt if isinstance(part, Text))


def _default_prompt(task: str | list[Part], arrivals: dict[str, Arrival]) -> str | list[Part]:
    """Return the task, followed by the outputs of the nodes that led here, if any did."""
    if not arrivals:
        return task
    outputs = (f"From {source}:\n{as_text(arrival.output)}" for source, arrival in arrivals.items())
    text = "\n\n".join([f"Original task: {_text(task)}", "Inputs from earlier nodes:", *outputs])
    if isinstance(task, str):
        return text
    return [*(part for part in task if not isinstance(part, Text)), Text(text=text)]


def _record_end(plan: GraphPlan, spec: GraphSpec, code: GraphCode, result: NodeResult) -> GraphPlan:
    visit = next((visit for visit in plan.running if visit.key == result.key), None)
    if visit is None:
        return plan
    # Before the result counts: an input that could not be built must stay a failure, whatever comes.
    plan = _fail_if_unaskable(plan, spec, code)
    plan = replace(plan, running=tuple(run for run in plan.running if run.key != visit.key))
    if not _has_failed(result):
        plan = _remember(_keep_output(plan, spec, result), spec, visit, result)
        return plan if plan.end is not None else _follow_edges(plan, spec, code, result)
    node = spec.node(visit.node)
    if plan.end is None and visit.attempt < node.retries:
        return replace(plan, retries=(*plan.retries, replace(visit, attempt=visit.attempt + 1)))
    if plan.end is None and node.on_error == "skip":
        skipped = result.model_copy(update={"state": "skipped"})
        return replace(plan, results={**plan.results, node.name: skipped})
    plan = replace(plan, results={**plan.results, node.name: result})
    return plan if plan.end is not None else replace(plan, end=_failure_of(result))


def _has_failed(result: NodeResult) -> bool:
    return result.state in {"failed", "cancelled"} or result.stop_reason == "node_timeout"


def _failure_of(result: NodeResult) -> Over:
    if result.stop_reason == "node_timeout":
        return Over(stop_reason="node_timeout")
    error = result.error or Failure(kind=result.state, message="it does not say why")
    failure = error.model_copy(update={"message": f"node {result.node!r} {result.state}: {error.message}"})
    return Over(stop_reason="error", failure=failure)


def _keep_output(plan: GraphPlan, spec: GraphSpec, result: NodeResult) -> GraphPlan:
    results = {**plan.results, result.node: result}
    outputs = plan.outputs
    if not outgoing(spec, result.node):
        outputs = {**outputs, result.node: result.output}
    return replace(plan, results=results, outputs=outputs, latest=result.output)


def _remember(plan: GraphPlan, spec: GraphSpec, visit: Visit, result: NodeResult) -> GraphPlan:
    """Return the plan with the visit in the agent's memory, where its later visits remember it."""
    answer = as_text(result.output)
    remembers = spec.node(visit.node).kind == "agent" and not spec.reset_on_revisit and has_cycle(spec)
    # An empty answer is left out, because no provider takes an empty message.
    if not remembers or not answer.strip():
        return plan
    exchange = Exchange(prompt=visit.prompt, answer=answer)
    earlier = plan.memory.get(visit.node, ())
    return replace(plan, memory={**plan.memory, visit.node: (*earlier, exchange)})


def _follow_edges(plan: GraphPlan, spec: GraphSpec, code: GraphCode, result: NodeResult) -> GraphPlan:
    """Return the plan after the node's output travelled along each edge whose condition holds."""
    # All conditions see the same state, so that their order does not matter.
    state = graph_state(plan)
    for edge in outgoing(spec, result.node):
        taken = _is_taken(edge, code, state)
        if isinstance(taken, Failure):
            return replace(plan, end=Over(stop_reason="error", failure=taken))
        if taken:
            plan = add_arrival(plan, spec, edge, result.output)
    return plan


def _is_taken(edge: EdgeSpec, code: GraphCode, state: GraphState) -> bool | Failure:
    if edge.when is None:
        return True
    what = f"the condition {edge.when!r} of edge {edge.source!r} -> {edge.target!r}"
    condition = code.conditions.get((edge.source, edge.target))
    if condition is None:
        raise MissingCode(
            f"{what} is not in the graph's code here: serve the run with the code it began with"
        )
    try:
        taken = cast("object", condition(state))
    except BaseException as error:
        # BaseException, because a SystemExit in the user's code would end the worker.
        return Failure(kind="condition", message=f"{what} raised {_describe(error)}")
    if isinstance(taken, bool):
        return taken
    return Failure(kind="condition", message=f"{what} must give True or False, not a {type(taken).__name__}")


def _over(plan: GraphPlan, spec: GraphSpec, code: GraphCode) -> Over | None:
    plan = _fail_if_unaskable(plan, spec, code)
    cancel = plan.end is not None and spec.siblings == "cancel"
    if plan.running and not cancel:
        return None
    output = _partial(plan, spec)
    if plan.end is not None:
        return replace(plan.end, output=output, cancel_running=cancel)
    if plan.retries or plan.ready:
        return Over(stop_reason="max_node_executions", output=output) if _is_used_up(plan, spec) else None
    # Arrivals without any output mean that a join waits for edges that nothing will take.
    stuck = bool(plan.arrivals) and not plan.outputs
    return Over(stop_reason="unmet_join" if stuck else "end_turn", output=output)


def _partial(plan: GraphPlan, spec: GraphSpec) -> Any:
    names = [node.name for node in spec.nodes if node.name in plan.outputs]
    match names:
        case []:
            return plan.latest
        case [name]:
            return plan.outputs[name]
        case _:
            return {name: plan.outputs[name] for name in names}
